"""Candidates for a head judged out of fold: each image by a fit that has seen neither it nor its group.

Judged by AUGRC (confidence = largest probability), then NLL, which orders candidates where AUGRC ties at 0. Of two
candidates the difference of AUGRC comes with its standard error over groups: AUGRC is a statistic of pairs of images,
its influence function is in closed form, and the images of a group move together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.training.grouped_folds import grouped_folds
from stage1.training.logistic import Floats, Scale, out_of_fold_path
from stage1.training.selection import SelectMetrics, select_metrics

FOLDS = 5
# 1 / sqrt(strength) is the prior's standard deviation of a logit: from a third to 180.
STRENGTHS = tuple(10.0 ** (1 - half / 2) for half in range(12))
SCALES: tuple[Scale, ...] = ("common", "column")


@dataclass(frozen=True, slots=True)
class LogisticCandidate:
    """One logistic regression, judged. logits: float64 [N, K], out of fold; seconds: CPU time of its fits."""

    strength: float
    scale: Scale
    logits: Floats
    metrics: SelectMetrics
    seconds: float

    @property
    def key(self) -> tuple[float, float]:
        """Smaller is better: AUGRC, then NLL."""
        return (self.metrics.augrc, self.metrics.nll)


def cross_validated(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    fold: NDArray[np.int64],
    n_classes: int,
    *,
    strengths: Sequence[float] = STRENGTHS,
    scales: Sequence[Scale] = SCALES,
    sample_weight: NDArray[Any] | None = None,
) -> list[LogisticCandidate]:
    """Every logistic regression of these strengths and scales, judged out of fold: scale by scale, strong to weak.

    features: float32 [N, D]; labels: int [N] in 0..K-1; fold: int [N] (`grouped_folds`). A path of strengths ends
    where two in a row are worse than an earlier one in AUGRC and in NLL: from there on fits overfit, and they are the
    dear ones. `best_of` chooses among them.
    """
    made = []
    for scale in scales:
        begun = time.process_time()
        best, worse = (np.inf, np.inf), 0
        path = out_of_fold_path(
            features, labels, fold, n_classes, strengths=strengths, scale=scale, sample_weight=sample_weight
        )
        for strength, logits in path:
            metrics = select_metrics(logits, labels)
            now = time.process_time()
            made.append(LogisticCandidate(strength, scale, logits, metrics, now - begun))
            begun = now
            worse = worse + 1 if metrics.augrc > best[0] and metrics.nll > best[1] else 0
            best = (min(best[0], metrics.augrc), min(best[1], metrics.nll))
            if worse == 2:
                break
    return made


def quick_judgement(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: NDArray[np.str_] | None,
    n_classes: int,
    *,
    seed: int,
    folds: int = FOLDS,
    strengths: Sequence[float] = STRENGTHS[::2],
) -> LogisticCandidate:
    """The logistic regression of least NLL on the common scale, out of grouped folds: what features are worth, cheaply.

    Raises DataError (NaN, labels, a class in fewer than two groups).
    """
    fold = grouped_folds(labels, groups, folds, seed, n_classes)
    found = cross_validated(features, labels, fold, n_classes, strengths=strengths, scales=("common",))
    return min(found, key=lambda candidate: candidate.metrics.nll)


def best_of(
    candidates: Sequence[LogisticCandidate], labels: NDArray[np.int64], groups: NDArray[np.str_] | None
) -> LogisticCandidate:
    """Of the candidates whose AUGRC is above the least by no more than the paired standard error, that of least NLL.

    AUGRC alone is near flat in the strength where data are easy or few, and its least value drifts to weak penalties,
    whose probabilities are far too sure. The first of equals. A scale is left for a later one (by the order of the
    candidates) only where that is better in AUGRC by more than the standard error: on road signs the common scale
    had the higher AUROC in every split, where NLL out of fold preferred the other by .009.
    """
    scales = dict.fromkeys(candidate.scale for candidate in candidates)
    best, *others = (_least_sure([c for c in candidates if c.scale == scale], labels, groups) for scale in scales)
    for other in others:
        found = augrc_difference(other.logits, best.logits, labels, groups)
        best = other if -found.difference > found.error else best
    return best


def _least_sure(
    candidates: Sequence[LogisticCandidate], labels: NDArray[np.int64], groups: NDArray[np.str_] | None
) -> LogisticCandidate:
    least = min(candidates, key=lambda candidate: candidate.key)

    def level(candidate: LogisticCandidate) -> bool:
        found = augrc_difference(candidate.logits, least.logits, labels, groups)
        return candidate is least or found.difference <= found.error

    return min(filter(level, candidates), key=lambda candidate: candidate.metrics.nll)


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """AUGRC, or NLL, of one set of logits minus that of another on the same images, and its standard error over groups.

    error: NaN for a single group.
    """

    difference: float
    error: float


def augrc_difference(
    logits: NDArray[Any], other: NDArray[Any], labels: NDArray[np.int64], groups: NDArray[np.str_] | None
) -> PairedDifference:
    """Paired: both [N, K] answer the same images. groups: str [N], None for images that are independent.

    >>> right, wrong = np.array([[2.0, 0.0], [0.0, 2.0]] * 4), np.array([[2.0, 0.0], [1.0, 0.0]] * 4)
    >>> found = augrc_difference(right, wrong, np.array([0, 1] * 4), None)
    >>> bool(found.difference < 0 and found.error > 0)
    True
    """
    apart = _influence(logits, labels) - _influence(other, labels)
    return PairedDifference(float(apart.mean() / 2), _error_of_mean(apart, groups))


def nll_difference(
    logits: NDArray[Any], other: NDArray[Any], labels: NDArray[np.int64], groups: NDArray[np.str_] | None
) -> PairedDifference:
    """As `augrc_difference`, of the mean negative log likelihood (nats): a mean over images, so it tells more apart.

    >>> sure, even = np.array([[3.0, 0.0], [0.0, 3.0]] * 4), np.zeros((8, 2))
    >>> round(nll_difference(sure, even, np.array([0, 1] * 4), None).difference, 3)
    -0.645
    """
    apart = _losses(logits, labels) - _losses(other, labels)
    return PairedDifference(float(apart.mean()), _error_of_mean(apart, groups))


def _error_of_mean(values: Floats, groups: NDArray[np.str_] | None) -> float:
    """Standard error of the mean of [N], groups moving together; NaN for a single group."""
    excess = values - values.mean()
    if groups is not None:
        _, unit = np.unique(groups, return_inverse=True)
        excess = np.bincount(unit, weights=excess)
    units = len(excess)
    return float(np.sqrt(np.square(excess).sum() * units / (units - 1)) / len(values)) if units > 1 else float("nan")


def _losses(logits: NDArray[Any], labels: NDArray[np.int64]) -> Floats:
    values = np.asarray(logits, dtype=np.float64)
    values = values - values[np.arange(len(labels)), labels][:, None]
    top = values.max(axis=1)
    return np.asarray(top + np.log(np.exp(values - top[:, None]).sum(axis=1)))


def _influence(logits: NDArray[Any], labels: NDArray[np.int64]) -> Floats:
    """Per row twice the symmetric kernel's projection, float64 [N]; its mean is 2 AUGRC.

    AUGRC = mean over pairs (i, j) of wrong_j [confidence_j >= confidence_i], a tie counting half. Row k: the share of
    rows that it is at least as sure as, if it is wrong, plus the share of rows that are wrong and at least as sure.
    """
    values = np.asarray(logits, dtype=np.float64)
    values = values - values.max(axis=1, keepdims=True)
    confidence = -np.log(np.exp(values).sum(axis=1))
    wrong = (values.argmax(axis=1) != labels).astype(np.float64)
    n = len(wrong)
    levels, place, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    errors = np.bincount(place, weights=wrong, minlength=len(levels))
    below = (np.cumsum(counts) - counts / 2)[place]
    above = (errors.sum() - np.cumsum(errors) + errors / 2)[place]
    return (wrong * below + above) / n
