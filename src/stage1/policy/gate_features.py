"""What a gate reads: features of the scores by name, and columns that the caller gives."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.late import library
from stage1.scores import Scores

special = library("scipy.special")

Floats = NDArray[np.float64]
Extra = Mapping[str, ArrayLike]

OWN = ("margin", "entropy", "gate")
_LARGEST = 1e12
_LINEAR = 30.0  # sigmoid(30) is 1 - 1e-13: beyond, a logit says how a model saturates and little else


def feature(name: str, scores: Scores, extra: Extra | None) -> Floats:
    """One feature, float [N]: margin, entropy or gate of the scores, or the column of that name.

    Raises DataError for a column that is missing or cannot be used.
    """
    if name == "margin":
        top = np.partition(scores.logits, -2, axis=1)
        return tamed(np.minimum(top[:, -1] - top[:, -2], np.finfo(np.float64).max))
    if name == "entropy":
        return np.asarray(special.entr(scores.probabilities).sum(axis=1))
    if name == "gate":
        return gate_logit(scores)
    if extra is None or name not in extra:
        raise DataError(f"extra: no column {name!r}; the gate was fitted with it, give it for every image")
    return _checked(name, extra[name], len(scores))


def gate_logit(scores: Scores) -> Floats:
    """The gate logit, tamed, float [N]. Raises DataError where there is none."""
    if scores.gate is None:
        raise DataError("gate: these scores carry no gate logits; give them, or fit the gate with source=meta")
    return tamed(scores.gate)


def tamed(values: Floats) -> Floats:
    """Strictly rising, identity up to +-30, logarithmic beyond: saturated rows must not set a column's scale."""
    size = np.abs(values)
    return np.where(size <= _LINEAR, values, np.sign(values) * (_LINEAR + np.log1p(np.maximum(size - _LINEAR, 0.0))))


def checked_extra(extra: Extra | None, n: int) -> dict[str, Floats]:
    """The caller's columns as float [n] each. Raises DataError naming it: reserved name, shape, NaN, beyond 1e12."""
    for name in extra or {}:
        if name in OWN or "*" in name or not name:
            raise DataError(f"extra: a column may not be called {name!r}; {', '.join(OWN)} are made from the scores")
    return {name: _checked(name, values, n) for name, values in (extra or {}).items()}


def _checked(name: str, values: ArrayLike, n: int) -> Floats:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"extra.{name}: not numbers ({error})") from error
    if array.shape != (n,):
        raise DataError(f"extra.{name}: shape {array.shape}; one value for each of the {n} rows")
    bad = ~(np.abs(array) <= _LARGEST)
    if bad.any():
        row = int(bad.argmax())
        raise DataError(f"extra.{name}: row {row} is {array[row]}; give finite values up to 1e12, or drop these rows")
    return array
