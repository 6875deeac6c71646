"""Linear heads on the features of views, by L-BFGS to the optimum: on the whole view, on every view, or through the
pool (MIL).

No training noise: what differs between the rows of benchmarks/views.py is what they are said to differ in. The ridge is
chosen on val_select.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from stage1.calibration.solver import minimise

Floats = NDArray[np.float64]
Features = NDArray[np.float32]

RIDGES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
TRAINED = {
    "whole": "on the whole view",
    "views": "on every view, each with the image's label",
    "mil:mean": "through the mean of the views",
    "mil:lse:1": "through log-sum-exp",
}


@dataclass(frozen=True)
class LinearHead:
    """margin = (x - middle) / scale @ slopes + shift."""

    middle: NDArray[np.float32]
    scale: NDArray[np.float32]
    slopes: NDArray[np.float32]
    shift: float

    def margins(self, features: Features) -> Floats:
        """float64 [N, V] of features [N, V, D]."""
        weight = self.slopes / self.scale
        return (features @ weight).astype(np.float64) + (self.shift - float(self.middle @ weight))


def train(
    features: Features, labels: NDArray[np.int64], how: str, ridge: float, start: LinearHead | None = None
) -> LinearHead:
    """features: float32 [N, V, D], the first view the whole one; `how` in TRAINED. ridge: of the slopes of standardised
    features.

    Log-sum-exp of positives is not convex: it starts from `start`.
    """
    flat = features.reshape(-1, features.shape[-1])
    middle, scale = flat.mean(axis=0), flat.std(axis=0) + 1e-6
    rows = features[:, :1] if how == "whole" else features
    if how == "whole":
        middle, scale = features[:, 0].mean(axis=0), features[:, 0].std(axis=0) + 1e-6
    n, v = rows.shape[:2]
    design = ((rows - middle) / scale).reshape(n * v, -1)
    pool = how.removeprefix("mil:") if how.startswith("mil:") else ""
    targets = labels.astype(np.float64)

    def objective(theta: Floats) -> tuple[float, Floats]:
        margin = (design @ theta[:-1].astype(np.float32)).astype(np.float64).reshape(n, v) + theta[-1]
        if pool:
            pooled, share = _pooled(margin, pool)
            loss = np.logaddexp(0.0, pooled) - targets * pooled
            slope = ((special.expit(pooled) - targets)[:, None] * share) / n
        else:
            loss = np.logaddexp(0.0, margin) - targets[:, None] * margin
            slope = (special.expit(margin) - targets[:, None]) / (n * v)
        gradient = np.append(
            (slope.reshape(-1).astype(np.float32) @ design).astype(np.float64) + ridge * theta[:-1], slope.sum()
        )
        return float(loss.mean() + 0.5 * ridge * (theta[:-1] ** 2).sum()), gradient

    theta = np.zeros(design.shape[1] + 1) if start is None else np.append(start.slopes, start.shift).astype(np.float64)
    theta = minimise(objective, theta, tolerance=3e-5)
    return LinearHead(middle, scale, theta[:-1].astype(np.float32), float(theta[-1]))


def _pooled(margin: Floats, pool: str) -> tuple[Floats, Floats]:
    """The pooled margin [N] and its derivative to each view's margin [N, V]."""
    n, v = margin.shape
    kind, _, number = pool.partition(":")
    if kind == "mean":
        return margin.mean(axis=1), np.full((n, v), 1 / v)
    beta = float(number)
    return (special.logsumexp(beta * margin, axis=1) - np.log(v)) / beta, special.softmax(beta * margin, axis=1)


def heads(features: Features, labels: NDArray[np.int64]) -> Mapping[tuple[str, float], LinearHead]:
    """(how, ridge) -> a head, for all of TRAINED and RIDGES."""
    found: dict[tuple[str, float], LinearHead] = {}
    for ridge in RIDGES:
        for how in TRAINED:
            start = found.get(("views", ridge)) if how.startswith("mil:") else None
            found[how, ridge] = train(features, labels, how, ridge, start)
    return found
