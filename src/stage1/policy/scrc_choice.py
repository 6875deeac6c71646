"""What SCRC makes of calibration images: tau and the class floors, the bound of each risk there, and their words.

The words are what the numbers of the certificate count, its statement, and what a target takes that is not certified.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, inf

import numpy as np
from numpy.typing import NDArray

from stage1.policy.attempts import Attempts, counted_words
from stage1.policy.boundary import Boundary
from stage1.policy.certificate import RiskBound, images, percent
from stage1.policy.scrc import Bools, ScrcPolicy, class_log_odds, confidence_of
from stage1.risk.bounds import binomial_upper
from stage1.risk.conformal import allowed_losses, class_floor, inductive_selection, transductive_cuts
from stage1.risk.testing import minimum_samples, order_statistic_rank
from stage1.scores import Scores

# The coverage claim costs few images at a small delta; the risks need theirs.
_COVERAGE_SHARE = 0.2
# Ranks beyond the coverage rank, as a share of n: ties up to that many at tau do no harm, and nothing but coverage is
# added.
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
    scores: Scores,
    kind: str,
    targets: Sequence[Target],
    xi: float,
    delta: float,
    variant: str,
    boundary: Boundary | None = None,
) -> Choice:
    """boundary: of two classes, fixed before `scores` were seen; nothing exits on its wrong side (floors only fall)."""
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
        # An image at g = lower is ranked with the calibration images >= lower, others with those >= upper. One vector
        # for both, the lower of each floor: a larger set loses less, so both means stay bounded.
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
    """Errors and trials of each risk, recounted from the policy's sets, with the bound of its variant."""
    bounds = {}
    for risk, k, value in ((target.risk, target.k, target.value) for target in targets):
        members = chosen.selected & (labels == k)
        n, errors = int(members.sum()), int((members & ~in_set[:, k]).sum())
        never = policy.certified and policy.floors[k] == -inf
        if policy.variant == "I":
            bound, least = float(binomial_upper(errors, n, chosen.delta)), minimum_samples(value, chosen.delta)
            alone = bound
        else:
            # A mean over calibration sets: the limit that it keeps, not a bound for this set (policy/scrc_choice.py).
            alone, least = (errors + 1) / (n + 1), ceil(1 / value - 1e-9) - 1
            bound = value if policy.certified else alone
        bounds[risk] = RiskBound(
            name=risk,
            target=value,
            observed=errors / n if n else None,
            bound=0.0 if never else bound,
            n=n,
            errors=errors,
            delta=chosen.delta,
            needed=least,
            by_construction=never,
            alone=0.0 if never else alone,
        )
    return bounds


def meaning(variant: str) -> tuple[str, ...]:
    """What the numbers count, beside the assumptions that every certificate has."""
    return (
        (
            "The risks are counted among selected images, those whose confidence passes, not among images that exit:"
            " they do not bound fnr or fpr. They do bound the share of all images of the class."
        ),
        {
            "I": (
                "The bound is PAC: over calibration sets, coverage and all risks hold jointly with the stated"
                " confidence."
            ),
            "T": (
                "The bound is in expectation, over calibration set and new image together. It is not PAC: this"
                " calibration set may be an unlucky one, and the stated confidence is not used."
            ),
        }[variant],
        "The share of selected images, unlike the risks, changes with the share of each class.",
    )


def claimed(policy: ScrcPolicy, targets: Sequence[Target], confidence: float) -> str:
    claims = [f"at least {percent(policy.xi)} of images are selected (their confidence passes)"]
    for target in targets:
        wrong = f"'{policy.classes[1 - target.k]}'" if len(policy.classes) == 2 else "another class"
        members = images(policy.classes[target.k])
        claims.append(f"among selected {members} at most {percent(target.value)} exit as {wrong}")
    promise = (
        f"with confidence {percent(confidence)} over calibration sets"
        if policy.variant == "I"
        else (
            "on average over calibration sets and images (in expectation, not with a confidence for this calibration"
            " set)"
        )
    )
    return f"{promise}: {', and '.join(claims)}"


