"""Folds keep groups and classes; the difference of two AUGRC has the standard error of a bootstrap over groups."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.errors import DataError
from stage1.training.cross_validation import (
    LogisticCandidate,
    _influence,
    augrc_difference,
    best_of,
    cross_validated,
    nll_difference,
    quick_judgement,
)
from stage1.training.grouped_folds import grouped_folds
from stage1.training.selection import select_metrics


@given(st.integers(2, 6), st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_folds_keep_groups_whole_and_every_class_in_two(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 25, 120).astype(str)
    labels = rng.integers(0, 3, 120)
    fold = grouped_folds(labels, groups, k, seed)
    assert all(len(set(fold[groups == name])) == 1 for name in set(groups))
    assert len(set(fold)) <= k
    mixed = grouped_folds(labels, groups, k, seed)
    assert (fold == mixed).all()


def test_folds_shrink_to_the_rarest_class_and_say_where_there_is_none() -> None:
    labels = np.array([0] * 20 + [1] * 4)
    groups = np.array([f"a{row}" for row in range(20)] + ["b", "b", "c", "c"])
    fold = grouped_folds(labels, groups, 5, 0)
    assert len(set(fold)) == 2
    assert len(set(fold[labels == 1])) == 2
    with pytest.raises(DataError, match="class 1 is in 1 groups"):
        grouped_folds(labels, np.array([f"a{row}" for row in range(20)] + ["b"] * 4), 5, 0)
    with pytest.raises(DataError, match="class 2 is in 0 images"):
        grouped_folds(labels, None, 5, 0, 3)


def pairs(seed: int, n: int = 300, k: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    first = rng.normal(size=(n, k))
    second = first + 0.5 * rng.normal(size=(n, k))
    return first, second, (first + rng.gumbel(size=(n, k))).argmax(axis=1)


@given(st.integers(0, 1000), st.booleans())
@settings(max_examples=30, deadline=None)
def test_half_the_mean_influence_is_augrc(seed: int, ties: bool) -> None:
    logits, _, labels = pairs(seed, n=60)
    logits = logits.round(0) if ties else logits
    assert _influence(logits, labels).mean() / 2 == pytest.approx(select_metrics(logits, labels).augrc, abs=1e-12)


def test_standard_error_is_that_of_a_bootstrap_over_groups() -> None:
    first, second, labels = pairs(1)
    groups = np.repeat(np.arange(100), 3).astype(str)
    rng = np.random.default_rng(2)
    differences = []
    for _ in range(400):
        rows = (3 * rng.integers(0, 100, 100)[:, None] + np.arange(3)).ravel()
        one, two = (select_metrics(logits[rows], labels[rows]).augrc for logits in (first, second))
        differences.append(one - two)
    found = augrc_difference(first, second, labels, groups)
    assert found.error == pytest.approx(np.std(differences), rel=0.15)  # 400 draws: 3.5 % relative error
    swapped = augrc_difference(second, first, labels, groups)
    assert (swapped.difference, swapped.error) == pytest.approx((-found.difference, found.error))
    assert np.isnan(augrc_difference(first, second, labels, np.array(["one"] * 300)).error)


def test_a_path_ends_where_it_only_gets_worse_and_its_best_is_the_whole_path_s() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 60)).astype(np.float32)
    labels = (features[:, 0] + rng.logistic(size=200) > 0).astype(np.int64)
    fold = grouped_folds(labels, None, 5, 0)
    found = cross_validated(features, labels, fold, 2, scales=("common",))
    assert len(found) < 10
    alone = [cross_validated(features, labels, fold, 2, strengths=[c.strength], scales=("common",))[0] for c in found]
    assert min(found, key=lambda c: c.key).strength == min(alone, key=lambda c: c.key).strength
    for ours, single in zip(found, alone, strict=True):  # a warm start changes nothing but time
        assert np.abs(ours.logits - single.logits).max() < 0.02


def test_of_candidates_that_are_level_in_augrc_the_least_sure_of_its_errors_is_chosen() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    margin = np.where(labels == 1, 1.0, -1.0) + rng.normal(size=200)
    logits = np.stack([-margin, margin], axis=1)

    def made(slope: float, noise: float = 0.0) -> LogisticCandidate:
        own = slope * (logits + noise * rng.normal(size=logits.shape))
        return LogisticCandidate(slope, "common", own, select_metrics(own, labels), 0.0)

    level, sure, worse = made(1.0), made(6.0), made(0.9, noise=2.0)
    assert level.metrics.augrc == pytest.approx(sure.metrics.augrc)
    assert best_of([sure, level, worse], labels, None) is level
    assert best_of([worse, sure], labels, None) is sure  # less sure, but not level in AUGRC


def test_quick_judgement_prefers_the_features_that_carry_the_label() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(200) % 2
    noise = rng.normal(size=(200, 40)).astype(np.float32)
    good = noise + labels[:, None].astype(np.float32)
    judged = [quick_judgement(features, labels, None, 2, seed=0).metrics.augrc for features in (good, noise)]
    assert judged[0] < 0.02 < judged[1]


def test_nll_of_two_is_paired_over_groups():
    rng = np.random.default_rng(3)
    labels, groups = rng.integers(3, size=300), np.repeat(np.arange(60), 5).astype(str)
    first, second = rng.normal(size=(300, 3)), rng.normal(size=(300, 3))
    found = nll_difference(first, second, labels, groups)

    def mean(logits: np.ndarray) -> float:
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return float(-np.log(p[np.arange(300), labels]).mean())

    assert found.difference == pytest.approx(mean(first) - mean(second), abs=1e-12)
    per_image = [nll_difference(first[[i]], second[[i]], labels[[i]], None).difference for i in range(300)]
    of_group = np.asarray(per_image).reshape(60, 5).sum(axis=1)
    assert found.error == pytest.approx(of_group.std(ddof=1) * np.sqrt(60) / 300, rel=1e-12)


def test_another_scale_is_taken_only_where_it_is_shown_to_be_better():
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=400)

    def made(scale: str, signal: float, noise: np.ndarray) -> LogisticCandidate:
        margin = signal * (labels - 0.5) + noise
        logits = np.stack([-margin / 2, margin / 2], axis=1)
        return LogisticCandidate(1.0, scale, logits, select_metrics(logits, labels), 0.0)

    kept = lower = 0
    for _ in range(40):
        common, column = (made(scale, 2.0, rng.normal(size=400)) for scale in ("common", "column"))
        kept += best_of([common, column], labels, None) is common
        lower += column.key < common.key
    assert lower > 12, "the control: by its least AUGRC the other scale would be taken in about half"
    assert kept >= 40 - lower + 5
    better = made("column", 4.0, rng.normal(size=400))
    assert best_of([made("common", 2.0, rng.normal(size=400)), better], labels, None) is better
