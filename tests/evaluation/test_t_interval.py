"""Intervals of few units: oracles, properties, how often they cover, and the percentiles that do not."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stage1 import Scores
from stage1.evaluation import bootstrap, clopper_pearson, compare
from stage1.evaluation.calibration_report import calibration_error
from stage1.evaluation.comparison import NO_DIFFERENCE
from stage1.evaluation.intervals import Statistic
from stage1.evaluation.probability import Calibration
from stage1.evaluation.rates import clustered_interval
from stage1.evaluation.t_interval import AT_THE_END, SAME_EVERYWHERE, UNDEFINED, Spread, t_interval, too_few


def mean_of(values):
    return lambda c, r, w: float(w @ values / w.sum())


# ---- oracles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [8, 20, 100])
def test_the_interval_of_a_mean_difference_is_students(n):
    values = np.random.default_rng(n).normal(0.3, 1.0, n)
    found = bootstrap(
        {"m": Statistic(mean_of(values), "difference")},
        confidence=np.zeros(n),
        residuals=np.zeros(n),
        n_resamples=20_000,
    )["m"]
    expected = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    # the spread of 20,000 replicates is known to half a percent
    width = expected.high - expected.low
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02 * width)
    assert found.freedom == pytest.approx(n - 1)


def test_two_strata_have_the_freedom_of_welch():
    rng = np.random.default_rng(3)
    first, second = rng.normal(0, 3.0, 8), rng.normal(1, 1.0, 25)
    expected = stats.ttest_ind(first, second, equal_var=False)
    labels = np.repeat([0, 1], [8, 25])
    values = np.concatenate([first, second])

    def gap(c, r, w):
        means = [float(np.average(values[labels == k], weights=w[labels == k])) for k in (0, 1)]
        return means[0] - means[1]

    found = bootstrap(
        {"m": Statistic(gap, "difference")},
        confidence=np.zeros(33),
        residuals=np.zeros(33),
        labels=labels,
        n_resamples=10_000,
    )["m"]
    assert found.freedom == pytest.approx(expected.df, rel=0.02)
    low, high = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.02 * (high - low))


def test_groups_of_one_image_are_clopper_pearsons_images():
    rate, n = 0.05, 200
    independent = math.sqrt(rate * (1 - rate) / n)
    found = clustered_interval(10, n, n, independent, n - 1)
    assert found == pytest.approx(clopper_pearson(10, n), abs=1e-12)
    # of larger spread, or of fewer degrees of freedom, each is wider; of smaller spread never shorter than exact
    assert clustered_interval(10, n, 20, 2 * independent, 19)[1] > found[1]
    assert clustered_interval(10, n, 20, independent, 5)[1] > found[1]
    assert clustered_interval(10, n, 20, independent / 2, n - 1) == pytest.approx(found)


def test_no_error_in_groups_is_the_exact_bound_of_as_many_images():
    assert clustered_interval(0, 400, 20, math.nan, 18) == clopper_pearson(0, 20)
    assert clustered_interval(400, 400, 20, math.nan, 18) == clopper_pearson(20, 20)
    assert clustered_interval(0, 0, 0, math.nan, 1) == (0.0, 1.0)


# ---- properties --------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(["share", "loss", "correlation", "number", "difference"]),
    st.floats(0.02, 0.98),
    st.floats(0.001, 0.3),
    st.integers(6, 200),
)
def test_the_interval_holds_the_value_and_stays_in_its_range(scale, value, spread, units):
    drawn = np.random.default_rng(0).normal(value, spread, 300)
    if scale in ("share", "loss"):
        drawn = np.clip(drawn, 0.0, 1.0)
    low, high, note = t_interval(value, drawn, 0.95, Spread((units,)), scale)
    assert note is None
    assert low < value < high
    if scale in ("share", "loss"):
        assert low > 0.0
    if scale == "share":
        assert high < 1.0
    wider = t_interval(value, drawn, 0.99, Spread((units,)), scale)
    fewer = t_interval(value, drawn, 0.95, Spread((5,)), scale)
    assert wider[0] < low < high < wider[1]
    assert fewer[0] < low < high < fewer[1]


def test_what_has_no_interval_says_why():
    rng = np.random.default_rng(0)
    spread = Spread((20,))
    assert t_interval(1.0, np.minimum(rng.normal(0.95, 0.05, 99), 1.0), 0.95, spread, "share")[2] == AT_THE_END
    assert t_interval(0.3, np.full(99, 0.3), 0.95, spread, "difference")[2] == SAME_EVERYWHERE
    assert t_interval(0.3, np.where(np.arange(99) < 60, np.nan, 0.3), 0.95, spread, "share")[2] == UNDEFINED
    assert too_few((3, 3)) is None
    assert too_few((3, 2), "groups") == "too few groups (5; 6 are the fewest for an interval)"


def test_three_groups_of_one_class_are_not_hidden_by_many_of_the_other():
    rng = np.random.default_rng(1)
    labels = np.repeat([1, 0], [3, 100])
    values = np.concatenate([rng.normal(0, 3.0, 3), rng.normal(0, 0.1, 100)])

    def gap(c, r, w):
        means = [float(np.average(values[labels == k], weights=w[labels == k])) for k in (1, 0)]
        return means[0] - means[1]

    metric = {"m": Statistic(gap, "difference")}
    found = bootstrap(metric, confidence=np.zeros(103), residuals=np.zeros(103), labels=labels)["m"]
    assert found.freedom < 2.6  # t of 101 would be two times too short


# ---- how often they cover ----------------------------------------------------------------------------------------


def clustered_scores(rng, groups, size, models=1):
    """Groups of one class each, half of them positive; a calibrated model's log-odds with correlated noise."""
    labels = np.repeat(np.arange(groups) % 2, size)
    names = np.repeat(np.arange(groups), size).astype(str)

    def noise():
        return np.sqrt(0.3) * np.repeat(rng.normal(size=groups), size) + np.sqrt(0.7) * rng.normal(size=groups * size)

    common, found = noise(), []
    for _ in range(models):
        own = common if models == 1 else np.sqrt(0.5) * (common + noise())
        margin = 2.5 * (2.5 * (labels - 0.5) + own)
        found.append(Scores(np.stack([0 * margin, margin], axis=1), labels=labels, groups=names))
    return found


