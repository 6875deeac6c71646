"""What the SCRC policy computes from calibration images: tau and the class floors, and the bound of each risk at them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np
from numpy.typing import NDArray

from stage1.policy.boundary import Boundary
from stage1.policy.certificate import RiskBound
from stage1.policy.scrc import Bools, ScrcPolicy, class_log_odds, confidence_of
from stage1.risk.bounds import binomial_upper
from stage1.risk.scrc import allowed_losses, class_floor, inductive_selection, transductive_cuts
from stage1.risk.testing import minimum_samples, order_statistic_rank
from stage1.scores import Scores

# The coverage claim costs few images at a small delta; the risks need theirs.
_COVERAGE_SHARE = 0.2
# Ranks beyond the coverage rank, as a share of n: ties up to that many at tau do no harm, and nothing but coverage is added.
_SPARE_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Target:
    risk: str
    k: int  # the class whose selected members are counted
    value: float


@dataclass(frozen=True, slots=True)
class Choice:
    """tau and floors, the calibration rows that count, the delta of each risk; ties, above, rank: see risk.scrc."""

    tau: float
    floors: tuple[float, ...]
    selected: Bools
    delta: float
    covers: bool = True
    ties: int = 0
    above: int = 0
    rank: int = 0


def choose(
    scores: Scores, kind: str, targets: Sequence[Target], xi: float, delta: float, variant: str, boundary: Boundary | None = None
) -> Choice:  # fmt: skip
    """boundary: of two classes, fixed before `scores` were seen; no image exits on its wrong side (lower floors lose no less)."""
    odds, labels = class_log_odds(scores.logits), scores.known_labels
    g, truth = confidence_of(scores, odds, kind), odds[np.arange(len(labels)), labels]

    def floors(selected: Bools, allowed: Callable[[int, float], int]) -> tuple[float, ...]:
        found = [-inf] * scores.n_classes
        for target in targets:
            members = truth[selected & (labels == target.k)]
            found[target.k] = class_floor(members, allowed(len(members), target.value))
        if boundary is not None:
            # Exit as 0 is s < floors[1], exit as 1 is s > -floors[0].
            found = [min(found[0], -boundary.hi), min(found[1], boundary.lo)]
        return tuple(found)

    if variant == "T":
        lower, upper = transductive_cuts(g, xi)
        # An image at g = lower is ranked with the calibration images >= lower, others with those >= upper. One vector for
        # both, the lower of each floor: a larger set loses less, so both means stay bounded.
        both = zip(floors(g >= upper, allowed_losses), floors(g >= lower, allowed_losses), strict=True)
        return Choice(lower, _tidied(tuple(min(pair) for pair in both), kind, lower), g >= upper, delta)
    # Coverage is a fact of tau, and given tau the classes are independent samples: the confidences multiply.
    of_coverage = delta * _COVERAGE_SHARE
    of_risk = 1.0 - ((1.0 - delta) / (1.0 - of_coverage)) ** (1.0 / len(targets))
    cut = inductive_selection(g, xi, of_coverage, spare=ceil(_SPARE_SHARE * len(g)))
    found = floors(g > cut.tau, lambda m, alpha: order_statistic_rank(m, alpha, of_risk) - 1)
    found = _tidied(found, kind, cut.tau)
    return Choice(cut.tau, found, g > cut.tau, of_risk, cut.covers, cut.ties, cut.above, cut.rank)


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
    """Errors and trials of each risk counted anew from the policy's sets, with the bound of its variant."""
    bounds = {}
    for risk, k, value in ((target.risk, target.k, target.value) for target in targets):
        members = chosen.selected & (labels == k)
        n, errors = int(members.sum()), int((members & ~in_set[:, k]).sum())
        never = policy.certified and policy.floors[k] == -inf
        if policy.variant == "I":
            bound, least = float(binomial_upper(errors, n, chosen.delta)), minimum_samples(value, chosen.delta)
            alone = bound
        else:
            # A mean over calibration sets: the limit that it keeps, not a bound for this set (policy/scrc_words.py).
            alone, least = (errors + 1) / (n + 1), ceil(1 / value - 1e-9) - 1
            bound = value if policy.certified else alone
        bounds[risk] = RiskBound(
            name=risk, target=value, observed=errors / n if n else None, bound=0.0 if never else bound, n=n, errors=errors,
            delta=chosen.delta, needed=least, by_construction=never, alone=0.0 if never else alone,
        )  # fmt: skip
    return bounds
