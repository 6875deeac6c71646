"""Backbone and head as one trainable module: what is frozen, what learns at which rate, and its averaged weights.

A pass over the images of one step may be cut into as many pieces as memory needs: the gradients are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.config import AdapterConfig, ImageTrainConfig, TrainConfig
from stage1.errors import ConfigError, Stage1Error
from stage1.model.adapter import Adapted, adapt, layer_ids
from stage1.model.backbone import Backbone
from stage1.runtime.preprocessing import Preprocessing
from stage1.runtime.session import BatchLimit, Outputs, out_of_memory
from stage1.training.distributed import Processes
from stage1.training.half import half_arithmetic
from stage1.training.image_batches import LabelledImages, Loader
from stage1.training.losses import cross_entropy_sum
from stage1.training.optim import sub_seed


class ImageModel(nn.Module):
    """float32 [N, 3, S, S] -> logits float32 [N, K]; body is the backbone's module, head a head on its features.

    half: the body computes in bfloat16 (half.py says of what); the head never does.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, half: bool) -> None:
        super().__init__()
        self.body = backbone.module
        self.head = head
        self.half = half

    @property
    def body_trained(self) -> bool:
        return any(parameter.requires_grad for parameter in self.body.parameters())

    def features(self, images: Tensor) -> Tensor:
        """float32 [N, D]; without a graph where nothing in the body is trained."""
        cast = half_arithmetic(images.device, self.body) if self.half else nullcontext()
        frozen = nullcontext() if self.body_trained else torch.no_grad()
        # Channels last: convolutions of a ConvNet take two thirds of the time; it is the same arithmetic for a ViT.
        with frozen, cast:
            return self.body(images.contiguous(memory_format=torch.channels_last)).float()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))

    def train(self, mode: bool = True) -> ImageModel:
        """Training mode, but for batch norms: their statistics stay those of pretraining.

        So the gradient of a step does not depend on how its images are cut into batches (memory, accumulation,
        processes).
        A body in which nothing is trained stays in eval mode.
        """
        super().train(mode)
        if not self.body_trained:
            self.body.eval()
        for module in self.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self


def prepare(backbone: Backbone, adapter: AdapterConfig, images: ImageTrainConfig, seed: int) -> Adapted | None:
    """Set what in the backbone learns, in place; returns the adapter, where there is one.

    Raises ConfigError: an adapter together with unfrozen layers, more blocks than there are, checkpointing that the
    model has not; and what `adapt` raises.
    """
    model = backbone.module.model
    backbone.module.requires_grad_(False)
    adapted = None
    if adapter.kind != "none":
        if images.unfreeze != "none":
            raise ConfigError(
                f"adapter.kind={adapter.kind} with images.unfreeze={images.unfreeze}: an adapter leaves the backbone"
                " frozen; set one of them to none"
            )
        adapted = adapt(backbone, adapter, seed)
    elif images.unfreeze == "all":
        model.requires_grad_(True)
    elif images.unfreeze == "last":
        layers = layer_ids(model)
        top = max(layers.values())
        if images.blocks > top:
            raise ConfigError(f"images.blocks={images.blocks}: {backbone.name} has {top}; use images.unfreeze=all")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(layers[name] > top - images.blocks)
    if images.grad_checkpointing:
        if (why := _cannot_checkpoint(model)) is not None:
            raise ConfigError(f"images.grad_checkpointing: {backbone.name} cannot ({why}); set it to false")
        model.set_grad_checkpointing(True)
    return adapted


def _cannot_checkpoint(model: nn.Module) -> str | None:
    """Why this timm model has no gradient checkpointing, or None (some refuse their switch); off afterwards."""
    switch = getattr(model, "set_grad_checkpointing", None)
    if switch is None:
        return "it has no such switch"
    try:
        switch(True)
    except AssertionError as error:
        return str(error)
    switch(False)
    return None


