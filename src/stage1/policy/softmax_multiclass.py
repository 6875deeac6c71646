"""Softmax policy for K > 2 classes: the likeliest class is the answer, given iff its confidence passes that class's
threshold.

| part | choice | made on |
|---|---|---|
| confidence | one of `stage1.scores.confidence` | val_select (by the caller: `stage1.evaluation.choose_confidence`) |
| one threshold, or one per answered class | predicted coverage | val_select |
| order of the thresholds and where testing starts | policy/ordering_multiclass.py | val_select |
| how far to go | fixed sequence, exact binomial, union null | val_calib, each unit once |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.policy.base import Decision, PlainPolicy, Policy
from stage1.policy.calibrated import decided_on
from stage1.policy.certificate import (
    VOID_IF,
    Certificate,
    Coverage,
    RiskBound,
    assumptions,
    certified_statement,
    refused_statement,
)
from stage1.policy.certify import calibration_digest
from stage1.policy.counts import (
    ClassExits,
    class_floors_hold,
    never_wrong,
    risks_hold,
)
from stage1.policy.joint import JOINT, joint_coverage, joint_risks
from stage1.policy.kind import Configured, Say
from stage1.policy.ordering_multiclass import MINIMUM_ROWS, MODES, ClassGoal, ClassPath, class_path
from stage1.policy.plug_in import last_that_meets
from stage1.policy.shortfall_multiclass import Sample, bounds_above, shortfall
from stage1.policy.target import Request
from stage1.policy.units import Counting, choose_unit, clustered, one_per_group
from stage1.policy.unlimited import unlimited
from stage1.risk import binomial_lower, binomial_upper, minimum_samples
from stage1.risk.testing import fixed_sequence
from stage1.scores import Scores
from stage1.scores.confidence import confidence
from stage1.storage.documents import finite_or_none

Floats = NDArray[np.float64]

METHODS = {
    "one": "fixed sequence along the calibrated path of one threshold, exact binomial, union null",
    "per_class": (
        "fixed sequence along the calibrated path of a threshold for each answered class, exact binomial, union null"
    ),
}


@dataclass(frozen=True, slots=True)
class MulticlassPolicy(PlainPolicy):
    """A fitted policy. certificate is None only for thresholds that were loaded without one.

    confidence_score: name in `stage1.scores.confidence`. thresholds: float [K] on it, by the answered class: exits iff
    the confidence is greater; None: nothing exits as that class. mode: "one" threshold, or one "per_class".
    """

    confidence_score: str
    thresholds: tuple[float | None, ...]
    mode: str
    classes: tuple[str, ...]
    certified: bool
    certificate: Certificate | None = None

    name = "softmax"
    document_kind = "thresholds"

    @property
    def margin_thresholds(self) -> tuple[float | None, float | None]:
        """(None, None): more than two classes have no single margin."""
        return None, None

    def decide(self, scores: Scores) -> Decision:
        """Exit, label and probability of the label of every row. Raises DataError for another number of classes."""
        if scores.n_classes != len(self.classes):
            raise DataError(
                f"logits: {scores.n_classes} columns; this policy was fitted on {len(self.classes)} classes"
            )
        label = scores.logits.argmax(axis=1)
        cuts = np.array([np.inf if value is None else value for value in self.thresholds])
        exits = confidence(self.confidence_score, scores.logits) > cuts[label]
        probability = np.take_along_axis(scores.probabilities, label[:, None], axis=1)[:, 0]
        return Decision(exit=exits, label=label.astype(np.int64), probability=probability)

    def to_document(self) -> dict[str, Any]:
        """Plain values for thresholds.json."""
        return {
            "policy": self.name,
            "confidence_score": self.confidence_score,
            "thresholds": list(self.thresholds),
            "mode": self.mode,
            "classes": list(self.classes),
            "certified": self.certified,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any], certificate: Certificate | None = None) -> MulticlassPolicy:
        """The inverse of to_document (whose shape the schema has checked). Raises IntegrityError where lengths
        disagree.
        """
        if len(document["thresholds"]) != len(document["classes"]):
            raise IntegrityError(
                f"thresholds: {len(document['thresholds'])} for {len(document['classes'])} classes; run `stage1"
                " calibrate` again"
            )
        return cls(
            document["confidence_score"],
            tuple(document["thresholds"]),
            document["mode"],
            tuple(document["classes"]),
            document["certified"],
            certificate,
        )

    def refit_options(self) -> dict[str, Any]:
        """confidence_score and thresholds."""
        return {"confidence_score": self.confidence_score, "thresholds": self.mode}

    def shown(self) -> dict[str, Any]:
        """The confidence, and the threshold of each class in words."""
        cuts = zip(self.classes, self.thresholds, strict=True)
        return {
            "confidence_score": self.confidence_score,
            "shown_thresholds": [f"{name} {'never' if cut is None else f'{cut:.4g}'}" for name, cut in cuts],
        }


# ---- fit ---------------------------------------------------------------------------------------------------------


def fit_multiclass(
    request: Request,
    *,
    calib: Scores,
    select: Scores | None,
    confidence_score: str = "msp",
    thresholds: str = "auto",
    counting: Counting = Counting(),
) -> MulticlassPolicy:
    """Choose thresholds for `request` (its classes name the K columns) and certify them on the units of `calib`.

    select: labelled scores of val_select, at least 10. confidence_score: fixed on other data than calib. thresholds:
    "one", "per_class", or "auto" for the one with the greater predicted coverage. counting.unit: image, or one image of
    each group.
    Returns a policy in any case; where nothing can be certified, it defers every image and its certificate says why.
    Raises ConfigError (unit, thresholds, confidence_score, select), DataError (labels missing).
    """
    if thresholds not in ("auto", *MODES):
        raise ConfigError(f"policy.thresholds: {thresholds!r} is unknown; use auto, {' or '.join(MODES)}")
    unit, assume_iid, seed = counting.unit, counting.assume_iid, counting.seed
    attempt, uncertified_because = counting.attempt, counting.uncertified_because
    if unit == "group_mean":
        raise ConfigError("unit: group_mean is for two classes; use group (one image of each group)")
    unit = choose_unit(calib, unit, assume_iid)
    counted = calib.take(one_per_group(calib, seed)) if unit == "group" else calib
    if select is None or select.labels is None or len(select) < MINIMUM_ROWS:
        raise ConfigError(
            f"select: {0 if select is None or select.labels is None else len(select)} labelled scores of val_select;"
            f" more than two classes need at least {MINIMUM_ROWS} to order the thresholds"
        )
    sample = Sample.of(counted, confidence_score)
    delta = 1.0 - request.confidence
    spent = delta / 2 if request.has_floor else delta
    path = _path(select, confidence_score, request, len(counted), spent, thresholds)
    mode = path.mode if path is not None else "one" if thresholds == "auto" else thresholds
    place, tried = (None, None) if path is None else walk(path, sample, request, spent)
    cuts = np.full(len(request.classes), np.inf)
    if path is not None and place is not None and uncertified_because is None:
        cuts = path.thresholds[place]
    exits = sample.counts(cuts[None, :])
    certified = bool(exits.exits[0] > 0)
    if not certified:
        cuts = np.full(len(request.classes), np.inf)
        exits = sample.counts(cuts[None, :])
    bounds = measured(exits, request, spent, cuts, certified)
    assert not certified or all(bound.holds for bound in bounds.values()), "a chosen threshold whose bound is too large"
    at_end = path is not None and place == len(path.thresholds) - 1
    if certified:
        never_given = frozenset(name for name, bound in bounds.items() if bound.by_construction)
        bounds = joint_risks(bounds, at_end=at_end, never=never_given)
    overall, per_class = _coverages(exits, request, spent, certified, at_end)
    reason, needed = uncertified_because, None
    if uncertified_because is None and not certified:
        at = None if path is None else path.thresholds[place if tried is None else tried]
        reason, needed = shortfall(
            sample,
            at,
            request,
            spent,
            unit,
            Sample.of(select, confidence_score),
            seed,
            lambda n: _walker(_path(select, confidence_score, request, n, spent, mode), request, spent),
            lambda other: _failing(
                _path(select, confidence_score, other, len(counted), spent, thresholds), sample, other, spent
            ),
        )
    iid_assumed = assume_iid and unit == "image" and clustered(calib)
    never = tuple(name for name, cut in zip(request.classes, cuts, strict=True) if not np.isfinite(cut))
    without_limit = unlimited(request.targets, request.classes, never) if certified else ()
    certificate = Certificate(
        certified=certified,
        statement=(
            certified_statement(request, overall.value, unit, assume_iid=iid_assumed, attempt=attempt, closed=None)
            + _closed(never)
            + "".join(f" {text}" for text in without_limit)
            if certified
            else refused_statement(request, reason or "")
        ),
        policy=MulticlassPolicy.name,
        method=METHODS[mode],
        confidence=request.confidence,
        delta=delta,
        unit=unit,
        assume_iid=iid_assumed,
        risks=bounds,
        coverage=overall,
        per_class=per_class,
        classes=tuple(request.classes),
        n_images=len(calib),
        n_units=len(counted),
        calib_digest=calibration_digest(calib),
        seed=seed,
        attempt=attempt,
        target_prior=None,
        assumptions=assumptions(unit, iid_assumed, request),
        void_if=VOID_IF,
        reason=reason,
        needed=needed,
        never_answered=never,
        unlimited=without_limit,
        against_argmax=request.against_argmax,
        bounds=JOINT,
    )
    policy = MulticlassPolicy(
        confidence_score, tuple(finite_or_none(float(cut)) for cut in cuts), mode, tuple(request.classes), certified
    )
    return replace(policy, certificate=certificate)


def path_of(select: Scores, confidence_score: str, goal: ClassGoal, mode: str) -> ClassPath | None:
    """`class_path` of labelled scores of val_select under a confidence."""
    return class_path(
        confidence(confidence_score, select.logits), select.probabilities, select.known_labels, goal, mode
    )


def _path(select: Scores, confidence_score: str, request: Request, n: int, delta: float, mode: str) -> ClassPath | None:
    return path_of(select, confidence_score, ClassGoal(request.targets, request.classes, n, delta), mode)


def walk(path: ClassPath, sample: Sample, request: Request, delta: float) -> tuple[int | None, int | None]:
    """(place, tried): the riskiest place of the path that certifies every risk and floor; where it is None, the place
    that failed.

    From the start towards more risk until the first failure; with floors also from the riskiest place towards safety,
    at delta each (ALGORITHMS 2.5): exits only grow along the path, so a place within both runs keeps risks and floors.
    """
    exits = sample.counts(path.thresholds)
    place = fixed_sequence(
        risks_hold(exits, request.targets, request.classes, delta, np.isfinite(path.thresholds)), path.start
    )
    if place is None:
        return None, path.start
    if request.has_floor:
        lowest = fixed_sequence(class_floors_hold(exits, request, delta)[::-1])
        if lowest is None or place < len(path.thresholds) - 1 - lowest:
            return None, place
    return place, None


def _failing(path: ClassPath | None, sample: Sample, request: Request, delta: float) -> dict[str, float] | None:
    """The risks that fail where testing along the path stops, with their bounds; {} where the target passes, None:
    no path.
    """
    if path is None:
        return None
    place, tried = walk(path, sample, request, delta)
    if place is not None:
        return {} if sample.counts(path.thresholds[place][None, :]).exits[0] > 0 else None
    assert tried is not None, "a walk that ends nowhere names the place that failed"
    return bounds_above(sample, path.thresholds[tried], request, delta) or None


def _walker(path: ClassPath | None, request: Request, delta: float) -> Any:
    """Whether a sample certifies, as a function of the sample alone; never, where there is no path."""
    return lambda sample: path is not None and walk(path, sample, request, delta)[0] is not None


def measured(exits: ClassExits, request: Request, delta: float, cuts: Floats, certified: bool) -> dict[str, RiskBound]:
    """Errors, trials and its own exact upper bound at 1 - delta of each risk, counted from the decisions at `cuts`
    (one rule).
    """
    bounds = {}
    for name, target in request.targets.items():
        errors, n = (int(column[0]) for column in exits.counts(name, request.classes))
        never = certified and bool(never_wrong(name, request.classes, np.isfinite(cuts)[None, :])[0])
        upper = 0.0 if never else float(binomial_upper(errors, n, delta))
        bounds[name] = RiskBound(
            name=name,
            target=target,
            observed=errors / n if n else None,
            bound=upper,
            n=n,
            errors=errors,
            delta=delta,
            needed=minimum_samples(target, delta),
            by_construction=never,
            alone=upper,
        )
    return bounds


def _coverages(
    exits: ClassExits, request: Request, delta: float, certified: bool, at_end: bool
) -> tuple[Coverage, dict[str, Coverage]]:
    def share(inside: float, n: float, floor: float | None) -> Coverage:
        bound = float(binomial_lower(inside, n, delta)) if floor is not None and certified else None
        return Coverage(
            value=inside / n if n else 0.0, n=int(n), exits=int(inside), floor=floor, bound=bound, alone=bound
        )

    per_class = {
        name: share(float(exits.of_class[0, index]), float(exits.members[index]), request.class_coverage.get(name))
        for index, name in enumerate(request.classes)
    }
    return joint_coverage(share(float(exits.exits[0]), exits.total, request.coverage), per_class, at_end=at_end)


def _closed(never_answered: Sequence[str]) -> str:
    shut = ", ".join(f"'{name}'" for name in never_answered)
    return (
        f" No image exits as {shut}: too few such answers are expected to certify them, so they always defer."
        if shut
        else ""
    )


# ---- what val_select decides beforehand, and the control -----------------------------------------------------------


def configured_confidence(config: Configured, select: Scores | None, n_classes: int, say: Say) -> str:
    """The confidence by which more than two classes exit: the config's, or the one of least AUGRC on val_select.

    MSP stays unless the gain is beyond chance: close rivals are many, and the best of them on few images is often not
    the best.
    """
    if config.policy.confidence_score != "auto":
        return config.policy.confidence_score
    if n_classes == 2 or select is None or select.labels is None or not len(select):
        return "msp"
    from stage1.evaluation.score_selection import accept_gate, choose_confidence

    name, table = choose_confidence(select)
    augrc = {row["confidence"]: row["augrc"] for row in table}
    if name != "msp" and not accept_gate(select, confidence(name, select.logits), seed=config.seed).accepted:
        say(
            f"  confidence: msp is kept; {name} has less AUGRC on val_select ({1000 * augrc[name]:.3g}e-3 against "
            f"{1000 * augrc['msp']:.3g}e-3), but not beyond chance"
        )
        return "msp"
    say(f"  confidence: {name}, the least AUGRC on val_select ({1000 * augrc[name]:.3g}e-3)")
    return name


def plug_in_classes(
    policy: Policy, select: Scores, calib: Scores, targets: Mapping[str, float]
) -> MulticlassPolicy | None:
    """The control of `policy`: the last thresholds on its path whose observed risks meet the targets; one MSP
    threshold for a policy that has no such path. None where val_select gives none.
    """
    own = policy.refit_options()
    score, mode = own.get("confidence_score", "msp"), own.get("thresholds", "one")
    select, calib = decided_on(policy, select), decided_on(policy, calib)
    path = path_of(select, score, ClassGoal(targets, policy.classes, len(calib), 0.5), mode)
    if path is None:
        return None
    exits = Sample.of(calib, score).counts(path.thresholds)
    place = last_that_meets([exits.counts(name, policy.classes) for name in targets], list(targets.values()))
    cuts = tuple(finite_or_none(float(cut)) for cut in path.thresholds[place])
    return MulticlassPolicy(score, cuts, mode, policy.classes, False)
