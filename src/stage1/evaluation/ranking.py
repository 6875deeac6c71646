"""Rows sorted once by confidence: then each selective statistic costs O(N) for each new set of weights.

The convention (ties as blocks, trapezoid, coverage 0) is stated in stage1.evaluation.selective, whose functions are
one call each of what is here; the bootstrap makes a thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError

FloatArray = NDArray[np.float64]
Weights = NDArray[np.float64] | NDArray[np.uint8]
Sums = NDArray[np.float64] | NDArray[np.int32]
_PIECE = 1 << 14
# Sums of fractional weights miss a round number by a few ulps.
_ROUNDING = 1e-12


class Ranking:
    """Rows sorted once by falling confidence, ties joined in blocks; then each set of weights costs O(N).

    confidence, residuals: float [N], checked. The bootstrap keeps one for all replicates.
    """

    def __init__(self, confidence: FloatArray, residuals: FloatArray) -> None:
        self._order = np.argsort(-confidence, kind="stable")
        ordered = confidence[self._order]
        starts = np.append(0, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
        self._starts = None if len(starts) == len(ordered) else starts
        self.thresholds: FloatArray = ordered[starts]
        self.binary = bool(((residuals == 0) | (residuals == 1)).all())
        # 0/1 as bytes: with counts as weights everything up to the division is then small whole numbers
        self._residuals = residuals[self._order].astype(np.uint8 if self.binary else np.float64)

    def __len__(self) -> int:
        return len(self._order)

    @property
    def block_of_row(self) -> NDArray[np.intp]:
        """In which block each row is, int [N] in the order of the input."""
        places = np.arange(len(self))
        sorted_blocks = places if self._starts is None else np.searchsorted(self._starts, places, side="right") - 1
        block = np.empty(len(self), dtype=np.intp)
        block[self._order] = sorted_blocks
        return block

    @property
    def residual_of_row(self) -> FloatArray:
        """The residuals as they were given, float [N]."""
        residuals = np.empty(len(self))
        residuals[self._order] = self._residuals
        return residuals

    def accept(self, weights: Weights) -> Accepted:
        """Sums over the rows accepted down to each block.

        weights: [..., N] in the order of the input rows, float, or uint8 where they are counts (exact and fast).
        """
        sums = self._sums(weights)
        return Accepted(*sums, None if self.binary else Accepted(*self.ideal._sums(weights)))

    @cached_property
    def ideal(self) -> Ranking:
        """The best order of general losses: the smallest first."""
        residuals = self.residual_of_row
        return Ranking(-residuals, residuals)

    def _sums(self, weights: Weights) -> tuple[Sums, Sums]:
        ordered = weights.take(self._order, axis=-1)
        wrong: Weights = np.multiply(ordered, self._residuals)
        return self._running(ordered), self._running(wrong)

    def _running(self, ordered: Weights) -> Sums:
        kind: type[np.int32] | type[np.float64] = np.int32 if ordered.dtype == np.uint8 else np.float64
        blocks = ordered if self._starts is None else np.add.reduceat(ordered, self._starts, axis=-1, dtype=kind)
        return cast(Sums, np.cumsum(blocks, axis=-1, dtype=kind))


class Accepted:
    """Weight and residual weight accepted down to each block, [..., M] each; all weight has a positive sum.

    int32 where weights are counts, else float64.
    """

    def __init__(self, weight: Sums, errors: Sums, ideal: Accepted | None = None) -> None:
        self.weight = weight
        self.errors = errors
        self.ideal = ideal  # the same for the best order; only where residuals are not 0/1

    @property
    def total(self) -> FloatArray:
        """float [...]: weight of all rows."""
        return self.weight[..., -1].astype(np.float64)

    @property
    def wrong(self) -> FloatArray:
        """float [...]: residual weight of all rows."""
        return self.errors[..., -1].astype(np.float64)

    @property
    def error_rate(self) -> FloatArray:
        """float [...]: mean residual of all rows."""
        return np.asarray(self.wrong / self.total)

    @property
    def coverage(self) -> FloatArray:
        return self.weight / self.total[..., None]

    @property
    def selective_risk(self) -> FloatArray:
        return self._risk(slice(None))

    @cached_property
    def aurc(self) -> FloatArray:
        return _area(self.weight, self._risk, flat=True) / self.total

    @cached_property
    def augrc(self) -> FloatArray:
        return _area(self.weight, lambda part: self.errors[..., part], flat=False) / self.total**2

    def _risk(self, part: slice) -> FloatArray:
        """Selective risk of these blocks; flat over leading blocks that are empty in a replicate."""
        weight, errors = self.weight[..., part], self.errors[..., part]
        if (weight[..., 0] > 0).all():
            return np.asarray(errors / weight)
        return np.where(weight > 0, errors / np.where(weight > 0, weight, 1), self._first_risk)

    @cached_property
    def _first_risk(self) -> FloatArray:
        first = np.argmax(self.weight > 0, axis=-1)[..., None]
        errors, weight = (np.take_along_axis(np.asarray(x, np.float64), first, -1) for x in (self.errors, self.weight))
        return np.asarray(errors / weight)


def _e_aurc(accepted: Accepted) -> FloatArray:
    if accepted.ideal is not None:
        return accepted.aurc - accepted.ideal.aurc
    wrong = accepted.error_rate
    right = 1.0 - wrong
    return accepted.aurc - (wrong + right * np.log(np.where(right > 0, right, 1.0)))


def _naurc(accepted: Accepted) -> FloatArray:
    wrong = accepted.error_rate
    best = _best_aurc(accepted) if accepted.ideal is None else accepted.ideal.aurc
    room = wrong - best
    there = room > _ROUNDING * np.maximum(wrong, 1.0)
    return np.divide(accepted.aurc - best, room, out=np.full_like(room, np.nan), where=there)


def _best_aurc(accepted: Accepted) -> FloatArray:
    """AURC of all right rows first, each row its own point: sum over k > right of (k - right) / k, as a trapezoid."""
    from scipy.special import digamma

    rows, wrong = accepted.total, accepted.wrong
    right = rows - wrong
    harmonic = digamma(rows + 1.0) - digamma(right + 1.0)  # 1 / (right + 1) + .. + 1 / rows
    best = (wrong - right * harmonic - wrong / (2.0 * rows)) / rows
    return np.asarray(np.where(right > 0, best, 1.0))


def _aurc_achievable(accepted: Accepted) -> FloatArray:
    weight, errors = np.atleast_2d(accepted.weight), np.atleast_2d(accepted.errors)
    areas = [_area_of_hull(*row) for row in zip(weight, errors, strict=True)]
    return np.reshape(areas, accepted.weight.shape[:-1])


def _area_of_hull(weight: FloatArray, errors: FloatArray) -> float:
    hull = lower_hull(np.append(0.0, weight), np.append(0.0, errors))
    x, y = np.append(0.0, weight)[hull] / weight[-1], np.append(0.0, errors)[hull] / weight[-1]
    slope = np.diff(y) / np.diff(x)
    offset = y[1:] - slope * x[1:]
    # The first segment starts at the origin: its offset is 0 and its logarithm infinite.
    return float((slope * np.diff(x)).sum() + (offset[1:] * np.log(x[2:] / x[1:-1])).sum())


def _e_augrc(accepted: Accepted) -> FloatArray:
    best = accepted.error_rate**2 / 2 if accepted.ideal is None else accepted.ideal.augrc
    return accepted.augrc - best


def _auroc_failure(accepted: Accepted) -> FloatArray:
    # Right answers accepted before each wrong one, those of its own block half.
    _binary_only(accepted, "auroc_failure")
    pairs = accepted.wrong * (accepted.total - accepted.wrong)
    before = _area(accepted.errors, lambda part: accepted.weight[..., part] - accepted.errors[..., part], flat=False)
    return np.divide(before, pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def _accuracy(accepted: Accepted) -> FloatArray:
    _binary_only(accepted, "accuracy")
    return 1.0 - accepted.error_rate


def _area(x: Sums, y: Callable[[slice], Sums], *, flat: bool) -> FloatArray:
    """Trapezoid of y over x along the last axis, from x = 0, where y is 0 or (flat) its first value.

    In pieces: fresh memory for a hundred thousand intermediate numbers costs twenty times the arithmetic on them.
    """
    area = x[..., 0] * np.asarray(y(slice(0, 1))[..., 0], dtype=np.float64) * (2.0 if flat else 1.0)
    width = max(1, _PIECE * x.shape[-1] // x.size)
    for start in range(0, x.shape[-1] - 1, width):
        part = slice(start, start + width + 1)
        edges, heights = x[..., part].astype(np.float64), y(part).astype(np.float64)
        area = area + np.einsum(
            "...i,...i->...", edges[..., 1:] - edges[..., :-1], heights[..., 1:] + heights[..., :-1]
        )
    return np.asarray(area / 2)


def _binary_only(accepted: Accepted, name: str) -> None:
    if accepted.ideal is not None:
        raise DataError(f"residuals: not all 0 or 1; {name} is defined for right and wrong answers only")


STATISTICS: dict[str, Callable[[Accepted], FloatArray]] = {
    "aurc": lambda accepted: accepted.aurc,
    "augrc": lambda accepted: accepted.augrc,
    "e_aurc": _e_aurc,
    "e_augrc": _e_augrc,
    "naurc": _naurc,
    "aurc_achievable": _aurc_achievable,
    "auroc_failure": _auroc_failure,
    "accuracy": _accuracy,
}


# ---- lower convex hull -------------------------------------------------------------------------------------------


def lower_hull(x: FloatArray, y: FloatArray) -> NDArray[np.intp]:
    """Indices of the lower convex hull of points with x that never falls, ends included, x distinct among them.

    y must not fall where x stays. Points on or above the line between their neighbours are dropped all at once (each is
    no corner, whatever happens to the others), again and again while that gets rid of a good part; a chain through the
    points that are left ends it, so the worst case is O(N) as well.

    >>> lower_hull(np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 2.0])).tolist()
    [0, 2]
    """
    kept = np.append(0, np.flatnonzero(np.diff(x) > 0) + 1)
    while len(kept) > 2:
        dx, dy = np.diff(x[kept]), np.diff(y[kept])
        corner = dy[:-1] * dx[1:] < dy[1:] * dx[:-1]
        before = len(kept)
        kept = kept[np.concatenate([[True], corner, [True]])]
        if len(kept) > 0.9 * before:
            return np.asarray(kept if len(kept) == before else kept[_chain(x[kept], y[kept])])
    return np.asarray(kept)


def _chain(x: FloatArray, y: FloatArray) -> list[int]:
    """The same for few points, by Andrew's monotone chain."""
    xs, ys = x.tolist(), y.tolist()
    hull: list[int] = []
    for i in range(len(xs)):
        while len(hull) >= 2:
            a, b = hull[-2], hull[-1]
            if (xs[b] - xs[a]) * (ys[i] - ys[a]) > (ys[b] - ys[a]) * (xs[i] - xs[a]):
                break
            hull.pop()
        hull.append(i)
    return hull


