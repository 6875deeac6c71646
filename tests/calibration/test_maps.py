"""What holds for every map: probabilities, the file, the promise of monotony, refused input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stage1.calibration import (
    MAPS,
    Beta,
    Dirichlet,
    Isotonic,
    Platt,
    Temperature,
    Vector,
    candidates,
    fit_map,
    load_map,
    map_from_document,
)
from stage1.calibration.schema import CALIBRATION_KIND
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError
from stage1.scores import Scores
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_ids

EVERY = [(name, 2) for name in (*candidates(2), "dirichlet")] + [(name, 3) for name in candidates(3)]


def sample(k=2, n=400, seed=0, slope=2.5, shift=0.7):
    """Overconfident scores: the truth is softmax(z), the logits are slope * z plus a shift on the last class."""
    rng = np.random.default_rng((seed, k, n))
    true = rng.normal(size=(n, k)) * 1.5
    labels = (true + rng.gumbel(size=(n, k))).argmax(axis=1)
    logits = slope * true
    logits[:, -1] += shift
    return Scores(logits=logits, labels=labels, ids=[f"{seed}-{row}" for row in range(n)])


def nll(log_probabilities, labels):
    return -log_probabilities[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("name, k", EVERY)
def test_probabilities_sum_to_one_and_ignore_a_constant_per_row(name, k):
    scores = sample(k)
    fitted = fit_map(name, scores)
    found = fitted.apply(scores.logits)
    assert found.shape == (400, k)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-12)
    moved = scores.logits + np.random.default_rng(1).normal(size=(400, 1)) * 5
    np.testing.assert_allclose(fitted.apply(moved), found, atol=1e-9)
    np.testing.assert_allclose(fitted.calibrate(scores).probabilities, found, atol=1e-12)
    np.testing.assert_allclose(np.exp(fitted.log_probabilities(scores.logits)), found, atol=1e-12)


@pytest.mark.parametrize("name, k", EVERY)
def test_fresh_rows_get_better_probabilities(name, k):
    """The control: the same map fitted on shuffled labels makes them worse."""
    fitted = fit_map(name, sample(k, 2000))
    fresh = sample(k, 4000, seed=1)
    before = nll(np.log(fresh.probabilities), fresh.labels)
    assert nll(fitted.log_probabilities(fresh.logits), fresh.labels) < before - 0.02
    shuffled = Scores(
        logits=sample(k, 2000).logits, labels=np.random.default_rng(0).permutation(sample(k, 2000).labels)
    )
    assert nll(fit_map(name, shuffled).log_probabilities(fresh.logits), fresh.labels) > before


@pytest.mark.parametrize("name, k", EVERY)
def test_written_and_read_it_is_the_same_map(name, k, tmp_path):
    scores = sample(k)
    fitted = fit_map(name, scores)
    fitted.save(tmp_path / "calibration.json")
    again = load_map(tmp_path / "calibration.json")
    assert again == fitted
    np.testing.assert_array_equal(again.apply(scores.logits), fitted.apply(scores.logits))
    document = read_document(tmp_path / "calibration.json", CALIBRATION_KIND)
    assert (document["name"], document["n"], document["n_classes"]) == (name, 400, k)
    assert document["fitted_on"] == digest_ids(scores.ids.tolist())


@pytest.mark.parametrize("name, k", EVERY)
def test_order_of_rows_and_refit_change_nothing(name, k):
    scores = sample(k)
    fitted = fit_map(name, scores)
    mixed = scores.take(np.random.default_rng(2).permutation(400))
    for other in (fit_map(name, mixed), fitted.refit(mixed)):
        np.testing.assert_allclose(other.apply(scores.logits), fitted.apply(scores.logits), atol=2e-6)


@pytest.mark.parametrize("name", candidates(2))
def test_monotone_maps_rise_strictly_in_the_raw_score(name):
    fitted = fit_map(name, sample())
    margin = np.linspace(-12, 12, 2001)
    found = fitted.log_probabilities(np.stack([np.zeros_like(margin), margin], axis=1))
    log_odds = found[:, 1] - found[:, 0]
    assert (np.diff(log_odds) >= 0).all()
    assert fitted.monotone == bool((np.diff(log_odds) > 0).all()) == (name != "isotonic")


def test_no_map_of_three_classes_is_monotone():
    assert not any(fit_map(name, sample(3)).monotone for name in candidates(3))
    # and rightly so: a temperature moves one row's top probability past another's
    logits = np.array([[3.0, 2.0, -20.0], [2.5, 1.0, 1.0]])
    tops = [Temperature(slope=slope, n=1, n_classes=3).apply(logits).max(axis=1) for slope in (1.0, 3.0)]
    assert (tops[0][0] > tops[0][1]) != (tops[1][0] > tops[1][1])


@pytest.mark.parametrize("name", ["temperature", "platt", "beta"])
def test_scores_that_point_the_wrong_way_get_slope_0_and_say_so(name):
    scores = sample()
    turned = Scores(logits=-scores.logits, labels=scores.labels)
    fitted = fit_map(name, turned)
    assert fitted.constrained == {"beta": ("a", "b")}.get(name, ("slope",))
    assert not fitted.monotone
    found = fitted.apply(scores.logits)
    rate = 0.5 if name == "temperature" else scores.labels.mean()
    np.testing.assert_allclose(found[:, 1], rate, atol=0.004)  # platt: 1 / (n + 2) of smoothing


def test_vector_holds_a_slope_at_0_too():
    # Class 2's own log-probability tells against it
    scores = sample(3, 1500)
    logits = np.log(scores.probabilities)
    logits[:, 2] = np.where(scores.labels == 2, -4.0, -2.0) + np.random.default_rng(0).normal(size=1500)
    fitted = Vector.fit(Scores(logits=logits, labels=scores.labels))
    assert fitted.constrained == ("slopes.2",)
    assert min(fitted.slopes) == 0


@pytest.mark.parametrize("name", ["temperature", "beta", "vector", "dirichlet"])
def test_separated_classes_are_refused_by_name(name):
    k = 2 if name == "beta" else 3
    labels = np.arange(60) % k
    perfect = Scores(
        logits=4.0 * np.eye(k)[labels] + np.random.default_rng(0).normal(size=(60, k)) * 0.1, labels=labels
    )
    with pytest.raises(DataError, match=rf"{name}: no row of 60 is wrong"):
        fit_map(name, perfect)


def test_platt_smoothing_and_isotonic_ends_stay_finite_on_separated_classes():
    labels = np.arange(40) % 2
    perfect = Scores(logits=np.stack([np.zeros(40), 6.0 * labels - 3], axis=1), labels=labels)
    for name in ("platt", "isotonic"):
        found = fit_map(name, perfect).apply(perfect.logits)[:, 1]
        np.testing.assert_allclose(found, np.where(labels == 1, 21 / 22, 1 / 22), atol=1e-6)
    with pytest.raises(DataError, match="platt without smoothing"):
        Platt.fit(perfect, smoothing=False)


@pytest.mark.parametrize("name, k", EVERY)
def test_saturated_scores_are_no_special_case(name, k):
    scores = sample(k, 600)
    probabilities = scores.probabilities
    top = probabilities.argmax(axis=1)
    logits = np.log(probabilities)
    certain = probabilities.max(axis=1) > 0.97
    logits[certain] = -708.0
    logits[certain, top[certain]] = 0.0
    fitted = fit_map(name, Scores(logits=logits, labels=scores.labels))
    assert np.isfinite(fitted.log_probabilities(logits)).all()


@pytest.mark.parametrize("name, k", EVERY)
def test_bad_input_is_named(name, k):
    scores = sample(k)
    with pytest.raises(DataError, match="labels"):
        fit_map(name, Scores(logits=scores.logits))
    with pytest.raises(DataError, match="no row of class 1"):
        fit_map(name, scores.take(scores.labels != 1))
    fitted = fit_map(name, scores)
    with pytest.raises(DataError, match=rf"takes \[N, {k}\]"):
        fitted.apply(np.zeros((3, k + 1)))
    with pytest.raises(DataError, match="row 1 is not finite"):
        fitted.apply(np.array([[0.0] * k, [np.nan] * k]))


def test_maps_say_for_how_many_classes_they_are():
    for name in ("platt", "beta"):
        with pytest.raises(DataError, match="3 classes"):
            fit_map(name, sample(3))
    with pytest.raises(DataError, match="use beta"):
        fit_map("vector", sample(2))
    with pytest.raises(ConfigError, match="'spline' is unknown"):
        fit_map("spline", sample())
    with pytest.raises(ConfigError, match="platt"):
        fit_map("platt", sample(), smooth=True)


DIRICHLET = Dirichlet(weights=((1.0, 0.0), (0.0, 1.0)), shifts=(0.0, 0.0), lam=0.1, mu=0.1, n=9, n_classes=2)
ISOTONIC = Isotonic(curves=(((0.0, 1.0), (0.2, 0.8)),), n=9, n_classes=2)
SPOILED = [
    (Temperature(slope=0.5, n=9, n_classes=2), {"slope": -0.5}),
    (Platt(slope=0.5, shift=0.1, n=9, n_classes=2), {"shift": float("nan")}),
    (Beta(a=1.0, b=1.0, c=0.0, n=9, n_classes=2), {"extra": 1.0}),
    (Vector(slopes=(1.0, 1.0, 1.0), shifts=(0.0, 0.0, 0.0), n=9, n_classes=3), {"shifts": [0.0, 0.0]}),
    (DIRICHLET, {"weights": [[1.0, 0.0], [0.0]]}),
    (ISOTONIC, {"curves": [{"scores": [0.0, 1.0], "values": [0.8, 0.2]}]}),
    (ISOTONIC, {"curves": [{"scores": [1.0, 1.0], "values": [0.2, 0.8]}]}),
]  # fmt: skip


@pytest.mark.parametrize("fitted, change", SPOILED, ids=lambda part: getattr(part, "name", ""))
def test_a_damaged_document_is_an_integrity_error(fitted, change, tmp_path):
    document = fitted.to_document()
    path = tmp_path / "calibration.json"
    write_document(path, document, CALIBRATION_KIND)
    assert load_map(path) == fitted
    document["parameters"] = {**document["parameters"], **change}
    path.write_text(json.dumps({"schema_version": 1, **document}))
    with pytest.raises(IntegrityError, match=r"calibration\.json"):
        load_map(path)


def test_a_claim_that_the_parameters_do_not_bear_out_is_an_integrity_error(tmp_path):
    document = Temperature(slope=0.0, n=9, n_classes=2).to_document()
    with pytest.raises(IntegrityError, match="monotone True"):
        map_from_document({**document, "monotone": True})
    with pytest.raises(MissingError):
        load_map(tmp_path / "none.json")


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    name=st.sampled_from(sorted(MAPS)),
    k=st.integers(2, 4),
    n=st.integers(1, 30),
)
def test_any_scores_give_a_map_or_a_named_error(data, name, k, n):
    numbers = st.one_of(st.floats(-800, 800), st.sampled_from([0.0, 1.0, -708.0, 1e300, -1e-300]))
    logits = data.draw(hnp.arrays(np.float64, (n, k), elements=numbers))
    labels = data.draw(hnp.arrays(np.int64, n, elements=st.integers(0, k - 1)))
    try:
        fitted = fit_map(name, Scores(logits=logits, labels=labels))
    except DataError as error:
        event(str(error).split(":")[0])
        return
    found = fitted.apply(logits)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-9)
    assert map_from_document(fitted.to_document()) == fitted
