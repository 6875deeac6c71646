"""calibration.json of a run: the map with its comparison, the identity included, and its digest."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stage1.calibration import FittedMap, Identity, Isotonic, Platt, choose_map, fitted_identity, fitted_map, load_map
from stage1.calibration.schema import CALIBRATION_KIND
from stage1.errors import IntegrityError
from stage1.scores import Scores
from stage1.storage.documents import read_document
from stage1.storage.files import digest_file


def sample(n=800, seed=0, slope=2.5, shift=0.7, sign=1.0):
    rng = np.random.default_rng((seed, n))
    true = rng.normal(size=n) * 2.0
    labels = (rng.random(n) < 1 / (1 + np.exp(-true))).astype(np.int64)
    logits = np.stack([np.zeros(n), sign * (slope * true + shift)], axis=1)
    return Scores(logits=logits, labels=labels, ids=[f"{seed}-{row}" for row in range(n)])


def test_the_digest_is_that_of_the_file(tmp_path):
    for made in (
        fitted_map(choose_map(sample()), sample()),
        fitted_identity(sample(), "calibration.map=none"),
        FittedMap(Isotonic.fit(sample())),
    ):
        made.save(tmp_path / "calibration.json")
        assert made.digest == digest_file(tmp_path / "calibration.json")
        again = FittedMap.load(tmp_path / "calibration.json")
        assert (again, again.digest) == (made, made.digest)
        assert load_map(tmp_path / "calibration.json") == made.map


def test_the_comparison_is_the_table_of_choose_map(tmp_path):
    choice = choose_map(sample(), candidates=["temperature", "platt"])
    fitted_map(choice, sample()).save(tmp_path / "calibration.json")
    document = read_document(tmp_path / "calibration.json", CALIBRATION_KIND)
    assert document["comparison"] == choice.to_document()
    assert document["name"] == choice.name == document["comparison"]["chosen"] != "identity"
    assert [row["name"] for row in document["comparison"]["table"]] == ["identity", "temperature", "platt"]


def test_the_identity_is_honest_and_changes_not_a_bit():
    honest = sample(3000, slope=1.0, shift=0.0)
    choice = choose_map(honest, candidates=["isotonic"])
    made = fitted_map(choice, honest)
    assert isinstance(made.map, Identity)
    assert made.score == "raw"
    assert made.reason.startswith("identity: no map lowers")
    assert made.map.calibrate(honest) is honest
    np.testing.assert_allclose(made.map.apply(honest.logits), honest.probabilities, atol=1e-15)
    assert Identity(n=0, n_classes=3).monotone is False
    assert Identity(n=0, n_classes=3).keeps_order


def test_a_fitted_map_of_no_rows_and_an_identity_with_parameters_are_damaged(tmp_path):
    path = tmp_path / "calibration.json"
    for made, change in (
        (FittedMap(Platt(slope=1.0, shift=0.0, n=9, n_classes=2)), {"n": 0}),
        (FittedMap(Identity(n=0, n_classes=2)), {"parameters": {"slope": 2.0}}),
        (FittedMap(Identity(n=0, n_classes=2)), {"comparison": {"chosen": "identity"}}),
    ):
        made.save(path)
        assert FittedMap.load(path) == made
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        with pytest.raises(IntegrityError, match=r"calibration\.json"):
            FittedMap.load(path)


def test_keep_order_passes_over_a_map_that_ties_all_scores():
    turned = sample(sign=-1.0)
    free = choose_map(turned, candidates=["platt", "temperature"])
    assert free.name == "platt"  # the control: at slope 0 it has the least NLL of all
    assert free.map.constrained == ("slope",)
    kept = choose_map(turned, candidates=["platt", "temperature"], keep_order=True)
    assert kept.map is None
    assert "platt would not keep the order of the scores (slope)" in kept.reason
    # and takes the next best that does
    helped = choose_map(sample(2000), candidates=["isotonic", "temperature"], keep_order=True)
    assert helped.name == "temperature"


def test_why_nothing_could_be_fitted_is_said():
    labels = np.arange(60) % 2
    apart = Scores(logits=np.stack([np.zeros(60), 8.0 * labels - 4], axis=1), labels=labels)
    choice = choose_map(apart, candidates=["temperature"])
    assert choice.map is None
    assert "no map could be fitted (temperature: no row of" in choice.reason
