"""What one more row of weight does to a statistic: its derivative with respect to the weight of each row, at weight 1.

With many units a bootstrap is this and nothing else (stage1.evaluation.linear). The sums are those of
stage1.evaluation.ranking: W_j and E_j, weight and residual weight accepted down to block j; N and F, those of all rows.
For a row of residual r in block b:

    A = sum of (W_j - W_{j-1}) (E_j + E_{j-1}) / 2    dA = (E_b + E_{b-1}) / 2 + r (N - (W_b + W_{b-1}) / 2)
    S = sum of (W_j - W_{j-1}) (s_j + s_{j-1}) / 2    dS = (s_b + s_{b-1}) / 2 + sum over j >= b of k_j (r - s_j) / W_j
        (s_j = E_j / W_j, s_0 = s_1; k_j: the factor of s_j in S)

AUGRC = A / N^2, AURC = S / N; the rest follows by the chain rule. Each costs O(N).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stage1.evaluation.ranking import Accepted, FloatArray, Ranking


def of_mean(values: FloatArray, base: FloatArray | None = None) -> FloatArray:
    """Of the mean of `values` [N] over the rows of `base` (0/1, [N]; None: all), float [N].

    >>> of_mean(np.array([1.0, 0.0, 0.0, 1.0])).tolist()
    [0.125, -0.125, -0.125, 0.125]
    """
    if base is None:
        return np.asarray((values - values.mean()) / len(values))
    total = base.sum()
    return np.asarray(base * (values - (base * values).sum() / total) / total)


def of_mcc(counts: FloatArray, labels: NDArray[np.int64], guess: NDArray[np.int64]) -> FloatArray:
    """Of Matthews' correlation (Gorodkin 2004), float [N]; counts: [K, K] by (label, guess), of these rows."""
    n = counts.sum()
    shares = counts / n
    truth, answer = shares.sum(axis=1), shares.sum(axis=0)
    same, left, right = truth @ answer, truth @ truth, answer @ answer
    root = np.sqrt((1 - left) * (1 - right))
    value = (np.trace(shares) - same) / root
    rise = np.eye(len(shares)) - answer[:, None] - truth[None, :] - np.trace(shares) + 2 * same
    spread = ((truth - left) / (1 - left))[:, None] + ((answer - right) / (1 - right))[None, :]
    return np.asarray((rise / root + value * spread)[labels, guess] / n)


def of_ranking(statistic: str, ranking: Ranking) -> FloatArray | None:
    """Of a statistic of `ranking.STATISTICS`, float [N] in the order of the input; None: it has none here."""
    found = _OF_RANKING.get(statistic)
    return None if found is None else found(_Sums(ranking))


class _Sums:
    """The sums of a ranking at weight 1, and where each row stands among them."""

    def __init__(self, ranking: Ranking) -> None:
        self.ranking = ranking
        self.accepted: Accepted = ranking.accept(np.ones(len(ranking), dtype=np.uint8))
        self.weight, self.errors = (x.astype(np.float64) for x in (self.accepted.weight, self.accepted.errors))
        self.rows, self.wrong = float(self.weight[-1]), float(self.errors[-1])
        self.rate = self.wrong / self.rows
        self.block, self.residuals = ranking.block_of_row, ranking.residual_of_row

    @property
    def d_rate(self) -> FloatArray:
        return np.asarray((self.residuals - self.rate) / self.rows)

    def per_row(self, of_block: FloatArray, times_residual: FloatArray) -> FloatArray:
        """of_block + residual x times_residual of each row's block."""
        return np.asarray(of_block[self.block] + self.residuals * times_residual[self.block])


def _middles(sums: FloatArray) -> FloatArray:
    """(x_j + x_{j-1}) / 2, x_0 = 0."""
    return np.asarray((sums + np.append(0.0, sums[:-1])) / 2)


def _augrc(at: _Sums) -> FloatArray:
    area = at.per_row(_middles(at.errors), at.rows - _middles(at.weight))
    return np.asarray(area / at.rows**2 - 2.0 * float(at.accepted.augrc) / at.rows)


def _aurc(at: _Sums) -> FloatArray:
    risk = at.errors / at.weight
    width = np.diff(at.weight, prepend=0.0)
    factor = (width + np.append(width[1:], 0.0)) / 2
    factor[0] += width[0] / 2  # before the first block the risk stays flat
    each = factor / at.weight
    below = np.cumsum(each[::-1])[::-1]
    lost = np.cumsum((each * risk)[::-1])[::-1]
    middle = (risk + np.append(risk[0], risk[:-1])) / 2
    return np.asarray((at.per_row(middle - lost, below) - float(at.accepted.aurc)) / at.rows)


def _e_aurc(at: _Sums) -> FloatArray:
    if at.accepted.ideal is not None:
        return _aurc(at) - _aurc(_Sums(at.ranking.ideal))
    return np.asarray(_aurc(at) + np.log1p(-at.rate) * at.d_rate)


def _e_augrc(at: _Sums) -> FloatArray:
    if at.accepted.ideal is not None:
        return _augrc(at) - _augrc(_Sums(at.ranking.ideal))
    return np.asarray(_augrc(at) - at.rate * at.d_rate)


def _auroc_failure(at: _Sums) -> FloatArray:
    right = at.weight - at.errors
    passed = at.wrong - _middles(at.errors)  # wrong ones behind a right one
    before = at.per_row(passed, _middles(right) - passed)
    pairs = at.wrong * (at.rows - at.wrong)
    value = float((_middles(right) * np.diff(at.errors, prepend=0.0)).sum() / pairs)
    d_pairs = np.where(at.residuals > 0, at.rows - at.wrong, at.wrong)
    return np.asarray((before - value * d_pairs) / pairs)


_OF_RANKING: dict[str, Callable[[_Sums], FloatArray]] = {
    "aurc": _aurc,
    "augrc": _augrc,
    "e_aurc": _e_aurc,
    "e_augrc": _e_augrc,
    "auroc_failure": _auroc_failure,
    "accuracy": lambda at: -at.d_rate,
}
