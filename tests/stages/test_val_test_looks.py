"""Looks at val_test: the levels add up, no model worse than its limit passes by trying, and a good one still does."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.config import AcceptanceGate
from stage1.evaluation.rates import clopper_pearson
from stage1.stages.acceptance import judge
from stage1.stages.val_test_looks import Measured, at_look, looks_line, share_of_alpha

LEVEL, N = 0.95, 400


def test_all_looks_together_spend_twice_the_first():
    shares = [share_of_alpha(look) for look in range(1, 200_001)]
    assert sum(shares) == pytest.approx(2.0, abs=1e-5)
    assert shares == sorted(shares, reverse=True)


def test_an_exact_interval_stays_exact_and_others_move_out():
    errors = Measured(0.0, *clopper_pearson(0, 100), counts=(0, 100), on_test=True)
    third = at_look(errors, 3, LEVEL)
    assert third.high >= 1 - (0.025 * share_of_alpha(3)) ** (1 / 100) - 1e-12
    assert at_look(errors, 1, LEVEL) == errors
    mean = Measured(0.8, 0.7, 0.9, on_test=True)
    from scipy import stats

    far = at_look(mean, 2, LEVEL)
    ratio = stats.norm.isf(0.025 * 6 / np.pi**2) / stats.norm.isf(0.025)
    assert (far.low, far.high) == (pytest.approx(0.8 - 0.1 * ratio), pytest.approx(0.8 + 0.1 * ratio))
    assert at_look(mean, 2, LEVEL, units=8).low < far.low
    # What was not measured on val_test does not move, nor what is undefined.
    promised = Measured(0.01, None, 0.05)
    assert at_look(promised, 9, LEVEL) == promised
    assert at_look(Measured(None, None, None, on_test=True), 9, LEVEL).high is None


def test_the_line_says_what_is_left():
    assert looks_line(1, LEVEL) is None
    assert "look 2" in looks_line(2, LEVEL)
    assert "98.48 % each" in looks_line(2, LEVEL)
    assert "at most 0.05" in looks_line(2, LEVEL)


def passes(rng, models, rate, counted):
    """Whether one of `models` models passes `error <= .1`; they share half of their luck on the same images."""
    from scipy import stats

    gate = AcceptanceGate(metric="error", at_most=0.1, by="bound")
    common = rng.normal(size=N)
    for look in range(1, models + 1):
        own = np.sqrt(0.5) * common + np.sqrt(0.5) * rng.normal(size=N)
        errors = int((own < stats.norm.ppf(rate)).sum())
        found = Measured(errors / N, *clopper_pearson(errors, N, LEVEL), counts=(errors, N), on_test=True)
        if judge(gate, at_look(found, look if counted else 1, LEVEL))["passed"]:
            return True
    return False


@pytest.mark.parametrize("draws", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_the_best_of_many_models_passes_no_more_often_than_one_may(draws):
    rng = np.random.default_rng(4)
    for models in (5, 20):
        passed = np.mean([passes(rng, models, 0.1001, counted=True) for _ in range(draws)])
        assert passed <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    # The control: uncounted, somebody who tries twenty gets one through.
    assert np.mean([passes(rng, 20, 0.1001, counted=False) for _ in range(draws)]) > 0.12
    # Power: a model that is good enough passes at its first look as ever, and a few looks later.
    assert np.mean([passes(rng, 1, 0.05, counted=True) for _ in range(draws)]) > 0.9
    good = Measured(20 / N, *clopper_pearson(20, N, LEVEL), counts=(20, N), on_test=True)
    assert judge(AcceptanceGate(metric="error", at_most=0.1, by="bound"), at_look(good, 5, LEVEL))["passed"]
