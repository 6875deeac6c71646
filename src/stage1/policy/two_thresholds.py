"""The family of rules with two thresholds on a score (softmax of two classes, gate): what it counts, and its words.

Where the thresholds come from: the two-sided walk and the order statistics are in policy/closed_form.py, the walk along
a calibrated path in policy/threshold_choice.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from stage1.policy.certificate import (
    Certificate,
    Coverage,
    RiskBound,
    UnclaimedClass,
    certified_statement,
    percent,
    refused_statement,
)
from stage1.policy.certify import Shortfall, counted_units
from stage1.policy.closed_form import Thresholds
from stage1.policy.counts import (
    certifies,
    class_coverage_lower,
    count_exits,
    coverage_lower,
    needed_exits,
    observed_risk,
    risk_upper,
)
from stage1.policy.group_means import (
    GROUP_METHODS,
    Frames,
    better_unit,
    choose_by_means,
    estimate,
    exit_claim,
    furthest,
    means_path,
    needed_groups,
    risk_claims,
    upper_bound,
)
from stage1.policy.joint import joint_risks
from stage1.policy.shortfall import shortfall
from stage1.policy.slices import SliceClaim, SliceCounts, slice_claims, slice_rows, slices_sentence
from stage1.policy.target import Request
from stage1.policy.threshold_choice import PATH_METHOD, STATED_METHOD, Choice, choose
from stage1.policy.units import ALL_IMAGES, Counting, choose_unit
from stage1.policy.unlimited import abstains_by_target
from stage1.risk.risks import RISKS
from stage1.scores import Scores

ABSTAINS_ON_SELECT = "no threshold on that side is expected, from val_select, to keep the risks."

Floats = NDArray[np.float64]
ScoreOf = Callable[[Scores], Floats]


@dataclass(frozen=True, slots=True)
class Units:
    """Independent counted units: images, or one image of each group. score: float [N]; labels: int [N]."""

    score: Floats
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.score)

    def within(self, inside: NDArray[np.bool_]) -> Units:
        """The units inside; bool [N]."""
        return Units(self.score[inside], self.labels[inside])


@dataclass(frozen=True, slots=True)
class TwoThresholds:
    """The family of two thresholds on a score: exit as 0 iff it lies below lo, as 1 iff above hi.

    policy: its name. score_of: any function of one image's outputs that is fixed before the labels of val_calib are
    seen.
    """

    policy: str
    score_of: ScoreOf

    def find(self, target: Request, calib: Scores, select: Scores | None, counting: Counting) -> FoundThresholds:
        """Thresholds by the sharpest valid method for the target (policy/threshold_choice.py).

        counting.unit: auto takes, where groups repeat, one image of each group or group means, whichever promises more
        on val_select. Raises ConfigError (unit, select), DataError (labels missing).
        """
        unit, seed = choose_unit(calib, counting.unit, counting.assume_iid), counting.seed
        usable = select is not None and select.labels is not None and len(select) > 0
        select_score = self.score_of(select) if usable and select is not None else None
        select_labels = select.labels if usable and select is not None else None
        means = None
        if unit != "image" and select is not None and select_score is not None:
            means = means_path(select, select_score, calib, target)
            if unit == "group" and counting.unit == "auto":
                n_groups = len(np.unique(calib.groups))  # type: ignore[arg-type]
                unit = better_unit(select, select_score, target, n_groups, means, seed)
        counted = counted_units(calib, unit, seed)
        score, labels = self.score_of(counted), counted.known_labels
        sample: Frames | Units
        if unit in ALL_IMAGES:
            if unit == "group_draws" and select is not None and select_score is not None:
                means = means_path(select, select_score, calib, target, drawn=True)
            sample = Frames.of(score, counted, seed, unit)
            choice = choose_by_means(sample, target, means)
        else:
            sample = Units(score, labels)
            choice = choose(score, labels, target, select_score, select_labels, along_path=bool(counting.slices))
        return FoundThresholds(target, choice, sample, counted, unit, counting, select, select_score)


@dataclass(frozen=True, slots=True)
class FoundThresholds:
    """Two thresholds on the counted units (policy/certify.py, Found)."""

    target: Request
    choice: Choice
    sample: Frames | Units
    counted: Scores
    unit: str
    counting: Counting
    select: Scores | None
    select_score: Floats | None

    nothing = Thresholds(None, None)
    meaning: ClassVar[tuple[str, ...]] = ()

    @property
    def rule(self) -> Thresholds:
        return self.choice.thresholds

    @property
    def method(self) -> str:
        at_prior = self.target.target_prior is not None and "error" in self.target.targets
        return STATED_METHOD if at_prior and self.choice.method == PATH_METHOD else self.choice.described

    @property
    def n_units(self) -> int:
        return len(self.sample)

    @property
    def union_null(self) -> bool:
        return self.choice.union_null

    @property
    def at_end(self) -> bool:
        return self.choice.at_end

    def exits(self, rule: Thresholds) -> bool:
        return bool((np.logical_or(*rule.exits(self.sample.score)) & (self.sample.labels >= 0)).any())

    def risks(self, rule: Thresholds, certified: bool) -> dict[str, RiskBound]:
        return measured_risks(rule, self.sample, self.target, self.choice.delta, certified)

    def coverage(self, rule: Thresholds, certified: bool) -> tuple[Coverage, dict[str, Coverage]]:
        return _coverage(rule, self.sample, self.target, self.choice.floor_delta, certified)

    def slices(self) -> tuple[SliceClaim, ...]:
        return _slice_claims(self.counting.slices, self.counted, self.sample, self.target, self.choice)

    def shortfall(self, rule: Thresholds, risks: dict[str, RiskBound], certified: bool) -> Shortfall:
        return shortfall(
            risks,
            self.sample,
            self.target,
            self.choice,
            certified,
            self.unit,
            self.select,
            self.select_score,
            self.counting.seed,
        )

    def unclaimed(self, rule: Thresholds) -> tuple[UnclaimedClass, ...]:
        return ()

    def never_answered(self, rule: Thresholds) -> tuple[str, ...]:
        return tuple(name for name, cut in zip(self.target.classes, (rule.lo, rule.hi), strict=True) if cut is None)

    def statement(self, rule: Thresholds, certificate: Certificate) -> str:
        if not certificate.certified:
            return refused_statement(self.target, certificate.reason or "")
        closed = _closed_side(rule, self.target, self.choice)
        open_ends = (*abstains_by_target(certificate.never_answered, closed), *certificate.unlimited)
        sentence = certified_statement(
            self.target,
            certificate.coverage.value,
            self.unit,
            assume_iid=certificate.assume_iid,
            attempts=certificate.attempts,
            closed=closed,
            closed_because=certificate.reason or ABSTAINS_ON_SELECT,
            open_ends=open_ends,
        )
        return sentence + slices_sentence(certificate.slices, certificate.headline_confidence, percent)


def measured_risks(
    thresholds: Thresholds, sample: Frames | Units, request: Request, delta: float, certified: bool
) -> dict[str, RiskBound]:
    """Count errors and trials of each risk at these thresholds, with its own upper bound at 1 - delta.

    Recounted from the decisions, not taken from the rule that chose the thresholds: the certificate depends on this.
    certified: images exit, so that a side without a threshold is a claim (never given), not a failure. Group means: the
    counts are of images, observed and bound of a random image of a random group.
    """
    labels = sample.labels
    exits = count_exits(sample.score[labels == 0], sample.score[labels == 1], *thresholds.columns)
    closed = {"positive": thresholds.lo is None, "negative": thresholds.hi is None}
    claims = risk_claims(request)

    def counted(name: str, target: float) -> RiskBound:
        errors, n = (int(column[0]) for column in exits.counts(name))
        never = certified and closed.get(RISKS[name].side, False)
        record = partial(RiskBound.counted, name, target, (errors, n), delta=delta, never=never)
        if not isinstance(sample, Frames):
            return record(
                upper=lambda: float(risk_upper(exits, name, delta, request.target_prior, target)[0]),
                share=lambda: observed_risk(exits, name, request.target_prior)[0],
                needed=lambda level, spent: needed_exits(exits, name, request.target_prior, level, spent),
            )
        claim = claims[name]
        return record(
            upper=lambda: upper_bound(sample, claim, thresholds, delta),
            share=lambda: estimate(sample, claim, thresholds),
            needed=needed_groups(sample),
        )

    return {name: counted(name, target) for name, target in request.targets.items()}


def _coverage(
    thresholds: Thresholds, sample: Frames | Units, request: Request, delta: float, certified: bool
) -> tuple[Coverage, dict[str, Coverage]]:
    labels = sample.labels
    exits = np.logical_or(*thresholds.exits(sample.score))
    counts = count_exits(sample.score[labels == 0], sample.score[labels == 1], *thresholds.columns)

    def lower(of_class: int | None) -> float:
        if of_class is None:
            return float(coverage_lower(counts, request.target_prior, delta)[0])
        return float(class_coverage_lower(counts, of_class, delta)[0])

    def share(rows: NDArray[np.bool_], floor: float | None, of_class: int | None) -> Coverage:
        left, n = int(exits[rows].sum()), int(rows.sum())
        if not isinstance(sample, Frames):
            return Coverage.counted(left, n, floor, lambda: lower(of_class), certified=certified)
        claim = exit_claim(of_class, floor)
        deferred = estimate(sample, claim, thresholds)
        value = 0.0 if deferred is None else 1.0 - deferred
        reached = partial(upper_bound, sample, claim, thresholds, delta)
        return Coverage.counted(left, n, floor, lambda: 1.0 - reached(), certified=certified, value=value)

    everyone = labels >= 0
    per_class = {
        name: share(labels == index, request.class_coverage.get(name), index)
        for index, name in enumerate(request.classes)
    }
    return share(everyone, request.coverage, None), per_class


def _slice_claims(
    slices: Sequence[str], counted: Scores, sample: Frames | Units, request: Request, choice: Choice
) -> tuple[SliceClaim, ...]:
    """The same risks in every slice, each walking the path up to the chosen place on its own units."""
    path, place = choice.path, choice.place
    assert path is not None, "slices are tested along a path"
    assert place is not None, "thresholds that were chosen have a place"
    claims, walked = list(risk_claims(request).values()), range(path.start, place + 1)

    def test(rows: NDArray[np.bool_], delta: float) -> bool:
        part = sample.within(rows)
        if isinstance(part, Frames):
            return furthest(part, claims, path, delta, walked) == place
        lo, hi = path.lo[walked.start : place + 1], path.hi[walked.start : place + 1]
        exits = count_exits(part.score[part.labels == 0], part.score[part.labels == 1], lo, hi)
        return bool(certifies(exits, request.targets, delta, request.target_prior).all())

    def measure(rows: NDArray[np.bool_], delta: float, held: bool) -> dict[str, SliceCounts]:
        risks = measured_risks(choice.thresholds, sample.within(rows), request, delta, False)
        found = {
            name: SliceCounts(risk.target, risk.observed, risk.bound if held else 1.0, risk.n, risk.errors, risk.alone)
            for name, risk in risks.items()
        }
        return joint_risks(found, at_end=choice.at_end) if held else found

    return slice_claims(slice_rows(counted, slices), 1.0 - request.confidence, test, measure)


def _closed_side(thresholds: Thresholds, request: Request, choice: Choice) -> str | None:
    """The class as which nothing exits although the target constrains both sides, else None."""
    if (request.one_sided and choice.method not in (PATH_METHOD, *GROUP_METHODS)) or (
        thresholds.lo is not None and thresholds.hi is not None
    ):
        return None
    return request.classes[0] if thresholds.lo is None else request.classes[1]
