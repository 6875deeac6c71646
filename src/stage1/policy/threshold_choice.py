"""Choose thresholds on a score by the sharpest valid method for a target set.

| target | method | why |
|---|---|---|
| one ratio or share of each class that the walk knows | order statistics, walks | exact, no select data needed |
| miss_rate or false_exit_rate alone (flag) | one order statistic; the other side defers | the same |
| fnr or fpr alone (flag) | the walk with the other threshold at even odds | exact, the boundary is fixed beforehand |
| the same with against_argmax | one order statistic; every image exits | then the ratio is a share of the class |
| both ratios, or error, few labels | the same path image by image, from a number of trials | policy/counted_start.py |
| anything else: floors, many labels, other sets | fixed sequence along the calibrated path | ALGORITHMS 2.4, 2.5 |

The methods of the first four rows (two-sided walk, order statistics) are in policy/closed_form.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError
from stage1.policy.boundary import Boundary
from stage1.policy.class_counts import may_be_known
from stage1.policy.closed_form import METHODS, Thresholds, choose_thresholds, one_sided_walk
from stage1.policy.counted_start import walk_from_count
from stage1.policy.counts import Exits, certifies, class_coverage_lower, count_exits, coverage_holds
from stage1.policy.ordering import DELTA_SPLIT, CandidateSequence, Goal, calibrated_path
from stage1.policy.target import Request
from stage1.risk import order_statistic_rank
from stage1.risk.sample_size import shared_delta
from stage1.risk.testing import fixed_sequence, fixed_sequence_of

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

Rule = Callable[[Floats, Labels], "Choice"]

PATH_METHOD = "fixed sequence along the calibrated path, exact binomial, union null"
COUNTED_METHOD = (
    "fixed sequence along the calibrated path, image by image from a number of trials that was fixed beforehand, exact"
    " binomial, union null"
)
STATED_METHOD = "fixed sequence along the calibrated path, exact test of both classes at the stated share, union null"


@dataclass(frozen=True, slots=True)
class Choice:
    """thresholds: chosen pair, both None where nothing passed. delta: what each risk's bound may spend.

    floor_delta: the same for floors on coverage. first_failure: the first pair tested, if it failed. path, place: where
    the thresholds are on the path they were found on.
    """

    thresholds: Thresholds
    method: str
    delta: float
    floor_delta: float
    first_failure: Thresholds | None = None
    path: CandidateSequence | None = None
    place: int | None = None

    @property
    def described(self) -> str:
        """The method, as a certificate says it."""
        return COUNTED_METHOD if self.path is not None and self.path.forgiven is not None else self.method

    @property
    def union_null(self) -> bool:
        """Whether all risks were tested together, each at the whole delta; else they share it."""
        return self.path is not None

    @property
    def at_end(self) -> bool:
        """Whether the thresholds are the last pair of the path: no failure stopped the walk."""
        return self.path is not None and self.thresholds == pair_at(self.path, len(self.path.lo) - 1)


def choose(
    score: Floats,
    labels: Labels,
    request: Request,
    select_score: Floats | None,
    select_labels: Labels | None,
    *,
    along_path: bool = False,
) -> Choice:
    """Thresholds for `request` by the counted units of val_calib, float [N] and int [N]; select: for the path.

    along_path: use the path also where a closed-form rule exists (claims for slices are tested along it).
    Raises ConfigError where the target set needs val_select and it is missing or too small (10 of each class).
    """
    classes = (int((labels == 0).sum()), int((labels == 1).sum()))
    fixed = rule(request, len(score), select_score, select_labels, along_path=along_path, classes=classes)
    return fixed(score, labels)


def rule(
    request: Request,
    n: int,
    select_score: Floats | None,
    select_labels: Labels | None,
    *,
    along_path: bool = False,
    classes: tuple[int, int] | None = None,
) -> Rule:
    """The method for `request` as a function of calibration units alone; what val_select decides is fixed here.

    classes: (negatives, positives) of the calibration units, for the targets whose path may know them.
    """
    targets, chosen = request.targets, frozenset(request.targets)
    delta = 1.0 - request.confidence
    closed_form = not request.has_floor and not along_path
    boundary = request.boundary
    if chosen in METHODS and closed_form:
        spent = shared_delta(request.confidence, len(targets))
        return lambda score, labels: Choice(
            choose_thresholds(score, labels, targets, spent, boundary), METHODS[chosen], spent, delta
        )
    if chosen in ({"fnr"}, {"fpr"}) and closed_form and boundary is not None:
        method = f"walk of one class, the other threshold at even odds, exact binomial ({next(iter(chosen))})"
        return lambda score, labels: Choice(
            _up_to_even_odds(score, labels, targets, delta, boundary), method, delta, delta
        )
    if chosen in ({"fnr"}, {"fpr"}) and closed_form:
        method = f"order statistic of one class, every image exits ({next(iter(chosen))})"
        return lambda score, labels: Choice(_everything_exits(score, labels, targets, delta), method, delta, delta)
    if select_score is None or select_labels is None:
        raise ConfigError(
            f"select: {' + '.join(targets)} needs labelled scores of val_select to order the thresholds; give them"
        )
    if not may_be_known(request.targets, request.has_floor):
        classes = None
    path = path_from(
        request, n, select_score, select_labels, counted=not (along_path or request.has_floor), classes=classes
    )
    if path is None:
        raise ConfigError(
            "select: val_select has fewer than 10 images of a class; this target needs them to order the thresholds"
        )
    if along_path:
        # Slices are tested along the path of the thresholds; which of two that is would depend on the calibration
        # labels.
        path = replace(path, second=None)
    return lambda score, labels: _along(path, score, labels, request, delta / 2 if request.has_floor else delta)


def path_from(
    request: Request,
    n: int,
    select_score: Floats,
    select_labels: Labels,
    *,
    counted: bool = False,
    classes: tuple[int, int] | None = None,
) -> CandidateSequence | None:
    """The calibrated path for `request` on n calibration units; None where val_select has fewer than 10 of a class.

    counted: independent units that are tested along one sequence, so that testing may start by what is counted.
    classes: (negatives, positives) of the calibration units, where the path may know them (policy/class_counts.py).
    """
    delta = 1.0 - request.confidence
    spent = delta / 2 if request.has_floor else delta
    limits = None if request.boundary is None else (request.boundary.lo, request.boundary.hi)
    goal = Goal(request.targets, n, spent, request.target_prior, limits, counted, classes)
    return calibrated_path(select_score, select_labels, goal)


def _along(path: CandidateSequence, score: Floats, labels: Labels, request: Request, delta: float) -> Choice:
    """Test along the path, and if delta is split and the first place fails, along the other: two share the delta."""
    if path.second is None or request.has_floor:
        return _test(path, score, labels, request, delta)
    first = _test(path, score, labels, request, (1 - DELTA_SPLIT) * delta)
    second = first if first.path is not None else _test(path.second, score, labels, request, DELTA_SPLIT * delta)
    return second if second.path is not None else first


def _test(path: CandidateSequence, score: Floats, labels: Labels, request: Request, delta: float) -> Choice:
    """Test from the path's start towards more risk; with floors, also from the riskiest pair towards safety (2.5)."""
    if path.forgiven is not None:
        found = walk_from_count(path.lo, path.hi, score, labels, request.targets, path.forgiven, delta, path.start)
        if found.pair is None:
            return Choice(Thresholds(None, None), PATH_METHOD, delta, delta, _thresholds(*found.first))
        return Choice(_thresholds(*found.pair), PATH_METHOD, delta, delta, path=path, place=found.step)
    exits = count_exits(score[labels == 0], score[labels == 1], path.lo, path.hi)

    def passed(rows: slice) -> NDArray[np.bool_]:
        return certifies(exits.take(rows), request.targets, delta, request.target_prior)

    place = fixed_sequence_of(passed, len(path.lo), path.start)
    first_failure = pair_at(path, path.start)
    if place is not None and request.has_floor:
        # Coverage rises along the path, risk too: two sequences from the two ends, delta / 2 each; a pair in both holds
        # both.
        lowest = fixed_sequence(floors_hold(exits, request, delta)[::-1])
        if lowest is None or place < len(path.lo) - 1 - lowest:
            first_failure, place = pair_at(path, place), None
    if place is None:
        return Choice(Thresholds(None, None), PATH_METHOD, delta, delta, first_failure)
    return Choice(pair_at(path, place), PATH_METHOD, delta, delta, path=path, place=place)


