"""Losses of one batch: cross-entropy, the three selective losses, entropy; class weights, and the choice between them.

Sums over rows (weighted by class) where a loss is a sum, so that batches of one step add up to the big batch;
SelectiveNet's is a ratio, and belongs to its batch. `Objective` takes the loss from the kind of head and the config,
and holds the state that some losses keep.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import ConfigError, DataError
from stage1.model.head import SelectiveHead, members_of
from stage1.training.conformal import deferral_loss
from stage1.training.view_pooling import image_logits


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
    losses: Tensor,
    gate: Tensor,
    auxiliary: Tensor,
    row_weights: Tensor | None = None,
    *,
    coverage: float,
    penalty: float = 32.0,
    mix: float = 0.5,
) -> Tensor:
    """mix (r + penalty max(0, coverage - mean g)^2) + (1 - mix) mean(auxiliary), r = mean(l g) / mean(g); a scalar.

    losses: [N] of the classifier, l. gate: [N] in (0, 1), g. auxiliary: [N] losses of the auxiliary head. row_weights:
    [N], means are weighted by them; None: all 1. Source: Geifman and El-Yaniv 2019, equations 2 to 6. The authors' code
    leaves out the division by mean(g): its r is smaller the less is answered, so it rewards answering less. Where every
    g underflows to 0, r is the mean loss, its value for equal gates of any size.
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

    logits: [N, K + 1], the last column is abstention; labels: int64 [N] in 0..K-1. reward > 1: the pay-off of a right
    answer where abstaining pays 1. Source: Liu et al. 2019 (Deep Gamblers), equation 6.
    """
    log_p = functional.log_softmax(logits, dim=1)
    right = log_p.gather(1, labels[:, None])[:, 0]
    return -(row_weights * torch.logaddexp(right, log_p[:, -1] - math.log(reward))).sum()


def self_adaptive_sum(logits: Tensor, labels: Tensor, targets: Tensor, row_weights: Tensor) -> Tensor:
    """Sum over the batch of -w_i (t_i log p_y + (1 - t_i) log p_abstain); a scalar.

    logits: [N, K + 1], the last column is abstention; targets: [N] in [0, 1], t_i = the belief that row i has
    its label (`updated_targets`). Source: Huang et al. 2020 (Self-Adaptive Training), section 4.
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


class Objective:
    """Losses beyond plain cross-entropy. `targets` is state: SAT's belief in each label, float32 [members, N].

    weights: per class, float32 [K]. pool: where the features are those of several views of each image, how their logits
    are pooled. Raises ConfigError where head and objective do not go together.
    """

    def __init__(self, config: TrainConfig, head: HeadConfig, weights: Tensor, n: int, pool: str | None = None) -> None:
        _check(config, head, len(weights))
        self.config, self.kind, self.weights = config, head.kind, weights
        self.pool = pool
        self.selective = head.selective
        late = head.kind in ("deepgamblers", "sat")
        self.start_epoch = min(round(config.selective.warmup * config.epochs), config.epochs - 1) if late else 0
        self.targets = torch.ones(head.members, n) if head.kind == "sat" else None

    @property
    def plain(self) -> bool:
        """True where the loss is cross-entropy and nothing else."""
        return not self.selective and self.config.objective == "ce" and self.config.entropy == 0.0

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for this objective."""
        return {} if self.targets is None else {"targets": self.targets}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if self.targets is not None:
            self.targets = state["targets"].clone()

    def loss_sum(self, head: nn.Module, features: Tensor, labels: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Loss of one batch times the summed class weight of its rows, mean over the members of an ensemble; a scalar.

        features: [n, D], of views [n, V, D]; labels: int64 [n]; rows: int64 [n], their places among the train images;
        epoch counts from 0.
        """
        members = members_of(head)
        # Each member gets the gradient that it would get alone: the sum, not the mean, is what is differentiated.
        losses = [self._member(index, member, features, labels, rows, epoch) for index, member in enumerate(members)]
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def _member(
        self, index: int, member: nn.Module, features: Tensor, labels: Tensor, rows: Tensor, epoch: int
    ) -> Tensor:
        row_weights = self.weights[labels]
        if isinstance(member, SelectiveHead):
            logits, loss = self._selective(index, member, features, labels, rows, epoch, row_weights)
        else:
            logits = image_logits(member, features, self.pool)
            loss = cross_entropy_sum(logits, labels, self.weights, self.config.label_smoothing)
            if self.config.objective == "risk":
                deferral = deferral_loss(logits[:, 1] - logits[:, 0], labels, self.config.risk)
                loss = row_weights.sum() * deferral + self.config.risk.anchor * loss
        if self.config.entropy > 0:
            loss = loss + self.config.entropy * entropy_sum(logits, row_weights)
        return loss

    def _selective(
        self,
        index: int,
        member: SelectiveHead,
        features: Tensor,
        labels: Tensor,
        rows: Tensor,
        epoch: int,
        row_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:
        parts, options = member.parts(features), self.config.selective
        smoothing = self.config.label_smoothing
        if self.kind == "selectivenet":
            each, beside = (
                nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
                for logits in (parts.logits, parts.extra)
            )
            loss = selectivenet_loss(
                each,
                torch.sigmoid(parts.gate),
                beside,
                row_weights,
                coverage=options.coverage,
                penalty=options.penalty,
                mix=options.mix,
            )
            return parts.logits, row_weights.sum() * loss
        if epoch < self.start_epoch:
            return parts.logits, cross_entropy_sum(parts.logits, labels, self.weights, smoothing)
        every = torch.cat([parts.logits, parts.extra], dim=1)
        if self.targets is None:
            return parts.logits, deep_gamblers_sum(every, labels, row_weights, options.reward)
        targets = updated_targets(self.targets[index, rows], every, labels, options.momentum)
        self.targets[index, rows] = targets
        return parts.logits, self_adaptive_sum(every, labels, targets, row_weights)


def _check(config: TrainConfig, head: HeadConfig, n_classes: int) -> None:
    if config.objective == "risk":
        if head.selective:
            raise ConfigError(f"train.objective: risk with head.kind={head.kind}; risk is for linear and mlp")
        if n_classes != 2:
            raise ConfigError(f"train.objective: risk with {n_classes} classes; it is for two")
        if config.accumulate > 1:
            raise ConfigError(
                f"train.accumulate: {config.accumulate} with train.objective=risk; a threshold is of one batch, raise"
                " train.batch_size"
            )
    if head.kind == "deepgamblers" and not config.selective.reward < n_classes:
        raise ConfigError(
            f"train.selective.reward: {config.selective.reward:g} with {n_classes} classes; abstaining would never pay,"
            f" choose between 1 and {n_classes}"
        )
    if head.kind in ("deepgamblers", "sat") and config.label_smoothing > 0:
        raise ConfigError(
            f"train.label_smoothing: {config.label_smoothing:g} with head.kind={head.kind}; its loss has no smoothed"
            " form, set 0"
        )
