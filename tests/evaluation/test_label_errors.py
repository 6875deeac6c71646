"""Planted label noise is found; the probe is scikit-learn's; no row is judged by a fit on its own group."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.errors import ConfigError, DataError
from stage1.evaluation.label_errors import RIDGES, _dealt, _nearest, find_label_errors, fit_softmax, precision_at


def planted(n=1200, d=32, k=2, noise=0.05, seed=0, distance=1.6):
    """Classes of equal covariance whose means lie `distance` along random directions; groups of two; some labels
    flipped.
    """
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.integers(0, k, n // 2), 2)
    means = distance * np.linalg.qr(rng.normal(size=(d, k)))[0].T
    x = means[truth] + 0.45 * rng.normal(size=(n, d)) * np.linspace(0.2, 3, d) ** 0.5
    wrong = np.zeros(n, dtype=bool)
    wrong[rng.choice(n, round(noise * n), replace=False)] = True
    labels = np.where(wrong, (truth + rng.integers(1, k, n)) % k, truth)
    return x, labels, np.array([f"g{row // 2}" for row in range(n)]), wrong, truth


@pytest.mark.parametrize("k", [2, 4])
def test_planted_noise_is_found(k):
    x, labels, groups, wrong, truth = planted(k=k)
    found = find_label_errors(x, labels, groups)
    assert precision_at(found.score, wrong) >= 0.85
    assert (found.suggested[wrong] == truth[wrong]).mean() >= 0.85
    # Confident learning counts about as many as there are: its binomial noise, and a few hard rows.
    assert 0.7 * wrong.sum() <= found.confident.sum() <= 1.4 * wrong.sum()
    assert found.ranked[0] == found.score.argmin()


def test_without_signal_nothing_is_found():
    """Features that know nothing of the labels: the precision is the share of wrong labels, not more."""
    x, labels, groups, wrong, _ = planted(distance=0.0)
    found = find_label_errors(x, labels, groups)
    n = int(wrong.sum())
    assert precision_at(found.score, wrong) <= 0.05 + 3 * (0.05 * 0.95 / n) ** 0.5


def test_a_probe_that_sees_its_own_rows_finds_less():
    """What cross-fitting is for: with more columns than it needs, a fit in sample believes the labels it was given."""
    x, labels, _, wrong, _ = planted(n=400, d=300, distance=2.5)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    weights = fit_softmax(z, labels, 2, RIDGES[-1])
    logits = z @ weights[:-1] + weights[-1]
    in_sample = (logits - logits.max(axis=1, keepdims=True))[np.arange(400), labels]
    assert precision_at(find_label_errors(x, labels).score, wrong) >= precision_at(in_sample, wrong) + 0.2


def test_the_probe_is_that_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, labels, *_ = planted(n=300, d=6, k=3)
    ridge = 0.1
    weights = fit_softmax(x, labels, 3, ridge)
    # Their penalty is |w|^2 / 2 beside C times the summed loss.
    theirs = linear_model.LogisticRegression(C=1 / (ridge * len(x)), tol=1e-9, max_iter=5000).fit(x, labels)
    assert np.allclose(weights[:-1].T, theirs.coef_, atol=2e-4)
    mine, other = x @ weights[:-1] + weights[-1], theirs.decision_function(x)
    assert np.allclose(mine - mine.mean(axis=1, keepdims=True), other - other.mean(axis=1, keepdims=True), atol=1e-3)


def test_folds_and_neighbours_keep_groups_together():
    x, labels, groups, *_ = planted(n=200)
    unit = np.unique(groups, return_inverse=True)[1]
    fold = _dealt(unit, labels, 5, 0)
    assert all(len(set(fold[unit == name])) == 1 for name in np.unique(unit))
    assert np.bincount(fold).tolist() == [40] * 5
    near = _nearest(x, unit, 7)
    assert (unit[near] != unit[:, None]).all()
    # By hand, for one row.
    direction = x / np.linalg.norm(x, axis=1, keepdims=True)
    likeness = np.where(unit == unit[3], -np.inf, direction @ direction[3])
    assert set(near[3]) == set(np.argsort(-likeness)[:7])
    assert (_nearest(x[:4], unit[:4], 7)[:, 2:] == -1).all()


def test_same_seed_same_answer():
    x, labels, groups, *_ = planted(n=300)
    first, again = (find_label_errors(x, labels, groups, seed=3) for _ in range(2))
    assert np.array_equal(first.score, again.score)
    assert np.array_equal(first.neighbours, again.neighbours)


@pytest.mark.parametrize(
    ("change", "options", "error", "words"),
    [
        (lambda x, y, g: (x, np.zeros_like(y), g), {}, DataError, "1 class"),
        (lambda x, y, g: (np.where(np.arange(len(y))[:, None] == 3, np.nan, x), y, g), {}, DataError, "row 3"),
        (lambda x, y, g: (x[:-1], y, g), {}, DataError, "expected"),
        (lambda x, y, g: (x, y, np.full(len(y), "one")), {}, DataError, "at least 5"),
        (lambda x, y, g: (x, y, g), {"n_classes": 1}, DataError, "outside"),
        (lambda x, y, g: (x, y, g), {"folds": 1}, ConfigError, "folds 1"),
    ],
)
def test_bad_input(change, options, error, words):
    x, labels, groups, *_ = planted(n=60)
    with pytest.raises(error, match=words):
        find_label_errors(*change(x, labels, groups), **options)


def test_precision_at_a_count():
    assert precision_at([0.1, 0.9, 0.2, 0.8], [True, False, False, True]) == 0.5
    assert precision_at([0.1, 0.9, 0.2, 0.8], [True, False, False, True], 1) == 1.0
    with pytest.raises(DataError, match="nothing to look for"):
        precision_at([0.1], [False])
