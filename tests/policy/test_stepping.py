"""Stepping stones: the best sequence through a path, maps that labels can refute, and the promise at the boundary."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from scipy import special, stats

from stage1.policy.counts import certifies, count_exits
from stage1.policy.ordering import Goal, calibrated_path
from stage1.policy.score_maps import believed_maps
from stage1.policy.stepping import simulated_exits, simulated_passes, stepping_stones
from stage1.policy.target import Request
from stage1.policy.threshold_choice import _along, choose

DELTA = 0.05


def value(passed, coverage, places) -> float:
    """Mean coverage of one sequence, by a plain loop: the oracle."""
    total = 0.0
    for sample in passed:
        reached = 0.0
        for place in places:
            if not sample[place]:
                break
            reached = coverage[place]
        total += reached
    return total / len(passed)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 7), st.floats(0.3, 0.9))
def test_the_value_is_that_of_a_plain_loop_and_no_worse_than_the_whole_path(seed, steps, share):
    rng = np.random.default_rng(seed)
    passed, coverage = rng.random((20, steps)) < share, np.sort(rng.random(steps))
    places, mean, reached = stepping_stones(passed, coverage, np.full(20, 1 / 20))
    assert mean == approx(value(passed, coverage, places))
    assert reached.mean() == approx(mean)
    assert places[-1] == steps - 1
    assert (np.diff(places) > 0).all()
    # Backwards is not the best of all sequences, as what follows is chosen for all samples that pass; near it.
    every = [rest for size in range(steps) for rest in combinations(range(steps - 1), size)]
    best = max(value(passed, coverage, (*rest, steps - 1)) for rest in every)
    assert mean >= value(passed, coverage, [steps - 1]) - 1e-12
    assert mean >= 0.75 * best


def test_an_early_error_that_is_forgiven_later_is_walked_around():
    # 59 to 92 exits forgive no error, 93 one: between them a walk only loses.
    passed = np.array([[True, True, True, True], [True, False, True, True], [True, False, True, False]])
    places, mean, _ = stepping_stones(passed, np.array([0.1, 0.2, 0.3, 0.4]), np.full(3, 1 / 3))
    assert places.tolist() == [0, 2, 3]
    assert mean == approx((0.4 + 0.4 + 0.3) / 3)


def test_simulated_samples_have_the_counts_and_tests_of_real_ones():
    rng = np.random.default_rng(0)
    lo, hi = np.array([-1.0, 0.0, 0.8]), np.array([3.0, 2.2, 1.1])
    under = [(stats.norm.cdf(lo - shift), stats.norm.cdf(hi - shift)) for shift in (2.5, 0.0)]
    draws = 4000
    exits = simulated_exits(under[0], under[1], 0.3, 500, draws, rng)
    for counts, mass, members in (
        (exits.miss, under[0][0], 150),
        (exits.right_positive, 1 - under[0][1], 150),
        (exits.false_exit, 1 - under[1][1], 350),
        (exits.right_negative, under[1][0], 350),
    ):
        assert np.abs(counts.mean(axis=0) - members * mass).max() <= 4 * np.sqrt(members / draws) + 0.05
    targets = {"fnr": 0.05, "fpr": 0.05, "miss_rate": 0.1, "error": 0.04}
    passed = simulated_passes(exits, targets, DELTA)
    real = []
    for _ in range(400):
        labels = rng.random(500) < 0.3
        score = rng.normal(size=500) + 2.5 * labels
        real.append(certifies(count_exits(score[~labels], score[labels], lo, hi), targets, DELTA, None))
    share = np.mean(real, axis=0)
    assert np.abs(passed.mean(axis=0) - share).max() <= 4 * np.sqrt(0.25 / 400)


def test_labels_refute_a_score_that_is_no_log_odds():
    rng = np.random.default_rng(1)
    score = 2.0 * rng.normal(size=120)
    labels = (rng.random(120) < special.expit(score)).astype(np.int64)
    for moved, kept in ((score, True), (score + 4, False), (-score, False)):
        found, trust = believed_maps(moved, labels, np.sort(moved))
        assert ("own" in found) is kept
        assert trust.sum() == approx(1)
        assert {"Platt", "ranks", "mean"} <= set(found)


def sample(rng, n, separation, share, log_odds=True):
    labels = (rng.random(n) < share).astype(np.int64)
    score = rng.normal(size=n) + separation * labels
    if log_odds:
        score = separation * score - separation**2 / 2 + np.log(share / (1 - share))
    return score, labels


def coverage_of(lo, hi, separation, share, log_odds=True):
    """(coverage, larger of fnr and fpr) in this population, exactly."""
    lo, hi = (-np.inf if lo is None else lo), (np.inf if hi is None else hi)
    if log_odds:
        back = separation**2 / 2 - np.log(share / (1 - share))
        lo, hi = (lo + back) / separation, (hi + back) / separation
    m, c = stats.norm.cdf(lo - separation), stats.norm.sf(hi - separation)
    f, t = stats.norm.sf(hi), stats.norm.cdf(lo)
    return share * (m + c) + (1 - share) * (f + t), max(m / (m + c) if m else 0.0, f / (f + t) if f else 0.0)


# separation, share of positives, labels in all, coverage of 0.2.0, which asks every pair of three maps
SMALL = [(3.0, 0.5, 600, 0.60), (2.2, 0.4, 1500, 0.30), (2.5, 0.3, 600, 0.11)]


def certified(separation, share, total, draws, seed, log_odds=True):
    """(coverage of each draw, violations) with a tenth of the labels for selection."""
    request, found, false = Request({"fnr": 0.05, "fpr": 0.05}), [], 0
    for draw in range(draws):
        rng = np.random.default_rng([seed, draw])
        select = sample(rng, total // 10, separation, share, log_odds)
        calib = sample(rng, total - total // 10, separation, share, log_odds)
        if min(np.bincount(select[1], minlength=2)) < 10:
            found.append(0.0)  # refused: too few of a class to order anything
            continue
        pair = choose(*calib, request, *select).thresholds
        coverage, risk = coverage_of(pair.lo, pair.hi, separation, share, log_odds)
        found.append(coverage)
        false += risk > 0.05
    return np.array(found), false / draws


def test_small_samples_certify_no_less_than_before():
    *population, before = SMALL[0]
    coverage, violation = certified(*population, draws=30, seed=4)
    assert coverage.mean() >= before - 2 * coverage.std() / np.sqrt(30)
    assert violation <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 30)


@pytest.mark.slow
@pytest.mark.parametrize("case", SMALL)
def test_small_samples_certify_more_than_before_in_300_draws(case):
    *population, before = case
    coverage, violation = certified(*population, draws=300, seed=5)
    print(f"{population}: coverage {coverage.mean():.3f} (se {coverage.std() / np.sqrt(300):.3f}), was {before}")
    assert coverage.mean() >= before + 0.04
    assert violation <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 300)


def boundary(draws, seed, counted):
    """Share of draws that certify where every answer is wrong with probability .0501, however far out: all false.

    Control: some pair of the path passes by itself on the calibration labels.
    """
    rng, certified, control = np.random.default_rng(seed), 0, 0
    request = Request({"error": 0.05})

    def flipped(n):
        labels = (rng.random(n) < 0.5).astype(np.int64)
        score = rng.exponential(2.0, size=n) * np.where(labels == 1, 1.0, -1.0)
        return np.where(rng.random(n) < 0.0501, -score, score), labels

    for _ in range(draws):
        select, (score, labels) = flipped(80), flipped(520)
        path = calibrated_path(*select, Goal(request.targets, 520, DELTA, counted=counted))
        certified += _along(path, score, labels, request, DELTA).path is not None
        exits = count_exits(score[labels == 0], score[labels == 1], path.lo, path.hi)
        control += bool(certifies(exits, request.targets, DELTA, None).any())
    return certified / draws, control / draws


@pytest.mark.parametrize("counted", [False, True])
@pytest.mark.parametrize("draws", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_stones_and_counted_starts_keep_their_promise_where_every_pair_breaks_it(draws, counted):
    certified, control = boundary(draws, 6, counted)
    print(f"{draws} draws: certified, all of it false: {certified:.4f}; control {control:.4f}")
    assert certified <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / draws)
    assert control > DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / draws)
