"""What cannot be had with the classes of the data is said before anything is computed, not after."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1.config import load_config
from stage1.errors import ConfigError
from stage1.stages.checks import check_all, check_views

from ..command_line import stage1
from .conftest import SETTINGS, one_line_error

TWO, THREE = ("none", "roadwork"), ("cat", "dog", "owl")
ERROR = "risks={error: 0.2}"


def config(*overrides):
    return load_config(overrides=overrides, environment={})[0]


@pytest.mark.parametrize(
    ("overrides", "classes", "words"),
    [
        (["views.grid=2x2", "views.adaptive=true", ERROR], THREE, "views.adaptive: is for two classes, there are 3"),
        (["views.grid=2x2", "views.aggregate=[mean, max]", ERROR], THREE, "views.aggregate: max is for two classes"),
        (
            ["views.grid=2x2", "views.train=mil", "views.pool=lse:1", ERROR],
            THREE,
            "views.pool: lse:1 is for two classes",
        ),
        (["views.grid=2x2", "views.train=views", "views.pool=topk:2", ERROR], THREE, "views.pool: topk:2"),
        (["policy.name=gate", ERROR], THREE, "policy gate: is for two classes, there are 3"),
        (
            ["policy.name=scrc", "risks={miss_rate: 0.3}"],
            TWO,
            "risks: miss_rate does not fit the scrc policy; give miss_rate and",
        ),
        (["policy.name=scrc", "risks={miss_rate: 0.3, false_exit_rate: 0.3}"], THREE, "does not fit the scrc policy"),
        (["policy.name=scrc", "risks={miss_rate.cat: 0.3}"], THREE, "does not fit the scrc policy"),
        (["risks={fnr: 0.3, false_exit_rate: 0.3}"], THREE, "risk 'fnr' is for two classes"),
        (["risks={error: 0.3, fnr.cow: 0.3}"], THREE, "no class 'cow'"),
        (["risks={fnr: 0.3}"], TWO, "constrains one side only"),
        (["class_coverage={cat: 0.3}"], TWO, "class_coverage.cat: no such class"),
        ([ERROR, "target_prior=0.3"], THREE, "target_prior"),
        ([ERROR, "unit=group_mean"], THREE, "unit=group_mean: is for two classes"),
        ([ERROR, "data.slices=[city]"], THREE, "data.slices: is for two classes"),
        ([ERROR, "train.objective=risk"], THREE, "train.objective=risk: is for two classes"),
    ],
)
def test_what_the_classes_rule_out_is_named(overrides, classes, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        check_all(config(*overrides), classes)


@pytest.mark.parametrize(
    ("overrides", "classes"),
    [
        ([], TWO),
        (["views.grid=2x2", "views.adaptive=true", "views.aggregate=max"], TWO),
        (["views.grid=2x2", "views.train=mil", ERROR], THREE),
        (["views.grid=2x2", "views.aggregate=[whole, mean]", ERROR], THREE),
        (["views.grid=2x2", "views.train=pooled", ERROR], THREE),
        (["policy.name=scrc", "risks={miss_rate: 0.3}"], THREE),
        (["policy.name=scrc", "risks={miss_rate: 0.3, false_exit_rate: 0.3}"], TWO),
    ],
)
def test_what_can_be_had_is_let_through(overrides, classes):
    check_all(config(*overrides), classes)


def test_a_stage_alone_is_asked_about_views_only():
    check_views(config("risks={fnr: 0.3, false_exit_rate: 0.3}"), THREE)  # the target may still be given to `calibrate`


@pytest.fixture(scope="module")
def animals(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("animals"), np.random.default_rng(0)
    for name in THREE:
        (folder / name).mkdir()
        for index in range(12):
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / name / f"{index}.png")
    return folder


def stages_of(folder: Path) -> list[str]:
    return list(json.loads((folder / "stages.json").read_text())["stages"])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["views.grid=2x2", "views.adaptive=true"], "views.adaptive: is for two classes, there are 3"),
        (["views.grid=2x2", "views.train=mil", "views.pool=lse:1"], "views.pool: lse:1 is for two classes"),
        (["policy.name=scrc", "risks={miss_rate: 0.3, false_exit_rate: 0.3}"], "does not fit the scrc policy"),
    ],
)
def test_a_run_ends_before_the_split_and_after_one_that_is_done(animals, tmp_path, overrides, words):
    run = ("run", "--recipe", "baseline", f"data.table={animals}", *SETTINGS, ERROR, "-q", "-o", tmp_path / "r")
    one_line_error(stage1(*run, *overrides), 2, words)
    assert not (tmp_path / "r").exists()
    assert stage1("split", tmp_path / "r", *run[1:-3]).returncode == 0
    one_line_error(stage1(*run, *overrides, "--allow-change"), 2, words)
    assert stages_of(tmp_path / "r") == ["split"]


def test_stages_alone_are_refused_before_and_after_the_split_too(animals, tmp_path):
    folder, views = tmp_path / "r", ("views.grid=2x2", "views.adaptive=true")
    made = ("--recipe", "baseline", f"data.table={animals}", *SETTINGS)
    one_line_error(stage1("split", folder, *made, *views), 2, "views.adaptive: is for two classes")
    assert not folder.exists()
    assert stage1("split", folder, *made).returncode == 0
    one_line_error(stage1("extract", folder, *views), 2, "views.adaptive: is for two classes")
    assert stages_of(folder) == ["split"]
