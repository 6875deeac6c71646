"""Platt and beta maps against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.calibration import Beta, Platt
from stage1.scores import Scores


def sample(n=500, seed=0, shape="gauss"):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    if shape == "gauss":
        margin = 3.0 * (labels - 0.4) + rng.normal(size=n) * 2
    else:
        p = np.where(labels == 1, rng.beta(2, 1, n), rng.beta(1, 4, n))
        margin = np.log(p) - np.log1p(-p)
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels)


def logistic_regression(features, labels, weights=None):
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=10_000, solver="lbfgs")
    model.fit(features, labels, sample_weight=weights)
    return model.coef_[0], model.intercept_[0]


def test_platt_without_smoothing_is_logistic_regression():
    scores = sample()
    fitted = Platt.fit(scores, smoothing=False)
    slope, shift = logistic_regression(scores.margin[:, None], scores.labels)
    assert (fitted.slope, fitted.shift) == pytest.approx((slope[0], shift), rel=1e-5)


def test_platt_with_smoothing_is_scikit_learns_sigmoid():
    """Its oracle: logistic regression on each row twice, once per label, weighted by the smoothed targets; and
    scikit-learn's own sigmoid calibration of a frozen classifier."""
    from sklearn.calibration import _sigmoid_calibration

    scores = sample(60)
    fitted = Platt.fit(scores)
    ones = int(scores.labels.sum())
    target = np.where(scores.labels == 1, (ones + 1) / (ones + 2), 1 / (60 - ones + 2))
    slope, shift = logistic_regression(
        np.tile(scores.margin, 2)[:, None], np.repeat([1, 0], 60), np.append(target, 1 - target)
    )
    assert (fitted.slope, fitted.shift) == pytest.approx((slope[0], shift), rel=1e-5)
    a, b = _sigmoid_calibration(scores.margin, scores.labels)
    assert (fitted.slope, fitted.shift) == pytest.approx((-a, -b), rel=1e-3)


def test_smoothing_matters_only_for_small_samples():
    def gap(n):
        scores = sample(n)
        both = [Platt.fit(scores, smoothing=on).apply(scores.logits)[:, 1] for on in (True, False)]
        return np.abs(both[0] - both[1]).max()

    assert gap(60) > 0.01 > gap(5000)


def test_beta_is_logistic_regression_on_the_two_logs():
    scores = sample(shape="beta")
    p = scores.probabilities[:, 1]
    slopes, shift = logistic_regression(np.stack([np.log(p), -np.log1p(-p)], axis=1), scores.labels)
    assert slopes.min() > 0  # so that the bounds play no part
    fitted = Beta.fit(scores)
    assert (fitted.a, fitted.b, fitted.c) == pytest.approx((*slopes, shift), rel=1e-4)


def test_beta_recovers_beta_distributed_scores():
    """p | 1 ~ Beta(2, 1), p | 0 ~ Beta(1, 4): log ratio of densities has slopes a = 1, b = 3 (Kull et al. 2017)."""
    fitted = Beta.fit(sample(40_000, shape="beta"))
    # standard errors of maximum likelihood here: .056 and .088
    assert fitted.a == pytest.approx(1.0, abs=3 * 0.056)
    assert fitted.b == pytest.approx(3.0, abs=3 * 0.088)


def test_a_negative_slope_of_beta_is_held_at_0_and_the_rest_fitted_again():
    """p | 1 ~ Beta(2, 3), p | 0 ~ Beta(1, 2): a = 1, b = -1, held at 0. Oracle: logistic regression on ln p alone."""
    rng = np.random.default_rng(3)
    labels = np.arange(2000) % 2
    p = np.where(labels == 1, rng.beta(2, 3, 2000), rng.beta(1, 2, 2000))
    scores = Scores(logits=np.stack([np.zeros(2000), np.log(p) - np.log1p(-p)], axis=1), labels=labels)
    slopes, _ = logistic_regression(np.stack([np.log(p), -np.log1p(-p)], axis=1), labels)
    assert slopes[1] < 0
    fitted = Beta.fit(scores)
    slope, shift = logistic_regression(np.log(p)[:, None], labels)
    assert fitted.constrained == ("b",)
    assert (fitted.a, fitted.b, fitted.c) == pytest.approx((slope[0], 0.0, shift), rel=1e-4)
    assert fitted.monotone


def test_beta_with_equal_slopes_is_platt():
    logits = sample().logits
    beta = Beta(a=0.7, b=0.7, c=-0.2, n=1, n_classes=2)
    platt = Platt(slope=0.7, shift=-0.2, n=1, n_classes=2)
    np.testing.assert_allclose(beta.apply(logits), platt.apply(logits), atol=1e-14)


def test_beta_stays_exact_where_the_probability_rounds_to_0_or_1():
    logits = np.stack([np.zeros(4), [-700.0, -600.0, 600.0, 700.0]], axis=1)
    found = Beta(a=0.5, b=0.25, c=0.0, n=1, n_classes=2).log_probabilities(logits)
    np.testing.assert_allclose(found[:, 1] - found[:, 0], [-350.0, -300.0, 150.0, 175.0], rtol=1e-12)
