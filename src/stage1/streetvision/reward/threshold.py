"""The decision threshold with the largest expected reward, without the luck of the given rows.

Empirical TPR and FPR jump at every row, and the best of many noisy numbers is a lucky one. So each row is weighted by
its calibrated probability instead of its label (a Platt map of the margin, two numbers fitted on val_select):
P(class 1 | s) rows of class 1 and P(class 0 | s) of class 0 lie at margin s. Of all thresholds whose expected reward is
within 0.0005 of the best, the one closest to the default is taken: it moves only as far as it pays.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.calibration import fit_map
from stage1.errors import DataError
from stage1.evaluation.ranking import FloatArray
from stage1.scores import Scores
from stage1.streetvision.reward.expected import expected_reward
from stage1.streetvision.reward.levels import DEFAULT, beyond_thresholds, checked_rows

_CANDIDATES, _PAYS = 401, 5e-4


def reward_threshold(
    probability: ArrayLike,
    labels: ArrayLike,
    levels: ArrayLike | None = None,
    prior: float = 0.5,
    exits: ArrayLike | None = None,
) -> tuple[float, float]:
    """The threshold on `probability` of the largest expected mixture reward, and that reward by the class model.

    Arguments as for LevelRates, of val_select: rows that are not used to check it. See the module for how noise is kept
    out. The default where no threshold moves anything, as every row exits. Raises DataError as there, and where there
    are fewer than two distinct probabilities.
    """
    reported, truth, names = checked_rows(probability, labels, levels)
    margin = _logit(reported)
    if len(np.unique(margin)) < 2:
        raise DataError("probabilities: all alike; there is no threshold to choose")
    first = _class_one(margin, truth)
    score = beyond_thresholds(margin, exits)
    # Between all rows, and more densely between those that a threshold moves.
    cuts = np.union1d(_candidates(margin), _candidates(score[np.isfinite(score)]))
    rates = [_modelled(score, np.where(label, first, 1.0 - first), names, cuts) for label in (True, False)]
    rewards = expected_reward(rates[0], rates[1], prior)
    good = np.flatnonzero(rewards >= rewards.max() - _PAYS)
    best = int(good[np.argmin(np.abs(cuts[good] - _logit(np.array([DEFAULT]))[0]))])
    return float(1.0 / (1.0 + np.exp(-cuts[best]))), float(rewards[best])


def _class_one(margin: FloatArray, labels: NDArray[np.int64]) -> FloatArray:
    """P(class 1) of each row by the Platt map fitted on all of them."""
    scores = Scores(logits=np.stack([np.zeros_like(margin), margin], axis=1), labels=labels)
    return np.asarray(fit_map("platt", scores).apply(scores.logits)[:, 1])


def _candidates(margin: FloatArray) -> FloatArray:
    """The default, and thresholds half-way between neighbouring quantiles of the margin: rising, as log-odds."""
    if not len(margin):
        return np.zeros(1)
    levels = np.unique(np.quantile(margin, np.linspace(0, 1, _CANDIDATES)))
    return np.unique(np.append((levels[1:] + levels[:-1]) / 2, 0.0))


def _modelled(score: FloatArray, weights: FloatArray, levels: NDArray[np.str_], cuts: FloatArray) -> FloatArray:
    """Mean over the levels of the weighted share of rows above each cut, float [cuts]."""
    shares = []
    for level in np.unique(levels):
        rows = levels == level
        order = np.argsort(score[rows], kind="stable")
        beyond = np.append(np.cumsum(weights[rows][order][::-1])[::-1], 0.0)
        shares.append(beyond[np.searchsorted(score[rows][order], cuts, side="right")] / beyond[0])
    return np.asarray(np.mean(shares, axis=0))


def _logit(probability: FloatArray) -> FloatArray:
    # 1.0 and 0.0 are what a confident float32 softmax prints; their order is all that counts here.
    inside = np.clip(probability, np.finfo(np.float64).tiny, 1.0 - np.finfo(np.float64).epsneg)
    return np.asarray(np.log(inside) - np.log1p(-inside))
