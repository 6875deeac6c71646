"""Probabilities and predictions against labels: NLL, Brier, calibration error, MCC, accuracy.

`probabilities`: float [N], P(class 1) of a binary problem, or [N, K] with rows that sum to 1 (within 1e-3). [N, 2] is
the same problem as [N] and gives the same numbers: everything binary is measured on P(class 1), not on the larger of
the two. `labels`: int [N] in 0..K-1. `weights` [N] >= 0: a row of weight 2 counts as two rows.
Every function raises DataError (one line) for NaN, a value outside [0, 1], a label outside the classes, or unequal
lengths.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.evaluation.ranking import FloatArray, Weights, checked_rows, checked_weights, weighted_mean

Binning = Literal["equal_mass", "equal_width"]
Norm = Literal["l1", "l2"]


def nll(probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean negative log-likelihood in nats; inf (not clipped) where a true class was given probability 0.

    >>> round(nll([0.9, 0.2], [1, 0]), 4)
    0.1643
    """
    probs, truth, row_weights = checked(probabilities, labels, weights)
    with np.errstate(divide="ignore"):
        loss = -np.log(probs[np.arange(len(truth)), truth])
    there = row_weights > 0  # 0 x inf is not a number
    return weighted_mean(loss[there], row_weights[there])


def nll_rows(logits: FloatArray, labels: NDArray[np.int64]) -> FloatArray:
    """The NLL of each row, float [N], from logits [N, K]: finite even where the probability rounds to 0."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels])


def brier(probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Brier score. Binary: mean (P(class 1) - y)^2, in [0, 1]. K > 2: the squares summed over classes, in [0, 2].

    >>> round(brier([0.1, 0.4, 0.8], [0, 1, 1]), 6)
    0.136667
    """
    probs, truth, row_weights = checked(probabilities, labels, weights)
    return weighted_mean(brier_rows(probs, truth), row_weights)


def brier_rows(probabilities: FloatArray, labels: NDArray[np.int64]) -> FloatArray:
    """The Brier loss of each row, float [N]; arguments [N, K] and [N], already checked."""
    squares = (probabilities - np.eye(probabilities.shape[1])[labels]) ** 2
    return squares[:, 1] if probabilities.shape[1] == 2 else np.asarray(squares.sum(axis=1))


def ece(
    probabilities: ArrayLike,
    labels: ArrayLike,
    n_bins: int = 15,
    weights: ArrayLike | None = None,
    *,
    binning: Binning = "equal_mass",
    norm: Norm = "l1",
) -> float:
    """Expected calibration error, in [0, 1]: per bin |mean probability - observed rate|, averaged by mass.

    Binary: on P(class 1) against y = 1. K > 2: top label, the largest probability against "it is right".
    equal_mass: bins of N / n_bins rows; equal probabilities stay in one bin (that of their middle row).
    equal_width: bins [i / n_bins, (i + 1) / n_bins). norm "l2": root of the mean square instead.
    Biased upwards by about the mean over bins of sqrt(p (1 - p) / rows in the bin): compare at equal N, and choose
    calibrators by `nll` or `brier`.

    >>> round(ece([0.9, 0.9, 0.1, 0.1], [1, 0, 0, 0], n_bins=2), 4)
    0.25
    """
    probs, truth, row_weights = checked(probabilities, labels, weights)
    return Calibration(probs, truth).error(row_weights, checked_bins(n_bins), binning, norm)


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """One bin: its range of probabilities, its weight of rows, the mean probability and the observed rate in it.

    effective: as how many independent rows of equal weight its rate counts, (sum w)^2 / sum w^2 (Kish).
    """

    low: float
    high: float
    count: float
    mean_probability: float
    observed_rate: float
    effective: float


def reliability(
    probabilities: ArrayLike,
    labels: ArrayLike,
    n_bins: int = 15,
    weights: ArrayLike | None = None,
    *,
    binning: Binning = "equal_mass",
) -> list[ReliabilityBin]:
    """The bins behind `ece`, lowest first, without empty ones; low, high: edges (equal_width) or extremes.

    >>> for row in reliability([0.9, 0.8, 0.2, 0.1], [1, 1, 0, 1], n_bins=2):
    ...     print(row.count, round(row.mean_probability, 2), row.observed_rate)
    2.0 0.15 0.5
    2.0 0.85 1.0
    """
    probs, truth, row_weights = checked(probabilities, labels, weights)
    return Calibration(probs, truth).bins(row_weights, checked_bins(n_bins), binning)


