"""One training run on images: steps over all processes, validation, checkpoints, bit-equal resume.

Order, distortions and dropout follow from (seed, epoch, step, image); the position of the run: epoch_progress.py.
A checkpoint holds what is trained and nothing else: the frozen rest is the backbone's, whose fingerprint it holds.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.config import AdapterConfig, HeadConfig, ImageTrainConfig, TrainConfig
from stage1.data.augment import describe
from stage1.errors import Stage1Error
from stage1.model.head import Classifier, feature_statistics
from stage1.runtime.preprocessing import Preprocessing
from stage1.storage.files import digest_bytes
from stage1.training.budget import Budget, Costs
from stage1.training.checkpoint import LAST, config_digest, flatten_optimizer, restore_optimizer, run_facts
from stage1.training.distributed import PeerLost, Processes, facts, lost
from stage1.training.epoch_progress import EpochProgress, Stored
from stage1.training.frozen_parts import computed_once
from stage1.training.image_batches import LabelledImages, Loader
from stage1.training.image_costs import seconds_per_step
from stage1.training.image_model import (
    ImageModel,
    Passes,
    all_outputs,
    parameter_groups,
    put_trained,
    swapped,
    trained_state,
)
from stage1.training.image_watch import Watch
from stage1.training.losses import class_weights
from stage1.training.optim import Ema, epoch_order, sub_seed

log = logging.getLogger("stage1")
# These change no weight on one machine: they may change between a stop and the resume. The second row stands in
# TrainConfig.
_FREE = {"workers", "threads", "device", "epochs", "batch_size", "learning_rate"}


class ImageRun:
    """Model, optimizer, and their position (`epochs`), in one of `group.world` processes."""

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
        section: str,
        less_memory: str,
        watch: Watch,
    ) -> None:
        config, head, images, adapter = configs
        self.budget = None if images.minutes is None else Budget(images.minutes)
        self.plan: dict[str, Any] | None = None
        self.cut_short = False
        self.watch = watch if group.first else Watch()
        self.train, self.select, self.config, self.images = train, select, config, images
        self.seed, self.device, self.group, self.spec = seed, device, group, spec
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
        dim = int(self.head.mean.shape[0])
        decisive = run_facts(config, head, dim=dim, n_classes=n_classes, seed=seed) | {
            "images": {
                key: value
                for key, value in images.model_dump(mode="json").items()
                if key not in _FREE and not (key == "minutes" and value is None)
            },
            "adapter": adapter.model_dump(mode="json"),
            "augment": describe(images.augment),
            "half": model.half,
            "preprocessing": spec.to_json(),
            "backbone": fingerprint,
            "device": device.type,
        }
        texts = [
            # Of the bytes too: under the same ids other pictures are other data.
            f"{name} {label} {digest}"
            for part in (train, select)
            for name, label, digest in zip(
                part.ids, part.labels, part.digests(images.workers, spec.max_pixels), strict=True
            )
        ]
        self.epochs = EpochProgress(
            folder,
            config,
            len(train),
            decisive,
            digest_bytes("\n".join([str(len(train)), *texts]).encode()),
            section=section,
            writes=group.first,
            slower=f"images.learning_rate_scale ({images.learning_rate_scale:g})",
            shipped=_head_only,
        )
        micro = math.ceil(config.batch_size / group.world)
        self.passes = Passes(model, self.weights, config.label_smoothing, device, micro, seed, group.rank, less_memory)
        self.loader = Loader(train.items, train.ids, spec, images.augment, seed, images.workers)
        self.threads = torch.get_num_threads()

    # ---- start and end --------------------------------------------------------------------------------------------

    def begin(self, fresh: bool) -> None:
        epochs = self.epochs
        stored = epochs.load(fresh)
        self.group.agree(
            f"{config_digest(epochs.facts)} {epochs.data} {stored and stored[1]['position']}", "config or data"
        )
        if stored is not None:
            self._restore(stored)
        epochs.claim(stored is not None)
        if stored is None:
            self._standardise()
            if self.budget is not None:
                self._plan(self.budget)
        epochs.begun(
            stored is not None,
            threads=self.threads,
            seed=self.seed,
            device=str(self.device),
            **facts(self.group),
            trainable=sum(p.numel() for p in self.trained),
            parameters=sum(p.numel() for p in self.model.parameters()),
        )

    def _standardise(self) -> None:
        """Give the head the statistics of its inputs and the frequencies of the classes."""
        order = np.random.default_rng(sub_seed(self.seed, "statistics")).permutation(len(self.train))
        rows = np.sort(order[: self.images.statistics_images])
        self.watch.begun("statistics", len(rows), 0)
        features = self._all(self.train, rows, lambda x: [self.model.features(x)], "for the head's first scale")[0]
        counts = np.bincount(self.train.labels, minlength=len(self.weights))
        self.head.to("cpu")
        self.head.standardise(*feature_statistics(features))
        self.head.start_at(counts * self.weights.numpy().astype(np.float64))
        self.head.to(self.device)
        if self.ema is not None:
            self.ema = Ema(self.average, self.config.ema_decay)

    def _plan(self, budget: Budget) -> None:
        """Measure, and plan the epochs that the budget has time for; the same in all processes."""
        epochs, config, group = self.epochs, self.config, self.group
        costs = self._measured()
        size = {"images": len(self.train), "batch": self._step_size}
        plan, line = budget.plan(costs, epochs=config.epochs, steps=epochs.steps, **size)
        # Each process has a clock of its own: the first one's plan is everybody's.
        sizes = np.full((1, 2), (plan.epochs, plan.steps), np.float32)
        first = group.join(sizes, group.world)[0]
        epochs.plan(int(first[0]), int(first[1]))
        self.plan = {"epochs": epochs.epochs, "steps": epochs.steps, "seconds": plan.seconds, **asdict(costs)}
        self.watch.said(line)
        epochs.log("plan", minutes=budget.minutes, **self.plan)

    def _measured(self) -> Costs:
        """Seconds of a step and of a validation: means over the processes of those of a few."""
        group, rows = self.group, np.arange(min(len(self.select), 2 * self.passes.micro * self.group.world))
        step = seconds_per_step(self.passes, self.loader, self.train.labels, self._steps_of(0), group)
        begun = time.perf_counter()
        self._all(self.select, rows, self._both)
        validation = (time.perf_counter() - begun) * len(self.select) / len(rows)
        both = group.join(np.full((1, 2), (step, validation), np.float32), group.world).mean(axis=0)
        return Costs(float(both[0]), float(both[1]))

    def _steps_of(self, epoch: int) -> list[NDArray[np.int64]]:
        """Rows of every step that visits all images of an epoch."""
        order = epoch_order(len(self.train), self.seed, epoch)
        return [order[start : start + self._step_size] for start in range(0, len(order), self._step_size)]

    def finish(
        self,
        stop: Callable[[], bool] | None,
        fresh: bool,
        progress: Callable[[Mapping[str, Any]], None] | None,
    ) -> dict[str, Any]:
        """From the folder's checkpoint to the end, with the best weights in the model. Returns their facts."""
        try:
            self.begin(fresh)
            epochs = self.epochs
            behind = epochs.at.epoch * self._images_of_epoch + epochs.at.step * self._step_size
            self.watch.begun("images", epochs.epochs * self._images_of_epoch, behind)
            while not epochs.at.done:
                self.train_epoch(stop)
                if self.cut_short and not epochs.at.step:  # time ran out between two epochs: the last one is judged
                    epochs.at.done = True
                    self._checkpoint()
                    epochs.tell_done()
                    break
                row = self.finish_epoch()
                if progress is not None and self.group.first:
                    progress(row)
        except PeerLost as error:
            raise self._orphaned(error) from error
        finally:
            self.loader.close()
            self.epochs.close()
        best = self.epochs.at.best
        assert best is not None  # an epoch either ends with a best or raises
        put_trained(self.model, self.epochs.best_weights)
        return dict(best)

    def _orphaned(self, error: PeerLost) -> Stage1Error:
        """The state before the step that failed is whole: the first process still writes it."""
        epochs = self.epochs
        if self.group.first and epochs.done_steps and not epochs.at.done:
            self._checkpoint()
        path = epochs.folder / LAST
        kept = f"the state after the last whole step is {path}" if path.exists() else "no checkpoint was written yet"
        epochs.log("lost", epoch=epochs.at.epoch + 1, step=epochs.done_steps, what=str(error))
        return lost(error, "train", kept)

    # ---- one epoch ------------------------------------------------------------------------------------------------

    def train_epoch(self, stop: Callable[[], bool] | None) -> None:
        """The steps of this epoch that are not done yet."""
        self.model.train()
        at = self.epochs.at
        plan = self._steps_of(at.epoch)[at.step : self.epochs.steps]
        batches = self.loader.batches([self.group.share(rows) for rows in plan], at.epoch)
        for rows in plan:
            if self.group.any(stop is not None and stop()):
                self._checkpoint()
                raise self.epochs.stopped()
            if self._time_is_up():
                return
            self._step(rows, next(batches))
            self.watch.seen(len(rows), self._note(f"loss {at.loss_sum / at.weight_sum:.4f}"))

    def _time_is_up(self) -> bool:
        """Whether the budget ends here; never before there are weights to judge."""
        budget, at = self.budget, self.epochs.at
        if budget is not None and self.group.any(budget.over) and (at.step or at.best is not None):
            self.cut_short = True
            self.epochs.log("over", step=self.epochs.done_steps, minutes=budget.minutes)
        return self.cut_short

    def _note(self, what: str) -> str:
        at = self.epochs.at
        before = f", val_select nll {at.rows[-1]['select_nll']:.4f} before" if at.rows else ""
        return f"epoch {at.epoch + 1} of {self.epochs.epochs}, {what}{before}"

    @property
    def _step_size(self) -> int:
        return self.config.batch_size * self.config.accumulate

    @property
    def _images_of_epoch(self) -> int:
        """Images that an epoch goes through, to train and to validate."""
        return min(len(self.train), self.epochs.steps * self._step_size) + len(self.select)

    def _step(self, rows: NDArray[np.int64], images: Tensor) -> None:
        """One optimizer step on `rows`, of which this process has the images of its share."""
        epochs = self.epochs
        step = epochs.done_steps
        labels = torch.from_numpy(self.train.labels)
        weight = float(self.weights[labels[rows]].sum(dtype=torch.float64))
        rate = epochs.rate(step)
        for group, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            group["lr"] = rate * scale
        place, micro = (epochs.at.epoch, epochs.at.step), self.passes.micro
        loss_sum = self.passes.gradients(images, labels[self.group.share(rows)], weight, place)
        if self.passes.micro < micro:
            epochs.log("memory", step=step + 1, images_at_a_time=self.passes.micro)
        (loss_sum,) = self.group.add_gradients(self.trained, [loss_sum])
        limit = math.inf if self.config.clip_norm is None else self.config.clip_norm
        norm = float(nn.utils.clip_grad_norm_(self.trained, limit))
        if not (math.isfinite(loss_sum) and math.isfinite(norm)):
            raise epochs.diverged(f"loss {loss_sum / weight:g}, gradient norm {norm:g}")
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update(self.average, step)
        epochs.count(loss_sum, weight)

    def finish_epoch(self) -> dict[str, Any]:
        """Validate raw and EMA weights, keep the best so far, write files. Returns the epoch's row of metrics.csv."""
        begun = 0.0 if self.budget is None else self.budget.spent
        logits = self._all(self.select, np.arange(len(self.select)), self._both, self._note("validation"))
        if self.budget is not None:
            self.budget.validation = self.budget.spent - begun
        found = self.epochs.judged(logits, self.select.labels)
        row = self.epochs.end_epoch(found, lambda place: self._state(average=bool(place)), last=self.cut_short)
        if self.epochs.checkpoint_due:
            self._checkpoint()
        self.epochs.tell(row, waiting_share=round(self.loader.waiting_share, 4), images_at_a_time=self.passes.micro)
        return dict(row)

    # ---- outputs of many images -----------------------------------------------------------------------------------

    def _both(self, images: Tensor) -> list[Tensor]:
        """Logits by the raw weights and, where there is an average, by it."""
        if self.ema is None:
            return [self.model(images)]
        with computed_once(self.model.body):
            made = [self.model(images)]
            with swapped(self.trained, list(self.ema.module)):
                made.append(self.model(images))
        return made

    def _all(
        self, part: LabelledImages, rows: NDArray[np.int64], call: Callable[[Tensor], list[Tensor]], note: str = ""
    ) -> list[NDArray[np.float32]]:
        """note: with which the images are counted as seen; none, not counted."""
        size, workers = self.passes.micro, self.images.workers
        return all_outputs(
            self.model,
            part,
            rows,
            call,
            self.spec,
            self.group,
            self.device,
            size,
            workers,
            seen=lambda n: self.watch.seen(n * self.group.world, note) if note else None,
        )

    # ---- state ----------------------------------------------------------------------------------------------------

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
        parts = {"model": self._state(), "optimizer": flatten_optimizer(self.optimizer)}
        if self.ema is not None:
            parts["ema"] = self._state(average=True)
        timed: dict[str, Any] = {}
        if self.budget is not None:
            timed = {"plan": self.plan, "spent": self.budget.spent, "cut_short": self.cut_short}
        self.epochs.save(parts, threads=self.threads, micro=self.passes.micro, processes=self.group.world, **timed)

    def _restore(self, stored: Stored) -> None:
        parts, facts = self.epochs.restore(stored), stored[1]
        put_trained(self.model, parts["model"])
        restore_optimizer(self.optimizer, parts["optimizer"])
        if self.ema is not None:
            names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
            with torch.no_grad():
                for name, average in zip(names, self.ema.module.parameters(), strict=True):
                    average.copy_(parts["ema"][name])
        if self.budget is not None:
            self.plan, self.cut_short = dict(facts["plan"]), facts["cut_short"]
            self.epochs.plan(self.plan["epochs"], self.plan["steps"])
            self.budget.resume(facts["spent"])
            self.budget.validation = self.plan["validation"]
        if facts["processes"] == self.group.world:
            self.passes.micro = min(self.passes.micro, int(facts["micro"]))
        if facts["threads"] != self.threads:
            log.warning(
                "resumed with %d threads, begun with %d: last digits may differ", self.threads, facts["threads"]
            )


def _head_only(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("head."): t for name, t in weights.items() if name.startswith("head.")}
