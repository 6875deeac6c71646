"""Heads on several views of an image: their logits pooled to the image's, by torch twins of `stage1.views`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ViewTraining:
    """How a head learns from views.

    learn: "views": each view with the label of its image; "mil": the loss is on the pooled logits of the image. pool:
    "mean", "lse:8" or "topk:3"; for mil the loss, for both what val_select is judged by. Raises ConfigError for another
    pool.
    """

    learn: Literal["views", "mil"]
    pool: str

    def __post_init__(self) -> None:
        pooled(torch.zeros(1, 1, 2), self.pool)

    def check_classes(self, n_classes: int) -> None:
        """Raises ConfigError where this pool is for two classes and there are more."""
        if n_classes > 2 and self.pool != "mean":
            raise ConfigError(f"views.pool: {self.pool} is for two classes, there are {n_classes}; use mean")

    def rows(
        self, features: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """What the head is trained on: [N, V, D] unchanged for mil, every view as a row of its own for views."""
        if self.learn == "mil":
            return features, labels
        n, views, dim = features.shape
        return features.reshape(n * views, dim), np.repeat(labels, views)


def pooled(logits: Tensor, pool: str) -> Tensor:
    """Logits of images [n, K] from those of their views [n, V, K].

    Two classes: a margin a by `pool` gives (-a/2, +a/2). More classes: the mean of the logits. Raises ConfigError for a
    pool that is unknown, or that does not exist for so many classes.
    """
    if logits.shape[2] > 2 and pool == "mean":
        return logits.mean(dim=1)
    kind, _, number = pool.partition(":")
    if logits.shape[2] != 2 or kind not in ("mean", "lse", "topk") or (kind == "mean") == bool(number):
        raise ConfigError(
            f"views.pool: {pool!r} with {logits.shape[2]} classes; use mean, with two classes lse:8 or topk:3 too"
        )
    margin = logits[:, :, 1] - logits[:, :, 0]
    if kind == "lse":
        beta = float(number)
        image = (torch.logsumexp(beta * margin, dim=1) - math.log(margin.shape[1])) / beta
    elif kind == "topk":
        image = margin.topk(min(int(number), margin.shape[1]), dim=1).values.mean(dim=1)
    else:
        image = margin.mean(dim=1)
    return torch.stack([-image / 2, image / 2], dim=1)


def image_logits(head: nn.Module, features: Tensor, pool: str | None) -> Tensor:
    """Logits [n, K] of images: of a head on features [n, D], or on those of their views [n, V, D], pooled by `pool`.

    For views the head is one without a gate: what it gives are logits alone.
    """
    if features.ndim == 2:
        made: Tensor = head(features)
        return made
    assert pool is not None, "views without a pool"
    n, views = features.shape[:2]
    return pooled(head(features.flatten(0, 1)).reshape(n, views, -1), pool)
