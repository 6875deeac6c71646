"""What a head is trained for: from its kind and the config to the loss of one batch, and the state that a loss keeps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import ConfigError
from stage1.model.head import SelectiveHead, members_of
from stage1.training.conformal import deferral_loss
from stage1.training.losses import (
    cross_entropy_sum,
    deep_gamblers_sum,
    entropy_sum,
    selectivenet_loss,
    self_adaptive_sum,
    updated_targets,
)
from stage1.training.pooling import image_logits


class Objective:
    """Losses beyond plain cross-entropy. `targets` is state: SAT's belief in each label, float32 [members, N].

    weights: per class, float32 [K]. pool: where the features are those of several views of each image, how their logits are
    pooled. Raises ConfigError where head and objective do not go together.
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

        features: [n, D], of views [n, V, D]; labels: int64 [n]; rows: int64 [n], their places among the train images; epoch counts from 0.
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
        self, index: int, member: SelectiveHead, features: Tensor, labels: Tensor, rows: Tensor, epoch: int,
        row_weights: Tensor,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        parts, options = member.parts(features), self.config.selective
        smoothing = self.config.label_smoothing
        if self.kind == "selectivenet":
            each, beside = (
                nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
                for logits in (parts.logits, parts.extra)
            )
            loss = selectivenet_loss(
                each, torch.sigmoid(parts.gate), beside, row_weights,
                coverage=options.coverage, penalty=options.penalty, mix=options.mix,
            )  # fmt: skip
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
                f"train.accumulate: {config.accumulate} with train.objective=risk; a threshold is of one batch, raise train.batch_size"
            )
    if head.kind == "deepgamblers" and not config.selective.reward < n_classes:
        raise ConfigError(
            f"train.selective.reward: {config.selective.reward:g} with {n_classes} classes; abstaining would never pay, "
            f"choose between 1 and {n_classes}"
        )
    if head.kind in ("deepgamblers", "sat") and config.label_smoothing > 0:
        raise ConfigError(
            f"train.label_smoothing: {config.label_smoothing:g} with head.kind={head.kind}; its loss has no smoothed form, set 0"
        )
