"""Features and labels of one role, checked before anything is computed from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import DataError

_ROWS = 4096


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """features: float32 [N, D] (of views: [N, V, D]) in memory or a memory map; labels: int64 [N] in 0..K-1. Checked."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def checked_features(
    features: Any, labels: Any, n_classes: int, role: str, *, of_views: bool = False
) -> LabelledFeatures:
    """Shapes, dtypes and label range of one role; no NaN or infinity. of_views: [N, V, D]. Raises DataError naming `role`."""
    features, labels = np.asanyarray(features), np.asarray(labels)
    if features.ndim != 2 + of_views or features.dtype != np.float32 or (of_views and features.shape[1] == 0):
        shape = "[N, V, D], V >= 1," if of_views else "[N, D]"
        raise DataError(f"{role}: features are {features.dtype} {features.shape}; float32 {shape} is expected")
    if labels.shape != (len(features),) or labels.dtype.kind not in "iu":
        raise DataError(f"{role}: labels are {labels.dtype} {labels.shape}; integers [{len(features)}] are expected")
    if len(features) == 0:
        raise DataError(f"{role}: no images; give it a share of the split (split.fractions.{role})")
    if labels.min() < 0 or labels.max() >= n_classes:
        outside = labels[(labels < 0) | (labels >= n_classes)][0]
        raise DataError(f"{role}: label {outside} is outside 0..{n_classes - 1}; check data.classes")
    for start in range(0, len(features), _ROWS):
        finite = np.isfinite(features[start : start + _ROWS]).all(axis=tuple(range(1, features.ndim)))
        if not finite.all():
            row = start + int(np.argmin(finite))
            raise DataError(f"{role}: features of row {row} hold NaN or infinity; extract it again or quarantine it")
    return LabelledFeatures(features, labels.astype(np.int64))
