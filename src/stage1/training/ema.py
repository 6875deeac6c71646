"""Exponential moving average of the weights, with a decay that warms up."""

from __future__ import annotations

import copy

import torch
from torch import nn


def decay_at(step: int, decay: float) -> float:
    """min(decay, (1 + t) / (10 + t)) for t = `step` updates done before: early averages forget the initial weights."""
    return min(decay, (1 + step) / (10 + step))


class Ema:
    """The averaged copy of a module; buffers (fixed statistics) are copied once, parameters averaged."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.module = copy.deepcopy(module).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """average <- d average + (1 - d) weights with d = decay_at(step); `step` counts updates from 0."""
        weight = 1.0 - decay_at(step, self.decay)
        for average, current in zip(self.module.parameters(), module.parameters(), strict=True):
            average.lerp_(current, weight)
