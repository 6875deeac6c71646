"""Train on images, through the backbone: the one entry point, alone or under torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from stage1.config import AdapterConfig, HeadConfig, ImageTrainConfig, TrainConfig
from stage1.errors import ConfigError, DataError
from stage1.model.adapter import Adapted, merge, save_adapter
from stage1.model.backbone import Backbone
from stage1.model.head import build_head
from stage1.runtime.session import cores
from stage1.runtime.stream import Item
from stage1.training.distributed import Processes, chosen_device, processes, world_size
from stage1.training.half import half_precision
from stage1.training.image_batches import checked_images
from stage1.training.image_model import ImageModel, less_memory, prepare
from stage1.training.image_run import ImageRun
from stage1.training.image_watch import Watch
from stage1.training.optim import own_torch_state, sub_seed

TUNED = "backbone_tuned.safetensors"
ADAPTER = "adapter"


@dataclass(frozen=True, slots=True)
class ImageTrainResult:
    """Backbone (adapter merged, on the CPU, frozen) and head with the best weights, and how they came about.

    metrics of the best: nll, accuracy, augrc on val_select, train_loss. trainable, share: parameters that were trained,
    head included, and their share of all. waiting_share: of the training time, waiting for images. images_at_a_time:
    what memory held. plan: for images.minutes, "epochs" and "steps" of each; cut_short: the time was over before that.
    """

    backbone: Backbone
    head: nn.Module
    best_epoch: int
    best_metric: float
    used_ema: bool
    epochs_run: int
    metrics: dict[str, float]
    trainable: int
    share: float
    waiting_share: float
    images_at_a_time: int
    plan: dict[str, Any] | None
    cut_short: bool


def train_on_images(
    backbone: Backbone,
    train: tuple[Sequence[str], Sequence[Item], NDArray[np.int64]],
    select: tuple[Sequence[str], Sequence[Item], NDArray[np.int64]],
    *,
    config: TrainConfig,
    head: HeadConfig,
    images: ImageTrainConfig,
    adapter: AdapterConfig,
    n_classes: int,
    seed: int,
    folder: Path,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    started: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    fresh: bool = False,
    section: str = "train",
    watch: Watch | None = None,
) -> ImageTrainResult:
    """Train a head, and what `images` and `adapter` name of the backbone; epoch and raw or EMA weights by `select`.

    train, select: (ids str [N], items [N] to read, labels int64 [N]). `backbone` is changed in place and must not be
    used after this: the result has its own. config.batch_size counts images over all processes.
    Goes on from `folder`/checkpoints/last.safetensors, bit-equal to never having stopped (same machine, versions,
    threads, processes). Writes that file, metrics.csv, log.jsonl, model_best.pth (the head), and, where the backbone
    learned, backbone_tuned.safetensors (plain timm weights, adapter merged: give it as backbone.weights) and adapter/.
    progress, stop, fresh: as in `train_head`. section: of the config from which learning_rate and batch_size of
    `config` come, for messages. started: called before the first step with the number of trained parameters and
    of all. epochs, batch_size and learning_rate are those of `config`; the ones in `images` are for the caller. Under
    torchrun every process calls this alike; the first one writes. With images.minutes config.epochs is the most that is
    trained, and the same bits are promised only where the plan is finished in time (budget.py). watch: for progress.
    Raises DataError (labels, a class without images, fewer images than a batch), ConfigError (a head or objective that
    needs cached features, a checkpoint of another run), MissingError (device, peft), IntegrityError, Stage1Error (loss
    not finite:
    names the step; an image that cannot be read; a lost process: names the checkpoint), Checkpointed.
    """
    folder = Path(folder)
    labelled = checked_images(*train, n_classes, "train")
    chosen = checked_images(*select, n_classes, "val_select")
    _check(config, head, len(labelled), section)
    if world_size() > min(len(chosen), images.statistics_images, config.batch_size):
        raise DataError(f"{world_size()} processes: more than images in a batch or in val_select; start fewer")
    device = chosen_device(images.device)
    with processes(device) as group, backbone_torch_state(images.threads, device, group):
        fingerprint = backbone.fingerprint
        adapted = prepare(backbone, adapter, images, sub_seed(seed, "adapter"))
        made = build_head(head, backbone.dim, n_classes, sub_seed(seed, "head"))
        model = ImageModel(backbone, made, half_precision(images.precision, device, backbone.module))
        run = ImageRun(
            labelled,
            chosen,
            model,
            backbone.preprocessing,
            fingerprint,
            (config, head, images, adapter),
            n_classes,
            seed,
            folder,
            device,
            group,
            section,
            less_memory(backbone, adapter, images),
            Watch() if watch is None else watch,
        )
        trainable, parameters = (sum(p.numel() for p in part) for part in (run.trained, model.parameters()))
        if started is not None and group.first:
            started(trainable, parameters)
        try:
            best = run.finish(stop, fresh, progress)
        finally:
            if images.grad_checkpointing:  # the backbone may be used again, and inference must not pay for it
                backbone.module.model.set_grad_checkpointing(False)
        share = trainable / parameters
        model.to("cpu")
        backbone.to("cpu")
        tuned = _finished(backbone, adapted, model, folder, group)
        group.wait()  # no process continues before the files are there
    metrics = {key: float(best[key]) for key in ("nll", "accuracy", "augrc", "train_loss")}
    return ImageTrainResult(
        backbone=tuned,
        head=made.eval().requires_grad_(False),
        best_epoch=best["epoch"],
        used_ema=best["ema"],
        best_metric=metrics[config.select_by],
        epochs_run=run.epochs.at.epoch,
        metrics=metrics,
        trainable=trainable,
        share=share,
        waiting_share=run.loader.waiting_share,
        images_at_a_time=run.passes.micro,
        plan=run.plan,
        cut_short=run.cut_short,
    )


def _check(config: TrainConfig, head: HeadConfig, n: int, section: str) -> None:
    if head.selective or head.members > 1 or head.gate not in ("auto", "none"):
        raise ConfigError(
            f"head.kind={head.kind}, head.members={head.members}, head.gate={head.gate}: on images one linear or mlp"
            " head is trained; train this one on the features of the tuned backbone afterwards"
        )
    if config.objective != "ce" or config.entropy > 0:
        raise ConfigError(
            f"train.objective={config.objective}, train.entropy={config.entropy:g}: on images the loss is"
            " cross-entropy; train the head again on the features of the tuned backbone with this objective"
        )
    step = config.batch_size * config.accumulate
    if n < step:
        raise DataError(
            f"train: {n} images, fewer than the {step} of one step ({section}.batch_size={config.batch_size} x "
            f"train.accumulate={config.accumulate}); {_smaller_step(config, n, section)} or add images"
        )


def _smaller_step(config: TrainConfig, n: int, section: str) -> str:
    """What to set so that one step has no more than `n` images."""
    if n >= config.accumulate:
        return f"lower {section}.batch_size to {n // config.accumulate}"
    return f"set train.accumulate=1 and lower {section}.batch_size to {n}"


def _finished(
    backbone: Backbone, adapted: Adapted | None, model: ImageModel, folder: Path, group: Processes
) -> Backbone:
    """The backbone with its best weights, and the files that hold them."""
    if not model.body_trained:
        return backbone
    if adapted is None:
        tuned = backbone.renewed(f"{backbone.weights} + tuned")
    else:
        if group.first:
            save_adapter(adapted, folder / ADAPTER)
        tuned = merge(adapted)
    if group.first:
        tuned.save_weights(folder / TUNED)
    return tuned


@contextmanager
def backbone_torch_state(threads: int, device: torch.device, group: Processes) -> Iterator[None]:
    """As for heads, but with the threads that a backbone can use."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with it
    with own_torch_state():
        torch.set_num_threads(threads or max(1, cores() // group.local_world))
        if device.type == "cuda":  # some backward passes have no deterministic kernel: a warning there, not an error
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
