"""Thresholds certified from all images of every group: group means, tested by betting along the calibrated path.

The other way to count groups is one image of each (policy/units.py). All speak of a random image of a random group;
these use every image. Betting on group means wins where images of a group hardly agree (ALGORITHMS 2.6;
risk/clusters.py), many draws of one image of each in between (risk/group_draws.py). All claims of a pair of thresholds
are tested together, p = max: groups with both classes make the tests of the classes dependent, so neither the walk nor
1 - sqrt(1 - delta) would be allowed here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError
from stage1.policy.closed_form import Thresholds
from stage1.policy.ordering import CandidateSequence
from stage1.policy.target import Request
from stage1.policy.threshold_choice import Choice, pair_at, path_from
from stage1.risk.bounds import betting_pvalue
from stage1.risk.clusters import (
    GroupLayout,
    group_layout,
    group_order,
    group_power,
    group_shares,
    shares_pvalue,
    shares_upper,
)
from stage1.risk.group_draws import DRAWS_LEVEL, draw_numbers, drawn_counts, merged_pvalue, merged_upper
from stage1.risk.risks import RISKS
from stage1.risk.testing import minimum_samples
from stage1.scores import Scores

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
Bools = NDArray[np.bool_]

MEANS_METHOD = "fixed sequence along the calibrated path, all images by group means, betting, union null"
DRAWS_METHOD = (
    "fixed sequence along the calibrated path, 21 draws of one image of each group, exact binomial, half of the draws,"
    " union null"
)
GROUP_METHODS = (MEANS_METHOD, DRAWS_METHOD)
_CHUNK = 8  # candidates at a time: testing stops at the first failure
# Betting does not use all the information that independent images would hold; fitted on nothing, it only places the
# start.
_EFFICIENCY = 0.6
# Of the two mistakes the costly one is to bet where images of a group agree; val_select shows agreement in few groups.
_MARGIN = 0.1
# A draw more or less is a small mistake, but one draw has a closed form for some targets, and this has not.
_DRAWS_MARGIN = 0.03
_ERRORS_SEEN = 20  # wrong images of val_select from which agreement within groups is judged


class Claim(NamedTuple):
    """One statement to test: a share of wrong rows among rows tried is at most `target`.

    rows(labels [N, 1], exits as 0 [N, C], exits as 1 [N, C]) -> (wrong, trial), bool [N, C] each; trial None: all rows.
    """

    target: float
    rows: Callable[[Labels, Bools, Bools], tuple[Bools, Bools | None]]


def risk_rows(name: str, labels: Labels, negative: Bools, positive: Bools) -> tuple[Bools, Bools]:
    """(wrong, trial) of a risk; labels [N, 1] or [N], exits as 0 and as 1 of the shape of the result."""
    return RISKS[name].counts(negative | positive, positive.astype(np.int64), labels)


def risk_claims(request: Request) -> dict[str, Claim]:
    """The risks of a request, by name."""
    return {
        name: Claim(target, lambda labels, negative, positive, name=name: risk_rows(name, labels, negative, positive))  # type: ignore[misc]
        for name, target in request.targets.items()
    }


def exit_claim(of_class: int | None, floor: float | None) -> Claim:
    """Coverage (of a class) is at least `floor`, as the claim that at most 1 - floor of the images (of it) defer."""

    def rows(labels: Labels, negative: Bools, positive: Bools) -> tuple[Bools, Bools | None]:
        deferred = ~(negative | positive)
        if of_class is None:
            return deferred, None
        own = np.broadcast_to(labels == of_class, deferred.shape)
        return own & deferred, own

    return Claim(0.5 if floor is None else 1.0 - floor, rows)


def floor_claims(request: Request) -> list[Claim]:
    """Every floor of a request."""
    found = [] if request.coverage is None else [exit_claim(None, request.coverage)]
    return found + [exit_claim(request.classes.index(name), floor) for name, floor in request.class_coverage.items()]


@dataclass(frozen=True, slots=True)
class Frames:
    """All images of val_calib with their groups in the order of testing. score: float [N]; labels: int [N].

    A label of -1: a row outside the slice that is counted; it is neither wrong nor tried. numbers: float [G, m] of the
    draws (risk/group_draws.py); None: group means, tested by betting.
    """

    score: Floats
    labels: Labels
    layout: GroupLayout
    numbers: Floats | None = None

    def __len__(self) -> int:
        return len(self.layout)

    @classmethod
    def of(cls, score: Floats, scores: Scores, seed: int, unit: str = "group_mean") -> Frames:
        """Raises ConfigError where there are no groups."""
        if scores.groups is None:
            raise ConfigError(f"unit: {unit} needs groups; these scores have none")
        order = group_order(scores.groups, seed)
        numbers = draw_numbers(order.tolist(), seed) if unit == "group_draws" else None
        return cls(score, scores.known_labels, group_layout(scores.groups, order), numbers)

    def exits(self, lo: Floats, hi: Floats) -> tuple[Bools, Bools]:
        """Exits as 0 and as 1, bool [N, C], of C pairs."""
        return self.score[:, None] < lo, self.score[:, None] > hi

    def shares(self, claim: Claim, lo: Floats, hi: Floats) -> tuple[Floats, Floats]:
        """Of each group and pair: the share of wrong rows, and of rows not tried; [G, C] each."""
        wrong, trial = claim.rows(self.labels[:, None], *self.exits(lo, hi))
        inside = (self.labels >= 0)[:, None]
        if not inside.all():
            trial = np.broadcast_to(inside, wrong.shape) if trial is None else trial & inside
            wrong = wrong & inside
        return group_shares(wrong, trial, self.layout)

    def pvalue(self, claim: Claim, lo: Floats, hi: Floats) -> Floats:
        """p-value of "the share is at least the claim's target" of each pair, [C]."""
        wrong, idle = self.shares(claim, lo, hi)
        if self.numbers is None:
            return shares_pvalue(wrong, idle, claim.target)
        return merged_pvalue(*drawn_counts(wrong, idle, self.numbers), claim.target)

    def within(self, inside: Bools) -> Frames:
        """The same groups, of whose images only those inside are counted; inside: bool [N]."""
        return replace(self, labels=np.where(inside, self.labels, -1))


def choose_by_means(frames: Frames, request: Request, path: CandidateSequence | None) -> Choice:
    """Thresholds along the path; with floors also from its riskiest end, delta / 2 each (ALGORITHMS 2.5)."""
    if request.target_prior is not None and (request.coverage is not None or "error" in request.risks):
        raise ConfigError(
            "unit: all images of groups cannot restate error or coverage at target_prior; use unit=group (one image of"
            " each group)"
        )
    if path is None:
        raise ConfigError(
            "select: val_select has fewer than 10 images of a class; group means need them to order the thresholds"
        )
    delta = 1.0 - request.confidence
    spent = delta / 2 if request.has_floor else delta
    method = MEANS_METHOD if frames.numbers is None else DRAWS_METHOD
    last = len(path.lo) - 1
    place = furthest(frames, list(risk_claims(request).values()), path, spent, range(path.start, last + 1))
    first_failure = pair_at(path, path.start)
    if place is not None and request.has_floor:
        lowest = furthest(frames, floor_claims(request), path, spent, range(last, -1, -1))
        if lowest is None or place < lowest:
            first_failure, place = pair_at(path, place), None
    if place is None:
        return Choice(Thresholds(None, None), method, spent, spent, first_failure)
    return Choice(pair_at(path, place), method, spent, spent, path=path, place=place)


def furthest(
    frames: Frames, claims: Sequence[Claim], path: CandidateSequence, delta: float, places: range
) -> int | None:
    """The last place before the first failure, in the order given; None where the first one fails."""
    held: int | None = None
    for chunk in _chunks(places):
        lo, hi = path.lo[chunk], path.hi[chunk]
        passed = np.ones(len(chunk), dtype=np.bool_)
        for claim in claims:
            passed &= frames.pvalue(claim, lo, hi) <= delta
        failures = np.flatnonzero(~passed)
        if len(failures):
            return int(chunk[failures[0] - 1]) if failures[0] else held
        held = int(chunk[-1])
    return held


def _chunks(places: range) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(places), _CHUNK):
        yield np.asarray(places[start : start + _CHUNK], dtype=np.int64)


def upper_bound(frames: Frames, claim: Claim, thresholds: Thresholds, delta: float) -> float:
    """Upper bound at 1 - delta of a claim's share at these thresholds; <= its target exactly where its test passes."""
    wrong, idle = frames.shares(claim, *thresholds.columns)
    if frames.numbers is None:
        return shares_upper(wrong[:, 0], idle[:, 0], delta, target=claim.target)
    return float(merged_upper(*drawn_counts(wrong, idle, frames.numbers), delta)[0])


