"""Bundles whose head makes one answer of all views: looked at in one forward, and refused where model and
views.json disagree.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1.errors import IntegrityError
from stage1.inference import load_bundle
from stage1.runtime.crops import WHOLE, ViewPolicy, cut
from stage1.runtime.preprocessing import Preprocessing
from stage1.streetvision import Stage1Detector
from stage1.streetvision.bare_session import Session
from stage1.streetvision.looks import ALONE, views_of
from stage1.views import Pool, Pooled, ViewsDocument

from ..bundle.conftest import edit, reseal, tiny_model
from ..runs.conftest import stage1
from .bundles import make_bundle, view_model
from .test_detector import ISOLATED, pictures

VIEWS = ViewPolicy(grid=(2, 2))
POOLED = ViewsDocument(VIEWS, Pooled())
SPEC = Preprocessing(size=16)


def session(model: bytes) -> Session:
    return Session(model, "model.onnx", device="cpu", threads=1, size=16)


def document_of(policy: ViewPolicy = VIEWS, name: str = "pooled", **changes: object) -> dict[str, object]:
    plain = {"policy": policy.to_json(), "views": list(policy.names), "aggregator": {"name": name}, "sequence": None}
    return json.loads(json.dumps(plain | {"comparison": None} | changes))


# ---- the session -----------------------------------------------------------------------------------------------------


def test_a_session_tells_how_many_views_its_model_takes():
    assert session(view_model(5)).views == 5
    assert session(view_model(3)).views == 3
    assert session(tiny_model()).views is None


@pytest.mark.parametrize("gate", [False, True])
def test_a_view_model_has_one_row_for_an_image_and_one_without_each_view(gate):
    tensors = np.random.default_rng(1).normal(0, 1, (5, 3, 16, 16)).astype(np.float32)
    found = session(view_model(5, gate=gate)).run(tensors)
    reds = 6.0 * (tensors[:, 0].mean(axis=(1, 2)) - tensors[:, 2].mean(axis=(1, 2)))
    score = 0.5 * (reds[0] + reds[1:].max())
    np.testing.assert_allclose(found.logits, [[-0.4 * score, 0.6 * score]], atol=1e-5)
    np.testing.assert_allclose(found.without, np.outer(score - 0.5 * reds, [-0.4, 0.6]), atol=1e-5)
    if gate:
        np.testing.assert_allclose(found.gate, [abs(score)], atol=1e-5)
    else:
        assert found.gate is None


def test_a_model_of_single_views_has_nothing_without_a_view():
    found = session(tiny_model()).run(np.zeros((5, 3, 16, 16), np.float32))
    assert (found.logits.shape, found.gate, found.without) == ((5, 2), None, None)


def _open_views(onnx_model: bytes) -> bytes:
    import onnx

    model = onnx.load_from_string(onnx_model)
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "V"
    return bytes(model.SerializeToString())


ODD = {
    "no logits": (lambda: view_model(drop="logits"), "no output `logits`"),
    "nothing without a view": (lambda: view_model(drop="without_view"), "no output `without_view`"),
    "any number of views": (lambda: _open_views(view_model()), "one image input expected"),
    "another size": (lambda: view_model(), "takes 16 px, the bundle says 32"),
}


@pytest.mark.parametrize("case", ODD)
def test_a_model_that_is_no_export_is_refused_in_one_line(case):
    model, words = ODD[case]
    with pytest.raises(IntegrityError, match=words) as caught:
        Session(model(), "model.onnx", device="cpu", threads=1, size=32 if case == "another size" else 16)
    assert "\n" not in str(caught.value)


NO_ANSWER = {
    "three classes": ({"outputs": 3}, r"logits \[1, 3\]"),
    "NaN": ({"scale": np.nan}, "NaN or infinity"),
    "NaN without a view": ({"share": np.nan}, "NaN or infinity"),
}


@pytest.mark.parametrize("case", NO_ANSWER)
def test_what_is_no_answer_of_two_classes_is_refused(case):
    options, words = NO_ANSWER[case]
    with pytest.raises(IntegrityError, match=words):
        session(view_model(**options)).run(np.zeros((5, 3, 16, 16), np.float32))


# ---- the look --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [VIEWS, ViewPolicy(whole=False, grid=(2, 1), flips=True)], ids=["whole", "tiles"])
@pytest.mark.parametrize("gate", [False, True])
def test_one_forward_of_all_views_gives_logits_and_gate_as_they_are(policy, gate):
    opened = session(view_model(policy.count, gate=gate))
    rgb = np.random.default_rng(2).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    asked = []

    def run(tensors):
        asked.append(tensors)
        return opened.run(tensors)

    views = views_of(document_of(policy), {"digest": "d"}, "d", gated=gate)
    scores = views.look(rgb, SPEC, run)
    (tensors,) = asked
    np.testing.assert_array_equal(tensors, cut(rgb, policy, SPEC))
    outputs = opened.run(tensors)
    np.testing.assert_array_equal(scores.logits, outputs.logits)
    if gate:
        np.testing.assert_array_equal(scores.gate, outputs.gate)
    else:
        assert scores.gate is None
    spread = np.std(outputs.without[:, 1] - outputs.without[:, 0])
    assert scores.extra["view_spread"] == pytest.approx([spread], rel=1e-12)
    assert spread > 0.01


def test_a_head_of_all_views_with_a_sequence_is_none_that_a_run_writes():
    document = document_of(sequence={"order": [0, 1, 2, 3, 4], "steps": []})
    with pytest.raises(IntegrityError, match="not one that a run writes"):
        views_of(document, {"digest": "d"}, "d")


MET = {
    "pooled": (document_of(), 5, None),
    "single": (document_of(name="mean"), None, None),
    "no views": (None, None, None),
    "pooled, a model of single views": (document_of(), None, "model of all 5 at once"),
    "other aggregator, a view model": (document_of(name="mean"), 5, "views.json is for a model of single views"),
    "no views.json, a view model": (None, 5, "takes 5 views of an image at once, there is no views.json"),
    "whole alone by name, a view model": (document_of(WHOLE, "whole"), 1, "model of single views"),
    "pooled, other number": (document_of(), 4, "takes 4 views of an image, views.json has 5"),
}


@pytest.mark.parametrize("case", MET)
def test_model_and_views_must_be_for_each_other(case):
    document, count, words = MET[case]
    views = views_of(document, document and {"digest": "d"}, document and "d")
    if words is None:
        views.require_model(count, "bundle/model.onnx")
        assert (document is None) == (views is ALONE)
        return
    with pytest.raises(IntegrityError, match=f"^bundle/model.onnx: .*{words}.*; bundle it anew$") as caught:
        views.require_model(count, "bundle/model.onnx")
    assert "\n" not in str(caught.value)


# ---- whole bundles ---------------------------------------------------------------------------------------------------

KINDS = {
    "softmax, platt": {"map_name": "platt"},
    "scrc": {"policy": "scrc"},
    "gate of the model": {"policy": "gate", "gate": True},
    "gate that takes the spread": {"policy": "gate", "spread": True},
    "tiles alone": {"views": ViewsDocument(ViewPolicy(whole=False, grid=(1, 2), flips=True), Pooled())},
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_detector_says_what_the_predictor_says(kind, tmp_path):
    folder = make_bundle(tmp_path, **{"views": POOLED, **KINDS[kind]})
    if kind == "gate that takes the spread":
        gate = json.loads((folder / "gateparams.json").read_text())
        assert (gate["kept"], "view_spread" in gate["model"]["features"]) == ("gate", True)
    detector = Stage1Detector(config_name=str(folder))
    rows = load_bundle(folder).predict(pictures())
    for row, picture in zip(rows, pictures(), strict=True):
        found = detector.answer(picture)
        assert found.stage1 is not None, found.trouble
        assert (found.stage1.exit, detector.classes[found.stage1.label]) == (row.exit, row.label)
        assert found.stage1.probability == pytest.approx(row.probability, abs=1e-6)
    assert 0 < sum(row.exit for row in rows) < len(rows)
    small = sum(row.small for row in rows)
    assert detector.counts["views_add_nothing"] == small
    assert (small > 0) == KINDS[kind].get("views", POOLED).policy.whole


def test_onnxruntime_numpy_and_pillow_are_enough(tmp_path):
    folder = make_bundle(tmp_path, "gate", views=POOLED, spread=True)
    paths = []
    for index, picture in enumerate(pictures(12)):
        paths.append(str(tmp_path / f"{index}.png"))
        picture.convert("RGB").save(paths[-1])
    run = subprocess.run(
        [sys.executable, "-c", ISOLATED, str(folder), *paths], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    for row, (leaves, label, probability) in zip(
        load_bundle(folder).predict(paths), json.loads(run.stdout.splitlines()[0]), strict=True
    ):
        assert (row.exit, row.label) == (leaves, ("none", "roadwork")[label])
        assert probability == pytest.approx(row.probability, abs=1e-6)


def test_a_view_model_that_gives_nan_gets_the_fallback_answer(tmp_path):
    folder = make_bundle(tmp_path, views=POOLED)
    _swap(folder, view_model(scale=np.nan))
    detector = Stage1Detector(config_name=str(folder))
    picture = Image.new("RGB", (8, 8), (200, 60, 60))
    assert detector(picture) == 0.5
    assert "NaN" in detector.answer(picture).trouble
    assert detector.counts["fallback"] == 2


def _swap(folder: Path, model: bytes) -> None:
    (folder / "model.onnx").write_bytes(model)
    reseal(folder)


def _aggregated_by(folder: Path, name: str) -> None:
    """Somebody names another aggregator, and knows how a bundle is protected."""
    edit(folder / "views.json", lambda document: document["aggregator"].update(name=name))
    reseal(folder)
    listed = json.loads((folder / "bundle.json").read_text())["files"]["views.json"]["sha256"]
    edit(folder / "certificate.json", lambda document: document["views"].update(digest=listed))
    reseal(folder)


MEAN = ViewsDocument(VIEWS, Pool("mean"))
SPOILT = {
    "an ordinary model": (POOLED, lambda f: _swap(f, tiny_model()), "takes single views"),
    "other views": (POOLED, lambda f: _swap(f, view_model(4)), "takes 4 views of an image, views.json has 5"),
    "nothing without a view": (POOLED, lambda f: _swap(f, view_model(drop="without_view")), "no output `without_view`"),
    "no views": (None, lambda f: _swap(f, view_model()), "there is no views.json"),
    "views of another kind": (MEAN, lambda f: _swap(f, view_model()), "is for a model of single views"),
    "now pooled": (MEAN, lambda f: _aggregated_by(f, "pooled"), "takes single views"),
    "now the mean": (POOLED, lambda f: _aggregated_by(f, "mean"), "is for a model of single views"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_bundle_whose_parts_disagree_is_one_line_at_the_start(case, tmp_path):
    views, spoil, words = SPOILT[case]
    folder = make_bundle(tmp_path, views=views)
    spoil(folder)
    with pytest.raises(IntegrityError, match=words) as caught:
        Stage1Detector(config_name=str(folder))
    assert "\n" not in str(caught.value)
    assert "model.onnx: " in str(caught.value)


def test_check_plays_challenges_through_it(tmp_path):
    folder = make_bundle(tmp_path, views=POOLED, map_name="platt")
    run = stage1("streetvision", "check", folder, "--count", "4", "--quiet", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["failures"], found["answered_by"]["fallback"], found["latency"][-1]["n"]) == (0, 0, 16)
    assert found["answered_by"]["views_add_nothing"] == 0
