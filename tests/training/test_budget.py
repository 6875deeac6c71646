"""A time budget: what is planned for it, and that plan and clock decide how long is trained and nothing else."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.errors import Checkpointed, ConfigError
from stage1.training.budget import RESERVE, Budget, Costs, Plan, planned
from stage1.training.checkpoint import LAST, load_checkpoint

pytest.importorskip("timm", reason="the extra train is not installed")

from stage1.training import image_run
from stage1.training.image_watch import Watch
from stage1.training.optim import learning_rate, warmup_steps

from .image_tasks import fit

# Bare, these tasks are 4 steps of 12 images in an epoch.
STEPS = 4


class Clock:
    """Seconds as told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# ---- planning --------------------------------------------------------------------------------------------------------


@given(st.floats(0.001, 100.0), st.floats(0.0, 500.0), st.floats(0.0, 5000.0), st.integers(1, 20), st.integers(1, 500))
def test_the_plan_fits_and_nothing_larger_does(step, validation, seconds, epochs, steps):
    plan, usable = planned(Costs(step, validation), seconds=seconds, epochs=epochs, steps=steps), None
    usable = seconds * (1 - RESERVE)
    epoch = steps * step + validation
    slack = 1e-9 * (usable + epoch * epochs)
    if plan is None:
        assert step + validation > usable - slack
        return
    assert plan.seconds <= usable + slack
    assert plan.seconds == pytest.approx(plan.epochs * (plan.steps * step + validation))
    if plan.steps == steps:
        assert plan.epochs == epochs or (plan.epochs + 1) * epoch > usable - slack
    else:  # a share of one epoch, where not one fits
        assert plan.epochs == 1
        assert epoch > usable - slack
        assert plan.seconds + step > usable - slack


def test_the_line_says_what_was_measured_and_what_fits():
    def line(minutes: float, step: float, validation: float, epochs: int = 10) -> tuple[Plan, str]:
        clock = Clock()
        budget = Budget(minutes, clock)
        clock.now += 60.0  # preparation
        return budget.plan(Costs(step, validation), epochs=epochs, steps=75, images=1200, batch=16)

    plan, text = line(20, 6.6, 30.0)
    assert (plan.epochs, plan.steps) == (2, 75)
    assert text == "1,200 images, 6.6 s a step of 16: 2 epochs in 18 of 20 minutes"
    assert line(20, 0.1, 1.0, 3)[1].endswith("3 epochs (all of images.epochs) in 1.4 of 20 minutes")
    assert "30 of the 75 steps of one epoch in 4.8 of 5 minutes" in line(5, 6.6, 30.0)[1]


def test_what_the_refusal_advises_is_enough_and_less_is_not():
    def attempt(minutes: float) -> Plan:
        clock = Clock()
        budget = Budget(minutes, clock)
        clock.now += 7.0
        return budget.plan(Costs(3.1, 12.0), epochs=2, steps=75, images=1200, batch=16)[0]

    with pytest.raises(
        ConfigError, match=r"images\.minutes=0\.1: not one step fits.*set it to [0-9.]+ or more"
    ) as error:
        attempt(0.1)
    advised = float(str(error.value).rsplit("set it to ", 1)[1].split()[0])
    assert attempt(advised).steps == 1
    with pytest.raises(ConfigError, match="not one step fits"):
        attempt(advised - 0.02)


def test_a_budget_counts_earlier_attempts_and_keeps_a_validation_free():
    clock = Clock()
    budget = Budget(2.0, clock)
    budget.resume(50.0)
    clock.now += 30.0
    assert (budget.spent, budget.left) == (80.0, 40.0)
    budget.validation = 39.0
    assert not budget.over
    clock.now += 1.0
    assert budget.over


# ---- in a run --------------------------------------------------------------------------------------------------------


