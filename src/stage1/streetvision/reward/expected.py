"""The expected reward of TPR and FPR, exactly and without a simulation.

Answers are independent given TPR and FPR, so the counts of a window are binomial, and given the counts the last 10 of
the 100 are a random 10: the number of right ones is hypergeometric. Summed over all 176,851 tables of counts that is
one number per (TPR, FPR, prior), to rounding.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import DataError
from stage1.evaluation.ranking import FloatArray
from stage1.streetvision.reward.rule import RECENT, WINDOW


def expected_reward(tpr: ArrayLike, fpr: ArrayLike, prior: float = 0.5, answers: int = WINDOW) -> FloatArray:
    """E[r] of an answerer that says 1 with probability `tpr` on class 1 and `fpr` on class 0; exact.

    tpr, fpr: in [0, 1], broadcast together; the result has their shape. prior: P(class 1). answers: how many were
    given, from 1; from 100 on nothing changes, and the expectation of the moving average is this number.
    Raises DataError naming what is outside its range.

    >>> round(float(expected_reward(0.98, 0.02)), 3)
    0.915
    """
    rates = [np.asarray(values, dtype=np.float64) for values in (tpr, fpr)]
    for name, values in (("tpr", rates[0]), ("fpr", rates[1]), ("prior", np.asarray(prior))):
        if not ((values >= 0) & (values <= 1)).all():
            raise DataError(
                f"{name}: {np.ravel(values)[np.ravel(~((values >= 0) & (values <= 1)))][0]}; a rate in [0, 1]"
            )
    if answers < 1:
        raise DataError(f"answers: {answers}; the reward is defined from the first answer on")
    first, second = np.broadcast_arrays(*rates)
    n = min(answers, WINDOW)
    right, wrong = _powers(first.ravel(), n), _powers(1.0 - first.ravel(), n)
    false, true = _powers(second.ravel(), n), _powers(1.0 - second.ravel(), n)
    found = np.zeros(first.size)
    for positives, (values, ways) in enumerate(_tables(n)):
        negatives = n - positives
        hits = right[:, : positives + 1] * wrong[:, positives::-1]
        alarms = false[:, : negatives + 1] * true[:, negatives::-1]
        share = ways * prior**positives * (1.0 - prior) ** negatives
        found += share * ((hits @ values) * alarms).sum(axis=1)
    return np.asarray(found.reshape(first.shape))


def _powers(base: FloatArray, n: int) -> FloatArray:
    return base[:, None] ** np.arange(n + 1)


@lru_cache(maxsize=4)
def _tables(n: int) -> tuple[tuple[FloatArray, float], ...]:
    """For each number of positives among n answers: E[r | tp, fp] x ways to get it, [tp, fp]; and C(n, positives)."""
    moments = _recent_moments(n)
    tables = []
    for positives in range(n + 1):
        negatives = n - positives
        tp, fp = np.arange(positives + 1)[:, None], np.arange(negatives + 1)[None, :]
        mcc = np.maximum(mcc_of_table(tp, fp, positives, negatives), 0.0)
        one, two, three = (moment[tp + negatives - fp] for moment in moments)
        # The cube of a sum, with the moments of the recent accuracy for its powers.
        value = (mcc**3 + 3 * mcc**2 * one + 3 * mcc * two + three) / 8
        ways = np.outer(
            [float(comb(positives, k)) for k in range(positives + 1)],
            [float(comb(negatives, k)) for k in range(negatives + 1)],
        )
        tables.append((value * ways, float(comb(n, positives))))
    return tuple(tables)


def _recent_moments(n: int) -> list[FloatArray]:
    """E[a], E[a^2], E[a^3] of the accuracy among the last answers, given 0..n right ones among all n: [n + 1] each."""
    size = min(n, RECENT)
    right = np.arange(size + 1)
    mass = np.array(
        [[comb(total, k) * comb(n - total, size - k) / comb(n, size) for k in right] for total in range(n + 1)]
    )
    return [np.asarray(mass @ (right / size) ** power) for power in (1, 2, 3)]


def mcc_of_table(tp: ArrayLike, fp: ArrayLike, positives: ArrayLike, negatives: ArrayLike) -> FloatArray:
    """MCC of two-class counts (or shares), broadcast; 0 where labels or answers are all of one class.

    >>> float(mcc_of_table(9, 1, 10, 10))
    0.8
    """
    true_positive, false_positive, ones, zeros = (
        np.asarray(values, dtype=np.float64) for values in (tp, fp, positives, negatives)
    )
    said = true_positive + false_positive
    spread = said * (ones + zeros - said) * ones * zeros
    cross = true_positive * zeros - false_positive * ones
    return np.asarray(np.where(spread > 0, cross / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0))
