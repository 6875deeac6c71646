"""The bootstrap: fast path = plain form, what is drawn, and that intervals cover what they should."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stage1.errors import ConfigError, DataError
from stage1.evaluation import accuracy, augrc, aurc, auroc_failure, bootstrap, e_augrc, e_aurc, nll
from stage1.evaluation.bootstrap import _replicates, _units
from stage1.evaluation.ranking import STATISTICS


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
def test_fast_path_equals_the_plain_functions(ties, binary):
    confidence, residuals, labels = sample(60, ties=ties)
    if not binary:
        residuals = np.round(residuals + np.random.default_rng(3).random(60), 1)
    metrics = {"aurc": aurc, "augrc": augrc, "e_aurc": e_aurc, "e_augrc": e_augrc}
    if binary:
        metrics["auroc_failure"] = auroc_failure
    options = {
        "confidence": confidence, "residuals": residuals, "labels": labels, "n_resamples": 50,
        "weights": np.random.default_rng(4).integers(0, 3, 60),
    }  # fmt: skip
    fast = bootstrap(metrics, **options)
    slow = bootstrap({name: plain(metric) for name, metric in metrics.items()}, **options)
    named = bootstrap({name: name for name in metrics}, **options)
    for name in metrics:
        assert fast[name] == named[name]
        for part in ("value", "low", "high"):
            assert getattr(fast[name], part) == pytest.approx(getattr(slow[name], part), abs=1e-12)


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
    return np.concatenate(list(_replicates(_units(n, labels, groups), np.ones(n), n_resamples, 0)))


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
    strata = [stratum.tolist() for stratum in _units(8, labels, groups).strata]
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
    assert [stratum.tolist() for stratum in _units(len(labels), labels, None).strata] == strata


def test_batches_are_an_implementation_detail_of_every_size():
    for n in (1, 7, 1000, 200_000):
        assert sum(len(batch) for batch in _replicates(_units(n, None, None), np.ones(n), 11, 0)) == 11


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
            {"m": "augrc"}, confidence=confidence, residuals=residuals, n_resamples=150, seed=index,
            groups=np.repeat(np.arange(100), 10) if by_group else None,
        )["m"]  # fmt: skip
        hits += found.low <= TRUE_AUGRC <= found.high
    return hits / draws


def test_clustered_rows_need_the_group_bootstrap():
    assert clustered_coverage(by_group=True) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 150) - 0.02
    assert clustered_coverage(by_group=False) < 0.6  # the control: frames taken as independent


def test_stratified_intervals_are_those_of_fixed_class_counts():
    """Class 1 is always wrong, class 0 never: with the counts fixed, the error rate has no spread at all."""
    labels = np.repeat([0, 1], [80, 20])
    options = {"confidence": np.zeros(100), "residuals": labels, "n_resamples": 200}
    fixed = bootstrap({"acc": "accuracy"}, labels=labels, **options)["acc"]
    assert (fixed.low, fixed.value, fixed.high) == pytest.approx((0.8, 0.8, 0.8))
    free = bootstrap({"acc": "accuracy"}, **options)["acc"]
    assert free.high - free.low > 0.1


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, words",
    [
        ({"n_resamples": 0}, "n_resamples: 0"),
        ({"level": 1.0}, "level: 1.0"),
        ({"seed": 0.5}, "seed: 0.5"),
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
