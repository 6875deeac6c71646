"""A path that knows how many images of each class val_calib has: its maps, its second sequence, and the promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from stage1.policy.class_counts import common_share, even_evidence, may_be_known, weighed
from stage1.policy.closed_form import Thresholds
from stage1.policy.counts import certifies, count_exits
from stage1.policy.ordering import Goal, calibrated_path
from stage1.policy.target import Request
from stage1.policy.threshold_choice import _along, choose, path_from

LEVEL, DELTA = 0.05, 0.05
BOTH = {"fnr": LEVEL, "fpr": LEVEL}


@pytest.mark.parametrize(
    ("targets", "floor", "known"),
    [
        (["fnr", "fpr"], False, True),
        (["miss_rate", "false_exit_rate"], False, True),
        (["fnr", "fpr"], True, False),
        (["error"], False, False),
        (["fnr", "error"], False, False),
    ],
)
def test_only_risks_of_one_class_each_may_know_the_counts(targets, floor, known):
    assert may_be_known(targets, floor) == known


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.2, 0.8), st.floats(-0.08, 0.08))
def test_scores_are_weighed_to_the_share(seed, share, change):
    rng = np.random.default_rng(seed)
    logit = np.sort(rng.normal(size=300) * 3 + special.logit(share))
    p, weight = special.expit(logit), rng.random(300) + 0.5
    target = float(weight @ p / weight.sum()) + change
    found = weighed(weight, p, target)
    assert found @ p / found.sum() == pytest.approx(target)
    assert (found >= 0.1 * weight).all()


def test_a_map_that_hardly_varies_keeps_positive_weights():
    found = weighed(np.ones(100), np.linspace(0.49, 0.51, 100), 0.8)
    assert (found >= 0.1).all()
    assert found[-1] > found[0]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 200))
def test_cuts_of_even_evidence_are_nested_and_within_their_ends(seed, size):
    rng = np.random.default_rng(seed)
    p = special.expit(rng.normal(size=size) * 3)  # any order
    ends = tuple(np.sort(rng.integers(0, size + 1, 2)).tolist())
    low, high = even_evidence(p, rng.random(size) + 0.1, (ends[1], ends[0]))
    assert (low <= high).all()
    assert (np.diff(low) >= 0).all()
    assert (np.diff(high) <= 0).all()
    assert low.max() <= size
    assert high.min() >= 0


def test_even_evidence_gives_equal_ratios_for_two_normal_classes():
    grid = np.linspace(-4, 7, 4001)
    weight = 0.3 * np.exp(-((grid - 3) ** 2) / 2) + 0.7 * np.exp(-(grid**2) / 2)
    p = special.expit(3 * (grid - 1.5) + special.logit(0.3))
    low, high = even_evidence(p, weight, (len(grid), 0))
    cuts = np.concatenate([[grid[0]], (grid[1:] + grid[:-1]) / 2, [grid[-1]]])
    lo, hi = cuts[low], cuts[high]
    wrong1, right1, wrong0, right0 = special.ndtr(lo - 3), special.ndtr(3 - hi), special.ndtr(-hi), special.ndtr(lo)
    some = (right1 > 0.01) & (lo > -3)
    assert some.sum() > 100
    np.testing.assert_allclose((wrong1 / (wrong1 + right1))[some], (wrong0 / (wrong0 + right0))[some], rtol=0.05)


def sample(rng, n, separation, share):
    """Log odds of two normal classes."""
    labels = (rng.random(n) < share).astype(np.int64)
    raw = rng.normal(size=n) + separation * labels
    return separation * raw - separation**2 / 2 + np.log(share / (1 - share)), labels


def test_what_counts_both_classes_together_has_the_path_of_val_select_alone():
    rng = np.random.default_rng(3)
    select, (score, labels) = sample(rng, 150, 2.5, 0.3), sample(rng, 600, 2.5, 0.3)
    for request in (Request({"error": LEVEL}), Request({"fnr": 0.1, "fpr": 0.1}, coverage=0.1)):
        path = path_from(request, 600, *select, counted=not request.has_floor)
        found = choose(score, labels, request, *select)
        assert found.path is not None
        np.testing.assert_array_equal(found.path.lo, path.lo)
        np.testing.assert_array_equal(found.path.hi, path.hi)


def test_only_the_numbers_of_both_classes_reach_the_path():
    rng = np.random.default_rng(4)
    select, (score, labels) = sample(rng, 150, 3.0, 0.5), sample(rng, 600, 3.0, 0.5)
    request = Request(BOTH)
    classes = tuple(np.bincount(labels).tolist())
    path = path_from(request, 600, *select, counted=True, classes=classes)
    found = choose(score, labels, request, *select)
    again = _along(path, score, labels, request, DELTA)
    assert (found.thresholds, found.place) == (again.thresholds, again.place)
    assert found.path is not None
    np.testing.assert_array_equal(found.path.lo, again.path.lo)
    other = path_from(request, 600, *select, counted=True, classes=(classes[0] + 60, classes[1] - 60))
    assert not np.array_equal(path.lo, other.lo)


def test_another_balance_than_that_of_val_select_leaves_the_scores_of_each_class():
    rng = np.random.default_rng(5)
    select = sample(rng, 300, 3.0, 0.5)
    assert common_share(tuple(np.bincount(select[1]).tolist()), (900, 100)) is None
    path = calibrated_path(*select, Goal(BOTH, 1000, DELTA, counted=True, classes=(900, 100)))
    for side in (path.lo, -path.hi):
        assert (np.diff(side) >= 0).all()
    assert calibrated_path(*select, Goal(BOTH, 500, DELTA, counted=True, classes=(500, 0))) is not None


# ---- the promise -------------------------------------------------------------------------------------------------


def at_the_boundary(rng, n, rates, share):
    """Scores whose sign is wrong with a fixed probability of each class, however far out."""
    labels = (rng.random(n) < share).astype(np.int64)
    wrong = rng.random(n) < np.where(labels == 1, rates[1], rates[0])
    return rng.exponential(2.0, size=n) * np.where((labels == 1) != wrong, 1.0, -1.0), labels


def is_false(thresholds, rates):
    """Whether fnr or fpr of this pair is above the target, exactly: a side exits with probability exp(-|cut| / 2)."""
    as_0, as_1 = (0.0 if cut is None else np.exp(-abs(cut) / 2) for cut in (thresholds.lo, thresholds.hi))
    fnr = rates[1] * as_0 / max(rates[1] * as_0 + (1 - rates[1]) * as_1, 1e-12)
    fpr = rates[0] * as_1 / max(rates[0] * as_1 + (1 - rates[0]) * as_0, 1e-12)
    return bool(max(fnr, fpr) > LEVEL)


def violations(rates, share, draws, seed):
    """Share of draws that ship a false claim."""
    rng, shipped = np.random.default_rng(seed), 0
    for _ in range(draws):
        select, (score, labels) = at_the_boundary(rng, 80, rates, share), at_the_boundary(rng, 520, rates, share)
        if np.bincount(select[1], minlength=2).min() < 10:
            continue
        found = choose(score, labels, Request(BOTH), *select)
        shipped += found.path is not None and is_false(found.thresholds, rates)
    return shipped / draws


def peeked(rates, share, draws, seed):
    """The same where any symmetric pair that passes by itself on the labels of val_calib may ship."""
    rng, shipped = np.random.default_rng(seed), 0
    hi = np.linspace(0.02, 5, 120)
    false = np.array([is_false(Thresholds(-cut, cut), rates) for cut in hi])
    for _ in range(draws):
        score, labels = at_the_boundary(rng, 520, rates, share)
        exits = count_exits(score[labels == 0], score[labels == 1], -hi, hi)
        shipped += bool((certifies(exits, BOTH, DELTA, None) & false).any())
    return shipped / draws


BOUNDARIES = [((0.0501, 0.0501), 0.5), ((0.001, 0.0501), 0.5), ((0.001, 0.0501), 0.3), ((0.0501, 0.001), 0.4)]


@pytest.mark.parametrize(("rates", "share"), BOUNDARIES)
@pytest.mark.parametrize("draws", [20, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_false_claim_ships_with_probability_delta_at_most(rates, share, draws):
    shipped = violations(rates, share, draws, 9)
    print(f"wrong {rates}, {share:g} positives, {draws} draws: false {shipped:.4f}")
    assert shipped <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / draws)


@pytest.mark.parametrize(("rates", "share"), [BOUNDARIES[1], BOUNDARIES[3]])
def test_a_pair_chosen_by_the_labels_breaks_the_promise(rates, share):
    shipped = peeked(rates, share, 400, 10)
    print(f"wrong {rates}, {share:g} positives, any pair: false {shipped:.4f}")
    assert shipped > DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 400)


# ---- power -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draws", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_few_labels_certify_more_with_the_numbers_of_both_classes(draws):
    request, gain, reached = Request(BOTH), [], []
    for draw in range(draws):
        rng = np.random.default_rng([11, draw])
        select, (score, labels) = sample(rng, 150, 2.2, 0.4), sample(rng, 1350, 2.2, 0.4)
        without = path_from(request, len(score), *select, counted=True)
        pairs = _along(without, score, labels, request, DELTA), choose(score, labels, request, *select)
        before, now = (float(np.logical_or(*pair.thresholds.exits(score)).mean()) for pair in pairs)
        gain.append(now - before)
        reached.append(now)
    error = np.std(gain) / np.sqrt(draws)
    print(f"{draws} draws: {np.mean(reached):.3f}, {np.mean(gain):+.3f} (se {error:.3f})")
    assert np.mean(gain) >= (2 if draws > 100 else -2) * error
