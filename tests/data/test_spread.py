"""A sample for a choice: every group in it, classes in their shares, whatever the order of the rows."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.data.spread import spread_sample


def made(n: int, n_groups: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    groups = np.array([f"g{index}" for index in rng.integers(n_groups, size=n)])
    return (rng.random(n) < share).astype(np.int64), groups, np.array([f"id{index}" for index in range(n)])


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 40), st.floats(0.0, 1.0), st.integers(4, 120), st.integers(0, 99))
def test_size_shares_and_spread(n: int, n_groups: int, share: float, most: int, seed: int) -> None:
    labels, groups, ids = made(n, n_groups, share, seed)
    rows = spread_sample(labels, groups, ids, most, seed)
    assert (np.diff(rows) > 0).all()
    if n <= most:
        assert len(rows) == n
        return
    classes = np.unique(labels)
    assert most - 2 * len(classes) <= len(rows) <= most
    for label in classes:
        here, all_of = labels[rows] == label, labels == label
        assert here.sum() >= min(all_of.sum(), most // (2 * len(classes))), "a rare class is not lost"
        # No group gives two images of a class more than another one that has them.
        taken = {name: int((here & (groups[rows] == name)).sum()) for name in np.unique(groups[all_of])}
        left = {name: int((all_of & (groups == name)).sum()) - count for name, count in taken.items()}
        could = [count for name, count in taken.items() if left[name]]
        assert max(taken.values()) - min(could, default=max(taken.values())) <= 1


def test_the_order_of_rows_decides_nothing_and_the_seed_does() -> None:
    labels, groups, ids = made(500, 30, 0.2, 0)
    order = np.random.default_rng(1).permutation(500)
    chosen = set(ids[spread_sample(labels, groups, ids, 100, 0)])
    assert chosen == set(ids[order][spread_sample(labels[order], groups[order], ids[order], 100, 0)])
    assert chosen != set(ids[spread_sample(labels, groups, ids, 100, 1)])


def test_shares_of_classes_are_kept_where_none_is_rare() -> None:
    labels, groups, ids = made(4000, 400, 0.4, 0)
    rows = spread_sample(labels, groups, ids, 1000, 0)
    assert abs(labels[rows].mean() - labels.mean()) < 0.002
    assert len(np.unique(groups[rows])) == 400