class Calibration:
    """Event probabilities sorted once, ties in blocks; then the calibration error for any weights costs O(N).

    probabilities: float [N, K], labels: int [N], checked. The event: class 1 of two, the top label of more, or the
    class `event_class`. The bootstrap keeps one for all replicates.
    """

    def __init__(self, probabilities: FloatArray, labels: NDArray[np.int64], event_class: int | None = None) -> None:
        if event_class is None and probabilities.shape[1] == 2:
            event_class = 1
        if event_class is None:
            event, happened = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
        else:
            event, happened = probabilities[:, event_class], labels == event_class
        self._order = np.argsort(event, kind="stable")
        self._event = event[self._order]
        self._happened = happened[self._order].astype(np.float64)
        self._gap = self._event - self._happened
        ends = np.append(np.flatnonzero(self._event[1:] != self._event[:-1]), len(event) - 1)
        self._ends = None if len(ends) == len(event) else ends
        self._levels = self._event[ends]

    def error(self, weights: FloatArray, n_bins: int, binning: Binning = "equal_mass", norm: Norm = "l1") -> float:
        """The calibration error at `weights` float [N] (input order, positive sum)."""
        ordered = weights[self._order]
        mass, gaps = self._running(ordered), self._running(ordered * self._gap)
        cuts = self._cuts(mass, n_bins, binning)
        bin_gaps, bin_mass = np.diff(gaps[cuts]), np.diff(mass[cuts])
        if norm == "l1":
            return float(np.abs(bin_gaps).sum() / mass[-1])
        if norm == "l2":
            there = bin_mass > 0
            return float(np.sqrt((bin_gaps[there] ** 2 / bin_mass[there]).sum() / mass[-1]))
        raise DataError(f"norm: {norm!r}; use l1 or l2")

    def gaps(self, base: FloatArray, n_bins: int) -> Callable[[Weights], FloatArray]:
        """Weights [B, N] -> share of each bin times its (mean probability - observed rate), float [B, bins].

        The bins (equal mass) are those at weights `base` and stay; at `base` the absolute values sum to `error`. Bins
        that ties leave empty come last and are 0: two maps of the same rows have the same number of bins.
        """
        starts = self._starts(base, n_bins)

        def at(weights: Weights) -> FloatArray:
            ordered = weights.take(self._order, axis=-1) * self._gap
            found = np.zeros((len(weights), n_bins))
            found[:, : len(starts)] = np.add.reduceat(ordered, starts, axis=-1)
            return np.asarray(found / weights.sum(axis=-1, dtype=np.float64)[:, None])

        return at

    def binned(self, n_bins: int) -> tuple[NDArray[np.intp], FloatArray]:
        """(bin of `gaps` at weight 1, event probability - whether it happened), of each row in the input's order."""
        starts = self._starts(np.ones(len(self._order)), n_bins)
        bins, gap = np.empty(len(self._order), dtype=np.intp), np.empty(len(self._order))
        bins[self._order] = np.searchsorted(starts, np.arange(len(bins)), side="right") - 1
        gap[self._order] = self._gap
        return bins, gap

    def _starts(self, base: FloatArray, n_bins: int) -> NDArray[np.intp]:
        """The first row, in rising order, of each bin of equal mass that holds any."""
        cuts = self._cuts(self._running(base[self._order]), n_bins, "equal_mass")[:-1]
        starts = np.unique(cuts if self._ends is None else np.append(0, self._ends + 1)[cuts])
        return np.asarray(starts[starts < len(base)])

    def bins(self, weights: FloatArray, n_bins: int, binning: Binning = "equal_mass") -> list[ReliabilityBin]:
        """The bins that hold any weight, lowest first."""
        ordered = weights[self._order]
        mass = self._running(ordered)
        expected, happened = self._running(ordered * self._event), self._running(ordered * self._happened)
        squares = self._running(ordered**2)
        rows = []
        cuts = self._cuts(mass, n_bins, binning)
        for index, (first, last) in enumerate(pairwise(cuts)):
            count = float(mass[last] - mass[first])
            if count <= 0:
                continue
            edges = (index / n_bins, (index + 1) / n_bins)
            if binning == "equal_mass":
                held = self._levels[first:last][np.diff(mass[first : last + 1]) > 0]
                edges = (float(held[0]), float(held[-1]))
            rows.append(
                ReliabilityBin(
                    *edges,
                    count,
                    float((expected[last] - expected[first]) / count),
                    float((happened[last] - happened[first]) / count),
                    count**2 / float(squares[last] - squares[first]),
                )
            )
        return rows

    def _running(self, ordered: FloatArray) -> FloatArray:
        """Sums up to the end of each block of ties, with 0 in front: float [blocks + 1]."""
        sums = np.empty(len(ordered) + 1)
        sums[0] = 0.0
        np.cumsum(ordered, out=sums[1:])
        return sums if self._ends is None else np.append(0.0, sums[1:][self._ends])

    def _cuts(self, mass: FloatArray, n_bins: int, binning: Binning) -> NDArray[np.intp]:
        """n_bins + 1 indices into `mass` (cumulative, with 0 in front): bin i is cuts[i] .. cuts[i + 1]."""
        inner = np.arange(1, n_bins)
        if binning == "equal_mass":
            # A block belongs to the bin of its middle, so ties stay together and the input's order does not matter.
            middle = (mass[1:] + mass[:-1]) / 2
            cuts = np.searchsorted(middle * n_bins, inner * mass[-1], side="left")
        elif binning == "equal_width":
            cuts = np.searchsorted(self._levels, inner / n_bins, side="left")
        else:
            raise DataError(f"binning: {binning!r}; use equal_mass or equal_width")
        return np.concatenate([[0], cuts, [len(mass) - 1]])


