"""Reward per level: the mixture, intervals that hold and are not idle, and a threshold that noise does not choose."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest

from stage1.errors import DataError
from stage1.streetvision.reward import MIXTURE, OPEN, LevelRates, expected_reward, reward_threshold

LEVELS = ("L0", "L1", "L2", "L3")
DISTANCE = np.array([4.0, 3.0, 2.5, 2.0])  # between the classes, in standard deviations
normal = NormalDist()


def drawn(n, seed, *, bias=0.0, prior=0.5, group=1):
    """Margins normal around -d/2 and +d/2 (log-odds of a model that is calibrated at L2), moved by `bias`. group:
    copies with one shared half of the noise."""
    rng = np.random.default_rng(seed)
    units = n // group
    labels = np.repeat((rng.random(units) < prior).astype(int), group)
    level = np.tile(rng.integers(0, 4, units), group).reshape(group, units).T.ravel()
    shared = np.repeat(rng.normal(size=units), group)
    noise = rng.normal(size=n) if group == 1 else np.sqrt(0.5) * (shared + rng.normal(size=n))
    margin = 2.5 * (noise + DISTANCE[level] * (labels - 0.5)) + bias
    return 1 / (1 + np.exp(-margin)), labels, np.array(LEVELS)[level], np.repeat(np.arange(units), group)


def true_reward(threshold, bias=0.0):
    cut = (np.log(threshold) - np.log1p(-threshold) - bias) / 2.5
    tpr = np.mean([1 - normal.cdf(cut - d / 2) for d in DISTANCE])
    fpr = np.mean([1 - normal.cdf(cut + d / 2) for d in DISTANCE])
    return float(expected_reward(tpr, fpr))


def test_table_is_the_rates_and_the_mixture_their_mean():
    probability, labels, levels, _ = drawn(800, 0)
    rows = LevelRates(probability, labels, levels, resamples=50).table(0.4)
    assert [row.level for row in rows] == [*LEVELS, MIXTURE]
    for row in rows[:-1]:
        mine = levels == row.level
        assert row.tpr == (probability[mine & (labels == 1)] > 0.4).mean()
        assert row.fpr == (probability[mine & (labels == 0)] > 0.4).mean()
        assert row.positives + row.negatives == mine.sum()
        assert row.reward == pytest.approx(float(expected_reward(row.tpr, row.fpr)))
        assert row.accuracy == pytest.approx((row.tpr + 1 - row.fpr) / 2)
        assert row.low <= row.reward <= row.high
    assert rows[-1].tpr == pytest.approx(np.mean([row.tpr for row in rows[:-1]]))
    assert rows[-1].fpr == pytest.approx(np.mean([row.fpr for row in rows[:-1]]))


def test_reward_does_not_depend_on_how_many_of_each_class_or_level_there_are():
    probability, labels, levels, _ = drawn(1200, 1)
    again = np.concatenate([np.arange(1200), np.flatnonzero(labels == 1), np.flatnonzero(levels == "L3")])
    # L3's rows come twice or three times; within a level each class is repeated as a whole.
    one = LevelRates(probability, labels, levels, resamples=2).table(0.5)[-1]
    two = LevelRates(probability[again], labels[again], levels[again], resamples=2).table(0.5)[-1]
    assert (one.tpr, one.fpr, one.reward) == pytest.approx((two.tpr, two.fpr, two.reward))


def test_no_levels_is_one_level():
    probability, labels, _, _ = drawn(200, 2)
    assert [row.level for row in LevelRates(probability, labels, resamples=5).table(0.5)] == ["all"]


def test_no_error_seen_is_not_no_error_possible():
    labels = np.repeat([0, 1], 40)
    probability = np.where(labels == 1, 0.9, 0.1)
    row = LevelRates(probability, labels, resamples=2000).table(0.5)[0]
    assert row.reward == pytest.approx(1.0)
    assert row.low < 0.93  # rates of 1 - 3/40 and 3/40 would not be surprising
    groups = np.arange(80) // 8
    assert LevelRates(probability, labels, groups=groups, resamples=2000).table(0.5)[0].low < row.low - 0.1


def test_same_seed_same_intervals_and_thresholds_are_paired():
    probability, labels, levels, groups = drawn(600, 3)
    rates = LevelRates(probability, labels, levels, groups, resamples=200, seed=4)
    again = LevelRates(probability, labels, levels, groups, resamples=200, seed=4)
    assert rates.table(0.5) == again.table(0.5)
    nothing = rates.gain(0.5)
    assert (nothing.value, nothing.low, nothing.high, nothing.verdict) == (0.0, 0.0, 0.0, "not shown")


def held(draws, *, group, known, first):
    """In how many draws of 800 rows the interval holds the truth, and its mean width."""
    truth, holds, width = true_reward(0.5), 0, []
    for seed in range(first, first + draws):
        probability, labels, levels, groups = drawn(800, seed, group=group)
        row = LevelRates(probability, labels, levels, groups if known else None, resamples=200, seed=seed).table(0.5)[
            -1
        ]
        holds += row.low <= truth <= row.high
        width.append(row.high - row.low)
    return holds / draws, float(np.mean(width))


# A percentile interval of 200 groups may be short by this much.
SHORT = 0.02


@pytest.mark.parametrize("group, widest", [(1, 0.14), (4, 0.24)])
def test_interval_holds_the_truth_as_often_as_it_says(group, widest):
    share, width = held(60, group=group, known=True, first=100)
    assert share >= 0.95 - SHORT - 3 * np.sqrt(0.95 * 0.05 / 60)
    assert width < widest  # and not because it is idle


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 4])
def test_interval_holds_the_truth_as_often_as_it_says_in_600_draws(group):
    share, _ = held(600, group=group, known=True, first=1000)
    assert share >= 0.95 - SHORT - 3 * np.sqrt(0.95 * 0.05 / 600)


def test_rows_of_one_group_taken_for_independent_are_too_sure():
    """The control: what the groups are for."""
    share, _ = held(60, group=8, known=False, first=300)
    assert share < 0.95 - 3 * np.sqrt(0.95 * 0.05 / 60)


# ---- the threshold


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("prior", [0.5, 0.85])
def test_threshold_finds_the_true_best_at_balanced_labels(bias, prior):
    best = 1 / (1 + np.exp(-bias))  # the classes lie symmetric around the bias
    lost, modelled = [], []
    for seed in range(20):
        probability, labels, levels, _ = drawn(600, 500 + seed, bias=bias, prior=prior)
        found, promised = reward_threshold(probability, labels, levels)
        lost.append(true_reward(best, bias) - true_reward(found, bias))
        modelled.append(promised)
    assert np.mean(lost) < 0.01
    assert np.mean(modelled) == pytest.approx(true_reward(best, bias), abs=0.03)


def test_noise_does_not_choose_it():
    """Against the best of all empirical thresholds, from the same small samples: that one loses several times as
    much.
    """

    def empirical(probability, labels, levels):
        cuts = np.unique(probability)
        rates = LevelRates(probability, labels, levels, resamples=1)
        pairs = np.array([[rate.mean() for rate in rates.rates(cut)] for cut in cuts])
        return cuts[np.argmax(expected_reward(pairs[:, 0], pairs[:, 1]))]

    lost = {"model": [], "empirical": []}
    for seed in range(40):
        probability, labels, levels, _ = drawn(160, 900 + seed)
        lost["model"].append(true_reward(0.5) - true_reward(reward_threshold(probability, labels, levels)[0]))
        lost["empirical"].append(true_reward(0.5) - true_reward(empirical(probability, labels, levels)))
    assert np.mean(lost["model"]) < 0.4 * np.mean(lost["empirical"])


def test_default_stays_where_nothing_is_gained():
    labels = np.tile([0, 1], 100)
    probability = np.where(labels == 1, 0.99, 0.01) + np.linspace(-0.005, 0.005, 200)
    assert reward_threshold(probability, labels)[0] == pytest.approx(0.5)


# ---- exits


def banded(probability, low, high):
    """The exits of a policy that defers in [low, high]."""
    return np.where(probability < low, 0, np.where(probability > high, 1, OPEN))


def test_exits_keep_their_side_whatever_the_threshold():
    probability, labels, levels, groups = drawn(1200, 20)
    exits = banded(probability, 0.1, 0.3)
    rates = LevelRates(probability, labels, levels, groups, exits=exits, resamples=100)
    for threshold in (0.02, 0.1, 0.2, 0.3, 0.5, 0.9):
        said = np.where(exits == OPEN, probability > threshold, exits == 1)
        wanted = LevelRates(said.astype(float), labels, levels, groups, resamples=100).table(0.5)
        assert rates.table(threshold) == wanted
    assert rates.table(0.5) == rates.table(0.31) != LevelRates(probability, labels, levels, groups).table(0.5)
    assert rates.gain(0.9).value == 0.0
    nothing_exits = np.full(1200, OPEN)
    assert LevelRates(probability, labels, levels, groups, exits=nothing_exits, resamples=50).table(0.4) == LevelRates(
        probability, labels, levels, groups, resamples=50
    ).table(0.4)
    assert reward_threshold(probability, labels, levels, exits=nothing_exits) == reward_threshold(
        probability, labels, levels
    )


def test_a_threshold_that_moves_nothing_stays_the_default():
    probability, labels, levels, _ = drawn(600, 21, bias=2.0)
    assert reward_threshold(probability, labels, levels)[0] > 0.75
    # The best threshold lies beyond the band: every image above .4 exits as class 1, so .5 is as good as any above the
    # band.
    assert reward_threshold(probability, labels, levels, exits=banded(probability, 0.1, 0.4))[0] == 0.5
    everything = (probability > 0.5).astype(int)
    assert reward_threshold(probability, labels, levels, exits=everything)[0] == 0.5


@pytest.mark.parametrize("bias, band", [(-2.0, (0.05, 0.4)), (2.0, (0.6, 0.95)), (0.0, (0.02, 0.2))])
def test_a_threshold_is_sought_among_what_it_moves(bias, band):
    """Against the best of all thresholds for the answers as they are, on many fresh rows."""
    lost = []
    probability, labels, levels, _ = drawn(20_000, 22, bias=bias)
    fresh = LevelRates(probability, labels, levels, exits=banded(probability, *band), resamples=1)
    grid = np.linspace(band[0] - 0.01, band[1] + 0.01, 41)
    best = max(fresh.table(float(cut))[-1].reward for cut in grid)
    for seed in range(10):
        p, y, names, _ = drawn(600, 800 + seed, bias=bias)
        lost.append(best - fresh.table(reward_threshold(p, y, names, exits=banded(p, *band))[0])[-1].reward)
    assert np.mean(lost) < 0.01


@pytest.mark.parametrize("exits", [[0, 1], [0, 1, 2, OPEN]])
def test_exits_that_are_none_are_refused(exits):
    with pytest.raises(DataError, match="exits"):
        LevelRates([0.1, 0.9, 0.2, 0.8], [0, 1, 0, 1], exits=exits)


def test_gain_of_a_needed_move_is_shown_and_of_a_needless_one_is_not():
    probability, labels, levels, groups = drawn(1500, 7, bias=2.0)
    found, _ = reward_threshold(*drawn(600, 8, bias=2.0)[:3])
    gain = LevelRates(probability, labels, levels, groups, resamples=500).gain(found)
    assert gain.verdict == "better"
    assert gain.low <= true_reward(found, 2.0) - true_reward(0.5, 2.0) <= gain.high
    rates = LevelRates(*drawn(1500, 9)[:3], resamples=500)
    assert rates.gain(reward_threshold(*drawn(600, 10)[:3])[0]).verdict == "not shown"
    assert rates.gain(0.999).verdict == "worse"


def test_two_models_are_compared_on_the_same_rows():
    probability, labels, levels, groups = drawn(1500, 11)
    rng = np.random.default_rng(0)
    margin = np.log(probability) - np.log1p(-probability) + rng.normal(0, 1.5, 1500)
    worse = LevelRates(1 / (1 + np.exp(-margin)), labels, levels, groups, resamples=300)
    better = LevelRates(probability, labels, levels, groups, resamples=300)
    gain = better.against(worse, 0.5, 0.5)
    assert gain.verdict == "better"
    assert gain.value == pytest.approx(better.table(0.5)[-1].reward - worse.table(0.5)[-1].reward)
    # Paired: much narrower than the two intervals side by side.
    assert gain.high - gain.low < 0.8 * sum(
        rates.table(0.5)[-1].high - rates.table(0.5)[-1].low for rates in (better, worse)
    )
    with pytest.raises(DataError, match="same rows"):
        better.against(LevelRates(probability, labels, levels, groups, resamples=300, seed=1), 0.5, 0.5)


@pytest.mark.parametrize(
    "probability, labels, levels, words",
    [
        ([0.1, 0.9], [0, 0], None, "no row of class 1"),
        ([0.1, 0.9], [0, 1], ["a", "b"], "level 'a'"),
        ([0.1, 1.9], [0, 1], None, "row 1"),
        ([0.1, 0.9], [0, 2], None, "0 and 1 only"),
        ([0.1, 0.9], [0, 1], ["a"], "levels"),
        ([], [], None, "at least one"),
    ],
)
def test_bad_rows_are_named(probability, labels, levels, words):
    with pytest.raises(DataError, match=words):
        LevelRates(probability, labels, levels)


def test_probabilities_all_alike_have_no_threshold():
    with pytest.raises(DataError, match="all alike"):
        reward_threshold([0.5, 0.5], [0, 1])


def test_an_estimate_at_the_edge_is_in_its_interval():
    """Five right answers of each class: the rates 1 and 0 are spread to one side, and the reward of 1 is still in
    reach.
    """
    (row,) = LevelRates([0.9] * 5 + [0.1] * 5, [1] * 5 + [0] * 5, resamples=200).table(0.5)
    assert (row.tpr, row.fpr, row.high) == (1.0, 0.0, row.reward)
    assert row.low < 0.8


def test_too_few_groups_have_no_interval():
    (row,) = LevelRates([0.9] * 4 + [0.1] * 5, [1] * 4 + [0] * 5, resamples=50).table(0.5)
    assert row.reward == pytest.approx(1.0)
    assert np.isnan([row.low, row.high]).all()
