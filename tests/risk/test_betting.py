from __future__ import annotations

import hypothesis.extra.numpy as hnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

from stage1.errors import DataError
from stage1.risk import binomial_pvalue
from stage1.risk.bounds import betting_pvalue, betting_upper, eprocess

DELTA = 0.05
unit_values = hnp.arrays(np.float64, st.integers(0, 60), elements=st.floats(0, 1))
levels = st.floats(0.005, 0.9)


def standard_error(rate: float, draws: int) -> float:
    return float(np.sqrt(rate * (1 - rate) / draws))


def wealth_by_the_book(values, level):
    """ALGORITHMS 2.6 (b), one value at a time."""
    total, spread, wealth, best = level / 2, level / 4, 1.0, 1.0
    for t, value in enumerate(values, start=1):
        mean, variance = total / t, spread / t
        stake = min(max((level - mean) / (variance + (level - mean) ** 2), 0.0), 0.9 / (1 - level))
        wealth *= 1 - stake * (value - level)
        best = max(best, wealth)
        total, spread = total + value, spread + (value - mean) ** 2
    return best


# ---- oracle


@given(unit_values, levels)
def test_pvalue_equals_the_plain_loop(x, level):
    assert betting_pvalue(x, level) == approx(1 / wealth_by_the_book(x, level), rel=1e-9, abs=1e-300)


def test_first_steps_by_hand():
    # level .1: mean .05, variance .025, stake .05 / (.025 + .0025) = 1.81818 > .9 / .9 = 1; factor 1 + .1 twice, then 1
    # - .9
    assert betting_pvalue([0.0], 0.1) == approx(1 / 1.1)
    assert betting_pvalue([0.0, 0.0], 0.1) == approx(1 / 1.21)
    assert betting_pvalue([0.0, 0.0, 1.0], 0.1) == approx(1 / 1.21)  # the largest wealth counts
    assert betting_pvalue([1.0], 0.1) == 1.0


@pytest.mark.parametrize(
    "steps, losses, value",
    [(50, 0, 0.218827), (50, 3, 2.256779), (100, 6, 6.656549), (100, 8, 69.133237), (200, 10, 10.200582)],
)
def test_eprocess_equals_algorithms_10(steps, losses, value):
    path = eprocess([1] * losses + [0] * (steps - losses), 0.02)
    assert path.shape == (steps,)
    assert path[-1] == approx(value, abs=1e-6)


def test_one_bet_equals_algorithms_10():
    # 1 + 2 (x - .1) is .8 or 2.8: the likelihood ratio of q = .28 against .1
    path = eprocess([0, 0, 1, 0, 1, 1, 0, 0], 0.1, betas=(2.8,))
    assert path == approx([0.8, 0.64, 1.792, 1.4336, 4.01408, 11.239424, 8.991539, 7.193231], abs=1e-6)


# ---- properties


@given(hnp.arrays(np.float64, st.tuples(st.integers(0, 30), st.integers(0, 5)), elements=st.floats(0, 1)), levels)
def test_candidates_are_tested_one_by_one(x, level):
    p = betting_pvalue(x, level)
    assert p.shape == (x.shape[1],)
    assert p == approx([float(betting_pvalue(column, level)) for column in x.T], rel=1e-12)


def test_many_candidates_pass_in_blocks(monkeypatch):
    x = np.random.default_rng(0).random((40, 50))
    whole = betting_pvalue(x, 0.6)
    monkeypatch.setattr("stage1.risk.bounds._CELLS", 100)
    assert betting_pvalue(x, 0.6) == approx(whole, rel=1e-12)
    assert betting_upper(x[:, 0], 0.1) > 0.5


@given(unit_values, levels)
def test_pvalue_lies_in_0_1_and_sinks_with_more_evidence(x, level):
    p = float(betting_pvalue(x, level))
    assert 0 < p <= 1
    assert betting_pvalue(np.append(x, 0.0), level) <= p  # a maximum: more steps never lose what was won


