"""Conformal risk control: the case by hand, the definition, and the mean over calibration sets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.errors import DataError
from stage1.risk import crc_threshold


def miss_table(scores, lambdas):
    """Loss 1 where a positive's score lies below 1 - lambda."""
    return (np.asarray(scores)[:, None] < 1 - np.asarray(lambdas)[None, :]).astype(float)


def test_by_hand():
    # n = 9, alpha = .2: the sum may be at most .2 * 10 - 1 = 1
    sums = np.array([9, 2, 1, 0])
    losses = (np.arange(9)[:, None] < sums).astype(float)
    assert crc_threshold(losses, [0.1, 0.2, 0.3, 0.4], 0.2) == 0.3
    assert crc_threshold(losses, [0.1, 0.2, 0.3, 0.4], 0.1) == 0.4
    assert (
        crc_threshold(losses, [0.1, 0.2, 0.3, 0.4], 0.09) is None
    )  # fewer than 1 / alpha - 1 samples: nothing is feasible


@given(st.integers(1, 60), st.floats(0.02, 0.9), st.integers(0, 10_000))
def test_equals_the_definition(n, alpha, seed):
    lambdas = np.linspace(0, 1, 41)
    table = miss_table(np.random.default_rng(seed).random(n), lambdas)
    allowed = np.floor((n + 1) * alpha + 1e-9) - 1
    good = [value for value, column in zip(lambdas, table.T, strict=True) if column.sum() <= allowed]
    assert crc_threshold(table, lambdas, alpha) == (min(good) if good else None)


def test_mean_loss_is_bounded_and_close_to_alpha():
    rng, draws, n, alpha = np.random.default_rng(3), 3000, 60, 0.05
    lambdas = np.linspace(0, 1, 2001)
    # a uniform score lies below 1 - lambda with probability 1 - lambda: the true risk of the chosen lambda is known
    risks = [1 - crc_threshold(miss_table(rng.random(n), lambdas), lambdas, alpha) for _ in range(draws)]
    error = np.std(risks) / np.sqrt(draws)
    assert np.mean(risks) <= alpha + 3 * error
    assert (
        np.mean(risks) >= 2 / 61 - 1 / 2000 - 3 * error
    )  # power: allowed = floor(61 * .05) - 1 = 2 misses, E = 3 / 61


@pytest.mark.parametrize(
    "losses, lambdas, alpha, message",
    [
        ([0.0], [0.0], 0.1, "losses"),
        ([[0.0, 0.0]], [0.0], 0.1, "lambdas"),
        ([[0.0, np.nan]], [0.0, 1.0], 0.1, "finite"),
        ([[0.0, 1.0]], [0.0, 1.0], 0.1, "rise"),
        ([[2.0, 1.0]], [0.0, 1.0], 0.1, "loss_bound"),
        ([[1.0, 0.0]], [1.0, 0.0], 0.1, "lambdas"),
        ([[1.0, 0.0]], [0.0, 1.0], 0.0, "alpha"),
        ([[1.0, 0.0]], [0.0, 1.0], 1.0, "alpha"),
    ],
)
def test_bad_arguments_are_named(losses, lambdas, alpha, message):
    with pytest.raises(DataError, match=message):
        crc_threshold(losses, lambdas, alpha)
