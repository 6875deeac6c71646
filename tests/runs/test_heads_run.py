"""Heads with gates, ensembles, sweeps and risk training: from images through the exported model to a bundle that
answers.
"""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest

from stage1 import load_bundle, run
from stage1.bundle import verify_bundle
from stage1.policy.calibrated import CalibratedPolicy
from stage1.policy.gate import GatePolicy
from stage1.runs.schema import PARITY_KIND, TRAIN_KIND
from stage1.scores import read_role
from stage1.storage.documents import read_document

from .conftest import SETTINGS, write_photos

pytest.importorskip("timm", reason="the extra train is not installed")

OF_RECIPE = [line for line in SETTINGS if not line.startswith("head.")]  # the head is the recipe's
RECIPES = ("gate", "deepgamblers", "risk-training", "sweep", "ensemble")
# The recipes' own number of epochs and batch is for thousands of images.
SMALLER = {
    "risk-training": [
        "train.batch_size=1000000",
        "train.epochs=30",
        "train.risk={miss_rate: 0.1, false_exit_rate: 0.1}",
    ],
    "sweep": ["sweep.learning_rates=[0.001, 0.01]", "sweep.weight_decays=[0.01]", "sweep.resamples=20"],
    "gate": ["head.hidden=16"],
    "deepgamblers": ["head.hidden=16", "train.learning_rate=0.01"],
    "ensemble": ["head.hidden=16"],
}


@pytest.fixture(scope="module")
def features_store(tmp_path_factory):
    """Runs on the same photos share their features."""
    return tmp_path_factory.mktemp("features")


def go(recipe, photos, store, folder, *overrides):
    settings = [*OF_RECIPE, f"data.table={photos}", f"features.store={store}", *SMALLER.get(recipe, []), *overrides]
    return run(recipe=recipe, overrides=settings, output=folder)


def answers_as_scored(result):
    """Predictions of the bundle on val_test beside the decisions on its scores."""
    from stage1.data.table import SampleTable

    table = SampleTable.read(result.folder / "samples.parquet")
    bundle, scores = load_bundle(result.bundle), read_role(result.folder, "val_test")
    answers = bundle.predict([table.read_bytes(row) for row in table.rows("val_test")])
    expected = bundle.policy.decide(scores)
    assert [answer.exit for answer in answers] == expected.exit.tolist()
    assert np.allclose([answer.probability for answer in answers], expected.probability, atol=1e-4)
    return bundle, scores


def test_gate_logits_reach_the_bundle_and_decide_in_predict(tmp_path, monkeypatch):
    """SelectiveNet's own gate: export -> scores -> gate policy -> bundle -> predict. The gate is accepted by decree
    here: what flows is tested, not whether so small a gate is worth it."""
    from stage1.evaluation import score_selection as gate_gain

    judged = gate_gain.accept_gate
    monkeypatch.setattr(gate_gain, "accept_gate", lambda *rows, **how: replace(judged(*rows, **how), accepted=True))
    # A gate is fitted where ten answers are wrong: more images in val_select than the other tests need.
    roles = "split.fractions={train: 0.3, val_select: 0.35, val_calib: 0.25, val_test: 0.1}"
    photos = write_photos(tmp_path / "photos", n=360, seed=1)
    result = go("gate", photos, tmp_path / "features", tmp_path / "run", "head.gate=auto", "train.epochs=8", roles)
    bundle, scores = answers_as_scored(result)
    assert scores.gate is not None
    assert bundle.predictor.engine.output_names == ("logits", "gate_logits")
    assert bundle.policy.name == "gate"
    assert isinstance(bundle.policy, CalibratedPolicy)
    gate = bundle.policy.base
    assert isinstance(gate, GatePolicy)
    assert gate.decided_by == "gate"
    assert "gate" in (gate.model.source, *gate.model.features)
    assert verify_bundle(result.bundle, recompute=True).problems == ()
    assert "gate" in read_document(result.folder / "train.json", TRAIN_KIND)
    # What predict gives hangs on the gate output: with other gate logits the same images get other answers.
    other = bundle.policy.decide(replace(scores, gate=-scores.gate))
    assert not np.allclose(other.probability, bundle.policy.decide(scores).probability)
    parity = read_document(result.folder / "parity.json", PARITY_KIND)
    assert parity["passed"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_run_to_a_bundle(recipe, photos, features_store, tmp_path):
    result = go(recipe, photos, features_store, tmp_path / "run")
    assert result.certificate.certified
    _, scores = answers_as_scored(result)
    assert (scores.gate is not None) == (recipe in ("gate", "deepgamblers"))
    again = go(recipe, photos, features_store, tmp_path / "run")
    assert again.done == ()


@pytest.mark.slow
def test_a_sweep_writes_its_table_and_its_winner_is_the_same_alone(photos, features_store, tmp_path):
    options = ["head.kind=mlp", "sweep.hidden=[4, 8]", "sweep.seeds=2"]
    result = go("sweep", photos, features_store, tmp_path / "run", *options)
    facts = read_document(result.folder / "train.json", TRAIN_KIND)["sweep"]
    assert facts["agrees"]
    assert facts["largest_difference"] <= 1e-4
    with open(result.folder / "sweep.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 2 * 2 * 2
    assert float(rows[0]["augrc"]) == facts["augrc"] == min(float(row["augrc"]) for row in rows)
    assert int(rows[0]["hidden"]) == facts["hidden"]
    # Another grid is another training; everything after it follows.
    again = run(
        recipe="sweep",
        output=tmp_path / "run",
        allow_change=True,
        overrides=[
            *SETTINGS,
            f"data.table={photos}",
            f"features.store={features_store}",
            *SMALLER["sweep"],
            *options,
            "sweep.hidden=[6]",
        ],
    )
    assert "train" in again.done
    assert read_document(result.folder / "train.json", TRAIN_KIND)["sweep"]["hidden"] == 6


@pytest.mark.slow
def test_a_gate_that_goes_leaves_nothing_behind(photos, features_store, tmp_path):
    """Scores, policy and bundle follow the new model, and no old gate logits stay."""
    folder = tmp_path / "run"
    go("deepgamblers", photos, features_store, folder, "policy.name=softmax")
    assert (folder / "val_test_gate_logits.pt").is_file()
    settings = [*OF_RECIPE, f"data.table={photos}", f"features.store={features_store}", *SMALLER["deepgamblers"]]
    again = run(
        recipe="deepgamblers",
        overrides=[*settings, "policy.name=softmax", "head.gate=none"],
        output=folder,
        allow_change=True,
    )
    assert {"train", "export", "score"} <= set(again.done)
    assert not (folder / "val_test_gate_logits.pt").is_file()
    assert load_bundle(again.bundle).predictor.engine.output_names == ("logits",)
