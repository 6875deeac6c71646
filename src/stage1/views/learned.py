"""Learned combinations of views: a logistic regression on the views' margins, and heads that pool features themselves.

`Learned` fits the regression on the whole view and the sorted margins of the others. `Pooled` is for a model whose
head makes one answer of all views: there is nothing left to aggregate, only which view decided.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.calibration.solver import minimise
from stage1.errors import DataError
from stage1.late import library
from stage1.views.base import Floats, as_logits, checked, margins

special = library("scipy.special")

# A unit Gaussian prior on the slope of each standardised column: sorted margins of one image are nearly collinear, and
# without it a few hundred images would choose among them by noise.
RIDGE = 1.0


@dataclass(frozen=True, slots=True)
class Learned:
    """a = shift + sum_j slopes[j] * f_j; f: whole margin (if `has_whole`), then the other views' margins, descending.

    Sorting makes it a function of the set of tiles: which tile shows what does not matter. The result is a log-odds,
    calibrated on the rows it was fitted on.
    """

    has_whole: bool
    slopes: tuple[float, ...]
    shift: float

    name = "learned"

    @property
    def views(self) -> int:
        return len(self.slopes)

    @classmethod
    def fit(cls, view_margins: Floats, labels: NDArray[np.int64], *, has_whole: bool, ridge: float = RIDGE) -> Learned:
        """Least cross-entropy + ridge / 2 x squared slopes of the standardised columns. view_margins: [N, V].

        Raises DataError where a class has no row or labels are not 0 and 1.
        """
        labels = np.asarray(labels)
        if labels.shape != (len(view_margins),) or set(np.unique(labels).tolist()) != {0, 1}:
            raise DataError("labels: the learned aggregator needs images of both classes, labelled 0 and 1")
        columns = _sorted(view_margins, has_whole)
        middle, spread = columns.mean(axis=0), columns.std(axis=0)
        scale = np.where(spread > 1e-12 * np.maximum(np.abs(middle), 1.0), spread, np.inf)
        slopes, shift = _ridge_logistic((columns - middle) / scale, labels.astype(np.float64), ridge)
        slopes = slopes / scale
        return cls(has_whole, tuple(slopes.tolist()), float(shift - slopes @ middle))

    def margin(self, view_margins: Floats) -> Floats:
        """a, float [N], of margins [N, V]. Raises DataError for another number of views than it was fitted on."""
        if view_margins.shape[1] != len(self.slopes):
            raise DataError(
                f"view logits: {view_margins.shape[1]} views, the learned aggregator was fitted on {len(self.slopes)}; "
                "score with the same views"
            )
        # Not a matrix product: its sums depend on how many rows there are, and one image alone must score as among
        # others.
        return np.asarray(
            np.einsum("nv,v->n", _sorted(view_margins, self.has_whole), np.array(self.slopes)) + self.shift
        )

    def __call__(self, view_logits: ArrayLike) -> Floats:
        return as_logits(self.margin(margins(view_logits)))

    def contributions(self, view_logits: ArrayLike) -> Floats:
        """Each view's own term of the sum: its margin times the slope of the place that it sorted into."""
        m = margins(view_logits)
        first = int(self.has_whole)
        order = np.argsort(-m[:, first:], axis=1, kind="stable") + first
        slope = np.empty(m.shape)
        slope[:, :first] = self.slopes[:first]
        np.put_along_axis(slope, order, np.broadcast_to(np.array(self.slopes[first:]), order.shape), axis=1)
        return np.asarray(slope * m)

    def to_document(self) -> dict[str, Any]:
        return {"name": self.name, "has_whole": self.has_whole, "slopes": list(self.slopes), "shift": self.shift}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Learned:
        """The inverse of `to_document`. Raises DataError for values that are not finite."""
        slopes, shift = tuple(float(value) for value in document["slopes"]), float(document["shift"])
        if not slopes or not np.isfinite([*slopes, shift]).all():
            raise DataError("learned aggregator: slopes and shift must be finite, one slope for each view")
        return cls(bool(document["has_whole"]), slopes, shift)


def _sorted(m: Floats, has_whole: bool) -> Floats:
    first = int(has_whole)
    return np.concatenate([m[:, :first], -np.sort(-m[:, first:], axis=1)], axis=1)


def _ridge_logistic(columns: Floats, targets: Floats, ridge: float) -> tuple[Floats, float]:
    n = len(targets)
    design = np.column_stack([columns, np.ones(n)])
    penalty = np.append(np.full(columns.shape[1], ridge / n), 0.0)

    def objective(theta: Floats) -> tuple[float, Floats]:
        logit = design @ theta
        loss = np.logaddexp(0.0, logit) - targets * logit
        gradient = (special.expit(logit) - targets) @ design / n + penalty * theta
        return float(loss.mean() + 0.5 * (penalty * theta**2).sum()), np.asarray(gradient)

    rate = targets.mean()
    start = np.append(np.zeros(columns.shape[1]), np.log(rate / (1 - rate)))
    theta = minimise(objective, start, tolerance=1e-9)
    return theta[:-1], float(theta[-1])


NAME = "pooled"


class Pooled:
    """The aggregator in views.json of a model that pools its views itself. Raises DataError if asked to aggregate."""

    name = NAME
    views = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pooled)

    def __hash__(self) -> int:
        return hash(NAME)

    def __call__(self, view_logits: ArrayLike) -> Floats:
        raise DataError("views: the head answers from pooled features; its logits are the image's already")

    def contributions(self, view_logits: ArrayLike) -> Floats:
        raise DataError("views: the head answers from pooled features; see `weight_of_views`")

    def to_document(self) -> dict[str, Any]:
        return {"name": NAME}


def weight_of_views(logits: ArrayLike, without_view: ArrayLike) -> Floats:
    """How much each view adds to the margin of the image's answer, float64 [N, V].

    logits: [N, K] of the image. without_view: [N, V, K], the logits were that view like the average of all of them. The
    answer is the class of the largest logit, its margin the distance to the next one: the class may change without the
    view, the answer meant stays. Raises DataError for NaN, infinity or shapes that do not fit.
    """
    without = checked(without_view)
    whole = checked(np.asarray(logits, dtype=np.float64)[:, None, :])
    if whole.shape[::2] != without.shape[::2]:
        raise DataError(f"view logits: {without.shape} without each view, {whole.shape[::2]} of the images")
    answer = whole[:, 0].argmax(axis=1)[:, None, None]
    return _margin(whole, answer) - _margin(without, answer)


def deciding_view(logits: ArrayLike, without_view: ArrayLike) -> NDArray[np.int64]:
    """The view of largest weight, int64 [N]; the first one at a tie."""
    return np.asarray(weight_of_views(logits, without_view).argmax(axis=1), dtype=np.int64)


def _margin(logits: Floats, answer: NDArray[np.int64]) -> Floats:
    """Of [N, V, K] the logit of the answer above the largest of the others, [N, V]."""
    own = np.take_along_axis(logits, np.broadcast_to(answer, (*logits.shape[:2], 1)), axis=2)[..., 0]
    others = np.where(np.arange(logits.shape[2]) == answer, -np.inf, logits).max(axis=2)
    return np.asarray(own - others)
