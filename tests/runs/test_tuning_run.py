"""pretrain and tune inside a run: the backbone that they make is the one that is extracted, exported, certified and
shipped.
"""

from __future__ import annotations

import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stage1 import load_bundle, run
from stage1.bundle import verify_bundle
from stage1.config import load_config
from stage1.data.splits import SPLITS_KIND
from stage1.errors import ConfigError, DataError, MissingError
from stage1.runs import execute_one, opened, outlook
from stage1.runs.progress import Progress
from stage1.runs.schema import FEATURES_KIND, PARITY_KIND, PRETRAIN_KIND, TRAIN_KIND, TUNE_KIND
from stage1.runs.torchrun import require_alone
from stage1.scores import read_role
from stage1.stages import STAGES
from stage1.storage.documents import read_document
from stage1.storage.files import digest_file

from ..command_line import stage1
from .conftest import SETTINGS, one_line_error, write_photos

pytest.importorskip("timm", reason="the extra train is not installed")

TINY = (
    *SETTINGS,
    "backbone={name: test_vit, random_weights: true, input_size: 32, pooling: cls, weights: null}",
    "features.engine=onnx",  # auto measures, and a loaded machine may measure otherwise the next time
    "images.epochs=2",
    "images.batch_size=16",
    "images.workers=1",
    "images.threads=1",
    "adapter.rank=2",
    "pretrain.epochs=2",
    "pretrain.batch_size=16",
    "pretrain.rank=2",
    "pretrain.decoder_width=32",
    "pretrain.workers=1",
    "pretrain.threads=1",
)
WEIGHTS = "tune/backbone_tuned.safetensors"
PRETRAINED = "backbone_explora.safetensors"


@pytest.fixture(scope="module")
def tuned(photos, tmp_path_factory):
    """LoRA in a tiny ViT, from images to a bundle."""
    pytest.importorskip("peft", reason="the extra peft is not installed")
    folder = tmp_path_factory.mktemp("tuned") / "run"
    return run(recipe="lora", overrides=[*TINY, f"data.table={photos}"], output=folder)


@pytest.fixture
def unlabelled(tmp_path) -> Path:
    """Images that are in no role of `photos`."""
    return write_photos(tmp_path / "more", n=24, seed=77).parent / "images"


def fingerprint(result, file: str | None) -> str:
    from stage1.model.backbone import load_backbone

    config = load_config(result.folder / "config.yaml")[0]
    update = {} if file is None else {"weights": str(result.folder / file), "random_weights": False}
    return load_backbone(config.backbone.model_copy(update=update), config.seed).fingerprint


def answers_as_scored(result) -> None:
    """Predictions of the bundle on val_test beside the decisions on its scores."""
    from stage1.data.table import SampleTable

    table = SampleTable.read(result.folder / "samples.parquet")
    bundle, scores = load_bundle(result.bundle), read_role(result.folder, "val_test")
    answers = bundle.predict([table.read_bytes(row) for row in table.rows("val_test")])
    expected = bundle.policy.decide(scores)
    assert [answer.exit for answer in answers] == expected.exit.tolist()
    assert np.allclose([answer.probability for answer in answers], expected.probability, atol=1e-4)
    assert verify_bundle(result.bundle, recompute=True).problems == ()


# ---- tune --------------------------------------------------------------------------------------------------------


def test_the_tuned_backbone_is_the_one_that_ships(tuned):
    assert tuned.done == ("split", "tune", "extract", "train", "export", "score", "calibrate", "evaluate", "bundle")
    features, facts = (
        read_document(tuned.folder / "features.json", FEATURES_KIND),
        read_document(tuned.folder / "tune" / "tune.json", TUNE_KIND),
    )
    assert features["fingerprint"] == facts["fingerprint"] == fingerprint(tuned, WEIGHTS) != fingerprint(tuned, None)
    assert features["weights"] == "backbone_tuned.safetensors"
    assert 0 < facts["share"] < 0.2
    assert (tuned.folder / "tune" / "adapter" / "adapter_config.json").is_file()
    assert read_document(tuned.folder / "parity.json", PARITY_KIND)["passed"]
    assert tuned.certificate.certified
    answers_as_scored(tuned)


