"""Every random number of training is a function of (seed, purpose, epoch, step): nothing to store, nothing to skip."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray


def sub_seed(seed: int, purpose: str, *position: int) -> int:
    """A seed in 0 .. 2**63 - 1 for one purpose ("head", "order", "dropout") and position (epoch, step, ...)."""
    text = "/".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def epoch_order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order in which epoch `epoch` (from 0) visits `n` samples: each once, int64 [n]."""
    return np.random.default_rng(sub_seed(seed, "order", epoch)).permutation(n)
