"""Where to stop: the parts of the rule against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from scipy import special

from stage1.views import stopping as stop_bounds
from stage1.views.stopping import plan_stops

RATES = {"fnr": 0.01, "false_exit_rate": 0.04}


def prefixes(n, seed, noise=(3.0, 2.0, 1.0, 0.5)):
    """Calibrated log-odds after each of some views that know more and more: Gaussian evidence whose variance
    shrinks.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    total, found = np.zeros(n), []
    for spread in noise:
        strength = 2.0 / spread
        total = total + strength * (strength * (labels - 0.5) + rng.normal(size=n))
        found.append(total.copy())
    return np.stack(found, axis=1), labels.astype(np.int64)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 10**6), st.floats(0.05, 5.0), st.floats(-4.0, 1.0))
def test_the_innermost_bound_is_the_first_that_keeps_to_the_errors(seed, allowed, threshold):
    score = np.random.default_rng(seed).normal(-2, 2, size=(60, 3))
    bound = stop_bounds._innermost(score, threshold, allowed)

    def expected_errors(at):
        total = 0.0
        for row in score:
            stopped = [value for value in row if value <= at]
            total += special.expit(stopped[0]) if stopped else 0.0
        return total

    if bound is None:
        assert expected_errors(threshold - 11.9) > allowed
        return
    assert bound <= threshold
    assert expected_errors(bound) <= allowed
    steps = round((threshold - bound) / 0.1)
    assert all(expected_errors(threshold - 0.1 * step) > allowed for step in range(steps))


def test_no_bound_where_a_side_never_exits_or_nothing_is_allowed():
    score = np.full((4, 2), -9.0)
    assert stop_bounds._innermost(score, -np.inf, 1.0) is None
    assert stop_bounds._innermost(score, -2.0, 0.0) is None
    assert stop_bounds._innermost(score[:, :0], -2.0, 1.0) is None
    assert stop_bounds._innermost(score, -2.0, 1.0) == approx(-2.0)


@pytest.mark.parametrize(
    ("rates", "allowed"),
    [
        ({"fnr": 0.1, "false_exit_rate": 0.05}, (4.0, 3.0)),
        ({"miss_rate": 0.05}, (2.0, np.inf)),
        ({"fpr": 0.1, "fnr": 0.2, "miss_rate": 0.1}, (4.0, 6.0)),
        ({"error": 0.02}, (1.0, 1.0)),
    ],
)
def test_errors_allowed_are_counted_in_the_class_that_they_are_of(rates, allowed):
    assert stop_bounds._errors_allowed(np.repeat([0, 1], [60, 40]), rates) == approx(allowed)


def test_views_that_say_nothing_more_are_not_looked_at():
    score, labels = prefixes(2000, seed=0)
    noise = np.random.default_rng(1).normal(size=(2000, 2))
    useless = np.column_stack([score, score[:, -1] + 0.7 * noise[:, 0], score[:, -1] + 0.9 * noise[:, 1]])
    plan = plan_stops(useless, labels, RATES, 0.3)
    assert [(one.low, one.high) for one in plan.bounds[3:]] == [(0.0, 0.0)] * 3
    assert all(one != plan.bounds[-1] for one in plan.bounds[:3])
    assert plan.coverage >= plan.coverage_all - 0.02


def test_a_last_view_that_costs_coverage_is_put_off():
    """The NLL of the second prefix is least, but too many of its sure answers are wrong: coverage asks for the
    third.
    """
    rng = np.random.default_rng(3)
    labels = (np.arange(3000) % 2).astype(np.int64)
    clean = 3.5 * (3.5 * (labels - 0.5) + rng.normal(size=3000))
    second = np.where((labels == 1) & (rng.random(3000) < 0.03), -5.0, clean)
    shy = 0.2 * clean  # right, in the best order, and too modest: a worse NLL
    made = np.column_stack([0.1 * second, second, shy])
    loss = [np.logaddexp(0, np.where(labels == 1, -column, column)).mean() for column in made.T]
    assert int(np.argmin(loss)) == 1
    plan = plan_stops(made, labels, RATES, 0.0)
    assert plan.views == 3
    assert plan.coverage == plan.coverage_all


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6))
def test_bounds_are_never_nearer_than_the_thresholds_and_one_pair_serves_all_steps(seed):
    score, labels = prefixes(400, seed)
    plan = plan_stops(score, labels, RATES, 0.4)
    early = [one for one in plan.bounds if (one.low, one.high) != (0.0, 0.0)]
    lows = {one.low for one in early if one.low is not None}
    highs = {one.high for one in early if one.high is not None}
    assert len(lows) <= 1
    assert len(highs) <= 1
    assert all(low < high for low in lows for high in highs)
    assert 1.0 <= plan.views <= score.shape[1]


def test_a_side_without_a_target_is_limited_by_what_the_thresholds_make():
    score, belief = np.array([-2.0, -1.0, 1.0, 2.0]), np.array([0.1, 0.3, 0.6, 0.9])
    both = stop_bounds.Expected(-0.5, 0.5, 1.0)
    assert stop_bounds._limited((1.0, np.inf), both, score, belief) == approx((1.0, 0.5))
    assert stop_bounds._limited((np.inf, 1.0), both, score, belief) == approx((0.4, 1.0))
    shut = stop_bounds.Expected(-0.5, np.inf, 0.5)
    assert stop_bounds._limited((1.0, np.inf), shut, score, belief) == approx((1.0, 4 * stop_bounds._LOST))
    assert stop_bounds._sides(shut) == (-0.5, -0.5)
    assert stop_bounds._sides(both) == (-0.5, 0.5)
