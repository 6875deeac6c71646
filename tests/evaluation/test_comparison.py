"""Paired comparison: the same samples, intervals of differences, permutation p-values, and the document."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1 import Scores
from stage1.errors import ConfigError, DataError
from stage1.evaluation import augrc, bootstrap, brier, compare, ece, mcc, nll
from stage1.evaluation.arms import CALIBRATION_LUCK, ArmRun, _seed_variance, best_arm, compare_arms
from stage1.evaluation.comparison import COMPARISON_KIND, METRICS, NO_DIFFERENCE, same_samples
from stage1.evaluation.intervals import Statistic
from stage1.storage.documents import read_document, write_document


def pair(n=300, noise=(0.5, 0.5), seed=0, scale=(1.0, 1.0), ids=True, groups=None, k=2):
    """Two models that see the same samples through their own noise: equal noise, exchangeable models."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, k, n)
    shared = rng.normal(size=(n, k)) + 1.5 * np.eye(k)[labels]
    made = []
    for spread, factor in zip(noise, scale, strict=True):
        logits = factor * (shared + spread * rng.normal(size=(n, k)))
        names = [f"s{row:05d}" for row in range(n)] if ids else None
        made.append(Scores(logits, labels=labels, ids=names, groups=groups))
    return made


def rows_of(document):
    return {row["metric"]: row for row in document["rows"]}


# ---- the numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 4])
def test_values_are_those_of_the_metrics(k):
    a, b = pair(k=k)
    found = rows_of(compare(a, b, n_resamples=20))
    for key, scores in (("a", a), ("b", b)):
        guess = scores.logits.argmax(axis=1)
        p = scores.probabilities
        assert found["augrc"][key] == pytest.approx(augrc(p.max(axis=1), guess != scores.labels))
        assert found["nll"][key] == pytest.approx(nll(p, scores.labels))
        assert found["brier"][key] == pytest.approx(brier(p, scores.labels))
        assert found["ece"][key] == pytest.approx(ece(p, scores.labels))
        assert found["mcc"][key] == pytest.approx(mcc(guess, scores.labels))
        assert found["accuracy"][key] == pytest.approx((guess == scores.labels).mean())
    assert list(found) == list(METRICS)
    for row in found.values():
        assert row["difference"] == pytest.approx(row["a"] - row["b"])
        assert row["low"] <= row["difference"] <= row["high"]


def test_interval_is_that_of_the_difference_under_the_same_draws():
    """The bootstrap of one statistic, which is the difference, gives the same interval."""
    a, b = pair(noise=(0.3, 1.2))
    loss = [-np.log(side.probabilities[np.arange(300), side.labels]) for side in (a, b)]
    expected = bootstrap(
        {"nll": Statistic(lambda c, r, w: float(w @ (loss[0] - loss[1]) / w.sum()), "difference")},
        confidence=np.zeros(300),
        residuals=np.zeros(300),
        labels=a.labels,
        n_resamples=300,
        seed=4,
    )["nll"]
    found = rows_of(compare(a, b, n_resamples=300, seed=4))["nll"]
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_pairing_narrows_the_interval():
    a, b = pair(n=600, noise=(0.2, 0.2))
    paired = rows_of(compare(a, b, n_resamples=300))["accuracy"]
    alone = [
        bootstrap({"m": "accuracy"}, confidence=np.zeros(600), residuals=side.logits.argmax(axis=1) != side.labels)["m"]
        for side in (a, b)
    ]
    unpaired = math.hypot(*(interval.high - interval.low for interval in alone))
    assert paired["high"] - paired["low"] < 0.7 * unpaired


def test_weights_and_prior():
    from stage1.evaluation import prior_weights

    a, b = pair(n=400)
    weights = prior_weights(a.labels, 0.9)
    document = compare(a, b, weights=weights, n_resamples=50)
    guess = a.logits.argmax(axis=1)
    assert rows_of(document)["accuracy"]["a"] == pytest.approx(np.average(guess == a.labels, weights=weights))
    assert rows_of(document)["mcc"]["a"] == pytest.approx(mcc(guess, a.labels, weights))
    assert document["weighted"]
    even = compare(a, b, weights=np.full(400, 3.0), n_resamples=50)
    for metric, row in rows_of(compare(a, b, n_resamples=50)).items():
        for key in ("a", "b", "low", "high", "p_value"):
            assert rows_of(even)[metric][key] == pytest.approx(row[key], abs=1e-9), (metric, key)


