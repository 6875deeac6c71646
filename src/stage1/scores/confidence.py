"""Confidence scores of a K-class classifier from its logits: which answers to trust first.

All are [N] floats, higher = more likely right, made so that they do not saturate: where softmax prints 1.0 for a
thousand rows, these still tell them apart. Two classes: msp, margin and entropy give one and the same order.
Each takes logits [N, K] and raises DataError for NaN, infinity, K < 2 or a score that says nothing there.
Which of them to use is chosen by `stage1.evaluation.score_selection.choose_confidence`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import ConfigError, DataError

FloatArray = NDArray[np.float64]

PNORMS = (1, 2, 3, 4, 5, 6, 7, 8, 9)
PNORM = "maxlogit_pnorm"


def msp(logits: ArrayLike) -> FloatArray:
    """Logit of the largest softmax probability, log(p / (1 - p)): MSP's order. K = 2: |difference of logits|."""
    gaps = _gaps(logits)[:, :-1]
    second = gaps[:, -1]
    return np.asarray(-second - np.log(np.exp(gaps - second[:, None]).sum(axis=1)))


def margin(logits: ArrayLike) -> FloatArray:
    """Largest logit less the second: log of the ratio of the two largest probabilities."""
    return -_gaps(logits)[:, -2]


def entropy(logits: ArrayLike) -> FloatArray:
    """Minus the entropy of the softmax in nats, in [-log K, 0]."""
    gaps = _gaps(logits)
    # log of the sum as log1p, so that the surprise of a sure answer is 1e-40 and not 0
    surprise = np.log1p(np.exp(gaps[:, :-1]).sum(axis=1))[:, None] - gaps
    return np.asarray(-(np.exp(-surprise) * surprise).sum(axis=1))


def energy(logits: ArrayLike) -> FloatArray:
    """log sum exp of the logits (Liu et al. 2020, temperature 1). Needs raw logits: of log-probabilities it is 0."""
    values = _checked(logits)
    top = values.max(axis=1)
    found = top + np.log(np.exp(values - top[:, None]).sum(axis=1))
    if np.abs(found).max(initial=0.0) < 1e-9:
        raise DataError("logits: log-probabilities (their exponentials sum to 1), of which energy is always 0; use msp")
    return np.asarray(found)


def maxlogit_pnorm(logits: ArrayLike, p: float) -> FloatArray:
    """Largest centred logit over the p-norm of the centred logits, p >= 1 (Cattelan and Silva, UAI 2024). K >= 3.

    Two classes: centred logits are (d, -d), so it is 2^(-1/p) for every row; refused. A row of equal logits gives 0.
    """
    values = _checked(logits)
    if values.shape[1] == 2:
        raise DataError(f"{PNORM}: constant (2^(-1/p)) for two classes; use msp")
    if not p >= 1:
        raise DataError(f"{PNORM}: p = {p}; give 1 or more")
    centred = values - values.mean(axis=1, keepdims=True)
    largest = np.abs(centred).max(axis=1)
    scaled = centred / np.where(largest > 0, largest, 1.0)[:, None]  # so that no power overflows
    norm = (np.abs(scaled) ** p).sum(axis=1) ** (1.0 / p)
    found = scaled.max(axis=1) / np.where(norm > 0, norm, 1.0)
    # The mean of equal numbers may be off by a rounding, which the norm would blow up.
    return np.where(values.max(axis=1) > values.min(axis=1), found, 0.0)


CONFIDENCES: dict[str, Callable[[ArrayLike], FloatArray]] = {
    "msp": msp,
    "margin": margin,
    "entropy": entropy,
    "energy": energy,
}


def confidence(name: str, logits: ArrayLike) -> FloatArray:
    """The confidence called `name`, as `choose_confidence` names it: "msp", "energy", "maxlogit_pnorm(3)", ..

    Raises ConfigError for another name, DataError as the score itself does.

    >>> confidence("margin", [[0.0, 2.0], [1.0, 0.5]]).tolist()
    [2.0, 0.5]
    """
    if name in CONFIDENCES:
        return CONFIDENCES[name](logits)
    power = _power(name)
    if power is None:
        raise ConfigError(f"confidence: {name!r} is unknown; use {', '.join(CONFIDENCES)} or {PNORM}(p)")
    return maxlogit_pnorm(logits, power)


def known(name: str) -> bool:
    """Whether `confidence` knows the name (and, for a p-norm, p >= 1)."""
    power = _power(name)
    return name in CONFIDENCES or (power is not None and power >= 1)


def _power(name: str) -> float | None:
    """p of "maxlogit_pnorm(p)", None for any other name."""
    inner = name.removeprefix(f"{PNORM}(").removesuffix(")")
    try:
        return float(inner) if name == f"{PNORM}({inner})" else None
    except ValueError:
        return None


def _gaps(logits: ArrayLike) -> FloatArray:
    """Logits in rising order less the largest: [N, K], the last column 0."""
    ordered = np.sort(_checked(logits), axis=1)
    with np.errstate(over="ignore"):
        gaps = ordered - ordered[:, -1:]
    if not np.isfinite(gaps).all():
        raise DataError("logits: differences overflow; rescale them")
    return np.asarray(gaps)


def _checked(logits: ArrayLike) -> FloatArray:
    values = np.asarray(logits, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] < 2:
        raise DataError(f"logits: shape {values.shape}; give [N, K], one column for each of 2 or more classes")
    bad = ~np.isfinite(values)
    if bad.any():
        raise DataError(f"logits: row {int(np.argwhere(bad)[0][0])} has NaN or infinity; fix or drop these rows")
    return values
