"""Selective metrics: oracle values of fd-shifts, properties, scikit-learn, and the tie rule against a peer's."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose

from stage1.errors import DataError
from stage1.evaluation import (
    augrc,
    aurc,
    aurc_achievable,
    auroc_failure,
    coverage_at_risk,
    e_augrc,
    e_aurc,
    naurc,
    risk_at_coverage,
    risk_coverage,
)
from stage1.evaluation.ranking import _chain, lower_hull

# the machine may be busy: no deadline
relaxed = settings(deadline=None, max_examples=80)
FIVE = [0.9, 0.8, 0.7, 0.6, 0.5]
# confidence, residuals, then AURC, E-AURC, AUGRC, E-AUGRC, AURC achievable (fd-shifts, x1000)
CASES = {
    "A": (FIVE, [0, 0, 1, 0, 1], 156.666667, 63.162041, 120, 40, 127.484433),
    "B": ([0.9] * 3 + [0.5] * 4 + [0.2], [0, 1, 0, 1, 0, 0, 1, 1], 373.511905, 220.085495, 203.125, 78.125, 380.278187),
    "C": ([0.7] * 4, [0, 1, 0, 0], 250, 215.761554, 125, 93.75, 250),
    "D": (FIVE, [0, 0, 0, 1, 1], 90, -3.504626, 80, 0, 93.504626),
    "E": (FIVE, [1, 1, 0, 0, 0], 773.333333, 679.828708, 320, 240, 400),
    "F": (FIVE[:3], [0, 0, 0], 0, 0, 0, 0, 0),
    "G": (FIVE[:3], [1, 1, 1], 1000, 0, 500, 0, 1000),
    "H": ([0.9, 0.7, 0.7, 0.2], [0.1, 0.5, 0.2, 0.9], 203.125, 8.333333, 137.5, 9.375, 219.687748),
    "J": (
        [0.99, 0.97, 0.95, 0.9, 0.85, 0.8, 0.7, 0.65, 0.6, 0.55],
        [0, 0, 0, 1, 0, 0, 1, 0, 1, 1],
        *(168.571429, 75.066803, 120, 40, 139.262737),
    ),
    "K": (FIVE, [1, 0, 0, 0, 0], 536.666667, 515.181508, 180, 160, 200),
    "I": ([0, 1, 2, 3], [0, 1, 0, 1], 729.166667, 575.740257, 312.5, 187.5, 500),
}


@pytest.mark.parametrize("case", CASES)
def test_areas_equal_fd_shifts(case):
    confidence, residuals, *expected = CASES[case]
    found = [1000 * metric(confidence, residuals) for metric in (aurc, e_aurc, augrc, e_augrc, aurc_achievable)]
    assert_allclose(found, expected, atol=1e-6)


def test_curve_of_distinct_confidences():
    curve = risk_coverage(*CASES["A"][:2])
    assert_allclose(curve.coverage, [1, 0.8, 0.6, 0.4, 0.2, 0])
    assert_allclose(curve.selective_risk, [0.4, 0.25, 1 / 3, 0, 0, 0])
    assert_allclose(curve.generalised_risk, [0.4, 0.2, 0.2, 0, 0, 0])
    assert_allclose(curve.threshold, [0.5, 0.6, 0.7, 0.8, 0.9, np.inf])


def test_curve_takes_ties_as_blocks():
    coverage, selective, generalised, threshold = risk_coverage(*CASES["B"][:2])
    assert_allclose(coverage, [1, 0.875, 0.375, 0])
    assert_allclose(selective, [0.5, 3 / 7, 1 / 3, 1 / 3])
    assert_allclose(generalised, [0.5, 0.375, 0.125, 0])
    assert_allclose(threshold, [0.2, 0.5, 0.9, np.inf])


@pytest.mark.parametrize("case, expected", [("A", 5 / 6), ("B", 0.6875), ("I", 0.25)])
def test_failure_auroc_equals_table(case, expected):
    assert auroc_failure(*CASES[case][:2]) == pytest.approx(expected)


def test_weighted_augrc_equals_table():
    assert augrc(*CASES["A"][:2], weights=[1, 2, 2, 1, 2]) == pytest.approx(0.15625)


def test_aurc_punishes_one_confident_error_more_than_augrc():
    # K has one error at the top, J four errors lower down: the two metrics disagree, which is why both are reported
    assert aurc(*CASES["K"][:2]) > 3 * aurc(*CASES["J"][:2])
    assert augrc(*CASES["K"][:2]) < 2 * augrc(*CASES["J"][:2])


@pytest.mark.parametrize("accuracy, perfect, worst", [(0.9, 0.005, 0.095)])
def test_augrc_at_fixed_accuracy(accuracy, perfect, worst):
    n = 1000
    residuals = np.arange(n) >= accuracy * n
    assert augrc(-np.arange(n), residuals) == pytest.approx(perfect)
    assert augrc(np.arange(n), residuals) == pytest.approx(worst)
    assert augrc(np.zeros(n), residuals) == pytest.approx((perfect + worst) / 2)


# ---- the tie rule ------------------------------------------------------------------------------------------------


def aurc_without_ties(confidence, residuals):
    """The rule of a peer (torch-uncertainty, 2026): rows in stable order, from coverage 1/n, rescaled."""
    n = len(residuals)
    ordered = np.asarray(residuals)[np.argsort(-np.asarray(confidence), kind="stable")]
    risks = np.cumsum(ordered) / np.arange(1, n + 1)
    return np.trapezoid(risks, np.arange(1, n + 1) / n) / (1 - 1 / n)


def test_ties_do_not_depend_on_the_order_where_a_peer_does():
    orders = ([1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 1])
    assert_allclose([aurc_without_ties([0.7] * 4, r) for r in orders], [0.486, 0.319, 0.042], atol=1e-3)
    assert [aurc([0.7] * 4, r) for r in orders] == [0.25, 0.25, 0.25]
    assert [augrc([0.7] * 4, r) for r in orders] == [0.125, 0.125, 0.125]


# ---- normalised AURC ----------------------------------------------------------------------------------------------


def plain_naurc(confidence, residuals):
    """Cattelan and Silva's definition: AURC* is that of a confidence which knows the residuals and has no ties."""
    best = aurc(-np.argsort(np.argsort(residuals, kind="stable")), residuals)
    return (aurc(confidence, residuals) - best) / (np.mean(residuals) - best)


