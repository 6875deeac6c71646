"""The bootstrap of many units without drawing: replicates of the linear statistic, whose variance is known.

A replicate weighs unit u of stratum s by how often it was drawn, w_u: counts of a multinomial draw. To first order it
moves a statistic by sum (w_u - 1) d_u, d_u the influence of the unit (of its rows, summed;
stage1.evaluation.influence), and the variance of that sum is exactly

    sum over strata of sum over units of (d_u - mean of d in the stratum)^2.

What is left out is of order 1 / n of it. So from MANY_UNITS units on the replicates are the normal distribution of that
variance (of a calibration error: that of its bins together), with no error of simulation, and `read_interval` reads
them as it reads drawn ones. Normal only where many units matter: (sum d^2)^2 / sum d^4, the number of units of equal
influence that would make such a sum, must reach FEWEST_EFFECTIVE (a rate with k errors among very many rows has about
k). Else nothing is said here, and the statistic is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.evaluation.ranking import FloatArray
from stage1.evaluation.resampling import Units, generator
from stage1.evaluation.t_interval import SMALL_STRATUM

MANY_UNITS = 20_000
FEWEST_EFFECTIVE = 400
_NORMALS = 4000


@dataclass(frozen=True, slots=True)
class Binned:
    """Rows in the bins of a calibration error. bin_of_row: int [N]; gap: float [N], event probability - outcome."""

    bin_of_row: NDArray[np.intp]
    gap: FloatArray
    n_bins: int


@dataclass(frozen=True, slots=True)
class Linear:
    """Replicates [B] or [B, bins], and for each small stratum what is measured without each of its units."""

    replicates: FloatArray
    left_out: dict[int, FloatArray]


Influence = Callable[[], FloatArray | Sequence[Binned] | None]


def linear(found: FloatArray | Sequence[Binned] | None, observed: FloatArray, plan: Units, seed: int) -> Linear | None:
    """The replicates of one statistic; None: it has none, or too few units matter to it.

    found: its influence, float [N], or the bins of its calibration errors side by side. observed: what was measured,
    [] or [bins].
    """
    if found is None:
        return None
    if isinstance(found, np.ndarray):
        each = _unit_sums(plan, found)
        variance = _variance(plan, each)
        if variance is None:
            return None
        return Linear(observed + np.sqrt(variance) * _normal_scores(), _left_out(plan, observed, each))
    signs = np.where(observed < 0, -1.0, 1.0)
    starts = np.cumsum([0, *(part.n_bins for part in found)])
    moved = sum(signs[start + part.bin_of_row] * part.gap for start, part in zip(starts[:-1], found, strict=True))
    if _variance(plan, _unit_sums(plan, np.asarray(moved))) is None:
        return None
    n = len(found[0].gap)
    values, vectors = np.linalg.eigh(_covariance(plan, found, observed, n))
    draws = generator(seed, "linear").standard_normal((_NORMALS, len(observed)))
    replicates = observed + draws @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    small = {
        index: _dense(plan, found, observed, stratum) / n
        for index, stratum in enumerate(plan.strata)
        if len(stratum) <= SMALL_STRATUM
    }
    return Linear(replicates, {index: _without(observed, each) for index, each in small.items()})


def _unit_sums(plan: Units, rows: FloatArray) -> FloatArray:
    if plan.unit_of_row is None:
        return rows
    return np.asarray(np.bincount(plan.unit_of_row, weights=rows, minlength=len(plan)), dtype=np.float64)


def _variance(plan: Units, each: FloatArray) -> float | None:
    """Of a sum over drawn units, 0 where nothing moves it; None where it hangs on too few of them."""
    squares = fourths = 0.0
    for stratum in plan.strata:
        part = each[stratum]
        square = (part - part.mean()) ** 2
        squares, fourths = squares + float(square.sum()), fourths + float((square**2).sum())
    enough = np.isfinite(fourths) and squares**2 >= FEWEST_EFFECTIVE * fourths
    return squares if enough else None


def _normal_scores() -> FloatArray:
    """Quantiles of the normal distribution with mean 0 and variance 1 (ddof 1) exactly."""
    from scipy.special import ndtri

    scores = ndtri((np.arange(1000) + 0.5) / 1000)
    return np.asarray(scores / scores.std(ddof=1))


def _left_out(plan: Units, observed: FloatArray, each: FloatArray) -> dict[int, FloatArray]:
    small = ((index, stratum) for index, stratum in enumerate(plan.strata) if len(stratum) <= SMALL_STRATUM)
    return {index: _without(observed, each[stratum]) for index, stratum in small}


def _without(observed: FloatArray, each: FloatArray) -> FloatArray:
    # the others then weigh n / (n - 1): `Spread.of` takes that off again
    return np.asarray(observed - each * (len(each) / max(len(each) - 1, 1)))


# ---- calibration errors: several bins at once --------------------------------------------------------------------


def _covariance(plan: Units, parts: Sequence[Binned], observed: FloatArray, n: int) -> FloatArray:
    """Of the bins of all parts over drawn units, float [bins, bins]."""
    total = np.zeros((len(observed), len(observed)))
    for stratum in plan.strata:
        if plan.unit_of_row is None:
            total += _row_covariance(parts, stratum)
        else:
            each = _dense(plan, parts, observed, stratum)
            each -= each.mean(axis=0)
            total += each.T @ each
    return np.asarray(total / n**2)


def _row_covariance(parts: Sequence[Binned], rows: NDArray[np.intp]) -> FloatArray:
    """Rows as units: each is in one bin of each part, and what all share falls out."""
    held = [(part.bin_of_row[rows], part.gap[rows], part.n_bins) for part in parts]
    sums = np.concatenate([np.bincount(bins, gap, n_bins) for bins, gap, n_bins in held])
    blocks = [
        [np.bincount(one * k + other, gap * by, n_bins * k).reshape(n_bins, k) for other, by, k in held]
        for one, gap, n_bins in held
    ]
    return np.asarray(np.block(blocks) - np.outer(sums, sums) / len(rows))


def _dense(plan: Units, parts: Sequence[Binned], observed: FloatArray, units: NDArray[np.intp]) -> FloatArray:
    """n times the influence of these units on each bin, float [units, bins]."""
    place = np.full(len(plan), -1, dtype=np.intp)
    place[units] = np.arange(len(units))
    at = place if plan.unit_of_row is None else place[plan.unit_of_row]
    rows = np.flatnonzero(at >= 0)
    at = at[rows]
    sums = [
        np.bincount(at * part.n_bins + part.bin_of_row[rows], part.gap[rows], len(units) * part.n_bins)
        for part in parts
    ]
    columns = [one.reshape(len(units), part.n_bins) for one, part in zip(sums, parts, strict=True)]
    return np.concatenate(columns, axis=1) - np.outer(np.bincount(at, minlength=len(units)), observed)