BRIER = 0.0763  # of this population, to a part in two hundred
MISSES = 0.1056  # P(N(0, 1) > 1.25)


def coverage_of(method, draws, seed):
    rng = np.random.default_rng(seed)
    hits = {"brier": 0, "accuracy": 0}
    for index in range(draws):
        (scores,) = clustered_scores(rng, 10, 10)
        wrong = (scores.margin > 0) != scores.known_labels
        squares = (scores.probabilities[:, 1] - scores.known_labels) ** 2
        found = bootstrap(
            {"brier": Statistic(mean_of(squares), "loss"), "accuracy": "accuracy"},
            confidence=np.abs(scores.margin),
            residuals=wrong,
            labels=scores.labels,
            groups=scores.groups,
            n_resamples=150,
            seed=index,
            method=method,
        )
        hits["brier"] += found["brier"].low <= BRIER <= found["brier"].high
        hits["accuracy"] += found["accuracy"].low <= 1 - MISSES <= found["accuracy"].high
    return {name: count / draws for name, count in hits.items()}


def test_ten_groups_are_covered_and_percentiles_do_not():
    ours, control = coverage_of("t", 250, 1), coverage_of("percentile", 250, 1)
    assert min(ours.values()) >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 250)
    assert max(control.values()) < 0.90


def test_the_calibration_error_of_a_calibrated_model_is_covered_and_that_of_another_is_found():
    rng = np.random.default_rng(5)
    holds = percentiles = found = 0
    truth = 0.0
    for index in range(60):
        p = rng.random(400)
        probabilities = np.stack([1 - p, p], axis=1)
        for sharper, labels in ((False, rng.random(400) < p), (True, rng.random(400) < 0.5 + (p - 0.5) / 2)):
            calibration = Calibration(probabilities, labels.astype(np.int64))
            rows = {"confidence": np.zeros(400), "residuals": np.zeros(400), "n_resamples": 100, "seed": index}
            error = bootstrap({"ece": calibration_error(calibration, 400)}, **rows)["ece"]
            if sharper:
                truth = 0.125  # mean |p - (0.5 + (p - 0.5) / 2)| = mean |p - 0.5| / 2
                found += error.low > 0.0
                holds += error.low <= truth <= error.high
                continue
            holds += error.low == 0.0
            plain = bootstrap({"ece": lambda c, r, w, x=calibration: x.error(w, 15)}, method="percentile", **rows)
            percentiles += plain["ece"].low <= 0.0
    assert holds / 120 >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 120)
    assert found / 60 > 0.9  # and a real error is seen
    assert percentiles == 0  # the control never holds the truth


def test_exchangeable_models_in_six_groups_are_seldom_told_apart_and_others_are():
    rng = np.random.default_rng(2)
    metrics = ("augrc", "accuracy", "nll", "brier")
    false = holds = 0
    for index in range(120):
        a, b = clustered_scores(rng, 6, 10, models=2)
        for row in compare(a, b, metrics=metrics, n_resamples=120, seed=index)["rows"]:
            false += row["better"] is not None
            holds += row["low"] is None or row["low"] <= 0 <= row["high"]
            assert row["better"] is None or row["p_value"] <= 0.05
    # four metrics of the same draws: their rates are nearly one
    assert false / 480 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 120)
    assert holds / 480 >= 0.93 - 3 * math.sqrt(0.93 * 0.07 / 120)
    shown = 0
    for index in range(30):
        (a,) = clustered_scores(rng, 20, 10)
        blurred = Scores(a.logits + rng.normal(0, 4.0, a.logits.shape), labels=a.labels, groups=a.groups)
        shown += compare(a, blurred, metrics=("nll",), n_resamples=120, seed=index)["rows"][0]["better"] == "a"
    assert shown >= 25


def test_five_groups_have_no_verdict():
    a, b = clustered_scores(np.random.default_rng(0), 5, 20, models=2)
    for row in compare(a, b, n_resamples=50)["rows"]:
        assert (row["low"], row["high"], row["better"]) == (None, None, None)
        assert row["verdict"] in (row["note"], NO_DIFFERENCE)
        assert row["note"] == "too few groups (5; 6 are the fewest for an interval)"