def test_nothing_is_done_twice_and_what_follows_from_tune_follows(tuned, photos, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tuned.folder, folder)
    quiet = Progress(quiet=True)

    def changed(*more: str):
        config, _ = load_config(recipe="lora", overrides=[*TINY, f"data.table={photos}", *more])
        return opened(folder, config, allow_change=True)

    def skipped(directory) -> list[str]:
        return [row["stage"] for row in outlook(directory, STAGES) if row["skip"]]

    with changed() as directory:
        assert tuple(skipped(directory)) == tuned.done
    with changed("head.kind=mlp") as directory:  # another head needs no other backbone
        assert skipped(directory) == ["split", "tune", "extract"]
    before = digest_file(folder / WEIGHTS)
    with changed("images.learning_rate=0.01") as directory:
        assert skipped(directory) == ["split"]
        assert execute_one(directory, STAGES, "tune", quiet)
        assert digest_file(folder / WEIGHTS) != before
        assert skipped(directory) == ["split", "tune"]
    with changed("adapter.kind=none") as directory:  # no such stage, and the backbone is the given one again
        assert [row["stage"] for row in outlook(directory, STAGES)][:3] == ["split", "extract", "train"]
        assert skipped(directory) == ["split"]
        assert execute_one(directory, STAGES, "extract", quiet)
        assert read_document(folder / "features.json", FEATURES_KIND)["fingerprint"] == fingerprint(tuned, None)
        with pytest.raises(ConfigError, match=r"no stage 'tune'.*adapter\.kind=lora.*images\.unfreeze=last"):
            execute_one(directory, STAGES, "tune", quiet)


@pytest.mark.slow
def test_a_stage_that_goes_leaves_no_trace_in_the_run(tuned, photos, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tuned.folder, folder)
    settings = [*TINY, f"data.table={photos}"]
    assert run(recipe="lora", overrides=settings, output=folder).done == ()
    plain = run(recipe="lora", overrides=[*settings, "adapter.kind=none"], output=folder, allow_change=True)
    assert plain.skipped == ("split",)
    assert "tune" not in plain.done
    with opened(folder, None) as directory:
        assert "tune" not in directory.state
    answers_as_scored(plain)
    back = run(recipe="lora", overrides=settings, output=folder, allow_change=True)
    assert back.done[0] == "tune"
    assert digest_file(folder / "bundle" / "model.onnx") == digest_file(tuned.folder / "bundle" / "model.onnx")


def test_damaged_weights_are_noticed(tuned, photos, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tuned.folder, folder)
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    again = run(recipe="lora", overrides=[*TINY, f"data.table={photos}"], output=folder)
    # The checkpoint holds them still: made again, bit by bit, so nothing after it changes.
    assert again.done == ("tune",)
    assert digest_file(path) == digest_file(tuned.folder / WEIGHTS)


def test_the_command_prints_share_and_loss(tuned, photos, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tuned.folder, folder)
    one_line_error(stage1("pretrain", folder), 2, "no stage 'pretrain'", "pretrain.folder=FOLDER")
    result = stage1("tune", folder, "adapter.kind=norm", "images.epochs=1")
    assert result.returncode == 0, result.stderr
    assert "parameters are trained (" in result.stderr
    assert "nll" in result.stderr
    assert str(folder / WEIGHTS) in result.stdout
    assert not any((folder / "tune" / "adapter").glob("adapter_config.json"))  # of the earlier LoRA nothing is left
    one_line_error(stage1("train", folder), 2, "stage 'extract' is not done or out of date")


