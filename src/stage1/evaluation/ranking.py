"""Rows sorted once by confidence: then each selective statistic costs O(N) for each new set of weights.

The convention (ties as blocks, trapezoid, coverage 0) is stated in stage1.evaluation.selective, whose functions are
one call each of what is here; the bootstrap makes a thousand.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError

FloatArray = NDArray[np.float64]


class Ranking:
    """Rows sorted once by falling confidence, ties joined in blocks; then each set of weights costs O(N).

    confidence, residuals: float [N], checked. The bootstrap keeps one for all replicates.
    """

    def __init__(self, confidence: FloatArray, residuals: FloatArray) -> None:
        self._order = np.argsort(-confidence, kind="stable")
        ordered = confidence[self._order]
        ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
        self._ends = None if len(ends) == len(ordered) else ends
        self._residuals = residuals[self._order]
        self.thresholds: FloatArray = ordered[ends]
        self.binary = bool(((residuals == 0) | (residuals == 1)).all())

    def accept(self, weights: FloatArray) -> Accepted:
        """Sums over the rows accepted down to each block. weights: float [..., N] in the order of the input rows."""
        accepted = self._sums(weights)
        return accepted if self.binary else Accepted(accepted.weight, accepted.errors, self._ideal._sums(weights))

    @cached_property
    def _ideal(self) -> Ranking:
        # The best order of general losses: the smallest first.
        residuals = np.empty_like(self._residuals)
        residuals[self._order] = self._residuals
        return Ranking(-residuals, residuals)

    def _sums(self, weights: FloatArray) -> Accepted:
        ordered = weights[..., self._order]
        weight = np.cumsum(ordered, axis=-1)
        errors = np.cumsum(ordered * self._residuals, axis=-1)
        if self._ends is not None:
            weight, errors = weight[..., self._ends], errors[..., self._ends]
        return Accepted(weight, errors)


@dataclass(frozen=True, eq=False)
class Accepted:
    """Weight and residual weight accepted down to each block, float [..., M]; all weight has a positive sum."""

    weight: FloatArray
    errors: FloatArray
    ideal: Accepted | None = None  # the same for the best order; only where residuals are not 0/1

    @property
    def total(self) -> FloatArray:
        return self.weight[..., -1:]

    @property
    def error_rate(self) -> FloatArray:
        """float [...]: mean residual of all rows."""
        return np.asarray(self.errors[..., -1] / self.weight[..., -1])

    @property
    def coverage(self) -> FloatArray:
        return self.weight / self.total

    @property
    def selective_risk(self) -> FloatArray:
        empty = self.weight <= 0
        if not empty.any():
            return self.errors / self.weight
        # Only leading blocks can be empty (a replicate that drew none of their rows): flat down to coverage 0.
        risk = self.errors / np.where(empty, 1.0, self.weight)
        first = np.argmax(~empty, axis=-1)[..., None]
        return np.where(empty, np.take_along_axis(risk, first, axis=-1), risk)


def _aurc(accepted: Accepted) -> FloatArray:
    return _area(accepted.weight, accepted.selective_risk, flat=True) / accepted.total[..., 0]


def _augrc(accepted: Accepted) -> FloatArray:
    return _area(accepted.weight, accepted.errors, flat=False) / accepted.total[..., 0] ** 2


def _e_aurc(accepted: Accepted) -> FloatArray:
    if accepted.ideal is not None:
        return _aurc(accepted) - _aurc(accepted.ideal)
    wrong = accepted.error_rate
    right = 1.0 - wrong
    return _aurc(accepted) - (wrong + right * np.log(np.where(right > 0, right, 1.0)))


def _e_augrc(accepted: Accepted) -> FloatArray:
    best = accepted.error_rate**2 / 2 if accepted.ideal is None else _augrc(accepted.ideal)
    return _augrc(accepted) - best


def _auroc_failure(accepted: Accepted) -> FloatArray:
    # Right answers accepted before each wrong one, those of its own block half.
    _binary_only(accepted, "auroc_failure")
    wrong, right = accepted.errors, accepted.weight - accepted.errors
    pairs = wrong[..., -1] * right[..., -1]
    return np.divide(_area(wrong, right, flat=False), pairs, out=np.full_like(pairs, np.nan), where=pairs > 0)


def _accuracy(accepted: Accepted) -> FloatArray:
    _binary_only(accepted, "accuracy")
    return 1.0 - accepted.error_rate


def _area(x: FloatArray, y: FloatArray, *, flat: bool) -> FloatArray:
    """Trapezoid of y over x along the last axis, from x = 0, where y is 0 or (flat) its first value."""
    start = x[..., 0] * y[..., 0] * (1.0 if flat else 0.5)
    steps = np.einsum("...i,...i->...", x[..., 1:] - x[..., :-1], y[..., 1:] + y[..., :-1])
    return np.asarray(start + steps / 2)


def _binary_only(accepted: Accepted, name: str) -> None:
    if accepted.ideal is not None:
        raise DataError(f"residuals: not all 0 or 1; {name} is defined for right and wrong answers only")


STATISTICS: dict[str, Callable[[Accepted], FloatArray]] = {
    "aurc": _aurc,
    "augrc": _augrc,
    "e_aurc": _e_aurc,
    "e_augrc": _e_augrc,
    "auroc_failure": _auroc_failure,
    "accuracy": _accuracy,
}


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
    """Mean of `values` [N] at `weights` [N] of positive sum."""
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
