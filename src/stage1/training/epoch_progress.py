"""The position of a supervised run, and the files that follow from it.

The checkpoint is the one truth. The weights file and metrics.csv (one row per epoch) are made from it, so after a kill
at any moment they are brought to the same state again. log.jsonl (events with times) and TensorBoard show how it went.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1.config import TrainConfig
from stage1.errors import Checkpointed, Stage1Error
from stage1.extras import load
from stage1.model.head import BEST_WEIGHTS, save_weights
from stage1.storage.files import write_error, write_text
from stage1.training.checkpoint import LAST, check_same_run, config_digest, load_checkpoint, save_checkpoint
from stage1.training.optim import learning_rate, steps_per_epoch, warmup_steps
from stage1.training.selection import SelectMetrics, select_metrics

METRICS = "metrics.csv"
LOG = "log.jsonl"
COLUMNS = (
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "select_nll",
    "select_accuracy",
    "select_augrc",
    "ema_nll",
    "ema_accuracy",
    "ema_augrc",
    "best_epoch",
)


def write_metrics(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Rewrite all rows (COLUMNS; absent values stay empty), so the file can neither repeat nor miss an epoch.

    Floats are written so that they read back bit-equal.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: "" if row.get(key) is None else row[key] for key in COLUMNS} for row in rows)
    write_text(path, text.getvalue())


def append_event(path: str | os.PathLike[str], event: str, **values: Any) -> None:
    """Append one JSON line {"time", "event", ...}; the only file with times of day.

    A line is one write in append mode; where a kill cut the last line short, the next event starts on a new line.
    Raises Stage1Error where the file cannot be written.
    """
    path = Path(path)
    time = datetime.now(UTC).isoformat(timespec="milliseconds")
    line = (
        json.dumps({"time": time, "event": event, **values}, ensure_ascii=False).encode("utf-8", "backslashreplace")
        + b"\n"
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line
            os.write(handle, line)
        finally:
            os.close(handle)
    except OSError as error:
        raise write_error(path, error) from error


class Board:
    """TensorBoard scalars of each epoch, under `folder`; events of epochs that are trained again are purged.

    Raises MissingError where the extra `track` is not installed.
    """

    def __init__(self, folder: str | os.PathLike[str], *, next_step: int) -> None:
        load("tensorboard", "train.tensorboard=true")
        writer = load("torch.utils.tensorboard", "train.tensorboard=true").SummaryWriter
        self._writer = writer(str(folder), purge_step=next_step)

    def write(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.csv as scalars at its step."""
        for name in COLUMNS[2:]:
            if row.get(name) is not None:
                self._writer.add_scalar(name, row[name], row["step"])
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


Parts = dict[str, dict[str, Tensor]]
Stored = tuple[dict[str, Tensor], dict[str, Any]]


