"""The passes over images that memory may cut into pieces: gradients of one step, and outputs of many images."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1.engine import BatchLimit, Outputs, out_of_memory
from stage1.errors import Stage1Error
from stage1.images import Preprocessing
from stage1.training.distributed import Processes
from stage1.training.image_batches import LabelledImages, Loader
from stage1.training.image_model import ImageModel
from stage1.training.losses import cross_entropy_sum
from stage1.training.seeds import sub_seed

log = logging.getLogger("stage1")


class Passes:
    """Forward and backward passes of at most `micro` images; `micro` only ever falls, where memory runs out.

    weights: per class, float32 [K]. rank: of this process, whose dropout is its own.
    """

    def __init__(
        self,
        model: ImageModel,
        weights: Tensor,
        smoothing: float,
        device: torch.device,
        micro: int,
        seed: int,
        rank: int,
        less_memory: str,
    ) -> None:
        self.model, self.weights, self.smoothing = model, weights.to(device), smoothing
        self.device, self.micro, self.seed, self.rank = device, micro, seed, rank
        self.less_memory = less_memory

    def gradients(self, images: Tensor, labels: Tensor, weight: float, place: tuple[int, int]) -> float:
        """Leave the gradient of (loss sum / weight) in the parameters; returns the loss sum.

        images: [N, 3, S, S] on the CPU, N >= 0; labels: int64 [N]; place: (epoch, step). Where memory runs out `micro` is halved
        and all begins anew: a backward pass that failed half-way has left a part of its gradient behind.
        Raises Stage1Error where one image does not fit.
        """
        while True:
            self.model.zero_grad(set_to_none=True)
            try:
                return self._passes(images, labels, weight, place)
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if self.micro == 1:
                    raise Stage1Error(
                        f"train: no memory for one image of {images.shape[-1]} px on {self.device}; {self.less_memory}"
                    ) from error
            self.micro = max(min(self.micro, len(images)) // 2, 1)
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            log.warning("memory ran out in training; going on with %d images at a time", self.micro)

    def _passes(self, images: Tensor, labels: Tensor, weight: float, place: tuple[int, int]) -> float:
        loss_sum = 0.0
        for part, start in enumerate(range(0, len(images), self.micro)):
            # Dropout and drop path draw from torch's default generators.
            seed = sub_seed(self.seed, "dropout", *place, part, self.rank)
            torch.default_generator.manual_seed(seed)
            if self.device.type == "cuda":
                torch.cuda.manual_seed(seed)
            batch = images[start : start + self.micro].to(self.device, non_blocking=True)
            target = labels[start : start + self.micro].to(self.device)
            loss = cross_entropy_sum(self.model(batch), target, self.weights, self.smoothing)
            (loss / weight).backward()
            loss_sum += float(loss.detach())
        return loss_sum


def all_outputs(
    model: ImageModel,
    part: LabelledImages,
    rows: NDArray[np.int64],
    call: Callable[[Tensor], list[Tensor]],
    spec: Preprocessing,
    group: Processes,
    device: torch.device,
    size: int,
    workers: int,
) -> list[NDArray[np.float32]]:
    """Outputs of `call` on the undistorted images of all `rows`, the model in eval mode; float32 [len(rows), ...] each.

    Each process computes its share, in batches of `size` or what memory holds; all get the whole.
    """
    limit = BatchLimit()

    def run(batch: NDArray[np.float32]) -> Outputs:
        made = call(torch.from_numpy(np.ascontiguousarray(batch)).to(device))
        return tuple(tensor.float().cpu().numpy() for tensor in made)

    mine = group.share(rows)
    plan = [mine[start : start + size] for start in range(0, len(mine), size)]
    model.eval()
    with Loader(part.items, part.ids, spec, "none", 0, workers) as loader, torch.no_grad():
        pieces = [limit.run(run, batch.numpy()) for batch in loader.batches(plan, 0)]
    model.train()
    joined = [np.concatenate(values) for values in zip(*pieces, strict=True)]
    return [group.join(values, len(rows)) for values in joined]
