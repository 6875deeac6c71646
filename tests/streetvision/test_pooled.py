"""Bundles whose head makes one answer of all views: looked at in one forward, and refused where model and
views.json disagree.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1.errors import IntegrityError
from stage1.inference import load_bundle
from stage1.runtime.crops import ViewPolicy
from stage1.streetvision import Stage1Detector
from stage1.views import Pool, Pooled, ViewsDocument

from ..bundle.conftest import edit, reseal, tiny_model
from ..command_line import stage1
from .bundles import make_bundle, view_model
from .test_detector import isolated, pictures

VIEWS = ViewPolicy(grid=(2, 2))
POOLED = ViewsDocument(VIEWS, Pooled())
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


def test_needs_the_core_alone(tmp_path):
    folder = make_bundle(tmp_path, "gate", views=POOLED, spread=True)
    paths = []
    for index, picture in enumerate(pictures(12)):
        paths.append(str(tmp_path / f"{index}.png"))
        picture.convert("RGB").save(paths[-1])
    answers, _ = isolated(folder, paths)
    for row, (leaves, label, probability) in zip(load_bundle(folder).predict(paths), answers, strict=True):
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
    "an ordinary model": (POOLED, lambda f: _swap(f, tiny_model()), "takes one image at a time, and its views are 5"),
    "other views": (
        POOLED,
        lambda f: _swap(f, view_model(4)),
        "takes 4 views of an image together, and its views are 5",
    ),
    "nothing without a view": (POOLED, lambda f: _swap(f, view_model(drop="without_view")), "no output `without_view`"),
    "no views": (
        None,
        lambda f: _swap(f, view_model()),
        "takes 5 views of an image together, and the views beside it are not",
    ),
    "views of another kind": (MEAN, lambda f: _swap(f, view_model()), "and the views beside it are not for that"),
    "now pooled": (MEAN, lambda f: _aggregated_by(f, "pooled"), "says other views"),
    "now the mean": (POOLED, lambda f: _aggregated_by(f, "mean"), "says other views"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_bundle_whose_parts_disagree_is_one_line_at_the_start(case, tmp_path):
    views, spoil, words = SPOILT[case]
    folder = make_bundle(tmp_path, views=views)
    spoil(folder)
    with pytest.raises(IntegrityError, match=words) as caught:
        Stage1Detector(config_name=str(folder))
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_check_plays_challenges_through_it(tmp_path):
    folder = make_bundle(tmp_path, views=POOLED, map_name="platt")
    run = stage1("streetvision", "check", folder, "--count", "4", "--quiet", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["failures"], found["answered_by"]["fallback"], found["latency"][-1]["n"]) == (0, 0, 16)
    assert found["answered_by"]["views_add_nothing"] == 0