@pytest.mark.parametrize("case", ["A", "B", "C", "D", "E", "J", "K", "I"])
def test_naurc_equals_its_definition(case):
    assert naurc(*CASES[case][:2]) == pytest.approx(plain_naurc(*CASES[case][:2]), abs=1e-12)


def test_naurc_is_0_at_best_and_1_at_random():
    assert naurc(*CASES["D"][:2]) == pytest.approx(0.0, abs=1e-12)
    assert naurc([0.5] * 10, [0, 1] * 5) == pytest.approx(1.0)  # one block: the order says nothing
    assert naurc(*CASES["E"][:2]) > 1
    rng = np.random.default_rng(0)
    wrong = np.arange(200) < 40
    # by chance: 1 in expectation (no ties, mean over orders), spread .27 for one order
    assert np.mean([naurc(rng.random(200), wrong) for _ in range(400)]) == pytest.approx(1.0, abs=0.06)


def test_naurc_is_undefined_where_no_order_is_better():
    assert np.isnan(naurc(*CASES["F"][:2]))
    assert np.isnan(naurc(*CASES["G"][:2]))
    assert np.isnan(naurc([3, 2, 1], [0.5, 0.5, 0.5]))


def test_naurc_of_general_losses_uses_the_best_order():
    confidence, residuals = CASES["H"][:2]
    best = aurc([-r for r in residuals], residuals)
    assert naurc(confidence, residuals) == pytest.approx((0.203125 - best) / (0.425 - best))


def test_naurc_does_not_see_the_error_rate():
    """Gaussian confidence, right ones one sigma higher, at three error rates: AURC moves tenfold, NAURC hardly."""
    rng = np.random.default_rng(1)
    found = {}
    for rate in (0.05, 0.2, 0.5):
        wrong = rng.random(40_000) < rate
        confidence = rng.normal(size=40_000) + ~wrong
        found[rate] = aurc(confidence, wrong), naurc(confidence, wrong)
    assert found[0.5][0] > 8 * found[0.05][0]
    assert max(value for _, value in found.values()) < 1.6 * min(value for _, value in found.values())


# ---- lower hull --------------------------------------------------------------------------------------------------


@relaxed
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), min_size=1, max_size=40))
def test_hull_equals_the_monotone_chain(steps):
    widths, rises = np.array(steps, dtype=float).T
    x = np.append(0.0, np.cumsum(widths))
    y = np.append(0.0, np.cumsum(np.where(widths > 0, rises, 0)))
    distinct = np.append(0, np.flatnonzero(np.diff(x) > 0) + 1)
    found = lower_hull(x, y)
    expected = distinct[_chain(x[distinct], y[distinct])]
    assert_allclose(found, expected)


def test_hull_of_a_long_cascade_ends():
    # convex, and then one point that undoes it corner by corner: one corner a pass
    x = np.append(np.arange(20_000.0), 20_000.0)
    y = np.append(np.arange(20_000.0) ** 2, 0.0)
    assert lower_hull(x, y).tolist() == [0, 20_000]


# ---- points of the curve -----------------------------------------------------------------------------------------


