"""What a step of training on images takes, by doing some whose gradients are thrown away."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from stage1.training.distributed import Processes
from stage1.training.image_batches import Loader
from stage1.training.image_model import Passes

# After one that is not measured: it allocates, and its images are not in the making yet.
STEPS = 3


def seconds_per_step(
    passes: Passes, loader: Loader, labels: NDArray[np.int64], plan: Sequence[NDArray[np.int64]], group: Processes
) -> float:
    """Mean seconds of the first steps of `plan` (rows of all processes), without the optimizer's own part.

    Nothing that decides the weights changes: dropout and order are functions of epoch and step, no optimizer is called.
    """
    known = torch.from_numpy(labels)
    shares = [group.share(rows) for rows in plan[: 1 + STEPS]]
    passes.model.train()
    moments = [time.perf_counter()]
    for step, (rows, images) in enumerate(zip(shares, loader.batches(shares, 0), strict=True)):
        passes.gradients(images, known[rows], float(max(len(rows), 1)), (0, step))
        group.wait()
        moments.append(time.perf_counter())
    passes.model.zero_grad(set_to_none=True)
    loader.waiting = loader.working = 0.0
    taken = np.diff(moments)
    return float(taken[1:].mean() if len(taken) > 1 else taken[0])
