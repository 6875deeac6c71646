"""What an SCRC certificate says: what its numbers count, its statement, and what a target takes that is not certified.

The theory is about selected images. What a reader asks is about images that exit: an image that exits wrongly is a
selected one that its class has lost, so among all images of a class at most the same share exits wrongly,
P(wrong exit | class) <= P(lost | selected, class) P(selected | class) <= target. The statement opens with that; it is
no share of the images that exit, which would take a lower bound on how many of them there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor

from stage1.late import library
from stage1.policy.attempts import Attempts, counted_words
from stage1.policy.certificate import UnclaimedClass, claim, images, percent
from stage1.policy.scrc import Bools, ScrcPolicy
from stage1.policy.scrc_choice import Selected, Target
from stage1.policy.scrc_unclaimed import FEWEST

stats = library("scipy.stats")

_ENOUGH = 0.9
"""Chance with which the number of labels that is named has enough selected ones, given the present ones."""
_MOST = 10**7


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
    """What is true of images that exit, for each class of `targets`; classes of one target are said together."""
    by_target: dict[float, list[str]] = {}
    for target in targets:
        by_target.setdefault(target.value, []).append(policy.classes[target.k])
    if len(policy.classes) == 2 or len(by_target) == len(targets):
        limits = [claim(target.risk, target.value, policy.classes) for target in targets]
    else:
        limits = [
            f"at most {percent(value)} of all images of class {_listed(names)} exit with a wrong answer"
            + (", each class by itself" if len(names) > 1 else "")
            for value, names in by_target.items()
        ]
    promise = (
        f"with confidence {percent(confidence)} over calibration sets"
        if policy.variant == "I"
        else (
            "on average over calibration sets and images (in expectation, not with a confidence for this calibration"
            " set)"
        )
    )
    return f"{promise}, {', and '.join(limits)}"


def statement(
    claims: str,
    policy: ScrcPolicy,
    selected: Bools,
    exits: Bools,
    unit: str,
    *,
    unclaimed: Sequence[UnclaimedClass],
    unlimited: Sequence[str],
    iid_assumed: bool,
    attempts: Attempts | None,
    confidence: float,
) -> str:
    """The sentence that opens certificate, model card and report, where images exit."""
    shares = [percent(floor(1000 * float(mask.mean())) / 1000) for mask in (exits, selected)]
    sentences = [
        f"{claims[0].upper()}{claims[1:]}; {shares[0]} of the calibration {unit}s exit.",
        (
            f"These are shares of all images of a class, not of those that exit. The same limits hold among the"
            f" selected images of a class, those whose confidence passes: {shares[1]} of the calibration {unit}s, and"
            f" at least {percent(policy.xi)} of all images."
        ),
    ]
    sentences += [_not_claimed(found, unit) for found in unclaimed]
    named = [found.name for found in unclaimed]
    closed = [f"'{name}'" for name in policy.never_answered if name not in named]
    if closed:
        sentences.append(f"No image exits as {', '.join(closed)}: there are too few selected calibration {unit}s.")
    sentences += unlimited
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


def _not_claimed(found: UnclaimedClass, unit: str) -> str:
    went = f", {found.errors} of them exit as another class" if found.errors else ""
    return (
        f"No claim about {images(found.name)}, and no image exits as '{found.name}': {found.n} selected calibration"
        f" {unit}s of it{went}, {found.risk} <= {found.target:g} takes {found.needed} without an error."
    )


def _listed(names: Sequence[str]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


# ---- what it takes -------------------------------------------------------------------------------------------------


def shortfall(
    short: Sequence[UnclaimedClass],
    selected: Selected,
    policy: ScrcPolicy,
    n: int,
    confidence: float,
    unit: str,
    instead: str,
) -> tuple[str | None, str | None]:
    """(reason, needed) with the arithmetic: what cannot be certified, what it takes; (None, None): nothing short.

    short: classes with too few labels. n: calibration units. instead: settings that the present units certify, or "".
    """
    if not selected.covers:
        reason = (
            f"{selected.ties} of {n} calibration {unit}s tie at the confidence that coverage {policy.xi:g} cuts, and"
            f" {selected.above} lie above it ({selected.rank} needed)."
        )
        return reason, f"{instead or 'scores with fewer ties'}."
    at = f" at {percent(confidence)}" if policy.variant == "I" else " on average"
    if short:
        reasons, needs = [], []
        for found in short:
            units = images(found.name, unit)
            reasons.append(
                f"{found.n} selected of {found.members} {units} cannot certify {found.risk} <= {found.target:g}{at}"
                f" ({found.needed} selected needed with 0 errors)."
            )
            needs.append(_labels(found, units))
        if not policy.certified and len(policy.classes) > 2:
            reasons.append(f"Fewer than {FEWEST} classes could be certified, and one answer alone promises nothing.")
        return " ".join(reasons), f"{'; '.join(needs)}{f'; or {instead}' if instead else ''}."
    if not policy.certified:
        reason = (
            f"No selected calibration {unit} has a set of one class at the floors that the target allows: the scores"
            " are tied or do not separate the classes."
        )
        return reason, f"{instead or 'scores that separate the classes'}."
    return None, None


def _labels(found: UnclaimedClass, units: str) -> str:
    if not found.n:
        return f"{found.needed} selected {units} in val_calib (none is selected now)"
    share = found.n / found.members
    return (
        f"about {_enough(found)} {units} in val_calib instead of {found.members}, of which"
        f" {percent(round(share, 3))} are selected"
    )


def _enough(found: UnclaimedClass) -> int:
    """Images of the class of which enough are selected with chance _ENOUGH; the share is known from a few of them."""
    known = (found.n + 0.5, found.members - found.n + 0.5)
    low, high = found.needed - 1, found.needed
    while stats.betabinom.sf(found.needed - 1, high, *known) < _ENOUGH and high < _MOST:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        if stats.betabinom.sf(found.needed - 1, middle, *known) >= _ENOUGH:
            high = middle
        else:
            low = middle
    return high