# ---- input -------------------------------------------------------------------------------------------------------


def checked_rows(confidence: ArrayLike, residuals: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """`confidence` and `residuals` as float [N]. Raises DataError as the module says."""
    conf, res = _column(confidence, "confidence"), _column(residuals, "residuals")
    if len(conf) != len(res):
        raise DataError(f"residuals: {len(res)} values for {len(conf)} confidences")
    if (res < 0).any():
        raise DataError(f"residuals: row {int(np.argmax(res < 0))} is {res[res < 0][0]}; a loss is >= 0 (1 = wrong)")
    return conf, res


def checked_weights(weights: ArrayLike | None, n: int) -> FloatArray:
    """`weights` as float [n], ones for None. Raises DataError: wrong length, negative, NaN, infinite, all zero."""
    if weights is None:
        return np.ones(n)
    array = _column(weights, "weights")
    if len(array) != n:
        raise DataError(f"weights: {len(array)} values for {n} rows")
    if (array < 0).any() or not array.any():
        raise DataError("weights: must be >= 0 and not all 0")
    return array


def weighted_mean(values: ArrayLike, weights: FloatArray) -> float:
    """Mean of `values` [N] at `weights` [N] of positive sum.

    >>> weighted_mean([1.0, 0.0], np.array([3.0, 1.0]))
    0.75
    """
    # Not `@`: BLAS splits a long vector over threads, and a thousand times per metric on a busy machine the waiting for
    # the slower thread costs a hundred times the sum itself.
    return float(np.einsum("i,i->", weights, np.asarray(values, dtype=np.float64)) / weights.sum())


def _column(values: ArrayLike, name: str) -> FloatArray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: not numbers ({error})") from error
    if array.ndim != 1 or not array.size:
        raise DataError(f"{name}: shape {array.shape}; one value per row, at least one row")
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"{name}: row {row} is {array[row]}; NaN and infinity cannot be ranked: fix or drop these rows")
    return array