def statement(
    claims: str,
    policy: ScrcPolicy,
    selected: Bools,
    exits: Bools,
    unit: str,
    *,
    iid_assumed: bool,
    attempts: Attempts | None,
    confidence: float,
) -> str:
    """The sentence that opens certificate, model card and report, where images exit."""
    shares = [percent(floor(1000 * float(mask.mean())) / 1000) for mask in (selected, exits)]
    sentences = [
        f"{claims[0].upper()}{claims[1:]}.",
        (
            f"The denominator is the selected images, not those that exit: {shares[0]} of the calibration {unit}s are"
            f" selected, {shares[1]} exit."
        ),
    ]
    closed = [f"'{name}'" for name in policy.never_answered]
    if closed:
        sentences.append(f"No image exits as {', '.join(closed)}: there are too few selected calibration {unit}s.")
    if policy.equivalent_thresholds is not None:
        lo, hi = policy.equivalent_thresholds
        rule = [f"as '{policy.classes[0]}' below {lo:.4g}"] if lo is not None else []
        rule += [f"as '{policy.classes[1]}' above {hi:.4g}"] if hi is not None else []
        sentences.append(
            "With two classes and the model's own confidence, selection and set are cuts of one score: images exit "
            f"{', '.join(rule)} (difference of the logits), as by the softmax policy."
        )
    if unit == "group":
        sentences.append("An image here is a random image of a random group (one image of each group was counted).")
    if iid_assumed:
        sentences.append(
            "This holds only if images are independent of each other although they come in groups (assume_iid)."
        )
    if policy.variant == "I":
        return " ".join(sentences) + counted_words(attempts, confidence)
    if attempts is not None and attempts.number > 1:
        # E[risk of the one that is picked] <= the sum of their means: j times the target for j looks alike.
        sentences.append(
            f"This is look {attempts.number} at these calibration images: the mean is that of one target fixed in"
            f" advance; of the best of several it may be up to {attempts.number} times as large."
        )
    return " ".join(sentences)


def shortfall(
    bounds: Mapping[str, RiskBound],
    chosen: Choice,
    policy: ScrcPolicy,
    scores: Scores,
    targets: Sequence[Target],
    confidence: float,
    unit: str,
) -> tuple[str | None, str | None]:
    """(reason, needed) with the arithmetic: what cannot be certified, what it takes; (None, None): nothing short."""
    reasons, needs = [], []
    n = len(scores)
    if not chosen.covers:
        reasons.append(
            f"{chosen.ties} of {n} calibration {unit}s tie at the confidence that coverage {policy.xi:g} cuts, and"
            f" {chosen.above} lie above it ({chosen.rank} needed)."
        )
        outside = [f"below {chosen.above / n:.3g}"] if chosen.above else []
        outside += [f"above {(chosen.above + chosen.ties) / n:.3g}"] if chosen.above + chosen.ties < n else []
        needs.append(" or ".join([f"a coverage well {side}" for side in outside] + ["scores with fewer ties"]))
    at = f" at {percent(confidence)}" if policy.variant == "I" else " on average"
    for target in targets:
        bound, members = bounds[target.risk], int((scores.known_labels == target.k).sum())
        units = images(policy.classes[target.k], unit)
        if not chosen.covers or bound.n >= bound.needed:
            continue
        reasons.append(
            f"{bound.n} selected of {members} {units} cannot certify {target.risk} <= {target.value:g}{at}"
            f" ({bound.needed} selected needed with 0 errors)."
        )
        if bound.n == 0:
            needs.append(f"{bound.needed} selected {units} in val_calib, or a larger coverage (none is selected now)")
            continue
        nearest = 1 - chosen.delta ** (1 / bound.n) if policy.variant == "I" else 1 / (bound.n + 1)
        needs.append(
            f"about {ceil(bound.needed * members / bound.n)} {units} in val_calib at this share of selected"
            f" ({percent(round(bound.n / members, 3))}), a larger coverage, or risks.{target.risk} >="
            f" {ceil(1e4 * nearest) / 1e4:.4g}"
        )
    if not policy.certified and not reasons:
        reasons.append(
            f"No selected calibration {unit} has a set of one class at the floors that the target allows: the scores"
            " are tied or do not separate the classes."
        )
        needs.append("scores that separate the classes, or larger targets")
    return (" ".join(reasons), "; ".join(needs) + ".") if reasons else (None, None)
