"""A head on pooled features from images to a bundle: trained, certified, shipped; swapped parts are refused."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1 import load_bundle, run
from stage1.bundle import verify_bundle
from stage1.bundle.schema import BUNDLE_KIND
from stage1.config import load_config
from stage1.data.table import SampleTable
from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.inference import Predictor
from stage1.policy import Certificate
from stage1.runs.schema import PARITY_KIND, TRACE_KIND
from stage1.runtime.crops import ViewPolicy, cut, parse_views
from stage1.runtime.session import Engine
from stage1.scores import read_role
from stage1.storage.documents import read_document
from stage1.views import Pooled, ViewsDocument, deciding_view

from ..command_line import stage1
from .conftest import SETTINGS, one_line_error

pytest.importorskip("timm", reason="the extra train is not installed")


@pytest.fixture(scope="module")
def signs(tmp_path_factory) -> Path:
    from .test_views_run import write_small_signs

    return write_small_signs(tmp_path_factory.mktemp("signs"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


def go(signs, store, folder, *overrides):
    settings = [*SETTINGS, f"data.table={signs}", f"features.store={store}", *overrides]
    return run(recipe="baseline", overrides=settings, output=folder)


@pytest.fixture(scope="module")
def pooled(signs, store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pooled"
    return go(signs, store, folder, "views.grid=2x2", "views.train=pooled", "head.kind=mlp", "head.gate=linear")


def test_the_bundle_is_certified_for_its_views_and_answers_as_it_was_scored(pooled):
    views = ViewsDocument.load(pooled.bundle / "views.json")
    assert views == ViewsDocument(ViewPolicy(grid=(2, 2)), Pooled())
    certificate = Certificate.load(pooled.bundle / "certificate.json")
    assert certificate.views is not None
    assert certificate.views.digest == views.digest
    assert "5 views (whole + 2x2 tiles, 12 % overlap), by their pooled features" in certificate.statement
    assert verify_bundle(pooled.bundle, recompute=True).problems == ()
    table = SampleTable.read(pooled.folder / "samples.parquet")
    images = [table.read_bytes(row) for row in table.rows("val_test")]
    bundle, scores = load_bundle(pooled.bundle), read_role(pooled.folder, "val_test")
    answers, expected = bundle.predict(images), bundle.policy.decide(scores)
    assert [answer.exit for answer in answers] == expected.exit.tolist()
    assert np.allclose([answer.probability for answer in answers], expected.probability, atol=1e-4)
    assert {answer.views for answer in answers} == {5}
    assert read_document(pooled.folder / "parity.json", PARITY_KIND)["passed"]
    evaluation = read_document(pooled.folder / "evaluation.json", EVALUATION_KIND)
    assert evaluation["views"]["mean"] == 5.0
    assert "pooled over the views" in (pooled.folder / "report.html").read_text()


def test_scores_are_those_of_the_engine_on_cut_images(pooled):
    """By hand: cut, one forward, the gate is the model's own, the deciding view by what falls without it."""
    from stage1.runtime.images import decode
    from stage1.runtime.preprocessing import Preprocessing

    manifest = read_document(pooled.bundle / "bundle.json", BUNDLE_KIND)
    spec = Preprocessing.from_json(manifest["preprocessing"])
    engine, policy = Engine(pooled.bundle / "model.onnx"), ViewPolicy(grid=(2, 2))
    assert engine.views == 5
    table = SampleTable.read(pooled.folder / "samples.parquet")
    rows = table.rows("val_test")[:6]
    batch = np.stack([cut(decode(table.read_bytes(row)), policy, spec) for row in rows])
    outputs = dict(zip(engine.output_names, engine.run(batch), strict=True))
    scores = read_role(pooled.folder, "val_test")
    assert np.allclose(scores.logits[:6], outputs["logits"], atol=1e-4)
    assert scores.gate is not None
    assert np.allclose(scores.gate[:6], outputs["gate_logits"], atol=1e-4)
    trace = read_document(pooled.folder / "looked.json", TRACE_KIND)
    assert trace["deciding"][:6] == deciding_view(outputs["logits"], outputs["without_view"]).tolist()
    without = outputs["without_view"].astype(np.float64)
    assert np.allclose(scores.extra["view_spread"][:6], (without[..., 1] - without[..., 0]).std(axis=1), atol=1e-4)


