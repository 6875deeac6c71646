"""Logistic regression: the same minimum as scikit-learn's, the same numbers on every run, and folds that are out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.errors import DataError
from stage1.training.logistic import Logistic, fit_logistic, out_of_fold_path, standardisation

CASES = [(300, 20, 2), (60, 100, 2), (300, 20, 4), (60, 100, 3)]  # more rows than columns, and fewer


def made(n: int, dim: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    features = (rng.normal(size=(n, dim)) * rng.gamma(1, 1, dim) + 3).astype(np.float32)
    labels = (features @ rng.normal(size=(dim, k)) + 8 * rng.gumbel(size=(n, k))).argmax(axis=1)
    labels[:k] = np.arange(k)
    return features, labels


def rows_of(fit: Logistic, k: int) -> np.ndarray:
    return fit.weight[1:] - fit.weight[:1] if k == 2 else fit.weight


def objective(z: np.ndarray, labels: np.ndarray, weight: np.ndarray, bias: np.ndarray, strength: float) -> float:
    """Written out by hand from the definition. weight [m, D], bias [m]."""
    logits = z @ weight.T + bias
    if len(weight) == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    top = logits.max(axis=1, keepdims=True)
    log_sum = (top + np.log(np.exp(logits - top).sum(axis=1, keepdims=True)))[:, 0]
    loss = (log_sum - logits[np.arange(len(labels)), labels]).sum()
    return float(loss + 0.5 * strength * np.square(weight).sum())


@pytest.mark.parametrize("n, dim, k", CASES)
@pytest.mark.parametrize("scale", ["common", "column"])
def test_coefficients_and_objective_are_those_of_scikit_learn(n: int, dim: int, k: int, scale: str) -> None:
    linear = pytest.importorskip("sklearn.linear_model")
    features, labels = made(n, dim, k)
    for strength in (1.0, 0.01):
        fit = fit_logistic(features, labels, k, strength=strength, scale=scale)
        z = (features - fit.mean) / fit.scale
        theirs = linear.LogisticRegression(C=1 / strength, tol=1e-12, max_iter=20_000).fit(z, labels)
        weight = rows_of(fit, k)
        assert np.abs(weight - theirs.coef_).max() <= 1e-4 * max(1.0, np.abs(theirs.coef_).max())
        ours = objective(z, labels, weight, np.diff(fit.bias) if k == 2 else fit.bias, strength)
        other = objective(z, labels, theirs.coef_, theirs.intercept_, strength)
        assert ours <= other * (1 + 1e-9)
        assert fit.logits(features).argmax(axis=1).tolist() == theirs.predict(z).tolist()


def test_sample_weights_are_repeated_rows() -> None:
    features, labels = made(80, 12, 3)
    times = np.random.default_rng(1).integers(1, 4, len(labels))
    mean, scale = standardisation(features, "common")
    z = ((features - mean) / scale).astype(np.float32)
    weighted = fit_logistic(z, labels, 3, strength=0.1, sample_weight=times)
    linear = pytest.importorskip("sklearn.linear_model")
    inside = (z - weighted.mean) / weighted.scale
    theirs = linear.LogisticRegression(C=10, tol=1e-12, max_iter=20_000)
    theirs.fit(np.repeat(inside, times, axis=0), np.repeat(labels, times))
    assert np.abs(weighted.weight - theirs.coef_).max() <= 1e-4


@given(st.integers(0, 50), st.sampled_from([2, 3]), st.sampled_from(["common", "column"]))
@settings(max_examples=15, deadline=None)
def test_the_gradient_vanishes_at_the_fit(seed: int, k: int, scale: str) -> None:
    features, labels = made(50, 8, k, seed)
    fit = fit_logistic(features, labels, k, strength=0.3, scale=scale)
    z = (features - fit.mean) / fit.scale
    assert np.square(z).sum(axis=1).mean() == pytest.approx(1.0, rel=1e-5)
    logits = fit.logits(features)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    gradient = (p - np.eye(k)[labels]).T @ z
    if k == 2:  # one row of weights carries the penalty
        assert np.abs(gradient[1] + 0.3 * rows_of(fit, 2)[0]).max() < 1e-6
    else:
        assert np.abs(gradient + 0.3 * fit.weight).max() < 1e-6


def test_same_bits_on_every_run_and_with_any_number_of_threads() -> None:
    features, labels = made(200, 64, 3)
    first = fit_logistic(features, labels, 3, strength=0.1)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            again = fit_logistic(features, labels, 3, strength=0.1)
            assert (first.weight == again.weight).all()
            assert (first.bias == again.bias).all()
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("n, dim, k", CASES)
def test_order_of_rows_changes_logits_by_rounding_alone(n: int, dim: int, k: int) -> None:
    features, labels = made(n, dim, k)
    order = np.random.default_rng(3).permutation(n)
    for strength in (1.0, 0.01):
        one = fit_logistic(features, labels, k, strength=strength)
        two = fit_logistic(features[order], labels[order], k, strength=strength)
        # mean and scale are kept in float32, whose last bit may follow the order of the sum
        assert np.abs(one.logits(features) - two.logits(features)).max() < 1e-5


def test_strength_bounds_the_norm_on_separable_data() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    features = (rng.normal(size=(40, 60)) + 6 * labels[:, None]).astype(np.float32)
    norms = []
    for strength in (1e-8, 1e-4, 1e-2, 1.0, 100.0):
        fit = fit_logistic(features, labels, 2, strength=strength)
        norms.append(np.linalg.norm(rows_of(fit, 2)))
        # the objective at 0 is n log 2, and none of the losses is negative
        assert 0.5 * strength * norms[-1] ** 2 <= 40 * np.log(2) + 1e-9
    assert norms == sorted(norms, reverse=True)
    assert np.isfinite(norms).all()


def test_out_of_fold_logits_are_those_of_a_fit_on_the_other_folds() -> None:
    features, labels = made(120, 30, 3)
    fold = np.arange(120) % 4
    for strength, logits in out_of_fold_path(features, labels, fold, 3, strengths=[0.1, 1.0]):
        mean, scale = standardisation(features, "common")
        z = (features - mean) / scale
        linear = pytest.importorskip("sklearn.linear_model")
        for index in range(4):
            rest, held = fold != index, fold == index
            theirs = linear.LogisticRegression(C=1 / strength, tol=1e-12, max_iter=20_000).fit(z[rest], labels[rest])
            expected = z[held] @ theirs.coef_.T + theirs.intercept_
            centred = logits[held] - logits[held].mean(axis=1, keepdims=True)
            assert np.abs(centred - (expected - expected.mean(axis=1, keepdims=True))).max() < 5e-3


def test_labels_cannot_be_learned_from_the_row_itself_out_of_fold() -> None:
    """One column per row: in sample every label can be read off, out of fold there is nothing to read."""
    rng = np.random.default_rng(5)
    features, labels = np.eye(200, dtype=np.float32), rng.integers(0, 2, 200)
    inside = fit_logistic(features, labels, 2, strength=1e-3).logits(features)
    assert (inside.argmax(axis=1) == labels).all()  # the control: a leak would look like this
    (_, outside), *_ = out_of_fold_path(features, labels, np.arange(200) % 5, 2, strengths=[1e-3])
    assert abs((outside.argmax(axis=1) == labels).mean() - 0.5) <= 3 * np.sqrt(0.25 / 200) + 0.05


def test_a_class_that_a_fold_lacks_is_not_answered_there() -> None:
    features, labels = made(60, 10, 3)
    fold = np.where(labels == 2, 0, np.arange(60) % 3)
    (_, logits), *_ = out_of_fold_path(features, labels, fold, 3, strengths=[0.1])
    assert np.isfinite(logits).all()
    assert (logits[fold == 0].argmax(axis=1) != 2).all()


def test_bad_input_is_named() -> None:
    features, labels = made(30, 5, 2)
    broken = features.copy()
    broken[3, 1] = np.nan
    with pytest.raises(DataError, match="row 3 hold NaN"):
        fit_logistic(broken, labels, 2, strength=1.0)
    with pytest.raises(DataError, match="class 1 has no image"):
        fit_logistic(features, np.zeros(30, dtype=np.int64), 2, strength=1.0)
    for strength in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(DataError, match="strength"):
            fit_logistic(features, labels, 2, strength=strength)
    with pytest.raises(DataError, match="scale: 'each'"):
        fit_logistic(features, labels, 2, strength=1.0, scale="each")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="at least two"):
        next(out_of_fold_path(features, labels, np.zeros(30, dtype=np.int64), 2, strengths=[1.0]))
    with pytest.raises(DataError, match="sample_weight"):
        fit_logistic(features, labels, 2, strength=1.0, sample_weight=-np.ones(30))


def test_constant_features_leave_the_prior() -> None:
    labels = np.array([0] * 30 + [1] * 10)
    fit = fit_logistic(np.ones((40, 4), dtype=np.float32), labels, 2, strength=1.0)
    assert np.diff(fit.bias)[0] == pytest.approx(np.log(10 / 30), abs=1e-5)