def test_the_better_model_is_named_and_the_sides_mirror():
    a, b = pair(n=800, noise=(0.2, 2.0))
    there, back = (compare(*sides, names=("lora", "linear"), n_resamples=300) for sides in ((a, b), (b, a)))
    for metric in METRICS:
        first, second = rows_of(there)[metric], rows_of(back)[metric]
        assert (first["low"], first["high"]) == pytest.approx((-second["high"], -second["low"]), abs=1e-12)
        if metric != "ece":  # noise is not miscalibration
            assert (first["better"], first["verdict"]) == ("a", "lora is better"), metric
            assert second["verdict"] == "linear is better"
    assert rows_of(there)["augrc"]["p_value"] == rows_of(back)["augrc"]["p_value"] == pytest.approx(1 / 301)


def test_a_model_against_itself_shows_nothing():
    a, _ = pair()
    for row in compare(a, a, n_resamples=50)["rows"]:
        # replicates that are all 0 say nothing of other images; of ece each model's own noise stays
        ends = (row["low"], row["high"])
        assert row["difference"] == 0
        assert ends[0] < 0 < ends[1] if row["metric"] == "ece" else ends == (None, None)
        assert row["verdict"] == NO_DIFFERENCE
        assert row["p_value"] in (1.0, None)


def test_scale_of_the_logits_does_not_decide_the_ranking():
    """The same model at another temperature: NLL differs, the order of confidence does not."""
    a, _ = pair(n=500)
    found = rows_of(compare(a, Scores(a.logits * 8, labels=a.labels, ids=a.ids), n_resamples=200))
    assert found["augrc"]["difference"] == pytest.approx(0, abs=1e-12)
    assert found["augrc"]["p_value"] == 1.0
    assert found["nll"]["verdict"] == "a is better"


# ---- p-values ----------------------------------------------------------------------------------------------------


def test_accuracy_p_value_equals_the_exact_sign_test():
    from scipy.stats import binomtest

    a, b = pair(n=200, noise=(0.4, 1.0))
    right = [side.logits.argmax(axis=1) == side.labels for side in (a, b)]
    only_a, only_b = int((right[0] & ~right[1]).sum()), int((~right[0] & right[1]).sum())
    exact = binomtest(only_a, only_a + only_b).pvalue
    assert 0.005 < exact < 0.6
    found = rows_of(compare(a, b, metrics=["accuracy"], n_resamples=20_000))["accuracy"]["p_value"]
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def test_augrc_p_value_equals_all_swaps():
    """Eight samples: all 256 swaps, by hand."""
    a, b = pair(n=8, noise=(0.1, 2.0), seed=10)
    wrong = np.array([side.logits.argmax(axis=1) != side.labels for side in (a, b)])
    size = np.array([np.abs(side.margin) for side in (a, b)])
    ranks = size.argsort(axis=1).argsort(axis=1)
    gaps = []
    for choice in range(256):
        swap = (choice >> np.arange(8)) & 1
        first, second = (augrc(ranks[side, np.arange(8)], wrong[side, np.arange(8)]) for side in (swap, 1 - swap))
        gaps.append(first - second)
    exact = np.mean(np.abs(gaps) >= abs(gaps[0]) - 1e-12)
    assert 0.02 < exact < 0.9
    found = rows_of(compare(a, b, metrics=["augrc"], n_resamples=20_000))["augrc"]["p_value"]
    assert found == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 20_000) + 1e-4)


def rejections(draws, resamples, **options):
    counts = dict.fromkeys(("aurc", "augrc", "auroc_failure", "accuracy", "nll", "brier", "mcc"), 0)
    for index in range(draws):
        a, b = pair(seed=1000 + index, **options)
        for metric, row in rows_of(compare(a, b, metrics=list(counts), n_resamples=resamples, seed=index)).items():
            counts[metric] += row["p_value"] <= 0.1
    return {metric: count / draws for metric, count in counts.items()}


def test_exchangeable_models_are_told_apart_no_more_often_than_they_may():
    rates = rejections(150, 99, n=120)
    assert all(rate <= 0.1 + 3 * math.sqrt(0.09 / 150) for rate in rates.values()), rates
    different = rejections(60, 99, n=200, noise=(0.3, 1.2))
    # and the test can reject; how well failures are ranked differs less than how many there are
    assert different.pop("auroc_failure") > 0.3
    assert all(rate > 0.8 for rate in different.values()), different


