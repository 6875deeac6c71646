"""The SCRC certificate in words: what its numbers count, the statement, and what a target that cannot be certified takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, floor

from stage1.policy.certificate import RiskBound, images, percent
from stage1.policy.scrc import Bools, ScrcPolicy
from stage1.policy.scrc_choice import Choice, Target
from stage1.scores import Scores


def meaning(variant: str) -> tuple[str, ...]:
    """What the numbers count, beside the assumptions that every certificate has."""
    return (
        "The risks are counted among selected images, those whose confidence passes, not among images that exit: they do not "
        "bound fnr or fpr. They do bound the share of all images of the class.",
        {
            "I": "The bound is PAC: over calibration sets, coverage and all risks hold jointly with the stated confidence.",
            "T": "The bound is in expectation, over calibration set and new image together. It is not PAC: this calibration "
            "set may be an unlucky one, and the stated confidence is not used.",
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
        else "on average over calibration sets and images (in expectation, not with a confidence for this calibration set)"
    )
    return f"{promise}: {', and '.join(claims)}"


def statement(
    claims: str, policy: ScrcPolicy, selected: Bools, exits: Bools, unit: str, *, iid_assumed: bool, attempt: int
) -> str:
    """The sentence that opens certificate, model card and report, where images exit."""
    shares = [percent(floor(1000 * float(mask.mean())) / 1000) for mask in (selected, exits)]
    sentences = [
        f"{claims[0].upper()}{claims[1:]}.",
        f"The denominator is the selected images, not those that exit: {shares[0]} of the calibration {unit}s are selected, "
        f"{shares[1]} exit.",
    ]
    closed = [f"'{name}'" for name in policy.never_answered]
    if closed:
        sentences.append(f"No image exits as {', '.join(closed)}: there are too few selected calibration {unit}s.")
    if policy.equivalent_thresholds is not None:
        lo, hi = policy.equivalent_thresholds
        rule = [f"as '{policy.classes[0]}' below {lo:.4g}"] if lo is not None else []
        rule += [f"as '{policy.classes[1]}' above {hi:.4g}"] if hi is not None else []
        sentences.append(
            f"With two classes and the model's own confidence, selection and set are cuts of one score: images exit "
            f"{', '.join(rule)} (difference of the logits), as by the softmax policy."
        )
    if unit == "group":
        sentences.append("An image here is a random image of a random group (one image of each group was counted).")
    if iid_assumed:
        sentences.append(
            "This holds only if images are independent of each other although they come in groups (assume_iid)."
        )
    if attempt > 1:
        sentences.append(
            f"This is attempt {attempt} on the same calibration images: the promise is that of one target fixed in advance, "
            "not of the best of several."
        )
    return " ".join(sentences)


def shortfall(
    bounds: Mapping[str, RiskBound], chosen: Choice, policy: ScrcPolicy, scores: Scores, targets: Sequence[Target],
    confidence: float, unit: str,
) -> tuple[str | None, str | None]:  # fmt: skip
    """(reason, needed) with the arithmetic: what cannot be certified and what it takes; (None, None) where nothing is short."""
    reasons, needs = [], []
    n = len(scores)
    if not chosen.covers:
        reasons.append(
            f"{chosen.ties} of {n} calibration {unit}s tie at the confidence that coverage {policy.xi:g} cuts, and {chosen.above} "
            f"lie above it ({chosen.rank} needed)."
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
            f"{bound.n} selected of {members} {units} cannot certify {target.risk} <= {target.value:g}{at} ({bound.needed} "
            "selected needed with 0 errors)."
        )
        if bound.n == 0:
            needs.append(f"{bound.needed} selected {units} in val_calib, or a larger coverage (none is selected now)")
            continue
        nearest = 1 - chosen.delta ** (1 / bound.n) if policy.variant == "I" else 1 / (bound.n + 1)
        needs.append(
            f"about {ceil(bound.needed * members / bound.n)} {units} in val_calib at this share of selected "
            f"({percent(round(bound.n / members, 3))}), a larger coverage, or risks.{target.risk} >= {ceil(1e4 * nearest) / 1e4:.4g}"
        )
    if not policy.certified and not reasons:
        reasons.append(
            f"No selected calibration {unit} has a set of one class at the floors that the target allows: the scores are tied or "
            "do not separate the classes."
        )
        needs.append("scores that separate the classes, or larger targets")
    return (" ".join(reasons), "; ".join(needs) + ".") if reasons else (None, None)
