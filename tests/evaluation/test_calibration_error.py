"""Calibration beyond ECE: the table's values, simulated truth, scikit-learn, and the parts of the Brier score."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.errors import DataError
from stage1.evaluation import brier, brier_decomposition, classwise_ece, ece, ece_debiased, squared_ce_debiased
from stage1.evaluation.calibration_error import _folded_mean

relaxed = settings(deadline=None, max_examples=80)
TWELVE = [0.05, 0.1, 0.15, 0.3, 0.35, 0.4, 0.6, 0.65, 0.7, 0.85, 0.9, 0.95]
TRUTH = [0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1]


def calibrated(rng, n=600):
    probabilities = rng.random(n)
    return probabilities, (rng.random(n) < probabilities).astype(int)


# ---- debiased ----------------------------------------------------------------------------------------------------


def test_folded_normal_mean_equals_simulation():
    mean, spread = np.array([0.0, 0.03, -0.4, 0.2, 0.1]), np.array([0.1, 0.05, 0.1, 0.0, 1e-9])
    draws = np.abs(mean + spread * np.random.default_rng(0).normal(size=(400_000, 5)))
    np.testing.assert_allclose(_folded_mean(mean, spread), draws.mean(axis=0), atol=6e-4)


def test_ece_debiased_equals_redrawn_rates():
    """What Kumar et al. simulate: 2 ECE - mean ECE of rates drawn around the observed ones."""
    rng = np.random.default_rng(1)
    probabilities, labels = calibrated(rng, 300)
    order = np.argsort(probabilities)
    bins = np.array_split(order, 10)
    mean = np.array([probabilities[rows].mean() for rows in bins])
    rate = np.array([labels[rows].mean() for rows in bins])
    redrawn = rng.normal(rate, np.sqrt(rate * (1 - rate) / 30), size=(100_000, 10))
    expected = 2 * np.abs(mean - rate).mean() - np.abs(redrawn - mean).mean()
    assert ece_debiased(probabilities, labels, 10) == pytest.approx(expected, abs=5e-4)
    assert ece(probabilities, labels, 10) == pytest.approx(np.abs(mean - rate).mean())


def test_what_is_left_of_the_bias_for_calibrated_scores():
    rng = np.random.default_rng(2)
    samples = [calibrated(rng) for _ in range(200)]
    plain = np.mean([ece(*sample) for sample in samples])
    debiased = np.mean([ece_debiased(*sample) for sample in samples])
    squares = [squared_ce_debiased(*sample) for sample in samples]
    assert plain > 0.04
    # 2 E|N(0, s)| - E|N(0, s sqrt 2)| over E|N(0, s)|
    assert debiased / plain == pytest.approx(2 - np.sqrt(2), abs=0.05)
    assert abs(np.mean(squares)) < 3 * np.std(squares) / np.sqrt(200)  # this one is unbiased
    assert min(squares) < 0


def test_debiased_errors_find_a_real_error():
    rng = np.random.default_rng(3)
    probabilities = rng.random(20_000)
    labels = (rng.random(20_000) < probabilities**2).astype(int)
    # E |p - p^2| = 1/6; E (p - p^2)^2 = 1/30
    assert ece_debiased(probabilities, labels, 50) == pytest.approx(1 / 6, abs=0.01)
    assert squared_ce_debiased(probabilities, labels, 50) == pytest.approx(1 / 30, abs=0.004)


@pytest.mark.parametrize("n_bins, debiased", [(3, -0.012778), (4, -0.050417)])
def test_squared_error_equals_table(n_bins, debiased):
    assert squared_ce_debiased(TWELVE, TRUTH, n_bins) == pytest.approx(debiased, abs=1e-6)


@pytest.mark.parametrize("metric", [ece_debiased, squared_ce_debiased])
def test_equal_weights_change_nothing_and_copies_are_not_evidence(metric):
    plain = metric(TWELVE, TRUTH, 3)
    assert metric(TWELVE, TRUTH, 3, [7.0] * 12) == pytest.approx(plain)
    assert metric([*TWELVE, 0.5], [*TRUTH, 1], 3, [1.0] * 12 + [0.0]) == pytest.approx(plain)
    twice = metric(np.repeat(TWELVE, 2), np.repeat(TRUTH, 2), 3)
    assert twice > plain  # repeated rows pass for independent ones, and less is put down to chance


def test_a_bin_of_one_row_has_no_variance():
    with pytest.raises(DataError, match="single row"):
        squared_ce_debiased(TWELVE, TRUTH, 12)
    with pytest.raises(DataError, match="single row"):
        squared_ce_debiased(TWELVE, TRUTH, 6, [1, 0] * 6)


# ---- class by class ----------------------------------------------------------------------------------------------


def test_classwise_is_the_mean_over_one_against_the_rest():
    rng = np.random.default_rng(4)
    probabilities = rng.dirichlet(np.ones(4), 400)
    labels = rng.integers(0, 4, 400)
    weights = rng.random(400)
    for options in ({}, {"binning": "equal_width"}, {"norm": "l2"}):
        expected = np.mean(
            [ece(probabilities[:, k], (labels == k).astype(int), 10, weights, **options) for k in range(4)]
        )
        assert classwise_ece(probabilities, labels, 10, weights, **options) == pytest.approx(expected)


def test_classwise_of_two_classes_is_ece():
    rng = np.random.default_rng(5)
    probabilities, labels = calibrated(rng, 300)
    assert classwise_ece(probabilities, labels, 10) == pytest.approx(ece(probabilities, labels, 10))


def test_classwise_sees_what_the_top_label_hides():
    # always .5 on the right one of two classes: right at the top, but class 2 gets .3 and never happens
    probabilities = np.tile([0.5, 0.2, 0.3], (100, 1))
    labels = np.repeat([0, 1], 50)
    assert ece(probabilities, labels, 5) == pytest.approx(0.0, abs=1e-12)
    assert classwise_ece(probabilities, labels, 5) == pytest.approx((0 + 0.3 + 0.3) / 3)


# ---- parts of the Brier score ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "low, high, parts, total", [(0.2, 0.8, (0, 0.09, 0.25), 0.16), (0.3, 0.9, (0.01, 0.09, 0.25), 0.17)]
)
def test_decomposition_of_the_table(low, high, parts, total):
    probabilities, labels = [low] * 5 + [high] * 5, [0, 0, 0, 0, 1, 1, 1, 1, 0, 1]
    found = brier_decomposition(probabilities, labels)
    assert found == pytest.approx(parts)
    assert found.reliability - found.resolution + found.uncertainty == pytest.approx(total)
    assert brier(probabilities, labels) == pytest.approx(total)


@st.composite
def predicted(draw):
    k = draw(st.integers(2, 4))
    n = draw(st.integers(1, 25))
    parts = draw(st.lists(st.lists(st.integers(1, 3), min_size=k, max_size=k), min_size=n, max_size=n))
    labels = draw(st.lists(st.integers(0, k - 1), min_size=n, max_size=n))
    weights = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n).filter(any))
    table = np.array(parts, dtype=float)
    return table / table.sum(axis=1, keepdims=True), np.array(labels), np.array(weights, dtype=float)


@relaxed
@given(predicted())
def test_parts_add_up_to_the_brier_score(case):
    found = brier_decomposition(*case)
    assert found.reliability - found.resolution + found.uncertainty == pytest.approx(brier(*case), abs=1e-12)
    assert min(found) >= 0
    assert found.resolution <= found.uncertainty + 1e-12


@relaxed
@given(predicted())
def test_whole_weights_are_repeated_rows(case):
    probabilities, labels, weights = case
    times = weights.astype(int)
    repeated = np.repeat(probabilities, times, axis=0), np.repeat(labels, times)
    assert brier_decomposition(*case) == pytest.approx(brier_decomposition(*repeated), abs=1e-12)
    assert classwise_ece(probabilities, labels, 4, weights) == pytest.approx(classwise_ece(*repeated, 4), abs=1e-12)


def test_distinct_predictions_have_all_the_resolution():
    found = brier_decomposition(TWELVE, TRUTH)
    assert found.resolution == pytest.approx(found.uncertainty)
    assert found.reliability == pytest.approx(brier(TWELVE, TRUTH))


@pytest.mark.parametrize("metric", [ece_debiased, squared_ce_debiased, classwise_ece, brier_decomposition])
@pytest.mark.parametrize(
    "probabilities, labels, words",
    [
        ([0.1, float("nan")], [0, 1], "row 1 is nan"),
        ([[0.1, 0.2]], [0], "sums to 0.3"),
        ([0.1, 0.2], [0, 2], "outside 0..1"),
        ([0.1, 0.2], ["a", "b"], "whole numbers"),
        ([], [], "at least one row"),
    ],
)
def test_bad_arrays_are_named_in_one_line(metric, probabilities, labels, words):
    with pytest.raises(DataError, match=words) as caught:
        metric(probabilities, labels)
    assert "\n" not in str(caught.value)


def test_no_bins_is_named():
    for metric in (ece_debiased, classwise_ece):
        with pytest.raises(DataError, match="n_bins: 0"):
            metric(TWELVE, TRUTH, 0)
