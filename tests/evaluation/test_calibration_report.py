"""NLL, Brier and calibration error before and after a map."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.calibration import Isotonic, Platt, Temperature
from stage1.errors import DataError
from stage1.evaluation import bootstrap, brier, ece, nll
from stage1.evaluation.calibration_report import Reported, before_after, calibration_error
from stage1.evaluation.intervals import Statistic
from stage1.evaluation.probability import Calibration
from stage1.scores import Scores


def sample(n=1500, k=2, seed=0):
    rng = np.random.default_rng((seed, k))
    true = rng.normal(size=(n, k)) * 1.3
    return Scores(logits=2.5 * true, labels=(true + rng.gumbel(size=(n, k))).argmax(axis=1))


@pytest.mark.parametrize("k", [2, 3])
def test_values_are_those_of_the_plain_functions(k):
    scores = sample(k=k)
    fitted = Temperature.fit(sample(k=k, seed=1))
    found = before_after(scores, fitted, n_resamples=50)
    for name, metric in (("nll", nll), ("brier", brier), ("ece", ece)):
        before, after = metric(scores.probabilities, scores.labels), metric(fitted.apply(scores.logits), scores.labels)
        assert found[name]["before"]["value"] == pytest.approx(before)
        assert found[name]["after"]["value"] == pytest.approx(after)
        assert found[name]["change"]["value"] == pytest.approx(after - before)
        for part in found[name].values():
            assert part["low"] <= part["high"]
    assert found["nll"]["change"]["high"] < 0  # the map helps, and 1,500 rows show it
    assert (found["map"], found["n"], found["monotone"]) == ("temperature", 1500, k == 2)


def test_the_change_is_paired():
    found = before_after(sample(), Platt.fit(sample(seed=1)), n_resamples=200)

    def width(part):
        return found["brier"][part]["high"] - found["brier"][part]["low"]

    assert width("change") < 0.7 * width("before")


def test_identity_changes_nothing():
    found = before_after(sample(), None, n_resamples=20)
    assert found["map"] == "identity"
    assert found["monotone"]
    for name in ("nll", "brier", "ece"):
        assert found[name]["before"] == found[name]["after"]
        assert found[name]["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}


def test_reliability_bins_before_and_after_hold_every_row():
    found = before_after(sample(), Isotonic.fit(sample(seed=1)), n_resamples=20)["reliability"]
    for bins in found.values():
        assert sum(row["count"] for row in bins) == 1500

    def gap(bins):
        return sum(row["count"] * abs(row["mean_probability"] - row["observed_rate"]) for row in bins) / 1500

    assert gap(found["after"]) < 0.5 * gap(found["before"])


def test_groups_widen_the_interval():
    once = sample(300)
    rows = np.repeat(np.arange(300), 5)
    fitted = Platt.fit(sample(seed=1))

    def width(groups):
        found = before_after(Scores(logits=once.logits[rows], labels=once.labels[rows], groups=groups), fitted)
        return found["nll"]["before"]["high"] - found["nll"]["before"]["low"]

    assert width(rows.astype(str)) > 1.6 * width(None)


def test_bad_input_is_named():
    with pytest.raises(DataError, match="labels"):
        before_after(Scores(logits=np.zeros((4, 2))), None)
    with pytest.raises(DataError, match=r"takes \[N, 2\]"):
        before_after(sample(k=3), Platt.fit(sample()))
    with pytest.raises(DataError, match="no rows"):
        before_after(Scores(logits=np.zeros((0, 2)), labels=np.zeros(0)), None)


def test_stated_probabilities_beside_the_models_own_in_one_bootstrap():
    scores, fitted = sample(), Platt.fit(sample(seed=1))
    beside = Reported(scores, fitted.calibrate(scores), "platt", "raw", "platt: because")
    metrics = beside.metrics() | {
        "nll": Statistic(
            lambda c, r, w: float(
                np.average(-np.log(beside.after.probabilities[np.arange(1500), scores.labels]), weights=w)
            ),
            "loss",
        ),
        "brier": Statistic(lambda c, r, w: brier(beside.after.probabilities, scores.labels, w), "loss"),
        "ece": calibration_error(Calibration(beside.after.probabilities, scores.labels), 1500),
    }
    zeros = np.zeros(1500)
    found = bootstrap(metrics, confidence=zeros, residuals=zeros, labels=scores.labels, n_resamples=60)
    document = beside.document(found)
    alone = before_after(scores, fitted, n_resamples=60)
    for name in ("nll", "brier", "ece"):
        for part in ("before", "after", "change"):
            for end in ("value", "low", "high"):
                assert document["calibration"][name][part][end] == pytest.approx(alone[name][part][end], abs=1e-9)
    assert document["reliability_before"] == alone["reliability"]["before"]


def test_where_no_map_is_applied_there_is_nothing_before():
    scores = sample()
    beside = Reported(scores, scores, "identity", "raw", "identity: because")
    assert beside.metrics() == {}
    assert beside.document({}) == {"calibration": {"map": "identity", "score": "raw", "reason": "identity: because"}}
