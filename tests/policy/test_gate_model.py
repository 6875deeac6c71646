"""The gate model: what it fits (scikit-learn as oracle), that g is a probability, what it refuses, what JSON keeps."""

from __future__ import annotations

import json

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.policy.gate_features import feature, tamed
from stage1.policy.gate_model import GateModel, answers_right, cross_fitted_gate, fit_gate_model
from stage1.scores import Scores

from .hardness import hard_images


@pytest.fixture(autouse=True)
def one_thread():
    # Small fits: on a busy machine BLAS threads wait for each other forty times longer than the sums take.
    with threadpoolctl.threadpool_limits(1):
        yield


def binary(margin, labels, **fields):
    return Scores(logits=np.stack([np.zeros(len(margin)), margin], axis=1), labels=labels, **fields)


# ---- what is fitted ----------------------------------------------------------------------------------------------


def test_meta_model_equals_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    scores, extra = hard_images(np.random.default_rng(1), 800)
    model = fit_gate_model(scores, extra, ridge=2.5)
    assert model.features == ("margin", "entropy", "hardness", "margin*hardness")
    margin = np.abs(scores.margin)
    entropy = stats.entropy(scores.probabilities, axis=1)

    def standard(column):
        return (column - column.mean()) / column.std()

    columns = [standard(tamed(margin)), standard(entropy), standard(extra["hardness"])]
    columns.append(standard(columns[0] * columns[2]))
    oracle = LogisticRegression(C=1 / 2.5, tol=1e-10, max_iter=10_000)
    oracle.fit(np.stack(columns, axis=1), answers_right(scores))
    assert model.weights == pytest.approx(oracle.coef_[0], abs=1e-5)
    assert model.intercept == pytest.approx(float(oracle.intercept_[0]), abs=1e-5)


@pytest.mark.parametrize("helps", [True, False])
def test_g_is_the_share_of_right_answers(helps):
    rng = np.random.default_rng(2)
    select, extra = hard_images(rng, 3000, helps=helps)
    fresh, columns = hard_images(rng, 40_000, helps=helps)
    g = fit_gate_model(select, extra).apply(fresh, columns)
    right = answers_right(fresh)
    for part in np.array_split(np.argsort(g), 10):
        # .03: what 3,000 labels leave open
        assert abs(g[part].mean() - right[part].mean()) < 0.03 + 3 * np.sqrt(0.25 / len(part))


def test_the_second_signal_orders_better_than_the_margin_where_it_helps():
    from stage1.evaluation import auroc_failure

    rng = np.random.default_rng(3)
    select, extra = hard_images(rng, 2000)
    fresh, columns = hard_images(rng, 40_000)
    wrong = ~answers_right(fresh)
    gate = auroc_failure(fit_gate_model(select, extra).apply(fresh, columns), wrong)
    assert gate > auroc_failure(np.abs(fresh.margin), wrong) + 0.05


def test_margin_and_entropy_of_many_classes():
    scores = Scores(logits=[[0.0, 3.0, 1.0], [5.0, 5.0, -1.0], [-800.0, 0.0, 0.0]])
    assert feature("margin", scores, None) == pytest.approx([2.0, 0.0, 0.0])
    assert feature("entropy", scores, None) == pytest.approx(stats.entropy(scores.probabilities, axis=1))
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 5, 600)
    scores = Scores(logits=rng.normal(size=(600, 5)) + 1.5 * np.eye(5)[labels], labels=labels)
    g = fit_gate_model(scores).apply(scores)
    assert stats.spearmanr(g, feature("margin", scores, None)).statistic > 0.8


@given(st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=20))
def test_tamed_keeps_the_order_and_small_values(values):
    array = np.sort(np.array(values))
    assert (np.diff(tamed(array)) >= 0).all()
    assert (tamed(array)[np.abs(array) <= 30] == array[np.abs(array) <= 30]).all()
    assert np.abs(tamed(array)).max() < 1000


# ---- the gate logit ----------------------------------------------------------------------------------------------


def with_gate(seed, noise):
    """The gate logit is the log odds of being right, with noise."""
    scores, extra = hard_images(np.random.default_rng(seed), 2000)
    model = fit_gate_model(scores, extra)
    gate = model.raw(scores, extra) + noise * np.random.default_rng(seed + 1).normal(size=len(scores))
    return Scores(logits=scores.logits, labels=scores.labels, gate=gate), extra


def test_a_good_gate_logit_is_taken_as_it_is_and_a_poor_one_becomes_a_feature():
    good, _ = with_gate(5, 0.0)
    poor, _ = with_gate(5, 4.0)
    assert fit_gate_model(good).source == "gate"
    mixed = fit_gate_model(poor)
    assert mixed.source == "meta"
    assert {"gate", "margin*gate"} <= set(mixed.features)
    assert fit_gate_model(poor, source="gate").source == "gate"
    assert fit_gate_model(good, source="meta").source == "meta"


