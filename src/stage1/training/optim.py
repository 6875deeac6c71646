"""How every training run steps: learning rate, average of the weights, random numbers, torch's global state.

- The learning rate is a closed form of the step: its state is the step number.
- The exponential moving average of the weights has a decay that warms up.
- Every random number is a function of (seed, purpose, epoch, step): nothing to store, nothing to skip.
- Torch runs on one thread, deterministic, and its state is restored afterwards.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

# One thread, always: a head is too small to gain from more (on a busy machine two are several times slower), and sums
# then have one order on every machine and after every resume.
THREADS = 1


def steps_per_epoch(n: int, batch_size: int, accumulate: int) -> int:
    """Optimizer steps that visit `n` samples once; the last step takes what is left."""
    return math.ceil(n / (batch_size * accumulate))


def warmup_steps(total: int, share: float) -> int:
    """Steps of warm-up: `share` of `total`, rounded."""
    return round(share * total)


def learning_rate(step: int, *, total: int, warmup: int, base: float) -> float:
    """Learning rate of optimizer step `step` in 0 .. total - 1.

    Warm-up: base (step + 1) / warmup, so the first step already moves and step warmup - 1 has the full rate.
    Then cosine: base (1 + cos(pi (step - warmup) / (total - warmup))) / 2, zero at step `total`.
    Source: Loshchilov and Hutter 2017.
    """
    if step < warmup:
        return base * (step + 1) / warmup
    if step >= total:
        return 0.0
    return base * 0.5 * (1.0 + math.cos(math.pi * (step - warmup) / (total - warmup)))


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


def sub_seed(seed: int, purpose: str, *position: int) -> int:
    """A seed in 0 .. 2**63 - 1 for one purpose ("head", "order", "dropout") and position (epoch, step, ...)."""
    text = "/".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which epoch `epoch` (from 0) visits `n` samples: each once, int64 [n]."""
    return np.random.default_rng(sub_seed(seed, "order", epoch)).permutation(n)


@contextmanager
def own_torch_state() -> Iterator[None]:
    """Deterministic algorithms, a fixed thread count and gradients on; everything as before afterwards."""
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    generator = torch.get_rng_state()
    try:
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(True)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_rng_state(generator)
