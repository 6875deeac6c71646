"""The bootstrap: fast path = plain form, what is drawn, and that intervals cover what they should."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest

from stage1.errors import ConfigError, DataError
from stage1.evaluation import (
    accuracy,
    augrc,
    aurc,
    aurc_achievable,
    auroc_failure,
    bootstrap,
    e_augrc,
    e_aurc,
    naurc,
    nll,
)
from stage1.evaluation.intervals import SCALES, Statistic
from stage1.evaluation.ranking import STATISTICS
from stage1.evaluation.resampling import _poisson, _poisson_table, deletions, draws, multinomial, units


def sample(n=400, seed=0, ties=True):
    rng = np.random.default_rng(seed)
    confidence = rng.random(n)
    if ties:
        confidence = confidence.round(1)
    labels = rng.random(n) < 0.3
    residuals = rng.random(n) < 0.4 * (1 - confidence)
    return confidence, residuals.astype(float), labels.astype(int)


def plain(metric):
    """The same statistic outside the fast path: sorted anew for each replicate."""
    return lambda confidence, residuals, weights: metric(confidence, residuals, weights)


@pytest.mark.parametrize("ties", [True, False])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_fast_path_equals_the_plain_functions(ties, binary, weighted):
    confidence, residuals, labels = sample(60, ties=ties)
    if not binary:
        residuals = np.round(residuals + np.random.default_rng(3).random(60), 1)
    metrics = {
        "aurc": aurc,
        "augrc": augrc,
        "e_aurc": e_aurc,
        "e_augrc": e_augrc,
        "naurc": naurc,
        "aurc_achievable": aurc_achievable,
    }
    if binary:
        metrics["auroc_failure"] = auroc_failure
    options = {"confidence": confidence, "residuals": residuals, "labels": labels, "n_resamples": 50}
    if weighted:  # without weights, counts stay small whole numbers all the way: another path
        options["weights"] = np.random.default_rng(4).integers(0, 3, 60)
    fast = bootstrap(metrics, **options)
    slow = bootstrap({name: Statistic(plain(metric), SCALES[name]) for name, metric in metrics.items()}, **options)
    named = bootstrap({name: name for name in metrics}, **options)
    for name in metrics:
        assert fast[name] == named[name]
        for part in ("value", "low", "high"):
            assert getattr(fast[name], part) == pytest.approx(getattr(slow[name], part), abs=1e-9)


def test_value_is_the_statistic_of_the_data():
    confidence, residuals = sample()[:2]
    found = bootstrap({"a": "augrc", "acc": "accuracy"}, confidence=confidence, residuals=residuals, n_resamples=10)
    assert found["a"].value == pytest.approx(augrc(confidence, residuals))
    assert found["acc"].value == pytest.approx(1 - residuals.mean())


def test_same_seed_same_interval_and_another_seed_another():
    confidence, residuals = sample()[:2]
    first, again, other = (
        bootstrap({"a": "aurc"}, confidence=confidence, residuals=residuals, seed=seed, n_resamples=99)["a"]
        for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_metrics_do_not_disturb_each_other():
    confidence, residuals = sample()[:2]
    alone = bootstrap({"a": "aurc"}, confidence=confidence, residuals=residuals, n_resamples=99)["a"]
    together = bootstrap(
        {"b": plain(augrc), "a": "aurc", "c": "accuracy"}, confidence=confidence, residuals=residuals, n_resamples=99
    )
    assert list(together) == ["b", "a", "c"]
    assert together["a"] == alone


def test_callables_get_rows_in_the_order_given():
    confidence, residuals, labels = sample(50)
    base = np.random.default_rng(2).integers(0, 4, 50).astype(float)
    seen = []

    def spy(c, r, w):
        np.testing.assert_array_equal(c, confidence)
        np.testing.assert_array_equal(r, residuals)
        assert (w[base == 0] == 0).all()
        seen.append(w)
        return float(w @ labels / w.sum())

    found = bootstrap({"share": spy}, confidence=confidence, residuals=residuals, weights=base, n_resamples=20)["share"]
    np.testing.assert_array_equal(seen[0], base)
    assert found.value == pytest.approx(np.average(labels, weights=base))
    assert len(seen) == 21


def test_undefined_replicates_are_counted_not_hidden():
    confidence, residuals = [0.9, 0.8, 0.7, 0.6], [0, 0, 0, 1]
    found = bootstrap({"f": "auroc_failure"}, confidence=confidence, residuals=residuals, n_resamples=500)["f"]
    # a replicate without the one error (chance .316) leaves it undefined; so does one with nothing but it (.004)
    expected = 1 - 0.75**4 - 0.25**4
    assert found.resamples / 500 == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / 500))
    none = bootstrap({"f": "auroc_failure"}, confidence=confidence, residuals=[0] * 4, n_resamples=50)["f"]
    assert math.isnan(none.value)
    assert math.isnan(none.low)
    assert none.resamples == 0


def test_one_group_has_no_interval():
    confidence, residuals = sample(30)[:2]
    found = bootstrap({"a": "aurc"}, confidence=confidence, residuals=residuals, groups=["x"] * 30)["a"]
    assert found.value == pytest.approx(aurc(confidence, residuals))
    assert math.isnan(found.low)
    assert math.isnan(found.high)


# ---- what is drawn -----------------------------------------------------------------------------------------------


def drawn(n, labels=None, groups=None, n_resamples=200):
    plan = units(n, labels, groups)
    return np.concatenate([plan.rows(counts) for counts in draws(plan, n, n_resamples, 0)])


def test_rows_are_drawn_within_labels():
    labels = np.array([0] * 30 + [1] * 10)
    weights = drawn(40, labels)
    assert weights.shape == (200, 40)
    assert (weights[:, labels == 1].sum(axis=1) == 10).all()
    assert (weights[:, labels == 0].sum(axis=1) == 30).all()
    assert weights.std() == pytest.approx(1.0, abs=0.05)  # a multinomial count of mean 1
    free = drawn(40)
    assert (free.sum(axis=1) == 40).all()
    assert free[:, labels == 1].sum(axis=1).std() > 1


def test_rows_of_a_group_come_and_go_together():
    groups = np.repeat([f"video {index}" for index in range(12)], 4)
    labels = np.repeat([0, 1], 24)
    weights = drawn(48, labels, groups)
    by_group = weights.reshape(200, 12, 4)
    assert (by_group == by_group[:, :, :1]).all()
    assert (by_group[:, :6, 0].sum(axis=1) == 6).all()
    assert (by_group[:, 6:, 0].sum(axis=1) == 6).all()


def test_a_group_belongs_to_the_label_of_most_of_its_rows():
    groups = np.array(["a", "a", "a", "b", "b", "c", "d", "d"])
    labels = np.array([1, 1, 0, 0, 1, 0, 1, 1])
    strata = [stratum.tolist() for stratum in units(8, labels, groups).strata]
    assert strata == [[1, 2], [0, 3]]  # b is a tie: the lower label


@pytest.mark.parametrize(
    "labels, strata",
    [
        ([0, 0, 0, 1, 1, 2], [[0, 1, 2], [5, 3, 4]]),  # alone: joins the smallest other
        ([0, 0, 0, 1, 2], [[0, 1, 2], [3, 4]]),  # two alone: join each other
        ([0, 1], [[0, 1]]),
        ([0], [[0]]),
    ],
)
def test_units_alone_in_their_label_are_pooled(labels, strata):
    assert [stratum.tolist() for stratum in units(len(labels), labels, None).strata] == strata


def test_batches_are_an_implementation_detail_of_every_size():
    for n in (1, 7, 1000, 200_000):
        assert sum(len(batch) for batch in draws(units(n, None, None), n, 11, 0)) == 11


@pytest.mark.parametrize("size", [1, 2, 10, 17, 40, 300])
def test_counts_are_multinomial(size):
    """Below 17 boxes ball by ball, above it most of it by Poisson counts: the same law."""
    rng = np.random.default_rng(0)
    rows = 20_000
    counts = multinomial(rng, rows, size).astype(int)
    assert (counts.sum(axis=1) == size).all()
    peer = np.random.default_rng(1).multinomial(size, [1 / size] * size, size=rows)
    # one box is binomial(size, 1 / size); the largest and the number of empty boxes look at all of them together
    for statistic in (lambda c: c[:, 0], lambda c: c.max(axis=1), lambda c: (c == 0).sum(axis=1)):
        ours, theirs = statistic(counts), statistic(peer)
        values = np.unique(np.concatenate([ours, theirs]))
        table = np.array([[(side == value).sum() for value in values] for side in (ours, theirs)])
        table = table[:, table.min(axis=0) > 20]
        expected = table.sum(axis=0) / 2
        chi_square = float(((table - expected) ** 2 / expected).sum())
        freedom = table.shape[1] - 1
        assert chi_square <= freedom + 5 * math.sqrt(2 * freedom) + 5


def test_poisson_counts_have_the_law_of_16_bits_and_more():
    """2 million counts against the probabilities: a table of 16 bits alone would be off by up to 2^-16 at each step."""
    from scipy.stats import poisson

    rng = np.random.default_rng(3)
    rate = 0.97
    n = 2_000_000
    observed = np.bincount(_poisson(rng, rate, (20, 100_000)).reshape(-1), minlength=8)[:7]
    expected = n * poisson(rate).pmf(np.arange(7))
    assert (np.abs(observed - expected) <= 4.5 * np.sqrt(expected)).all()
    table, _ = _poisson_table(rate)
    assert 5 <= (table == 255).sum() <= 12  # values of the 16 bits that leave the count open


def test_a_replicate_has_the_spread_of_resampled_rows():
    """The law of the statistic itself: percentiles as from rows drawn one by one."""
    confidence, residuals, labels = sample(500, seed=2)
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(labels == label) for label in (0, 1)]
    plain_draws = []
    for _ in range(3000):
        rows = np.concatenate([rng.choice(m, len(m)) for m in members])
        plain_draws.append(augrc(confidence[rows], residuals[rows]))
    found = bootstrap(
        {"a": "augrc"},
        confidence=confidence,
        residuals=residuals,
        labels=labels,
        n_resamples=3000,
        level=0.8,
        method="percentile",
    )["a"]
    spread = np.std(plain_draws)
    # se of a 10 % quantile of 3,000: 1.7 % of a sigma / .175 density = .031 sigma; two of them
    assert found.low == pytest.approx(np.quantile(plain_draws, 0.1), abs=0.13 * spread)
    assert found.high == pytest.approx(np.quantile(plain_draws, 0.9), abs=0.13 * spread)


# ---- bca ---------------------------------------------------------------------------------------------------------


def recorded(metric):
    """The metric, and the values that it gave: the data's first, then the replicates', then the jackknife's."""
    values = []

    def spy(confidence, residuals, weights):
        values.append(metric(confidence, residuals, weights))
        return values[-1]

    return spy, values