@pytest.mark.slow
def test_levels_closely():
    rates = rejections(1500, 199, n=150)
    assert all(rate <= 0.1 + 3 * math.sqrt(0.09 / 1500) for rate in rates.values()), rates
    # discrete only in accuracy: elsewhere the level is reached
    assert all(rates[metric] >= 0.1 - 3 * math.sqrt(0.09 / 1500) for metric in ("aurc", "augrc", "nll")), rates


def clustered(seed, groups=30, size=10):
    few = pair(n=groups, seed=seed)
    rows = np.repeat(np.arange(groups), size)
    return [Scores(side.logits[rows], labels=side.labels[rows], groups=[f"v{row:03d}" for row in rows]) for side in few]


def test_copies_in_groups_are_swapped_and_drawn_together():
    """Ten identical frames for each sample: group by group it is the comparison of the samples, row by row it lies."""
    by_group, by_row = [], []
    for seed in range(60):
        a, b = clustered(seed)
        by_group.append(rows_of(compare(a, b, metrics=["nll"], n_resamples=99)))
        plain = [Scores(side.logits, labels=side.labels) for side in (a, b)]
        by_row.append(rows_of(compare(*plain, metrics=["nll"], n_resamples=99)))
    for found, bound in ((by_group, True), (by_row, False)):
        p_rate = np.mean([row["nll"]["p_value"] <= 0.1 for row in found])
        shown = np.mean([row["nll"]["verdict"] != NO_DIFFERENCE for row in found])
        if bound:
            assert p_rate <= 0.1 + 3 * math.sqrt(0.09 / 60)
            assert shown <= 0.05 + 3 * math.sqrt(0.0475 / 60)
        else:
            assert min(p_rate, shown) > 0.4  # the control
    assert compare(a, b, n_resamples=9)["unit"] == "group"
    assert compare(a, b, n_resamples=9)["n_groups"] == 30


# ---- the same samples --------------------------------------------------------------------------------------------


def test_ids_put_the_rows_in_order():
    a, b = pair()
    shuffled = b.take(np.random.default_rng(0).permutation(300))
    assert compare(a, shuffled, n_resamples=30) == compare(a, b, n_resamples=30)
    assert same_samples(a, shuffled).ids.tolist() == a.ids.tolist()
    assert compare(a, b, n_resamples=9)["matched_by"] == "ids"
    without = Scores(b.logits, labels=b.labels)
    assert compare(a, without, n_resamples=9)["matched_by"] == "labels"


def changed(scores, **changes):
    fields = {"logits": scores.logits, "labels": scores.labels, "groups": scores.groups, "ids": scores.ids}
    return Scores(**(fields | changes))


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda b: changed(b, ids=["x", *b.ids[1:]]), "ids: 's00000' is in a and not in b"),
        (lambda b: b.take(range(299)), "ids: 's00299' is in a and not in b \\(1 such\\)"),
        (lambda b: changed(b, labels=[*b.labels[:7], 1 - b.labels[7], *b.labels[8:]]), "labels: s00007 is"),
        (lambda b: changed(b, ids=None, labels=[1 - b.labels[0], *b.labels[1:]]), "labels: s00000 is"),
        (lambda b: changed(b.take(range(299)), ids=None), "b: 299 rows, a has 300"),
        (lambda b: changed(b, labels=None), "labels"),
        (lambda b: changed(b, logits=np.zeros((300, 3))), "b: 3 classes, a has 2"),
        (lambda b: b.take(np.arange(0)), "b: no rows"),
    ],
)
def test_other_samples_are_refused_by_the_first_difference(change, words):
    a, b = pair()
    with pytest.raises(DataError, match=words) as caught:
        compare(a, change(b), n_resamples=5)
    assert "\n" not in str(caught.value)


def test_more_samples_in_b_and_other_groups_are_refused():
    a, b = pair()
    with pytest.raises(DataError, match="ids: 's00299' is in b and not in a"):
        compare(a.take(range(299)), b)
    grouped = [changed(side, groups=[f"g{row // 3}" for row in range(300)]) for side in (a, b)]
    other = changed(b, groups=["g0", "g9", *grouped[1].groups[2:]])
    with pytest.raises(DataError, match="groups: s00001 is in 'g0' in a and in 'g9' in b"):
        compare(grouped[0], other)
    assert compare(a, grouped[1], n_resamples=9)["unit"] == "group"  # one of the two knows the groups


@pytest.mark.parametrize(
    "options, words",
    [
        ({"metrics": ["recall"]}, "metrics: 'recall' is not compared"),
        ({"metrics": []}, "none given"),
        ({"names": ("a", "a")}, "two different names"),
        ({"names": ("a", "")}, "two different names"),
        ({"n_resamples": 0}, "n_resamples: 0"),
        ({"level": 2.0}, "level"),
        ({"seed": 0.5}, "seed"),
    ],
)
def test_bad_options_are_named(options, words):
    with pytest.raises(ConfigError, match=words):
        compare(*pair(), **options)


