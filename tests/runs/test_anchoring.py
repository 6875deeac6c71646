"""A run directory works from any working directory: relative paths of its config are kept absolute."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1.config import load_config
from stage1.errors import ConfigError
from stage1.runs import execute_one, opened
from stage1.runs.anchoring import anchored
from stage1.runs.progress import Progress
from stage1.stages import STAGES


def config(*overrides: str):
    return load_config(recipe="baseline", overrides=["data.near_duplicates=false", *overrides], environment={})[0]


def test_paths_become_absolute_and_names_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = anchored(
        config("data.role_tables={train: a.csv}", "backbone.weights=w/x.safetensors", "pretrain.folder=../more")
    )
    assert made.data.role_tables == {"train": str(tmp_path / "a.csv")}
    assert made.backbone.weights == str(tmp_path / "w" / "x.safetensors")
    assert made.pretrain.folder == str(tmp_path.parent / "more")
    assert made.data.table is None
    assert anchored(made) == made
    assert anchored(config("data.table=hf:beans")).data.table == "hf:beans"
    assert anchored(config("data.table=part-{0..3}.tar")).data.table == str(tmp_path / "part-{0..3}.tar")
    assert anchored(config("data.table=~/x.csv")).data.table == os.path.expanduser("~/x.csv")


def test_a_run_goes_on_from_another_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, mean in (("cat", 60), ("dog", 180)):
        (tmp_path / "here" / "photos" / name).mkdir(parents=True)
        for row in range(30):
            noise = np.random.default_rng([mean, row]).normal(mean, 30, (16, 16, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noise).save(tmp_path / "here" / "photos" / name / f"{row}.png")
    (tmp_path / "there").mkdir()
    run = tmp_path / "run"
    monkeypatch.chdir(tmp_path / "here")
    with opened("../run", config("data.table=photos")) as directory:
        assert execute_one(directory, STAGES, "split", Progress(quiet=True))
    monkeypatch.chdir(tmp_path / "there")
    with opened("../run", None) as directory:
        assert directory.config.data.table == str(tmp_path / "here" / "photos")
        assert not execute_one(directory, STAGES, "split", Progress(quiet=True)), "nothing has changed"
    with pytest.raises(ConfigError, match=r"another config \(data\.table: "), opened(run, config("data.table=photos")):
        pass
    monkeypatch.chdir(tmp_path / "here")
    with opened(run, config("data.table=photos")) as directory:
        assert not execute_one(directory, STAGES, "split", Progress(quiet=True))
