"""Confidence scores of a K-class classifier from its logits: which answers to trust first.

All are [N] floats, higher = more likely right, made so that they do not saturate: where softmax prints 1.0 for a
thousand rows, these still tell them apart. Two classes: msp, margin and entropy give one and the same order.
Each takes logits [N, K] and raises DataError for NaN, infinity, K < 2 or a score that says nothing there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from stage1.documents import finite_or_none
from stage1.errors import ConfigError, DataError
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking
from stage1.scores import Scores

PNORMS = (1, 2, 3, 4, 5, 6, 7, 8, 9)
_PNORM = "maxlogit_pnorm"


def msp(logits: ArrayLike) -> FloatArray:
    """Logit of the largest softmax probability, log(p / (1 - p)): the order of MSP. K = 2: |difference of the logits|."""
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
        raise DataError(f"{_PNORM}: constant (2^(-1/p)) for two classes; use msp")
    if not p >= 1:
        raise DataError(f"{_PNORM}: p = {p}; give 1 or more")
    centred = values - values.mean(axis=1, keepdims=True)
    largest = np.abs(centred).max(axis=1)
    scaled = centred / np.where(largest > 0, largest, 1.0)[:, None]  # so that no power overflows
    norm = (np.abs(scaled) ** p).sum(axis=1) ** (1.0 / p)
    return np.asarray(scaled.max(axis=1) / np.where(norm > 0, norm, 1.0))


CONFIDENCES: dict[str, Callable[[ArrayLike], FloatArray]] = {
    "msp": msp,
    "margin": margin,
    "entropy": entropy,
    "energy": energy,
}


def confidence(name: str, logits: ArrayLike) -> FloatArray:
    """The confidence called `name`, as `choose_confidence` names it: "msp", "energy", "maxlogit_pnorm(3)", ..

    Raises ConfigError for another name, DataError as the score itself does.
    """
    if name in CONFIDENCES:
        return CONFIDENCES[name](logits)
    power = name.removeprefix(f"{_PNORM}(").removesuffix(")")
    try:
        if name == f"{_PNORM}({power})":
            return maxlogit_pnorm(logits, float(power))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
    raise ConfigError(f"confidence: {name!r} is unknown; use {', '.join(CONFIDENCES)} or {_PNORM}(p)")


def choose_confidence(select: Scores, *, pnorms: Sequence[float] = PNORMS) -> tuple[str, list[dict[str, Any]]]:
    """The confidence with the smallest AUGRC on val_select, and the table that shows it.

    select: labelled scores, never those of the certificate. pnorms: the p that are tried where K > 2.
    Returns (name, rows of {confidence, augrc, auroc_f, note}), in the order tried; augrc is None and note says why where
    a score does not exist. MSP stays unless another is smaller by more than rounding; K = 2: always MSP.
    Raises DataError where there are no labels or no rows.
    """
    truth = select.known_labels
    if not len(select):
        raise DataError("val_select: no rows; a confidence score is chosen on labelled scores")
    wrong = (select.logits.argmax(axis=1) != truth).astype(np.float64)
    names = [*CONFIDENCES, *(f"{_PNORM}({p:g})" for p in pnorms)]
    if select.n_classes == 2:
        names = [name for name in names if not name.startswith(_PNORM)] + [_PNORM]
    best, smallest = "msp", np.inf
    table: list[dict[str, Any]] = []
    for name in names:
        try:
            values = maxlogit_pnorm(select.logits, 1) if name == _PNORM else confidence(name, select.logits)
        except DataError as error:
            table.append({"confidence": name, "augrc": None, "auroc_f": None, "note": str(error)})
            continue
        accepted = Ranking(values, wrong).accept(np.ones(len(select)))
        found = float(accepted.augrc)
        area = finite_or_none(float(STATISTICS["auroc_failure"](accepted)))
        table.append({"confidence": name, "augrc": found, "auroc_f": area, "note": None})
        # Two classes: the others repeat MSP's order, but for rounding, or (energy) hold the logits' common part.
        if found < smallest - 1e-12 and (name == "msp" or select.n_classes > 2):
            best, smallest = name, found
    return best, table


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