def test_the_map_of_a_gate_logit_is_strictly_rising_and_undoes_its_scale():
    scores, _ = with_gate(6, 0.0)
    scaled = Scores(logits=scores.logits, labels=scores.labels, gate=0.2 * scores.gate - 1)
    model = fit_gate_model(scaled, source="gate")
    assert model.map is not None
    g = model.apply(scaled)
    assert (np.argsort(g, kind="stable") == np.argsort(scaled.gate, kind="stable")).all()
    assert np.abs(g - special.expit(scores.gate)).mean() < 0.02  # the raw one is off by .2
    assert np.abs(special.expit(scaled.gate) - special.expit(scores.gate)).mean() > 0.2


def test_isotonic_steps_are_taken_only_where_they_are_clearly_better():
    rng = np.random.default_rng(7)
    n = 6000
    gate = rng.uniform(-3, 3, n)
    # A staircase: no sigmoid is near it.
    right = rng.random(n) < np.where(gate < -1, 0.05, np.where(gate < 1, 0.5, 0.97))
    labels = rng.integers(0, 2, n)
    margin = np.where((labels == 1) == right, 1.0, -1.0) * rng.uniform(0.1, 1, n)
    steps = fit_gate_model(binary(margin, labels, gate=gate), source="gate")
    assert steps.map is not None
    assert steps.map.name == "isotonic"
    smooth, _ = with_gate(7, 0.0)
    model = fit_gate_model(smooth, source="gate")
    assert model.map is None or model.map.name != "isotonic"


# ---- cross-fitting -----------------------------------------------------------------------------------------------


def test_cross_fitted_g_does_not_praise_noise_and_in_sample_g_does():
    from stage1.evaluation import auroc_failure

    inside, outside = [], []
    for seed in range(6):
        rng = np.random.default_rng(100 + seed)
        n = 300
        labels = rng.integers(0, 2, n)
        scores = binary(np.where(rng.random(n) < 0.7, 1.0, -1.0) * (2 * labels - 1) * (1 + rng.random(n)), labels)
        extra = {f"noise{index}": rng.normal(size=n) for index in range(12)}
        wrong = ~answers_right(scores)
        # In-sample r, since the map of a gate that learnt nothing is a constant.
        from stage1.policy.gate_model import _fit_meta

        inside.append(auroc_failure(_fit_meta(scores, extra, ~wrong, 1.0).raw(scores, extra), wrong))
        outside.append(auroc_failure(cross_fitted_gate(scores, extra), wrong))
    assert np.mean(inside) > 0.65
    assert abs(np.mean(outside) - 0.5) < 0.06


def test_order_of_rows_does_not_matter_where_there_are_ids():
    scores, extra = hard_images(np.random.default_rng(8), 500, ids=[f"{index:04d}" for index in range(500)])
    order = np.random.default_rng(0).permutation(500)
    shuffled = {name: values[order] for name, values in extra.items()}
    assert fit_gate_model(scores.take(order), shuffled).apply(scores, extra) == pytest.approx(
        fit_gate_model(scores, extra).apply(scores, extra), abs=1e-7
    )
    assert cross_fitted_gate(scores.take(order), shuffled) == pytest.approx(
        cross_fitted_gate(scores, extra)[order], abs=1e-7
    )


# ---- what is saved is what is applied -----------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["meta", "gate", "collapsed"])
def test_json_gives_the_same_g_bit_for_bit(case):
    scores, extra = with_gate(9, 0.5)
    if case == "collapsed":
        scores = binary(np.full(50, 1.0), np.ones(50, dtype=int))
        model, extra = fit_gate_model(scores), {}
    else:
        model = fit_gate_model(scores, extra, source=case)
    again = GateModel.from_document(json.loads(json.dumps(model.to_document())))
    assert again == model
    assert (again.apply(scores, extra) == model.apply(scores, extra)).all()


def test_an_image_alone_has_the_g_that_it_has_among_others():
    scores, extra = with_gate(10, 0.5)
    for source in ("meta", "gate"):
        model = fit_gate_model(scores, extra, source=source)
        together = model.apply(scores, extra)
        alone = [model.apply(scores.take([row]), {"hardness": extra["hardness"][[row]]})[0] for row in range(200)]
        assert (np.array(alone) == together[:200]).all()
        assert len(model.apply(scores.take(np.arange(0)), {"hardness": np.empty(0)})) == 0


