"""A first command that is refused leaves nothing that binds the next one; a stage that meets other images than the
split's.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1.config import load_config
from stage1.errors import ConfigError, DataError, SourceChanged
from stage1.runs.directory import opened, stored_config
from stage1.runs.progress import Progress
from stage1.runs.runner import execute, execute_one
from stage1.runs.schema import STAGES_KIND
from stage1.stages import STAGES
from stage1.storage.documents import read_document

from ..command_line import stage1
from .conftest import SETTINGS, one_line_error

QUIET = Progress(quiet=True)


def written(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def photos_of_one_size(folder: Path, n: int = 80) -> Path:
    """BMP files, all of the same size in bytes, so that one can stand for another unseen."""
    rng = np.random.default_rng(1)
    folder.mkdir()
    rows = ["image,label"]
    for index in range(n):
        level = 150 if index % 2 else 90
        pixels = np.clip(level + rng.normal(0, 30, (24, 24, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.bmp")
        rows.append(f"{index}.bmp,{('night', 'day')[index % 2]}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


def config_of(table: Path, *overrides: str):
    return load_config(recipe="baseline", overrides=[*SETTINGS, f"data.table={table}", *overrides], environment={})[0]


# ---- point 16: a failed start ------------------------------------------------------------------------------------


def test_a_refused_first_command_leaves_no_folder_and_the_right_one_works(tmp_path):
    photos_of_one_size(tmp_path / "photos")
    out = tmp_path / "runs" / "mine"
    one_line_error(stage1("run", "--recipe", "baseline", "data.table=photo", "-o", out, cwd=tmp_path), 3, "photo")
    assert not (tmp_path / "runs").exists()
    one_line_error(stage1("split", out, "--recipe", "baseline", "data.table=photo", cwd=tmp_path), 3, "photo")
    assert not (tmp_path / "runs").exists()
    right = ["--recipe", "baseline", "data.table=photos/labels.csv", *SETTINGS]
    assert stage1("run", *right, "-o", out, "--dry-run", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "runs").exists()
    result = stage1("split", out, *right, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert stored_config(out).data.table.endswith("photos/labels.csv")


def test_a_folder_that_was_there_keeps_what_was_there_and_no_lock(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(Exception, match="nowhere"), opened(tmp_path / "run", config_of(tmp_path / "nowhere")) as run:
        execute(run, STAGES, QUIET)
    assert written(tmp_path) == {"notes.txt", ".lock"}  # a lock may be another's where the folder is used
    (tmp_path / "empty").mkdir()
    with pytest.raises(Exception, match="nowhere"), opened(tmp_path / "empty", config_of(tmp_path / "nowhere")) as run:
        execute(run, STAGES, QUIET)
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_config_without_a_finished_stage_gives_way(tmp_path):
    table, folder = photos_of_one_size(tmp_path / "photos"), tmp_path / "run"
    broken = tmp_path / "photos" / "broken.bmp"
    broken.write_bytes(b"no image")
    with open(table, "a") as stream:
        stream.write("broken.bmp,day\n" * 1)
    with (
        pytest.raises(DataError, match="max_quarantine"),
        opened(folder, config_of(table, "data.max_quarantine=0")) as run,
    ):
        execute_one(run, STAGES, "split", QUIET)
    assert written(folder) == {
        "config.yaml",
        "quarantine.csv",
        ".lock",
    }  # the sources were read: the advice is followed here
    result = stage1("split", folder, "data.max_quarantine=0.1", "-q")
    assert result.returncode == 0, result.stderr

    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "stages.json").unlink()  # as after a kill in the first stage
    with opened(other, config_of(table, "data.max_quarantine=0.2")) as run:
        assert execute_one(run, STAGES, "split", QUIET)
    assert stored_config(other).data.max_quarantine == 0.2
    with pytest.raises(ConfigError, match="another config"), opened(other, config_of(table)):
        pass


def test_a_refused_stage_leaves_config_and_state_as_they_were(finished, tmp_path):
    copy = shutil.copytree(finished.folder, tmp_path / "run")
    config, state = (copy / "config.yaml").read_bytes(), read_document(copy / "stages.json", STAGES_KIND)
    one_line_error(stage1("calibrate", copy, "train.epochs=3"), 2, "out of date")
    assert (copy / "config.yaml").read_bytes() == config
    one_line_error(stage1("calibrate", copy, "risks={fnr.cat: 0.1}"), 2, "cat")  # refused inside the stage
    assert (copy / "config.yaml").read_bytes() == config
    assert read_document(copy / "stages.json", STAGES_KIND) == state
    assert stage1("calibrate", copy, "risks.miss_rate=0.35").returncode == 0
    assert stored_config(copy).risks["miss_rate"] == 0.35


# ---- point 17: an image that changed under the same size and time ------------------------------------------------


def swap_bytes(path: Path, other: Path) -> None:
    state = path.stat()
    path.write_bytes(other.read_bytes()[:-1] + b"\x07")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size


@pytest.mark.parametrize("advice", ["run", "split"])
def test_the_advice_of_a_stage_that_met_other_bytes_works(advice, tmp_path):
    pytest.importorskip("timm", reason="the extra train is not installed")
    table = photos_of_one_size(tmp_path / "photos")
    config = config_of(table)
    with opened(tmp_path / "run", config) as run:
        execute_one(run, STAGES, "split", QUIET)
    for index in range(80):
        swap_bytes(tmp_path / "photos" / f"{index}.bmp", tmp_path / "photos" / f"{index}.bmp")
    if advice == "split":  # also of a command that is no stage and tells nobody
        with opened(tmp_path / "run", config) as run:
            assert execute_one(run, STAGES, "split", QUIET)
            assert not execute_one(run, STAGES, "split", QUIET)
            assert execute_one(run, STAGES, "extract", QUIET)
        return
    with pytest.raises(SourceChanged, match=r"run `stage1 split`"), opened(tmp_path / "run", config) as run:
        execute_one(run, STAGES, "extract", QUIET)
    with opened(tmp_path / "run", config) as run:
        assert "split" not in run.state
        result = stage1(
            "run", "--recipe", "baseline", *SETTINGS, f"data.table={table}", "-o", tmp_path / "elsewhere", "--dry-run"
        )
        assert result.returncode == 0
    result = stage1("run", "--recipe", "baseline", *SETTINGS, f"data.table={table}", "-o", tmp_path / "run")
    assert "have changed since" not in result.stderr
    assert read_document(tmp_path / "run" / "stages.json", STAGES_KIND)["stages"].keys() >= {
        "split",
        "extract",
        "train",
        "export",
        "score",
    }
