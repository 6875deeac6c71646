"""A small problem that the whole line solves in seconds: bright against dark tiles, one image a group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..drawing import figures_drawn, no_figures_drawn  # noqa: F401 (fixture)
from ..once import common_folder, made_once
from ..tracing import backbones_traced_once, traced_once  # noqa: F401 (fixture)
from ..workers import no_processes_started  # noqa: F401 (fixture)

SETTINGS = (
    "backbone.input_size=64",
    "backbone.fit=squash",
    "head.kind=linear",
    "train.epochs=4",
    "train.batch_size=16",
    "export.parity_images=8",
    "risks={miss_rate: 0.3, false_exit_rate: 0.3}",
    "confidence=0.9",
    "evaluation.resamples=50",
    "split.method=balanced",
    "data.near_duplicates=false",
    "features.shard_size=32",
)


def write_photos(folder: Path, n: int = 240, side: int = 48, seed: int = 0) -> Path:
    """n JPEGs and labels.csv (image, label): 'day' is brighter than 'night', with noise that makes some of them
    hard.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = ["image,label"]
    for index in range(n):
        label = ("night", "day")[index % 2]
        level = rng.normal(150 if label == "day" else 100, 22)
        pixels = np.clip(level + rng.normal(0, 30, (side, side, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{index:04d}.jpg", quality=90)
        rows.append(f"images/{index:04d}.jpg,{label}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


def stage1(
    *arguments: str | Path, environment: dict[str, str] | None = None, **options
) -> subprocess.CompletedProcess[str]:
    """The command line as a user has it, in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "stage1.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(environment or {})},
        **options,
    )


def one_line_error(result: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """The contract of every user error: this exit code, one line that starts with error:, no traceback, these words."""
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1, result.stderr
    for word in words:
        assert word in lines[0], lines[0]


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    folder = common_folder(tmp_path_factory)
    return made_once(folder / "photos.made", lambda: write_photos(folder / "photos"))


@pytest.fixture(scope="session")
def finished(photos, tmp_path_factory):
    """One complete run for all workers, made in process; tests that change files work on a copy."""
    pytest.importorskip("timm", reason="the extra train is not installed")
    from stage1 import run

    folder = common_folder(tmp_path_factory)

    def whole():
        settings = [*SETTINGS, f"data.table={photos}"]
        with traced_once(folder / "graphs"), figures_drawn():
            return run(recipe="baseline", overrides=settings, output=folder / "finished")

    return made_once(folder / "finished.made", whole)
