"""Exit rates: counts by hand, exact intervals against the table and scipy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.errors import ConfigError, DataError
from stage1.evaluation import clopper_pearson, exit_rates

relaxed = settings(deadline=None, max_examples=80)


@pytest.mark.parametrize(
    "errors, trials, delta, upper",
    [
        (0, 100, 0.05, 0.029513),
        (1, 100, 0.05, 0.046560),
        (3, 150, 0.1, 0.043994),
        (5, 300, 0.05, 0.034722),
        (10, 1000, 0.05, 0.016903),
        (0, 59, 0.05, 0.049508),
    ],
)
def test_upper_end_is_the_one_sided_bound_at_half_the_level(errors, trials, delta, upper):
    assert clopper_pearson(errors, trials, 1 - 2 * delta)[1] == pytest.approx(upper, abs=1e-6)


@pytest.mark.parametrize("k, n, lower", [(70, 100, 0.615779), (850, 1000, 0.830164), (100, 100, 0.970487)])
def test_lower_end_equals_table(k, n, lower):
    assert clopper_pearson(k, n, 0.9)[0] == pytest.approx(lower, abs=1e-6)


@relaxed
@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_interval_equals_scipy(counts, level):
    from scipy.stats import binomtest

    oracle = binomtest(*counts).proportion_ci(level, method="exact")
    assert clopper_pearson(*counts, level) == pytest.approx((oracle.low, oracle.high), abs=1e-9)


def test_nothing_seen_says_nothing():
    assert clopper_pearson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("level", [0.0, 1.0, 1.5, float("nan")])
def test_impossible_level_is_refused(level):
    with pytest.raises(ConfigError, match="level"):
        clopper_pearson(1, 2, level)


#           y=1: 4 rows, 3 exit, 1 of them as 0;  y=0: 4 rows, 2 exit, both as 1
TRUTH = np.array([1, 1, 1, 1, 0, 0, 0, 0])
EXIT = np.array([1, 1, 1, 0, 1, 1, 0, 0], dtype=bool)
LABEL = np.array([0, 1, 1, 0, 1, 1, 1, 0])


def test_counts_by_hand():
    rates = exit_rates(EXIT, LABEL, TRUTH)
    counts = {name: (rates[name]["errors"], rates[name]["n"]) for name in rates if name != "coverage"}
    assert counts == {"fnr": (1, 3), "fpr": (2, 2), "miss_rate": (1, 4), "false_exit_rate": (2, 4), "error": (3, 5)}
    assert rates["fnr"]["observed"] == pytest.approx(1 / 3)
    assert (rates["fnr"]["low"], rates["fnr"]["high"]) == clopper_pearson(1, 3)
    overall, per_class = rates["coverage"]["overall"], rates["coverage"]["per_class"]
    assert (overall["value"], overall["exits"], overall["n"]) == (5 / 8, 5, 8)
    assert {name: (share["exits"], share["n"]) for name, share in per_class.items()} == {"0": (2, 4), "1": (3, 4)}


def test_no_exit_leaves_ratios_undefined_and_rates_zero():
    rates = exit_rates(np.zeros(8, dtype=bool), LABEL, TRUTH)
    assert [rates[name]["observed"] for name in ("fnr", "fpr", "error")] == [None] * 3
    assert [rates[name]["observed"] for name in ("miss_rate", "false_exit_rate")] == [0.0] * 2
    assert (rates["fnr"]["low"], rates["fnr"]["high"]) == (0.0, 1.0)


def test_one_class_only():
    rates = exit_rates([True, False], [1, 0], [1, 1])
    assert rates["false_exit_rate"]["observed"] is None
    assert rates["coverage"]["per_class"]["0"] == {"value": None, "exits": 0, "n": 0, "low": 0.0, "high": 1.0}


def test_deferred_rows_may_carry_any_label():
    assert exit_rates(EXIT, np.where(EXIT, LABEL, -1), TRUTH) == exit_rates(EXIT, LABEL, TRUTH)


def test_more_classes_have_one_fnr_each():
    rates = exit_rates([True, True, True, False], [0, 2, 2, 1], [0, 1, 2, 1], classes=["a", "b", "overall"])
    kinds = ("fnr", "wrong", "miss_rate")
    assert list(rates) == [f"{kind}.{name}" for kind in kinds for name in ("a", "b", "overall")] + ["error", "coverage"]
    assert (rates["wrong.overall"]["errors"], rates["wrong.overall"]["n"]) == (1, 2)
    assert (rates["miss_rate.b"]["errors"], rates["miss_rate.b"]["n"]) == (1, 2)
    assert (rates["fnr.b"]["errors"], rates["fnr.b"]["n"]) == (1, 1)
    assert rates["error"]["observed"] == pytest.approx(1 / 3)
    assert rates["coverage"]["overall"]["exits"] == 3
    assert rates["coverage"]["per_class"]["overall"]["exits"] == 1


@relaxed
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_identities(rows):
    leaves, answer, truth = (np.array(column) for column in zip(*rows, strict=True))
    rates = exit_rates(leaves, answer, truth)
    assert rates["error"]["errors"] == rates["fnr"]["errors"] + rates["fpr"]["errors"]
    assert rates["fnr"]["errors"] == rates["miss_rate"]["errors"]
    assert rates["fpr"]["errors"] == rates["false_exit_rate"]["errors"]
    assert rates["error"]["n"] == rates["coverage"]["overall"]["exits"]
    for share in (rates["miss_rate"], rates["fnr"], rates["error"]):
        if share["observed"] is not None:
            assert share["low"] <= share["observed"] <= share["high"]


def test_class_rates_do_not_move_with_the_class_balance():
    twice = np.concatenate([np.flatnonzero(TRUTH == 1), np.arange(8)])
    before, after = exit_rates(EXIT, LABEL, TRUTH), exit_rates(EXIT[twice], LABEL[twice], TRUTH[twice])
    for name in ("fnr", "fpr", "miss_rate", "false_exit_rate"):
        assert after[name]["observed"] == pytest.approx(before[name]["observed"])
    assert after["error"]["observed"] != pytest.approx(before["error"]["observed"])


@pytest.mark.parametrize(
    "exit, label, truth, words",
    [
        ([1, 0], [0, 1], [0, 1], "boolean"),
        ([True, False], [0], [0, 1], "decision label"),
        ([True, False], [0, 1], [0.0, 1.0], "labels"),
        ([True, False], [0, 1], [0, -1], "labels"),
        ([True, True], [-1, 1], [0, 1], "decision label"),
        (np.empty(0, dtype=bool), np.empty(0, dtype=int), np.empty(0, dtype=int), "at least one row"),
    ],
)
def test_bad_arrays_are_named(exit, label, truth, words):
    with pytest.raises(DataError, match=words):
        exit_rates(exit, label, truth)
