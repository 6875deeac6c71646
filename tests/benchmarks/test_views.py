"""The views benchmark: heads trained through the pool, and the loop that is timed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from pytest import approx
from scipy import special

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from view_bench import heads as view_heads  # noqa: E402


def bags(n, seed):
    """Bags of four, a positive one holds one shifted row; the first row says nothing."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    x = rng.normal(size=(n, 4, 6)).astype(np.float32)
    x[np.arange(n), rng.integers(1, 4, n), 0] += 4.0 * labels
    return x, labels.astype(np.int64)


@pytest.mark.parametrize("pool", ["mean", "lse:1", "lse:8"])
def test_the_slope_of_a_pool_is_its_finite_difference(pool):
    margin = np.random.default_rng(0).normal(size=(5, 4))
    value, share = view_heads._pooled(margin, pool)
    for view in range(4):
        moved = margin.copy()
        moved[:, view] += 1e-6
        assert (view_heads._pooled(moved, pool)[0] - value) / 1e-6 == approx(share[:, view], abs=1e-5)


@pytest.mark.parametrize("how", list(view_heads.TRAINED))
def test_the_optimum_is_reached(how):
    """No step in any direction lowers the penalised loss, recomputed here from the head alone."""
    x, labels = bags(200, seed=1)
    head = view_heads.train(x, labels, how, 0.01)

    def loss(slopes, shift):
        m = ((x - head.middle) / head.scale) @ slopes + shift
        m = m[:, :1] if how == "whole" else m
        if how.startswith("mil"):
            m = view_heads._pooled(m, how.removeprefix("mil:"))[0][:, None]
        fit = (np.logaddexp(0, m) - labels[:, None] * m).mean()
        return fit + 0.005 * (slopes**2).sum()

    best = loss(head.slopes.astype(float), head.shift)
    rng = np.random.default_rng(2)
    for _ in range(20):
        step = 1e-2 * rng.normal(size=7)
        assert loss(head.slopes + step[:6], head.shift + step[6]) >= best - 1e-7


def test_through_the_pool_a_head_finds_the_row_that_counts():
    x, labels = bags(600, seed=3)
    test, truth = bags(2000, seed=4)
    right = {}
    for how, pool in (("whole", "max"), ("views", "lse:1"), ("mil:lse:1", "lse:1")):
        m = view_heads.train(x, labels, how, 0.001).margins(test)
        score = m.max(axis=1) if pool == "max" else special.logsumexp(m, axis=1)
        right[how] = ((score > np.median(score)) == truth).mean()
    assert right["mil:lse:1"] > 0.9
    assert right["mil:lse:1"] > right["whole"] + 0.05
    assert right["mil:lse:1"] >= right["views"] - 0.01