def test_stake_looks_only_back():
    # The same past, another last value: at level .5 the payoff of the last step is linear in it.
    past, level = [0.1, 0.4, 0.2, 0.3], 0.5
    wealth = [1 / float(betting_pvalue([*past, last], level)) for last in (0.0, 0.2, 0.4)]
    assert wealth[0] - wealth[1] == approx(wealth[1] - wealth[2])
    assert wealth[0] > wealth[2]


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 200), elements=st.sampled_from([0.0, 0.0, 0.0, 0.1, 1.0])), levels, levels)
def test_upper_and_pvalue_agree_at_the_target(x, target, delta):
    upper = betting_upper(x, delta, target=target)
    assert (upper <= target) == bool(betting_pvalue(x, target) <= delta)
    assert 0 < upper <= 1


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 200), elements=st.floats(0, 0.3)), levels)
def test_every_level_of_the_grid_above_upper_is_rejected(x, delta):
    upper = betting_upper(x, delta)
    grid = np.geomspace(1e-4, 0.9999, 513)
    p = np.array([float(betting_pvalue(x, level)) for level in grid])
    assert (p[grid >= upper] <= delta).all()
    if upper > grid[0] and upper < 1:
        assert p[grid < upper][-1] > delta


def test_the_pvalue_may_rise_with_the_level_so_no_root_is_sought():
    # one of 3,000 samples searched; about 1 in 200 has such a gap
    rates = np.random.default_rng(99 + 10**6).beta(0.04 / 19, 0.96 / 19, 575)
    x = np.random.default_rng(99).binomial(10, rates) / 10
    grid = np.geomspace(1e-4, 0.9999, 513)
    rejected = np.array([float(betting_pvalue(x, level)) <= DELTA for level in grid])
    first = int(np.argmax(rejected))
    assert not rejected[first:].all()  # a root finder may stop at this level
    assert betting_upper(x, DELTA) > grid[first]
    assert betting_upper(x, DELTA, target=grid[first]) == grid[first]  # one test, fixed beforehand, settles those above


def test_upper_says_nothing_without_evidence():
    assert betting_upper([], 0.05) == 1.0
    assert betting_upper([1.0] * 50, 0.05) == 1.0
    assert betting_upper([0.0] * 50, 0.05, idle=[1.0] * 50) == 1.0  # a ratio without a trial
    assert betting_pvalue([], 0.05) == 1.0
    assert betting_pvalue(np.zeros((0, 3)), 0.05).tolist() == [1.0, 1.0, 1.0]


def test_upper_of_a_ratio_is_wider_than_of_its_numerator():
    rng = np.random.default_rng(4)
    x = rng.random(400) < 0.02
    idle = ~x & (rng.random(400) < 0.5)
    assert betting_upper(x, DELTA) < betting_upper(x, DELTA, idle=idle)


def test_fractional_losses_beat_counts_and_counts_beat_betting():
    # why there are two methods: the mean of ten agreeing frames has less spread than one frame
    rng = np.random.default_rng(6)
    means = rng.binomial(10, 0.02, (150, 500)) / 10
    single = rng.random((150, 500)) < 0.02
    exact = (binomial_pvalue(single.sum(axis=0), 150, 0.05) <= DELTA).mean()
    assert (betting_pvalue(means, 0.05) <= DELTA).mean() > exact + 0.4
    assert (betting_pvalue(single, 0.05) <= DELTA).mean() < exact


@pytest.mark.parametrize("x", [[0.5, np.nan], [1.1], [-0.1], [[[0.1]]], ["a"], 0.5])
def test_bad_values_are_named(x):
    with pytest.raises(DataError, match="x: "):
        betting_pvalue(x, 0.1)
    with pytest.raises(DataError, match="x: "):
        betting_upper(x, 0.1)


