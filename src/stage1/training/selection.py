"""Metrics on val_select, and the rule by which one set of weights beats another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stage1.model.head import split
from stage1.training.pooling import image_logits

SelectBy = Literal["nll", "accuracy", "augrc"]
_ROWS = 8192


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


def select_metrics(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> SelectMetrics:
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
    rows = max(1, _ROWS // (features.shape[1] if features.ndim == 3 else 1))
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
