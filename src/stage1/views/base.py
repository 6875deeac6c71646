"""What every aggregator is, and the logits of views that it takes.

Two classes: an aggregator works on the margins m = logit_1 - logit_0 of the views and gives one margin a; the image's
logits are (-a/2, +a/2), so that P(0) = 1 - P(1). The largest logit of each class by itself would be no pool: both
classes would gain with every view, and their probabilities would belong to no answer.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError

Floats = NDArray[np.float64]
VIEWS_FILE = "views.json"


class Aggregator(Protocol):
    """One logit vector for each image from those of its views; a fixed function once made."""

    @property
    def name(self) -> str:
        """As views.json and `views.aggregate` write it: the name of its kind, with its number, if any."""
        ...

    @property
    def views(self) -> int | None:
        """How many views it was fitted on and takes; None: any number."""
        ...

    def __call__(self, view_logits: ArrayLike) -> Floats:
        """float64 [N, K] from [N, V, K], views in the order of the ViewPolicy. Raises DataError."""
        ...

    def contributions(self, view_logits: ArrayLike) -> Floats:
        """How much each view contributes to class 1, float [N, V]; NaN for a view that had no say. Two classes."""
        ...

    def to_document(self) -> dict[str, Any]:
        """Plain values with `name`, enough for `read` of its kind."""
        ...


def checked(view_logits: ArrayLike) -> Floats:
    """Logits of all views as float64 [N, V, K], V >= 1, K >= 2. Raises DataError: shape, NaN or infinity."""
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
