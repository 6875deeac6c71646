"""From the logits of an image's views to the logits of the image: mean, top-k mean, log-sum-exp, noisy-or, max, or the
whole view alone.

Two classes: a pool works on the margins m = logit_1 - logit_0 of the views and gives one margin a; the image's logits
are (-a/2, +a/2), so that P(0) = 1 - P(1). The largest logit of each class by itself would be no pool: both classes
would gain with every view, and their probabilities would belong to no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from stage1.errors import ConfigError, DataError
from stage1.runtime.crops import ViewPolicy, aggregate_name

Floats = NDArray[np.float64]

DEFAULT_NAMES = ("whole", "mean", "topk:3", "lse:8", "noisy_or", "max", "learned")
"""What `choose_aggregator` compares where nothing else is asked for."""
MULTICLASS = ("whole", "mean")
_SMALL = -37.0  # below it log1p(e^m) is e^m to the last bit


class Aggregator(Protocol):
    """One logit vector for each image from those of its views; a fixed function once made."""

    @property
    def name(self) -> str: ...

    def __call__(self, view_logits: ArrayLike) -> Floats:
        """float64 [N, K] from [N, V, K], views in the order of the ViewPolicy. Raises DataError."""
        ...

    def pulls(self, view_logits: ArrayLike) -> Floats:
        """How far each view pulls the image towards class 1, float [N, V]; NaN for a view that had no say. Two
        classes.
        """
        ...

    def to_document(self) -> dict[str, Any]:
        """Plain values, enough for `from_document`."""
        ...


@dataclass(frozen=True, slots=True)
class Pool:
    """An aggregator without parameters of its own: "whole", "mean", "topk:3", "lse:8", "noisy_or" or "max".

    Raises ConfigError for another name, or a number that makes no sense.
    """

    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", aggregate_name(self.name))
        _pool(self.name)

    def __call__(self, view_logits: ArrayLike) -> Floats:
        logits = checked(view_logits)
        if logits.shape[2] == 2:
            return as_logits(_pool(self.name)(logits[..., 1] - logits[..., 0]))
        check_classes(self.name, logits.shape[2])
        return logits[:, 0].copy() if self.name == "whole" else np.asarray(logits.mean(axis=1))

    def pulls(self, view_logits: ArrayLike) -> Floats:
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
        pulls = np.full(m.shape, np.nan)
        np.put_along_axis(pulls, places, np.take_along_axis(m, places, axis=1), axis=1)
        return pulls

    def to_document(self) -> dict[str, Any]:
        return {"name": self.name}


# ---- pools of margins --------------------------------------------------------------------------------------------


def topk_mean(m: Floats, k: int) -> Floats:
    """Mean of the k largest of each row of float [N, V]; of all where there are fewer."""
    if k >= m.shape[1]:
        return np.asarray(m.mean(axis=1))
    return np.asarray(np.partition(m, -k, axis=1)[:, -k:].mean(axis=1))


def log_mean_exp(m: Floats, beta: float) -> Floats:
    """log(mean(exp(beta m))) / beta of each row: the mean for small beta, the maximum for large; equal views give
    their value.
    """
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


def _pool(name: str) -> Callable[[Floats], Floats]:
    """Of a name that `aggregate_name` gives."""
    kind = name.partition(":")[0]
    if kind == "topk":
        return partial(topk_mean, k=int(_number(name)))
    if kind == "lse":
        return partial(log_mean_exp, beta=_number(name))
    if name not in _PLAIN:
        raise ConfigError(f"views.aggregate: {name} is no pool; it is fitted, ask `aggregator` for it")
    return _PLAIN[name]


def _number(name: str) -> float:
    return float(name.partition(":")[2])


# ---- input and output --------------------------------------------------------------------------------------------


def checked(view_logits: ArrayLike) -> Floats:
    """The logits of all views as float64 [N, V, K], V >= 1, K >= 2. Raises DataError for another shape, NaN or
    infinity.
    """
    logits = np.asarray(view_logits, dtype=np.float64)
    if logits.ndim != 3 or logits.shape[1] < 1 or logits.shape[2] < 2:
        raise DataError(
            f"view logits: shape {logits.shape}; [images, views, classes] with two classes or more is expected"
        )
    if not np.isfinite(logits).all():
        row, view = np.argwhere(~np.isfinite(logits))[0][:2].tolist()
        raise DataError(f"view logits: image {row}, view {view} is not finite; fix or drop this image")
    return logits


def margins(view_logits: ArrayLike) -> Floats:
    """logit_1 - logit_0 of every view, float64 [N, V]. Raises DataError for more than two classes."""
    logits = checked(view_logits)
    if logits.shape[2] != 2:
        raise DataError(f"view logits: {logits.shape[2]} classes have no single margin; this is for two classes")
    return np.asarray(logits[..., 1] - logits[..., 0])


def as_logits(margin: Floats) -> Floats:
    """(-a/2, +a/2) of margins float [N]: float64 [N, 2] whose softmax has P(0) = 1 - P(1)."""
    return np.stack([-margin / 2, margin / 2], axis=1)


def check_classes(name: str, n_classes: int) -> None:
    """Raises ConfigError where an aggregator cannot be had with so many classes."""
    if n_classes > 2 and name not in MULTICLASS:
        raise ConfigError(
            f"views.aggregate: {name} is for two classes, there are {n_classes}; use {' or '.join(MULTICLASS)}"
        )


def aggregator(
    name: str, policy: ViewPolicy, select_view_logits: ArrayLike | None = None, select_labels: ArrayLike | None = None
) -> Aggregator:
    """The aggregator of this name for views cut by `policy`; "learned" is fitted on the view logits and labels of
    val_select.

    Raises ConfigError (unknown name; "learned" without what it is fitted on; "whole" of a policy that has no whole
    view), DataError (logits that do not fit the policy).
    """
    if name == "whole" and not policy.whole:
        raise ConfigError(
            "views.aggregate: whole, but these views have no whole image; use mean, or set views.whole=true"
        )
    if name != "learned":
        return Pool(name)
    # Not above: its module takes the checks from here.
    from stage1.views.learned import Learned

    if select_view_logits is None or select_labels is None:
        raise ConfigError("views.aggregate: learned is fitted on labelled view logits of val_select; give them")
    logits = checked(select_view_logits)
    check_classes(name, logits.shape[2])
    if logits.shape[1] != policy.count:
        raise DataError(f"view logits: {logits.shape[1]} views, the policy has {policy.count}; score with these views")
    return Learned.fit(margins(logits), np.asarray(select_labels), has_whole=policy.whole)


def from_document(document: Mapping[str, Any]) -> Aggregator:
    """The inverse of `to_document`. Raises ConfigError for an unknown name, DataError for parameters that do not
    fit.
    """
    # Not above: their modules take the checks from here.
    from stage1.views.learned import NAME, Learned, Pooled

    if document["name"] == NAME:
        return Pooled()
    if document["name"] != "learned":
        return Pool(document["name"])
    return Learned.from_document(document)