def test_risk_at_coverage_takes_the_smallest_block_set_that_reaches_it():
    assert [risk_at_coverage(*CASES["A"][:2], c) for c in (1, 0.8, 0.79, 0.6, 0.4, 0.2, 0)] == pytest.approx(
        [0.4, 0.25, 0.25, 1 / 3, 0, 0, 0]
    )
    assert risk_at_coverage(*CASES["B"][:2], 0.5) == pytest.approx(3 / 7)


def test_coverage_at_risk_is_the_largest():
    # the peer's version gives NaN for both of the first two (ALGORITHMS 4.3)
    assert coverage_at_risk(*CASES["K"][:2], 0.2) == 1.0
    assert coverage_at_risk(*CASES["A"][:2], 0.1) == pytest.approx(0.4)
    assert coverage_at_risk(*CASES["A"][:2], 0.25) == pytest.approx(0.8)
    assert coverage_at_risk(*CASES["E"][:2], 0.3) == 0.0


def test_round_coverages_survive_fractional_weights():
    weights = [0.1] * 10  # ten times 0.1 is not 1.0 in floating point
    residuals = [0, 0, 0, 0, 0, 0, 0, 1, 0, 0]
    confidence = -np.arange(10.0)
    assert risk_at_coverage(confidence, residuals, 0.7, weights) == 0.0
    assert coverage_at_risk(confidence, residuals, 0.1, weights) == 1.0


# ---- properties --------------------------------------------------------------------------------------------------


@st.composite
def ranked(draw, binary=True, weighted=True):
    """(confidence, residuals, weights) with many ties; weights are whole numbers, some 0."""
    n = draw(st.integers(1, 30))
    confidence = draw(st.lists(st.integers(-3, 3).map(lambda v: v / 4), min_size=n, max_size=n))
    loss = st.integers(0, 1) if binary else st.floats(0, 2, allow_subnormal=False)
    residuals = draw(st.lists(loss, min_size=n, max_size=n))
    weights = draw(st.lists(st.integers(0, 4), min_size=n, max_size=n).filter(any)) if weighted else [1] * n
    return np.array(confidence), np.array(residuals, dtype=float), np.array(weights, dtype=float)


ALL = (aurc, augrc, e_aurc, e_augrc, aurc_achievable)


@relaxed
@given(ranked())
def test_augrc_has_its_closed_form_with_ties_and_weights(case):
    confidence, residuals, weights = case
    right = 1 - weights @ residuals / weights.sum()
    area = auroc_failure(confidence, residuals, weights)
    ranking = 0.0 if np.isnan(area) else (1 - area) * right * (1 - right)
    assert augrc(confidence, residuals, weights) == pytest.approx(ranking + (1 - right) ** 2 / 2, abs=1e-12)


@relaxed
@given(ranked())
def test_failure_auroc_equals_scikit_learn(case):
    from sklearn.metrics import roc_auc_score

    confidence, residuals, weights = case
    there = weights > 0
    found = auroc_failure(confidence, residuals, weights)
    if len(set(residuals[there])) < 2:
        assert np.isnan(found)
    else:
        oracle = roc_auc_score(1 - residuals[there], confidence[there], sample_weight=weights[there])
        assert found == pytest.approx(oracle, abs=1e-12)


@relaxed
@given(ranked(binary=False))
def test_whole_weights_are_repeated_rows(case):
    confidence, residuals, weights = case
    times = weights.astype(int)
    repeated = np.repeat(confidence, times), np.repeat(residuals, times)
    for metric in ALL:
        assert metric(confidence, residuals, weights) == pytest.approx(metric(*repeated), abs=1e-9)
    assert naurc(confidence, residuals, weights) == pytest.approx(naurc(*repeated), abs=1e-7, nan_ok=True)
    for found, expected in zip(risk_coverage(confidence, residuals, weights), risk_coverage(*repeated), strict=True):
        assert_allclose(found, expected, atol=1e-12)


@relaxed
@given(ranked())
def test_whole_weights_are_repeated_rows_for_naurc(case):
    confidence, residuals, weights = case
    times = weights.astype(int)
    repeated = np.repeat(confidence, times), np.repeat(residuals, times)
    assert naurc(*case) == pytest.approx(naurc(*repeated), abs=1e-9, nan_ok=True)
    if 0 < repeated[1].sum() < len(repeated[1]):
        assert naurc(*case) == pytest.approx(plain_naurc(*repeated), abs=1e-9)


