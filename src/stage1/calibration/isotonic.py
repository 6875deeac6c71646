"""Isotonic maps: the best rising step function, joined by lines (Zadrozny and Elkan 2002)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.calibration.maps import CalibrationMap, FloatArray, checked_fit, log_softmax, provenance
from stage1.errors import DataError
from stage1.scores import Scores

ISOTONIC_ROWS = 1000
"""About as many rows as a step function needs before it is better than a smooth map."""

Curve = tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Isotonic(CalibrationMap):
    """K = 2: one rising curve of s = logit_1 - logit_0. K > 2: one per class on its log-odds ln p - ln(1 - p), against
    "it is this class", then divided by their sum.

    curves: (scores, values) of each curve; lines between them, constant outside. Not strictly monotone: whole ranges of
    scores get one value, so thresholds on it must be certified on the mapped score. Needs about 1,000 rows.
    A last block that holds one class only would say 0 or 1 and be infinitely wrong once; it says 1 / (m + 2) or
    (m + 1) / (m + 2) of its m rows instead, or its neighbour's value where that is nearer to the end.

    >>> scores = Scores(np.array([[0.0, -2.0], [0.0, -1.0], [0.0, 1.0], [0.0, 2.0]]), labels=[0, 1, 0, 1])
    >>> Isotonic.fit(scores).calibrate(scores).probabilities[:, 1].round(2).tolist()
    [0.33, 0.5, 0.5, 0.67]
    """

    curves: tuple[Curve, ...]

    name: ClassVar[str] = "isotonic"

    def __post_init__(self) -> None:
        expected = 1 if self.n_classes == 2 else self.n_classes
        if len(self.curves) != expected:
            raise DataError(f"curves: {len(self.curves)} for {self.n_classes} classes; {expected} expected")
        for index, (knots, values) in enumerate(self.curves):
            x, y = np.asarray(knots, dtype=np.float64), np.asarray(values, dtype=np.float64)
            rising = len(x) == len(y) > 0 and bool((np.diff(x) > 0).all() and (np.diff(y) >= 0).all())
            if not rising or not np.isfinite(x).all() or not ((y > 0) & (y < 1)).all():
                raise DataError(f"curves.{index}: scores must rise, values must not fall and lie between 0 and 1")

    @classmethod
    def fit(cls, scores: Scores) -> Self:
        """Pool adjacent violators. Raises DataError without labels or where a class has no row."""
        labels = checked_fit(scores, cls.name)
        classes = [1] if scores.n_classes == 2 else range(scores.n_classes)
        odds = _log_odds(scores.logits)
        curves = tuple(_curve(column, labels == index) for column, index in zip(odds, classes, strict=True))
        return cls(curves=curves, **provenance(scores))

    @property
    def monotone(self) -> bool:
        return False

    @property
    def parameters(self) -> dict[str, Any]:
        return {"curves": [{"scores": list(knots), "values": list(values)} for knots, values in self.curves]}

    @classmethod
    def from_parameters(
        cls, parameters: Mapping[str, Any], *, n: int, n_classes: int, fitted_on: str | None
    ) -> CalibrationMap:
        curves = tuple((tuple(curve["scores"]), tuple(curve["values"])) for curve in parameters.get("curves", ()))
        values = {**parameters, "curves": curves}
        return cls(**values, n=n, n_classes=n_classes, fitted_on=fitted_on)

    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        columns = [np.interp(odds, *curve) for odds, curve in zip(_log_odds(logits), self.curves, strict=True)]
        if self.n_classes == 2:
            return np.stack([np.log1p(-columns[0]), np.log(columns[0])], axis=1)
        return log_softmax(np.log(np.stack(columns, axis=1)))


def pool_adjacent_violators(
    scores: ArrayLike, targets: ArrayLike
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """The non-decreasing step function of least squared error.

    scores, targets: float [N]; equal scores are one point. Returns (first score, last score, value, rows) of each
    block, lowest first, values strictly rising. Source: Ayer et al. 1955, as scipy has it (Busing 2022, linear time).
    scipy gives the blocks; their values are sums over rows here, which are exact where the targets are 0 and 1.

    >>> [part.tolist() for part in pool_adjacent_violators([1.0, 2.0, 3.0, 4.0], [0, 1, 0, 1])]
    [[1.0, 2.0, 4.0], [1.0, 3.0, 4.0], [0.0, 0.5, 1.0], [1.0, 2.0, 1.0]]
    """
    from scipy.optimize import isotonic_regression

    x, point = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)
    rows = np.bincount(point).astype(np.float64)
    total = np.bincount(point, weights=np.asarray(targets, dtype=np.float64))
    starts = isotonic_regression(total / rows, weights=rows).blocks[:-1]
    value = np.add.reduceat(total, starts) / np.add.reduceat(rows, starts)
    starts = starts[np.append(True, np.diff(value) > 0)]  # rounding can keep blocks of one value apart
    total, rows = np.add.reduceat(total, starts), np.add.reduceat(rows, starts)
    return x[starts], x[np.append(starts[1:], len(x)) - 1], total / rows, rows


def _curve(score: FloatArray, happened: NDArray[np.bool_]) -> Curve:
    first, last, value, rows = pool_adjacent_violators(score, happened)
    # A value of 0 or 1 can only be the first or the last; both classes are there, so with one block it is neither.
    if value[0] == 0.0:
        value[0] = min(1.0 / (rows[0] + 2.0), value[1])
    if value[-1] == 1.0:
        value[-1] = max((rows[-1] + 1.0) / (rows[-1] + 2.0), value[-2])
    knots = np.stack([first, last], axis=1).reshape(-1)
    keep = np.append(True, np.diff(knots) > 0)
    return tuple(knots[keep].tolist()), tuple(np.repeat(value, 2)[keep].tolist())


def _log_odds(logits: FloatArray) -> list[FloatArray]:
    """s for two classes; else ln p_k - ln(1 - p_k) of each class, which does not saturate at p = 1."""
    if logits.shape[1] == 2:
        return [logits[:, 1] - logits[:, 0]]
    columns = []
    for index in range(logits.shape[1]):
        others = np.delete(logits, index, axis=1)
        top = others.max(axis=1)
        columns.append(logits[:, index] - top - np.log(np.exp(others - top[:, None]).sum(axis=1)))
    return columns
