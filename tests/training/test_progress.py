from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stage1.config import TrainConfig
from stage1.errors import ConfigError, Stage1Error
from stage1.training.checkpoint import LAST, load_checkpoint
from stage1.training.epoch_progress import EpochProgress, by_part
from stage1.training.selection import SelectMetrics


def progress_in(folder: Path, *, writes: bool = True, start_epoch: int = 0, **config: object) -> EpochProgress:
    settings = TrainConfig.model_validate({"epochs": 6, "batch_size": 4, "patience": 2, **config})
    return EpochProgress(
        folder, settings, 10, {"seed": 1}, "data", writes=writes, slower="train less", start_epoch=start_epoch
    )


def epoch(progress: EpochProgress, *nll: float) -> dict[str, object]:
    """One epoch whose raw weights (and average, where there are two numbers) have these NLL."""
    for _ in range(progress.steps):
        progress.count(2.0, 4.0)
    found = [SelectMetrics(value, 0.9, 0.01) for value in nll]
    row = progress.end_epoch(found, lambda place: {"w": torch.tensor([float(progress.at.epoch), float(place)])})
    if progress.checkpoint_due:
        progress.save({"model": {"w": torch.zeros(1)}})
    progress.tell(row)
    return row


def test_ten_samples_in_fours_are_three_steps(tmp_path: Path) -> None:
    progress = progress_in(tmp_path)
    assert (progress.steps, progress.total) == (3, 18)
    progress.count(1.0, 2.0)
    assert progress.done_steps == 1


def test_the_best_epoch_is_kept_raw_before_an_equal_average_and_patience_ends_it(tmp_path: Path) -> None:
    progress = progress_in(tmp_path)
    epoch(progress, 0.5, 0.5)
    assert progress.at.best is not None
    assert (progress.at.best["epoch"], progress.at.best["ema"]) == (1, False)
    epoch(progress, 0.6, 0.4)
    assert (progress.at.best["epoch"], progress.at.best["ema"]) == (2, True)
    assert progress.best_weights["w"].tolist() == [2.0, 1.0]
    epoch(progress, 0.4, 0.4)  # as good as the best is not better
    assert not progress.at.done
    epoch(progress, 0.9, 0.9)
    assert progress.at.done
    assert progress.at.best["epoch"] == 2


def test_weights_from_before_the_start_epoch_do_not_ship(tmp_path: Path) -> None:
    progress = progress_in(tmp_path, start_epoch=3)
    for value in (0.1, 0.2, 0.3):
        epoch(progress, value)
        assert not progress.at.done  # patience has no say yet
    epoch(progress, 0.5)
    assert progress.at.best is not None
    assert progress.at.best["epoch"] == 4


def test_the_loss_of_an_epoch_is_of_its_own_steps(tmp_path: Path) -> None:
    progress = progress_in(tmp_path)
    assert epoch(progress, 0.5)["train_loss"] == 0.5
    assert (progress.at.loss_sum, progress.at.weight_sum, progress.at.step) == (0.0, 0.0, 0)


def test_a_checkpoint_gives_the_position_back(tmp_path: Path) -> None:
    progress = progress_in(tmp_path)
    epoch(progress, 0.5, 0.3)
    other = progress_in(tmp_path)
    stored = other.load(fresh=False)
    assert stored is not None
    parts = other.restore(stored)
    assert parts["model"]["w"].tolist() == [0.0]
    assert other.at == progress.at
    torch.testing.assert_close(other.best_weights["w"], progress.best_weights["w"])
    assert other.load(fresh=True) is None


def test_between_checkpoints_only_the_table_is_written(tmp_path: Path) -> None:
    progress = progress_in(tmp_path, checkpoint_every=2)
    epoch(progress, 0.5)
    with (tmp_path / "metrics.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 1
    assert load_checkpoint(tmp_path / LAST) is None
    epoch(progress, 0.4)
    assert load_checkpoint(tmp_path / LAST) is not None


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    epoch(progress_in(tmp_path), 0.5)
    other = EpochProgress(tmp_path, TrainConfig(), 10, {"seed": 2}, "data")
    with pytest.raises(ConfigError, match="seed 1 -> 2"):
        other.load(fresh=False)


def test_a_process_that_does_not_write_leaves_no_file(tmp_path: Path) -> None:
    progress = progress_in(tmp_path, writes=False)
    progress.claim(resumed=False)
    progress.begun(resumed=False)
    epoch(progress, 0.5)
    assert progress.at.epoch == 1
    assert list(tmp_path.iterdir()) == []


def test_an_abandoned_runs_files_go_and_a_half_written_one_too(tmp_path: Path) -> None:
    epoch(progress_in(tmp_path), 0.5)
    half = tmp_path / ".metrics.csv.1.tmp"
    half.write_text("epo")
    progress_in(tmp_path).claim(resumed=False)
    assert not half.exists()
    assert not (tmp_path / LAST).exists()
    assert not (tmp_path / "metrics.csv").exists()


def test_what_is_not_finite_is_named_with_step_and_remedy(tmp_path: Path) -> None:
    progress = progress_in(tmp_path)
    progress.count(1.0, 1.0)
    with pytest.raises(Stage1Error, match="val_select are not finite at step 2 .*or train less;"):
        progress.judged([np.array([[0.0, np.nan]], dtype=np.float32)], np.array([0]))
    (line,) = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(line)["event"] == "diverged"


def test_parts_that_a_checkpoint_has_not_are_empty() -> None:
    parts = by_part({"model.a.b": torch.ones(1)}, "model", "ema")
    assert list(parts["model"]) == ["a.b"]
    assert parts["ema"] == {}
