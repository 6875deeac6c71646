"""The exits that val_select expects: by brute force over all pairs of thresholds."""

from __future__ import annotations

import numpy as np
import pytest
from pytest import approx

from stage1.errors import ConfigError
from stage1.risk import max_errors
from stage1.views import expected_exits, expected_rates


def brute_force(score, belief, rates):
    values = np.unique(score)
    cuts = [-np.inf, *((values[1:] + values[:-1]) / 2), np.inf]
    best = 0.0
    for lo in cuts:
        for hi in cuts:
            if lo > hi:
                continue
            as_0, as_1 = score < lo, score > hi
            miss, false = belief[as_0].sum(), (1 - belief)[as_1].sum()
            right1, right0 = belief[as_1].sum(), (1 - belief)[as_0].sum()
            found = {
                "miss_rate": miss / belief.sum(),
                "false_exit_rate": false / (1 - belief).sum(),
                "fnr": miss / (miss + right1) if miss + right1 else 0.0,
                "fpr": false / (false + right0) if false + right0 else 0.0,
                "error": (miss + false) / max((as_0 | as_1).sum(), 1),
            }
            if all(found[name] <= rate for name, rate in rates.items()):
                best = max(best, (as_0 | as_1).mean())
    return best


@pytest.mark.parametrize(
    "rates",
    [
        {"fnr": 0.05, "false_exit_rate": 0.1},
        {"fpr": 0.1, "miss_rate": 0.05},
        {"miss_rate": 0.1, "false_exit_rate": 0.1},
        {"fnr": 0.08, "fpr": 0.08},
        {"error": 0.1},
        {"error": 0.1, "fnr": 0.03},
        {"fnr": 0.1},
        {"fpr": 0.1},
        {"fnr": 0.1, "miss_rate": 0.08},
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_best_pair_is_found(rates, seed):
    rng = np.random.default_rng(seed)
    labels = np.arange(40) % 2
    score = np.round(rng.normal(size=40) + 2.0 * labels, 1)  # with ties
    belief = np.clip(labels * 0.8 + 0.1 + 0.1 * rng.normal(size=40), 0, 1)
    found = expected_exits(score, belief, rates)
    assert found.coverage == approx(brute_force(score, belief, rates))
    assert found.coverage == approx(((score < found.lo) | (score > found.hi)).mean())


def test_nothing_exits_where_nothing_may():
    assert expected_exits(np.zeros(10), np.full(10, 0.5), {"fnr": 0.01, "false_exit_rate": 0.01}).coverage == 0.0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_ratio_alone_has_its_cut_where_the_certificate_puts_it(seed):
    """Every image exits at any cut; of these, fewest errors on the side without a limit."""
    rng = np.random.default_rng(seed)
    labels = np.arange(400) % 2
    score = rng.normal(size=400) + 2.0 * labels
    ones, zeros = np.sort(score[labels == 1]), np.sort(score[labels == 0])
    found = expected_exits(score, labels.astype(float), {"fnr": 0.1})
    assert found.lo == found.hi
    assert (ones < found.lo).sum() == 20
    found = expected_exits(score, labels.astype(float), {"fpr": 0.1})
    assert found.lo == found.hi
    assert (zeros > found.hi).sum() == 20


def test_risks_that_two_classes_do_not_have_are_refused():
    with pytest.raises(
        ConfigError, match=r"'miss_rate\.none': adaptive views are for two classes, whose risks are fnr"
    ):
        expected_rates({"miss_rate.none": 0.1, "miss_rate.roadwork": 0.1}, 0.95, 500, 0.5)


def test_rates_are_what_a_certificate_lets_pass():
    rates = expected_rates({"fnr": 0.02, "false_exit_rate": 0.05}, 0.95, 2000, 0.5)
    spent = 1 - np.sqrt(0.95)
    assert rates["false_exit_rate"] == approx((max_errors(1000, 0.05, spent) + 0.5) / 1000)
    assert rates["fnr"] == approx((max_errors(700, 0.02, spent) + 0.5) / 700)
    more = expected_rates({"fnr": 0.02, "false_exit_rate": 0.05}, 0.95, 200_000, 0.5)
    assert rates["fnr"] < more["fnr"] < 0.02
    assert expected_rates({"error": 0.05}, 0.95, 10, 0.5)["error"] == 0.05  # never above the target