@relaxed
@given(ranked(binary=False), st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(case, random):
    rows = list(range(len(case[0])))
    random.shuffle(rows)
    shuffled = [column[rows] for column in case]
    for metric in ALL:
        assert metric(*shuffled) == pytest.approx(metric(*case), abs=1e-9)
    assert risk_at_coverage(*shuffled[:2], 0.5, shuffled[2]) == pytest.approx(risk_at_coverage(*case[:2], 0.5, case[2]))


@relaxed
@given(ranked(binary=False))
def test_a_rising_map_of_the_confidence_changes_nothing(case):
    confidence, residuals, weights = case
    for metric in ALL:
        assert metric(np.exp(3 * confidence) - 7, residuals, weights) == metric(confidence, residuals, weights)


@relaxed
@given(ranked())
def test_bounds(case):
    _, residuals, weights = case
    wrong = weights @ residuals / weights.sum()
    assert -1e-12 <= aurc(*case) <= 1 + 1e-12
    assert wrong**2 / 2 - 1e-12 <= augrc(*case) <= wrong - wrong**2 / 2 + 1e-12
    assert e_augrc(*case) >= -1e-12
    # any order's convex hull is at least as good as answering at random
    assert aurc_achievable(*case) <= wrong + 1e-12


@relaxed
@given(ranked())
def test_curve_falls_and_ends_where_it_must(case):
    curve = risk_coverage(*case)
    assert curve.coverage[0] == 1.0
    assert curve.coverage[-1] == curve.generalised_risk[-1] == 0.0
    assert (np.diff(curve.coverage) < 0).all()
    assert (np.diff(curve.generalised_risk) <= 1e-12).all()
    assert (np.diff(curve.threshold) > 0).all()
    assert_allclose(curve.selective_risk * curve.coverage, curve.generalised_risk, atol=1e-12)
    assert np.trapezoid(curve.generalised_risk[::-1], curve.coverage[::-1]) == pytest.approx(augrc(*case), abs=1e-12)
    assert np.trapezoid(curve.selective_risk[::-1], curve.coverage[::-1]) == pytest.approx(aurc(*case), abs=1e-12)


@relaxed
@given(ranked())
def test_threshold_accepts_exactly_the_coverage_of_its_point(case):
    confidence, residuals, weights = case
    curve = risk_coverage(*case)
    for coverage, risk, threshold in zip(curve.coverage, curve.generalised_risk, curve.threshold, strict=True):
        accepted = weights * (confidence >= threshold)
        assert accepted.sum() / weights.sum() == pytest.approx(coverage)
        assert accepted @ residuals / weights.sum() == pytest.approx(risk)


@relaxed
@given(ranked(), st.floats(0, 1), st.floats(0, 1))
def test_points_of_the_curve_are_consistent(case, low, high):
    low, high = sorted((low, high))
    confidence, residuals, weights = case
    assert coverage_at_risk(confidence, residuals, low, weights) <= coverage_at_risk(
        confidence, residuals, high, weights
    )
    covered = coverage_at_risk(confidence, residuals, high, weights)
    if covered > 0:
        assert risk_at_coverage(confidence, residuals, covered, weights) <= high + 1e-9


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [*ALL, naurc, auroc_failure, risk_coverage])
@pytest.mark.parametrize(
    "confidence, residuals, weights, words",
    [
        ([0.1, float("nan")], [0, 1], None, "confidence: row 1 is nan"),
        ([0.1, float("inf")], [0, 1], None, "confidence: row 1 is inf"),
        ([0.1, 0.2], [0, float("nan")], None, "residuals: row 1 is nan"),
        ([0.1, 0.2], [0, -1], None, "residuals: row 1 is -1"),
        ([0.1, 0.2], [0, 1, 1], None, "3 values for 2"),
        ([], [], None, "at least one row"),
        ([[0.1]], [0], None, "shape"),
        (["high"], [0], None, "not numbers"),
        ([0.1, 0.2], [0, 1], [1, float("nan")], "weights: row 1 is nan"),
        ([0.1, 0.2], [0, 1], [1, -1], "weights"),
        ([0.1, 0.2], [0, 1], [0, 0], "not all 0"),
        ([0.1, 0.2], [0, 1], [1], "1 values for 2 rows"),
    ],
)
def test_bad_arrays_are_named_in_one_line(metric, confidence, residuals, weights, words):
    with pytest.raises(DataError, match=words) as caught:
        metric(confidence, residuals, weights)
    assert "\n" not in str(caught.value)


def test_bad_arguments_are_named():
    with pytest.raises(DataError, match="coverage: 1.2"):
        risk_at_coverage(FIVE, [0] * 5, 1.2)
    with pytest.raises(DataError, match="risk: -0.1"):
        coverage_at_risk(FIVE, [0] * 5, -0.1)
    with pytest.raises(DataError, match="risk: nan"):
        coverage_at_risk(FIVE, [0] * 5, float("nan"))
    with pytest.raises(DataError, match="auroc_failure"):
        auroc_failure([1, 2], [0.5, 0.1])
