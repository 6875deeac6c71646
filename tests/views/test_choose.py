"""The aggregator is chosen on val_select, by a gain that is shown; else the whole view stays."""

from __future__ import annotations

import numpy as np
import pytest
from pytest import approx

from stage1.errors import ConfigError, DataError
from stage1.evaluation.selective import augrc
from stage1.runtime.crops import ViewPolicy
from stage1.views import Pool, choose_aggregator


def line(choice, name):
    return next(row for row in choice.table if row.name == name)


def test_where_tiles_show_more_an_aggregator_wins_with_its_interval(draw_small, ten):
    logits, labels = draw_small(700, seed=0)
    choice = choose_aggregator(logits, labels, None, ten, resamples=300)
    best = line(choice, choice.name)
    assert choice.name in ("learned", "topk:3", "noisy_or")
    assert best.augrc == min(row.augrc for row in choice.table if row.high is not None and row.high < 0)
    assert best.high < 0
    assert best.difference == approx(best.augrc - line(choice, "whole").augrc)
    assert choice.table[0].name == choice.reference == "whole"
    assert choice.reason.startswith(f"{choice.name}: AUGRC on val_select")
    assert line(choice, "max").ece_before > 3 * line(choice, "max").ece_after


def test_where_tiles_are_noise_the_whole_view_stays(ten):
    rng = np.random.default_rng(1)
    labels = np.arange(500) % 2
    margins = rng.normal(size=(500, 10))
    margins[:, 0] += 3.0 * (labels - 0.5)
    choice = choose_aggregator(np.stack([-margins / 2, margins / 2], axis=2), labels, None, ten, resamples=300)
    assert choice.name == "whole"
    assert "excludes zero" in choice.reason


def test_no_gain_is_invented_where_all_views_are_the_same(ten):
    """Learned is judged on rows that it was not fitted on, so that it cannot win by fitting noise."""
    chosen = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        labels = np.arange(200) % 2
        whole = rng.normal(size=(200, 1)) + 2.0 * (labels[:, None] - 0.5)
        margins = np.concatenate([whole, rng.normal(size=(200, 9))], axis=1)
        logits = np.stack([-margins / 2, margins / 2], axis=2)
        chosen.append(choose_aggregator(logits, labels, None, ten, names=("whole", "learned"), resamples=200).name)
    assert chosen.count("learned") <= 2  # a one-sided 2.5 % error rate


def test_raw_figures_and_invariance_to_the_order_of_rows(draw_small, ten):
    logits, labels = draw_small(300, seed=5)
    groups = np.array([f"g{index // 2}" for index in range(300)])
    choice = choose_aggregator(logits, labels, groups, ten, resamples=100)
    pooled = Pool("mean")(logits)
    margin = pooled[:, 1] - pooled[:, 0]
    assert line(choice, "mean").raw_augrc == approx(augrc(np.abs(margin), (margin > 0) != labels))
    assert choice.n_groups == 150
    shuffled = np.random.default_rng(0).permutation(300)
    again = choose_aggregator(logits[shuffled], labels[shuffled], groups[shuffled], ten, resamples=100)
    for row in again.table:
        assert row.augrc == approx(line(choice, row.name).augrc, abs=1e-9)


def test_names_asked_for_many_classes_and_few_rows(draw_small, ten):
    logits, labels = draw_small(300, seed=6)
    assert choose_aggregator(logits, labels, None, ten, names=("max",), resamples=50).name == "max"
    few = choose_aggregator(logits[:12], labels[:12], None, ten)
    assert (few.name, few.table) == ("whole", ())
    assert "10 are needed" in few.reason
    tiles = ViewPolicy(whole=False, grid=(3, 3))
    assert choose_aggregator(logits[:, 1:], labels, None, tiles, resamples=50).reference == "mean"
    many = np.random.default_rng(0).normal(size=(200, 10, 3))
    assert [row.name for row in choose_aggregator(many, np.arange(200) % 3, None, ten, resamples=50).table] == [
        "whole",
        "mean",
    ]
    with pytest.raises(ConfigError, match="two classes, there are 3"):
        choose_aggregator(many, np.arange(200) % 3, None, ten, names=("max", "mean"))
    with pytest.raises(DataError, match="9 views, the policy has 10"):
        choose_aggregator(logits[:, 1:], labels, None, ten)
    with pytest.raises(ConfigError, match="no names"):
        choose_aggregator(logits, labels, None, ten, names=())