def scipy_bca(samples, statistic, replicates, level):
    """SciPy's BCa interval of given replicates."""
    from scipy.stats import bootstrap as peer
    from scipy.stats._resampling import BootstrapResult, ConfidenceInterval

    before = BootstrapResult(ConfidenceInterval(0.0, 0.0), np.array(replicates), 0.0)
    return peer(
        samples,
        statistic,
        n_resamples=0,
        bootstrap_result=before,
        method="BCa",
        confidence_level=level,
        vectorized=False,
        paired=len(samples) == 1,
    ).confidence_interval


def between_neighbours(found, expected, replicates):
    """SciPy interpolates between replicates, we go outwards to one."""
    ordered = np.sort(replicates)
    assert found.low <= expected.low + 1e-12
    assert found.high >= expected.high - 1e-12
    first = ordered[np.searchsorted(ordered, found.low + 1e-12)]
    last = ordered[np.searchsorted(ordered, found.high - 1e-12) - 1]
    assert first >= expected.low - 1e-12
    assert last <= expected.high + 1e-12


@pytest.mark.parametrize("seed, level", [(0, 0.95), (1, 0.9), (2, 0.8)])
def test_bca_equals_scipy_for_one_sample(seed, level):
    losses = np.random.default_rng(seed).lognormal(size=40)  # skewed: the correction matters

    def mean(confidence, residuals, weights):
        return float(weights @ residuals / weights.sum())

    spy, values = recorded(mean)
    options = {"confidence": np.zeros(40), "residuals": losses, "n_resamples": 999, "level": level}
    found = bootstrap({"m": spy}, method="bca", **options)["m"]
    replicates = values[1:1000]
    assert len(values) == 1 + 999 + 40
    between_neighbours(found, scipy_bca((losses,), np.mean, replicates, level), replicates)
    plain_interval = bootstrap({"m": mean}, method="percentile", **options)["m"]
    assert (found.method, plain_interval.method) == ("bca", "percentile")
    assert found.high > plain_interval.high