def test_a_time_budget_is_planned_said_and_written_down(tuned, photos, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tuned.folder, folder)
    for bad in ("0", "-1", "nan", "inf", "soon"):
        one_line_error(stage1("tune", folder, f"images.minutes={bad}"), 2, "images.minutes")
    refused = stage1("tune", folder, "images.minutes=1e-6")
    one_line_error(refused, 2, "images.minutes=1e-06: not one step fits", "or more")
    assert not (folder / "tune" / "checkpoints" / "last.safetensors").exists()
    result = stage1("tune", folder, "images.minutes=9", "adapter.kind=norm")
    assert result.returncode == 0, result.stderr
    planned = r"  \d+ images, [\d.e-]+ s a step of 16: 2 epochs \(all of images\.epochs\) in [\d.]+ of 9 minutes"
    assert [line for line in result.stderr.splitlines() if re.fullmatch(planned, line)]
    budget = read_document(folder / "tune" / "tune.json", TUNE_KIND)["budget"]
    assert (budget["minutes"], budget["epochs"], budget["cut_short"]) == (9.0, 2, False)
    assert "budget" not in read_document(tuned.folder / "tune" / "tune.json", TUNE_KIND)


def test_obeying_what_an_error_of_tune_advises_ends_the_error(photos, tmp_path):
    """Each message names a key that the stage reads, and the same run directory takes the corrected command."""
    folder = tmp_path / "run"
    bad = ["images.learning_rate=1e30", "train.clip_norm=null", "images.unfreeze=all", "images.learning_rate_scale=1"]
    settings = [*TINY, "adapter.kind=none", f"data.table={photos}", "images.batch_size=5000"]
    assert stage1("split", folder, "--recipe", "lora", *settings, *bad).returncode == 0
    refused = stage1("tune", folder)
    one_line_error(refused, 2, "images.batch_size=5000")
    obeyed = re.search(r"lower (images\.batch_size) to (\d+)", refused.stderr)
    assert obeyed is not None, refused.stderr
    smaller = f"{obeyed[1]}={obeyed[2]}"  # given again below: a refused stage leaves the config as it was
    diverged = stage1("tune", folder, smaller)
    one_line_error(diverged, 1, "images.learning_rate")
    assert "fresh" not in diverged.stderr  # what no command takes
    obeyed = re.search(r"lower (images\.learning_rate) \(1e\+30\)", diverged.stderr)
    assert obeyed is not None, diverged.stderr
    done = stage1("tune", folder, smaller, f"{obeyed[1]}=1e-4")
    assert done.returncode == 0, done.stderr
    assert (folder / WEIGHTS).is_file()


def test_a_model_that_cannot_be_exported_is_found_before_it_is_trained(photos, tmp_path, monkeypatch):
    from stage1.model import export

    def refused(*args, **kwargs):
        raise RuntimeError("no such operator")

    monkeypatch.setattr(export.torch.onnx, "export", refused)
    for name, extra in (("lora", []), ("explora", ["pretrain.train_images=true", "pretrain.folder=null"])):
        with pytest.raises(ConfigError, match="VisionTransformer cannot be exported to ONNX"):
            run(recipe=name, overrides=[*TINY, f"data.table={photos}", *extra], output=tmp_path / name)
        assert not list((tmp_path / name).glob("**/last.safetensors"))


def test_a_backbone_whose_weights_are_not_there(photos, tmp_path, monkeypatch):
    for recipe in ("lora", "dora", "explora"):
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(MissingError, match=r"dinov2.*no weights.*hf download.*backbone\.weights=FILE"):
            run(recipe=recipe, overrides=[f"data.table={photos}"], output=tmp_path / recipe)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["dora", "finetune"])
def test_other_recipes_run_to_a_bundle(recipe, photos, tmp_path):
    small = [item for item in TINY if recipe == "dora" or not item.startswith("backbone=")]
    source = [f"data.table={photos}", "data.source=auto"]
    result = run(recipe=recipe, overrides=[*small, *source, "images.epochs=1"], output=tmp_path / "run")
    assert "tune" in result.done
    assert fingerprint(result, WEIGHTS) != fingerprint(result, None)
    answers_as_scored(result)


# ---- the head trained along, and the one trained again ---------------------------------------------------------------

ALONG = "tune/model_best.pth"
# Settings with which the head of `train`, or the one of `tune`, has learnt next to nothing.
NEW_IS_WEAK = ("train.epochs=1", "train.learning_rate=1e-7", "images.learning_rate=0.02", "images.epochs=12")
OLD_IS_WEAK = ("train.epochs=20", "train.learning_rate=0.01", "images.learning_rate=1e-7", "images.epochs=1")


