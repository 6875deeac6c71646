"""Learning rate as a closed form of the step: its state is the step number."""

from __future__ import annotations

import math


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
