"""What training tells the world: metrics.csv (one row per epoch), log.jsonl (events with times), TensorBoard."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from stage1.extras import load
from stage1.files import write_error, write_text

METRICS = "metrics.csv"
LOG = "log.jsonl"
COLUMNS = (
    "epoch", "step", "learning_rate", "train_loss", "select_nll", "select_accuracy", "select_augrc",
    "ema_nll", "ema_accuracy", "ema_augrc", "best_epoch",
)  # fmt: skip


def write_metrics(path: str | os.PathLike[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write all rows anew (COLUMNS; absent values stay empty), so the file can neither repeat nor miss an epoch.

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
