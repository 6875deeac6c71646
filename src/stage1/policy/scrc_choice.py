"""What SCRC makes of calibration images: tau, the classes that are kept, their floors, the bound of each risk there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from stage1.policy.boundary import Boundary
from stage1.policy.certificate import RiskBound, UnclaimedClass
from stage1.policy.scrc import Bools, ScrcPolicy, class_log_odds, confidence_of
from stage1.policy.scrc_unclaimed import (
    Claims,
    each_of,
    kept_inductive,
    kept_transductive,
    needed_without_error,
)
from stage1.risk.bounds import binomial_upper
from stage1.risk.conformal import allowed_losses, class_floor, inductive_selection, transductive_cuts
from stage1.risk.testing import order_statistic_rank
from stage1.scores import Scores

# The coverage claim costs few images at a small delta; the risks need theirs.
_COVERAGE_SHARE = 0.2
# Ranks beyond the coverage rank, as a share of n: ties up to that many at tau do no harm, and nothing but coverage is
# added.
_SPARE_SHARE = 0.01

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Target:
    risk: str
    k: int  # the class whose selected members are counted
    value: float


@dataclass(frozen=True, slots=True)
class Sample:
    """Counted units: g float [N], truth float [N] (log odds of the true class), labels int [N], number of classes."""

    g: Floats
    truth: Floats
    labels: NDArray[np.int64]
    n_classes: int

    @classmethod
    def of(cls, scores: Scores, kind: str) -> Sample:
        """Of labelled scores; kind: of confidence. Raises DataError where labels or the gate are missing."""
        odds, labels = class_log_odds(scores.logits), scores.known_labels
        g, truth = confidence_of(scores, odds, kind), odds[np.arange(len(labels)), labels]
        return cls(g, truth, labels, scores.n_classes)


@dataclass(frozen=True, slots=True)
class Selected:
    """What tau and the numbers of selected images of each class decide, before a score of a class is looked at.

    rows: calibration rows that count. tied: variant T, those that a new image at tau is ranked with; None: variant I.
    kept: which targets; delta of each of them. ties, above, rank: see risk.conformal.
    """

    tau: float
    rows: Bools
    tied: Bools | None
    kept: Claims
    covers: bool = True
    ties: int = 0
    above: int = 0
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """Selection and floors. kept: the targets whose claim is made, None where nothing can be certified."""

    of: Selected
    floors: tuple[float, ...]
    kept: tuple[Target, ...] | None


def select(sample: Sample, targets: Sequence[Target], xi: float, delta: float, variant: str) -> Selected:
    """tau by the share `xi` to be selected, and the targets that can be certified there."""

    def kept(rows: Bools, of_risks: float, keep: Callable[[Sequence[int], Sequence[float], float], Claims]) -> Claims:
        if sample.n_classes == 2:
            each = each_of(of_risks, len(targets)) if variant == "I" else of_risks
            return Claims(tuple(range(len(targets))), each, each)
        counts = np.bincount(sample.labels[rows], minlength=sample.n_classes)
        return keep([int(counts[target.k]) for target in targets], [target.value for target in targets], of_risks)

    if variant == "T":
        lower, upper = transductive_cuts(sample.g, xi)
        # Which classes are kept is asked of the images above the cut (policy/scrc_unclaimed.py).
        rows = sample.g >= upper if sample.n_classes == 2 else sample.g > lower
        return Selected(lower, rows, sample.g >= lower, kept(rows, delta, kept_transductive))
    # Coverage is a fact of tau, and given tau the classes are independent samples: the confidences multiply.
    of_coverage = delta * _COVERAGE_SHARE
    cut = inductive_selection(sample.g, xi, of_coverage, spare=ceil(_SPARE_SHARE * len(sample.g)))
    rows = sample.g > cut.tau
    found = kept(rows, 1.0 - (1.0 - delta) / (1.0 - of_coverage), kept_inductive)
    return Selected(cut.tau, rows, None, found, cut.covers, cut.ties, cut.above, cut.rank)


def choose(
    sample: Sample, kind: str, targets: Sequence[Target], of: Selected, boundary: Boundary | None = None
) -> Choice:
    """boundary: of two classes, fixed before it was seen: nothing exits on its wrong side (floors only fall)."""
    kept = tuple(targets[place] for place in of.kept.classes)

    def floors(rows: Bools, allowed: Callable[[int, float], int]) -> tuple[float, ...]:
        found = [-inf] * sample.n_classes
        for target in kept:
            members = sample.truth[rows & (sample.labels == target.k)]
            found[target.k] = class_floor(members, allowed(len(members), target.value))
        if boundary is not None:
            # Exit as 0 is s < floors[1], exit as 1 is s > -floors[0].
            found = [min(found[0], -boundary.hi), min(found[1], boundary.lo)]
        return tuple(found)

    if of.tied is None:
        cuts = floors(of.rows, lambda m, alpha: order_statistic_rank(m, alpha, of.kept.delta) - 1)
    else:
        # An image at g = tau is ranked with all calibration images >= tau, others with those above. One vector for
        # both, the lower of each floor: a larger set loses less, so both means stay bounded.
        both = zip(floors(of.rows, allowed_losses), floors(of.tied, allowed_losses), strict=True)
        cuts = tuple(min(pair) for pair in both)
    return Choice(of, _tidied(cuts, kind, of.tau), kept if kept and of.covers else None)


def _tidied(floors: tuple[float, ...], kind: str, tau: float) -> tuple[float, ...]:
    """Lower floors where the sets would be odd; a larger set loses no less, so every bound stays.

    g = softmax: no floor above tau, so that the likeliest class of a selected image is always in its set and none is
    answered against it. Else, two classes that hardly overlap leave scores whose set is empty: any point between the
    two floors closes that gap; the one nearest to even odds is taken, and a score on it defers.
    """
    if kind == "softmax" and tau > -inf:
        return tuple(min(value, tau) for value in floors)
    if len(floors) != 2 or floors[1] <= -floors[0]:
        return floors
    point = min(max(0.0, -floors[0]), floors[1])
    return (0.0 - point, point)


def measured(
    policy: ScrcPolicy, chosen: Choice, in_set: Bools, labels: NDArray[np.int64], targets: Sequence[Target]
) -> dict[str, RiskBound]:
    """Errors and trials of each risk, recounted from the policy's sets, with the bound of its variant."""
    bounds = {}
    for risk, k, value in ((target.risk, target.k, target.value) for target in targets):
        members = chosen.of.rows & (labels == k)
        n, errors = int(members.sum()), int((members & ~in_set[:, k]).sum())
        never = policy.certified and policy.floors[k] == -inf
        if policy.variant == "I":
            bound = alone = float(binomial_upper(errors, n, chosen.of.kept.delta))
        else:
            # A mean over calibration sets: the limit that it keeps, not a bound for this set.
            alone = (errors + 1) / (n + 1)
            bound = value if policy.certified else alone
        bounds[risk] = RiskBound(
            name=risk,
            target=value,
            observed=errors / n if n else None,
            bound=0.0 if never else bound,
            n=n,
            errors=errors,
            delta=chosen.of.kept.delta,
            needed=needed_without_error(value, chosen.of.kept.delta, policy.variant),
            by_construction=never,
            alone=0.0 if never else alone,
        )
    return bounds


def unclaimed_classes(
    chosen: Choice, exits: Bools, labels: NDArray[np.int64], missing: Sequence[Target], policy: ScrcPolicy
) -> tuple[UnclaimedClass, ...]:
    """What there is to say of the classes of `missing` targets; exits, labels: of the calibration rows."""
    found = []
    for target in missing:
        members = labels == target.k
        n = int((chosen.of.rows & members).sum())
        needed = needed_without_error(target.value, chosen.of.kept.delta_of_all, policy.variant)
        errors = int((exits & members).sum())
        name = policy.classes[target.k]
        found.append(UnclaimedClass(name, target.risk, target.value, n, errors, int(members.sum()), needed))
    return tuple(found)
