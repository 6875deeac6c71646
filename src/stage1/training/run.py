"""One training run: epochs of steps, validation on val_select, checkpoints, bit-equal resume.

The checkpoint is the one truth. Weights file and metrics table are made from it, so after a kill at any moment they are
brought to the same state again; the order of samples and every random number follow from (seed, epoch, step).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import Checkpointed, Stage1Error
from stage1.files import write_error
from stage1.model.head import BEST_WEIGHTS, Classifier, build_head, feature_statistics, members_of, save_weights
from stage1.training.checkpoint import (
    LAST,
    check_same_run,
    config_digest,
    data_digest,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    run_facts,
    save_checkpoint,
)
from stage1.training.ema import Ema
from stage1.training.health import GateHealth
from stage1.training.inputs import LabelledFeatures
from stage1.training.losses import class_weights, cross_entropy_sum
from stage1.training.objective import Objective
from stage1.training.records import LOG, METRICS, Board, append_event, write_metrics
from stage1.training.schedule import learning_rate, steps_per_epoch, warmup_steps
from stage1.training.seeds import epoch_order, sub_seed
from stage1.training.selection import SelectMetrics, all_logits, select_metrics

# One thread, always: a head is too small to gain from more (on a busy machine two are several times slower), and sums
# then have one order on every machine and after every resume.
THREADS = 1


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


@dataclass(slots=True)
class Position:
    """Where training stands: `epoch` epochs are complete, `step` optimizer steps of the next one are done."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    best: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False


