"""One training run: epochs of steps, validation on val_select, checkpoints, bit-equal resume.

The order of samples and every random number follow from (seed, epoch, step); the position of the run is kept
by epoch_progress.py.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.config import HeadConfig, TrainConfig
from stage1.model.head import Classifier, build_head, feature_statistics, members_of
from stage1.training.checkpoint import data_digest, flatten_optimizer, restore_optimizer, run_facts
from stage1.training.epoch_progress import EpochProgress
from stage1.training.gate_diagnosis import GateHealth
from stage1.training.losses import Objective, class_weights, cross_entropy_sum
from stage1.training.optim import THREADS, Ema, epoch_order, sub_seed
from stage1.training.selection import LabelledFeatures, all_logits
from stage1.training.view_pooling import ViewTraining, image_logits


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The trained head (eval mode, best weights) and how it came about; epochs count from 1.

    best_metric: `config.select_by` on val_select. metrics of the best: nll, accuracy, augrc on val_select, train_loss.
    """

    head: nn.Module
    best_epoch: int
    best_metric: float
    used_ema: bool
    epochs_run: int
    metrics: dict[str, float]
    gate: GateHealth | None = None
    """Of the gate on val_select, where the head has one."""


class Run:
    """One training run: modules, optimizer, and its position (`epochs`)."""

    def __init__(
        self,
        train: LabelledFeatures,
        select: LabelledFeatures,
        config: TrainConfig,
        head: HeadConfig,
        n_classes: int,
        seed: int,
        folder: Path,
        module: nn.Module | None = None,
        views: ViewTraining | None = None,
    ) -> None:
        """module: what is trained where that is no head of `build_head`; it has its statistics and first weights.

        views: features are those of views, val_select [M, V, D], train as `ViewTraining.rows` gives them.
        """
        self.train, self.select, self.config, self.seed = train, select, config, seed
        dim = train.features.shape[-1]
        self.pool = None if views is None else views.pool
        self.weights = class_weights(train.labels, n_classes, config.class_weights)
        facts = run_facts(config, head, dim=dim, n_classes=n_classes, seed=seed)
        if views is not None:
            facts["views"] = {"learn": views.learn, "pool": views.pool}
        data = data_digest(train.features, train.labels, select.features, select.labels)
        self.objective = Objective(config, head, self.weights, len(train.labels), self.pool)
        self.head: nn.Module = module if module is not None else self._new(head, dim, n_classes)
        self.members = len(members_of(self.head))
        self.ema = Ema(self.head, config.ema_decay) if config.ema_decay > 0 else None
        self.optimizer = _adamw(self.head, config)
        self.epochs = EpochProgress(
            folder,
            config,
            len(train.labels),
            facts,
            data,
            slower="set train.clip_norm",
            start_epoch=self.objective.start_epoch,
        )
        self.random = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in self.head.modules())
        # One buffer for all batches, in torch's aligned memory; rows go into it straight from a memory map too.
        self.buffer = torch.empty(
            min(config.batch_size, len(train.labels)), *train.features.shape[1:], dtype=torch.float32
        )

    def _new(self, config: HeadConfig, dim: int, n_classes: int) -> Classifier:
        head = build_head(config, dim, n_classes, sub_seed(self.seed, "head"))
        head.standardise(*feature_statistics(self.train.features.reshape(-1, dim)))
        frequencies = np.bincount(self.train.labels, minlength=n_classes) * self.weights.numpy().astype(np.float64)
        head.start_at(frequencies)
        return head

    # ---- start, resume, end ---------------------------------------------------------------------------------------

    def begin(self, fresh: bool) -> None:
        stored = self.epochs.load(fresh)
        if stored is not None:
            parts = self.epochs.restore(stored, "objective")
            self.head.load_state_dict(parts["model"], strict=True)
            restore_optimizer(self.optimizer, parts["optimizer"])
            if self.ema is not None:
                self.ema.module.load_state_dict(parts["ema"], strict=True)
            self.objective.restore(parts["objective"])
        self.epochs.claim(stored is not None)
        self.epochs.begun(stored is not None, threads=THREADS, seed=self.seed)

    def finish(
        self,
        stop: Callable[[], bool] | None = None,
        fresh: bool = False,
        progress: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> TrainResult:
        """From the folder's checkpoint to the end. Arguments as `train_head`."""
        self.begin(fresh)
        try:
            while not self.epochs.at.done:
                self.train_epoch(stop)
                row = self.finish_epoch()
                if progress is not None:
                    progress(row)
        finally:
            self.epochs.close()
        return self.result()

    def result(self) -> TrainResult:
        best = self.epochs.at.best
        assert best is not None  # an epoch either ends with a best or raises
        self.head.load_state_dict(self.epochs.best_weights, strict=True)
        metrics = {key: float(best[key]) for key in ("nll", "accuracy", "augrc", "train_loss")}
        return TrainResult(
            head=self.head.eval().requires_grad_(False),
            best_epoch=best["epoch"],
            used_ema=best["ema"],
            best_metric=metrics[self.config.select_by],
            epochs_run=self.epochs.at.epoch,
            metrics=metrics,
        )

    # ---- one epoch ------------------------------------------------------------------------------------------------

    def train_epoch(self, stop: Callable[[], bool] | None) -> None:
        """The steps of this epoch that are not done yet."""
        self.head.train()
        at = self.epochs.at
        order = epoch_order(len(self.train.labels), self.seed, at.epoch)
        span = self.config.batch_size * self.config.accumulate
        while at.step < self.epochs.steps:
            if stop is not None and stop():
                self._checkpoint()
                raise self.epochs.stopped()
            start = at.step * span
            self._step(order[start : start + span])

    def _step(self, rows: NDArray[np.int64]) -> None:
        """One optimizer step on `rows`, in batches whose gradients add up to that of the whole."""
        step, at = self.epochs.done_steps, self.epochs.at
        labels = torch.from_numpy(self.train.labels[rows])
        weight = float(self.weights[labels].sum(dtype=torch.float64))
        for group in self.optimizer.param_groups:
            group["lr"] = self.epochs.rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = 0.0
        for part, start in enumerate(range(0, len(rows), self.config.batch_size)):
            if self.random:  # dropout draws from torch's default generator; only the CPU's is touched
                torch.default_generator.manual_seed(sub_seed(self.seed, "dropout", at.epoch, at.step, part))
            batch = self._batch(rows[start : start + self.config.batch_size])
            target = labels[start : start + self.config.batch_size]
            part_rows = rows[start : start + self.config.batch_size]
            loss = self._loss(batch, target, part_rows)
            (loss / weight).backward()
            loss_sum += float(loss.detach()) / self.members
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        # Each member of an ensemble is clipped by itself: it takes the steps that it would take alone.
        norm = max(float(nn.utils.clip_grad_norm_(member.parameters(), limit)) for member in members_of(self.head))
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            raise self.epochs.diverged(f"loss {loss_sum / weight:g}, gradient norm {norm:g}")
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.head, step)
        self.epochs.count(loss_sum, weight)

    def _loss(self, batch: Tensor, target: Tensor, rows: NDArray[np.int64]) -> Tensor:
        if self.objective.plain and self.members == 1:
            logits = image_logits(self.head, batch, self.pool)
            return cross_entropy_sum(logits, target, self.weights, self.config.label_smoothing)
        return self.objective.loss_sum(self.head, batch, target, torch.from_numpy(rows), self.epochs.at.epoch)

    def finish_epoch(self) -> dict[str, Any]:
        """Validate raw and EMA weights, keep the best so far, write files. Returns the epoch's row of metrics.csv."""
        heads = [self.head] if self.ema is None else [self.head, self.ema.module]
        found = self.epochs.judged(all_logits(heads, self.select.features, self.pool), self.select.labels)
        row = self.epochs.end_epoch(found, lambda place: copy.deepcopy(heads[place].state_dict()))
        if self.epochs.checkpoint_due:
            self._checkpoint()
        self.epochs.tell(row)
        return dict(row)

    # ---- state ----------------------------------------------------------------------------------------------------

    def _batch(self, rows: NDArray[np.int64]) -> Tensor:
        batch = self.buffer[: len(rows)]
        # mode="clip": the default checks bounds through a temporary copy; rows of a permutation are inside.
        np.take(self.train.features, rows, axis=0, out=batch.numpy(), mode="clip")
        return batch

    def _checkpoint(self) -> None:
        parts = {"model": self.head.state_dict(), "optimizer": flatten_optimizer(self.optimizer)}
        if self.ema is not None:
            parts["ema"] = self.ema.module.state_dict()
        parts["objective"] = self.objective.state()
        self.epochs.save(parts, threads=THREADS)


def _adamw(head: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, a decayed bias would pull the class prior to uniform."""
    matrices = [parameter for parameter in head.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in head.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
