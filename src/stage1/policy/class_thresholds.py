"""The family of a threshold on a confidence for each answered class: softmax of K > 2 classes is fitted by it.

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
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError
from stage1.policy.base import Policy
from stage1.policy.calibrated import decided_on
from stage1.policy.certificate import (
    Certificate,
    Coverage,
    RiskBound,
    UnclaimedClass,
    certified_statement,
    refused_statement,
)
from stage1.policy.certify import Shortfall, certify, counted_units
from stage1.policy.counts import ClassExits, class_floors_hold, never_wrong, risks_hold
from stage1.policy.kind import Configured, Say
from stage1.policy.ordering_multiclass import MINIMUM_ROWS, MODES, ClassGoal, ClassPath, class_path
from stage1.policy.plug_in import last_that_meets
from stage1.policy.shortfall_multiclass import Sample, bounds_above, shortfall
from stage1.policy.slices import SliceClaim
from stage1.policy.softmax_multiclass import MulticlassPolicy
from stage1.policy.target import Request
from stage1.policy.units import ALL_IMAGES, Counting, choose_unit
from stage1.risk import binomial_lower, binomial_upper
from stage1.risk.testing import fixed_sequence, minimum_samples
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
    family = ClassThresholds(confidence_score, thresholds)
    policy, certificate = certify(family, request, calib, select, counting)
    return replace(policy, certified=certificate.certified, certificate=certificate)


@dataclass(frozen=True, slots=True)
class ClassThresholds:
    """A threshold on a confidence for each answered class (RuleFamily); its rules are policies without certificate.

    confidence_score: fixed on other data than val_calib. thresholds: "one", "per_class" or "auto".
    """

    confidence_score: str
    thresholds: str

    policy = MulticlassPolicy.name

    def find(self, target: Request, calib: Scores, select: Scores | None, counting: Counting) -> FoundClassThresholds:
        """The riskiest thresholds on the path of val_select that pass. Raises ConfigError (unit, thresholds,
        confidence_score, select), DataError (labels missing).
        """
        if self.thresholds not in ("auto", *MODES):
            raise ConfigError(f"policy.thresholds: {self.thresholds!r} is unknown; use auto, {' or '.join(MODES)}")
        if counting.unit in ALL_IMAGES:
            raise ConfigError(f"unit: {counting.unit} is for two classes; use group (one image of each group)")
        unit = choose_unit(calib, counting.unit, counting.assume_iid)
        counted = counted_units(calib, unit, counting.seed)
        if select is None or select.labels is None or len(select) < MINIMUM_ROWS:
            raise ConfigError(
                f"select: {0 if select is None or select.labels is None else len(select)} labelled scores of"
                f" val_select; more than two classes need at least {MINIMUM_ROWS} to order the thresholds"
            )
        sample = Sample.of(counted, self.confidence_score)
        delta = 1.0 - target.confidence
        spent = delta / 2 if target.has_floor else delta
        path = _path(select, self.confidence_score, target, len(counted), spent, self.thresholds)
        place, first_failure = (None, None) if path is None else walk(path, sample, target, spent)
        mode = path.mode if path is not None else "one" if self.thresholds == "auto" else self.thresholds
        return FoundClassThresholds(
            self, target, sample, select, unit, spent, mode, path, place, first_failure, counting.seed
        )


@dataclass(frozen=True, slots=True)
class FoundClassThresholds:
    """Thresholds on the counted units (Found). delta: spent by each bound; place, first_failure: as from `walk`."""

    family: ClassThresholds
    target: Request
    sample: Sample
    select: Scores
    unit: str
    delta: float
    mode: str
    path: ClassPath | None
    place: int | None
    first_failure: int | None
    seed: int

    union_null = True
    meaning: ClassVar[tuple[str, ...]] = ()

    def _policy(self, cuts: Floats) -> MulticlassPolicy:
        values = tuple(finite_or_none(float(cut)) for cut in cuts)
        return MulticlassPolicy(self.family.confidence_score, values, self.mode, tuple(self.target.classes), False)

    @property
    def nothing(self) -> MulticlassPolicy:
        return self._policy(np.full(len(self.target.classes), np.inf))

    @property
    def rule(self) -> MulticlassPolicy:
        if self.path is None or self.place is None:
            return self.nothing
        return self._policy(self.path.thresholds[self.place])

    @property
    def method(self) -> str:
        return METHODS[self.mode]

    @property
    def n_units(self) -> int:
        return len(self.sample)

    @property
    def at_end(self) -> bool:
        return self.path is not None and self.place == len(self.path.thresholds) - 1

    def exits(self, rule: MulticlassPolicy) -> bool:
        return bool(self.sample.counts(rule.cuts[None, :]).exits[0] > 0)

    def risks(self, rule: MulticlassPolicy, certified: bool) -> dict[str, RiskBound]:
        return measured(self.sample.counts(rule.cuts[None, :]), self.target, self.delta, rule.cuts, certified)

    def coverage(self, rule: MulticlassPolicy, certified: bool) -> tuple[Coverage, dict[str, Coverage]]:
        return _coverages(self.sample.counts(rule.cuts[None, :]), self.target, self.delta, certified)

    def slices(self) -> tuple[SliceClaim, ...]:
        raise ConfigError("slices: claims for slices are for two classes; leave them out")

    def shortfall(self, rule: MulticlassPolicy, risks: dict[str, RiskBound], certified: bool) -> Shortfall:
        if certified:
            return None, None
        path, target, delta, seed = self.path, self.target, self.delta, self.seed
        score, thresholds = self.family.confidence_score, self.family.thresholds
        return shortfall(
            self.sample,
            None if path is None else path.thresholds[self.place if self.first_failure is None else self.first_failure],
            target,
            delta,
            self.unit,
            Sample.of(self.select, score),
            seed,
            lambda n: _walker(_path(self.select, score, target, n, delta, self.mode), target, delta),
            lambda other: _failing(
                _path(self.select, score, other, len(self.sample), delta, thresholds), self.sample, other, delta
            ),
        )

    def unclaimed(self, rule: MulticlassPolicy) -> tuple[UnclaimedClass, ...]:
        return ()

    def never_answered(self, rule: MulticlassPolicy) -> tuple[str, ...]:
        return tuple(name for name, cut in zip(rule.classes, rule.thresholds, strict=True) if cut is None)

    def statement(self, rule: MulticlassPolicy, certificate: Certificate) -> str:
        if not certificate.certified:
            return refused_statement(self.target, certificate.reason or "")
        sentence = certified_statement(
            self.target,
            certificate.coverage.value,
            self.unit,
            assume_iid=certificate.assume_iid,
            attempts=certificate.attempts,
            closed=None,
        )
        return (
            sentence + self._closed(certificate.never_answered) + "".join(f" {text}" for text in certificate.unlimited)
        )

    def _closed(self, never_answered: Sequence[str]) -> str:
        """Why no image exits as these classes, a sentence for each reason; "" for none."""
        why: dict[str, list[str]] = {}
        for name in never_answered:
            why.setdefault(self._why_closed(name), []).append(f"'{name}'")
        return "".join(f" No image exits as {', '.join(names)}: {reason}." for reason, names in why.items())

    def _why_closed(self, name: str) -> str:
        assert self.path is not None, "thresholds that are certified lie on a path"
        index, target = self.target.classes.index(name), self.target.targets.get(f"wrong.{name}")
        answers = int((self.select.logits.argmax(axis=1) == index).sum())
        if target is not None:
            expected = answers * len(self.sample) / len(self.select)
            needed = minimum_samples(target, self.delta)
            if expected < needed:
                return (
                    f"val_select expects {expected:.0f} such answers among the calibration {self.unit}s, and"
                    f" wrong.{name} <= {target:g} takes {needed} without an error"
                )
        if np.isfinite(self.path.thresholds[-1, index]):
            return "the first thresholds that would let one exit were not certified"
        return "val_select expects such answers to be wrong too often"


def path_of(select: Scores, confidence_score: str, goal: ClassGoal, mode: str) -> ClassPath | None:
    """`class_path` of labelled scores of val_select under a confidence."""
    return class_path(
        confidence(confidence_score, select.logits), select.probabilities, select.known_labels, goal, mode
    )


def _path(select: Scores, confidence_score: str, request: Request, n: int, delta: float, mode: str) -> ClassPath | None:
    return path_of(select, confidence_score, ClassGoal(request.targets, request.classes, n, delta), mode)


def walk(path: ClassPath, sample: Sample, request: Request, delta: float) -> tuple[int | None, int | None]:
    """(place, first_failure): the riskiest place that certifies every risk and floor; None: then the place that failed.

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
    """The risks that fail where testing stops, with their bounds; {} where the target passes, None: no path."""
    if path is None:
        return None
    place, first_failure = walk(path, sample, request, delta)
    if place is not None:
        return {} if sample.counts(path.thresholds[place][None, :]).exits[0] > 0 else None
    assert first_failure is not None, "a walk that ends nowhere names the place that failed"
    return bounds_above(sample, path.thresholds[first_failure], request, delta) or None