# ---- the document ------------------------------------------------------------------------------------------------


def test_document_fits_its_schema_and_is_the_same_each_time(tmp_path):
    a, b = pair()
    document = compare(a, b, n_resamples=50)
    write_document(tmp_path / "comparison.json", document, COMPARISON_KIND)
    assert read_document(tmp_path / "comparison.json", COMPARISON_KIND) == {"schema_version": 1, **document}
    assert compare(a, b, n_resamples=50) == document
    assert compare(a, b, n_resamples=50, seed=1) != document


@settings(deadline=None, max_examples=25)
@given(
    st.lists(
        st.tuples(st.integers(-2, 2), st.integers(-2, 2), st.integers(0, 1), st.integers(0, 2), st.integers(0, 2)),
        min_size=1,
        max_size=10,
    ).filter(lambda rows: any(weight for *_, weight in rows)),
    st.booleans(),
)
def test_any_small_input_gives_a_valid_document(tmp_path_factory, rows, weighted):
    first, second, labels, groups, weights = (np.array(column) for column in zip(*rows, strict=True))
    a, b = (
        Scores(np.stack([np.zeros(len(rows)), side], axis=1), labels=labels, groups=groups.astype(str))
        for side in (first, second)
    )
    document = compare(a, b, weights=weights if weighted else None, n_resamples=7)
    write_document(tmp_path_factory.mktemp("doc") / "comparison.json", document, COMPARISON_KIND)
    for row in document["rows"]:
        if row["low"] is None:
            assert row["better"] is None
            assert row["verdict"] in ("undefined", NO_DIFFERENCE, row.get("note"))


def test_one_class_leaves_mcc_undefined():
    a, b = (Scores(np.array([[0.0, 1.0], [0.0, v], [0.5, 0.0]]), labels=[1, 1, 1]) for v in (2.0, -2.0))
    row = rows_of(compare(a, b, n_resamples=20))["mcc"]
    assert (row["a"], row["difference"], row["low"], row["better"], row["verdict"]) == (
        None,
        None,
        None,
        None,
        "undefined",
    )


# ---- arms with seeds ---------------------------------------------------------------------------------------------


def decided(scores: Scores, bar: float = 1.0) -> ArmRun:
    """Exits where the two logits are `bar` apart."""
    return ArmRun(scores, np.abs(scores.margin) > bar, scores.logits.argmax(axis=1))


def found_in(document):
    return {(row["arm"], row["metric"]): row for row in document["differences"]}


def test_one_run_each_is_the_comparison_of_two():
    """The same draws: values, difference and interval of compare()."""
    a, b = pair(noise=(0.3, 1.0), groups=np.repeat(np.arange(100), 3).astype(str))
    two = rows_of(compare(a, b, n_resamples=200, seed=4))
    arms = found_in(compare_arms({"b": [ArmRun(b)], "a": [ArmRun(a)]}, n_resamples=200, seed=4))
    for metric in ("augrc", "aurc", "nll", "mcc", "accuracy"):
        row = arms["a", metric]
        assert [row[key] for key in ("difference", "low", "high")] == pytest.approx(
            [two[metric][key] for key in ("difference", "low", "high")], abs=1e-12
        )
        assert (row["better"] == "a") == (two[metric]["better"] == "a")


def test_seeds_are_averaged_and_their_spread_is_told():
    runs = [decided(pair(noise=(spread, 1.0), seed=1)[0]) for spread in (0.2, 0.6, 1.0)]
    other = [decided(pair(noise=(1.5, 1.0), seed=1)[0])]
    found = compare_arms({"x": runs, "y": other}, n_resamples=50)
    x = found["arms"][0]["metrics"]
    exits, wrong = zip(
        *((run.exit.mean(), (run.exit & (run.label != run.scores.labels)).sum() / run.exit.sum()) for run in runs),
        strict=True,
    )
    assert x["coverage"]["per_seed"] == pytest.approx(exits)
    assert x["exit_error"]["value"] == pytest.approx(np.mean(wrong))
    assert x["coverage"]["sd"] == pytest.approx(np.std(exits, ddof=1))
    assert found["arms"][1]["metrics"]["coverage"]["sd"] is None
    assert found["differences"][5]["metric"] == "coverage"
    assert found["differences"][5]["difference"] == pytest.approx(other[0].exit.mean() - np.mean(exits))


