"""train: the head on cached features, its sweep, and the choice between it and the joint head of `tune`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.runs.artifacts import (
    JOINT_HEAD,
    TUNE_FOLDER,
    joint_head_file,
    present,
)
from stage1.runs.directory import RunDir
from stage1.runs.schema import FEATURES_KIND, TRAIN_KIND, TUNE_KIND
from stage1.runs.stage import Context, Stage
from stage1.runtime.crops import ViewPolicy
from stage1.stages.chosen_head import OUT_OF_FOLD, choose_head, fit_head
from stage1.stages.extract import TRAINING_ROLES
from stage1.stages.resuming import is_fresh, remember
from stage1.stages.views import (
    learning_state,
)
from stage1.storage.documents import finite_or_none, read_document, write_document
from stage1.storage.files import digest_file

if TYPE_CHECKING:
    from stage1.config import HeadConfig
    from stage1.data.table import SampleTable
    from stage1.training import TrainResult
    from stage1.training.sweep import Swept

SWEEP_TOLERANCE = 1e-4  # of a logit: one head's sums and those of a stack are rounded differently


def train(run: RunDir, context: Context) -> list[Path]:
    """The head on cached features of train; epoch, EMA, and this head or that of `tune`: by val_select."""
    from stage1.data.table import SampleTable
    from stage1.training import train_head
    from stage1.training.head_selection import Pool, why_not_chosen
    from stage1.training.view_pooling import ViewTraining

    config, document = run.config, read_document(run / "features.json", FEATURES_KIND)
    table = SampleTable.read(run / "samples.parquet")
    features, labels = zip(*(_features(run, document, table, role) for role in TRAINING_ROLES), strict=True)
    inputs = run / "checkpoints" / "inputs"
    digest = (
        digest_file(run / "features.json")
        + digest_file(run / "samples.parquet")
        + str((config.head, config.train, config.sweep, config.seed))
        + learning_state(run)
    )
    fresh = is_fresh(inputs, digest)
    if fresh:
        for name in ("checkpoints/last.safetensors", "model_best.pth"):
            (run / name).unlink(missing_ok=True)
        remember(inputs, digest)
    groups = [table.groups[table.rows(role)] for role in TRAINING_ROLES]
    swept, settings, head, seed = None, config.train, config.head, config.seed
    chosen: dict[str, Any] = {}
    (run / OUT_OF_FOLD).unlink(missing_ok=True)
    if head.fitted_once:
        (run / "metrics.csv").unlink(missing_ok=True)
        reason = why_not_chosen(config) if head.kind == "auto" else None
        if reason is None:
            pool = Pool.of(features, labels, groups, len(table.classes))
            chosen, found = choose_head(run, context, pool)
            if found is not None and found.kind == "logistic":
                return fit_head(run, context, pool, table, chosen, found)
        else:
            context.progress.say(f"  head: linear, not chosen: {reason}")
            chosen = {"kind": "linear", "skipped": reason, "refit": False}
        head = head.model_copy(update={"kind": chosen["kind"]})
    if config.sweep.enabled:
        swept = _sweep(run, context, features, labels, groups[1], len(table.classes))
        settings, head, seed = swept.candidate.train, swept.candidate.head, swept.candidate.seed
    learn = config.views.train
    views = ViewTraining(learn, config.views.pool) if learn in ("views", "mil") else None
    with context.progress.bar("epochs", settings.epochs) as advance, context.stop.deferred():
        result = train_head(
            features[0],
            labels[0],
            features[1],
            labels[1],
            config=settings,
            head=head,
            n_classes=len(table.classes),
            seed=seed,
            folder=run.path,
            stop=context.stop,
            fresh=fresh,
            groups=groups[0],
            views=views,
            progress=lambda row: advance(1, f"val_select nll {row['select_nll']:.4f}"),
        )
    kind = "EMA" if result.used_ema else "raw"
    context.progress.say(
        f"  best epoch {result.best_epoch} of {result.epochs_run} ({kind} weights): "
        f"{config.train.select_by} {result.best_metric:.4f} on val_select"
    )
    result, choice = better_head(run, result, features[1], labels[1], len(table.classes), context)
    facts: dict[str, Any] = {
        "best_epoch": result.best_epoch,
        "best_metric": result.best_metric,
        "select_by": config.train.select_by,
        "used_ema": result.used_ema,
        "epochs_run": result.epochs_run,
        "metrics": dict(result.metrics),
        **choice,
        **({"choice": chosen} if chosen else {}),
    }
    if result.gate is not None:
        facts["gate"] = result.gate.to_json()
        collapsed = result.gate.collapsed or ""
        named = "" if collapsed.startswith("not fitted") else "collapsed, "
        state = (
            f"WARNING {named}{collapsed}"
            if collapsed
            else (
                f"g between {result.gate.low:.3f} and {result.gate.high:.3f} for 95 % of val_select"
                + ("" if result.gate.auroc is None else f", AUROC of right answers {result.gate.auroc:.3f}")
            )
        )
        context.progress.say(f"  gate: {state}")
    if swept is not None:
        facts["sweep"] = _winner(swept, result.head, features[1], context)
    write_document(run / "train.json", facts, TRAIN_KIND)
    written = [run / "model_best.pth", run / "metrics.csv", run / "train.json"]
    return written if swept is None else [*written, run / "sweep.csv"]


def better_head(
    run: RunDir,
    refit: TrainResult,
    select: NDArray[np.float32],
    labels: NDArray[np.int64],
    n_classes: int,
    context: Context,
) -> tuple[TrainResult, dict[str, Any]]:
    """The better of the refit head of `train` and the joint head of `tune`, and what train.json says of it.

    select: features of val_select, where the choice is made and nowhere else. In a run without `tune` there is one head
    alone.
    """
    from stage1.training.head_choice import better_head as better
    from stage1.training.head_choice import why_not_compared

    if not run.config.tunes:
        return refit, {}
    if (reason := why_not_compared(run.config)) is not None:
        context.progress.say(f"  the head trained along with the backbone is not compared: {reason}")
        return refit, {"along": {"ships": "again", "skipped": reason}}
    by, facts = run.config.train.select_by, read_document(run / TUNE_FOLDER / "tune.json", TUNE_KIND)
    result, compared = better(
        refit, run / JOINT_HEAD, facts, select, labels, by=by, n_classes=n_classes, folder=run.path
    )
    which = "one trained along" if compared.ships == "along" else "new one"
    scaled = ", at the temperature that is best for each" if by == "nll" else ""
    context.progress.say(
        f"  {by} on val_select{scaled}: this head {compared.refit.value(by):.5f}, the one trained along with the"
        f" backbone {compared.joint.value(by):.5f}; the {which} ships"
    )
    return result, {"along": compared.to_json()}


def _sweep(
    run: RunDir, context: Context, features: Any, labels: Any, select_groups: NDArray[np.str_], n_classes: int
) -> Swept:
    """The best configuration of the sweep; the table of all goes to sweep.csv."""
    from stage1.training.selection import checked_features
    from stage1.training.sweep import SWEEP, candidates, train_sweep, write_sweep

    config = run.config
    heads = candidates(config.sweep, config.train, config.head, config.seed)
    both = [
        checked_features(features[place], labels[place], n_classes, role) for place, role in enumerate(TRAINING_ROLES)
    ]
    with context.progress.bar(f"epochs of {len(heads)} heads", config.train.epochs) as advance:
        found = train_sweep(
            both[0],
            both[1],
            heads,
            n_classes=n_classes,
            groups=select_groups,
            resamples=config.sweep.resamples,
            progress=lambda epoch: advance(1, ""),
            stop=context.stop,
        )
    write_sweep(run / SWEEP, found)
    best = found[0].candidate
    width = f", hidden {best.head.hidden}" if best.head.kind == "mlp" else ""
    context.progress.say(
        f"  best of {len(found)} heads: learning_rate {best.train.learning_rate:g}, weight_decay"
        f" {best.train.weight_decay:g}, label_smoothing {best.train.label_smoothing:g}{width}, seed {best.seed}: AUGRC"
        f" {found[0].metrics.augrc:.5f} ({_interval(found[0])}) on val_select"
    )
    return found[0]


def _interval(swept: Swept) -> str:
    if math.isnan(swept.augrc_low):
        return "no interval"
    return f"{swept.augrc_low:.5f} to {swept.augrc_high:.5f}"


def _winner(swept: Swept, head: Any, select: NDArray[np.float32], context: Context) -> dict[str, Any]:
    """Facts on the winner, and whether it gives the same logits trained alone as it did among the others."""
    from stage1.training.selection import all_logits

    difference = float(np.abs(all_logits([head], select)[0] - swept.logits).max())
    agrees = difference <= SWEEP_TOLERANCE
    if not agrees:
        context.progress.say(
            f"  WARNING the winner trained alone differs from the sweep by up to {difference:.3g} in a logit (expected "
            f"<= {SWEEP_TOLERANCE:g}): near-tied epochs; what ships is the one trained alone"
        )
    best = swept.candidate
    return {
        "learning_rate": best.train.learning_rate,
        "weight_decay": best.train.weight_decay,
        "label_smoothing": best.train.label_smoothing,
        "hidden": best.head.hidden,
        "seed": best.seed,
        "augrc": swept.metrics.augrc,
        "augrc_low": finite_or_none(swept.augrc_low),
        "augrc_high": finite_or_none(swept.augrc_high),
        "largest_difference": difference,
        "agrees": agrees,
    }


def trained_head(run: RunDir) -> HeadConfig:
    """The config of the head in model_best.pth: its kind may have been chosen, and a sweep its width."""
    config = run.config
    if not (config.sweep.enabled or config.head.fitted_once):
        return config.head
    facts = read_document(run / "train.json", TRAIN_KIND)
    kind = {"kind": facts["choice"]["kind"]} if "choice" in facts else {}
    width = {"hidden": facts["sweep"]["hidden"]} if "sweep" in facts else {}
    return config.head.model_copy(update={**kind, **width})


def _features(
    run: RunDir, document: dict[str, Any], table: SampleTable, role: str
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from stage1.features import FeatureKey, FeatureStore, per_view

    rows = table.rows(role)
    store = FeatureStore(document["store"] or run / "features")
    features = store.read(table.ids[rows].tolist(), FeatureKey(**document["key"]))
    views = ViewPolicy.from_json(document["views"]) if "views" in document else None
    made = per_view(features, views)
    if views is not None and run.config.views.train == "pooled":
        from stage1.model.view_pooling import pool_features

        made = pool_features(made, views)
    return made, table.labels[rows]


STAGE = Stage(
    name="train",
    sections=("head", "train", "sweep", "seed"),
    reads=lambda config: present("samples.parquet", "features.json", joint_head_file(config)),
    work=train,
    external=learning_state,
    modules=("torch",),
    modules_by_config=lambda config: ("tensorboard",) if config.train.tensorboard else (),
)