def test_a_damaged_map_is_named():
    scores, extra = hard_images(np.random.default_rng(11), 800)
    document = fit_gate_model(scores, extra).to_document()
    document["map"] = {
        "name": "platt",
        "parameters": {"slope": -1.0, "shift": 0.0, "smoothing": True},
        "n": 9,
        "n_classes": 2,
        "fitted_on": None,
        "monotone": True,
        "constrained": [],
    }
    with pytest.raises(IntegrityError, match=r"gateparams: model\.map: platt: slope"):
        GateModel.from_document(document)


# ---- nothing to learn, bad input ----------------------------------------------------------------------------------


def test_degenerate_answers_give_a_constant_and_say_why():
    rng = np.random.default_rng(12)
    labels = rng.integers(0, 2, 400)
    sure = 2.0 * labels - 1 + 0.1 * rng.random(400)
    for margin, message in (
        (sure, "all 400 answers in val_select are right"),
        (-sure, "all 400 answers in val_select are wrong"),
        (np.where(np.arange(400) < 3, -sure, sure), "3 wrong answers in val_select, a gate needs at least 10"),
    ):
        scores = binary(margin, labels)
        model = fit_gate_model(scores)
        assert message in (model.collapsed or "")
        g = model.apply(scores)
        assert np.ptp(g) == 0
        assert 0 < g[0] < 1
        assert g[0] == pytest.approx((model.accuracy * 400 + 1) / 402)
        assert (cross_fitted_gate(scores) == g).all()


def test_a_collapsed_gate_and_one_that_points_the_wrong_way_are_named():
    scores, _ = hard_images(np.random.default_rng(13), 600)
    wrong = ~answers_right(scores)

    def fitted(gate):
        return fit_gate_model(Scores(logits=scores.logits, labels=scores.labels, gate=gate), source="gate")

    noise = np.random.default_rng(0).normal(size=600)
    assert "has collapsed: 100 % of val_select are at 2" in (fitted(np.full(600, 2.0)).collapsed or "")
    assert "has collapsed: 96" in (fitted(np.where(np.arange(600) < 580, 2.0, noise)).collapsed or "")
    assert "does not rise where answers are right" in (fitted(3.0 * wrong + noise).collapsed or "")
    assert fitted(-3.0 * wrong + noise).collapsed is None


def test_few_groups_with_a_wrong_answer_are_too_few():
    scores, _ = hard_images(np.random.default_rng(14), 600)
    groups = np.where(answers_right(scores), np.arange(600) % 40, 99).astype(str)
    model = fit_gate_model(Scores(logits=scores.logits, labels=scores.labels, groups=groups))
    assert "1 group with a wrong answer in val_select, a gate needs at least 10" in (model.collapsed or "")


def test_bad_columns_and_options_are_named():
    scores, extra = hard_images(np.random.default_rng(15), 300)
    spoiled = np.where(np.arange(300) == 7, np.nan, extra["hardness"])
    for call, error, message in (
        (lambda: fit_gate_model(scores, {"hardness": spoiled}), DataError, r"extra\.hardness: row 7 is nan"),
        (lambda: fit_gate_model(scores, {"hardness": extra["hardness"][:5]}), DataError, r"shape \(5,\)"),
        (lambda: fit_gate_model(scores, {"hardness": ["a"] * 300}), DataError, "not numbers"),
        (lambda: fit_gate_model(scores, {"margin": extra["hardness"]}), DataError, "may not be called 'margin'"),
        (lambda: fit_gate_model(scores, source="gate"), DataError, "no gate logits"),
        (lambda: fit_gate_model(scores, source="best"), ConfigError, "gate.source: 'best' is unknown"),
        (lambda: fit_gate_model(scores, ridge=0.0), ConfigError, "gate.ridge: 0.0"),
        (lambda: fit_gate_model(Scores(logits=scores.logits)), DataError, "labels"),
        (lambda: fit_gate_model(scores.take(np.arange(0))), DataError, "no rows"),
        (lambda: fit_gate_model(scores, extra).apply(scores), DataError, "no column 'hardness'"),
    ):
        with pytest.raises(error, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([1e-3, 1.0, 1e3, 1e150]), st.booleans())
def test_random_arrays_give_g_inside_0_1(seed, n, scale, rounded):
    rng = np.random.default_rng(seed)
    logits = scale * rng.normal(size=(n, 2))
    gate = scale * rng.normal(size=n)
    column = np.round(rng.normal(size=n)) if rounded else 1e9 * rng.normal(size=n)
    scores = Scores(logits=np.round(logits) if rounded else logits, labels=rng.integers(0, 2, n), gate=gate)
    for g in (
        fit_gate_model(scores, {"x": column}).apply(scores, {"x": column}),
        cross_fitted_gate(scores, {"x": column}),
    ):
        assert g.shape == (n,)
        assert ((g > 0) & (g < 1)).all()