def test_bca_equals_scipy_for_strata():
    """Two labels are two independent samples: SciPy's statistic takes both."""
    rng = np.random.default_rng(5)
    first, second = rng.lognormal(size=30), rng.exponential(size=20)

    def ratio(confidence, residuals, weights):
        means = [float(np.average(residuals[part], weights=weights[part])) for part in (slice(0, 30), slice(30, 50))]
        return means[0] / means[1]

    spy, values = recorded(ratio)
    found = bootstrap(
        {"m": spy},
        confidence=np.zeros(50),
        residuals=np.concatenate([first, second]),
        labels=np.repeat([0, 1], [30, 20]),
        n_resamples=999,
        method="bca",
    )["m"]
    replicates = values[1:1000]
    expected = scipy_bca((first, second), lambda x, y: np.mean(x) / np.mean(y), replicates, 0.95)
    between_neighbours(found, expected, replicates)


def test_blocks_give_the_acceleration_of_single_rows(monkeypatch):
    rng = np.random.default_rng(7)
    confidence = rng.random(900)
    residuals = (rng.random(900) < 0.3 * (1 - confidence) ** 2).astype(float)
    options = {"confidence": confidence, "residuals": residuals, "n_resamples": 2000, "method": "bca"}
    single = bootstrap({"a": "aurc", "f": "auroc_failure"}, **options)
    module = sys.modules[bootstrap.__module__]  # the function hides its module
    monkeypatch.setattr(module, "_JACKKNIFE_UNITS", 899)
    monkeypatch.setattr(module, "_JACKKNIFE_BLOCKS", 300)
    blocks = bootstrap({"a": "aurc", "f": "auroc_failure"}, **options)
    percentile = bootstrap({"a": "aurc", "f": "auroc_failure"}, **options | {"method": "percentile"})
    for name in ("a", "f"):
        width = percentile[name].high - percentile[name].low
        assert blocks[name].low == pytest.approx(single[name].low, abs=0.02 * width)
        assert blocks[name].high == pytest.approx(single[name].high, abs=0.02 * width)