@dataclass(slots=True)
class Position:
    """The position of training: `epoch` epochs are complete, `step` optimizer steps of the next one are done."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    weight_sum: float = 0.0
    best: dict[str, Any] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    done: bool = False

    def to_json(self) -> dict[str, Any]:
        """What a checkpoint needs beside best and rows, which it stores by themselves."""
        names = ("epoch", "step", "done", "loss_sum", "weight_sum")
        return {name: getattr(self, name) for name in names}


def by_part(tensors: Mapping[str, Tensor], *names: str) -> Parts:
    """Tensors "part.name" of a checkpoint, sorted by part; parts that it has not are empty."""
    parts: Parts = {name: {} for name in names}
    for key, tensor in tensors.items():
        part, _, name = key.partition(".")
        parts[part][name] = tensor
    return parts


class EpochProgress:
    """Position, schedule, choice of the epoch, checkpoint, metrics, log of one run on `n` samples in `folder`.

    facts, data: what decides the weights, and the digest of what they are made from; a checkpoint is of both. section:
    of the config with learning_rate, for messages (`tune` takes it from images). writes: false in all processes of a
    run but one. slower: what to lower where the loss is not finite. shipped: of the best weights those that
    model_best.pth holds. start_epoch: weights of epochs before it are not to be chosen, counted from 0.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        n: int,
        facts: Mapping[str, Any],
        data: str,
        *,
        section: str = "train",
        writes: bool = True,
        slower: str = "",
        shipped: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict,
        start_epoch: int = 0,
    ) -> None:
        self.folder, self.config, self.facts, self.data = folder, config, facts, data
        self.section = section
        self.writes, self.slower, self.shipped, self.start_epoch = writes, slower, shipped, start_epoch
        self.plan(config.epochs, steps_per_epoch(n, config.batch_size, config.accumulate))
        self.at = Position()
        self.best_weights: dict[str, Tensor] = {}
        self.board: Board | None = None

    def plan(self, epochs: int, steps: int) -> None:
        """Train `epochs` of `steps` steps each, the learning rate along these; the config's epochs until told."""
        self.epochs, self.steps, self.total = epochs, steps, epochs * steps
        self.warmup = warmup_steps(self.total, self.config.warmup)

    @property
    def done_steps(self) -> int:
        return self.at.epoch * self.steps + self.at.step

    def rate(self, step: int) -> float:
        return learning_rate(step, total=self.total, warmup=self.warmup, base=self.config.learning_rate)

    # ---- start and end --------------------------------------------------------------------------------------------

    def load(self, fresh: bool) -> Stored | None:
        """The checkpoint to go on from. Raises ConfigError where it is another run's, IntegrityError."""
        stored = None if fresh else load_checkpoint(self.folder / LAST)
        if stored is not None:
            check_same_run(self.folder / LAST, stored[1], self.facts, self.data)
        return stored

    def restore(self, stored: Stored, *names: str) -> Parts:
        """Take the position from a checkpoint; returns its tensors by part, with those of `names`."""
        parts = by_part(stored[0], "model", "best", "optimizer", "ema", *names)
        self.best_weights = parts["best"]
        self.at = Position(**stored[1]["position"], best=stored[1]["best"], rows=list(stored[1]["rows"]))
        return parts

    def claim(self, resumed: bool) -> None:
        """Make the folder's files those of this run, at its position."""
        written = [self.folder / name for name in (LAST, BEST_WEIGHTS, METRICS)]
        if self.writes:
            for target in written:  # what a killed process left half-written
                _remove(list(target.parent.glob(f".{target.name}.*.tmp*")))
            if self.config.tensorboard and not self.at.done:
                self.board = Board(self.folder / "tensorboard", next_step=self.done_steps + 1)
            if (
                not resumed
            ):  # a file of an earlier run must not pass for one of this run should this one be killed early
                _remove(written)
        if resumed:
            self._write_derived()

    def begun(self, resumed: bool, **values: Any) -> None:
        """Log the start; values: what is logged beside the position and the digests."""
        self.log(
            "resume" if resumed else "start",
            epoch=self.at.epoch,
            step=self.done_steps,
            total_steps=self.total,
            torch=torch.__version__,
            **values,
            config_digest=config_digest(self.facts),
            data_digest=self.data,
        )

    def close(self) -> None:
        if self.board is not None:
            self.board.close()

    # ---- steps and epochs -----------------------------------------------------------------------------------------

    def count(self, loss_sum: float, weight: float) -> None:
        """One optimizer step is done."""
        self.at.step += 1
        self.at.loss_sum += loss_sum
        self.at.weight_sum += weight

    def judged(self, logits: Sequence[NDArray[np.float32]], labels: NDArray[np.int64]) -> list[SelectMetrics]:
        """Metrics on val_select of raw weights and average. Raises Stage1Error where logits are not finite."""
        if not all(np.isfinite(values).all() for values in logits):
            raise self.diverged("logits on val_select are not finite")
        return [select_metrics(values, labels) for values in logits]

    def end_epoch(
        self, found: Sequence[SelectMetrics], weights: Callable[[int], dict[str, Tensor]], *, last: bool = False
    ) -> dict[str, Any]:
        """Count the epoch, keep the best weights. Returns its row of metrics.csv; then `checkpoint_due` and `tell`.

        found: of the raw weights and, where there is one, the average; weights: a copy of these by place in `found`.
        last: there is no time for another.
        """
        step, at = self.done_steps - 1, self.at
        loss = at.loss_sum / at.weight_sum
        at.epoch, at.step, at.loss_sum, at.weight_sum = at.epoch + 1, 0, 0.0, 0.0
        if at.epoch == self.start_epoch + 1:
            at.best = None  # weights from before the loss that trains the gate are none to ship
        for place, metrics in enumerate(found):  # raw first: the average must be strictly better
            if at.best is None or metrics.key(self.config.select_by) < self._best_key():
                at.best = {"epoch": at.epoch, "ema": bool(place), "train_loss": loss, **metrics.to_json()}
                self.best_weights = weights(place)
        assert at.best is not None
        row: dict[str, Any] = {
            "epoch": at.epoch,
            "step": step + 1,
            "learning_rate": self.rate(step),
            "train_loss": loss,
        }
        for prefix, metrics in zip(("select", "ema"), found, strict=False):
            row |= {f"{prefix}_{name}": value for name, value in metrics.to_json().items()}
        row["best_epoch"] = at.best["epoch"]
        at.rows.append(row)
        # No early end before the selective loss has begun: it has an epoch of its own to be the best.
        settled = at.epoch > self.start_epoch and at.epoch - at.best["epoch"] >= self.config.patience
        at.done = at.epoch >= self.epochs or settled or last
        return row

    @property
    def checkpoint_due(self) -> bool:
        return self.at.done or self.at.epoch % self.config.checkpoint_every == 0

    def tell(self, row: Mapping[str, Any], **values: Any) -> None:
        """The end of an epoch, in metrics.csv, TensorBoard and the log; values: for the log alone."""
        at = self.at
        if self.writes and not self.checkpoint_due:
            write_metrics(self.folder / METRICS, at.rows)
        if self.board is not None:
            self.board.write(row)
        self.log("epoch", **row, **values)
        if at.done:
            self.tell_done()

    def tell_done(self) -> None:
        """The end of the run, in the log."""
        at = self.at
        if at.best is not None:
            best = {"best_epoch": at.best["epoch"], "used_ema": at.best["ema"]}
            self.log("done", epochs=at.epoch, stopped_early=at.epoch < self.epochs, **best)

    def stopped(self) -> Checkpointed:
        """To be raised where a stop was asked for, after the checkpoint."""
        self.log("stopped", epoch=self.at.epoch, step=self.done_steps)
        return Checkpointed(
            f"{self.folder / LAST}: stopped on request in epoch {self.at.epoch + 1} of {self.epochs}; "
            "run the same command to go on"
        )

    def diverged(self, what: str) -> Stage1Error:
        """To be raised where a number is not finite."""
        step, path = self.done_steps + 1, self.folder / LAST
        kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"
        self.log("diverged", epoch=self.at.epoch + 1, step=step, what=what)
        return Stage1Error(
            f"train: {what} at step {step} (epoch {self.at.epoch + 1}); lower {self.section}.learning_rate "
            f"({self.config.learning_rate:g}) or {self.slower}; {kept}"
        )

    # ---- files ----------------------------------------------------------------------------------------------------

    def save(self, parts: Mapping[str, Mapping[str, Tensor]], **facts: Any) -> None:
        """Write the checkpoint and what follows. parts: tensors but the best weights; facts: beside the position.

        The schedule and every generator are functions of seed (in the run's facts) and position: the position is their
        state.
        """
        if not self.writes:
            return
        whole = {**parts, "best": self.best_weights}
        tensors = {f"{part}.{name}": tensor.cpu() for part, state in whole.items() for name, tensor in state.items()}
        save_checkpoint(
            self.folder / LAST,
            tensors,
            {
                "run": self.facts,
                "config_digest": config_digest(self.facts),
                "data_digest": self.data,
                "position": self.at.to_json(),
                "best": self.at.best,
                "rows": self.at.rows,
                "torch": torch.__version__,
                **facts,
            },
        )
        self._write_derived()

    def _write_derived(self) -> None:
        """The files that follow from the checkpoint."""
        if not self.writes:
            return
        write_metrics(self.folder / METRICS, self.at.rows)
        if self.best_weights:
            save_weights(self.folder / BEST_WEIGHTS, self.shipped(self.best_weights))

    def log(self, event: str, **values: Any) -> None:
        if self.writes:
            append_event(self.folder / LOG, event, **values)

    def _best_key(self) -> tuple[float, float]:
        best = self.at.best
        assert best is not None
        return SelectMetrics(best["nll"], best["accuracy"], best["augrc"]).key(self.config.select_by)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise write_error(path, error) from error
