"""Two thresholds on one score by closed-form rules, needing val_calib alone: exit as 0 iff s < lo, as 1 iff s > hi.

| target | method | proof |
|---|---|---|
| fnr, false_exit_rate | two-sided walk | ALGORITHMS 2.4: hi from the negatives alone, then lo walks up the positives |
| fpr, miss_rate | its mirror | the same with the classes exchanged and the score negated |
| miss_rate, false_exit_rate | two order statistics | Tong, Feng and Li 2018 on each class |
| miss_rate or false_exit_rate alone | one order statistic; the other side always defers | the same |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from stage1.policy.boundary import Boundary

METHODS: dict[frozenset[str], str] = {
    frozenset({"fnr", "false_exit_rate"}): "two-sided walk, exact binomial",
    frozenset({"fpr", "miss_rate"}): "two-sided walk mirrored, exact binomial",
    frozenset({"miss_rate", "false_exit_rate"}): "order statistic of each class, exact binomial",
    frozenset({"miss_rate"}): "order statistic of the positive class, exact binomial",
    frozenset({"false_exit_rate"}): "order statistic of the negative class, exact binomial",
}


@dataclass(frozen=True, slots=True)
class Thresholds:
    """lo, hi: exit as 0 iff s < lo, as 1 iff s > hi; None: that side never exits. lo <= hi where both are set."""

    lo: float | None
    hi: float | None

    def exits(self, score: NDArray[np.float64]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(exits as 0, exits as 1), bool [N] each."""
        never = np.zeros(len(score), dtype=np.bool_)
        return (never if self.lo is None else score < self.lo, never if self.hi is None else score > self.hi)

    @property
    def columns(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(lo, hi) as sequences of one pair, float [1] each; -inf and +inf: that side never exits."""
        return (
            np.array([-np.inf if self.lo is None else self.lo]),
            np.array([np.inf if self.hi is None else self.hi]),
        )

    def mirrored(self) -> Thresholds:
        """The same rule for the negated score with the classes exchanged."""
        return Thresholds(None if self.hi is None else -self.hi, None if self.lo is None else -self.lo)


def two_sided_walk(
    negatives: NDArray[np.float64],
    positives: NDArray[np.float64],
    fnr: float,
    false_exit_rate: float,
    delta: float,
    boundary: Boundary | None = None,
) -> Thresholds:
    """Thresholds with P(fnr > its target) <= delta and, independently, P(false_exit_rate > its target) <= delta.

    negatives, positives: scores of each class in val_calib, any order. Ties at a threshold defer as a block. boundary:
    fixed before these scores were seen; lo stays at or below it, hi at or above.
    """
    from stage1.risk import order_statistic_rank

    rank = order_statistic_rank(len(negatives), false_exit_rate, delta)
    if rank == 0:
        return Thresholds(None, None)
    # hi comes from the negatives alone, so given the counts it is fixed for the positives: that independence is what
    # lets both tests spend delta' = 1 - sqrt(1 - delta).
    hi = _at_least(float(np.sort(negatives)[-rank]), boundary)
    # Given the boundary hi is still a rule of the negatives, only less often wrong; and fnr falls with lo.
    return Thresholds(_walked(positives, hi, fnr, delta, boundary), hi if np.isfinite(hi) else None)


def one_sided_walk(positives: NDArray[np.float64], fnr: float, delta: float, boundary: Boundary) -> Thresholds:
    """fnr alone: hi at the boundary, lo walked up the positives; P(fnr > target) <= delta. (None, None): no lo."""
    lo = _walked(positives, boundary.hi, fnr, delta, boundary)
    # Without a lo no positive is ever missed, and answering one class always would pass for a certificate of fnr.
    return Thresholds(lo, boundary.hi) if lo is not None and np.isfinite(boundary.hi) else Thresholds(None, None)


def _walked(
    positives: NDArray[np.float64], hi: float, fnr: float, delta: float, boundary: Boundary | None
) -> float | None:
    """Given hi: the largest lo that keeps fnr, at most hi and the boundary; None: no place."""
    right = int((positives > hi).sum())
    from stage1.risk import walk_length

    length = walk_length(right, len(positives) - right, fnr, delta)
    if length == 0:
        return None
    return _at_most(min(float(np.sort(positives)[length - 1]), hi), boundary)


def _at_most(lo: float, boundary: Boundary | None) -> float | None:
    lo = lo if boundary is None else min(lo, boundary.lo)
    return lo if np.isfinite(lo) else None


def _at_least(hi: float, boundary: Boundary | None) -> float:
    return hi if boundary is None else max(hi, boundary.hi)


def order_statistics(
    negatives: NDArray[np.float64],
    positives: NDArray[np.float64],
    miss_rate: float | None,
    false_exit_rate: float | None,
    delta: float,
    boundary: Boundary | None = None,
) -> Thresholds:
    """Thresholds with each given risk above its target with probability <= delta, independently; None: never exits.

    boundary: as in `two_sided_walk`; each rate only falls where its threshold is moved outwards.
    """
    lo = hi = None
    from stage1.risk import order_statistic_rank

    if miss_rate is not None and (rank := order_statistic_rank(len(positives), miss_rate, delta)):
        lo = _at_most(float(np.sort(positives)[rank - 1]), boundary)
    if false_exit_rate is not None and (rank := order_statistic_rank(len(negatives), false_exit_rate, delta)):
        moved = _at_least(float(np.sort(negatives)[-rank]), boundary)
        hi = moved if np.isfinite(moved) else None
    if lo is not None and hi is not None:
        # Classes that do not overlap: between hi and lo both answers are allowed; a smaller lo never adds a miss.
        lo = min(lo, hi)
    return Thresholds(lo, hi)


def choose_thresholds(
    score: NDArray[np.float64],
    labels: NDArray[np.int64],
    targets: Mapping[str, float],
    delta: float,
    boundary: Boundary | None = None,
) -> Thresholds:
    """Thresholds by the method of METHODS for this set of targets; delta is that of each risk."""
    negatives, positives = score[labels == 0], score[labels == 1]
    if set(targets) == {"fnr", "false_exit_rate"}:
        return two_sided_walk(negatives, positives, targets["fnr"], targets["false_exit_rate"], delta, boundary)
    if set(targets) == {"fpr", "miss_rate"}:
        mirrored = None if boundary is None else boundary.mirrored()
        return two_sided_walk(-positives, -negatives, targets["fpr"], targets["miss_rate"], delta, mirrored).mirrored()
    return order_statistics(
        negatives, positives, targets.get("miss_rate"), targets.get("false_exit_rate"), delta, boundary
    )