def test_bca_leaves_out_whole_groups():
    left_out = list(deletions(units(12, None, np.repeat(["a", "b", "c"], 4)), 12, 1000, 0))
    assert [stratum for stratum, _ in left_out] == [0]
    assert sorted(row.tolist() for row in left_out[0][1]) == [[0, 1, 1], [1, 0, 1], [1, 1, 0]]


def test_jackknife_blocks_cover_every_unit_once():
    plan = units(2000, np.repeat([0, 1], [1500, 500]), None)
    counts = np.concatenate([batch for _, batch in deletions(plan, 2000, 100, 0)])
    assert counts.shape == (100, 2000)
    assert ((1 - counts).sum(axis=0) == 1).all()


def test_bca_is_the_value_itself_where_nothing_varies():
    found = bootstrap({"a": "accuracy"}, confidence=[0.3] * 20, residuals=[0] * 20, n_resamples=50, method="bca")["a"]
    assert (found.low, found.value, found.high) == (1.0, 1.0, 1.0)


def test_bca_is_undefined_where_all_replicates_lie_on_one_side():
    def least(confidence, residuals, weights):
        return float(weights.max() == 1)  # 1 for the data, 0 for any replicate that repeats a row

    found = bootstrap({"a": least}, confidence=np.zeros(50), residuals=np.zeros(50), n_resamples=50, method="bca")["a"]
    assert math.isnan(found.low)
    assert found.resamples == 50


@pytest.mark.slow
def test_bca_covers_more_evenly_than_percentiles_where_the_statistic_is_skewed():
    """AURC of 80 rows with few errors: misses of the two sides, which should be 5 % each."""
    rng = np.random.default_rng(3)
    misses = {"percentile": [0, 0], "bca": [0, 0]}
    for index in range(1000):
        confidence, residuals = population(rng, 80)
        for method, sides in misses.items():
            found = bootstrap(
                {"m": "aurc"},
                confidence=confidence,
                residuals=residuals,
                n_resamples=400,
                seed=index,
                level=0.9,
                method=method,
            )["m"]
            sides[0] += found.low > TRUE_AURC
            sides[1] += found.high < TRUE_AURC
    uneven = {method: abs(low - high) for method, (low, high) in misses.items()}
    assert uneven["bca"] < uneven["percentile"]
    assert 1 - sum(misses["bca"]) / 1000 == pytest.approx(0.9, abs=0.035)


# ---- coverage of the intervals -----------------------------------------------------------------------------------


def population(rng, n):
    """Confidence uniform; P(wrong | confidence) = .5 (1 - confidence): e = 1/4 and AUGRC = integral below."""
    confidence = rng.random(n)
    return confidence, (rng.random(n) < 0.5 * (1 - confidence)).astype(float)


# generalised risk at coverage c (accept confidence >= 1 - c): integral of .5 (1 - t) over t in [1 - c, 1] = c^2 / 4
TRUE_AUGRC = 1 / 12
TRUE_AURC = 1 / 8  # selective risk c / 4


def covered(draws, n, resamples, seed, metric, truth):
    rng = np.random.default_rng(seed)
    hits = 0
    for index in range(draws):
        confidence, residuals = population(rng, n)
        found = bootstrap({"m": metric}, confidence=confidence, residuals=residuals, n_resamples=resamples, seed=index)
        hits += found["m"].low <= truth <= found["m"].high
    return hits / draws