def _walker(path: ClassPath | None, request: Request, delta: float) -> Any:
    """Whether a sample certifies, as a function of the sample alone; never, where there is no path."""
    return lambda sample: path is not None and walk(path, sample, request, delta)[0] is not None


def measured(exits: ClassExits, request: Request, delta: float, cuts: Floats, certified: bool) -> dict[str, RiskBound]:
    """Errors, trials and exact upper bound at 1 - delta of each risk alone, from the decisions at `cuts` (one rule)."""

    def counted(name: str, target: float) -> RiskBound:
        errors, n = (int(column[0]) for column in exits.counts(name, request.classes))
        never = certified and bool(never_wrong(name, request.classes, np.isfinite(cuts)[None, :])[0])
        return RiskBound.counted(
            name, target, (errors, n), lambda: float(binomial_upper(errors, n, delta)), delta, never=never
        )

    return {name: counted(name, target) for name, target in request.targets.items()}


def _coverages(
    exits: ClassExits, request: Request, delta: float, certified: bool
) -> tuple[Coverage, dict[str, Coverage]]:
    def share(inside: float, n: float, floor: float | None) -> Coverage:
        return Coverage.counted(
            int(inside), int(n), floor, lambda: float(binomial_lower(inside, n, delta)), certified=certified
        )

    per_class = {
        name: share(float(exits.of_class[0, index]), float(exits.members[index]), request.class_coverage.get(name))
        for index, name in enumerate(request.classes)
    }
    return share(float(exits.exits[0]), exits.total, request.coverage), per_class


# ---- what val_select decides beforehand, and the control -----------------------------------------------------------


def configured_confidence(config: Configured, select: Scores | None, n_classes: int, say: Say) -> str:
    """The confidence by which more than two classes exit: the config's, or the one of least AUGRC on val_select.

    MSP stays unless the gain is beyond chance: close rivals are many, and the best of them on few images is often not
    the best.
    """
    asked: str = config.policy.confidence_score
    if asked != "auto":
        return asked
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
