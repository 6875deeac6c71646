"""Train a head on features in memory: the one entry point."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import ConfigError, DataError
from stage1.model.head import BEST_WEIGHTS, Ensemble, GatedHead, Head, SelectiveHead, save_weights
from stage1.training.epoch_progress import LOG, append_event
from stage1.training.gate import cross_fitted_gate_targets, fit_gate, too_few_answers
from stage1.training.gate_diagnosis import gate_health
from stage1.training.head_run import Run, TrainResult
from stage1.training.optim import own_torch_state
from stage1.training.selection import LabelledFeatures, all_outputs, checked_features
from stage1.training.view_pooling import ViewTraining


def train_head(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    select_features: NDArray[np.float32],
    select_labels: NDArray[np.int64],
    *,
    config: TrainConfig,
    head: HeadConfig,
    n_classes: int,
    seed: int,
    folder: Path,
    progress: Callable[[Mapping[str, Any]], None] | None = None,
    stop: Callable[[], bool] | None = None,
    fresh: bool = False,
    groups: NDArray[np.str_] | None = None,
    views: ViewTraining | None = None,
) -> TrainResult:
    """Train a head on `features` [N, D], choosing epoch and raw or EMA weights on `select_features` [M, D].

    views: both are of the views of each image, [N, V, D] and [M, V, D]; on val_select their logits are pooled.

    Goes on from `folder`/checkpoints/last.safetensors where that is there, bit-equal to never having stopped (same
    machine and versions); a finished run returns its result at once. Writes that file, model_best.pth, metrics.csv,
    log.jsonl and, if asked, tensorboard/.
    progress: called after each epoch with its row of metrics.csv. stop: asked before each optimizer step; True writes a
    checkpoint and raises Checkpointed. fresh: drop what an earlier run left in `folder`. groups: str [N] of train,
    which a gate that is fitted after the classifier (head.gate linear or mlp) keeps whole in its folds; its parts stand
    in `folder`/gate.
    Raises DataError (shapes, NaN, labels, a class without images), ConfigError (checkpoint of another config or
    data), IntegrityError (damaged checkpoint), MissingError (tensorboard), Stage1Error (loss or gradient not finite,
    disk full).
    Torch's global state (threads, determinism, generator, grad mode) is as before when this returns or raises.
    """
    folder = Path(folder)
    of_views = views is not None
    train = checked_features(features, labels, n_classes, "train", of_views=of_views)
    select = checked_features(select_features, select_labels, n_classes, "val_select", of_views=of_views)
    if train.features.shape[1:] != select.features.shape[1:]:
        found, wanted = (" x ".join(map(str, role.features.shape[1:])) for role in (select, train))
        raise DataError(
            f"val_select: {found} feature columns, train has {wanted}; extract both with the same backbone and views"
        )
    if views is not None:
        _check_views(views, head, n_classes)
        train = LabelledFeatures(*views.rows(train.features, train.labels))
    with own_torch_state():
        result = Run(train, select, config, head, n_classes, seed, folder, views=views).finish(stop, fresh, progress)
        few = None
        if head.gate in ("linear", "mlp"):
            result, few = _with_gate(result, train, select, config, head, n_classes, seed, folder, stop, fresh, groups)
        return result if views is not None else _judged(result, select, folder, few)


def _check_views(views: ViewTraining, head: HeadConfig, n_classes: int) -> None:
    if head.selective or head.gate in ("linear", "mlp"):
        raise ConfigError(
            f"views.train={views.learn} with head.kind={head.kind}, head.gate={head.gate}; it is for linear and mlp"
            " heads without a gate"
        )
    views.check_classes(n_classes)


def _with_gate(
    result: TrainResult,
    train: LabelledFeatures,
    select: LabelledFeatures,
    config: TrainConfig,
    head: HeadConfig,
    n_classes: int,
    seed: int,
    folder: Path,
    stop: Callable[[], bool] | None,
    fresh: bool,
    groups: NDArray[np.str_] | None,
) -> tuple[TrainResult, str | None]:
    """The classifier with a gate fitted after it (both in model_best.pth), and why the gate is constant, or None."""
    place = folder / "gate"
    if fresh:
        shutil.rmtree(place, ignore_errors=True)
    targets = cross_fitted_gate_targets(
        train.features,
        train.labels,
        groups,
        select_features=select.features,
        select_labels=select.labels,
        config=config,
        head=head,
        n_classes=n_classes,
        seed=seed,
        folder=place,
        stop=stop,
    )
    answers, _ = all_outputs([result.head], select.features)[0]
    gate = fit_gate(
        train.features,
        targets,
        select.features,
        answers,
        answers.argmax(axis=1) == select.labels,
        config=config,
        head=head,
        seed=seed,
        folder=place / "head",
        stop=stop,
    )
    assert isinstance(result.head, (Head, SelectiveHead, Ensemble))
    whole = GatedHead(result.head, gate).eval().requires_grad_(False)
    save_weights(folder / BEST_WEIGHTS, whole.state_dict())
    return replace(result, head=whole), too_few_answers(targets)


def _judged(result: TrainResult, select: LabelledFeatures, folder: Path, few: str | None) -> TrainResult:
    """With the health of the gate on val_select, where there is one; a collapse goes into the log.

    few: why no gate could be fitted; a constant gate is then what was asked for, and `few` is the reason to give.
    """
    logits, gate = all_outputs([result.head], select.features)[0]
    if gate is None:
        return result
    health = gate_health(gate, logits.argmax(axis=1) == select.labels)
    if few is not None:
        health = replace(health, collapsed=f"not fitted: {few}")
    append_event(folder / LOG, "gate", **health.to_json())
    return replace(result, gate=health)
