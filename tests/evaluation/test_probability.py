"""Probability metrics: the table's values, scikit-learn, properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.errors import DataError
from stage1.evaluation import (
    accuracy,
    best_mcc_threshold,
    brier,
    ece,
    mcc,
    nll,
    reliability,
    squared_ce_debiased,
)
from stage1.evaluation.probability import nll_rows

# the machine may be busy: no deadline
relaxed = settings(deadline=None, max_examples=80)
TWELVE = [0.05, 0.1, 0.15, 0.3, 0.35, 0.4, 0.6, 0.65, 0.7, 0.85, 0.9, 0.95]
TRUTH = [0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "n_bins, l1, l2, debiased", [(3, 0.1, 0.122474, -0.012778), (4, 0.058333, 0.071686, -0.050417)]
)
def test_equal_mass_calibration_error_equals_table(n_bins, l1, l2, debiased):
    assert ece(TWELVE, TRUTH, n_bins) == pytest.approx(l1, abs=1e-6)
    assert ece(TWELVE, TRUTH, n_bins, norm="l2") == pytest.approx(l2, abs=1e-6)
    assert squared_ce_debiased(TWELVE, TRUTH, n_bins) == pytest.approx(debiased, abs=1e-6)


def test_equal_width_calibration_error_equals_table():
    assert ece(TWELVE, TRUTH, 5, binning="equal_width") == pytest.approx(0.116667, abs=1e-6)


def test_brier_and_nll_equal_table():
    assert brier(TWELVE, TRUTH) == pytest.approx(0.117917, abs=1e-6)
    assert nll(TWELVE, TRUTH) == pytest.approx(0.372749, abs=1e-6)


# ---- scikit-learn ------------------------------------------------------------------------------------------------


@st.composite
def predicted(draw, k=2):
    """(probabilities [N, K], labels [N], whole weights [N])."""
    n = draw(st.integers(1, 25))
    parts = draw(st.lists(st.lists(st.integers(1, 20), min_size=k, max_size=k), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    weights = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any))
    table = np.array(parts, dtype=float)
    return table / table.sum(axis=1, keepdims=True), np.array(labels), np.array(weights, dtype=float)


@relaxed
@given(predicted())
def test_binary_scores_equal_scikit_learn(case):
    from sklearn.metrics import brier_score_loss, log_loss

    probabilities, labels, weights = case
    positive = probabilities[:, 1]
    assert nll(positive, labels, weights) == pytest.approx(
        log_loss(labels, positive, sample_weight=weights, labels=[0, 1]), rel=1e-9
    )
    assert brier(positive, labels, weights) == pytest.approx(
        brier_score_loss(labels, positive, sample_weight=weights, labels=[0, 1]), abs=1e-12
    )


@relaxed
@given(predicted(k=4))
def test_multiclass_scores_equal_scikit_learn(case):
    from sklearn.metrics import log_loss

    probabilities, labels, weights = case
    assert nll(*case) == pytest.approx(
        log_loss(labels, probabilities, sample_weight=weights, labels=range(4)), rel=1e-9
    )
    squares = ((probabilities - np.eye(4)[labels]) ** 2).sum(axis=1)
    assert brier(*case) == pytest.approx(np.average(squares, weights=weights))


@relaxed
@given(predicted(k=3))
def test_predictions_equal_scikit_learn(case):
    from sklearn.metrics import accuracy_score, matthews_corrcoef

    probabilities, labels, weights = case
    guess = probabilities.argmax(axis=1)
    there = weights > 0
    assert accuracy(guess, labels, weights) == pytest.approx(accuracy_score(labels, guess, sample_weight=weights))
    found = mcc(guess, labels, weights)
    if len(set(guess[there])) < 2 or len(set(labels[there])) < 2:
        assert np.isnan(found)  # undefined, where scikit-learn says 0
    else:
        assert found == pytest.approx(matthews_corrcoef(labels, guess, sample_weight=weights), abs=1e-9)


def test_equal_width_bins_equal_scikit_learn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(0)
    probabilities = rng.random(500)
    labels = (rng.random(500) < probabilities**2).astype(int)
    rate, mean = calibration_curve(labels, probabilities, n_bins=10, strategy="uniform")
    rows = reliability(probabilities, labels, 10, binning="equal_width")
    np.testing.assert_allclose([row.observed_rate for row in rows], rate)
    np.testing.assert_allclose([row.mean_probability for row in rows], mean)
    assert [row.low for row in rows] == pytest.approx(np.arange(10) / 10)
    expected = sum(row.count * abs(row.observed_rate - row.mean_probability) for row in rows) / 500
    assert ece(probabilities, labels, 10, binning="equal_width") == pytest.approx(expected)


def test_equal_mass_bins_equal_scikit_learn():
    from sklearn.calibration import calibration_curve

    rng = np.random.default_rng(1)
    probabilities = rng.random(600)
    labels = (rng.random(600) < probabilities).astype(int)
    rate, mean = calibration_curve(labels, probabilities, n_bins=15, strategy="quantile")
    rows = reliability(probabilities, labels, 15)
    assert [row.count for row in rows] == [40] * 15
    np.testing.assert_allclose([row.mean_probability for row in rows], mean)
    np.testing.assert_allclose([row.observed_rate for row in rows], rate)


# ---- properties --------------------------------------------------------------------------------------------------


def test_two_columns_are_the_same_problem_as_one():
    table = np.stack([1 - np.array(TWELVE), TWELVE], axis=1)
    for metric in (nll, brier, ece):
        assert metric(table, TRUTH) == pytest.approx(metric(TWELVE, TRUTH), abs=1e-12)


def test_multiclass_calibration_is_of_the_top_label():
    probabilities = [[0.8, 0.1, 0.1]] * 10
    assert ece(probabilities, [0] * 8 + [1, 2], 5) == pytest.approx(0.0, abs=1e-12)
    assert ece(probabilities, [0] * 5 + [1] * 5, 5) == pytest.approx(0.3)


@relaxed
@given(predicted(k=3), st.sampled_from(["equal_mass", "equal_width"]), st.integers(1, 9))
def test_whole_weights_are_repeated_rows(case, binning, n_bins):
    probabilities, labels, weights = case
    times = weights.astype(int)
    repeated = np.repeat(probabilities, times, axis=0), np.repeat(labels, times)
    assert nll(*case) == pytest.approx(nll(*repeated))
    assert brier(*case) == pytest.approx(brier(*repeated))
    assert ece(*case[:2], n_bins, weights, binning=binning) == pytest.approx(
        ece(*repeated, n_bins, binning=binning), abs=1e-12
    )


@relaxed
@given(predicted(), st.randoms(use_true_random=False), st.sampled_from(["equal_mass", "equal_width"]))
def test_the_order_of_rows_does_not_matter(case, random, binning):
    rows = list(range(len(case[0])))
    random.shuffle(rows)
    probabilities, labels, weights = (column[rows] for column in case)
    assert ece(probabilities, labels, 4, weights, binning=binning) == pytest.approx(
        ece(case[0], case[1], 4, case[2], binning=binning), abs=1e-12
    )
    assert brier(probabilities, labels, weights) == pytest.approx(brier(*case), abs=1e-12)


@relaxed
@given(predicted(), st.integers(1, 20))
def test_calibration_error_bounds(case, n_bins):
    probabilities, labels, weights = case
    l1 = ece(probabilities, labels, n_bins, weights)
    assert 0 <= l1 <= ece(probabilities, labels, n_bins, weights, norm="l2") + 1e-9 <= 1 + 1e-9
    # one bin measures the bias of the mean, and more bins can only find more
    assert ece(probabilities, labels, 1, weights) <= l1 + 1e-9


@relaxed
@given(predicted(), st.integers(1, 20), st.sampled_from(["equal_mass", "equal_width"]))
def test_bins_hold_every_row_and_give_the_error(case, n_bins, binning):
    probabilities, labels, weights = case
    rows = reliability(probabilities, labels, n_bins, weights, binning=binning)
    assert sum(row.count for row in rows) == pytest.approx(weights.sum())
    assert all(row.low - 1e-9 <= row.mean_probability <= row.high + 1e-9 for row in rows)
    assert all(0 <= row.observed_rate <= 1 for row in rows)
    gap = sum(row.count * abs(row.mean_probability - row.observed_rate) for row in rows) / weights.sum()
    assert gap == pytest.approx(ece(probabilities, labels, n_bins, weights, binning=binning), abs=1e-9)


def test_ties_stay_in_one_bin():
    rows = reliability([0.1, 0.5, 0.5, 0.5, 0.5, 0.9], [0, 0, 1, 0, 1, 1], n_bins=3)
    assert [row.count for row in rows] == [1, 4, 1]


def test_impossible_answer_costs_infinity():
    assert nll([0.0, 0.5], [1, 1]) == float("inf")
    assert np.isfinite(nll([0.0, 0.5], [1, 1], weights=[0, 1]))


def test_nll_of_logits_is_that_of_probabilities_and_finite():
    logits = np.array([[0.0, 2.0, -1.0], [1.0, 1.0, 0.0], [0.0, 900.0, -900.0]])
    labels = np.array([1, 2, 0])
    probabilities = np.exp(logits[:2]) / np.exp(logits[:2]).sum(axis=1, keepdims=True)
    rows = nll_rows(logits, labels)
    assert rows[:2].mean() == pytest.approx(nll(probabilities, labels[:2]))
    assert rows[2] == 900.0


# ---- the threshold of the best MCC -------------------------------------------------------------------------------


@relaxed
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=25).filter(
        lambda rows: any(weight for *_, weight in rows)
    )
)
def test_best_mcc_is_that_of_trying_every_threshold(rows):
    from sklearn.metrics import matthews_corrcoef

    score, labels, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    threshold, found = best_mcc_threshold(score, labels, weights)
    there = weights > 0
    if len(set(labels[there])) < 2 or len(set(score[there])) < 2:
        assert np.isnan(threshold)
        assert np.isnan(found)
        return
    tried = [
        matthews_corrcoef(labels[there], score[there] > cut, sample_weight=weights[there])
        for cut in np.unique(score[there])[:-1]
    ]
    assert found == pytest.approx(max(tried), abs=1e-9)
    assert mcc((score > threshold)[there], labels[there], weights[there]) == pytest.approx(found, abs=1e-9)


def test_best_mcc_threshold_lies_between_scores_and_calls_what_it_says():
    assert best_mcc_threshold([1, 2, 5, 6], [0, 0, 1, 1]) == (3.5, 1.0)
    near = np.nextafter(1.0, 2.0)
    assert best_mcc_threshold([1.0, near], [0, 1]) == (1.0, 1.0)  # nothing lies between these two
    assert best_mcc_threshold([1e308, 1.7e308], [0, 1]) == (1.35e308, 1.0)
    assert best_mcc_threshold([3, 2, 1], [0, 0, 1])[1] == pytest.approx(-0.5)  # no good threshold is no reason to lie


@pytest.mark.parametrize(
    "score, labels, words",
    [
        ([0.1, 0.2], [0, 2], "labels: 2; a threshold"),
        ([0.1, float("nan")], [0, 1], "row 1 is nan"),
        ([0.1], [0, 1], "2 values for 1"),
        ([], [], "labels"),
    ],
)
def test_bad_scores_are_named(score, labels, words):
    with pytest.raises(DataError, match=words):
        best_mcc_threshold(score, labels)


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [nll, brier, ece, reliability, squared_ce_debiased])
@pytest.mark.parametrize(
    "probabilities, labels, words",
    [
        ([0.1, float("nan")], [0, 1], "row 1 is nan"),
        ([0.1, 1.2], [0, 1], "row 1 is 1.2"),
        ([[0.1, 0.2]], [0], "sums to 0.3"),
        ([0.1, 0.2], [0, 2], "outside 0..1"),
        ([0.1, 0.2], [0, -1], "whole numbers"),
        ([0.1, 0.2], [0, 0.5], "whole numbers"),
        ([0.1, 0.2], [0, float("nan")], "whole numbers"),
        ([0.1, 0.2], ["a", "b"], "whole numbers"),
        ([0.1, 0.2], [0], "1 values for 2"),
        ([], [], "at least one row"),
        (["a"], [0], "not numbers"),
    ],
)
def test_bad_arrays_are_named_in_one_line(metric, probabilities, labels, words):
    with pytest.raises(DataError, match=words) as caught:
        metric(probabilities, labels)
    assert "\n" not in str(caught.value)


def test_bad_options_are_named():
    with pytest.raises(DataError, match="n_bins: 0"):
        ece(TWELVE, TRUTH, 0)
    with pytest.raises(DataError, match="binning: 'quantile'"):
        ece(TWELVE, TRUTH, binning="quantile")
    with pytest.raises(DataError, match="norm: 'max'"):
        ece(TWELVE, TRUTH, norm="max")
    with pytest.raises(DataError, match="single row"):
        squared_ce_debiased(TWELVE, TRUTH, 12)
