"""ExPLoRA: self-supervision goes on, on unlabelled images of the domain; the one entry point.

Source: Khanna et al. 2025 (2406.10973); what learns stands in pretrain_adapter.py, the objectives in masked.py and dino.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stage1.config import PretrainConfig
from stage1.errors import DataError
from stage1.model.backbone import Backbone
from stage1.training.distributed import Processes, chosen_device, half_precision
from stage1.training.images import backbone_torch_state
from stage1.training.pretrain_adapter import merge_explora, prepare_explora
from stage1.training.pretrain_data import Prints
from stage1.training.pretrain_run import PretrainRun
from stage1.training.pretrain_watch import Vitals

WEIGHTS = "backbone_explora.safetensors"


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """The merged backbone (CPU, frozen, a fingerprint of its own) and how it came about.

    rows: one per epoch: epoch, step, learning_rate, loss, rank, spread (dino: teacher_entropy). before: vitals of the features
    before the first step. share: trained parameters of the backbone / all of them. adapted: layers that got an update of q and v.
    """

    backbone: Backbone
    rows: list[dict[str, Any]]
    before: Vitals
    share: float
    adapted: tuple[str, ...]


def pretrain(
    backbone: Backbone,
    images: Prints,
    *,
    config: PretrainConfig,
    seed: int,
    folder: Path,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    started: Callable[[int, int], None] | None = None,
    stop: Callable[[], bool] | None = None,
    fresh: bool = False,
) -> PretrainResult:
    """Adapt `backbone` to unlabelled `images`, in place: the result has its own, the one given must not be used after this.

    images: from `printed`, after `refuse_overlap`. Goes on from `folder`/checkpoints/pretrain.safetensors, bit-equal to never
    having stopped (same machine, versions, threads). Writes that file, pretrain.csv, log.jsonl and, at the end,
    backbone_explora.safetensors: plain timm weights, to be given as backbone.weights.
    progress: called with each row. started: called before the first step with the number of trained parameters of the backbone and
    of all. stop: asked before each step. fresh: drop what an earlier run left.
    Raises ConfigError (ConvNets; another run's checkpoint), DataError (too few images), Stage1Error (loss not finite: names the
    step; collapse: names rank or spread; the last good checkpoint stays), MissingError (device), Checkpointed.
    """
    folder = Path(folder)
    if len(images) < config.batch_size:
        raise DataError(
            f"pretrain: {len(images)} images, fewer than one batch of {config.batch_size}; lower pretrain.batch_size or add images"
        )
    device = chosen_device(config.device)
    fingerprint = backbone.fingerprint
    with backbone_torch_state(config.threads, device, Processes()):
        adapted = prepare_explora(backbone, config, seed)
        backbone.to(device)
        run = PretrainRun(images, backbone, config, fingerprint, half_precision(config.precision, device), seed, folder)
        trained = sum(p.numel() for p in run.trained.values())
        parameters = sum(p.numel() for p in backbone.module.parameters())
        if started is not None:
            started(trained, parameters)
        run.finish(stop, fresh, progress)
        backbone.to("cpu")
        merged = merge_explora(backbone)
    merged.save_weights(folder / WEIGHTS)
    return PretrainResult(merged, list(run.at.rows), run.before, trained / parameters, tuple(adapted))
