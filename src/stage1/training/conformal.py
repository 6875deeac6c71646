"""Conformal risk training: deferral as a loss that can be differentiated through the thresholds themselves.

One half of a batch plays calibration: lo is the order statistic of the positives' scores that holds the miss rate, hi
that of the negatives' that holds the false-exit rate, by conformal risk control. The other half plays use: it pays for
every image between the two. A threshold is some image's score, so its gradient is that score's gradient.

This chooses weights, it certifies nothing: the certificate comes from images that training never saw.
Source: Yeh, Christianson, Wierman and Yue 2025 (2510.08748), here with two thresholds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from stage1.config import RiskTrainingConfig
from stage1.errors import DataError

_ROUNDING = 1e-12  # alpha (n + 1) is often a whole number in exact arithmetic and a hair below in binary


def allowed_rank(n: int, alpha: float) -> int:
    """k = floor(alpha (n + 1)): the k-th most extreme of n scores has expected risk <= alpha; 0: none has.

    Conformal risk control for 0/1 loss: k - 1 of n lie beyond it, and (k - 1 + 1) / (n + 1) <= alpha.
    """
    return math.floor(alpha * (n + 1) + _ROUNDING)


def order_statistic(scores: Tensor, rank: int, window: float = 0.0) -> Tensor:
    """Mean of the order statistics rank - w .. rank + w of scores [n], w = floor(window n), if they exist; a scalar.

    rank: 1 = the smallest .. n. Differentiable: the gradient goes to the scores at these ranks. Raises DataError for a
    rank outside 1..n.
    """
    n = len(scores)
    if not 1 <= rank <= n:
        raise DataError(f"order statistic: rank {rank} of {n} scores")
    reach = math.floor(window * n + _ROUNDING)
    return torch.sort(scores).values[max(rank - 1 - reach, 0) : rank + reach].mean()


def lower_threshold(positives: Tensor, alpha: float, window: float = 0.0) -> Tensor:
    """lo: scores below it exit as negative, at a miss rate <= alpha in expectation; a scalar. positives: scores [n1].

    Raises DataError where n1 is too small (1 / alpha - 1 are needed).
    """
    return order_statistic(positives, _feasible(len(positives), alpha, "positives", "miss_rate"), window)


def upper_threshold(negatives: Tensor, alpha: float, window: float = 0.0) -> Tensor:
    """hi: scores above exit as positive, expected false-exit rate <= alpha; a scalar. negatives: scores [n0]."""
    rank = _feasible(len(negatives), alpha, "negatives", "false_exit_rate")
    return order_statistic(negatives, len(negatives) + 1 - rank, window)


def soft_exceedance(scores: Tensor, threshold: Tensor, temperature: float | Tensor) -> Tensor:
    """Mean of sigmoid((s - threshold) / temperature) over scores [N]; a scalar."""
    return torch.sigmoid((scores - threshold) / temperature).mean()


def soft_deferral(scores: Tensor, lo: Tensor, hi: Tensor, temperature: float | Tensor) -> Tensor:
    """Mean of sigmoid((s - lo) / T) sigmoid((hi - s) / T) over scores [N]: a soft share between lo and hi; a scalar.

    temperature T: in the scores' units, > 0. Small where lo > hi: then no score is between.
    """
    return (torch.sigmoid((scores - lo) / temperature) * torch.sigmoid((hi - scores) / temperature)).mean()


def halves(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the calibrating half and of the other: of each class the first ceil(n / 2) rows and the rest, int64 each.

    labels: int64 [N] of two classes, in random order. Per class, so that whether a level can be held is no matter of
    chance.
    """
    first, second = [], []
    for label in (0, 1):
        rows = torch.nonzero(labels == label)[:, 0]
        cut = (len(rows) + 1) // 2
        first.append(rows[:cut])
        second.append(rows[cut:])
    return torch.cat(first), torch.cat(second)


def deferral_loss(scores: Tensor, labels: Tensor, config: RiskTrainingConfig) -> Tensor:
    """Soft deferral of one half of a batch under the thresholds of the other half; a scalar.

    scores: margins [N] (logit 1 - logit 0) in random order; labels: int64 [N]. The temperature is config.temperature
    times the standard deviation of all scores: a loss on fixed units is won by shrinking the scores. Where all scores
    are equal (constant features) the loss is that of no spread, 1/4, and without a gradient.
    Raises DataError where the calibrating half has too few images of a class for its level, or the other none at all.
    """
    calibrating, paying = halves(labels)
    if len(paying) == 0:
        raise DataError(f"train.batch_size: a batch of {len(labels)} cannot be split in two halves; raise it")
    first, is_positive = scores[calibrating], labels[calibrating] == 1
    lo = lower_threshold(first[is_positive], config.miss_rate, config.window)
    hi = upper_threshold(first[~is_positive], config.false_exit_rate, config.window)
    spread = scores.std(unbiased=False).clamp_min(torch.finfo(scores.dtype).tiny)  # 0 / 0 is not a number
    return soft_deferral(scores[paying], lo, hi, config.temperature * spread)


def _feasible(n: int, alpha: float, which: str, level: str) -> int:
    rank = allowed_rank(n, alpha)
    if rank < 1:
        needed = math.ceil(1.0 / alpha - 1.0 - 1e-9)
        raise DataError(
            f"train.risk.{level}: {n} {which} in the calibrating half of a batch cannot hold {alpha:g} ({needed}"
            " needed); raise train.batch_size or the level, or add images"
        )
    return rank
