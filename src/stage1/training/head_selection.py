"""Which head: exact logistic regression, or a linear or mlp head by Adam; chosen out of fold on train + val_select.

Groups stay whole in the folds. Every logistic regression of the grid is judged on images that it has not seen: of those
that are level in AUGRC with the best, by the paired standard error, the one of least NLL (`best_of`). A head by Adam,
which needs images to choose its epoch on, is trained on the folds that are neither its own nor the next one, its epoch
chosen on the next one. One by Adam ships only where its AUGRC is lower than that of the logistic regression on the same
images by more than the paired standard error over groups: the logistic regression has one minimum, no epoch to choose,
and can be refitted on both roles.

val_calib and val_test have no part in any of this, so what is chosen and fitted here is fixed before a calibration
label is read, and the certificate on val_calib holds for it as for any fixed model. What is lost is val_select as a
sample that the model has not seen: its scores come out of fold (`Fitted.select_logits`), each image's by a fit on the
others, so that thresholds are ordered, and maps fitted, on scores like those of unseen images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stage1.config import HeadConfig, RunConfig, TrainConfig
from stage1.errors import Checkpointed, DataError
from stage1.model.head import Classifier, Head, build_head
from stage1.training.cross_validation import FOLDS, LogisticCandidate, augrc_difference, best_of, cross_validated
from stage1.training.grouped_folds import fewest_groups, grouped_folds
from stage1.training.logistic import Floats, Logistic, fit_logistic, out_of_fold_path
from stage1.training.optim import own_torch_state, sub_seed
from stage1.training.selection import LabelledFeatures, SelectMetrics, all_logits, checked_features, select_metrics
from stage1.training.sweep_batch import Candidate, SweepBatch

Strings = NDArray[np.str_]
Ints = NDArray[np.int64]

# Folds of the scores of val_select: more than for the choice, as each fit should be like the one that ships.
SCORING_FOLDS = 10
# Images that candidates are compared on, and those of them that heads by Adam see.
_ROWS, _ADAM_ROWS = 3000, 1500
_ADAM_FOLDS = 3
# Above these the exact fit takes minutes or gigabytes: a head by Adam goes through the images in batches.
_MOST_CLASSES, _MOST_NUMBERS = 20, 40_000_000


@dataclass(frozen=True, slots=True)
class Pool:
    """train and val_select together. features: float32 [N, D]; labels: int [N]; groups: str [N]; select: bool [N]."""

    features: NDArray[np.float32]
    labels: Ints
    groups: Strings
    select: NDArray[np.bool_]
    n_classes: int

    @classmethod
    def of(
        cls, features: Sequence[NDArray[np.float32]], labels: Sequence[Ints], groups: Sequence[Strings], n_classes: int
    ) -> Pool:
        """Of train and val_select, in this order. Raises DataError (shapes, NaN, labels)."""
        parts = [
            checked_features(given, truth, n_classes, role)
            for given, truth, role in zip(features, labels, ("train", "val_select"), strict=True)
        ]
        return cls(
            np.concatenate([part.features for part in parts]),
            np.concatenate([part.labels for part in parts]),
            np.concatenate(list(groups)).astype(np.str_),
            np.repeat([False, True], [len(part.labels) for part in parts]),
            n_classes,
        )

    def of_rows(self, rows: Ints | NDArray[np.bool_]) -> Pool:
        return Pool(self.features[rows], self.labels[rows], self.groups[rows], self.select[rows], self.n_classes)

    def weights(self, kind: str) -> Floats:
        """Weight of each row in the loss, float64 [N], by train.class_weights."""
        if kind == "none":
            return np.ones(len(self.labels))
        counts = np.bincount(self.labels, minlength=self.n_classes)
        return len(self.labels) / (self.n_classes * counts[self.labels])

    def sample(self, most: int, seed: int) -> Pool:
        """About `most` rows in whole groups, classes as in the whole; all where they are no more."""
        parts = -(-len(self.labels) // most)
        if parts <= 1:
            return self
        dealt = grouped_folds(self.labels, self.groups, parts, sub_seed(seed, "head sample"), self.n_classes)
        return self.of_rows(dealt == 0)


@dataclass(frozen=True, slots=True)
class AdamCandidate:
    """A linear or mlp head by Adam, judged out of fold on `images` images.

    difference, error: of its AUGRC minus that of the best logistic regression on the same images, paired.
    """

    kind: str
    metrics: SelectMetrics
    images: int
    difference: float
    error: float

    @property
    def ahead(self) -> bool:
        """Better by more than the standard error."""
        return self.difference < 0 and -self.difference > self.error


@dataclass(frozen=True, slots=True)
class Selection:
    """kind: what ships; best: the best logistic regression; folds, images: what it was judged on."""

    kind: str
    best: LogisticCandidate
    logistic: list[LogisticCandidate]
    adam: list[AdamCandidate]
    folds: int
    images: int


@dataclass(frozen=True, slots=True)
class Fitted:
    """The logistic head that ships, and logits float32 [M, K] of val_select: out of fold after a refit, else its own.

    folds: of these logits; 0 without a refit.
    """

    head: Classifier
    select_logits: NDArray[np.float32]
    folds: int


def why_not_chosen(config: RunConfig) -> str | None:
    """Why head.kind=auto is the linear head by Adam in a run with this config; None where a choice is made."""
    head, train = config.head, config.train
    for reason, applies in (
        ("sweep.enabled=true chooses among its own heads", config.sweep.enabled),
        (f"head.members={head.members}", head.members > 1),
        (f"head.gate={head.gate}", head.gate in ("linear", "mlp")),
        (f"train.objective={train.objective}", train.objective != "ce"),
        (f"train.entropy={train.entropy:g}", train.entropy > 0),
        (f"train.label_smoothing={train.label_smoothing:g}", train.label_smoothing > 0),
        ("views are chosen on val_select by one fixed model", config.views.policy is not None),
        ("the backbone was tuned on the labels of train", config.tunes),
    ):
        if applies:
            return reason
    return None


def why_none_fitted(pool: Pool, *, asked: bool) -> str | None:
    """Why no logistic regression can be chosen on these images; asked: by name, then only where it is impossible."""
    worst, held = fewest_groups(pool.labels, pool.groups, pool.n_classes)
    if held < 2:
        return f"class {worst} is in {held} group{'' if held == 1 else 's'} of train and val_select"
    if asked:
        return None
    if pool.n_classes > _MOST_CLASSES:
        return f"{pool.n_classes} classes, exact fits are compared up to {_MOST_CLASSES}"
    if pool.features.size > _MOST_NUMBERS:
        return f"{len(pool.labels)} images, exact fits are compared up to {_MOST_NUMBERS // pool.features.shape[1]}"
    return None


def select_head(
    pool: Pool,
    *,
    config: TrainConfig,
    head: HeadConfig,
    seed: int,
    compare_adam: bool,
    stop: Callable[[], bool] | None = None,
) -> Selection:
    """The head for these images; candidates by Adam with `config` and the hidden layer of `head`.

    Raises DataError where a class is in fewer than two groups.
    """
    pool = pool.sample(_ROWS, seed)
    fold = grouped_folds(pool.labels, pool.groups, FOLDS, sub_seed(seed, "head folds"), pool.n_classes)
    with own_torch_state():
        found = cross_validated(
            pool.features, pool.labels, fold, pool.n_classes, sample_weight=pool.weights(config.class_weights)
        )
    best = best_of(found, pool.labels, pool.groups)
    adam = []
    if compare_adam and fold.max() + 1 >= _ADAM_FOLDS:
        for kind in ("linear", "mlp"):
            judged = _by_adam(pool, fold, best.logits, config, head.model_copy(update={"kind": kind}), seed, stop)
            adam += [] if judged is None else [judged]
    ahead = [candidate for candidate in adam if candidate.ahead]
    kind = min(ahead, key=lambda candidate: candidate.difference).kind if ahead else "logistic"
    return Selection(kind, best, found, adam, int(fold.max()) + 1, len(fold))


def _by_adam(
    pool: Pool,
    fold: Ints,
    logistic: Floats,
    config: TrainConfig,
    head: HeadConfig,
    seed: int,
    stop: Callable[[], bool] | None,
) -> AdamCandidate | None:
    """None where a part of the folds lacks a class."""
    some = len(fold) <= _ADAM_ROWS
    kept = (
        np.ones(len(fold), dtype=np.bool_)
        if some
        else grouped_folds(
            pool.labels, pool.groups, -(-len(fold) // _ADAM_ROWS), sub_seed(seed, "adam"), pool.n_classes
        )
        == 0
    )
    pool, fold, logistic = pool.of_rows(kept), fold[kept], logistic[kept]
    folds = int(fold.max()) + 1
    quick = config.model_copy(update={"accumulate": 1, "select_by": "nll"})
    made = np.full(logistic.shape, np.nan, dtype=np.float32)
    for index in range(_ADAM_FOLDS):
        held, choosing = fold == index, fold == (index + 1) % folds
        part = pool.of_rows(~(held | choosing))
        if (np.bincount(part.labels, minlength=pool.n_classes) == 0).any() or not (held.any() and choosing.any()):
            return None
        with own_torch_state():
            batch = SweepBatch(
                LabelledFeatures(part.features, part.labels),
                LabelledFeatures(pool.features[choosing], pool.labels[choosing]),
                [Candidate(quick, head, sub_seed(seed, "head fold", index))],
                pool.n_classes,
            )
            for epoch in range(quick.epochs):
                if stop is not None and stop():
                    raise Checkpointed("head: stopped on request while heads are compared; run the same command again")
                batch.train_epoch(epoch)
                batch.validate(epoch)
                if batch.done.all():
                    break
            made[held] = batch.best_logits(pool.features[held])[0]
    rows = np.isfinite(made).all(axis=1)
    difference = augrc_difference(made[rows], logistic[rows], pool.labels[rows], pool.groups[rows])
    metrics = select_metrics(made[rows], pool.labels[rows])
    return AdamCandidate(head.kind, metrics, int(rows.sum()), difference.difference, difference.error)


def fit_chosen(pool: Pool, best: LogisticCandidate, *, class_weights: str, seed: int, refit: bool) -> Fitted:
    """The logistic regression of this strength and scale, on train + val_select (refit) or on train alone."""
    fitting = pool if refit else pool.of_rows(~pool.select)
    found = fit_logistic(
        fitting.features,
        fitting.labels,
        pool.n_classes,
        strength=best.strength,
        scale=best.scale,
        sample_weight=fitting.weights(class_weights),
    )
    head = linear_head(found)
    if not refit:
        with own_torch_state():
            return Fitted(head, all_logits([head], pool.features[pool.select])[0], 0)
    fold = grouped_folds(pool.labels, pool.groups, SCORING_FOLDS, sub_seed(seed, "scoring folds"), pool.n_classes)
    _, logits = next(
        out_of_fold_path(
            pool.features,
            pool.labels,
            fold,
            pool.n_classes,
            strengths=[best.strength],
            scale=best.scale,
            sample_weight=pool.weights(class_weights),
        )
    )
    return Fitted(head, logits[pool.select].astype(np.float32), int(fold.max()) + 1)


def linear_head(found: Logistic) -> Classifier:
    """The same logits as a linear head in float32, mean and scale in its buffers; in eval mode."""
    k, dim = found.weight.shape
    head = build_head(HeadConfig(kind="linear"), dim, k, seed=0)
    assert isinstance(head, Head)
    head.standardise(found.mean.astype(np.float32), found.scale.astype(np.float32))
    (layer,) = head._layers()
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(found.weight, dtype=torch.float32))
        layer.bias.copy_(torch.tensor(found.bias, dtype=torch.float32))
    if not all(bool(torch.isfinite(values).all()) for values in head.state_dict().values()):
        raise DataError("logistic: weights outside float32; features of such a size need another backbone or scale")
    return head.eval().requires_grad_(False)
