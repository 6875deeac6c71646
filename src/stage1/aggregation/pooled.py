"""Views of which the head itself makes one answer, from pooled features: there is nothing left to aggregate, only to explain."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.aggregation.aggregators import Floats, checked
from stage1.errors import DataError

NAME = "pooled"


class Pooled:
    """Stands where an aggregator stands in views.json. Raises DataError where it is asked to aggregate."""

    name = NAME

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pooled)

    def __hash__(self) -> int:
        return hash(NAME)

    def __call__(self, view_logits: ArrayLike) -> Floats:
        raise DataError("views: the head answers from pooled features; its logits are the image's already")

    def pulls(self, view_logits: ArrayLike) -> Floats:
        raise DataError("views: the head answers from pooled features; see `weight_of_views`")

    def to_document(self) -> dict[str, Any]:
        return {"name": NAME}


def weight_of_views(logits: ArrayLike, without_view: ArrayLike) -> Floats:
    """How much each view adds to the margin of the image's answer, float64 [N, V].

    logits: [N, K] of the image. without_view: [N, V, K], the logits were that view like the average of all of them. The answer is
    the class of the largest logit, its margin the distance to the next one: the class may change without the view, the answer meant
    stays. Raises DataError for NaN, infinity or shapes that do not fit.
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