def test_a_run_that_never_exits_has_no_exit_error():
    a, b = pair()
    found = compare_arms({"x": [decided(a)], "never": [decided(b, bar=np.inf)]}, n_resamples=50)
    row = found_in(found)["never", "exit_error"]
    assert (row["difference"], row["verdict"]) == (None, "undefined")
    assert found["arms"][1]["metrics"]["coverage"]["value"] == 0.0


def test_without_policies_there_is_no_coverage():
    a, b = pair()
    assert "coverage" not in compare_arms({"x": [decided(a)], "y": [ArmRun(b)]}, n_resamples=20)["arms"][0]["metrics"]


@pytest.mark.parametrize("k", [2, 3, 5])
def test_the_variance_of_seeds_is_that_of_a_mean_and_two_arms_share_their_freedom(k):
    values = np.random.default_rng(1).normal(size=k)
    assert _seed_variance([values]) == pytest.approx((values.var(ddof=1) / k, k - 1))
    total, freedom = _seed_variance([values, values + 3.0])
    assert (total, freedom) == pytest.approx((2 * values.var(ddof=1) / k, 2 * (k - 1)))
    assert _seed_variance([values[:1]]) is None


def test_no_arm_is_better_by_the_luck_of_its_calibration():
    """The policies differ beyond doubt, but what another val_calib would have given is not in one val_calib."""
    a, b = pair(n=600)
    found = found_in(compare_arms({"wide": [decided(a, 0.1)], "narrow": [decided(b, 2.0)]}, n_resamples=50))
    row = found["narrow", "coverage"]
    assert row["difference"] < -0.2
    assert (row["low"], row["high"], row["better"]) == (None, None, None)
    assert row["verdict"] == row["note"] == CALIBRATION_LUCK


def _false_alarms(seeds, pretend_one, trials=120):
    """Share of trials in which the interval excludes 0 although both arms are trained alike: models differ by their
    seed only.
    """
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, 300)
    shared = 1.6 * (2 * labels - 1) + rng.normal(size=300)
    alarms = 0
    for _ in range(trials):
        arms = {}
        for name in "xy":
            # A seed moves the whole model: here the place of its boundary.
            runs = [shared + rng.normal(0, 0.5) for _ in range(seeds)]
            arms[name] = [ArmRun(Scores(np.stack([-m, m], axis=1), labels=labels)) for m in runs]
        if pretend_one:
            arms = {
                name: [ArmRun(Scores(np.mean([run.scores.logits for run in runs], axis=0), labels=labels))]
                for name, runs in arms.items()
            }
        alarms += found_in(compare_arms(arms, n_resamples=100))["y", "nll"]["better"] is not None
    return alarms / trials


def test_the_spread_from_seed_to_seed_is_in_the_interval():
    """5 seeds: false alarms in 5 % at most; a single model for each arm: most of the time."""
    assert _false_alarms(5, pretend_one=False) <= 0.05 + 3 * math.sqrt(0.0475 / 120)
    assert _false_alarms(1, pretend_one=True) >= 0.4


def test_the_best_arm_and_ties():
    a, b = pair(noise=(0.2, 1.5))
    found = compare_arms({"worse": [decided(b)], "good": [decided(a)], "twin": [decided(a)]}, n_resamples=20)
    assert best_arm(found, "augrc") == best_arm(found, "mcc") == "good"
    with pytest.raises(ConfigError, match="'beauty' is not compared"):
        best_arm(found, "beauty")


def test_rows_in_another_order_are_put_right():
    a, b = pair(noise=(0.3, 1.0))
    order = np.random.default_rng(2).permutation(len(b))
    run = decided(b)
    shuffled = ArmRun(b.take(order), run.exit[order], run.label[order])
    first, again = (compare_arms({"a": [decided(a)], "b": [one]}, n_resamples=30) for one in (run, shuffled))
    assert first == again


def test_arms_of_other_samples_are_refused():
    a, b = pair()
    with pytest.raises(DataError, match=r"'s00000' is in x \(run 1\) and not in y \(run 2\)"):
        compare_arms({"x": [ArmRun(a)], "y": [ArmRun(b), ArmRun(b.take(np.arange(1, 300)))]}, n_resamples=10)
    with pytest.raises(ConfigError, match="y: no runs"):
        compare_arms({"x": [ArmRun(a)], "y": []})
    with pytest.raises(DataError, match="go together"):
        compare_arms({"x": [ArmRun(a, exit=np.ones(300, bool))]})