def until(photos, folder: Path, *more: str, recipe: str = "lora", last: str = "train") -> list[str]:
    """The stages up to `last`, those that are not current; returns what they said."""
    config, _ = load_config(recipe=recipe, overrides=[*TINY, f"data.table={photos}", *more])
    said: list[str] = []
    progress = Progress(quiet=True)
    progress.say = said.append  # type: ignore[method-assign]
    with opened(folder, config, allow_change=True) as directory:
        for row in outlook(directory, STAGES):
            execute_one(directory, STAGES, row["stage"], progress)
            if row["stage"] == last:
                return said
    raise AssertionError(f"no stage {last}")


def facts_of(folder: Path) -> dict:
    return read_document(folder / "train.json", TRAIN_KIND)


@pytest.fixture(scope="module")
def along(tuned, photos, tmp_path_factory):
    """Run directory up to the scores in which the head trained along ships, and what was said on the way."""
    folder = tmp_path_factory.mktemp("along") / "run"
    shutil.copytree(tuned.folder, folder)
    return folder, until(photos, folder, *NEW_IS_WEAK, last="score")


def test_the_head_trained_along_ships_where_it_is_better(along):
    folder, said = along
    facts, tune = facts_of(folder), read_document(folder / "tune" / "tune.json", TUNE_KIND)
    found = facts["along"]
    assert found["ships"] == "along"
    assert found["along"]["scaled_nll"] < found["again"]["scaled_nll"]
    assert digest_file(folder / "model_best.pth") == digest_file(folder / ALONG)
    # On cached features of the exported backbone it is what it was on images, and train.json tells of it.
    assert found["along"]["nll"] == pytest.approx(tune["metrics"]["nll"], abs=1e-4)
    assert facts["best_metric"] == found["along"]["nll"] == facts["metrics"]["nll"]
    assert (facts["best_epoch"], facts["used_ema"], facts["epochs_run"]) == tuple(
        tune[name] for name in ("best_epoch", "used_ema", "epochs_run")
    )
    (line,) = [line for line in said if "trained along" in line]
    assert f"{found['again']['scaled_nll']:.5f}" in line
    assert f"{found['along']['scaled_nll']:.5f}" in line
    assert "the one trained along ships" in line
    # It is in the graph that is certified: `export` has checked the parity with it, and these are its scores.
    scores = read_role(folder, "val_select")
    logits = scores.logits - scores.logits.max(axis=1, keepdims=True)
    chosen = logits[np.arange(len(logits)), scores.labels] - np.log(np.exp(logits).sum(axis=1))
    assert -chosen.mean() == pytest.approx(found["along"]["nll"], abs=1e-4)


def test_and_not_where_it_is_worse(tuned, photos, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tuned.folder, folder)
    said = until(photos, folder, *OLD_IS_WEAK)
    along = facts_of(folder)["along"]
    assert along["ships"] == "again"
    assert along["again"]["scaled_nll"] < along["along"]["scaled_nll"]
    assert facts_of(folder)["best_metric"] == along["again"]["nll"]
    assert digest_file(folder / "model_best.pth") != digest_file(folder / ALONG)
    assert any("the new one ships" in line for line in said)


def test_a_kill_before_the_choice_changes_nothing(along, photos, tmp_path, monkeypatch):
    folder, quiet = tmp_path / "copy", Progress(quiet=True)
    shutil.copytree(along[0], folder)
    kept = {name: digest_file(folder / name) for name in ("model_best.pth", "train.json", "metrics.csv")}

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    for redo in ("all", "choice"):  # without a checkpoint of the new head, and with the finished one
        if redo == "all":
            shutil.rmtree(folder / "checkpoints")
        with opened(folder, None) as directory, monkeypatch.context() as patch:
            patch.setattr("stage1.training.head_choice.save_weights", die)
            with pytest.raises(KeyboardInterrupt):
                execute_one(directory, STAGES, "train", quiet, force=True)
            assert "train" not in directory.state
        assert digest_file(folder / "model_best.pth") != kept["model_best.pth"]  # the new one's
        with opened(folder, None) as directory:
            assert execute_one(directory, STAGES, "train", quiet)
        assert {name: digest_file(folder / name) for name in kept} == kept
    with opened(folder, None) as directory:
        assert all(row["skip"] for row in outlook(directory, STAGES) if row["stage"] in ("train", "export", "score"))


