"""How many units it takes: worked counts, and the probability of success against a simulation of the tests
themselves.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stage1.errors import ConfigError
from stage1.risk.sample_size import delta_of_each, plan, plan_success, shared_delta, success_probability

TWO = {"fnr": 0.05, "false_exit_rate": 0.05}


def test_worked_counts():
    rows = {(row.risk, row.errors): row for row in plan({"miss_rate": 0.02}, prior=0.8)}
    assert (rows["miss_rate", 0].counted, rows["miss_rate", 1].counted, rows["miss_rate", 2].counted) == (149, 236, 313)
    assert rows["miss_rate", 0].in_total == np.ceil(149 / 0.8)
    (fnr,) = plan({"fnr": 0.02}, exit_rates=(0.7, 0.5), errors=(0,))
    assert (fnr.in_class, fnr.in_total, fnr.side) == (298, 596, "positive")
    # two classes with a rule each share delta: 182 instead of 149
    assert [row.counted for row in plan({"fnr": 0.02, "false_exit_rate": 0.02}, errors=(0,))] == [182, 182]


def test_what_each_test_may_spend_is_what_the_engine_spends():
    from stage1.policy.target import Request
    from stage1.policy.threshold_choice import rule

    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 400)
    score = rng.normal(0, 1, 800) + 4 * labels - 2
    for names in (
        ("fnr", "false_exit_rate"),
        ("fpr", "miss_rate"),
        ("miss_rate", "false_exit_rate"),
        ("fnr", "fpr"),
        ("fnr", "miss_rate"),
        ("fnr", "fpr", "miss_rate"),
        ("miss_rate",),
        ("fnr",),
    ):
        request = Request(dict.fromkeys(names, 0.1), 0.95, allow_one_sided=True)
        choice = rule(request, 800, score, labels)(score, labels)
        assert choice.delta == pytest.approx(delta_of_each(names, 0.95)), names
    assert shared_delta(0.95, 2) == pytest.approx(1 - np.sqrt(0.95))


def simulated(n, risks, expected, prior, exit_rates, draws, seed=0, confidence=0.95):
    """Draw classes, exits and errors, and run the exact tests one by one."""
    rng = np.random.default_rng(seed)
    delta = delta_of_each(risks, confidence)
    positives = rng.binomial(n, prior, draws)
    passed = np.ones(draws, dtype=bool)
    for name, target in risks.items():
        side = positives if name in ("fnr", "miss_rate") else n - positives
        rate = exit_rates[1 if name == "fnr" else 0] if name in ("fnr", "fpr") else 1.0
        counted = rng.binomial(side, rate)
        errors = rng.binomial(counted, expected[name])
        passed &= stats.binom.cdf(errors, counted, target) <= delta
    return passed.mean()


@pytest.mark.parametrize(
    "risks, prior, n",
    [
        (TWO, 0.5, 700),
        (TWO, 0.2, 1500),
        ({"miss_rate": 0.05, "false_exit_rate": 0.1}, 0.7, 500),
        ({"fnr": 0.05, "fpr": 0.05}, 0.5, 900),
        ({"miss_rate": 0.02}, 0.5, 1000),
    ],
)
def test_success_is_what_brute_force_finds(risks, prior, n):
    expected = {name: 0.4 * target for name, target in risks.items()}
    options = {"prior": prior, "exit_rates": (0.8, 0.6)}
    exact = success_probability(n, risks, expected, **options)
    draws = 40_000
    found = simulated(n, risks, expected, draws=draws, **options)
    assert 0.05 < exact < 0.999
    assert found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / draws))
    # the control: without the chance in the class counts and exits it is another number
    fixed = 1.0
    for name, target in risks.items():
        share = prior if name in ("fnr", "miss_rate") else 1 - prior
        counted = round(n * share * ({"fnr": 0.6, "fpr": 0.8}.get(name, 1.0)))
        limit = stats.binom.ppf(delta_of_each(risks, 0.95), counted, target)
        limit -= stats.binom.cdf(limit, counted, target) > delta_of_each(risks, 0.95)
        fixed *= stats.binom.cdf(limit, counted, expected[name])
    assert abs(fixed - exact) > 0.001


def test_two_risks_of_one_class_are_bounded_from_below():
    risks = {"fnr": 0.05, "miss_rate": 0.05, "fpr": 0.08}
    expected = {"fnr": 0.02, "miss_rate": 0.02, "fpr": 0.03}
    options = {"prior": 0.5, "exit_rates": (0.8, 0.8)}
    found = simulated(900, risks, expected, draws=20_000, **options)  # independent errors: one case among many
    assert success_probability(900, risks, expected, **options) <= found + 4 * np.sqrt(0.25 / 20_000)


def test_counted_is_the_smallest_from_which_on_the_test_passes():
    (need,) = plan_success({"miss_rate": 0.05}, {"miss_rate": 0.02}, success=0.9).needs
    sizes = np.arange(1, 6 * need.counted)
    table = stats.binom.cdf(np.arange(400)[:, None], sizes[None, :], 0.05) <= 0.05
    allowed = table.sum(axis=0) - 1
    chance = np.where(allowed >= 0, stats.binom.cdf(allowed, sizes, 0.02), 0.0)
    failing = sizes[chance < 0.9]
    assert need.counted == failing.max() + 1
    # the saw: some smaller numbers pass too, only not all that follow
    assert (chance[: need.counted - 1] >= 0.9).any()


def test_the_plan_is_enough_and_little_less_is_not():
    expected = {"fnr": 0.02, "false_exit_rate": 0.03}
    for success in (0.5, 0.9, 0.99):
        found = plan_success(TWO, expected, success=success, prior=0.3)
        assert found.success == pytest.approx(success_probability(found.in_total, TWO, expected, prior=0.3))
        assert success <= found.success < success + 0.02
        assert success_probability(int(0.95 * found.in_total), TWO, expected, prior=0.3) < success
        assert found.in_total >= max(need.in_total for need in found.needs)
        assert sum(found.per_class) == found.in_total
        assert all(need.counted <= need.in_class <= need.in_total for need in found.needs)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 1200), st.floats(0.02, 0.2), st.floats(0.05, 0.9), st.floats(0.1, 0.9))
def test_less_risk_never_lowers_the_chance(n, target, share, prior):
    risks = {"fnr": target, "false_exit_rate": target}
    chances = [
        success_probability(n, risks, dict.fromkeys(risks, share * scale * target), prior=prior)
        for scale in (1.0, 0.6, 0.2)
    ]
    assert all(-1e-9 <= chance <= 1 + 1e-9 for chance in chances)
    assert chances[0] <= chances[1] + 1e-9 <= chances[2] + 2e-9


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="'error': has no closed form.*--scores"):
        plan({"error": 0.05})
    with pytest.raises(ConfigError, match="prior"):
        plan(TWO, prior=1.0)
    with pytest.raises(ConfigError, match="exit rate of the positive"):
        plan(TWO, exit_rates=(0.5, 0.0))
    with pytest.raises(ConfigError, match="expected fnr: 0.05 is not below its target"):
        plan_success(TWO, {"fnr": 0.05, "false_exit_rate": 0.01})
    with pytest.raises(ConfigError, match="expected false_exit_rate: .*got None"):
        success_probability(10, TWO, {"fnr": 0.01})
    with pytest.raises(ConfigError, match="success"):
        plan_success(TWO, {"fnr": 0.01, "false_exit_rate": 0.01}, success=1.0)
