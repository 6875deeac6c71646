"""Simulated view logits: shared-scene views as in ALGORITHMS 9, and scenes whose object is in a few of the tiles."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.runtime.crops import ViewPolicy

TEN = ViewPolicy(grid=(3, 3))


def as_view_logits(margins):
    return np.stack([-margins / 2, margins / 2], axis=2)


def shared_scene(n, seed, rate=0.2, separation=2.581, own=0.33):
    """Ten views of one scene, each calibrated by itself: the class shifts all, two thirds of the noise is common to
    all.
    """
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < rate).astype(np.int64)
    x = separation * labels[:, None] + np.sqrt(1 - own) * rng.standard_normal((n, 1))
    x = x + np.sqrt(own) * rng.standard_normal((n, 10))
    return as_view_logits(separation * x - separation**2 / 2 + np.log(rate / (1 - rate))), labels


def small_objects(n, seed, rate=0.5):
    """The object fills two or three of nine tiles, more often those in front; its size differs, and the whole view
    sees it poorly.
    """
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < rate).astype(np.int64)
    size = 1.0 + rng.gamma(3.0, 1.0, n)
    front = rng.random((n, 9)) * np.array([0.5, 0.5, 0.5, 0.8, 0.8, 0.8, 1, 1, 1])
    holds = front.argsort(axis=1).argsort(axis=1) < (2 + rng.integers(0, 2, n))[:, None]
    common = 0.5 * rng.standard_normal((n, 1))
    tiles = 1.2 * size[:, None] * (labels[:, None] & holds) + rng.standard_normal((n, 9)) + common
    whole = 1.1 * (size * labels)[:, None] + rng.standard_normal((n, 1)) + common
    return as_view_logits(np.concatenate([1.6 * whole - 2.0, 1.8 * tiles - 3.0], axis=1)), labels


@pytest.fixture(scope="session")
def ten():
    return TEN


@pytest.fixture(scope="session")
def draw_shared():
    return shared_scene


@pytest.fixture(scope="session")
def draw_small():
    return small_objects