def estimate(frames: Frames, claim: Claim, thresholds: Thresholds) -> float | None:
    """The share itself: of a random image of a random group, wrong given tried; None where nothing is tried."""
    wrong, idle = frames.shares(claim, *thresholds.columns)
    trial = float((1 - idle).sum())
    return float(wrong.sum()) / trial if trial > 0 else None


def minimum_groups(target: float, delta: float) -> int:
    """Groups, every image of them tried and right, with which betting certifies `target` at delta."""
    low, high = 0, 1
    while betting_pvalue(np.zeros(high), target) > delta:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if betting_pvalue(np.zeros(middle), target) <= delta else (middle, high)
    return high


def needed_groups(frames: Frames) -> Callable[[float, float], int]:
    """(target, delta) -> the groups that these tests need with every image right."""
    if frames.numbers is None:
        return minimum_groups
    return lambda target, delta: minimum_samples(target, delta * DRAWS_LEVEL)


# ---- what val_select says ------------------------------------------------------------------------------------------


def means_path(
    select: Scores, score: Floats, calib: Scores, request: Request, *, drawn: bool = False
) -> CandidateSequence | None:
    """The path for all images of groups: its start is placed for as many independent images as the groups are worth.

    drawn: for many draws of one image of each, each of which is an exact test of as many images as there are groups.
    """
    assert calib.groups is not None
    groups = len(np.unique(calib.groups))
    if drawn:
        each = replace(request, confidence=1.0 - DRAWS_LEVEL * (1.0 - request.confidence))
        return path_from(each, max(groups, 1), score, select.known_labels)
    per_group = len(calib) / max(groups, 1)
    agreement = intraclass_correlation(select, score)
    worth = min(max(_EFFICIENCY * per_group / (1 + (per_group - 1) * agreement), 1.0), per_group)
    return path_from(request, max(round(groups * worth), 1), score, select.known_labels)