def with_clock(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Budgets of image runs go by `clock`; a step is measured at 1 s, a validation at 2 s."""
    monkeypatch.setattr(image_run, "Budget", lambda minutes: Budget(minutes, clock))
    monkeypatch.setattr(image_run.ImageRun, "_measured", lambda run: Costs(1.0, 2.0))


def events(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def weights(folder: Path) -> tuple[bytes, bytes]:
    return (folder / "model_best.pth").read_bytes(), (folder / "metrics.csv").read_bytes()


def test_a_budget_that_does_not_run_out_changes_no_bit_stopped_or_not(tmp_path):
    """The steps that are measured leave nothing behind."""
    learn = {"unfreeze": "last", "augment": "moderate"}
    fit(tmp_path / "plain", images=learn)
    result = fit(tmp_path / "timed", images={**learn, "minutes": 60})
    assert result.plan is not None
    assert (result.plan["epochs"], result.plan["steps"], result.cut_short) == (2, STEPS, False)
    assert weights(tmp_path / "timed") == weights(tmp_path / "plain")
    asked = iter([False] * 5 + [True])
    with pytest.raises(Checkpointed):
        fit(tmp_path / "stopped", images={**learn, "minutes": 60}, stop=lambda: next(asked))
    fit(tmp_path / "stopped", images={**learn, "minutes": 60})
    assert weights(tmp_path / "stopped") == weights(tmp_path / "plain")


def test_the_learning_rate_falls_along_the_planned_steps(tmp_path, monkeypatch):
    with_clock(monkeypatch, Clock())
    result = fit(tmp_path, epochs=10, images={"minutes": 20 / 60})
    assert result.plan is not None
    assert (result.plan["epochs"], result.epochs_run) == (3, 3)  # of 6 s each in 19 s
    total = 3 * STEPS
    expected = [
        learning_rate(step - 1, total=total, warmup=warmup_steps(total, 0.05), base=3e-3) for step in (4, 8, 12)
    ]
    assert [float(row["learning_rate"]) for row in rows(tmp_path)] == pytest.approx(expected)
    assert expected[-1] < 0.1 * expected[0]


def test_where_no_epoch_fits_a_share_of_one_is_trained_and_judged(tmp_path, monkeypatch):
    with_clock(monkeypatch, Clock())
    result = fit(tmp_path, images={"minutes": 5 / 60})
    assert (result.plan["epochs"], result.plan["steps"]) == (1, 2)  # type: ignore[index]
    (row,) = rows(tmp_path)
    assert row["step"] == "2"
    assert math.isfinite(result.metrics["nll"])
    assert not result.cut_short


def test_time_that_runs_out_ends_it_at_a_step_and_keeps_the_best_weights(tmp_path, monkeypatch):
    clock = Clock()
    with_clock(monkeypatch, clock)

    def slow(images: int, note: str) -> None:
        clock.now += 3.0 if "loss" in note else 1.0 if "validation" in note else 0.0  # steps were measured at 1 s

    result = fit(tmp_path, images={"minutes": 24 / 60}, watch=Watch(seen=slow))
    assert result.plan["epochs"] == 2  # type: ignore[index]
    assert (result.cut_short, result.epochs_run) == (True, 2)
    assert [int(row["step"]) for row in rows(tmp_path)] == [4, 8 - 1]
    names = [event["event"] for event in events(tmp_path)]
    assert names == ["plan", "start", "epoch", "over", "epoch", "done"]
    best = min(rows(tmp_path), key=lambda row: min(float(row["select_nll"]), float(row["ema_nll"])))
    assert result.best_epoch == int(best["epoch"])
    again = fit(tmp_path, images={"minutes": 24 / 60})  # it is done, and says the same
    assert (again.cut_short, again.best_epoch, again.best_metric) == (True, result.best_epoch, result.best_metric)


def test_a_resume_has_what_is_left_of_the_budget(tmp_path, monkeypatch):
    clock = Clock()
    with_clock(monkeypatch, clock)
    asked = iter([False] * STEPS + [True])

    def stop() -> bool:
        clock.now += 1.0
        return next(asked)

    with pytest.raises(Checkpointed, match="epoch 2 of 2"):
        fit(tmp_path, images={"minutes": 1.0}, stop=stop)
    stored = load_checkpoint(tmp_path / LAST)
    assert stored is not None
    assert stored[1]["spent"] == pytest.approx(STEPS + 1.0)
    clock.now += 1000.0  # between two attempts no time is spent
    on = fit(tmp_path / "on", images={"minutes": 1.0})
    assert not on.cut_short
    budgets: list[Budget] = []

    def nearly_over(minutes: float) -> Budget:
        budgets.append(Budget(minutes, clock))
        clock.now += 60.0 - STEPS - 1.0 - 1.5
        return budgets[-1]

    monkeypatch.setattr(image_run, "Budget", nearly_over)
    result = fit(tmp_path, images={"minutes": 1.0})
    assert budgets[0].spent == pytest.approx(58.5)
    assert (result.cut_short, result.epochs_run, result.best_epoch) == (True, 1, 1)  # the epoch that was judged
    assert events(tmp_path)[-1]["event"] == "done"


def test_another_budget_is_another_run(tmp_path):
    fit(tmp_path, images={"minutes": 30})
    with pytest.raises(ConfigError, match=r"images\.minutes 30\.0 -> 40\.0"):
        fit(tmp_path, images={"minutes": 40})


def test_every_image_is_seen_once_in_each_phase(tmp_path):
    phases: list[tuple[str, int, int]] = []
    counted: dict[str, int] = {}

    def seen(images: int, note: str) -> None:
        counted[phases[-1][0]] = counted.get(phases[-1][0], 0) + images
        notes.append(note)

    notes: list[str] = []
    watch = Watch(begun=lambda *phase: phases.append(phase), seen=seen)
    fit(tmp_path / "whole", watch=watch)
    assert phases == [("statistics", 48, 0), ("images", 2 * (48 + 24), 0)]
    assert counted == {"statistics": 48, "images": 144}
    assert any(note.startswith("epoch 2 of 2, loss ") and "val_select nll" in note for note in notes)
    phases.clear()
    counted.clear()
    asked = iter([False] * 5 + [True])
    with pytest.raises(Checkpointed):
        fit(tmp_path / "stopped", stop=lambda: next(asked))
    fit(tmp_path / "stopped", watch=watch)
    assert phases == [("images", 144, 72 + 12)]
    assert counted == {"images": 144 - 84}