def less_memory(backbone: Backbone, adapter: AdapterConfig, images: ImageTrainConfig) -> str:
    """What to set where one image does not fit into memory: only what this model and config can still take."""
    ways = []
    if not images.grad_checkpointing and _cannot_checkpoint(backbone.module.model) is None:
        ways.append("set images.grad_checkpointing=true")
    if images.unfreeze == "all":
        ways.append("set images.unfreeze=last")
    elif images.unfreeze == "last" and images.blocks > 1:
        ways.append(f"lower images.blocks ({images.blocks})")
    elif adapter.kind != "none" and adapter.blocks != 1:
        ways.append("set adapter.blocks=1")
    return " or ".join([*ways, f"lower backbone.input_size ({backbone.preprocessing.size})"])


def parameter_groups(model: ImageModel, train: TrainConfig, images: ImageTrainConfig) -> list[dict[str, Any]]:
    """Groups for AdamW: params, weight_decay, and `scale`, by which the group's learning rate differs from the head's.

    Head: 1. Backbone layer i of 0..L (L next to the head): learning_rate_scale * layer_decay ** (L - i), as in BEiT
    (Bao et al. 2022). Weight decay on matrices only; not on biases, norms, tokens and position embeddings.
    """
    inner = model.body.model
    layers = layer_ids(inner, fine=True) if images.layer_decay < 1 and model.body_trained else {}
    top = max(layers.values(), default=0)
    plain: set[str] = set(getattr(inner, "no_weight_decay", set)())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        local = name.removeprefix("body.model.")
        scale = 1.0
        if name.startswith("body."):
            scale = images.learning_rate_scale * images.layer_decay ** (top - layers.get(local, top))
        decay = train.weight_decay if parameter.ndim >= 2 and local not in plain else 0.0
        groups.setdefault((scale, decay), []).append(parameter)
    return [{"params": params, "weight_decay": decay, "scale": scale} for (scale, decay), params in groups.items()]


def trained_state(model: ImageModel) -> dict[str, Tensor]:
    """What training may change, and the head's buffers: name -> tensor, shared with the model."""
    state = {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}
    return state | {f"head.{name}": buffer for name, buffer in model.head.named_buffers()}


@torch.no_grad()
def put_trained(model: ImageModel, values: Mapping[str, Tensor]) -> None:
    """Copy tensors of `trained_state` into the model. Raises KeyError where one lacks."""
    for name, tensor in trained_state(model).items():
        tensor.copy_(values[name])


@contextmanager
def swapped(parameters: list[nn.Parameter], values: list[nn.Parameter]) -> Iterator[None]:
    """Inside the block the parameters hold `values`; the same bits as before afterwards."""
    with torch.no_grad():
        kept = [parameter.detach().clone() for parameter in parameters]
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


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

        images: [N, 3, S, S] on the CPU, N >= 0; labels: int64 [N]; place: (epoch, step). Where memory runs out `micro`
        is halved and all starts again: a backward pass that failed half-way has left a part of its gradient.
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
    seen: Callable[[int], None],
) -> list[NDArray[np.float32]]:
    """Outputs of `call` on the undistorted images of all `rows`, the model in eval mode; float32 [len(rows), ...] each.

    Each process computes its share, in batches of `size` or what memory holds; all get the whole. seen: called with the
    number of images of each batch.
    """
    limit = BatchLimit()

    def run(batch: NDArray[np.float32]) -> Outputs:
        made = call(torch.from_numpy(np.ascontiguousarray(batch)).to(device))
        return tuple(tensor.float().cpu().numpy() for tensor in made)

    mine = group.share(rows)
    plan = [mine[start : start + size] for start in range(0, len(mine), size)]
    model.eval()
    with Loader(part.items, part.ids, spec, "none", 0, workers) as loader, torch.no_grad():
        pieces = []
        for batch in loader.batches(plan, 0):
            pieces.append(limit.run(run, batch.numpy()))
            seen(len(batch))
    model.train()
    joined = [np.concatenate(values) for values in zip(*pieces, strict=True)]
    return [group.join(values, len(rows)) for values in joined]