# ---- predictions -------------------------------------------------------------------------------------------------


def accuracy(predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of rows where prediction = label, in [0, 1]. predictions, labels: int [N].

    >>> accuracy([0, 1, 1, 0], [0, 1, 0, 0])
    0.75
    """
    guess, truth, row_weights = _checked_predictions(predictions, labels, weights)
    return weighted_mean(guess == truth, row_weights)


def mcc(predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Matthews correlation coefficient, in [-1, 1]; K classes: Gorodkin 2004. predictions, labels: int [N].

    NaN where predictions or labels are all of one class: it is not defined there (scikit-learn says 0).

    >>> round(mcc([0, 1, 1, 0], [0, 1, 0, 0]), 4)
    0.5774
    """
    guess, truth, row_weights = _checked_predictions(predictions, labels, weights)
    return mcc_of_counts(confusion(guess, truth, row_weights, int(max(guess.max(), truth.max())) + 1))


def confusion(
    predictions: NDArray[np.int64], labels: NDArray[np.int64], weights: FloatArray, n_classes: int
) -> FloatArray:
    """Weight of each (label, prediction), float [K, K]; arguments already checked."""
    cells = np.bincount(labels * n_classes + predictions, weights=weights, minlength=n_classes**2)
    return np.asarray(cells, dtype=np.float64).reshape(n_classes, n_classes)


def mcc_of_counts(counts: FloatArray) -> float:
    """MCC of a confusion matrix [label, prediction]; NaN where it is not defined.

    >>> round(mcc_of_counts(np.array([[40.0, 10.0], [5.0, 45.0]])), 3)
    0.704
    """
    shares = counts / counts.sum()
    truth, guess = shares.sum(axis=1), shares.sum(axis=0)
    spread = (1 - truth @ truth) * (1 - guess @ guess)
    # One class alone leaves 1 - 1 up to rounding
    if spread <= 1e-15 or (truth > 0).sum() < 2 or (guess > 0).sum() < 2:
        return float("nan")
    return float(np.clip((np.trace(shares) - truth @ guess) / np.sqrt(spread), -1.0, 1.0))


def best_mcc_threshold(score: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> tuple[float, float]:
    """The threshold with the largest MCC when exactly the rows with score > threshold are called 1: (threshold, mcc).

    score: float [N], labels: 0/1 [N]. The threshold is half-way between two distinct scores; the lowest one at a tie.
    (NaN, NaN) where labels or scores are all alike. Chosen and measured on the same rows, so it flatters: choose it on
    val_select. Raises DataError: labels other than 0 and 1, NaN or infinity, unequal lengths.

    >>> best_mcc_threshold([0.1, 0.3, 0.6, 0.7], [0, 0, 1, 1])
    (0.44999999999999996, 1.0)
    """
    truth = _classes(labels, "labels", None)
    if truth.max() > 1:
        raise DataError(f"labels: {truth.max()}; a threshold on one score needs labels 0 and 1")
    scores, _ = checked_rows(score, truth)
    row_weights = checked_weights(weights, len(scores))
    there = row_weights > 0
    levels, block = np.unique(scores[there], return_inverse=True)
    positive, negative = (
        np.bincount(block, weights=row_weights[there] * (truth[there] == value), minlength=len(levels))
        for value in (1, 0)
    )
    if len(levels) < 2 or not positive.any() or not negative.any():
        return float("nan"), float("nan")
    # Called 0: everything up to a level, the last one excepted.
    missed, rejected = np.cumsum(positive)[:-1], np.cumsum(negative)[:-1]
    found, false = positive.sum() - missed, negative.sum() - rejected
    spread = positive.sum() * negative.sum() * (found + false) * (missed + rejected)
    mcc_at = (found * rejected - false * missed) / np.sqrt(spread)
    best = int(np.argmax(mcc_at))
    middle = levels[best] / 2 + levels[best + 1] / 2
    # Neighbouring numbers have nothing between them
    threshold = middle if levels[best] <= middle < levels[best + 1] else levels[best]
    return float(threshold), float(np.clip(mcc_at[best], -1.0, 1.0))


# ---- input -------------------------------------------------------------------------------------------------------


def checked(
    probabilities: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[FloatArray, NDArray[np.int64], FloatArray]:
    """probabilities [N, K], labels and weights as arrays. Raises DataError as the module says."""
    try:
        probs = np.asarray(probabilities, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"probabilities: not numbers ({error})") from error
    if probs.ndim not in (1, 2) or not len(probs) or (probs.ndim == 2 and probs.shape[1] < 2):
        raise DataError(f"probabilities: shape {probs.shape}; give [N] (P(class 1)) or [N, K], at least one row")
    bad = ~((probs >= 0) & (probs <= 1))
    if bad.any():
        raise DataError(f"probabilities: row {int(np.argwhere(bad)[0][0])} is {probs[bad][0]}, outside [0, 1]")
    if probs.ndim == 1:
        probs = np.stack([1.0 - probs, probs], axis=1)
    elif (off := np.abs(probs.sum(axis=1) - 1.0)).max() > 1e-3:
        raise DataError(f"probabilities: row {int(off.argmax())} sums to {probs[off.argmax()].sum():.4g}, not 1")
    truth = _classes(labels, "labels", len(probs))
    if truth.max() >= probs.shape[1]:
        raise DataError(f"labels: {truth.max()} is outside 0..{probs.shape[1] - 1} (classes)")
    return probs, truth, checked_weights(weights, len(probs))


def _checked_predictions(
    predictions: ArrayLike, labels: ArrayLike, weights: ArrayLike | None
) -> tuple[NDArray[np.int64], NDArray[np.int64], FloatArray]:
    guess = _classes(predictions, "predictions", None)
    truth = _classes(labels, "labels", len(guess))
    return guess, truth, checked_weights(weights, len(guess))


def _classes(values: ArrayLike, name: str, n: int | None) -> NDArray[np.int64]:
    raw = np.asarray(values)
    if raw.ndim != 1 or raw.dtype.kind not in "biuf" or not len(raw):
        raise DataError(f"{name}: dtype {raw.dtype}, shape {raw.shape}; whole numbers 0..K-1, one per row")
    if n is not None and len(raw) != n:
        raise DataError(f"{name}: {len(raw)} values for {n} rows")
    if not np.isfinite(raw).all() or (raw != np.floor(raw)).any() or (raw < 0).any():
        raise DataError(f"{name}: must be whole numbers 0..K-1, no NaN")
    return raw.astype(np.int64)


def checked_bins(n_bins: int) -> int:
    """Raises DataError where there is no bin."""
    if n_bins < 1:
        raise DataError(f"n_bins: {n_bins}; give 1 or more")
    return n_bins
