"""The monotone map from our probability to the client's: our decision threshold lands on exactly 0.5."""

from __future__ import annotations

import math

# The client may narrow the float to 32 bits: the smallest answer above one half must survive that.
ABOVE_HALF = 0.5 + 2.0**-24
_EDGE = 12.0  # log odds from which a probability (6e-6 from its end) is left as it is


def remap(probability: float, threshold: float) -> float:
    """The client's answer for a probability: above 0.5 iff probability > threshold, exactly 0.5 where they are equal.

    Piecewise linear in log odds: threshold -> 0, -12 and 12 stay where they are, and so does what lies beyond them (a
    threshold outside that range moves the border with it). Rising; the identity for threshold 0.5.

    probability: in [0, 1]. threshold: in (0, 1).

    >>> [round(remap(p, 0.8), 3) for p in (0.0, 0.2, 0.8, 0.9, 1.0)]
    [0.0, 0.063, 0.5, 0.713, 1.0]
    """
    z, t = _logit(probability), _logit(threshold)
    edge = max(_EDGE, abs(t) + 1.0)
    if probability == threshold:
        z = 0.0
    elif abs(z) < edge:
        z = (z - t) * edge / (edge - t if z > t else edge + t)
    return on_side(_sigmoid(z), probability > threshold)


def on_side(answer: float, roadwork: bool) -> float:
    """The answer, moved no further than to the border of the side on which it has to lie (0.5 itself is none)."""
    return max(answer, ABOVE_HALF) if roadwork else min(answer, 0.5)


def _logit(p: float) -> float:
    if p <= 0.0 or p >= 1.0:
        return -math.inf if p <= 0.0 else math.inf
    return math.log(p) - math.log1p(-p)


def _sigmoid(z: float) -> float:
    return 1.0 / (1.0 + math.exp(-z)) if z >= 0 else math.exp(z) / (1.0 + math.exp(z))
