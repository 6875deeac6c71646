"""Which way of fitting images is chosen: by what is out of fold, and not by noise."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="the extra train is not installed")

from stage1.runtime.preprocessing import Preprocessing
from stage1.training.preprocessing_choice import Judged, chosen_of, judge, tell_nothing
from stage1.training.selection import select_metrics

FITS = ("squash", "center_crop", "letterbox")


def candidates(signals: tuple[float, ...], seed: int, n: int = 240, group: int = 2) -> tuple[list[Judged], ...]:
    """Features in R^8 of the same images, class means `signal` apart in each; groups of `group` images."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n // group) % 2, group).astype(np.int64)
    groups = np.repeat(np.arange(n // group), group).astype(str)
    shared = np.repeat(rng.normal(size=(n // group, 8)), group, axis=0)
    made = []
    for fit, signal in zip(FITS, signals, strict=False):
        noise = 0.7 * shared + 0.7 * rng.normal(size=(n, 8))
        noise[:, 0] += signal * labels
        made.append(judge(Preprocessing(64, fit), noise.astype(np.float32), labels, groups, 2, seed=0))
    return made, labels, groups


def test_the_area_under_roc_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    for seed in range(5):
        judged, labels, _ = candidates((0.5, 1.0), seed)
        for one in judged:
            margin = one.logits[:, 1] - one.logits[:, 0]
            assert one.auroc == pytest.approx(metrics.roc_auc_score(labels, margin), abs=1e-12)


def test_a_clear_gain_wins_wherever_it_stands() -> None:
    for place in range(3):
        signals = tuple(3.0 if index == place else 0.5 for index in range(3))
        assert chosen_of(*candidates(signals, seed=place))[0] == place


def test_noise_seldom_leaves_the_first_and_equal_ones_never() -> None:
    """Of equal candidates each has the least AUGRC in a third of the draws; the rule keeps the first far more often."""
    draws = 60
    kept, least = 0, 0
    for seed in range(draws):
        judged, labels, groups = candidates((1.5, 1.5, 1.5), seed)
        index, apart = chosen_of(judged, labels, groups)
        kept += index == 0
        least += apart[0].difference <= 0
    assert least < 0.6 * draws, "the control: without the rule the first stays in about a third"
    assert kept > least + 0.1 * draws
    judged, labels, groups = candidates((1.5,), seed=0)
    assert chosen_of(judged * 3, labels, groups)[0] == 0


def test_candidates_that_tell_nothing_are_not_told_apart() -> None:
    """A road at .15 error by always saying 0; the second candidate is surely better than the first, and still worse."""
    n = 400
    labels = (np.arange(n) % 20 < 3).astype(np.int64)
    groups = np.arange(n).astype(str)
    sure = np.random.default_rng(0).random(n)

    def wrong_on(share: float) -> Judged:
        says = np.where(np.arange(n) % 100 < 100 * share, 1 - labels, labels)
        logits = np.stack([-(2 * says - 1) * (1 + sure), (2 * says - 1) * (1 + sure)], axis=1)
        return Judged(Preprocessing(64), logits, select_metrics(logits, labels), None)

    judged = [wrong_on(0.4), wrong_on(0.2)]
    index, apart = chosen_of(judged, labels, groups)
    assert apart[0].difference > 3 * apart[0].error > 0
    assert index == 0
    assert tell_nothing(judged, labels)
    # The control: the same step between candidates of which one is better than that.
    assert chosen_of([wrong_on(0.2), wrong_on(0.02)], labels, groups)[0] == 1


def test_where_nothing_is_wrong_likelihood_tells_candidates_apart() -> None:
    """AUGRC ties at 0. Each candidate comes with the penalty that suits it, so that what is surely nearer the truth is
    the picture's merit; and equal ones leave the first.
    """
    labels = np.array([0, 1] * 20)
    groups = np.arange(40).astype(str)
    right = np.stack([1.0 - 2 * labels, 2.0 * labels - 1], axis=1)

    def made(scales: tuple[float, ...]) -> list[Judged]:
        return [
            Judged(Preprocessing(64, fit), scale * right, select_metrics(scale * right, labels), 1.0)
            for fit, scale in zip(FITS, scales, strict=True)
        ]

    index, apart = chosen_of(made((1.0, 5.0, 1.0)), labels, groups)
    assert index == 1
    assert apart[1].difference == 0.0 < apart[0].difference
    assert chosen_of(made((5.0, 5.0, 5.0)), labels, groups)[0] == 0


def test_what_names_a_row_is_worth_nothing_out_of_fold() -> None:
    """Features that tell every image apart and nothing of its class: right in sample, chance out of fold."""
    n = 120
    labels = np.random.default_rng(0).integers(0, 2, n)
    groups = np.arange(n).astype(str)
    found = judge(Preprocessing(64), np.eye(n, dtype=np.float32), labels, groups, 2, seed=0)
    assert 0.3 < found.auroc < 0.7
    # The control: groups that the folds cut in two give the class away.
    pairs = np.repeat(np.eye(n // 2, dtype=np.float32), 2, axis=0)
    twice = np.repeat(labels[: n // 2], 2)
    leaked = judge(Preprocessing(64), pairs, twice, groups, 2, seed=0)
    honest = judge(Preprocessing(64), pairs, twice, np.repeat(np.arange(n // 2), 2).astype(str), 2, seed=0)
    assert leaked.auroc > 0.9
    assert honest.auroc < 0.7
