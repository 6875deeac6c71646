"""benchmarks/arms.py: its arms are recipes that load, a mean arm is the mean, a table goes into its own section."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import arms  # noqa: E402
from arm_bench import judging, problems, training  # noqa: E402

from stage1.data.table import SampleTable  # noqa: E402
from stage1.scores import Scores  # noqa: E402


def scores(logits: list[list[float]], labels: list[int]) -> Scores:
    n = len(labels)
    return Scores(
        logits=np.array(logits),
        labels=np.array(labels),
        groups=np.array([str(i) for i in range(n)]),
        ids=np.array([f"i{i}" for i in range(n)]),
    )


@pytest.fixture
def data(tmp_path: Path) -> problems.Problem:
    config, _ = arms_config("demo")
    overrides = problems._overrides("demo", config, tmp_path)
    table = SampleTable.__new__(SampleTable)  # not looked at here
    return problems.Problem("demo", {"fnr": 0.02, "false_exit_rate": 0.05}, False, 224, overrides, {}, table)


def arms_config(recipe: str):
    from stage1.config import load_config

    return load_config(recipe=recipe, environment={})


@pytest.mark.parametrize("name", [name for name, arm in arms.ARMS.items() if not arm.mean_of])
def test_every_arm_is_a_recipe_that_loads(name: str, data: problems.Problem) -> None:
    config = training._config(data, arms.ARMS[name], 4)
    assert config.seed == 4
    assert config.tunes == (name not in arms.ON_FEATURES)


def test_an_arm_that_tunes_has_the_split_and_the_images_of_the_others(data: problems.Problem) -> None:
    config, demo = training._config(data, arms.ARMS["finetune1"], 2), arms_config("demo")[0]
    assert config.split == demo.split
    assert (config.images.unfreeze, config.images.blocks, config.images.epochs) == ("last", 1, problems.EPOCHS["demo"])
    assert config.data.table is not None
    assert config.data.table.endswith("roadscenes/labels.csv")


def test_a_mean_arm_has_the_mean_of_the_logits_and_the_cost_of_both() -> None:
    parts = [
        training.Trained({"val_test": scores([[0.0, value], [value, 0.0]], [1, 0])}, 2.0, 10, "")
        for value in (1.0, 4.0)
    ]
    mean = training._mean(parts)
    np.testing.assert_allclose(mean.scores["val_test"].logits, [[0.0, 2.5], [2.5, 0.0]])
    assert (mean.seconds, mean.parameters) == (4.0, 20)


def test_observed_risks_are_of_exits() -> None:
    run = judging.ArmRun(
        scores([[0.0, 1.0]] * 4, [1, 1, 0, 0]), np.array([True, True, True, False]), np.array([1, 0, 1, 0])
    )
    assert judging.observed(run) == {"fnr": 0.5, "false_exit_rate": 0.5}


def test_a_table_replaces_its_own_section_and_what_was_looked_at_stays_last(tmp_path: Path) -> None:
    path = tmp_path / "arms.md"
    path.write_text("# Arms\n\n## demo, 3 seeds\n\nold\n\n## What was looked at\n\nthis\n")
    arms.put(path, "## potholes, 3 seeds\n\nbad\n", "a command")
    arms.put(path, "## demo, 3 seeds\n\nnew\n", "a command")
    text = path.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## demo, 3 seeds",
        "## potholes, 3 seeds",
        "## What was looked at",
    ]
    assert "old" not in text
    assert "`a command`" in text
