"""A sweep over configurations of a head: all trained at once, the best chosen on val_select by AUGRC.

The winner, trained alone by `train_head`, ends with the same logits up to the rounding of sums (measured where it is
done, and said).
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.config import HeadConfig, SweepConfig, TrainConfig
from stage1.errors import Checkpointed, ConfigError
from stage1.storage.files import write_text
from stage1.training.optim import own_torch_state, sub_seed
from stage1.training.selection import LabelledFeatures, SelectMetrics, select_metrics
from stage1.training.sweep_batch import Candidate, SweepBatch

SWEEP = "sweep.csv"
COLUMNS = (
    "rank",
    "learning_rate",
    "weight_decay",
    "label_smoothing",
    "hidden",
    "seed",
    "augrc",
    "augrc_low",
    "augrc_high",
    "nll",
    "accuracy",
    "best_epoch",
    "used_ema",
    "epochs_run",
)


@dataclass(frozen=True, slots=True)
class Swept:
    """A trained candidate: its logits on val_select (float32 [M, K], of the best weights) and how it came about.

    augrc_low, augrc_high: bootstrap interval of AUGRC on val_select, whole groups drawn within labels; NaN where there
    is none (an empty cell in the table).
    """

    candidate: Candidate
    logits: NDArray[np.float32]
    metrics: SelectMetrics
    augrc_low: float
    augrc_high: float
    best_epoch: int
    used_ema: bool
    epochs_run: int


def candidates(sweep: SweepConfig, config: TrainConfig, head: HeadConfig, seed: int) -> list[Candidate]:
    """Every combination of the sweep's lists, those of one seed side by side; the first seed is `seed` itself.

    Raises ConfigError for a kind of head or an objective that a sweep does not know.
    """
    if head.selective or head.members > 1 or config.objective != "ce" or config.entropy > 0:
        what = (
            f"head.kind={head.kind}, head.members={head.members}, train.objective={config.objective},"
            f" train.entropy={config.entropy:g}"
        )
        raise ConfigError(f"sweep.enabled: with {what}; a sweep is for one linear or mlp head and plain cross-entropy")
    if config.accumulate > 1:
        raise ConfigError(f"sweep.enabled: with train.accumulate={config.accumulate}; set train.accumulate=1")
    widths = (sweep.hidden or [head.hidden]) if head.kind == "mlp" else [head.hidden]
    seeds = [seed if index == 0 else sub_seed(seed, "sweep", index) % 2**31 for index in range(sweep.seeds)]
    grid = itertools.product(seeds, sweep.learning_rates, sweep.weight_decays, sweep.label_smoothings, widths)
    made = [
        Candidate(
            config.model_copy(update={"learning_rate": rate, "weight_decay": decay, "label_smoothing": smoothing}),
            head.model_copy(update={"hidden": width}),
            own,
        )
        for own, rate, decay, smoothing, width in grid
    ]
    return made


def train_sweep(
    train: LabelledFeatures,
    select: LabelledFeatures,
    heads: Sequence[Candidate],
    *,
    n_classes: int,
    groups: NDArray[np.str_] | None = None,
    resamples: int = 200,
    progress: Callable[[int], None] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[Swept]:
    """Train all candidates at once; best first: by AUGRC on val_select, then NLL, then in the order given.

    heads: of `candidates`: the same number for each seed, seed by seed. groups: str [M] of val_select, for the
    intervals.
    progress: called after each epoch with its number. stop: asked before each epoch; True raises Checkpointed (a sweep
    keeps no checkpoint: the same call starts over and ends the same). One thread, deterministic; torch's global state
    is as before afterwards.
    Raises Stage1Error where a candidate's loss is not finite (it names the candidate), DataError as `train_head` does.
    """
    with own_torch_state():
        batch = SweepBatch(train, select, heads, n_classes)
        for epoch in range(batch.config.epochs):
            if stop is not None and stop():
                raise Checkpointed(
                    f"sweep: stopped on request in epoch {epoch + 1}; run the same command to do it again"
                )
            batch.train_epoch(epoch)
            batch.validate(epoch)
            if progress is not None:
                progress(epoch + 1)
            if batch.done.all():
                break
        logits = batch.best_logits()
    found = [_judged(batch, index, logits[index], select, groups, resamples) for index in range(len(heads))]
    return sorted(found, key=lambda item: item.metrics.key("augrc"))


def write_sweep(path: str | os.PathLike[str], found: Sequence[Swept]) -> None:
    """sweep.csv: one row per candidate, best first (COLUMNS)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for rank, item in enumerate(found, 1):
        config, head, metrics = item.candidate.train, item.candidate.head, item.metrics
        writer.writerow(
            [
                rank,
                config.learning_rate,
                config.weight_decay,
                config.label_smoothing,
                head.hidden if head.kind == "mlp" else "",
                item.candidate.seed,
                metrics.augrc,
                *("" if math.isnan(end) else end for end in (item.augrc_low, item.augrc_high)),
                metrics.nll,
                metrics.accuracy,
                item.best_epoch,
                item.used_ema,
                item.epochs_run,
            ]
        )
    write_text(path, text.getvalue())


def _judged(
    batch: SweepBatch,
    index: int,
    logits: NDArray[np.float32],
    select: LabelledFeatures,
    groups: NDArray[np.str_] | None,
    resamples: int,
) -> Swept:
    from stage1.evaluation import bootstrap

    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    confidence = 1.0 / np.exp(values).sum(axis=1)
    wrong = (values.argmax(axis=1) != select.labels).astype(np.float64)
    interval = bootstrap(
        {"augrc": "augrc"},
        confidence=confidence,
        residuals=wrong,
        labels=select.labels,
        groups=groups,
        n_resamples=resamples,
        seed=sub_seed(0, "sweep intervals") % 2**32,
    )["augrc"]
    return Swept(
        batch.candidates[index],
        logits,
        select_metrics(logits, select.labels),
        interval.low,
        interval.high,
        int(batch.best_epoch[index]),
        bool(batch.used_ema[index]),
        int(batch.epochs_run[index]),
    )
