"""The training objective: cross-entropy with class weights and label smoothing, and the weights themselves."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from stage1.errors import DataError


def class_weights(labels: NDArray[np.int64], n_classes: int, kind: Literal["none", "balanced"]) -> Tensor:
    """Weight per class, float32 [K]: ones, or "balanced" = N / (K n_c) (the weights of all samples then sum to N).

    Raises DataError where a class has no sample: its logit could not be learned.
    """
    counts = np.bincount(labels, minlength=n_classes)
    if (counts == 0).any():
        missing = int(np.argmin(counts))
        if (counts > 0).sum() == 1:
            only = int(np.argmax(counts))
            raise DataError(f"train: all {len(labels)} images are of class {only}; add images of the other classes")
        raise DataError(f"train: class {missing} has no image; add some or take it out of data.classes")
    if kind == "none":
        return torch.ones(n_classes, dtype=torch.float32)
    return torch.tensor(len(labels) / (n_classes * counts), dtype=torch.float32)


def cross_entropy_sum(logits: Tensor, labels: Tensor, weights: Tensor, smoothing: float) -> Tensor:
    """Sum over the batch of w[y] (1 - s) (-log p_y) + (s / K) sum_c w_c (-log p_c); a scalar.

    Divided by the summed w[y] of all batches of a step it is the mean that torch's `cross_entropy(weight=...,
    label_smoothing=...)` gives for the joined batch: that makes accumulation equal to the big batch.
    """
    return functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="sum")
