"""Minimum samples and the two threshold rules: table values, and the plain loop of the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from stage1.errors import ConfigError, DataError
from stage1.risk import max_errors, minimum_samples, order_statistic_rank, plan, walk_length
from stage1.risk.testing import max_errors_each


@pytest.mark.parametrize("delta, expected", [(0.05, [598, 299, 149, 99, 59, 29]), (0.10, [460, 230, 114, 76, 45, 22])])
def test_minimum_samples_equal_table(delta, expected):
    assert [minimum_samples(level, delta) for level in (0.005, 0.01, 0.02, 0.03, 0.05, 0.10)] == expected


def test_minimum_samples_with_errors():
    assert [minimum_samples(0.02, 0.05, errors) for errors in (0, 1, 2)] == [149, 236, 313]


@given(st.integers(0, 30), st.floats(0.005, 0.5), st.floats(0.01, 0.3))
def test_minimum_samples_is_the_turning_point(errors, level, delta):
    n = minimum_samples(level, delta, errors)
    assert stats.binom.cdf(errors, n, level) <= delta
    assert stats.binom.cdf(errors, n - 1, level) > delta


@pytest.mark.parametrize(
    "n, level, delta, k",
    [
        (77, 0.02, 0.05, 0),
        (149, 0.02, 0.05, 1),
        (235, 0.02, 0.05, 1),
        (235, 0.05, 0.05, 7),
        (400, 0.02, 0.05, 4),
        (680, 0.02, 0.05, 8),
        (300, 0.05, 0.1, 10),
        (1000, 0.01, 0.05, 5),
    ],
)
def test_order_statistic_rank_equals_table(n, level, delta, k):
    assert order_statistic_rank(n, level, delta) == k
    assert max_errors(n, level, delta) == k - 1


@pytest.mark.parametrize("n, level, delta, violation", [(300, 0.05, 0.1, 0.06497), (59, 0.05, 0.05, 0.04849)])
def test_violation_of_the_order_statistic_is_the_exact_tail(n, level, delta, violation):
    """m of the k-th smallest of n uniform scores is Beta(k, n + 1 - k): P(m > level) by formula and by simulation."""
    k = order_statistic_rank(n, level, delta)
    assert stats.beta.sf(level, k, n + 1 - k) == pytest.approx(violation, abs=1e-5)
    draws = 20_000
    m = np.sort(np.random.default_rng(1).random((draws, n)), axis=1)[:, k - 1]
    assert abs((m > level).mean() - violation) <= 3 * np.sqrt(violation * (1 - violation) / draws)


@pytest.mark.parametrize(
    "n, expected",
    [
        (200, [0, 4, 5, 14]),
        (500, [4, 16, 18, 40]),
        (1000, [12, 38, 40, 87]),
        (2000, [29, 83, 87, 182]),
        (5000, [83, 224, 229, 472]),
    ],
)
def test_max_errors_equal_the_exact_column_of_the_table(n, expected):
    cells = [(0.02, 0.05), (0.05, 0.05), (0.05, 0.10), (0.10, 0.10)]
    assert [max_errors(n, level, delta) for level, delta in cells] == expected


@pytest.mark.parametrize(
    "right, level, delta, misses",
    [(148, 0.02, 0.05, -1), (149, 0.02, 0.05, 0), (400, 0.02, 0.05, 3), (1000, 0.02, 0.05, 12), (200, 0.05, 0.1, 5)],
)
def test_walk_length_equals_table(right, level, delta, misses):
    assert walk_length(right, 10**6, level, delta) - 1 == misses


@given(st.integers(0, 400), st.integers(0, 40), st.floats(0.01, 0.3), st.floats(0.01, 0.3))
def test_walk_length_equals_the_plain_loop(right, available, level, delta):
    j = 0
    while j <= available and (stats.binom.cdf(j, j + right, level) if j + right else 1.0) <= delta:
        j += 1
    assert walk_length(right, available, level, delta) == j


def test_plan_agrees_with_its_parts():
    needs = {
        (need.risk, need.errors): need
        for need in plan({"fnr": 0.02, "false_exit_rate": 0.05}, prior=0.8, exit_rates=(0.5, 0.5))
    }
    delta = 1 - 0.95**0.5
    assert needs["fnr", 0].counted == minimum_samples(0.02, delta) == 182
    assert (needs["fnr", 0].in_class, needs["fnr", 0].in_total) == (364, 455)
    # of the negatives all count, exited or not; they are a fifth of the images
    assert (needs["false_exit_rate", 0].in_class, needs["false_exit_rate", 0].in_total) == (72, 360)


@pytest.mark.parametrize("arguments", [{"prior": 0.0}, {"prior": 1.0}, {"exit_rates": (0.5, 0.0)}])
def test_plan_names_what_is_out_of_range(arguments):
    with pytest.raises(ConfigError, match="prior|exit rate"):
        plan({"fnr": 0.02}, **arguments)


def test_negative_errors_are_refused():
    with pytest.raises(DataError, match="errors"):
        minimum_samples(0.02, 0.05, -1)


def test_max_errors_of_many_sizes_are_those_of_each():
    rng = np.random.default_rng(0)
    for _ in range(300):
        n, level, delta = (
            int(rng.integers(0, 4000)),
            float(rng.choice([0.005, 0.02, 0.1, 0.4])),
            float(rng.choice([0.01, 0.05, 0.1])),
        )
        assert max_errors_each(np.array([float(n)]), level, delta)[0] == (max_errors(n, level, delta) if n else -1)
