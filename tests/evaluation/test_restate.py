"""Coverage and error at a stated class balance."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.errors import DataError
from stage1.evaluation import exit_rates
from stage1.evaluation.restate import ClassRates, restate, restate_between

RATES = ClassRates.binary(m=0.01, c=0.6, f=0.02, t=0.7)


@pytest.mark.parametrize("prior, error", [(0.1, 0.026798), (0.5, 0.022556), (0.9, 0.017713)])
def test_worked_values(prior, error):
    found = restate(prior, RATES)
    assert found.error == pytest.approx(error, abs=5e-7)
    assert found.coverage == pytest.approx(prior * 0.61 + (1 - prior) * 0.72)


def test_at_its_own_balance_it_is_what_was_observed():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 500)
    leaves, answer = rng.random(500) < 0.7, np.where(rng.random(500) < 0.8, labels, rng.integers(0, 3, 500))
    found = restate(np.bincount(labels) / 500, ClassRates.measured(leaves, answer, labels, 3))
    observed = exit_rates(leaves, answer, labels)
    assert found.error == pytest.approx(observed["error"]["observed"])
    assert found.coverage == pytest.approx(observed["coverage"]["overall"]["value"])


def test_at_another_balance_it_is_what_a_sample_of_that_balance_shows():
    """Rates measured at 30 % positives, restated, against 200,000 fresh rows at 10, 50 and 90 %; the error measured at
    30 % is the control."""
    rng = np.random.default_rng(1)

    def draw(n, prior):
        labels = (rng.random(n) < prior).astype(int)
        margin = 2.0 * (labels - 0.5) + rng.normal(size=n) * np.where(labels == 1, 1.4, 0.7)
        return np.abs(margin) > 0.5, (margin > 0).astype(int), labels

    measured = draw(200_000, 0.3)
    rates = ClassRates.measured(*measured)
    unmoved = restate(0.3, rates).error
    for prior in (0.1, 0.5, 0.9):
        fresh = exit_rates(*draw(200_000, prior))
        error, n = fresh["error"]["observed"], fresh["error"]["n"]
        tolerance = 4 * np.sqrt(error * (1 - error) * 2 / n)
        assert restate(prior, rates).error == pytest.approx(error, abs=tolerance)
        assert restate(prior, rates).coverage == pytest.approx(fresh["coverage"]["overall"]["value"], abs=0.006)
        assert abs(unmoved - error) > tolerance


def test_a_range_of_balances_is_bounded_by_its_ends():
    low, high = restate_between(0.1, 0.9, RATES)
    inside = [restate(prior, RATES) for prior in np.linspace(0.1, 0.9, 41)]
    assert low.error == pytest.approx(min(one.error for one in inside)) == pytest.approx(0.017713, abs=1e-6)
    assert high.error == pytest.approx(max(one.error for one in inside))
    assert (low.coverage, high.coverage) == pytest.approx((0.621, 0.709))


def test_nothing_exits():
    never = ClassRates(exits=(0.0, 0.5), errors=(0.0, 0.1))
    assert restate(0.0, never) == (0.0, None)
    assert restate_between(0.0, 0.5, never)[0].error == pytest.approx(0.2)


def test_bad_input_is_named():
    with pytest.raises(DataError, match="errors <= exits"):
        ClassRates(exits=(0.1, 0.5), errors=(0.2, 0.1))
    with pytest.raises(DataError, match="prior"):
        restate(1.2, RATES)
    with pytest.raises(DataError, match="3 shares"):
        restate(0.5, ClassRates(exits=(1, 1, 1), errors=(0, 0, 0)))
    with pytest.raises(DataError, match="low <= high"):
        restate_between(0.9, 0.1, RATES)
    with pytest.raises(DataError, match="no row of class 1"):
        ClassRates.measured([True], [0], [0])
