"""The choice of a head: out of fold, groups whole; a logistic regression unless a head by Adam is clearly better."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stage1.config import HeadConfig, RunConfig, TrainConfig
from stage1.errors import ConfigError, DataError
from stage1.training.head_selection import (
    Pool,
    fit_chosen,
    linear_head,
    select_head,
    why_none_fitted,
    why_not_chosen,
)
from stage1.training.logistic import fit_logistic
from stage1.training.selection import all_logits, select_metrics

QUICK = TrainConfig(epochs=15, batch_size=16, learning_rate=0.01)
HEAD = HeadConfig(kind="linear", hidden=16, dropout=0.0)


def pool_of(features: np.ndarray, labels: np.ndarray, groups: np.ndarray | None = None, k: int = 2) -> Pool:
    """The last quarter of the rows is val_select."""
    names = np.arange(len(labels)).astype(str) if groups is None else groups.astype(str)
    cut = len(labels) * 3 // 4
    both = [(values[:cut], values[cut:]) for values in (features.astype(np.float32), labels, names)]
    return Pool.of(*both, k)


def gaussian(n: int, dim: int = 20, seed: int = 0, signal: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    features = rng.normal(size=(n, dim))
    features[:, 0] += 2 * signal * labels
    return features, labels


def test_linear_data_get_the_logistic_regression_and_curved_data_the_mlp() -> None:
    features, labels = gaussian(240)
    chosen = select_head(pool_of(features, labels), config=QUICK, head=HEAD, seed=0, compare_adam=True)
    assert chosen.kind == "logistic"
    assert [row.kind for row in chosen.adam] == ["linear", "mlp"]
    rng = np.random.default_rng(1)
    plane = rng.normal(size=(400, 2))
    ring = (np.hypot(*plane.T) > 1.2).astype(np.int64)
    curved = select_head(pool_of(plane, ring), config=QUICK, head=HEAD, seed=0, compare_adam=True)
    assert curved.kind == "mlp"
    assert next(row for row in curved.adam if row.kind == "mlp").difference < -0.05


def test_the_choice_is_the_same_on_every_run() -> None:
    features, labels = gaussian(120)
    pool = pool_of(features, labels)
    first, second = (select_head(pool, config=QUICK, head=HEAD, seed=3, compare_adam=True) for _ in range(2))
    assert (first.best.strength, first.best.scale, first.kind) == (second.best.strength, second.best.scale, second.kind)
    assert [row.metrics for row in first.adam] == [row.metrics for row in second.adam]
    assert (first.best.logits == second.best.logits).all()


def test_scores_of_val_select_are_out_of_fold_and_the_refit_has_seen_them() -> None:
    """Features that name the row: a fit knows its own images by heart and nothing of others."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    pool = pool_of(np.eye(200), labels)
    best = select_head(pool, config=QUICK, head=HEAD, seed=0, compare_adam=False).best
    weak = type(best)(1e-3, "common", best.logits, best.metrics, 0.0)
    refit = fit_chosen(pool, weak, class_weights="none", seed=0, refit=True)
    truth = labels[pool.select]
    own = all_logits([refit.head], pool.features[pool.select])[0]
    assert (own.argmax(axis=1) == truth).all()  # the control: in sample everything is right
    right = (refit.select_logits.argmax(axis=1) == truth).mean()
    assert right <= 0.5 + 3 * np.sqrt(0.25 / 50)
    alone = fit_chosen(pool, weak, class_weights="none", seed=0, refit=False)
    assert alone.folds == 0
    assert (alone.select_logits == all_logits([alone.head], pool.features[pool.select])[0]).all()


def test_groups_stay_whole_when_val_select_is_scored() -> None:
    """Two images of a group are twins: with a split group the label could be read off the twin."""
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 100), 2)
    features = np.repeat(np.eye(100), 2, axis=0)
    groups = np.repeat(np.arange(100), 2)
    best = select_head(pool_of(features, labels, groups), config=QUICK, head=HEAD, seed=0, compare_adam=False).best
    weak = type(best)(1e-3, "common", best.logits, best.metrics, 0.0)

    def right(names: np.ndarray) -> float:
        pool = pool_of(features, labels, names)
        made = fit_chosen(pool, weak, class_weights="none", seed=0, refit=True)
        return float((made.select_logits.argmax(axis=1) == pool.labels[pool.select]).mean())

    assert right(groups) <= 0.5 + 3 * np.sqrt(0.25 / 25)
    assert right(np.arange(200)) > 0.9  # the control: every image a group of its own


