"""Torch's global state around training: one thread, deterministic, and as it was afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from stage1.training.run import THREADS


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
