"""The share of images in groups of different sizes: its parts by hand, and how often its bound holds the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stage1.errors import DataError
from stage1.risk.cluster_share import FEWEST_GROUPS, ClusterShare

DELTA = 0.05


def rows(counts, sizes):
    """hits, groups of rows with `counts` hits among `sizes` rows of each group."""
    sizes = np.asarray(sizes)
    place = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return place < np.repeat(counts, sizes), np.repeat(np.arange(len(sizes)), sizes)


def test_the_parts_by_hand():
    found = ClusterShare.of(*rows([1, 0, 3], [2, 4, 6]))
    assert (found.images, found.share) == (12, pytest.approx(4 / 12))
    assert (found.groups, found.effective) == (3, pytest.approx(144 / (4 + 16 + 36)))
    size = ((4 + 16 + 36) / 12 + 6) / 2
    counts, sizes = np.array([1, 0, 3, size]), np.array([2, 4, 6, size])
    guarded = counts.sum() / sizes.sum()
    without = [(counts.sum() - c) / (sizes.sum() - m) for c, m in zip(counts, sizes, strict=True)]
    assert found.guarded == pytest.approx(guarded)
    assert found.error == pytest.approx(np.sqrt(3 / 4 * sum((w - guarded) ** 2 for w in without)))


def test_the_bound_is_the_binomial_one_where_groups_are_many_and_single():
    rng = np.random.default_rng(0)
    hits = rng.random(20_000) < 0.3
    found = ClusterShare.of(hits, np.arange(20_000)).upper(DELTA)
    exact = float(stats.beta.isf(DELTA, hits.sum() + 1, 20_000 - hits.sum()))
    assert found == pytest.approx(exact, abs=2e-4)


def test_too_few_groups_have_no_bound():
    alike = ClusterShare.of(*rows([5] * 29, [10] * 29))
    assert (alike.groups, alike.bounded, alike.upper(DELTA)) == (FEWEST_GROUPS - 1, False, 1.0)
    assert ClusterShare.of(*rows([5] * 30, [10] * 30)).upper(DELTA) < 0.65
    # One group holds nearly everything: a hundred names are not a hundred groups.
    assert ClusterShare.of(*rows([1] * 100, [1000] + [2] * 99)).upper(DELTA) > 0.99


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_the_bound_lies_above_the_share_and_falls_with_delta(seed):
    rng = np.random.default_rng(seed)
    sizes = rng.geometric(0.2, 60)
    found = ClusterShare.of(*rows(rng.binomial(sizes, rng.random()), sizes))
    bounds = [found.upper(delta) for delta in (0.2, 0.05, 0.01)]
    assert found.share <= bounds[0] <= bounds[1] <= bounds[2] <= 1.0


@pytest.mark.parametrize("hits, groups", [([], []), ([True], ["a", "b"]), ([[True]], [["a"]])])
def test_bad_input_is_named(hits, groups):
    with pytest.raises(DataError, match="one value each for every row"):
        ClusterShare.of(np.array(hits, dtype=bool), np.array(groups))


def drawn(rng, groups, sizes, share):
    """Groups that defer the more the larger they are."""
    if sizes == "geometric":
        size = rng.geometric(0.1, groups)
    else:
        size = np.minimum(np.ceil(3 * rng.pareto(1.5, groups) + 1), 120).astype(int)
    chance = rng.beta(share * 7 / 3, (1 - share) * 7 / 3, groups) * np.where(size > 12, 1.6, 0.6)
    return rng.binomial(size, np.clip(chance, 0, 1)), size


@pytest.mark.parametrize("sizes, groups, share", [("geometric", 50, 0.3), ("pareto", 150, 0.05)])
def test_the_bound_holds_where_large_groups_defer_more(sizes, groups, share):
    rng, draws = np.random.default_rng(3), 300
    counts, size = drawn(rng, 400_000, sizes, share)
    truth = counts.sum() / size.sum()
    held = one_of_each = 0
    for _ in range(draws):
        counts, size = drawn(rng, groups, sizes, share)
        held += ClusterShare.of(*rows(counts, size)).upper(DELTA) >= truth
        picked = int((rng.random(groups) < counts / size).sum())
        one_of_each += stats.beta.isf(DELTA, picked + 1, groups - picked) >= truth
    assert held / draws >= 0.95 - 3 * np.sqrt(0.05 * 0.95 / draws)
    # The control: one image of each group has another share.
    assert one_of_each / draws < 0.9
