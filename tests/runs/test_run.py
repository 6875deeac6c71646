"""A run from images to a bundle: artifacts, skipping, refusal, the way back in."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from stage1 import load_bundle, load_policy, run
from stage1.bundle import verify_bundle
from stage1.data.splits import SPLITS_KIND
from stage1.errors import ConfigError, IntegrityError, NotCertifiable, Stage1Error
from stage1.runs import Stage, outlook
from stage1.runs.directory import opened
from stage1.scores import read_role
from stage1.stages import STAGES, calibrate
from stage1.storage.documents import read_document

from ..command_line import stage1
from .conftest import SETTINGS, one_line_error

RISKS = {"miss_rate": 0.3, "false_exit_rate": 0.3}


@pytest.fixture
def copy(finished, tmp_path):
    return shutil.copytree(finished.folder, tmp_path / "run")


def test_the_bundle_is_what_was_certified(finished, photos):
    assert finished.certificate.certified
    assert verify_bundle(finished.bundle, recompute=True).problems == ()
    bundle = load_bundle(finished.bundle)
    assert bundle.policy == load_policy(finished.folder)
    test = read_role(finished.folder, "val_test")
    from stage1.data.table import SampleTable

    table = SampleTable.read(finished.folder / "samples.parquet")
    rows = table.rows("val_test")
    answers = bundle.predict([table.read_bytes(row) for row in rows])
    expected = bundle.policy.decide(test)
    assert [answer.exit for answer in answers] == expected.exit.tolist()
    assert np.allclose([answer.probability for answer in answers], expected.probability, atol=1e-5)
    assert expected.exit.mean() > 0


def test_roles_do_not_overlap_and_scores_belong_to_the_table(finished):
    seen: set[str] = set()
    for role in ("val_select", "val_calib", "val_test"):
        ids = set(read_role(finished.folder, role).ids.tolist())
        assert ids
        assert not ids & seen
        seen |= ids


def test_a_second_run_skips_everything_and_imports_no_torch(finished, photos):
    again = run(recipe="baseline", overrides=[*SETTINGS, f"data.table={photos}"], output=finished.folder)
    assert again.done == ()
    code = (
        f"from stage1 import run\nrun(recipe='baseline', overrides={[*SETTINGS, f'data.table={photos}']!r},"
        f" output={str(finished.folder)!r})\nimport sys\nprint('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_copied_run_directory_is_still_current(copy, photos):
    again = run(recipe="baseline", overrides=[*SETTINGS, f"data.table={photos}"], output=copy)
    assert again.done == ()


def test_a_damaged_artifact_is_made_again_and_ends_the_same(copy, photos, finished):
    (copy / "model.onnx").write_bytes(b"broken")
    again = run(recipe="baseline", overrides=[*SETTINGS, f"data.table={photos}"], output=copy)
    assert "export" in again.done
    assert "extract" not in again.done
    assert (copy / "model.onnx").read_bytes() == (finished.folder / "model.onnx").read_bytes()
    assert again.certificate == finished.certificate


def test_another_config_is_refused_and_then_redoes_only_what_depends_on_it(copy, photos):
    overrides = [*SETTINGS, f"data.table={photos}", "risks={miss_rate: 0.35, false_exit_rate: 0.3}"]
    with pytest.raises(ConfigError, match=r"risks.miss_rate: 0.3 -> 0.35"):
        run(recipe="baseline", overrides=overrides, output=copy)
    again = run(recipe="baseline", overrides=overrides, output=copy, allow_change=True)
    assert again.done == ("calibrate", "evaluate", "bundle")
    assert again.certificate.attempt == 2
    assert again.certificate.headline_confidence == pytest.approx(2 * again.certificate.confidence - 1)
    assert again.certificate.statement.startswith(
        f"With confidence {100 * again.certificate.headline_confidence:.4g} %"
    )
    assert verify_bundle(again.bundle, recompute=True).ok


def test_not_certifiable_defers_everything_writes_the_report_and_no_bundle(copy, photos):
    shutil.rmtree(copy / "bundle")
    overrides = [*SETTINGS, f"data.table={photos}", "risks={miss_rate: 0.001, false_exit_rate: 0.001}"]
    with pytest.raises(NotCertifiable, match=r"cannot certify .*needed with 0 errors.*more labelled"):
        run(recipe="baseline", overrides=overrides, output=copy, allow_change=True)
    assert not (copy / "bundle").exists()
    assert "Not certifiable" in (copy / "report.html").read_text()
    policy = load_policy(copy)
    assert not policy.certified
    assert not policy.decide(read_role(copy, "val_test")).exit.any()


def test_certifying_on_images_of_another_role_is_refused(copy):
    ids = json.loads((copy / "val_calib_ids.json").read_text())
    train = read_document(copy / "splits.json", SPLITS_KIND)
    from stage1.data.table import SampleTable

    table = SampleTable.read(copy / "samples.parquet")
    ids["ids"][0] = str(table.ids[table.rows("train")[0]])
    (copy / "val_calib_ids.json").write_text(json.dumps(ids))
    with opened(copy, None) as directory:
        from stage1.runs.progress import Progress
        from stage1.runs.stage import Context, Stop

        with pytest.raises(IntegrityError, match="has the role 'train'"):
            calibrate.STAGE.work(directory, Context(Progress(quiet=True), Stop()))
    assert train["leakage"] is False


def test_one_stage_alone_is_the_same_code_and_refuses_stale_input(copy):
    result = stage1("calibrate", copy, "--force", "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["done"] is True
    one_line_error(stage1("score", copy, "train.epochs=3"), 2, "train", "out of date")


def test_dry_run_says_what_would_happen_and_does_nothing(copy, photos):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    arguments = [
        "run",
        "--recipe",
        "baseline",
        *SETTINGS,
        f"data.table={photos}",
        "--output",
        copy,
        "--dry-run",
        "--json",
    ]
    stages = json.loads(stage1(*arguments).stdout)["stages"]
    assert [stage["skip"] for stage in stages] == [True] * 8
    stages = json.loads(stage1(*arguments, "head.kind=mlp", "--allow-change").stdout)["stages"]
    assert [stage["stage"] for stage in stages if stage["skip"]] == ["split", "extract"]
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_a_second_process_in_the_same_run_directory(copy):
    with opened(copy, None):
        one_line_error(stage1("calibrate", copy, "--force"), 1, "another process")


def test_a_full_disk_is_one_line_and_keeps_what_was_there(copy, monkeypatch):
    import errno
    import os

    before = (copy / "certificate.json").read_bytes()

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    from stage1.runs import execute_one
    from stage1.runs.progress import Progress

    with pytest.raises(Stage1Error, match="No space left on device"), opened(copy, None) as directory:
        execute_one(directory, STAGES, "evaluate", Progress(quiet=True), force=True)
    assert (copy / "certificate.json").read_bytes() == before


def test_stage_inputs_change_with_what_they_depend_on(copy):
    with opened(copy, None) as directory:
        rows = outlook(directory, STAGES)
        assert all(row["inputs_digest"] for row in rows)
        stage = Stage("x", ("seed",), lambda config: ("model.onnx",), lambda run, context: [])
        before = stage.inputs(directory)
        (copy / "model.onnx").write_bytes(b"other")
        assert stage.inputs(directory) != before
