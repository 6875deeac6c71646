"""Bounds against independent oracles, by property, and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx
from scipy import stats

from stage1.errors import DataError
from stage1.risk import binomial_lower, binomial_pvalue, binomial_upper, hoeffding_bentkus_pvalue

rates = st.floats(1e-3, 0.999)


@st.composite
def counts(draw, largest=500):
    n = draw(st.integers(1, largest))
    return draw(st.integers(0, n)), n


# ---- oracle: ALGORITHMS 2.2


@pytest.mark.parametrize(
    "k, n, delta, upper",
    [
        (0, 100, 0.05, 0.029513),
        (1, 100, 0.05, 0.046560),
        (3, 150, 0.1, 0.043994),
        (5, 300, 0.05, 0.034722),
        (10, 1000, 0.05, 0.016903),
        (0, 59, 0.05, 0.049508),
    ],
)
def test_upper_bound_equals_table(k, n, delta, upper):
    assert binomial_upper(k, n, delta) == approx(upper, abs=1e-6)


@pytest.mark.parametrize("k, n, lower", [(70, 100, 0.615779), (850, 1000, 0.830164), (100, 100, 0.970487)])
def test_lower_bound_equals_table(k, n, lower):
    assert binomial_lower(k, n, 0.05) == approx(lower, abs=1e-6)


@pytest.mark.parametrize(
    "k, n, exact, hb",
    [
        (1, 100, 0.03708121, 0.08427964),
        (3, 150, 0.05476981, 0.14887978),
        (5, 300, 0.00233214, 0.00633941),
        (0, 59, 0.04849453, 0.04849453),
    ],
)
def test_pvalues_equal_table(k, n, exact, hb):
    assert binomial_pvalue(k, n, 0.05) == approx(exact, abs=1e-8)
    assert hoeffding_bentkus_pvalue(k / n, n, 0.05) == approx(hb, abs=1e-8)


@given(counts(), rates, rates)
def test_scipy_binomtest_agrees(count, level, delta):
    k, n = count
    assert binomial_pvalue(k, n, level) == approx(
        stats.binomtest(k, n, level, alternative="less").pvalue, rel=1e-8, abs=1e-14
    )
    interval = stats.binomtest(k, n, alternative="less").proportion_ci(1 - delta, method="exact")
    assert binomial_upper(k, n, delta) == approx(interval.high, abs=1e-7)
    interval = stats.binomtest(k, n, alternative="greater").proportion_ci(1 - delta, method="exact")
    assert binomial_lower(k, n, delta) == approx(interval.low, abs=1e-7)


def test_mapie_hoeffding_bentkus_agrees():
    # MAPIE takes ceil(n * mean): float noise may make it k + 1 (conservative); these pairs are free of it.
    pvalues = pytest.importorskip(
        "mapie.risk_control.methods", reason="mapie is not installed"
    ).compute_hoeffding_bentkus_p_value
    for k, n in [(1, 100), (3, 150), (5, 300), (20, 400)]:
        theirs = np.asarray(pvalues(np.array([k / n]), n, 0.05)).ravel()[0]
        assert hoeffding_bentkus_pvalue(k / n, n, 0.05) == approx(theirs, rel=1e-9)


# ---- properties


@given(counts(), rates)
def test_upper_bound_is_where_the_test_turns(count, delta):
    k, n = count
    upper = float(binomial_upper(k, n, delta))
    if k < n:
        assert binomial_pvalue(k, n, min(upper + 1e-6, 1 - 1e-9)) <= delta + 1e-9
        if upper > 1e-5:
            assert binomial_pvalue(k, n, max(upper - 1e-6, 1e-9)) >= delta - 1e-9
    else:
        assert upper == 1.0


@given(counts(), rates)
def test_upper_bound_grows_with_errors(count, delta):
    k, n = count
    assert binomial_upper(k, n, delta) <= binomial_upper(k + 1, n + 1, delta) + 1e-12


@given(counts(), rates)
def test_exact_is_never_weaker_than_hoeffding_bentkus(count, level):
    k, n = count
    assert binomial_pvalue(k, n, level) <= hoeffding_bentkus_pvalue(k / n, n, level) + 1e-12


def test_no_trials_are_no_evidence():
    assert binomial_pvalue(0, 0, 0.05) == 1.0
    assert binomial_upper(0, 0, 0.05) == 1.0
    assert binomial_lower(0, 0, 0.05) == 0.0
    assert hoeffding_bentkus_pvalue(0.0, 0, 0.05) == 1.0


def test_arrays_broadcast():
    assert binomial_upper(np.array([0, 1]), 100, 0.05) == approx([0.029513, 0.046560], abs=1e-6)


@pytest.mark.parametrize(
    "k, n, level", [(-1, 5, 0.1), (6, 5, 0.1), (0.5, 5, 0.1), (1, 5, 0.0), (1, 5, 1.0), (1, np.nan, 0.1), ("a", 5, 0.1)]
)
def test_bad_counts_and_levels_are_named(k, n, level):
    with pytest.raises(DataError, match="errors|trials|level"):
        binomial_pvalue(k, n, level)


# ---- simulation


def test_upper_bound_covers_and_is_not_vacuous():
    draws, p, n, delta = 20_000, 0.03, 300, 0.1
    k = np.random.default_rng(5).binomial(n, p, draws)
    bounds = binomial_upper(k, n, delta)
    miss = float((bounds < p).mean())
    assert miss <= delta + 3 * np.sqrt(delta * (1 - delta) / draws)
    assert miss >= 0.03  # power: a bound that never misses would be useless
    assert bounds.mean() < 2 * p
