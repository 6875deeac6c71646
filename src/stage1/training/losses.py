"""Losses of one batch: cross-entropy, the three selective losses, entropy; and the class weights.

Sums over rows (weighted by class) where a loss is a sum, so that batches of one step add up to the big batch; SelectiveNet's
is a ratio, and belongs to its batch.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stage1.errors import DataError


def class_weights(labels: NDArray[np.int64], n_classes: int, kind: Literal["none", "balanced"]) -> Tensor:
    """Weight per class, float32 [K]: ones, or "balanced" = N / (K n_c) (the weights of all samples then sum to N).

    Raises DataError where a class has no sample: its logit could not be learned.
    """
    counts = np.bincount(labels, minlength=n_classes)
    if (counts == 0).any():
        missing = int(np.argmin(counts))
        if (counts > 0).sum() == 1:
            only = int(np.argmax(counts))
            raise DataError(f"train: all {len(labels)} images are of class {only}; add images of the other classes")
        raise DataError(f"train: class {missing} has no image; add some or take it out of data.classes")
    if kind == "none":
        return torch.ones(n_classes, dtype=torch.float32)
    return torch.tensor(len(labels) / (n_classes * counts), dtype=torch.float32)


def cross_entropy_sum(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Sum over the batch of w[y] (1 - s) (-log p_y) + (s / K) sum_c w_c (-log p_c); a scalar.

    Divided by the summed w[y] of all batches of a step it is the mean that torch's `cross_entropy(weight=...,
    label_smoothing=...)` gives for the joined batch: that makes accumulation equal to the big batch.
    """
    return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="sum")


def entropy_sum(logits: Tensor, row_weights: Tensor) -> Tensor:
    """Sum over the batch of w_i H(softmax(logits_i)), in nats; logits [N, K], row_weights [N]; a scalar.

    Added with a small weight it asks for decided answers. Source: Feng et al. 2023 (2206.09034), beta = 0.01.
    """
    log_p = functional.log_softmax(logits, dim=1)
    return -(row_weights * (log_p.exp() * log_p).sum(dim=1)).sum()


def selectivenet_loss(
    losses: Tensor, gate: Tensor, auxiliary: Tensor, row_weights: Tensor | None = None, *, coverage: float,
    penalty: float = 32.0, mix: float = 0.5,
) -> Tensor:  # fmt: skip
    """mix (r + penalty max(0, coverage - mean g)^2) + (1 - mix) mean(auxiliary), r = mean(l g) / mean(g); a scalar.

    losses: [N] of the classifier, l. gate: [N] in (0, 1), g. auxiliary: [N] losses of the auxiliary head. row_weights: [N], means are
    weighted by them; None: all 1. Source: Geifman and El-Yaniv 2019, equations 2 to 6. The authors' code leaves out the division by
    mean(g): its r is smaller the less is answered, so it rewards answering less. Where every g underflows to 0, r is the mean
    loss, its value for equal gates of any size.
    """
    weights = torch.ones_like(losses) if row_weights is None else row_weights
    total = weights.sum()
    share = (weights * gate).sum() / total
    passed = weights * gate
    whole = passed.sum()
    shares = torch.where(whole > 0, passed / whole.clamp_min(torch.finfo(whole.dtype).tiny), weights / total)
    risk = (shares * losses).sum()
    lack = torch.clamp(coverage - share, min=0.0)
    return mix * (risk + penalty * lack.square()) + (1.0 - mix) * (weights * auxiliary).sum() / total


def deep_gamblers_sum(logits: Tensor, labels: Tensor, row_weights: Tensor, reward: float) -> Tensor:
    """Sum over the batch of -w_i log(p_y + p_abstain / reward); a scalar.

    logits: [N, K + 1], the last column is abstention; labels: int64 [N] in 0..K-1. reward > 1: the pay-off of a right answer
    where abstaining pays 1. Source: Liu et al. 2019 (Deep Gamblers), equation 6.
    """
    log_p = functional.log_softmax(logits, dim=1)
    right = log_p.gather(1, labels[:, None])[:, 0]
    return -(row_weights * torch.logaddexp(right, log_p[:, -1] - math.log(reward))).sum()


def self_adaptive_sum(logits: Tensor, labels: Tensor, targets: Tensor, row_weights: Tensor) -> Tensor:
    """Sum over the batch of -w_i (t_i log p_y + (1 - t_i) log p_abstain); a scalar.

    logits: [N, K + 1], the last column is abstention; targets: [N] in [0, 1], t_i = how much row i is believed to have its label
    (`updated_targets`). Source: Huang et al. 2020 (Self-Adaptive Training), section 4.
    """
    log_p = functional.log_softmax(logits, dim=1)
    right = log_p.gather(1, labels[:, None])[:, 0]
    return -(row_weights * (targets * right + (1.0 - targets) * log_p[:, -1])).sum()


@torch.no_grad()
def updated_targets(targets: Tensor, logits: Tensor, labels: Tensor, momentum: float) -> Tensor:
    """t <- a t + (1 - a) p_y with a = momentum, p = softmax of logits [N, K + 1]; float [N].

    Of the paper's target vector, which starts one-hot, the loss reads only the entry of the label; this is that entry.
    """
    right = functional.softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    return momentum * targets + (1.0 - momentum) * right
