"""Isotonic maps against scikit-learn; what the ends say; one against the rest."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.calibration import Isotonic, pool_adjacent_violators
from stage1.scores import Scores


def peer(scores, labels):
    from sklearn.isotonic import IsotonicRegression

    return IsotonicRegression(out_of_bounds="clip").fit(scores, labels)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(-6, 6), st.integers(0, 1)), min_size=1, max_size=60))
def test_blocks_are_scikit_learns(points):
    scores, labels = np.array(points, dtype=np.float64).T
    first, last, value, rows = pool_adjacent_violators(scores, labels)
    assert (np.diff(value) > 0).all()
    assert rows.sum() == len(points)
    block = np.searchsorted(last, scores)
    assert (scores >= first[block]).all()
    np.testing.assert_allclose(value[block], peer(scores, labels).predict(scores), atol=1e-12)


def test_blocks_of_a_large_sample():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=100_000)
    labels = rng.random(100_000) < 1 / (1 + np.exp(-scores))
    _, last, value, _ = pool_adjacent_violators(scores, labels)
    np.testing.assert_allclose(value[np.searchsorted(last, scores)], peer(scores, labels).predict(scores), atol=1e-12)


def sample(n=800, seed=0):
    rng = np.random.default_rng(seed)
    margin = rng.normal(size=n) * 3
    labels = rng.random(n) < 1 / (1 + np.exp(-margin / 2))
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels.astype(int))


def test_map_is_scikit_learns_between_the_ends():
    scores = sample()
    fitted = Isotonic.fit(scores)
    margin = np.linspace(-12, 12, 5001)
    theirs = peer(scores.margin, scores.labels).predict(margin)
    ours = fitted.apply(np.stack([np.zeros_like(margin), margin], axis=1))[:, 1]
    _, last, value, _ = pool_adjacent_violators(scores.margin, scores.labels)
    first, _, _, _ = pool_adjacent_violators(scores.margin, scores.labels)
    inner = (margin >= first[1]) & (margin <= last[-2])
    assert inner.mean() > 0.2
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-12)
    assert value[0] == 0
    assert 0 < ours.min() < 0.1
    assert ours.max() < 1


def test_pure_ends_follow_the_rule_of_succession_but_never_cross_their_neighbour():
    # 8 zeros, then one 1 in 3, then 2 ones
    margin = np.concatenate([np.arange(8), [10, 10, 10], [20, 21]]).astype(float)
    labels = np.array([0] * 8 + [0, 1, 0] + [1, 1])
    fitted = Isotonic.fit(Scores(logits=np.stack([np.zeros(13), margin], axis=1), labels=labels))
    found = fitted.apply(np.stack([np.zeros(4), [0.0, 7.0, 10.0, 30.0]], axis=1))[:, 1]
    np.testing.assert_allclose(found, [0.1, 0.1, 1 / 3, 3 / 4], atol=1e-12)
    # a lone 0 below a block of 1 in 4: 1 / 3 would be above it
    margin = np.array([0.0, 1, 1, 1, 1, 2])
    fitted = Isotonic.fit(Scores(logits=np.stack([np.zeros(6), margin], axis=1), labels=[0, 0, 1, 0, 0, 1]))
    np.testing.assert_allclose(fitted.apply(np.array([[0.0, 0.0], [0.0, 1.0]]))[:, 1], [0.25, 0.25], atol=1e-12)


def test_three_classes_are_each_scikit_learns_against_the_rest_then_divided_by_their_sum():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3000, 3)) * 2
    labels = (logits / 2 + rng.gumbel(size=(3000, 3))).argmax(axis=1)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    odds = np.log(p) - np.log1p(-p)
    columns = np.stack([peer(odds[:, k], labels == k).predict(odds[:, k]) for k in range(3)], axis=1)
    theirs = columns / columns.sum(axis=1, keepdims=True)
    ours = Isotonic.fit(Scores(logits=logits, labels=labels)).apply(logits)
    inner = ((columns > 0) & (columns < 1)).all(axis=1)
    assert inner.mean() > 0.5
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-9)


def test_only_ranges_of_equal_values_make_it_not_strict():
    fitted = Isotonic.fit(sample())
    assert not fitted.monotone
    assert (np.diff(fitted.curves[0][1]) == 0).any()


@pytest.mark.parametrize("constant", [0.0, 5.0])
def test_one_score_for_all_gives_the_share_of_positives(constant):
    labels = np.array([1, 0, 0, 1, 0])
    scores = Scores(logits=np.stack([np.zeros(5), np.full(5, constant)], axis=1), labels=labels)
    np.testing.assert_allclose(Isotonic.fit(scores).apply(scores.logits)[:, 1], 0.4)
