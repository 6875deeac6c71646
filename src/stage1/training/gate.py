"""A gate fitted after the classifier, on its correctness on images that it did not fit.

A classifier is right on nearly everything that it was fitted on, so a gate trained on that learns to say yes. Here
train is cut in folds, whole groups; for each fold a classifier is trained on the others in the same way, and its
answers there, right or wrong, are what the gate learns from (out-of-fold predictions; Wolpert 1992, stacked
generalisation).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import DataError
from stage1.model.head import Gate, build_gate, feature_statistics, gate_config, gate_inputs
from stage1.scores import Scores
from stage1.scores.roles import hashed_roles
from stage1.training.head_run import Run
from stage1.training.optim import sub_seed
from stage1.training.selection import LabelledFeatures, all_logits, checked_features, select_metrics

FOLDS = 5
MINIMUM = 10  # wrong and right answers that a gate needs to learn from
_ROWS = 8192

Stop = Callable[[], bool] | None


@dataclass(frozen=True, slots=True)
class GateTargets:
    """Answers of classifiers that did not fit the rows they answer for.

    right: bool [N]. logits: float32 [N, K] of the answer. fold: int64 [N], which classifier left the row out.
    """

    right: NDArray[np.bool_]
    logits: NDArray[np.float32]
    fold: NDArray[np.int64]


def cross_fitted_gate_targets(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: NDArray[np.str_] | None,
    *,
    select_features: NDArray[np.float32],
    select_labels: NDArray[np.int64],
    config: TrainConfig,
    head: HeadConfig,
    n_classes: int,
    seed: int,
    folds: int = FOLDS,
    folder: Path | None = None,
    stop: Stop = None,
) -> GateTargets:
    """For every row of train the answer of a classifier that saw neither it nor its group.

    features: float32 [N, D], labels: int64 [N], groups: str [N] or None (each row by itself). select_features,
    select_labels: of val_select, on which each classifier chooses its epoch as the shipped one does. config, head:
    those of the shipped classifier.
    folder: where the classifiers keep their checkpoints (a stopped call resumes there); None: nowhere. The fold of a
    group follows from (seed, group) alone. Runs in torch's present state: call it from `train_head`, or with one thread
    for equal bits.
    Raises DataError: fewer than two folds with rows, or a class with no row outside a fold; Checkpointed where `stop`
    says so.
    """
    train = checked_features(features, labels, n_classes, "train")
    select = checked_features(select_features, select_labels, n_classes, "val_select")
    fold = _folds(len(labels), groups, folds, seed)
    right = np.zeros(len(labels), dtype=np.bool_)
    logits = np.zeros((len(labels), n_classes), dtype=np.float32)
    # One file per fold is enough, and a head of few megabytes need not be written each epoch.
    quick = config.model_copy(update={"checkpoint_every": config.epochs, "tensorboard": False})
    with tempfile.TemporaryDirectory() if folder is None else nullcontext(folder) as base:
        for index in np.unique(fold):
            held, outside = np.flatnonzero(fold == index), np.flatnonzero(fold != index)
            counts = np.bincount(train.labels[outside], minlength=n_classes)
            if (counts == 0).any():
                raise DataError(
                    f"head.gate: outside fold {index} of {folds} no image of class {int(counts.argmin())} is left; "
                    "images of a class stand in too few groups for cross-fitting: add groups, or set head.gate=none"
                )
            part = LabelledFeatures(train.features[outside], train.labels[outside])
            run = Run(
                part, select, quick, head, n_classes, sub_seed(seed, "fold", int(index)), Path(base) / f"fold{index}"
            )
            logits[held] = all_logits([run.finish(stop).head], train.features[held])[0]
            right[held] = logits[held].argmax(axis=1) == train.labels[held]
    return GateTargets(right, logits, fold)


def too_few_answers(targets: GateTargets) -> str | None:
    """Why no gate can be learned from these targets, or None."""
    for kind, n in (("wrong", int((~targets.right).sum())), ("right", int(targets.right.sum()))):
        if n < MINIMUM:
            return (
                f"{n} {kind} answer{'' if n == 1 else 's'} on images held out of train, a gate needs at least {MINIMUM}"
            )
    return None


def fit_gate(
    features: NDArray[np.float32],
    targets: GateTargets,
    select_features: NDArray[np.float32],
    select_logits: NDArray[np.float32],
    select_right: NDArray[np.bool_],
    *,
    config: TrainConfig,
    head: HeadConfig,
    seed: int,
    folder: Path,
    stop: Stop = None,
) -> Gate:
    """The gate of `head.gate` (linear or mlp), in eval mode: what the margin says, corrected by what the features add.

    features: float32 [N, D] of train with their cross-fitted targets; select_*: of val_select, answers of the shipped
    classifier (they choose the epoch). Slope and offset of the margin are fitted first; the rest learns from there at a
    tenth of the classifier's rate, and is left out where no epoch has a lower NLL on val_select than the margin alone:
    a gate has D weights and few wrong answers to learn them from. Where fewer than 10 answers are right or wrong the
    gate is a constant (`too_few_answers` says so).
    """
    dim = features.shape[1] + targets.logits.shape[1] + 1
    right = targets.right.astype(np.int64)
    counts = np.bincount(right, minlength=2)
    if too_few_answers(targets) is not None:
        return _silent(build_gate(head, dim, 0.0, float(np.log((counts[1] + 1.0) / (counts[0] + 1.0))), 0))
    train = LabelledFeatures(_inputs(features, targets.logits), right)
    select = LabelledFeatures(_inputs(select_features, select_logits), select_right.astype(np.int64))
    slope, offset = _logistic(train.features[:, -1].astype(np.float64), right)
    gate = build_gate(head, dim, slope, offset, sub_seed(seed, "gate"))
    gate.head.standardise(*feature_statistics(train.features))
    plain = TrainConfig(
        epochs=config.epochs,
        learning_rate=0.1 * config.learning_rate,
        weight_decay=config.weight_decay,
        warmup=config.warmup,
        clip_norm=config.clip_norm,
        ema_decay=config.ema_decay,
        patience=config.patience,
        checkpoint_every=config.epochs,
        # A batch that holds all images is for the risk objective; a gate is trained as any head.
        batch_size=config.batch_size if config.objective == "ce" else TrainConfig().batch_size,
    )
    by_margin = _silent(build_gate(head, dim, slope, offset, 0))
    result = Run(train, select, plain, gate_config(head), 2, sub_seed(seed, "gate"), folder, gate).finish(stop)
    known = select_metrics(all_logits([by_margin], select.features)[0], select.labels)
    assert isinstance(result.head, Gate)
    return result.head if result.metrics["nll"] < known.nll else by_margin


def _folds(n: int, groups: NDArray[np.str_] | None, folds: int, seed: int) -> NDArray[np.int64]:
    if folds < 2:
        raise DataError(f"folds: {folds}; cross-fitting needs 2 or more")
    rows = Scores(logits=np.zeros((n, 2)), groups=groups)
    names = [str(index) for index in range(folds)]
    fold = hashed_roles(rows, names, [1 / folds] * folds, sub_seed(seed, "gate folds")).astype(np.int64)
    if len(np.unique(fold)) < 2:
        raise DataError(
            f"head.gate: all {n} train images fall in one fold; cross-fitting needs several groups, or head.gate=none"
        )
    return fold


def _inputs(features: NDArray[np.float32], logits: NDArray[np.float32]) -> NDArray[np.float32]:
    dim, k = features.shape[1], logits.shape[1]
    made = np.empty((len(features), dim + k + 1), dtype=np.float32)
    with torch.no_grad():
        for start in range(0, len(features), _ROWS):
            rows = slice(start, start + _ROWS)
            made[rows] = gate_inputs(torch.tensor(np.asarray(features[rows])), torch.tensor(logits[rows])).numpy()
    return made


def _silent(gate: Gate) -> Gate:
    """The gate with nothing but its slope and offset."""
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.zero_()
    return gate.eval().requires_grad_(False)


def _logistic(margin: NDArray[np.float64], right: NDArray[np.int64]) -> tuple[float, float]:
    """(slope, offset) of least cross-entropy of "right" on the margin, with one half right and wrong answer more at
    margin 0 so that both stay finite; Newton's method with halved steps."""
    x = np.append(margin, [0.0, 0.0])
    y = np.append(right.astype(np.float64), [0.0, 1.0])
    weights = np.append(np.ones(len(margin)), [0.5, 0.5])
    spread = float(margin.std()) or 1.0
    design = np.stack([x / spread, np.ones(len(x))], axis=1)
    found = np.zeros(2)

    def loss(w: NDArray[np.float64]) -> float:
        z = design @ w
        return float((weights * (np.logaddexp(0.0, z) - y * z)).sum() + 0.5e-3 * w[0] ** 2)

    for _ in range(50):
        p = 0.5 * (1.0 + np.tanh(0.5 * (design @ found)))
        gradient = design.T @ (weights * (p - y)) + np.array([1e-3 * found[0], 0.0])
        hessian = (design * (weights * p * (1 - p))[:, None]).T @ design + np.diag([1e-3, 1e-9])
        step, size, before = np.linalg.solve(hessian, gradient), 1.0, loss(found)
        while size > 1e-8 and loss(found - size * step) > before:
            size /= 2
        found = found - size * step
        if before - loss(found) <= 1e-12 * max(before, 1.0):
            break
    return float(found[0] / spread), float(found[1])
