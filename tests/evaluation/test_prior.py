"""Weights for another class balance: what resampling the classes would give."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.errors import DataError
from stage1.evaluation import augrc, bootstrap, brier, nll, prior_weights


def test_weighted_shares_are_the_prior():
    labels = np.array([0] * 80 + [1] * 15 + [2] * 5)
    weights = prior_weights(labels, [0.2, 0.3, 0.5])
    assert weights.mean() == pytest.approx(1.0)
    assert [weights[labels == k].sum() / 100 for k in range(3)] == pytest.approx([0.2, 0.3, 0.5])
    assert prior_weights(labels == 0, 0.8) == pytest.approx(np.ones(100))
    assert prior_weights([0, 1, 1], [0.0, 1.0]).tolist() == [0.0, 1.5, 1.5]


def test_metrics_at_a_prior_are_those_of_classes_copied_to_that_balance():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60, 20])
    positive = np.clip(rng.normal(0.3 + 0.3 * labels, 0.2), 0.01, 0.99)
    copies = np.where(labels == 1, 3, 1)  # 60 : 60
    weights = prior_weights(labels, 0.5)
    repeated = np.repeat(positive, copies), np.repeat(labels, copies)
    assert nll(positive, labels, weights) == pytest.approx(nll(*repeated))
    assert brier(positive, labels, weights) == pytest.approx(brier(*repeated))
    wrong, confidence = (positive > 0.5) != labels, np.abs(positive - 0.5)
    expected = augrc(np.repeat(confidence, copies), np.repeat(wrong, copies))
    assert augrc(confidence, wrong, weights) == pytest.approx(expected)
    found = bootstrap({"a": "augrc"}, confidence=confidence, residuals=wrong, labels=labels, weights=weights)["a"]
    assert found.value == pytest.approx(expected)
    assert found.low < expected < found.high


@pytest.mark.parametrize(
    "labels, prior, words",
    [
        ([0, 1], 1.5, "prior: 1.5"),
        ([0, 1], float("nan"), "prior"),
        ([0, 1], [0.5, 0.6], "prior"),
        ([0, 2], 0.5, "labels: 0..2 for a prior of 2"),
        ([1, 1], 0.5, "no row of class 0"),
        ([], 0.5, "at least one row"),
        (["a"], 0.5, "whole numbers"),
    ],
)
def test_bad_priors_are_named(labels, prior, words):
    with pytest.raises(DataError, match=words):
        prior_weights(labels, prior)
