"""Temperature and vector scaling against scikit-learn, scipy and worked values."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.calibration import Temperature, Vector
from stage1.calibration.maps import capped_log_softmax, log_softmax
from stage1.scores import Scores


def sample(k, n=600, seed=0, slope=2.0):
    rng = np.random.default_rng((seed, k))
    true = rng.normal(size=(n, k)) * 1.5
    return Scores(logits=slope * true, labels=(true + rng.gumbel(size=(n, k))).argmax(axis=1))


def loss(log_p, labels):
    return -log_p[np.arange(len(labels)), labels].mean()


@pytest.mark.parametrize("k", [2, 5])
def test_temperature_is_the_minimum_that_scipy_finds(k):
    from scipy.optimize import minimize_scalar

    scores = sample(k)
    fitted = Temperature.fit(scores)
    found = minimize_scalar(
        lambda slope: loss(log_softmax(slope * scores.logits), scores.labels),
        bounds=(0.01, 5),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert fitted.slope == pytest.approx(found.x, rel=1e-6)
    assert fitted.temperature == pytest.approx(1 / found.x, rel=1e-6)


def test_temperature_equals_scikit_learn():
    from sklearn.base import BaseEstimator, ClassifierMixin
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.frozen import FrozenEstimator

    class Given(ClassifierMixin, BaseEstimator):
        """A classifier whose decision function is its input."""

        classes_ = np.arange(4)
        n_features_in_ = 4

        def fit(self, x, y):
            return self

        def decision_function(self, x):
            return np.asarray(x)

        def predict(self, x):
            return np.asarray(x).argmax(axis=1)

        def __sklearn_is_fitted__(self):
            return True

    scores = sample(4, 800)
    peer = CalibratedClassifierCV(FrozenEstimator(Given()), method="temperature").fit(scores.logits, scores.labels)
    ours = Temperature.fit(scores)
    # its search ends at relative 1e-5 or so
    np.testing.assert_allclose(peer.predict_proba(scores.logits), ours.apply(scores.logits), atol=2e-4)


def test_temperature_recovers_what_was_done_to_the_logits():
    fitted = Temperature.fit(sample(3, 40_000, slope=2.0))
    assert fitted.temperature == pytest.approx(2.0, abs=0.05)  # standard error about .015


def test_temperature_worked_value():
    """Margins 1, 1, 1, -1 with labels 1, 1, 1, 1: sigma(a) = 3/4, a = ln 3."""
    logits = np.array([[0.0, 1], [0, 1], [0, 1], [0, -1], [1, 0], [1, 0], [1, 0], [-1, 0]])
    fitted = Temperature.fit(Scores(logits=logits, labels=[1, 1, 1, 1, 0, 0, 0, 0]))
    assert fitted.slope == pytest.approx(np.log(3), rel=1e-12)


def test_temperature_never_changes_the_answer():
    scores = sample(5)
    assert (Temperature.fit(scores).apply(scores.logits).argmax(axis=1) == scores.logits.argmax(axis=1)).all()


@pytest.mark.parametrize("k", [3, 4])
def test_vector_is_the_minimum_that_scipy_finds(k):
    from scipy.optimize import minimize

    scores = sample(k)
    logits = scores.logits + np.linspace(0, 1, k)
    features = capped_log_softmax(logits)

    def objective(theta):
        return loss(log_softmax(features * theta[:k] + np.append(0.0, theta[k:])), scores.labels)

    start = np.append(np.full(k, 0.3), np.zeros(k - 1))
    found = minimize(
        objective,
        start,
        method="SLSQP",
        bounds=[(0, None)] * k + [(None, None)] * (k - 1),
        options={"ftol": 1e-14, "maxiter": 500},
    )
    fitted = Vector.fit(Scores(logits=logits, labels=scores.labels))
    assert loss(fitted.log_probabilities(logits), scores.labels) <= found.fun + 1e-9
    np.testing.assert_allclose([*fitted.slopes, *fitted.shifts[1:]], found.x, atol=2e-4)


def test_vector_with_equal_slopes_is_temperature():
    logits = sample(3).logits
    same = Vector(slopes=(0.4,) * 3, shifts=(0.0,) * 3, n=1, n_classes=3).apply(logits)
    np.testing.assert_allclose(same, Temperature(slope=0.4, n=1, n_classes=3).apply(logits), atol=1e-12)