def test_intervals_cover_the_true_augrc():
    rate = covered(draws=200, n=300, resamples=200, seed=5, metric="augrc", truth=TRUE_AUGRC)
    assert abs(rate - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / 200)


@pytest.mark.slow
@pytest.mark.parametrize("metric, truth", [("augrc", TRUE_AUGRC), ("aurc", TRUE_AURC), ("auroc_failure", None)])
def test_intervals_cover_the_truth_closely(metric, truth):
    if truth is None:  # AUGRC = (1 - A) e (1 - e) + e^2 / 2
        truth = 1 - (TRUE_AUGRC - 1 / 32) / (3 / 16)
    rate = covered(draws=2000, n=500, resamples=400, seed=6, metric=metric, truth=truth)
    # percentile intervals at n = 500 are short by up to a percent
    assert abs(rate - 0.95) <= 3 * math.sqrt(0.95 * 0.05 / 2000) + 0.01


def clustered_coverage(by_group, draws=150):
    """100 groups of 10 identical frames: what a row-wise interval makes of them."""
    rng = np.random.default_rng(8)
    hits = 0
    for index in range(draws):
        confidence, residuals = (np.repeat(column, 10) for column in population(rng, 100))
        found = bootstrap(
            {"m": "augrc"},
            confidence=confidence,
            residuals=residuals,
            n_resamples=150,
            seed=index,
            groups=np.repeat(np.arange(100), 10) if by_group else None,
        )["m"]
        hits += found.low <= TRUE_AUGRC <= found.high
    return hits / draws


def test_clustered_rows_need_the_group_bootstrap():
    assert clustered_coverage(by_group=True) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 150) - 0.02
    assert clustered_coverage(by_group=False) < 0.6  # the control: frames taken as independent


def test_stratified_intervals_are_those_of_fixed_class_counts():
    """Class 1 is always wrong, class 0 never: with the counts fixed, the error rate has no spread at all.

    Replicates that are all alike say nothing about the spread of the next sample, so "t" prints no interval."""
    labels = np.repeat([0, 1], [80, 20])
    options = {"confidence": np.zeros(100), "residuals": labels, "n_resamples": 200}
    fixed = bootstrap({"acc": "accuracy"}, labels=labels, method="percentile", **options)["acc"]
    assert (fixed.low, fixed.value, fixed.high) == pytest.approx((0.8, 0.8, 0.8))
    none = bootstrap({"acc": "accuracy"}, labels=labels, **options)["acc"]
    assert math.isnan(none.low)
    assert none.note == "no interval: it is the same in every resample"
    free = bootstrap({"acc": "accuracy"}, **options)["acc"]
    assert free.high - free.low > 0.1


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        ({"n_resamples": 0}, "n_resamples: 0"),
        ({"level": 1.0}, "level: 1.0"),
        ({"seed": 0.5}, "seed: 0.5"),
        ({"method": "basic"}, "method: 'basic'; use t, percentile or bca"),
        ({"metrics": {"x": "nll"}}, "x='nll' is not built in"),
        ({"metrics": {"x": None}}, "x=None; give a built-in name"),
        ({"metrics": {"x": nll}}, "lambda c, r, w: nll"),
        ({"metrics": {"x": accuracy}}, "lambda c, r, w: accuracy"),
    ],
)
def test_bad_options_are_named(change, words):
    options = {"metrics": {"a": "aurc"}, "confidence": [0.1, 0.2], "residuals": [0, 1]} | change
    with pytest.raises(ConfigError, match=words):
        bootstrap(**options)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"confidence": [0.1, float("nan")]}, "row 1 is nan"),
        ({"labels": [0]}, "labels: shape"),
        ({"labels": [0, float("nan")]}, "labels: row 1"),
        ({"groups": ["a", "b", "c"]}, "groups: shape"),
        ({"weights": [1, -1]}, "weights"),
        ({"residuals": [0, 0.5], "metrics": {"f": "auroc_failure"}}, "auroc_failure"),
    ],
)
def test_bad_arrays_are_named(change, words):
    options = {"metrics": {"a": "aurc"}, "confidence": [0.1, 0.2], "residuals": [0, 1]} | change
    with pytest.raises(DataError, match=words):
        bootstrap(**options)


def test_every_built_in_name_has_a_value_and_an_interval():
    confidence, residuals = sample()[:2]
    found = bootstrap({name: name for name in STATISTICS}, confidence=confidence, residuals=residuals, n_resamples=50)
    assert all(interval.low <= interval.value <= interval.high for interval in found.values())
