"""Is the representation collapsing? Rank and spread of the features of fixed images, against those at the start."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.errors import Stage1Error


def effective_rank(features: NDArray[np.float32]) -> float:
    """exp of the entropy of the normalised singular values of the centred features [N, D]; 1 .. min(N - 1, D).

    1 where all vary along one direction; 0.0 where nothing varies. Source: Garrido et al. 2023 (RankMe), equation 1, on
    centred features (a common offset is no information).
    """
    values = np.linalg.svd(features.astype(np.float64) - features.mean(axis=0, dtype=np.float64), compute_uv=False)
    scale = float(np.abs(features).max(initial=0.0))
    if values.sum() <= 1e-7 * scale * len(values):
        return 0.0
    shares = values / values.sum()
    shares = shares[shares > 0]
    return float(np.exp(-(shares * np.log(shares)).sum()))


def spread(features: NDArray[np.float32]) -> float:
    """sqrt(D) times the mean standard deviation per column of the features [N, D] set to unit length; 0 .. about 1.

    About 1 where directions are spread evenly, 0 where all images point one way. Source: Chen and He 2021 (SimSiam),
    section 4.1.
    """
    values = features.astype(np.float64)
    values = values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return float(np.sqrt(values.shape[1]) * values.std(axis=0).mean())


@dataclass(frozen=True, slots=True)
class Vitals:
    """Of the features at one moment: `effective_rank` and `spread`."""

    rank: float
    spread: float

    @classmethod
    def of(cls, features: NDArray[np.float32]) -> Vitals:
        """Raises Stage1Error where a feature is not finite."""
        if not np.isfinite(features).all():
            raise Stage1Error("pretrain: features are not finite; lower pretrain.learning_rate")
        return cls(effective_rank(features), spread(features))


def collapse(now: Vitals, before: Vitals, share: float) -> str | None:
    """What has collapsed, in words with numbers, or None: rank or spread below `share` of what it was `before`."""
    for name in ("rank", "spread"):
        value, reference = getattr(now, name), getattr(before, name)
        if value < share * reference:
            return f"{name} of the features is {value:.3g}, was {reference:.3g} before pretraining"
    return None