def intraclass_correlation(select: Scores, score: Floats) -> float:
    """How far wrong answers agree within groups, in [0, 1]: ANOVA estimate; 1 where it cannot be seen."""
    if select.groups is None or not len(select):
        return 1.0
    wrong = ((score > 0) != (select.known_labels == 1)).astype(np.float64)
    _, index = np.unique(select.groups, return_inverse=True)
    sizes = np.bincount(index).astype(np.float64)
    groups, n = len(sizes), len(wrong)
    if groups < 2 or n == groups or wrong.std() == 0:
        return 1.0
    means = np.bincount(index, weights=wrong) / sizes
    between = float((sizes * (means - wrong.mean()) ** 2).sum() / (groups - 1))
    within = float(((wrong - means[index]) ** 2).sum() / (n - groups))
    typical = (n - float((sizes**2).sum()) / n) / (groups - 1)
    spread = between + (typical - 1) * within
    return float(np.clip((between - within) / spread, 0.0, 1.0)) if spread > 0 else 1.0


def better_unit(
    select: Scores, score: Floats, request: Request, n_groups_calib: int, path: CandidateSequence | None, seed: int
) -> str:
    """ "group", "group_draws" or "group_mean": the likeliest to certify all risks, as seen from val_select alone.

    select: val_select with groups; score: float [N] of it. Each risk is judged where the path first makes enough
    errors to show how far they agree within groups; group_power brings them to the level of the target. Many draws must
    be within reach as well. "group" where val_select has no groups or no path, or where group means are not offered
    (target_prior).
    """
    restated = request.target_prior is not None and (request.coverage is not None or "error" in request.risks)
    if path is None or select.groups is None or restated:
        return "group"
    single = draws = means = 1.0
    for name, claim in risk_claims(request).items():
        wrong, trial = _with_errors(name, select.known_labels, score, path)
        power = group_power(
            wrong,
            trial,
            select.groups,
            claim.target,
            1.0 - request.confidence,
            n_groups_calib=n_groups_calib,
            seed=seed,
        )
        single, draws = single * power.one_per_group, draws * power.draws
        means *= power.betting
    if means > max(single, draws) + _MARGIN:
        return "group_mean"
    better = draws > single + _DRAWS_MARGIN and draws_within_reach(select, score, request, n_groups_calib)
    return "group_draws" if better else "group"


def draws_within_reach(select: Scores, score: Floats, request: Request, n_groups_calib: int) -> bool:
    """Whether the maps let each of many draws, at its half of delta, answer half of what one draw answers at delta.

    Given the images, draws pass independently of each other, each with some chance F; that at some t half of the first
    t have passed has a chance of at most 2 F (Doob). So where one draw at delta / 2 promises less than half of one at
    delta, merging cannot make up for it: at error <= .05 it takes 72 answered groups instead of 59, and of 105 groups
    those are the ones with the errors. Power judged at a fixed place (group_power) does not see how far that is.
    """

    def promised(asked: Request) -> float:
        path = path_from(asked, n_groups_calib, score, select.known_labels, counted=not asked.has_floor)
        return 0.0 if path is None else path.expected

    each = replace(request, confidence=1.0 - DRAWS_LEVEL * (1.0 - request.confidence))
    return promised(each) >= DRAWS_LEVEL * promised(request)


def _with_errors(name: str, labels: Labels, score: Floats, path: CandidateSequence) -> tuple[Bools, Bools | None]:
    """risk_rows at the first place from the start with enough wrong images, else where most are; bool [N] each."""
    best: tuple[int, tuple[Bools, Bools | None]] | None = None
    for place in range(path.start, len(path.lo)):
        wrong, trial = risk_rows(name, labels, *pair_at(path, place).exits(score))
        count = int(wrong.sum())
        if best is None or count > best[0]:
            best = count, (wrong, trial)
        if count >= _ERRORS_SEEN:
            break
    assert best is not None, "a path has a place at its start"
    return best[1]
