"""Dirichlet calibration: the worked values of ALGORITHMS 6, beta as its case of two classes, the regulariser."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.calibration import Beta, Dirichlet, odir_penalty
from stage1.calibration.dirichlet import GRID, _fit
from stage1.calibration.maps import capped_log_softmax, log_softmax
from stage1.errors import ConfigError, DataError
from stage1.scores import Scores, from_probabilities

W = np.array([[1.1, 0.2, -0.1], [0.0, 0.9, 0.3], [-0.2, 0.1, 1.0]])
B = np.array([0.1, -0.2, 0.3])


def toy(weights=W, shifts=B):
    return Dirichlet(
        weights=tuple(map(tuple, weights.tolist())),
        shifts=tuple(shifts.tolist()),
        lam=0.01,
        mu=0.02,
        n=1,
        n_classes=len(shifts),
    )


def sample(k=3, n=500, seed=0):
    rng = np.random.default_rng((seed, k))
    true = rng.normal(size=(n, k)) * 1.3
    logits = 1.8 * true
    logits[:, 0] += 0.4 * true[:, -1]
    return Scores(logits=logits, labels=(true + rng.gumbel(size=(n, k))).argmax(axis=1))


def test_worked_penalty():
    assert odir_penalty(W, B, 0.01, 0.02) == pytest.approx(0.00125, abs=1e-12)


def test_worked_probabilities():
    found = toy().apply(from_probabilities([[0.7, 0.2, 0.1]]).logits)
    np.testing.assert_allclose(found, [[0.756024, 0.106994, 0.136982]], atol=5e-7)


def test_identity_parameters_are_the_identity():
    scores = sample()
    np.testing.assert_allclose(toy(np.eye(3), np.zeros(3)).apply(scores.logits), scores.probabilities, atol=1e-12)


def test_two_classes_are_the_beta_map():
    """a = W11 - W01, b = -(W10 - W00), c = b1 - b0."""
    weights, shifts = np.array([[0.8, -0.3], [0.1, 0.9]]), np.array([0.2, -0.1])
    dirichlet = toy(weights, shifts)
    beta = Beta(a=0.9 + 0.3, b=-(0.1 - 0.8), c=-0.1 - 0.2, n=1, n_classes=2)
    margin = np.linspace(-30, 30, 601)
    logits = np.stack([np.zeros_like(margin), margin], axis=1)
    np.testing.assert_allclose(dirichlet.log_probabilities(logits), beta.log_probabilities(logits), atol=1e-12)
    assert dirichlet.monotone
    assert not toy(np.array([[0.1, 0.9], [0.8, -0.3]]), shifts).monotone


def test_fitted_without_penalty_two_classes_give_the_fitted_beta_map():
    scores = sample(2)
    beta, dirichlet = Beta.fit(scores), Dirichlet.fit(scores, lam=0.0, mu=0.0)
    assert not beta.constrained
    np.testing.assert_allclose(dirichlet.apply(scores.logits), beta.apply(scores.logits), atol=1e-6)


@pytest.mark.parametrize("lam, mu", [(0.0, 0.0), (0.1, 0.5), (10.0, 1.0)])
def test_fit_is_the_minimum_that_scipy_finds(lam, mu):
    from scipy.optimize import minimize

    scores = sample()
    features = capped_log_softmax(scores.logits)

    def objective(flat):
        weights, shifts = flat[:9].reshape(3, 3), flat[9:]
        log_p = log_softmax(features @ weights.T + shifts)
        return -log_p[np.arange(500), scores.labels].mean() + odir_penalty(weights, shifts, lam, mu)

    found = minimize(objective, np.random.default_rng(0).normal(size=12) * 0.3, method="BFGS", options={"gtol": 1e-7})
    fitted = Dirichlet.fit(scores, lam=lam, mu=mu)
    ours = objective(np.append(np.array(fitted.weights).reshape(-1), fitted.shifts))
    assert ours <= found.fun + 1e-9
    assert ours == pytest.approx(found.fun, abs=1e-6)
    if lam:  # else W has directions that change no probability
        np.testing.assert_allclose(np.array(fitted.weights).reshape(-1), found.x[:9], atol=5e-4)


def test_penalties_shrink_what_they_are_about():
    scores = sample()
    weak, strong = (Dirichlet.fit(scores, lam=lam, mu=lam) for lam in (1e-4, 1e4))

    def off(fitted):
        return np.abs(np.array(fitted.weights) - np.diag(np.diag(fitted.weights))).max()

    assert off(strong) < 1e-3 < 0.01 < off(weak)
    assert np.abs(strong.shifts).max() < 1e-3 < 0.01 < np.abs(weak.shifts).max()
    assert np.diag(strong.weights).max() < 0.9  # the diagonal is free: it still finds the temperature 1.8


def test_penalties_are_chosen_by_cross_validation_and_guard_small_samples():
    small, fresh = sample(8, 120), sample(8, 5000, seed=9)
    chosen = Dirichlet.fit(small)
    assert (chosen.lam, chosen.mu) in GRID

    def loss(fitted):
        return -fitted.log_probabilities(fresh.logits)[np.arange(5000), fresh.labels].mean()

    assert loss(chosen) < loss(Dirichlet.fit(small, lam=1e-6, mu=1e-6)) - 0.05
    assert chosen == Dirichlet.fit(small)
    assert chosen.refit(small) == Dirichlet.fit(small, lam=chosen.lam, mu=chosen.mu)


def test_a_warm_start_reaches_the_same_optimum():
    scores = sample()
    features = capped_log_softmax(scores.logits)
    cold = _fit(features, scores.labels, 0.1, 0.1, None)
    warm = _fit(features, scores.labels, 0.1, 0.1, np.random.default_rng(0).normal(size=(3, 4)))
    for one, other in zip(cold, warm, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_bad_penalties_are_named():
    with pytest.raises(ConfigError, match=r"lam=0\.1, mu=None"):
        Dirichlet.fit(sample(), lam=0.1)
    with pytest.raises(DataError, match="mu: -1"):
        Dirichlet.fit(sample(), lam=0.1, mu=-1.0)
