"""ExPLoRA: self-supervised pretraining continued on unlabelled images of the domain.

`pretrain` is the entry point. A run is epochs of steps, vital signs after each, checkpoints, and bit-equal resume; what
learns is in adapter.py, the objectives in masked.py and dino.py. Source: Khanna et al. 2025 (2406.10973).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.config import PretrainConfig
from stage1.data.augment import describe
from stage1.errors import Checkpointed, DataError, Stage1Error
from stage1.model.backbone import Backbone
from stage1.storage.files import digest_bytes, write_text
from stage1.training.checkpoint import (
    check_same_run,
    config_digest,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from stage1.training.distributed import Processes, chosen_device
from stage1.training.epoch_progress import Position, append_event, by_part
from stage1.training.half import half_arithmetic, half_precision
from stage1.training.image_batches import Loader
from stage1.training.image_tuning import backbone_torch_state
from stage1.training.optim import epoch_order, learning_rate, steps_per_epoch, sub_seed, warmup_steps
from stage1.training.pretrain.adapter import merge_explora, prepare_explora
from stage1.training.pretrain.collapse import Vitals, collapse
from stage1.training.pretrain.dino import DinoObjective
from stage1.training.pretrain.masked import MaskedObjective
from stage1.training.pretrain.unlabelled import Prints

WEIGHTS = "backbone_explora.safetensors"


@dataclass(frozen=True, slots=True)
class PretrainResult:
    """The merged backbone (CPU, frozen, a fingerprint of its own) and the record of its training.

    rows: one per epoch: epoch, step, learning_rate, loss, rank, spread (dino: teacher_entropy). before: vitals of the
    features before the first step. share: trained parameters of the backbone / all of them. adapted: layers that got an
    update of q and v.
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
    """Adapt `backbone` to unlabelled `images`, in place: use the result, not the one given, afterwards.

    images: from `printed`, after `refuse_overlap`. Resumes from `folder`/checkpoints/pretrain.safetensors, bit-equal to
    never having stopped (same machine, versions, threads). Writes that file, pretrain.csv, log.jsonl and, at the end,
    backbone_explora.safetensors: plain timm weights, to be given as backbone.weights.
    progress: called with each row. started: called before the first step with the number of trained parameters of the
    backbone and of all. stop: asked before each step. fresh: drop what an earlier run left.
    Raises ConfigError (ConvNets; another run's checkpoint), DataError (too few images), Stage1Error (loss not finite:
    names the step; collapse: names rank or spread; the last good checkpoint stays), MissingError (device),
    Checkpointed.
    """
    folder = Path(folder)
    if len(images) < config.batch_size:
        raise DataError(
            f"pretrain: {len(images)} images, fewer than one batch of {config.batch_size}; lower pretrain.batch_size or"
            " add images"
        )
    device = chosen_device(config.device)
    fingerprint = backbone.fingerprint
    with backbone_torch_state(config.threads, device, Processes()):
        adapted = prepare_explora(backbone, config, seed)
        backbone.to(device)
        half = half_precision(config.precision, device, backbone.module)
        run = PretrainRun(images, backbone, config, fingerprint, half, seed, folder)
        trained = sum(p.numel() for p in run.trained.values())
        parameters = sum(p.numel() for p in backbone.module.parameters())
        if started is not None:
            started(trained, parameters)
        run.finish(stop, fresh, progress)
        backbone.to("cpu")
        merged = merge_explora(backbone)
    merged.save_weights(folder / WEIGHTS)
    return PretrainResult(merged, list(run.at.rows), run.before, trained / parameters, tuple(adapted))


CHECKPOINT = Path("checkpoints") / "pretrain.safetensors"
ROWS = "pretrain.csv"
LOG = "log.jsonl"
_COLUMNS = ("epoch", "step", "learning_rate", "loss", "rank", "spread", "teacher_entropy")
_FREE = {"folder", "train_images", "workers", "threads", "device"}


