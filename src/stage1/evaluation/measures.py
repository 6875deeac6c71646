"""Statistics of rows as `bootstrap` takes them: a measure for any weights, a scale, and what each row moves it by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stage1.evaluation import influence
from stage1.evaluation.intervals import Statistic
from stage1.evaluation.probability import confusion, mcc_of_counts
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking, weighted_mean
from stage1.evaluation.rates import Share
from stage1.evaluation.t_interval import Scale


def mean_of(values: FloatArray, scale: Scale) -> Statistic:
    """The mean of `values` [N].

    >>> mean_of(np.array([0.0, 1.0]), "loss").measure(np.zeros(2), np.zeros(2), np.array([1.0, 3.0]))
    0.75
    """
    return Statistic(lambda c, r, w: weighted_mean(values, w), scale, influence=lambda: influence.of_mean(values))


def difference_of(first: FloatArray, second: FloatArray) -> Statistic:
    """The mean of `second` less that of `first`, of the same rows, [N] each."""
    return Statistic(
        lambda c, r, w: weighted_mean(second, w) - weighted_mean(first, w),
        "difference",
        influence=lambda: influence.of_mean(second) - influence.of_mean(first),
    )


def ratio_of(share: Share) -> Statistic:
    """A rate among the rows of its base; undefined where none of them was drawn."""
    hits, base = share.hits.astype(np.float64), share.base.astype(np.float64)

    def ratio(confidence: FloatArray, residuals: FloatArray, weights: FloatArray) -> float:
        there = weights * base
        return weighted_mean(hits, there) if there.any() else float("nan")

    return Statistic(ratio, "share", influence=lambda: influence.of_mean(hits, base))


def matthews(guess: NDArray[np.int64], truth: NDArray[np.int64], k: int) -> Statistic:
    """Matthews' correlation of answers with labels, int [N] each."""
    return Statistic(
        lambda c, r, w: mcc_of_counts(confusion(guess, truth, w, k)),
        "correlation",
        influence=lambda: influence.of_mcc(confusion(guess, truth, np.ones(len(truth)), k), truth, guess),
    )


def auroc_of(margin: FloatArray, truth: NDArray[np.int64]) -> Statistic:
    """AUROC of a score for two classes: right above wrong, with "negative" in the place of "wrong"."""
    by_score = Ranking(margin, (truth == 0).astype(np.float64))
    return Statistic(
        lambda c, r, w: float(STATISTICS["auroc_failure"](by_score.accept(w))),
        "share",
        influence=lambda: influence.of_ranking("auroc_failure", by_score),
    )