def floors_hold(exits: Exits, request: Request, delta: float) -> NDArray[np.bool_]:
    """Which pairs reach every floor at delta, bool [T] (union null again: all floors of one pair at the full delta)."""
    held = np.ones(len(exits.miss), dtype=np.bool_)
    if request.coverage is not None:
        held &= coverage_holds(exits, request.coverage, request.target_prior, delta)
    for name, floor in request.class_coverage.items():
        held &= class_coverage_lower(exits, request.classes.index(name), delta) >= floor
    return held


def pair_at(path: CandidateSequence, place: int) -> Thresholds:
    """The thresholds at a place of the path; None for a side that never exits."""
    return _thresholds(float(path.lo[place]), float(path.hi[place]))


def _thresholds(lo: float, hi: float) -> Thresholds:
    return Thresholds(lo if np.isfinite(lo) else None, hi if np.isfinite(hi) else None)


def _up_to_even_odds(
    score: Floats, labels: Labels, targets: dict[str, float], delta: float, boundary: Boundary
) -> Thresholds:
    """fnr (or, mirrored, fpr) alone where no image exits against its probability."""
    ((name, target),) = targets.items()
    if name == "fnr":
        return one_sided_walk(score[labels == 1], target, delta, boundary)
    return one_sided_walk(-score[labels == 0], target, delta, boundary.mirrored()).mirrored()


def _everything_exits(score: Floats, labels: Labels, targets: dict[str, float], delta: float) -> Thresholds:
    """fnr (or fpr) alone: with every image answered it is the share of the class beyond one threshold."""
    ((name, target),) = targets.items()
    sign = 1.0 if name == "fnr" else -1.0
    own = np.sort(sign * score[labels == (1 if name == "fnr" else 0)])
    rank = order_statistic_rank(len(own), target, delta)
    if rank == 0:
        return Thresholds(None, None)
    # Strictly between the rank-th score of the class and whatever lies below it, so that no image sits on the
    # threshold.
    below = sign * score
    below = below[below < own[rank - 1]]
    cut = float((own[rank - 1] + below.max()) / 2) if len(below) else float(own[rank - 1] - 1.0)
    return Thresholds(sign * cut, sign * cut)
