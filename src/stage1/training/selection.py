"""Checked features and labels of one role, metrics on val_select, and when one set of weights beats another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stage1.errors import DataError
from stage1.model.head import split
from stage1.training.view_pooling import image_logits

_ROWS = 4096


@dataclass(frozen=True, slots=True)
class LabelledFeatures:
    """features: float32 [N, D] ([N, V, D] of views), perhaps a memory map; labels: int64 [N] in 0..K-1. Checked."""

    features: NDArray[np.float32]
    labels: NDArray[np.int64]


def checked_features(
    features: Any, labels: Any, n_classes: int, role: str, *, of_views: bool = False
) -> LabelledFeatures:
    """Checks of one role: shapes, dtypes, labels, finite values. of_views: [N, V, D]. Raises DataError."""
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


SelectBy = Literal["nll", "accuracy", "augrc"]
_SELECTION_ROWS = 8192


@dataclass(frozen=True, slots=True)
class SelectMetrics:
    """Of one set of weights on val_select: mean NLL (nats), accuracy, AUGRC (confidence = largest probability)."""

    nll: float
    accuracy: float
    augrc: float

    def key(self, by: SelectBy) -> tuple[float, float]:
        """Smaller is better: the metric `by`, then NLL, as accuracy and AUGRC often tie on few images."""
        first = -self.accuracy if by == "accuracy" else getattr(self, by)
        return (first, self.nll)

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def select_metrics(logits: NDArray[Any], labels: NDArray[np.int64]) -> SelectMetrics:
    """logits: [N, K] finite, labels: int [N]. Computed in float64."""
    from stage1.evaluation import augrc  # lazily: it brings scipy, and only training needs it here

    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    log_probabilities = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    wrong = log_probabilities.argmax(axis=1) != labels
    return SelectMetrics(
        nll=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        accuracy=float((~wrong).mean()),
        augrc=float(augrc(np.exp(log_probabilities.max(axis=1)), wrong.astype(np.float64))),
    )


def all_logits(
    heads: Sequence[nn.Module], features: NDArray[np.float32], pool: str | None = None
) -> list[NDArray[np.float32]]:
    """Logits of each head (put in eval mode and back) on all rows of [N, D] features: [N, K] each.

    Of [N, V, D] features those of the views are pooled by `pool`.
    """
    return [logits for logits, _ in all_outputs(heads, features, pool)]


@torch.no_grad()
def all_outputs(
    heads: Sequence[nn.Module], features: NDArray[np.float32], pool: str | None = None
) -> list[tuple[NDArray[np.float32], NDArray[np.float32] | None]]:
    """Logits [N, K] and gate logits [N] (None for a head without a gate) of each head on all rows of [N, D] features.

    Of [N, V, D] features: the views' logits pooled by `pool`; heads on views have no gate.
    """
    pieces: list[list[NDArray[np.float32]]] = [[] for _ in heads]
    gates: list[list[NDArray[np.float32]]] = [[] for _ in heads]
    modes = [head.training for head in heads]
    for head in heads:
        head.eval()
    rows = max(1, _SELECTION_ROWS // (features.shape[1] if features.ndim == 3 else 1))
    for start in range(0, len(features), rows):
        # A copy in torch's aligned memory: a kernel's rounding may depend on alignment, and numpy's varies.
        batch = torch.tensor(np.asarray(features[start : start + rows]))
        for head, piece, gate in zip(heads, pieces, gates, strict=True):
            logits, judged = split(head(batch)) if pool is None else (image_logits(head, batch, pool), None)
            piece.append(logits.numpy())
            if judged is not None:
                gate.append(judged.numpy())
    for head, mode in zip(heads, modes, strict=True):
        head.train(mode)
    return [
        (np.concatenate(piece), np.concatenate(gate) if gate else None)
        for piece, gate in zip(pieces, gates, strict=True)
    ]