def test_the_clients_detector_answers_the_same(pooled):
    from stage1.streetvision import Stage1Detector

    table = SampleTable.read(pooled.folder / "samples.parquet")
    images = [table.read_bytes(row) for row in table.rows("val_test")]
    detector = Stage1Detector(config_name=str(pooled.bundle))
    answers = load_bundle(pooled.bundle).predict(images)
    found = [detector.answer(Image.open(io.BytesIO(image))).stage1 for image in images]
    assert [(one.exit, detector.classes[one.label]) for one in found] == [(one.exit, one.label) for one in answers]
    assert np.allclose([one.probability for one in found], [one.probability for one in answers], atol=1e-6)
    assert detector.counts["fallback"] == 0


def test_other_views_are_refused_and_a_stock_folder_too(pooled, tmp_path):
    with pytest.raises(ConfigError, match="is certified for 5 views"):
        load_bundle(pooled.bundle).require_views(parse_views("3x3"))
    one_line_error(stage1("export", pooled.folder, "--to", "hf", tmp_path / "hf"), 2, "looks at 5 views")


def test_parts_of_different_runs_are_refused(pooled, signs, store, tmp_path):
    plain = go(signs, store, tmp_path / "plain")
    spec = load_bundle(plain.bundle).predictor.preprocessing
    classes, views = ("a", "b"), ViewsDocument(ViewPolicy(grid=(2, 2)), Pooled())
    more = ViewsDocument(ViewPolicy(grid=(3, 3)), Pooled())
    for model, given in ((pooled, None), (plain, views), (pooled, more)):
        with pytest.raises(IntegrityError, match=r"use the model and views\.json of one run"):
            Predictor(model.bundle / "model.onnx", spec, classes, views=given)
    shutil.copytree(pooled.folder, tmp_path / "mixed")
    shutil.copy(plain.folder / "model.onnx", tmp_path / "mixed" / "model.onnx")
    one_line_error(stage1("score", tmp_path / "mixed"), 2, "out of date")


def test_broken_and_small_images_are_answered_apart(pooled, tmp_path):
    Image.new("RGB", (40, 30), (120, 120, 120)).save(tmp_path / "small.png")
    Image.new("RGB", (900, 1), (120, 120, 120)).save(tmp_path / "line.png")
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    small, line, broken = load_bundle(pooled.bundle).predict(
        [tmp_path / name for name in ("small.png", "line.png", "cut.jpg")]
    )
    assert small.small
    assert small.error is None
    assert line.error is None
    assert broken.error is not None
    assert broken.decision == "defer"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("views.adaptive=true", "adaptive does not go with train=pooled"),
        ("views.aggregate=max", "aggregate does not go with train=pooled"),
        ("views.pool=lse:8", "pool does not go with train=pooled"),
    ],
)
def test_settings_that_do_not_go_with_it_are_named(override, words):
    with pytest.raises((ConfigError, DataError), match=words):
        load_config(overrides=["views.grid=2x2", "views.train=pooled", override])
    with pytest.raises(ConfigError, match="needs views beside the whole image"):
        load_config(overrides=["views.train=pooled"])


def test_three_classes_and_a_sweep(tmp_path):
    """More than two classes, with heads that other ways of learning from views refuse."""
    rng = np.random.default_rng(0)
    rows = ["image,label"]
    for index in range(180):
        name, colour = ("red", "green", "blue")[index % 3], np.zeros(3)
        colour[index % 3] = 90
        pixels = rng.normal(90, 30, (64, 64, 3))
        top, left = rng.integers(0, 40, 2)
        pixels[top : top + 24, left : left + 24] += colour
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{name}")
    (tmp_path / "labels.csv").write_text("\n".join(rows) + "\n")
    result = run(
        recipe="baseline",
        output=tmp_path / "run",
        overrides=[
            *(one for one in SETTINGS if not one.startswith("risks")),
            f"data.table={tmp_path / 'labels.csv'}",
            "risks={error: 0.4}",
            "views.grid=2x2",
            "views.train=pooled",
            "sweep.enabled=true",
            "sweep.seeds=1",
            "sweep.weight_decays=[0.01]",
            "sweep.label_smoothings=[0.0]",
        ],
    )
    bundle = load_bundle(result.bundle)
    scores = read_role(result.folder, "val_test")
    assert scores.logits.shape[1] == 3
    assert bundle.views.count == 5
    assert (scores.logits.argmax(axis=1) == scores.known_labels).mean() > 0.6