def test_the_linear_head_gives_the_same_logits() -> None:
    rng = np.random.default_rng(0)
    for k in (2, 4):
        features = (rng.normal(size=(100, 12)) * 3 + 7).astype(np.float32)
        labels = np.arange(100) % k
        found = fit_logistic(features, labels, k, strength=0.1)
        with torch.no_grad():
            made = linear_head(found)(torch.tensor(features)).numpy()
        assert np.abs(made - found.logits(features)).max() < 1e-4


def test_balanced_weights_count_classes_alike() -> None:
    features, labels = gaussian(400, signal=0.5)
    kept = (labels == 0) | (np.arange(400) % 8 == 0)
    pool = pool_of(features[kept], labels[kept])
    best = select_head(pool, config=QUICK, head=HEAD, seed=0, compare_adam=False).best
    shares = [
        float((fit_chosen(pool, best, class_weights=kind, seed=0, refit=True).select_logits.argmax(1) == 1).mean())
        for kind in ("none", "balanced")
    ]
    assert shares[1] > shares[0] + 0.1
    assert pool.weights("balanced").sum() == pytest.approx(len(pool.labels))


def test_a_sample_keeps_groups_and_classes() -> None:
    labels = np.arange(1000) % 3
    groups = np.arange(1000) // 3
    part = pool_of(np.zeros((1000, 2)), labels, groups, 3).sample(250, seed=0)
    assert 200 <= len(part.labels) <= 260
    assert np.bincount(part.labels, minlength=3).min() >= 60
    assert np.unique(part.groups, return_counts=True)[1].max() == 3


def test_why_there_is_no_choice_is_said() -> None:
    assert why_not_chosen(RunConfig()) is None
    for words, config in (
        ("members=3", RunConfig.model_validate({"head": {"kind": "auto", "members": 3}})),
        ("gate=mlp", RunConfig.model_validate({"head": {"kind": "auto", "gate": "mlp"}})),
        ("objective=risk", RunConfig.model_validate({"train": {"objective": "risk"}})),
        ("sweep", RunConfig.model_validate({"sweep": {"enabled": True}})),
        ("views", RunConfig.model_validate({"views": {"grid": "2x2"}})),
        ("tuned", RunConfig.model_validate({"images": {"unfreeze": "last"}})),
        ("label_smoothing", RunConfig.model_validate({"train": {"label_smoothing": 0.1}})),
    ):
        assert words in (why_not_chosen(config) or "")
    few = pool_of(np.zeros((8, 2)), np.array([0] * 7 + [1]))
    assert why_none_fitted(few, asked=True) == "class 1 is in 1 group of train and val_select"
    many = pool_of(np.zeros((60, 2)), np.arange(60) % 30, k=30)
    assert "30 classes" in (why_none_fitted(many, asked=False) or "")
    assert why_none_fitted(many, asked=True) is None


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"head": {"kind": "logistic", "members": 2}}, "head.members=2"),
        ({"head": {"kind": "logistic", "gate": "mlp"}}, "head.gate=mlp"),
        ({"head": {"kind": "logistic"}, "sweep": {"enabled": True}}, "sweep.enabled"),
        ({"head": {"kind": "logistic"}, "train": {"objective": "risk"}}, "train.objective=risk"),
        ({"head": {"kind": "logistic"}, "images": {"unfreeze": "last"}}, "tuned backbone"),
        ({"head": {"kind": "logistic"}, "views": {"grid": "2x2", "train": "mil"}}, "views.train=mil"),
        ({"head": {"kind": "mlp"}, "train": {"refit": True}}, "train.refit=true with head.kind=mlp"),
        ({"head": {"kind": "auto"}, "train": {"refit": True}, "views": {"flips": True}}, "train.refit=true with views"),
    ],
)
def test_what_does_not_go_together_is_named(settings: dict, words: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=words):
        RunConfig.model_validate(settings)


def test_nan_is_named_by_its_role() -> None:
    features, labels = gaussian(40)
    features[35, 2] = np.nan
    with pytest.raises(DataError, match="val_select: features of row 5 hold NaN"):
        pool_of(features, labels)


def test_out_of_fold_augrc_is_that_of_new_images_and_in_sample_is_not() -> None:
    features, labels = gaussian(3000, dim=60, signal=0.8)
    pool = pool_of(features[:160], labels[:160])
    best = select_head(pool, config=QUICK, head=HEAD, seed=0, compare_adam=False).best
    fitted = fit_chosen(pool, best, class_weights="none", seed=0, refit=True)
    new = select_metrics(all_logits([fitted.head], features[160:].astype(np.float32))[0], labels[160:]).augrc
    inside = select_metrics(all_logits([fitted.head], pool.features)[0], pool.labels).augrc
    assert abs(best.metrics.augrc - new) < 0.06
    assert inside < new - 0.01