class Run:
    """One training run: modules, optimizer, position, and the files that follow from them."""

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
    ) -> None:
        """module: what is trained where that is no head of `build_head`; it has its statistics and first weights."""
        self.train, self.select, self.config, self.seed, self.folder = train, select, config, seed, folder
        dim = train.features.shape[1]
        self.weights = class_weights(train.labels, n_classes, config.class_weights)
        self.facts = run_facts(config, head, dim=dim, n_classes=n_classes, seed=seed)
        self.data = data_digest(train.features, train.labels, select.features, select.labels)
        self.objective = Objective(config, head, self.weights, len(train.labels))
        self.head: nn.Module = module if module is not None else self._new(head, dim, n_classes)
        self.members = len(members_of(self.head))
        self.ema = Ema(self.head, config.ema_decay) if config.ema_decay > 0 else None
        self.optimizer = _adamw(self.head, config)
        self.steps = steps_per_epoch(len(train.labels), config.batch_size, config.accumulate)
        self.total = self.steps * config.epochs
        self.warmup = warmup_steps(self.total, config.warmup)
        self.random = any(isinstance(layer, nn.Dropout) and layer.p > 0 for layer in self.head.modules())
        self.best_weights: dict[str, Tensor] = {}
        self.at = Position()
        self.board: Board | None = None
        # One buffer for all batches, in torch's aligned memory; rows go into it straight from a memory map too.
        self.buffer = torch.empty(min(config.batch_size, len(train.labels)), dim, dtype=torch.float32)

    def _new(self, config: HeadConfig, dim: int, n_classes: int) -> Classifier:
        head = build_head(config, dim, n_classes, sub_seed(self.seed, "head"))
        head.standardise(*feature_statistics(self.train.features))
        frequencies = np.bincount(self.train.labels, minlength=n_classes) * self.weights.numpy().astype(np.float64)
        head.start_at(frequencies)
        return head

    # ---- start, resume, end ---------------------------------------------------------------------------------------

    def begin(self, fresh: bool) -> None:
        path = self.folder / LAST
        written = [path, self.folder / BEST_WEIGHTS, self.folder / METRICS]
        for target in written:  # what a killed process left half-written
            _remove(list(target.parent.glob(f".{target.name}.*.tmp*")))
        stored = None if fresh else load_checkpoint(path)
        if stored is not None:
            tensors, facts = stored
            check_same_run(path, facts, self.facts, self.data)
            self._restore(tensors, facts)
        if self.config.tensorboard and not self.at.done:
            self.board = Board(self.folder / "tensorboard", next_step=self._done_steps() + 1)
        if stored is None:
            # A file of an earlier run must not pass for one of this run should this one be killed early.
            _remove(written)
        else:
            self._write_derived()
        self._log(
            "start" if stored is None else "resume", epoch=self.at.epoch, step=self._done_steps(),
            total_steps=self.total, threads=THREADS, torch=torch.__version__, seed=self.seed,
            config_digest=config_digest(self.facts), data_digest=self.data,
        )  # fmt: skip

    def close(self) -> None:
        if self.board is not None:
            self.board.close()

    def finish(
        self,
        stop: Callable[[], bool] | None = None,
        fresh: bool = False,
        progress: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> TrainResult:
        """From where the folder's checkpoint stands to the end. Arguments as `train_head`."""
        self.begin(fresh)
        try:
            while not self.at.done:
                self.train_epoch(stop)
                row = self.finish_epoch()
                if progress is not None:
                    progress(row)
        finally:
            self.close()
        return self.result()

    def result(self) -> TrainResult:
        best = self.at.best
        assert best is not None  # an epoch either ends with a best or raises
        self.head.load_state_dict(self.best_weights, strict=True)
        metrics = {key: float(best[key]) for key in ("nll", "accuracy", "augrc", "train_loss")}
        return TrainResult(
            head=self.head.eval().requires_grad_(False), best_epoch=best["epoch"], used_ema=best["ema"],
            best_metric=metrics[self.config.select_by], epochs_run=self.at.epoch, metrics=metrics,
        )  # fmt: skip

    # ---- one epoch ------------------------------------------------------------------------------------------------

    def train_epoch(self, stop: Callable[[], bool] | None) -> None:
        """The steps of this epoch that are not done yet."""
        self.head.train()
        order = epoch_order(len(self.train.labels), self.seed, self.at.epoch)
        span = self.config.batch_size * self.config.accumulate
        while self.at.step < self.steps:
            if stop is not None and stop():
                self._checkpoint()
                self._log("stopped", epoch=self.at.epoch, step=self._done_steps())
                raise Checkpointed(
                    f"{self.folder / LAST}: stopped on request in epoch {self.at.epoch + 1} of {self.config.epochs}; "
                    "run the same command to go on"
                )
            start = self.at.step * span
            self._step(order[start : start + span])

    def _step(self, rows: NDArray[np.int64]) -> None:
        """One optimizer step on `rows`, in batches whose gradients add up to that of the whole."""
        step = self._done_steps()
        labels = torch.from_numpy(self.train.labels[rows])
        weight = float(self.weights[labels].sum(dtype=torch.float64))
        rate = learning_rate(step, total=self.total, warmup=self.warmup, base=self.config.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss_sum = 0.0
        for part, start in enumerate(range(0, len(rows), self.config.batch_size)):
            if self.random:  # dropout draws from torch's default generator; only the CPU's is touched
                torch.default_generator.manual_seed(sub_seed(self.seed, "dropout", self.at.epoch, self.at.step, part))
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
            self._diverged(f"loss {loss_sum / weight:g}, gradient norm {norm:g}")
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.head, step)
        self.at.step += 1
        self.at.loss_sum += loss_sum
        self.at.weight_sum += weight

    def _loss(self, batch: Tensor, target: Tensor, rows: NDArray[np.int64]) -> Tensor:
        if self.objective.plain and self.members == 1:
            return cross_entropy_sum(self.head(batch), target, self.weights, self.config.label_smoothing)
        return self.objective.loss_sum(self.head, batch, target, torch.from_numpy(rows), self.at.epoch)

    def finish_epoch(self) -> dict[str, Any]:
        """Validate raw and EMA weights, keep the best so far, write files. Returns the epoch's row of metrics.csv."""
        heads = [self.head] if self.ema is None else [self.head, self.ema.module]
        logits = all_logits(heads, self.select.features)
        if not all(np.isfinite(values).all() for values in logits):
            self._diverged("logits on val_select are not finite")
        found = [select_metrics(values, self.select.labels) for values in logits]
        last = self._done_steps() - 1
        rate = learning_rate(last, total=self.total, warmup=self.warmup, base=self.config.learning_rate)
        loss = self.at.loss_sum / self.at.weight_sum
        at = self.at
        at.epoch, at.step, at.loss_sum, at.weight_sum = at.epoch + 1, 0, 0.0, 0.0
        if at.epoch == self.objective.start_epoch + 1:
            at.best = None  # weights from before the loss that trains the gate are none to ship
        for head, metrics in zip(heads, found, strict=True):  # raw first: the average must be strictly better
            if at.best is None or metrics.key(self.config.select_by) < _best_key(at.best, self.config):
                at.best = {"epoch": at.epoch, "ema": head is not self.head, "train_loss": loss, **metrics.to_json()}
                self.best_weights = copy.deepcopy(head.state_dict())
        assert at.best is not None
        row: dict[str, Any] = {"epoch": at.epoch, "step": last + 1, "learning_rate": rate, "train_loss": loss}
        for prefix, metrics in zip(("select", "ema"), found, strict=False):
            row |= {f"{prefix}_{name}": value for name, value in metrics.to_json().items()}
        row["best_epoch"] = at.best["epoch"]
        at.rows.append(row)
        # No early end before the selective loss has begun: it has an epoch of its own to be the best.
        settled = at.epoch > self.objective.start_epoch and at.epoch - at.best["epoch"] >= self.config.patience
        at.done = at.epoch >= self.config.epochs or settled
        if at.done or at.epoch % self.config.checkpoint_every == 0:
            self._checkpoint()
        else:
            write_metrics(self.folder / METRICS, at.rows)
        if self.board is not None:
            self.board.write(row)
        self._log("epoch", **row)
        if at.done:
            best = {"best_epoch": at.best["epoch"], "used_ema": at.best["ema"]}
            self._log("done", epochs=at.epoch, stopped_early=at.epoch < self.config.epochs, **best)
        return dict(row)

    # ---- state ----------------------------------------------------------------------------------------------------

    def _done_steps(self) -> int:
        return self.at.epoch * self.steps + self.at.step

    def _batch(self, rows: NDArray[np.int64]) -> Tensor:
        batch = self.buffer[: len(rows)]
        # mode="clip": the default checks bounds through a temporary copy; rows of a permutation are inside.
        np.take(self.train.features, rows, axis=0, out=batch.numpy(), mode="clip")
        return batch

    def _checkpoint(self) -> None:
        modules = {"model": self.head.state_dict(), "best": self.best_weights}
        modules["optimizer"] = flatten_optimizer(self.optimizer)
        if self.ema is not None:
            modules["ema"] = self.ema.module.state_dict()
        modules["objective"] = self.objective.state()
        tensors = {f"{part}.{name}": tensor for part, state in modules.items() for name, tensor in state.items()}
        at = self.at
        # The schedule and every generator are functions of seed (in run) and position: the position is their state.
        position: dict[str, float] = {"epoch": at.epoch, "step": at.step, "done": at.done}
        position |= {"loss_sum": at.loss_sum, "weight_sum": at.weight_sum}
        facts = {
            "run": self.facts, "config_digest": config_digest(self.facts), "data_digest": self.data,
            "position": position, "best": at.best, "rows": at.rows, "threads": THREADS, "torch": torch.__version__,
        }  # fmt: skip
        save_checkpoint(self.folder / LAST, tensors, facts)
        self._write_derived()

    def _write_derived(self) -> None:
        """The files that follow from the checkpoint."""
        write_metrics(self.folder / METRICS, self.at.rows)
        if self.best_weights:
            save_weights(self.folder / BEST_WEIGHTS, self.best_weights)

    def _restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}, "ema": {}, "objective": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        self.head.load_state_dict(parts["model"], strict=True)
        restore_optimizer(self.optimizer, parts["optimizer"])
        if self.ema is not None:
            self.ema.module.load_state_dict(parts["ema"], strict=True)
        self.objective.restore(parts["objective"])
        self.best_weights = parts["best"]
        self.at = Position(**facts["position"], best=facts["best"], rows=list(facts["rows"]))

    def _log(self, event: str, **values: Any) -> None:
        append_event(self.folder / LOG, event, **values)

    def _diverged(self, what: str) -> None:
        step, path = self._done_steps() + 1, self.folder / LAST
        kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"
        self._log("diverged", epoch=self.at.epoch + 1, step=step, what=what)
        raise Stage1Error(
            f"train: {what} at step {step} (epoch {self.at.epoch + 1}); lower train.learning_rate "
            f"({self.config.learning_rate:g}) or set train.clip_norm, and start anew (fresh); {kept}"
        )


def _adamw(head: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW; weight decay on matrices only, a decayed bias would pull the class prior to uniform."""
    matrices = [parameter for parameter in head.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in head.parameters() if parameter.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(path, error) from error


def _best_key(best: Mapping[str, Any], config: TrainConfig) -> tuple[float, float]:
    return SelectMetrics(best["nll"], best["accuracy"], best["augrc"]).key(config.select_by)
