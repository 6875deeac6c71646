"""Many draws of one image of each group: the merge against a plain loop, and the promise where images agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stage1.risk.bounds import betting_pvalue, binomial_pvalue
from stage1.risk.group_draws import DRAWS, draw_numbers, drawn_counts, merged_pvalue, merged_upper

TARGET = DELTA = 0.05


def test_rejected_is_half_of_the_first_draws_at_half_the_level_by_a_plain_loop():
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        trials = rng.integers(100, 400, (7, 1))
        errors = rng.binomial(trials, 0.03)
        single = stats.binom.cdf(errors[:, 0], trials[:, 0], TARGET) <= DELTA / 2
        plain = any(2 * int(single[:t].sum()) >= t for t in range(1, 8))
        assert bool(merged_pvalue(errors, trials, TARGET)[0] <= DELTA) == plain
        seen.add((plain, bool(single[0])))
    assert seen == {(False, False), (True, False), (True, True)}  # a first draw that passes alone is enough


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.02, 0.05, 0.2]), st.sampled_from([0.01, 0.05, 0.1]))
def test_the_bound_is_at_most_the_target_exactly_where_the_test_passes(seed, target, delta):
    rng = np.random.default_rng(seed)
    trials = rng.integers(0, 300, (9, 5))
    errors = rng.binomial(trials, target * rng.uniform(0, 1, (1, 5)))
    passed = merged_pvalue(errors, trials, target) <= delta
    assert ((merged_upper(errors, trials, delta) <= target * (1 + 1e-9)) == passed).all()


def test_draws_are_single_images_and_depend_on_names_alone():
    names = [f"g{i}" for i in range(4000)]
    numbers = draw_numbers(names, seed=3)
    assert numbers.shape == (4000, DRAWS)
    assert stats.kstest(numbers.ravel()[::7], "uniform").pvalue > 1e-4
    assert (draw_numbers(names[::-1], seed=3)[::-1] == numbers).all()
    assert not (draw_numbers(names, seed=4) == numbers).any()
    wrong, idle = np.full((4000, 1), 0.25), np.full((4000, 1), 0.5)
    errors, trials = drawn_counts(wrong, idle, numbers)
    assert (errors <= trials).all()
    assert errors.mean() / 4000 == pytest.approx(0.25, abs=0.01)
    assert trials.mean() / 4000 == pytest.approx(0.5, abs=0.01)
    whole = drawn_counts(np.array([[1.0], [0.0]]), np.array([[0.0], [0.0]]), numbers[:2])
    assert (whole[0] == 1).all()
    assert (whole[1] == 2).all()


def clusters(rng, groups, size, icc, risk, sets):
    spread = (1 - icc) / icc
    return rng.binomial(size, rng.beta(risk * spread, (1 - risk) * spread, (groups, sets)))


def verdicts(rng, wrong, size):
    """(one, draws, betting, images as independent): bool [sets] each."""
    groups, sets = wrong.shape
    errors = np.array([(rng.random(wrong.shape) < wrong / size).sum(axis=0) for _ in range(DRAWS)])
    trials = np.full((DRAWS, sets), groups)
    return (
        binomial_pvalue(errors[0], trials[0], TARGET) <= DELTA,
        merged_pvalue(errors, trials, TARGET) <= DELTA,
        betting_pvalue(wrong / size, TARGET) <= DELTA,
        binomial_pvalue(wrong.sum(axis=0), np.full(sets, groups * size), TARGET) <= DELTA,
    )


@pytest.mark.parametrize(("groups", "size", "icc"), [(150, 10, 0.02), (300, 10, 0.5), (300, 2, 0.9), (600, 5, 0.2)])
def test_the_promise_holds_at_the_boundary_and_independent_images_break_it(groups, size, icc):
    sets = 1000
    rng = np.random.default_rng([groups, size])
    _, draws, _, images = verdicts(rng, clusters(rng, groups, size, icc, TARGET, sets), size)
    assert draws.mean() <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / sets)
    if (size, icc) == (10, 0.5):
        assert images.mean() > 0.2  # the control: all images as if independent


@pytest.mark.parametrize(("size", "icc"), [(2, 0.2), (10, 0.2), (10, 0.5)])
def test_many_draws_certify_more_often_than_one_where_images_agree_in_part(size, icc):
    sets = 400
    rng = np.random.default_rng(size)
    one, draws, _, _ = verdicts(rng, clusters(rng, 150, size, icc, 0.4 * TARGET, sets), size)
    assert draws.mean() > one.mean() + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("icc", [0.02, 0.1, 0.2, 0.5, 0.9, 0.99])
@pytest.mark.parametrize(("groups", "size"), [(80, 3), (150, 60), (300, 10), (600, 2)])
def test_the_promise_holds_at_the_boundary_in_4000_sets(groups, size, icc):
    sets = 4000
    rng = np.random.default_rng([groups, size, int(100 * icc)])
    _, draws, _, _ = verdicts(rng, clusters(rng, groups, size, icc, TARGET, sets), size)
    print(f"{groups} groups of {size}, icc {icc}: violation {draws.mean():.4f}")
    assert draws.mean() <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / sets)
