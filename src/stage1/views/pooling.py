"""The logits of an image from those of its views: mean, top-k mean, log-sum-exp, noisy-or, max, whole view."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import ConfigError
from stage1.late import library
from stage1.views.base import Floats, as_logits, checked, margins

special = library("scipy.special")

MULTICLASS = ("whole", "mean")
"""The pools that more than two classes have."""
_SMALL = -37.0  # below it log1p(e^m) is e^m to the last bit


@dataclass(frozen=True, slots=True)
class Pool:
    """An aggregator without parameters of its own: "whole", "mean", "topk:3", "lse:8", "noisy_or" or "max".

    Raises ConfigError for another name, or a number that makes no sense.
    """

    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", pool_name(self.name))

    @property
    def views(self) -> None:
        return None

    def __call__(self, view_logits: ArrayLike) -> Floats:
        logits = checked(view_logits)
        if logits.shape[2] == 2:
            return as_logits(_pool(self.name)(logits[..., 1] - logits[..., 0]))
        if self.name not in MULTICLASS:
            raise ConfigError(
                f"views.aggregate: {self.name} is for two classes, there are {logits.shape[2]}; use "
                f"{' or '.join(MULTICLASS)}"
            )
        return logits[:, 0].copy() if self.name == "whole" else np.asarray(logits.mean(axis=1))

    def contributions(self, view_logits: ArrayLike) -> Floats:
        m = margins(view_logits)
        k = m.shape[1]
        if self.name in ("whole", "max"):
            k = 1
        elif self.name.startswith("topk:"):
            k = int(_number(self.name))
        if k >= m.shape[1]:
            return m
        places = (
            np.zeros((len(m), 1), dtype=np.intp)
            if self.name == "whole"
            else np.argsort(-m, axis=1, kind="stable")[:, :k]
        )
        said = np.full(m.shape, np.nan)
        np.put_along_axis(said, places, np.take_along_axis(m, places, axis=1), axis=1)
        return said

    def to_document(self) -> dict[str, Any]:
        return {"name": self.name}


# ---- pools of margins --------------------------------------------------------------------------------------------


def topk_mean(m: Floats, k: int) -> Floats:
    """Mean of the k largest of each row of float [N, V]; of all where there are fewer."""
    if k >= m.shape[1]:
        return np.asarray(m.mean(axis=1))
    return np.asarray(np.partition(m, -k, axis=1)[:, -k:].mean(axis=1))


def log_mean_exp(m: Floats, beta: float) -> Floats:
    """log(mean(exp(beta m))) / beta of each row: mean for small beta, maximum for large; equal views unchanged."""
    top = m.max(axis=1)
    return np.asarray(top + np.log(np.exp(beta * (m - top[:, None])).mean(axis=1)) / beta)


def noisy_or(m: Floats) -> Floats:
    """The logit of 1 - prod(1 - sigma(m)): at least one view shows class 1, were they independent.

    With S = sum log(1 + e^m) that probability has odds e^S - 1. Both ends are exact: S where it is large, log S (from
    the logarithms of its terms) where all of them vanish.
    """
    terms = np.logaddexp(0.0, m)
    total = terms.sum(axis=1)
    log_terms = np.where(m < _SMALL, m, np.log(np.maximum(terms, np.finfo(np.float64).tiny)))
    log_total = special.logsumexp(log_terms, axis=1)
    return np.asarray(
        np.where(total < 1e-8, log_total + total / 2, total + np.log(-np.expm1(-np.maximum(total, 1e-8))))
    )


def _whole(m: Floats) -> Floats:
    return np.array(m[:, 0])


def _mean(m: Floats) -> Floats:
    return np.asarray(m.mean(axis=1))


def _max(m: Floats) -> Floats:
    return np.asarray(m.max(axis=1))


_PLAIN: dict[str, Callable[[Floats], Floats]] = {"whole": _whole, "mean": _mean, "max": _max, "noisy_or": noisy_or}


def pool_name(name: str) -> str:
    """The one spelling of a pool: "topk:3" for "topk:3.0". Raises ConfigError: no pool, or a bad number."""
    kind, _, text = name.partition(":")
    if name in _PLAIN:
        return name
    if kind not in ("topk", "lse"):
        raise ConfigError(f"views.aggregate: {name!r} is no pool; use {', '.join(_PLAIN)}, topk:3 or lse:8")
    # Digits of ASCII alone: Python reads "1_0" and " 8" as numbers too, a document must not hold them.
    plain = re.fullmatch(r"[0-9.eE+-]+", text) is not None
    try:
        value = float(text) if plain else math.nan
    except ValueError:
        value = math.nan
    if kind == "lse" and 0 < value < 1e6:
        return name
    if kind == "topk" and 1 <= value < 1e6 and value == int(value):
        return name if text.isdecimal() else f"topk:{int(value)}"
    raise ConfigError(
        f"views.aggregate: {name!r}; give {'how many views, topk:3' if kind == 'topk' else 'a number above 0, lse:8'}"
    )


def _pool(name: str) -> Callable[[Floats], Floats]:
    """Of a name that `pool_name` gives."""
    kind = name.partition(":")[0]
    if kind == "topk":
        return partial(topk_mean, k=int(_number(name)))
    if kind == "lse":
        return partial(log_mean_exp, beta=_number(name))
    return _PLAIN[name]


def _number(name: str) -> float:
    return float(name.partition(":")[2])
