"""Calibration beyond `ece`: without its bias, class by class, and as a part of the Brier score.

Arguments, weights and errors as in stage1.evaluation.probability. The debiased errors subtract what chance alone adds.
How large that is depends on how many *independent* rows there are, and a row of weight 2 is no more than one: so here
weights count by their effective number in each bin, (sum w)^2 / sum w^2, and are not repeated rows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import DataError
from stage1.evaluation.probability import (
    Binning,
    Calibration,
    Norm,
    ReliabilityBin,
    checked,
    checked_bins,
    reliability,
)
from stage1.evaluation.ranking import FloatArray, weighted_mean


def ece_debiased(
    probabilities: ArrayLike,
    labels: ArrayLike,
    n_bins: int = 15,
    weights: ArrayLike | None = None,
    *,
    binning: Binning = "equal_mass",
) -> float:
    """`ece` (l1) less its bias by one round of bootstrap: 2 ECE - E[ECE of redrawn rates]; may be negative.

    Redrawn: each bin's rate from the normal distribution around the observed one with variance rate (1 - rate) / n_b;
    its expected distance from the mean probability has a closed form (folded normal), so nothing is simulated. Where
    the error is large against chance, nothing of the bias is left; for a perfectly calibrated model 59 % of it (2 -
    sqrt 2).
    `squared_ce_debiased` has none at all.
    Source: Kumar, Liang and Ma 2019, section 5 and their code (which draws 1,000 samples).

    >>> rng = np.random.default_rng(0)
    >>> p = rng.random(4000)
    >>> round(ece_debiased(p, rng.random(4000) < p), 3)
    0.009
    >>> round(ece_debiased(p, rng.random(4000) < p**2), 3)
    0.169
    """
    rows = reliability(probabilities, labels, n_bins, weights, binning=binning)
    gap = np.array([row.observed_rate - row.mean_probability for row in rows])
    noise = np.sqrt([max(row.observed_rate * (1 - row.observed_rate), 0.0) / row.effective for row in rows])
    mass = np.array([row.count for row in rows])
    return weighted_mean(2 * np.abs(gap) - _folded_mean(gap, noise), mass)


def _folded_mean(mean: FloatArray, spread: FloatArray) -> FloatArray:
    """E |X|, X normal."""
    from scipy.special import erf

    ratio = np.divide(mean, spread * np.sqrt(2.0), out=np.full_like(mean, np.inf), where=spread > 0)
    normal = spread * np.sqrt(2.0 / np.pi) * np.exp(-(ratio**2)) + mean * erf(ratio)
    return np.asarray(np.where(spread > 0, normal, np.abs(mean)))


def squared_ce_debiased(
    probabilities: ArrayLike,
    labels: ArrayLike,
    n_bins: int = 15,
    weights: ArrayLike | None = None,
    *,
    binning: Binning = "equal_mass",
) -> float:
    """Squared calibration error without the bias of `ece(norm="l2")`^2; may be negative (Kumar et al. 2019).

    Per bin of n_b rows, (mean probability - rate)^2 - rate (1 - rate) / (n_b - 1), averaged by mass. Raises DataError
    where a bin holds a single row.

    >>> rng = np.random.default_rng(0)
    >>> p = rng.random(4000)
    >>> round(squared_ce_debiased(p, rng.random(4000) < p**2), 3)
    0.033
    """
    rows = reliability(probabilities, labels, n_bins, weights, binning=binning)
    if any(row.effective < 1.0 + 1e-9 for row in rows):
        raise DataError(f"n_bins: {n_bins} leaves a bin with a single row; use fewer bins")

    def squared_gap(row: ReliabilityBin) -> float:
        noise = row.observed_rate * (1 - row.observed_rate) / (row.effective - 1)
        return (row.mean_probability - row.observed_rate) ** 2 - noise

    return weighted_mean([squared_gap(row) for row in rows], np.array([row.count for row in rows]))


def classwise_ece(
    probabilities: ArrayLike,
    labels: ArrayLike,
    n_bins: int = 15,
    weights: ArrayLike | None = None,
    *,
    binning: Binning = "equal_mass",
    norm: Norm = "l1",
) -> float:
    """Mean over the K classes of the calibration error of P(class k) against y = k, in [0, 1] (Kull et al. 2019).

    Sees what top-label `ece` does not: a class that is called too rarely. K = 2: both classes, each on its own
    probability, which is `ece` but for rows at the border of two bins.

    >>> round(classwise_ece([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]], [0, 1, 1], n_bins=1), 3)
    0.178
    """
    probs, truth, row_weights = checked(probabilities, labels, weights)
    bins = checked_bins(n_bins)
    errors = [
        Calibration(probs, truth, event_class).error(row_weights, bins, binning, norm)
        for event_class in range(probs.shape[1])
    ]
    return float(np.mean(errors))


class BrierParts(NamedTuple):
    """Brier score = reliability - resolution + uncertainty, each >= 0.

    >>> parts = brier_decomposition([0.2, 0.2, 0.8, 0.8], [0, 1, 1, 1])
    >>> round(parts.reliability - parts.resolution + parts.uncertainty, 4)
    0.19
    """

    reliability: float
    resolution: float
    uncertainty: float


def brier_decomposition(probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> BrierParts:
    """Murphy's (1973) parts of `brier`, over the distinct predictions: exact, no bins.

    reliability: squared distance of predictions from the observed rates (0 = calibrated). resolution: squared distance
    of those rates from the overall rate (higher = better). uncertainty: of the labels alone. K > 2: over distinct rows
    of probabilities, summed over classes. Predictions that are all different make each row a group of its own, where
    resolution = uncertainty and reliability is the Brier score: round or bin them first.

    >>> [round(part, 6) for part in brier_decomposition([0.2] * 5 + [0.8] * 5, [0, 0, 0, 0, 1, 1, 1, 1, 0, 1])]
    [0.0, 0.09, 0.25]
    """
    probs, truth, row_weights = checked(probabilities, labels, weights)
    happened = np.eye(probs.shape[1])[truth]
    if probs.shape[1] == 2:
        probs, happened = probs[:, 1:], happened[:, 1:]
    predicted, group = np.unique(probs, axis=0, return_inverse=True)
    group = group.reshape(-1)
    mass = np.bincount(group, weights=row_weights).astype(np.float64)
    there = mass > 0
    rates = np.stack(
        [np.bincount(group, weights=row_weights * column)[there] / mass[there] for column in happened.T], axis=1
    )
    overall = mass[there] @ rates / mass.sum()
    return BrierParts(
        weighted_mean(((predicted[there] - rates) ** 2).sum(axis=1), mass[there]),
        weighted_mean(((rates - overall) ** 2).sum(axis=1), mass[there]),
        float((overall * (1 - overall)).sum()),
    )
