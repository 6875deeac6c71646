"""The monotone map from our probability to the client's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.streetvision.classifier import ABOVE_HALF, on_side, remap

PROBABILITY = st.floats(0.0, 1.0)
THRESHOLD = st.floats(1e-6, 1 - 1e-6)


@given(PROBABILITY, THRESHOLD)
def test_the_map_turns_exactly_at_the_threshold(p, threshold):
    answer = remap(p, threshold)
    assert 0.0 <= answer <= 1.0
    assert (answer > 0.5) == (p > threshold)
    # What a client that narrows to 32 bits sees.
    assert (float(np.float32(answer)) > 0.5) == (p > threshold)


@given(PROBABILITY, PROBABILITY, THRESHOLD)
def test_the_map_never_falls(p, q, threshold):
    low, high = sorted((p, q))
    assert remap(low, threshold) <= remap(high, threshold) + 1e-15


@given(THRESHOLD)
def test_the_map_is_exactly_one_half_at_the_threshold_and_keeps_the_ends(threshold):
    assert remap(threshold, threshold) == 0.5
    assert (remap(0.0, threshold), remap(1.0, threshold)) == (0.0, 1.0)


@given(PROBABILITY)
def test_a_threshold_of_one_half_changes_nothing(p):
    assert remap(p, 0.5) == pytest.approx(p, abs=1e-7)


def test_the_map_is_linear_in_log_odds_between_its_knots():
    def logit(p):
        return math.log(p / (1 - p))

    threshold, grid = 0.8, np.linspace(0.81, 0.999, 9)
    slopes = np.diff([logit(remap(p, threshold)) for p in grid]) / np.diff([logit(p) for p in grid])
    assert slopes == pytest.approx(12 / (12 - logit(threshold)))
    below = np.linspace(0.01, 0.79, 9)
    slopes = np.diff([logit(remap(p, threshold)) for p in below]) / np.diff([logit(p) for p in below])
    assert slopes == pytest.approx(12 / (12 + logit(threshold)))


@given(PROBABILITY)
def test_an_exit_keeps_its_side(answer):
    assert on_side(answer, True) >= ABOVE_HALF
    assert on_side(answer, False) <= 0.5
