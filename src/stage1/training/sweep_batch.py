"""Many heads as one batched computation: stacked parameters, one pass over the images for all of them.

Configurations of one seed see the same batches, so a batch is read once for all of them and their logits are one matrix
product; widths below the largest are padded with zero units, which stay zero. Order of the images, first weights,
dropout masks, schedule, clipping, averaging and the choice of the epoch are those of `Run`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import ConfigError, Stage1Error
from stage1.model.head import Head, build_head, feature_statistics
from stage1.training.losses import class_weights
from stage1.training.optim import decay_at, epoch_order, learning_rate, steps_per_epoch, sub_seed, warmup_steps
from stage1.training.selection import LabelledFeatures, select_metrics

_ROWS = 4096


@dataclass(frozen=True, slots=True)
class Candidate:
    """One configuration: config of its run and head, and its seed; what `train_head` needs for it alone."""

    train: TrainConfig
    head: HeadConfig
    seed: int


class SweepBatch:
    """Stacked parameters [S seeds, C configurations, ...], their optimizer, averages, early stopping."""

    def __init__(
        self, train: LabelledFeatures, select: LabelledFeatures, candidates: Sequence[Candidate], n_classes: int
    ) -> None:
        self.train, self.select, self.candidates = train, select, list(candidates)
        self.config = candidates[0].train
        self.seeds = list(dict.fromkeys(item.seed for item in candidates))
        self.shape = (len(self.seeds), len(candidates) // len(self.seeds))
        ordered = [item.seed for item in candidates]
        if ordered != [seed for seed in self.seeds for _ in range(self.shape[1])]:
            raise ConfigError("sweep: candidates must come seed by seed, the same number for each")
        self.n_classes = n_classes
        self.weights = class_weights(train.labels, n_classes, self.config.class_weights)
        heads = self._heads()
        self.mean, self.scale = heads[0].mean, heads[0].scale
        self.parameters = [stacked.requires_grad_(True) for stacked in self._stacked(heads)]
        self.average = [p.detach().clone() for p in self.parameters] if self.config.ema_decay > 0 else None
        self.best = [p.detach().clone() for p in self.parameters]
        self.smoothing = torch.tensor([item.train.label_smoothing for item in candidates]).reshape(self.shape)
        self.runs = [self._runs(decays=stack.ndim > 3) for stack in self.parameters]
        # What the optimizer moves: neighbours in the stacks with one rate and decay, in the stacks' own memory.
        self.slices = [
            [stack.detach().flatten(0, 1)[run.start : run.stop] for run in runs]
            for stack, runs in zip(self.parameters, self.runs, strict=True)
        ]
        self.optimizer = self._adamw()
        n = len(candidates)
        self.keys: list[tuple[float, float] | None] = [None] * n
        self.best_epoch, self.used_ema = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.bool_)
        self.done, self.epochs_run = np.zeros(n, dtype=np.bool_), np.zeros(n, dtype=np.int64)
        self.steps = steps_per_epoch(len(train.labels), self.config.batch_size, 1)
        self.total = self.steps * self.config.epochs
        self.warmup = warmup_steps(self.total, self.config.warmup)
        self.buffer = torch.empty(
            self.shape[0], min(self.config.batch_size, len(train.labels)), train.features.shape[1], dtype=torch.float32
        )

    def _heads(self) -> list[Head]:
        frequencies = np.bincount(self.train.labels, minlength=self.n_classes) * self.weights.numpy().astype(np.float64)
        statistics = feature_statistics(self.train.features)
        heads: list[Head] = []
        for item in self.candidates:
            head = build_head(item.head, self.train.features.shape[1], self.n_classes, sub_seed(item.seed, "head"))
            assert isinstance(head, Head)
            head.standardise(*statistics)
            head.start_at(frequencies)
            heads.append(head)
        return heads

    def _stacked(self, heads: Sequence[Head]) -> list[Tensor]:
        """Weights and biases of each layer in turn, [S, C, ...] each; narrow heads padded with zeros."""
        each = [[parameter.detach() for parameter in head.parameters()] for head in heads]
        stacks = []
        for values in zip(*each, strict=True):
            sizes = [max(value.shape[axis] for value in values) for axis in range(values[0].ndim)]
            stack = torch.zeros(len(values), *sizes)
            for place, value in zip(stack, values, strict=True):
                place[tuple(slice(size) for size in value.shape)] = value
            stacks.append(stack.reshape(*self.shape, *sizes))
        return stacks

    def _runs(self, *, decays: bool) -> list[range]:
        """Neighbouring candidates of one seed at most that share learning rate and, where it counts, weight decay.

        A call of the optimizer costs more than the arithmetic on one small head: fewer, longer pieces.
        """
        keys = [self._key(item, decays) for item in self.candidates]
        width, starts = self.shape[1], [0]
        for place in range(1, len(keys)):
            if place % width == 0 or keys[place] != keys[place - 1]:
                starts.append(place)
        return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(keys)], strict=True)]

    @staticmethod
    def _key(item: Candidate, decays: bool) -> tuple[float, float]:
        """Learning rate and weight decay, as `Run` has them: decay on matrices only."""
        return item.train.learning_rate, item.train.weight_decay if decays else 0.0

    def _adamw(self) -> torch.optim.AdamW:
        groups: dict[tuple[float, float], list[Tensor]] = {}
        for stack, runs, pieces in zip(self.parameters, self.runs, self.slices, strict=True):
            for run, piece in zip(runs, pieces, strict=True):
                groups.setdefault(self._key(self.candidates[run.start], stack.ndim > 3), []).append(piece)
        return torch.optim.AdamW(
            [{"params": own, "weight_decay": decay, "lr": rate, "base": rate} for (rate, decay), own in groups.items()],
            fused=True,
        )

    # ---- forward --------------------------------------------------------------------------------------------------

    def _logits(self, parameters: Sequence[Tensor], features: Tensor, masks: Tensor | None) -> Tensor:
        """features: standardised [S or 1, B, D]. Returns [S, C, K, B]: images last, for contiguous gradients."""
        seeds, count = self.shape
        weight, bias = parameters[0], parameters[1]
        made = weight.reshape(seeds, -1, weight.shape[-1]) @ features.transpose(1, 2)
        made = made.unflatten(1, (count, -1)) + bias[..., None]
        if len(parameters) == 2:
            return made
        hidden = functional.gelu(made)
        if masks is not None:
            hidden = hidden * masks
        return parameters[2] @ hidden + parameters[3][..., None]

    def _masks(self, rows: int, epoch: int, step: int) -> Tensor | None:
        """Dropout masks [S, C, H, B], zeros and 1 / (1 - p): the ones that each head alone would draw at this step."""
        first = self.candidates[0].head
        if len(self.parameters) == 2 or first.dropout == 0.0:
            return None
        masks = torch.ones(*self.shape, self.parameters[0].shape[2], rows)
        for place, seed in enumerate(self.seeds):
            drawn: dict[int, Tensor] = {}
            for column in range(self.shape[1]):
                width = self.candidates[place * self.shape[1] + column].head.hidden
                if width not in drawn:
                    torch.default_generator.manual_seed(sub_seed(seed, "dropout", epoch, step, 0))
                    drawn[width] = functional.dropout(torch.ones(rows, width), first.dropout).T
                masks[place, column, :width] = drawn[width]
        return masks

    # ---- one epoch ------------------------------------------------------------------------------------------------

    def train_epoch(self, epoch: int) -> None:
        orders = np.stack([epoch_order(len(self.train.labels), seed, epoch) for seed in self.seeds])
        for step in range(self.steps):
            start = step * self.config.batch_size
            self._step(orders[:, start : start + self.config.batch_size], epoch, step)

    def _step(self, rows: NDArray[np.int64], epoch: int, step: int) -> None:
        labels = torch.from_numpy(self.train.labels[rows])  # [S, B]
        batch = self.buffer[:, : rows.shape[1]]
        for place, own in enumerate(rows):
            np.take(self.train.features, own, axis=0, out=batch[place].numpy(), mode="clip")
        features = (batch - self.mean) / self.scale
        logits = self._logits(self.parameters, features, self._masks(rows.shape[1], epoch, step))
        losses = self._losses(logits, labels)
        gradients = list(torch.autograd.grad(losses.sum(), self.parameters))
        with torch.no_grad():
            each = [torch.linalg.vector_norm(gradient.flatten(2), dim=2) for gradient in gradients]
            norms = torch.linalg.vector_norm(torch.stack(each), dim=0)
            if not bool((torch.isfinite(norms) & torch.isfinite(losses)).all()):
                self._diverged(losses, norms, epoch * self.steps + step)
            self._update(gradients, norms, epoch * self.steps + step)

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of each candidate, [S, C]: as cross_entropy_sum, divided by the summed class weight."""
        log_p = functional.log_softmax(logits, dim=2)
        row_weights = self.weights[labels]  # [S, B]
        right = log_p.gather(2, labels[:, None, None].expand(-1, self.shape[1], 1, -1))[:, :, 0]
        loss = -(1.0 - self.smoothing) * (row_weights[:, None] * right).sum(dim=2)
        if bool((self.smoothing > 0).any()):
            loss = loss - self.smoothing / self.n_classes * (log_p * self.weights[:, None]).sum(dim=(2, 3))
        return loss / row_weights.sum(dim=1, keepdim=True)

    def _update(self, gradients: list[Tensor], norms: Tensor, step: int) -> None:
        """Clipped, then AdamW with a rate and a decay of its own for each candidate, then the average."""
        share = learning_rate(step, total=self.total, warmup=self.warmup, base=1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * share
        if self.config.clip_norm is not None:
            clip = torch.clamp(self.config.clip_norm / (norms + 1e-6), max=1.0)
            for gradient in gradients if bool((clip < 1.0).any()) else []:
                gradient.mul_(clip.reshape(*clip.shape, *[1] * (gradient.ndim - 2)))
        for runs, pieces, gradient in zip(self.runs, self.slices, gradients, strict=True):
            flat = gradient.flatten(0, 1)
            for run, piece in zip(runs, pieces, strict=True):
                piece.grad = flat[run.start : run.stop]
        self.optimizer.step()
        if self.average is not None:
            weight = 1.0 - decay_at(step, self.config.ema_decay)
            for average, parameter in zip(self.average, self.parameters, strict=True):
                average.lerp_(parameter, weight)

    # ---- choosing the epoch ---------------------------------------------------------------------------------------

    @torch.no_grad()
    def _logits_of(self, parameters: Sequence[Tensor], features: NDArray[np.float32]) -> NDArray[np.float32]:
        """[S C, M, K] on features [M, D]."""
        pieces = []
        for start in range(0, len(features), _ROWS):
            batch = torch.tensor(np.asarray(features[start : start + _ROWS]))
            pieces.append(self._logits(parameters, ((batch - self.mean) / self.scale)[None], None).flatten(0, 1))
        return np.ascontiguousarray(torch.cat(pieces, dim=2).transpose(1, 2).numpy())

    def validate(self, epoch: int) -> None:
        """Best weights so far of each candidate not stopped: raw first, the average if strictly better."""
        for averaged, parameters in enumerate([self.parameters, *([self.average] if self.average is not None else [])]):
            keys = _keys(self._logits_of(parameters, self.select.features), self.select.labels, self.config.select_by)
            for index in np.flatnonzero(~self.done).tolist():
                before = self.keys[index]
                if before is None or keys[index] < before:
                    self.keys[index] = keys[index]
                    self.best_epoch[index], self.used_ema[index] = epoch + 1, bool(averaged)
                    place = divmod(index, self.shape[1])
                    for kept, current in zip(self.best, parameters, strict=True):
                        kept[place] = current.detach()[place]
        self.epochs_run[~self.done] = epoch + 1
        self.done |= epoch + 1 - self.best_epoch >= self.config.patience

    def best_logits(self, features: NDArray[np.float32] | None = None) -> NDArray[np.float32]:
        """[S C, M, K] of the best weights on features [M, D]; None: those of val_select."""
        return self._logits_of(self.best, self.select.features if features is None else features)

    def _diverged(self, losses: Tensor, norms: Tensor, step: int) -> None:
        bad = torch.nonzero(~(torch.isfinite(norms) & torch.isfinite(losses)).flatten())[:, 0].tolist()
        worst = self.candidates[bad[0]].train
        raise Stage1Error(
            f"sweep: {len(bad)} of {len(self.candidates)} candidates have no finite loss at step {step + 1}, first"
            f" learning_rate {worst.learning_rate:g}, weight_decay {worst.weight_decay:g}; take it out of"
            " sweep.learning_rates or set train.clip_norm"
        )


def _keys(logits: NDArray[np.float32], labels: NDArray[np.int64], by: Any) -> list[tuple[float, float]]:
    """SelectMetrics.key of each of [H, M, K] logits; AUGRC, the slow one, only where it chooses."""
    if by == "augrc":
        return [select_metrics(values, labels).key(by) for values in logits]
    values = logits.astype(np.float64)
    values -= values.max(axis=2, keepdims=True)
    log_p = values - np.log(np.exp(values).sum(axis=2, keepdims=True))
    nll = -log_p[:, np.arange(len(labels)), labels].mean(axis=1)
    accuracy = (log_p.argmax(axis=2) == labels).mean(axis=1)
    first = -accuracy if by == "accuracy" else nll
    return list(zip(first.tolist(), nll.tolist(), strict=True))
