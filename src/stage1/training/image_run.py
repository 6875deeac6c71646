"""One training run on images: steps over all processes, validation, checkpoints, bit-equal resume.

As in run.py the checkpoint is the one truth, and order, distortions and dropout follow from (seed, epoch, step, image). It
holds what is trained and nothing else: the frozen rest is the backbone's, whose fingerprint stands in it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.config import AdapterConfig, HeadConfig, ImageTrainConfig, TrainConfig
from stage1.data.augment import describe
from stage1.errors import Checkpointed, Stage1Error
from stage1.files import digest_bytes
from stage1.images import Preprocessing
from stage1.model.head import BEST_WEIGHTS, Classifier, feature_statistics, save_weights
from stage1.training.checkpoint import (
    LAST,
    check_same_run,
    config_digest,
    flatten_optimizer,
    load_checkpoint,
    restore_optimizer,
    run_facts,
    save_checkpoint,
)
from stage1.training.distributed import PeerLost, Processes, facts, lost
from stage1.training.ema import Ema
from stage1.training.image_batches import LabelledImages, Loader
from stage1.training.image_model import ImageModel, parameter_groups, put_trained, swapped, trained_state
from stage1.training.image_step import Passes, all_outputs
from stage1.training.losses import class_weights
from stage1.training.records import LOG, METRICS, Board, append_event, write_metrics
from stage1.training.run import Position, _best_key, _remove
from stage1.training.schedule import learning_rate, steps_per_epoch, warmup_steps
from stage1.training.seeds import epoch_order, sub_seed
from stage1.training.selection import select_metrics

log = logging.getLogger("stage1")
# These change no weight on one machine: they may change between a stop and the resume. The second row stands in TrainConfig.
_FREE = {"workers", "threads", "device", "epochs", "batch_size", "learning_rate"}


class ImageRun:
    """Model, optimizer, position, and the files that follow from them, in one of `group.world` processes."""

    def __init__(
        self,
        train: LabelledImages,
        select: LabelledImages,
        model: ImageModel,
        spec: Preprocessing,
        fingerprint: str,
        configs: tuple[TrainConfig, HeadConfig, ImageTrainConfig, AdapterConfig],
        n_classes: int,
        seed: int,
        folder: Path,
        device: torch.device,
        group: Processes,
    ) -> None:
        config, head, images, adapter = configs
        self.train, self.select, self.config, self.images = train, select, config, images
        self.seed, self.folder, self.device, self.group, self.spec = seed, folder, device, group, spec
        self.weights = class_weights(train.labels, n_classes, config.class_weights)
        self.model = model.to(device)
        self.head: Classifier = model.head
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        # As a module of its own: the average copies what is trained, not the frozen rest.
        self.average = nn.ParameterList(self.trained)
        self.ema = Ema(self.average, config.ema_decay) if config.ema_decay > 0 else None
        groups = parameter_groups(model, config, images)
        self.scales = [group.pop("scale") for group in groups]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)
        self.steps = steps_per_epoch(len(train), config.batch_size, config.accumulate)
        self.total = self.steps * config.epochs
        self.warmup = warmup_steps(self.total, config.warmup)
        dim = int(self.head.mean.shape[0])
        self.facts = run_facts(config, head, dim=dim, n_classes=n_classes, seed=seed) | {
            "images": {key: value for key, value in images.model_dump(mode="json").items() if key not in _FREE},
            "adapter": adapter.model_dump(mode="json"), "augment": describe(images.augment), "half": model.half,
            "preprocessing": spec.to_json(), "backbone": fingerprint, "device": device.type,
        }  # fmt: skip
        texts = [
            f"{name} {label}" for part in (train, select) for name, label in zip(part.ids, part.labels, strict=True)
        ]
        self.data = digest_bytes("\n".join([str(len(train)), *texts]).encode())
        micro = math.ceil(config.batch_size / group.world)
        self.passes = Passes(model, self.weights, config.label_smoothing, device, micro, seed, group.rank)
        self.best_weights: dict[str, Tensor] = {}
        self.at = Position()
        self.board: Board | None = None
        self.loader = Loader(train.items, train.ids, spec, images.augment, seed, images.workers)
        self.threads = torch.get_num_threads()

    # ---- start and end --------------------------------------------------------------------------------------------

    def begin(self, fresh: bool) -> None:
        path = self.folder / LAST
        written = [path, self.folder / BEST_WEIGHTS, self.folder / METRICS]
        stored = None if fresh else load_checkpoint(path)
        if stored is not None:
            check_same_run(path, stored[1], self.facts, self.data)
        self.group.agree(
            f"{config_digest(self.facts)} {self.data} {stored and stored[1]['position']}", "config or data"
        )
        if self.group.first:
            for target in written:
                _remove(list(target.parent.glob(f".{target.name}.*.tmp*")))
            if stored is None:
                _remove(written)
        if stored is not None:
            self._restore(*stored)
        else:
            order = np.random.default_rng(sub_seed(self.seed, "statistics")).permutation(len(self.train))
            rows = np.sort(order[: self.images.statistics_images])
            features = self._all(self.train, rows, lambda x: [self.model.features(x)])[0]
            counts = np.bincount(self.train.labels, minlength=len(self.weights))
            self.head.to("cpu")
            self.head.standardise(*feature_statistics(features))
            self.head.start_at(counts * self.weights.numpy().astype(np.float64))
            self.head.to(self.device)
            if self.ema is not None:
                self.ema = Ema(self.average, self.config.ema_decay)
        if self.config.tensorboard and self.group.first and not self.at.done:
            self.board = Board(self.folder / "tensorboard", next_step=self._done_steps() + 1)
        if stored is not None:
            self._write_derived()
        self._log(
            "start" if stored is None else "resume", epoch=self.at.epoch, step=self._done_steps(), total_steps=self.total,
            threads=self.threads, torch=torch.__version__, seed=self.seed, device=str(self.device), **facts(self.group),
            config_digest=config_digest(self.facts), data_digest=self.data,
            trainable=sum(p.numel() for p in self.trained), parameters=sum(p.numel() for p in self.model.parameters()),
        )  # fmt: skip

    def finish(
        self,
        stop: Callable[[], bool] | None,
        fresh: bool,
        progress: Callable[[Mapping[str, Any]], None] | None,
    ) -> dict[str, Any]:
        """From where the folder's checkpoint stands to the end, with the best weights in the model. Returns their facts."""
        try:
            self.begin(fresh)
            while not self.at.done:
                self.train_epoch(stop)
                row = self.finish_epoch()
                if progress is not None and self.group.first:
                    progress(row)
        except PeerLost as error:
            raise self._orphaned(error) from error
        finally:
            self.loader.close()
            if self.board is not None:
                self.board.close()
        assert self.at.best is not None  # an epoch either ends with a best or raises
        put_trained(self.model, self.best_weights)
        return dict(self.at.best)

    def _orphaned(self, error: PeerLost) -> Stage1Error:
        """The state before the step that failed is whole: the first process still writes it."""
        if self.group.first and self._done_steps() and not self.at.done:
            self._checkpoint()
        path = self.folder / LAST
        kept = f"the state after the last whole step is {path}" if path.exists() else "no checkpoint was written yet"
        self._log("lost", epoch=self.at.epoch + 1, step=self._done_steps(), what=str(error))
        return lost(error, "train", kept)

    # ---- one epoch ------------------------------------------------------------------------------------------------

    def train_epoch(self, stop: Callable[[], bool] | None) -> None:
        """The steps of this epoch that are not done yet."""
        self.model.train()
        order = epoch_order(len(self.train), self.seed, self.at.epoch)
        span = self.config.batch_size * self.config.accumulate
        plan = [order[start : start + span] for start in range(self.at.step * span, len(order), span)]
        batches = self.loader.batches([self.group.share(rows) for rows in plan], self.at.epoch)
        for rows in plan:
            if self.group.any(stop is not None and stop()):
                self._checkpoint()
                self._log("stopped", epoch=self.at.epoch, step=self._done_steps())
                raise Checkpointed(
                    f"{self.folder / LAST}: stopped on request in epoch {self.at.epoch + 1} of {self.config.epochs}; "
                    "run the same command to go on"
                )
            self._step(rows, next(batches))

    def _step(self, rows: NDArray[np.int64], images: Tensor) -> None:
        """One optimizer step on `rows`, of which this process has the images of its share."""
        step = self._done_steps()
        labels = torch.from_numpy(self.train.labels)
        weight = float(self.weights[labels[rows]].sum(dtype=torch.float64))
        rate = self._rate(step)
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        place, micro = (self.at.epoch, self.at.step), self.passes.micro
        loss_sum = self.passes.gradients(images, labels[self.group.share(rows)], weight, place)
        if self.passes.micro < micro:
            self._log("memory", step=step + 1, images_at_a_time=self.passes.micro)
        (loss_sum,) = self.group.add_gradients(self.trained, [loss_sum])
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        norm = float(nn.utils.clip_grad_norm_(self.trained, limit))
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            self._diverged(f"loss {loss_sum / weight:g}, gradient norm {norm:g}")
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.average, step)
        self.at.step += 1
        self.at.loss_sum += loss_sum
        self.at.weight_sum += weight

    def finish_epoch(self) -> dict[str, Any]:
        """Validate raw and EMA weights, keep the best so far, write files. Returns the epoch's row of metrics.csv."""
        rows = np.arange(len(self.select))
        logits = self._all(self.select, rows, self._both)
        if not all(np.isfinite(values).all() for values in logits):
            self._diverged("logits on val_select are not finite")
        found = [select_metrics(values, self.select.labels) for values in logits]
        last, at = self._done_steps() - 1, self.at
        loss = at.loss_sum / at.weight_sum
        at.epoch, at.step, at.loss_sum, at.weight_sum = at.epoch + 1, 0, 0.0, 0.0
        for average, metrics in enumerate(found):  # raw first: the average must be strictly better
            if at.best is None or metrics.key(self.config.select_by) < _best_key(at.best, self.config):
                at.best = {"epoch": at.epoch, "ema": bool(average), "train_loss": loss, **metrics.to_json()}
                self.best_weights = self._state(average=bool(average))
        assert at.best is not None
        row: dict[str, Any] = {
            "epoch": at.epoch,
            "step": last + 1,
            "learning_rate": self._rate(last),
            "train_loss": loss,
        }
        for prefix, metrics in zip(("select", "ema"), found, strict=False):
            row |= {f"{prefix}_{name}": value for name, value in metrics.to_json().items()}
        row["best_epoch"] = at.best["epoch"]
        at.rows.append(row)
        at.done = at.epoch >= self.config.epochs or at.epoch - at.best["epoch"] >= self.config.patience
        if at.done or at.epoch % self.config.checkpoint_every == 0:
            self._checkpoint()
        elif self.group.first:
            write_metrics(self.folder / METRICS, at.rows)
        if self.board is not None:
            self.board.write(row)
        self._log("epoch", **row, waiting_share=round(self.loader.waiting_share, 4), images_at_a_time=self.passes.micro)
        if at.done:
            best = {"best_epoch": at.best["epoch"], "used_ema": at.best["ema"]}
            self._log("done", epochs=at.epoch, stopped_early=at.epoch < self.config.epochs, **best)
        return dict(row)

    # ---- outputs of many images -----------------------------------------------------------------------------------

    def _both(self, images: Tensor) -> list[Tensor]:
        """Logits by the raw weights and, where there is an average, by it."""
        features = self.model.features(images)
        made = [self.head(features)]
        if self.ema is not None:
            with swapped(self.trained, list(self.ema.module)):
                made.append(self.head(self.model.features(images) if self.model.body_trained else features))
        return made

    def _all(
        self, part: LabelledImages, rows: NDArray[np.int64], call: Callable[[Tensor], list[Tensor]]
    ) -> list[NDArray[np.float32]]:
        workers = self.images.workers
        return all_outputs(self.model, part, rows, call, self.spec, self.group, self.device, self.passes.micro, workers)

    # ---- state ----------------------------------------------------------------------------------------------------

    def _done_steps(self) -> int:
        return self.at.epoch * self.steps + self.at.step

    def _rate(self, step: int) -> float:
        return learning_rate(step, total=self.total, warmup=self.warmup, base=self.config.learning_rate)

    def _state(self, *, average: bool = False) -> dict[str, Tensor]:
        """A copy of what is trained, on the CPU; average: by the EMA."""
        state = trained_state(self.model)
        if average and self.ema is not None:
            names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
            state |= dict(zip(names, self.ema.module.parameters(), strict=True))
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def _checkpoint(self) -> None:
        if not self.group.first:
            return
        parts = {"model": self._state(), "best": self.best_weights, "optimizer": flatten_optimizer(self.optimizer)}
        if self.ema is not None:
            parts["ema"] = self._state(average=True)
        tensors = {f"{part}.{name}": tensor.cpu() for part, state in parts.items() for name, tensor in state.items()}
        at = self.at
        position = {
            "epoch": at.epoch,
            "step": at.step,
            "done": at.done,
            "loss_sum": at.loss_sum,
            "weight_sum": at.weight_sum,
        }
        save_checkpoint(self.folder / LAST, tensors, {
            "run": self.facts, "config_digest": config_digest(self.facts), "data_digest": self.data, "position": position,
            "best": at.best, "rows": at.rows, "threads": self.threads, "micro": self.passes.micro, "torch": torch.__version__,
            "processes": self.group.world,
        })  # fmt: skip
        self._write_derived()

    def _write_derived(self) -> None:
        if not self.group.first:
            return
        write_metrics(self.folder / METRICS, self.at.rows)
        if self.best_weights:
            head = {name.removeprefix("head."): t for name, t in self.best_weights.items() if name.startswith("head.")}
            save_weights(self.folder / BEST_WEIGHTS, head)

    def _restore(self, tensors: Mapping[str, Tensor], stored: Mapping[str, Any]) -> None:
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}, "ema": {}}
        for key, tensor in tensors.items():
            part, _, name = key.partition(".")
            parts[part][name] = tensor
        put_trained(self.model, parts["model"])
        restore_optimizer(self.optimizer, parts["optimizer"])
        if self.ema is not None:
            names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
            with torch.no_grad():
                for name, average in zip(names, self.ema.module.parameters(), strict=True):
                    average.copy_(parts["ema"][name])
        self.best_weights = parts["best"]
        self.at = Position(**stored["position"], best=stored["best"], rows=list(stored["rows"]))
        if stored["processes"] == self.group.world:
            self.passes.micro = min(self.passes.micro, int(stored["micro"]))
        if stored["threads"] != self.threads:
            log.warning(
                "resumed with %d threads, begun with %d: last digits may differ", self.threads, stored["threads"]
            )

    def _log(self, event: str, **values: Any) -> None:
        if self.group.first:
            append_event(self.folder / LOG, event, **values)

    def _diverged(self, what: str) -> None:
        step, path = self._done_steps() + 1, self.folder / LAST
        kept = f"the last good checkpoint is {path}" if path.exists() else "no checkpoint was written yet"
        self._log("diverged", epoch=self.at.epoch + 1, step=step, what=what)
        raise Stage1Error(
            f"train: {what} at step {step} (epoch {self.at.epoch + 1}); lower train.learning_rate "
            f"({self.config.learning_rate:g}) or images.learning_rate_scale ({self.images.learning_rate_scale:g}), and start "
            f"anew (fresh); {kept}"
        )
