"""What a run lacks is said before its first image is read, in one line that names the way out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stage1.config import load_config
from stage1.errors import ConfigError, MissingError, Stage1Error
from stage1.extras import EXTRAS, import_failure, is_there, require
from stage1.runs.directory import opened
from stage1.runs.preflight import preflight
from stage1.runs.progress import Progress
from stage1.runs.runner import execute, execute_one
from stage1.stages import STAGES, bundle, calibrate

from .conftest import one_line_error
from .test_first_start import config_of, photos_of_one_size

CORE_ONLY = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
sys.argv = ["stage1", *sys.argv[1:]]
from stage1.cli import main
main()
"""


def core_only(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command line where no extra is installed."""
    code = CORE_ONLY.format(blocked=sorted(EXTRAS))
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=cwd,
        env={**os.environ},
    )


@pytest.mark.parametrize(
    "command, words",
    [
        (["run", "--recipe", "baseline", "data.table=photos", "-o", "out"], ["torch", "stage1-pro[train"]),
        (["run", "--recipe", "lora", "data.table=photos", "-o", "out"], ["peft", "report"]),
        (["demo", "-o", "out"], ["timm", "matplotlib", "[train,report]"]),
        (["split", "out", "--recipe", "baseline", "data.table=hf:any"], ["datasets", "stage1-pro[hf]"]),
        (["plan", "--figure", "plan.png"], ["matplotlib", "stage1-pro[report]"]),
    ],
    ids=lambda value: " ".join(value[:3]),
)
def test_a_core_only_installation_names_the_extra_before_the_split(command, words, tmp_path):
    photos_of_one_size(tmp_path / "photos", 4)
    one_line_error(core_only(*command, cwd=tmp_path), 3, *words)
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


@pytest.mark.parametrize(
    "command", ["extract", "train", "export", "score", "calibrate", "evaluate", "bundle", "report"]
)
def test_every_stage_names_its_extra(command, finished, tmp_path, monkeypatch):
    monkeypatch.setattr("stage1.extras.is_there", lambda module: False)
    monkeypatch.setitem(sys.modules, "torch", None)
    if command == "report":
        from stage1.stages.reporting import rewrite_report

        with pytest.raises(MissingError, match="torch is not installed"):
            rewrite_report(finished.folder)
        return
    before = (finished.folder / "stages.json").read_bytes()
    with (
        pytest.raises(MissingError, match=rf"stage {command}: .*torch.*pip install 'stage1-pro\[train"),
        opened(finished.folder, None) as run,
    ):
        execute_one(run, STAGES, command, Progress(quiet=True), force=True)
    assert (finished.folder / "stages.json").read_bytes() == before


@pytest.mark.parametrize(
    "overrides, kind, words",
    [
        (["backbone.name=vit_smal_patch16_224"], ConfigError, "vit_small_patch16_224"),
        (["backbone.weights=nowhere.safetensors"], MissingError, "nowhere.safetensors"),
        (["backbone.weights=labels.csv"], Stage1Error, "labels.csv"),
        (["backbone.pooling=cls"], ConfigError, "no class token"),
        (["images.unfreeze=last", "images.device=cuda:77"], MissingError, "cuda:77"),
        (["images.unfreeze=last", "images.device=abacus"], ConfigError, "abacus"),
        (["images.unfreeze=last", "images.blocks=900"], ConfigError, "images.blocks"),
        (["pretrain.train_images=true"], ConfigError, "no plain ViT"),
        (["pretrain.folder=nowhere"], MissingError, "pretrain.folder"),
        (["risks={fnr.cat: 0.1}"], ConfigError, "cat"),
        (["class_coverage={dawn: 0.1}"], ConfigError, "dawn"),
        (["acceptance.reference=nowhere"], Stage1Error, "nowhere"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else None,
)
def test_what_cannot_be_had_is_said_before_an_image_is_read(overrides, kind, words, tmp_path, monkeypatch):
    pytest.importorskip("timm", reason="the extra train is not installed")
    table = photos_of_one_size(tmp_path / "photos", 8)
    monkeypatch.chdir(table.parent)

    def unread(*arguments, **options):
        raise AssertionError("an image was read")

    monkeypatch.setattr("stage1.data.ingest.decode", unread)
    with pytest.raises(kind, match=words), opened(tmp_path / "run", config_of(table, *overrides)) as run:
        execute(run, STAGES, Progress(quiet=True))
    assert not (tmp_path / "run").exists()


def test_what_can_be_had_passes(tmp_path):
    pytest.importorskip("timm", reason="the extra train is not installed")
    config = config_of(photos_of_one_size(tmp_path / "photos", 8))
    preflight(config, [stage for stage in STAGES if stage.wanted(config)])
    preflight(load_config(recipe="demo", environment={})[0], [calibrate.STAGE, bundle.STAGE])


def test_an_import_that_fails_for_lack_of_memory_is_not_a_missing_package():
    mapping = ImportError("libtorch_cpu.so: failed to map segment from shared object", name="json", path="/x/json.so")
    assert not isinstance(import_failure(mapping, "json"), MissingError)
    assert "cannot be loaded" in str(import_failure(mapping, "json"))
    assert "failed to map segment" in str(import_failure(mapping, "json"))
    missing = import_failure(ModuleNotFoundError("No module named 'nowhere.x'", name="nowhere.x"))
    assert isinstance(missing, MissingError)
    assert "nowhere is not installed" in str(missing)
    assert is_there("json.decoder")
    assert not is_there("nowhere")
    require(["json"], "this")