@pytest.mark.parametrize("level", [0.0, 1.0, -0.1, np.nan])
def test_bad_levels_are_named(level):
    for name, call in [
        ("level", lambda: betting_pvalue([0.1], level)),
        ("delta", lambda: betting_upper([0.1], level)),
        ("target", lambda: betting_upper([0.1], 0.1, target=level)),
        ("alpha", lambda: eprocess([0, 1], level)),
    ]:
        with pytest.raises(DataError, match=name):
            call()


def test_bad_losses_bets_and_idle_are_named():
    for losses in ([0.5], [2], [np.nan], [[0, 1]], ["a"]):
        with pytest.raises(DataError, match="losses"):
            eprocess(losses, 0.1)
    for betas in ((), (1.0,), (0.5, 2), (10.0, 20.0), (np.nan,)):
        with pytest.raises(DataError, match="betas"):
            eprocess([0, 1], 0.1, betas=betas)
    with pytest.raises(DataError, match="idle"):
        betting_upper([0.6], 0.1, idle=[0.6])
    with pytest.raises(DataError, match="idle"):
        betting_upper([0.6, 0.1], 0.1, idle=[0.3])
    assert eprocess([], 0.1).shape == (0,)
    assert (eprocess([0, 1], 0.1) == eprocess([0, 1], 0.1, betas=(1.5, 2, 3, 5))).all()  # 10 * .1 is no rate
    assert np.isfinite(eprocess(np.ones(5000), 0.01)).all()


# ---- simulation


def test_eprocess_averages_at_most_one_and_rarely_alarms_at_the_boundary():
    draws, steps, alpha = 3000, 400, 0.05
    losses = np.random.default_rng(8).random((draws, steps)) < alpha
    paths = np.array([eprocess(row, alpha) for row in losses])
    for t in (10, 50, 100):  # later the mean rests on paths too rare to be drawn
        assert paths[:, t - 1].mean() <= 1 + 3 * paths[:, t - 1].std() / np.sqrt(draws)
    assert (paths.max(axis=1) >= 1 / DELTA).mean() <= DELTA + 3 * standard_error(DELTA, draws)
    risky = np.array([eprocess(row, alpha) for row in np.random.default_rng(9).random((300, steps)) < 3 * alpha])
    assert (risky.max(axis=1) >= 1 / DELTA).mean() > 0.9


@pytest.mark.parametrize("correlation", [0.05, 0.95])
def test_wealth_averages_at_most_one_at_the_boundary(correlation):
    # the last wealth, not its maximum, is what averages to 1; a level one step off the mean breaks it
    rng = np.random.default_rng(10)
    strength = (1 - correlation) / correlation
    x = rng.binomial(10, rng.beta(0.2 * strength, 0.8 * strength, (4000, 25))) / 10
    for level, fair in ((0.2, True), (0.35, False)):
        last = np.array([_last_wealth(row, level) for row in x])
        assert (last.mean() <= 1 + 3 * last.std() / np.sqrt(len(last))) == fair


def _last_wealth(values, level):
    total, spread, wealth = level / 2, level / 4, 1.0
    for t, value in enumerate(values, start=1):
        mean, variance = total / t, spread / t
        wealth *= 1 - min(max((level - mean) / (variance + (level - mean) ** 2), 0.0), 0.9 / (1 - level)) * (
            value - level
        )
        total, spread = total + value, spread + (value - mean) ** 2
    return wealth


def test_upper_covers_at_any_mean():
    rng = np.random.default_rng(12)
    draws = 200
    for mean in (0.02, 0.0731, 0.4):
        missed, bounds = 0, []
        for _ in range(draws):
            x = rng.binomial(10, rng.beta(mean * 4, (1 - mean) * 4, 200)) / 10
            bounds.append(betting_upper(x, DELTA))
            missed += bounds[-1] < mean
        assert missed / draws <= DELTA + 3 * standard_error(DELTA, draws)
        assert np.mean(bounds) < 2 * mean + 0.02  # and it says something