def test_train_depends_on_the_head_trained_along(tuned, photos, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tuned.folder, folder)
    with opened(folder, None) as directory:
        before = {row["stage"]: row for row in outlook(directory, STAGES)}
        assert ALONG in before["train"]["reads"]
        assert ALONG in directory.state["tune"]["outputs"]
        weights = (folder / ALONG).read_bytes()
        (folder / ALONG).write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
        stage = next(stage for stage in STAGES if stage.name == "train")
        assert stage.inputs(directory) != before["train"]["inputs_digest"]
    again = run(recipe="lora", overrides=[*TINY, f"data.table={photos}"], output=folder)
    assert again.done == ("tune",)  # made again from its checkpoint, bit by bit
    assert (folder / ALONG).read_bytes() == weights


def test_another_kind_of_head_is_not_compared_and_that_is_said(tuned, photos, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(tuned.folder, folder)
    said = until(photos, folder, "head.kind=mlp")
    assert facts_of(folder)["along"]["ships"] == "again"
    assert "head.kind=mlp" in facts_of(folder)["along"]["skipped"]
    assert any("is not compared: head.kind=mlp" in line for line in said)


def test_without_tune_nothing_is_said_of_it(finished):
    assert "along" not in facts_of(finished.folder)


# ---- pretrain ----------------------------------------------------------------------------------------------------


def test_pretraining_then_a_probe(photos, unlabelled, tmp_path):
    settings = [*TINY, f"data.table={photos}", f"pretrain.folder={unlabelled}"]
    result = run(recipe="explora", overrides=settings, output=tmp_path / "run")
    assert result.done[:3] == ("split", "pretrain", "extract")
    assert "tune" not in result.done
    facts = read_document(result.folder / "pretrain.json", PRETRAIN_KIND)
    features = read_document(result.folder / "features.json", FEATURES_KIND)
    assert (
        features["fingerprint"] == facts["fingerprint"] == fingerprint(result, PRETRAINED) != fingerprint(result, None)
    )
    counts = read_document(result.folder / "splits.json", SPLITS_KIND)["counts"]["train"]
    assert facts["images"] == 24 + sum(counts.values())
    with (result.folder / "pretrain.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(rows[0]["loss"]), float(rows[-1]["loss"])] == [facts["loss_first"], facts["loss_last"]]
    answers_as_scored(result)
    assert run(recipe="explora", overrides=settings, output=tmp_path / "run").done == ()
    # More unlabelled images: pretraining and all that hangs on it are done again.
    for path in (write_photos(tmp_path / "later", n=4, seed=78).parent / "images").iterdir():
        shutil.copy(path, unlabelled / f"later{path.name}")
    with opened(tmp_path / "run", None) as directory:
        assert [row["stage"] for row in outlook(directory, STAGES) if row["skip"]] == ["split"]
        assert execute_one(directory, STAGES, "pretrain", Progress(quiet=True))
    assert read_document(result.folder / "pretrain.json", PRETRAIN_KIND)["images"] == facts["images"] + 4


def test_unlabelled_images_of_val_calib_and_val_test_are_refused(photos, unlabelled, tmp_path):
    from stage1.data.table import SampleTable

    settings = [*TINY, f"data.table={photos}", f"pretrain.folder={unlabelled}", "pretrain.train_images=false"]
    config, _ = load_config(recipe="explora", overrides=settings)
    with opened(tmp_path / "run", config) as directory:
        execute_one(directory, STAGES, "split", Progress(quiet=True))
        table = SampleTable.read(directory / "samples.parquet")
        row = int(table.rows("val_test")[0])
        (unlabelled / "copied.jpg").write_bytes(table.read_bytes(row))
        with pytest.raises(DataError, match=r"1 of 25 images overlap val_calib and val_test.*copied\.jpg.*same bytes"):
            execute_one(directory, STAGES, "pretrain", Progress(quiet=True))
        assert not (directory / PRETRAINED).exists()
        # Of train the same image may be there.
        row = int(table.rows("train")[0])
        (unlabelled / "copied.jpg").write_bytes(table.read_bytes(row))
        execute_one(directory, STAGES, "pretrain", Progress(quiet=True))
        assert read_document(directory / "pretrain.json", PRETRAIN_KIND)["images"] == 25


@pytest.mark.slow
def test_pretraining_and_tuning_in_one_run(photos, tmp_path):
    pytest.importorskip("peft", reason="the extra peft is not installed")
    settings = [*TINY, f"data.table={photos}", "adapter.kind=rslora"]
    result = run(recipe="explora", overrides=settings, output=tmp_path / "run")
    assert result.done[:4] == ("split", "pretrain", "tune", "extract")
    made = {fingerprint(result, file) for file in (None, PRETRAINED, WEIGHTS)}
    assert len(made) == 3
    assert read_document(result.folder / "features.json", FEATURES_KIND)["fingerprint"] == fingerprint(result, WEIGHTS)


# ---- stopping, and many processes --------------------------------------------------------------------------------


def command(photos, folder: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "stage1.cli",
        "run",
        "--recipe",
        "lora",
        *TINY,
        "images.epochs=6",
        f"data.table={photos}",
        "--output",
        str(folder),
        *more,
    ]


def signalled_after_a_checkpoint(arguments: list[str], path: Path, number: int) -> int:
    """Exit code of a run that gets this signal as soon as `path` is there."""
    with subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        while process.poll() is None and not path.exists():
            time.sleep(0.01)
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, number)
        return process.wait(timeout=120)


@pytest.mark.slow
def test_kill_in_tune_and_resume_to_the_same_bits(photos, tmp_path):
    pytest.importorskip("peft", reason="the extra peft is not installed")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(photos, whole), check=True, capture_output=True, timeout=300)
    checkpoint = killed / "tune" / "checkpoints" / "last.safetensors"
    assert signalled_after_a_checkpoint(command(photos, killed), checkpoint, signal.SIGKILL) == -signal.SIGKILL
    assert not (killed / WEIGHTS).exists()
    # Politely, the next time: a checkpoint at the step where it is, and the exit code that says so.
    checkpoint.unlink()
    assert signalled_after_a_checkpoint(command(photos, killed), checkpoint, signal.SIGTERM) == 75
    assert not (killed / WEIGHTS).exists()
    subprocess.run(command(photos, killed), check=True, capture_output=True, timeout=300)
    for name in (WEIGHTS, "tune/metrics.csv", "model_best.pth", "model.onnx", "certificate.json", "bundle/bundle.json"):
        assert digest_file(killed / name) == digest_file(whole / name), name
    assert '"event": "resume"' in (killed / "tune" / "log.jsonl").read_text()


@pytest.mark.slow
def test_two_processes_tune_what_one_would(tuned, photos, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(tuned.folder, folder)
    shutil.rmtree(folder / "tune")
    arguments = ["--standalone", "--nproc-per-node", "2", "-m", "stage1.cli", "tune", str(folder)]
    result = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *arguments], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(str(folder / WEIGHTS)) == 1  # one of them reports
    facts = read_document(folder / "tune" / "tune.json", TUNE_KIND)
    alone = read_document(tuned.folder / "tune" / "tune.json", TUNE_KIND)
    assert (facts["processes"], alone["processes"]) == (2, 1)
    assert facts["metrics"]["train_loss"] == pytest.approx(alone["metrics"]["train_loss"], rel=1e-4)
    assert stage1("tune", folder).returncode == 0  # what two have made is current for one


def test_other_stages_are_the_work_of_one_process(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="only `tune` takes many"):
        require_alone("`stage1 run`", STAGES)
