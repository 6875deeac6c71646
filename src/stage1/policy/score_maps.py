"""Maps from scores to P(y = 1), fitted on val_select, and how far each is believed (ALGORITHMS 2.4, 13).

| map | parameters | strong where |
|---|---|---|
| Platt | 2 | many labels, a logit that is linear in the score |
| ranks | 4 | many labels, saturated scores; it loses the shape of the tails |
| mean | 3, counted half-way | the mean of both logits |
| shared | 2 | few labels, both classes normal with one spread: all labels place the even odds, not only those nearby |
| shared ranks | 2 | the same on normal scores of ranks |
| mean of four | 3 | the mean of the logits of Platt, ranks and these two |
| own | 0 | the score is the log odds, as a model states them: needs no label at all |

The first three are always asked. The others assume more and are worth most where labels are few; each is asked only
while the labels of val_select do not speak against it: log-likelihood less the penalty of BIC within `_REFUTED` of the
best. `own` has no parameter, so it leads until labels refute it, and a score that is no log odds is refuted by a
handful. Nothing here touches validity: a map orders thresholds before a calibration label is seen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from stage1.late import library

special = library("scipy.special")

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

_SATURATED = 40.0  # a logit beyond this is a probability that doubles cannot tell from 0 or 1
_EVEN = 0.6  # of .1, .3, .6 the one that lost nowhere (Gaussian, COCO, CIFAR-10 pairs); see benchmarks/power.py
OWN = "own"
_PARAMETERS = {"Platt": 2, "ranks": 4, "mean": 3, "shared": 2, "shared ranks": 2, "mean of four": 3, OWN: 0}
_ALWAYS = frozenset({"Platt", "ranks", "mean"})
_REFUTED = 5.0  # a Bayes factor of 150: "very strong" (Kass and Raftery 1995)


@cache
def _kernel() -> Floats:
    """Nine points of equal weight that stand for a standard normal. float [9]."""
    points: Floats = special.ndtri((np.arange(9) + 0.5) / 9)
    return points


def smoothed(score: Floats) -> Floats:
    """Sorted grid of scores: each distinct one spread by a Gaussian kernel, tied ones kept. float [G]."""
    kernel = _kernel()
    values, counts = np.unique(score, return_counts=True)
    single = values[counts == 1]
    tied = np.repeat(values[counts > 1], counts[counts > 1] * len(kernel))
    if len(single) < 2:
        return np.repeat(np.sort(score), len(kernel))
    # The core of the distribution sets the bandwidth: a saturated tail must not widen it.
    low, high = np.quantile(single, [0.25, 0.75])
    width = 0.9 * min(float(single.std()), float(high - low) / 1.349) * len(single) ** -0.2
    return np.sort(np.concatenate([(single[:, None] + width * kernel[None, :]).ravel(), tied]))


def believed_maps(score: Floats, labels: Labels, grid: Floats) -> tuple[dict[str, Floats], Floats]:
    """(P(y = 1) on the grid by map, weight of each, float [M], sum 1): the maps that val_select does not refute.

    score: float [N]; labels: int [N] in {0, 1}, both present; grid: float [G] sorted.
    Weights: posterior model probabilities by BIC, and an even share for every map, half of it for `own` where it is
    left. The even share stays since the likelihood hardly sees the tails, and the tails are what is certified.

    >>> score = np.random.default_rng(0).normal(size=400)
    >>> labels = (np.random.default_rng(1).random(400) < special.expit(score)).astype(np.int64)
    >>> found, trust = believed_maps(score, labels, np.sort(score))
    >>> "own" in found, round(float(trust.sum()), 6)
    (True, 1.0)
    >>> "own" in believed_maps(score + 3, labels, np.sort(score + 3))[0]
    False
    """
    maps = _maps(score, labels, grid)
    value = {}
    for name, posterior in maps.items():
        p = np.clip(np.interp(score, grid, posterior), 1e-12, 1 - 1e-12)
        likelihood = float(np.log(np.where(labels == 1, p, 1 - p)).sum())
        value[name] = likelihood - _PARAMETERS[name] / 2 * np.log(len(score))
    best = max(value.values())
    maps = {name: p for name, p in maps.items() if name in _ALWAYS or value[name] >= best - _REFUTED}
    weights = np.exp(np.array([value[name] for name in maps]) - max(value[name] for name in maps))
    return maps, (1 - _EVEN) * weights / weights.sum() + _EVEN * _even(maps)


def _even(maps: Mapping[str, Floats]) -> Floats:
    even = np.full(len(maps), 1 / len(maps))
    own = np.array([name == OWN for name in maps])
    return np.asarray((even + own) / 2 if own.any() else even)


def _maps(score: Floats, labels: Labels, grid: Floats) -> dict[str, Floats]:
    ordered = np.sort(score)

    def clipped(s: Floats) -> Floats:
        return np.clip(s, -_SATURATED, _SATURATED)

    def normal(s: Floats) -> Floats:
        # Mid-ranks: a tied block gets the normal score of its middle.
        place = (np.searchsorted(ordered, s, side="left") + np.searchsorted(ordered, s, side="right")) / 2
        return np.asarray(special.ndtri(np.clip(place / len(ordered), 0.5 / len(ordered), 1 - 0.5 / len(ordered))))

    def ranks(s: Floats) -> Floats:
        z = normal(s)
        return np.stack([z, np.maximum(z, 0.0), z**3], axis=1)

    platt = fit_logistic(clipped(score)[:, None], labels)(clipped(grid)[:, None])
    ranked = fit_logistic(ranks(score), labels)(ranks(grid))
    shared, shared_ranks = (_shared(x(score), labels)(x(grid)) for x in (clipped, normal))
    logits = {
        "Platt": platt,
        "ranks": ranked,
        "mean": (platt + ranked) / 2,
        "shared": shared,
        "shared ranks": shared_ranks,
        "mean of four": (platt + ranked + shared + shared_ranks) / 4,
        OWN: clipped(grid),
    }
    return {name: special.expit(logit) for name, logit in logits.items()}


def _shared(x: Floats, labels: Labels) -> Callable[[Floats], Floats]:
    """Log odds of two normal classes with one variance (Fisher 1936), x float [N]."""
    positive, negative = x[labels == 1], x[labels == 0]
    variance = (((positive - positive.mean()) ** 2).sum() + ((negative - negative.mean()) ** 2).sum()) / len(x)
    slope = (positive.mean() - negative.mean()) / max(float(variance), 1e-12)
    middle = (positive.mean() + negative.mean()) / 2
    return lambda s: np.asarray((s - middle) * slope + np.log(len(positive) / len(negative)))


class _Linear:
    """x -> x w + b on standardised columns."""

    def __init__(self, mean: Floats, scale: Floats, weights: Floats) -> None:
        self._mean, self._scale, self._weights = mean, scale, weights

    def __call__(self, x: Floats) -> Floats:
        return np.asarray((x - self._mean) / self._scale @ self._weights[1:] + self._weights[0])


def fit_logistic(x: Floats, labels: NDArray[np.int64], ridge: float = 1e-3) -> _Linear:
    """Logistic regression by Newton's method, x float [N, D] standardised, ridge on slopes (finite if separable).

    Returns a function from [M, D] to logits [M].
    """
    mean, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    design = np.column_stack([np.ones(len(x)), (x - mean) / scale])
    penalty = np.concatenate([[0.0], np.full(x.shape[1], ridge * len(x))])
    weights = np.zeros(design.shape[1])

    def loss(w: Floats) -> float:
        z = design @ w
        return float(np.logaddexp(0.0, z).sum() - z @ labels + 0.5 * (penalty * w) @ w)

    value = loss(weights)
    for _ in range(100):
        p = special.expit(design @ weights)
        gradient = design.T @ (p - labels) + penalty * weights
        hessian = (design * (p * (1 - p))[:, None]).T @ design + np.diag(penalty + 1e-9)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while size > 1e-6 and loss(weights - size * step) > value:
            size /= 2
        weights = weights - size * step
        before, value = value, loss(weights)
        if before - value <= 1e-10 * max(abs(before), 1.0):
            break
    return _Linear(mean, scale, weights)