class PretrainRun:
    """Student, objective, optimizer, position, and the files that follow from them."""

    def __init__(
        self,
        images: Prints,
        backbone: Backbone,
        config: PretrainConfig,
        fingerprint: str,
        half: bool,
        seed: int,
        folder: Path,
    ) -> None:
        self.images, self.backbone, self.config, self.seed, self.folder = images, backbone, config, seed, folder
        self.half = half
        self.module = backbone.module
        self.trained = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        made = MaskedObjective if config.objective == "masked" else DinoObjective
        self.objective: MaskedObjective | DinoObjective = made(backbone, config, sub_seed(seed, "objective"))
        self.objective.to(backbone.device)
        own = [
            p
            for p in self.objective.parameters()
            if p.requires_grad and id(p) not in {id(q) for q in self.trained.values()}
        ]
        self.every = [*self.trained.values(), *own]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in self.every if p.ndim >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in self.every if p.ndim < 2], "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
            betas=(0.9, 0.95),
            fused=True,
        )
        self.steps = steps_per_epoch(len(images), config.batch_size, 1)
        self.total = self.steps * config.epochs
        self.warmup = warmup_steps(self.total, config.warmup)
        self.facts = {
            "pretrain": {key: value for key, value in config.model_dump(mode="json").items() if key not in _FREE},
            "augment": describe(config.augment),
            "preprocessing": backbone.preprocessing.to_json(),
            "backbone": fingerprint,
            "half": half,
            "device": backbone.device.type,
            "seed": seed,
        }
        self.data = digest_bytes("\n".join(images.ids).encode())
        self.before = Vitals(0.0, 0.0)
        self.at = Position()
        self.loader = Loader(
            images.items,
            images.names,
            backbone.preprocessing,
            config.augment,
            sub_seed(seed, "views") % 2**32,
            config.workers,
        )

    def finish(
        self, stop: Callable[[], bool] | None, fresh: bool, progress: Callable[[Mapping[str, Any]], None] | None
    ) -> None:
        """From the folder's checkpoint to the end."""
        try:
            self._begin(fresh)
            while not self.at.done:
                self._train_epoch(stop)
                row = self._finish_epoch()
                if progress is not None:
                    progress(row)
        finally:
            self.loader.close()

    def _begin(self, fresh: bool) -> None:
        path = self.folder / CHECKPOINT
        stored = None if fresh else load_checkpoint(path)
        if stored is not None:
            check_same_run(path, stored[1], self.facts, self.data)
            self._restore(*stored)
        else:
            path.unlink(missing_ok=True)
            self.before = self._vitals()
        append_event(
            self.folder / LOG,
            "pretrain start" if stored is None else "pretrain resume",
            step=self._done_steps(),
            total_steps=self.total,
            images=len(self.images),
            rank=self.before.rank,
            spread=self.before.spread,
            threads=torch.get_num_threads(),
            trainable=sum(p.numel() for p in self.trained.values()),
            parameters=sum(p.numel() for p in self.module.parameters()),
        )

    def _train_epoch(self, stop: Callable[[], bool] | None) -> None:
        order, size = epoch_order(len(self.images), self.seed, self.at.epoch), self.config.batch_size
        plan = [order[start : start + size] for start in range(self.at.step * size, len(order), size)]
        views = [self.loader.batches(plan, self.at.epoch, view) for view in range(self.objective.views)]
        self.module.train()
        for rows in plan:
            if stop is not None and stop():
                self._checkpoint()
                append_event(self.folder / LOG, "pretrain stopped", step=self._done_steps())
                raise Checkpointed(
                    f"{self.folder / CHECKPOINT}: stopped on request in epoch {self.at.epoch + 1} of"
                    f" {self.config.epochs}; run the same command to go on"
                )
            self._step(len(rows), [next(view) for view in views])
        for view in views:
            view.close()  # type: ignore[attr-defined]

    def _step(self, n: int, views: list[Tensor]) -> None:
        step, device = self._done_steps(), self.backbone.device
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(step)
        self.optimizer.zero_grad(set_to_none=True)
        torch.default_generator.manual_seed(sub_seed(self.seed, "dropout", self.at.epoch, self.at.step))
        cast = half_arithmetic(device, self.module) if self.half else nullcontext()
        with cast:
            loss = self.objective.loss(self.module, [view.to(device) for view in views], self.at.epoch, self.at.step)
        loss.backward()
        value = float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self.every, self.config.clip_norm))
        if not (math.isfinite(value) and math.isfinite(norm)):
            self._ended(f"loss {value:g}, gradient norm {norm:g} at step {step + 1} (epoch {self.at.epoch + 1})")
        self.optimizer.step()
        self.objective.after_step(self.module, step, self.total)
        self.at.step += 1
        self.at.loss_sum += value * n
        self.at.weight_sum += n

    def _finish_epoch(self) -> dict[str, Any]:
        now, at = self._vitals(), self.at
        what = collapse(now, self.before, self.config.collapse_share)
        if what is not None:
            self._ended(f"collapsed in epoch {at.epoch + 1}: {what}")
        last = self._done_steps() - 1
        row = {
            "epoch": at.epoch + 1,
            "step": last + 1,
            "learning_rate": self._rate(last),
            "loss": at.loss_sum / at.weight_sum,
            "rank": now.rank,
            "spread": now.spread,
            **self.objective.watched(),
        }
        at.epoch, at.step, at.loss_sum, at.weight_sum = at.epoch + 1, 0, 0.0, 0.0
        at.rows.append(row)
        at.done = at.epoch >= self.config.epochs
        self._checkpoint()
        append_event(self.folder / LOG, "pretrain epoch", **row, waiting_share=round(self.loader.waiting_share, 4))
        return dict(row)

    def _vitals(self) -> Vitals:
        """Of the probe images, undistorted, in eval mode."""
        rows = np.random.default_rng(sub_seed(self.seed, "probe")).permutation(len(self.images))[
            : self.config.probe_images
        ]
        plan = [rows[start : start + self.config.batch_size] for start in range(0, len(rows), self.config.batch_size)]
        self.module.eval()
        made: list[NDArray[np.float32]] = []
        spec = self.backbone.preprocessing
        with (
            Loader(self.images.items, self.images.names, spec, "none", 0, self.config.workers) as loader,
            torch.no_grad(),
        ):
            for batch in loader.batches(plan, 0):
                made.append(self.module(batch.to(self.backbone.device)).float().cpu().numpy())
        return Vitals.of(np.concatenate(made))

    # ---- state ----------------------------------------------------------------------------------------------------

    def _done_steps(self) -> int:
        return self.at.epoch * self.steps + self.at.step

    def _rate(self, step: int) -> float:
        return learning_rate(step, total=self.total, warmup=self.warmup, base=self.config.learning_rate)

    def _checkpoint(self) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": dict(self.trained), "objective": self.objective.kept()}
        parts["optimizer"] = flatten_optimizer(self.optimizer)
        tensors = {f"{part}.{name}": t.detach().cpu() for part, state in parts.items() for name, t in state.items()}
        at = self.at
        save_checkpoint(
            self.folder / CHECKPOINT,
            tensors,
            {
                "run": self.facts,
                "config_digest": config_digest(self.facts),
                "data_digest": self.data,
                "position": at.to_json(),
                "rows": at.rows,
                "rank": self.before.rank,
                "spread": self.before.spread,
                "torch": torch.__version__,
            },
        )
        self._write_rows()

    def _write_rows(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(self.at.rows)
        write_text(self.folder / ROWS, text.getvalue())

    def _restore(self, tensors: Mapping[str, Tensor], stored: Mapping[str, Any]) -> None:
        parts = by_part(tensors, "model", "objective", "optimizer")
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(parts["model"][name])
        self.objective.restore(parts["objective"])
        restore_optimizer(self.optimizer, parts["optimizer"])
        self.before = Vitals(stored["rank"], stored["spread"])
        self.at = Position(**stored["position"], rows=list(stored["rows"]))
        self._write_rows()

    def _ended(self, what: str) -> None:
        path = self.folder / CHECKPOINT
        kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"
        append_event(self.folder / LOG, "pretrain ended", step=self._done_steps() + 1, what=what)
        raise Stage1Error(
            f"pretrain: {what}; lower pretrain.learning_rate ({self.config.learning_rate:g}) or use the other "
            f"pretrain.objective; {kept}"
        )
