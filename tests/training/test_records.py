from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest

from stage1.errors import MissingError, Stage1Error
from stage1.training.epoch_progress import COLUMNS, Board, append_event, write_metrics


def test_metrics_read_back_exactly_and_absent_values_are_empty(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", [{"epoch": 1, "train_loss": 0.1 + 0.2, "select_nll": 1e-17}])
    with open(tmp_path / "metrics.csv", newline="") as stream:
        (row,) = csv.DictReader(stream)
    assert tuple(row) == COLUMNS
    assert float(row["train_loss"]) == 0.1 + 0.2
    assert float(row["select_nll"]) == 1e-17
    assert row["ema_nll"] == ""


def test_events_are_one_json_line_each_with_a_time(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.jsonl"
    append_event(path, "start", epoch=0)
    append_event(path, "epoch", epoch=1)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "epoch"]
    assert all(event["time"].endswith("+00:00") for event in events)


def test_a_line_cut_by_a_kill_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"time": "2026", "ev')
    append_event(path, "resume")
    first, second = path.read_text().splitlines()
    assert first == '{"time": "2026", "ev'
    assert json.loads(second)["event"] == "resume"


def test_an_unwritable_log_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(Stage1Error, match=r"log\.jsonl: cannot be written"):
        append_event(tmp_path / "log.jsonl", "start")


def test_tensorboard_without_the_extra_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with pytest.raises(MissingError, match=r"stage1-pro\[track\]"):
        Board(tmp_path, next_step=1)


def test_tensorboard_holds_the_rows_and_purges_those_trained_again(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="extra `track` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Board(tmp_path, next_step=1)
    for step, loss in ((10, 0.5), (20, 0.4)):
        first.write({"step": step, "train_loss": loss, "ema_nll": None})
    first.close()
    again = Board(tmp_path, next_step=11)
    again.write({"step": 20, "train_loss": 0.25})
    again.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert events.Tags()["scalars"] == ["train_loss"]
    assert [(item.step, item.value) for item in events.Scalars("train_loss")] == [(10, 0.5), (20, 0.25)]
