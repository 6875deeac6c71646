"""The bootstrap of many units without drawing: influences are derivatives, the spread is that of replicates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx

from stage1 import Scores
from stage1.evaluation import linear as linear_module
from stage1.evaluation import resampling
from stage1.evaluation.calibration_report import before_after, calibration_error
from stage1.evaluation.influence import of_ranking
from stage1.evaluation.intervals import SCALES, Statistic, bootstrap
from stage1.evaluation.linear import MANY_UNITS, linear
from stage1.evaluation.measures import auroc_of, difference_of, matthews, mean_of, ratio_of
from stage1.evaluation.probability import Calibration
from stage1.evaluation.ranking import STATISTICS, Ranking
from stage1.evaluation.rates import Share
from stage1.evaluation.summary import evaluate

RANKED = ("aurc", "augrc", "e_aurc", "e_augrc", "auroc_failure", "accuracy")
STEP = 1e-5


def derivative(measure, n: int) -> np.ndarray:
    """Of `measure` (weights -> number or bins) with respect to each weight, at weight 1: float [N] or [N, bins]."""
    eye = np.eye(n) * STEP
    return np.array([(np.asarray(measure(1 + row)) - np.asarray(measure(1 - row))) / (2 * STEP) for row in eye])


@st.composite
def rows(draw):
    n = draw(st.integers(4, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    confidence = rng.normal(size=n).round(draw(st.sampled_from([0, 1, 8])))  # few values, or all different
    residuals = (rng.random(n) < 0.4).astype(float)
    residuals[:2] = 0, 1
    return confidence, residuals, rng


@settings(max_examples=25, deadline=None)
@given(rows())
def test_the_influence_of_a_ranking_is_its_derivative(made):
    confidence, residuals, rng = made
    for losses in (residuals, rng.exponential(size=len(residuals)).round(1)):
        ranking = Ranking(confidence, losses)
        for name in RANKED:
            if name in ("auroc_failure", "accuracy") and losses is not residuals:
                continue
            found = of_ranking(name, ranking)
            expected = derivative(lambda w, name=name, r=ranking: float(STATISTICS[name](r.accept(w))), len(losses))
            assert found == approx(expected, abs=1e-7), name
    assert of_ranking("naurc", Ranking(confidence, residuals)) is None


@settings(max_examples=25, deadline=None)
@given(rows(), st.integers(2, 4))
def test_the_influence_of_other_measures_is_their_derivative(made, k):
    confidence, residuals, rng = made
    n = len(confidence)
    truth, guess = rng.integers(0, k, n), rng.integers(0, k, n)
    truth[:2] = guess[:2] = 0, 1
    base = rng.random(n) < 0.7
    base[0] = True
    share = Share(base & (residuals > 0), base)
    binary = np.minimum(truth, 1)
    measures = {
        "mean": mean_of(confidence, "number"),
        "difference": difference_of(confidence, residuals),
        "ratio": ratio_of(share),
        "mcc": matthews(guess, truth, k),
        "auroc": auroc_of(confidence, binary),
    }
    for name, statistic in measures.items():
        assert statistic.influence is not None
        expected = derivative(lambda w, s=statistic: s.measure(confidence, residuals, w), n)
        assert statistic.influence() == approx(expected, abs=1e-7), name


@settings(max_examples=15, deadline=None)
@given(rows(), st.integers(1, 5))
def test_the_bins_of_a_calibration_error_are_its_derivative(made, n_bins):
    confidence, residuals, _ = made
    p = 1 / (1 + np.exp(-confidence))
    statistic = calibration_error(Calibration(np.stack([1 - p, p], 1), residuals.astype(int)), len(p), n_bins)
    nothing, ones = np.zeros(len(p)), np.ones(len(p))
    gaps = statistic.measure(nothing, nothing, ones)
    (part,) = statistic.influence()
    found = (np.eye(n_bins)[part.bin_of_row] * part.gap[:, None] - gaps) / len(p)
    # the bins stay those of the data: moving a weight moves no border
    assert found == approx(derivative(lambda w: statistic.measure(nothing, nothing, w), len(p)), abs=1e-8)


# ---- against drawn replicates ------------------------------------------------------------------------------------


def many(n: int, seed: int, groups: int | None = None, rare: int = 0) -> tuple[Scores, dict]:
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(np.int64)
    centre = 0.0
    if groups is not None:  # images of a group share labels in part, and what is hard about them
        of = np.sort(rng.integers(0, groups, n))
        labels = (rng.random(n) < rng.beta(0.6, 1.4, groups)[of]).astype(np.int64)
        centre = rng.normal(0, 0.7, groups)[of]
    margin = (rng.normal(0.8 * (2 * labels - 1) + centre, 1.0) * 1.5).round(2)
    names = None if groups is None else of.astype(np.str_)
    scores = Scores(np.stack([np.zeros(n), margin], axis=1), labels=labels, groups=names)
    return scores, {
        "confidence": np.abs(margin),
        "residuals": (margin > 0) != labels,
        "labels": labels,
        "groups": names,
    }


def statistics(scores: Scores) -> dict[str, Statistic | str]:
    truth, margin = scores.known_labels, scores.margin
    p = scores.probabilities
    exits = np.abs(margin) > 1.5
    calibrated = 1 / (1 + np.exp(-0.6 * margin))
    error = calibration_error(Calibration(p, truth), len(p))
    return {
        **{name: name for name in RANKED},
        "auroc": auroc_of(margin, truth),
        "mcc": matthews((margin > 0).astype(np.int64), truth, 2),
        "brier": mean_of((p[:, 1] - truth) ** 2, "loss"),
        "change": difference_of((p[:, 1] - truth) ** 2, (calibrated - truth) ** 2),
        "error": ratio_of(Share(exits & ((margin > 0) != truth), exits)),
        "ece": error,
    }


@pytest.mark.parametrize("groups", [None, 24_000])
def test_the_spread_is_that_of_drawn_replicates(groups, monkeypatch):
    scores, given_rows = many(24_000 if groups is None else 60_000, 3, groups)
    metrics, draws = statistics(scores), 400
    fast = bootstrap(metrics, **given_rows)
    monkeypatch.setattr("stage1.evaluation.intervals.MANY_UNITS", 10**9)
    drawn = bootstrap(metrics, **given_rows, n_resamples=draws)
    for name in metrics:
        assert fast[name].resamples == 0
        assert drawn[name].resamples == draws
        assert fast[name].value == drawn[name].value
        # the standard deviation of a sample of B normal numbers has relative error 1 / sqrt(2 B)
        if name != "ece":
            assert fast[name].deviation == approx(drawn[name].deviation, rel=4 / np.sqrt(2 * draws)), name
        widths = [one.high - one.low for one in (fast[name], drawn[name])]
        assert widths[0] == approx(widths[1], rel=0.15), name
        assert fast[name].low == approx(drawn[name].low, abs=0.15 * widths[1]), name


def test_the_bins_of_a_calibration_error_vary_together_as_drawn_ones_do():
    for groups in (None, 20_500):
        scores, _ = many(41_000, 5, groups)
        p = scores.probabilities
        sharper = p**2 / (p**2).sum(axis=1, keepdims=True)
        errors = [calibration_error(Calibration(q, scores.known_labels), len(p)) for q in (p, sharper)]
        plan = resampling.units(len(p), scores.known_labels, scores.groups)
        ones = np.ones(len(p))
        observed = np.concatenate([one.measure(ones, ones, ones) for one in errors])
        found = linear([part for one in errors for part in one.influence()], observed, plan, 0)
        rows_drawn = [plan.rows(c)[0].astype(float) for c in resampling.draws(plan, len(p), 300, 1)]
        drawn = np.array([np.concatenate([one.measure(w, w, w) for one in errors]) for w in rows_drawn])
        there, wanted = np.cov(found.replicates.T), np.cov(drawn.T)
        scale = np.sqrt(np.diag(wanted))
        assert np.abs((there - wanted) / np.outer(scale, scale)).max() < 5 * np.sqrt(2 / 300)


def test_a_small_stratum_adds_what_it_adds_when_its_units_are_left_out():
    n = MANY_UNITS + 12
    labels = np.r_[np.zeros(MANY_UNITS, int), np.ones(12, int)]
    rng = np.random.default_rng(0)
    p = rng.beta(1, 3, n)
    chosen = {"loss": mean_of((p - labels) ** 2, "loss")}
    rows_given = {"confidence": p, "residuals": labels, "labels": labels}
    fast = bootstrap(chosen, **rows_given)["loss"]
    slow = bootstrap({"loss": replace(chosen["loss"], influence=None)}, **rows_given)["loss"]
    assert slow.resamples == 1000
    assert fast.freedom == approx(slow.freedom, rel=0.1)
    assert fast.deviation == approx(slow.deviation, rel=4 / np.sqrt(2000))


# ---- where it does not apply -------------------------------------------------------------------------------------


def test_what_hangs_on_few_units_is_drawn():
    n = MANY_UNITS
    rng = np.random.default_rng(1)
    margin = rng.normal(size=n)
    wrong = np.zeros(n, dtype=bool)
    wrong[rng.choice(n, 40, replace=False)] = True
    found = bootstrap({"accuracy": "accuracy", "spread": mean_of(margin, "number")}, confidence=margin, residuals=wrong)
    assert found["accuracy"].resamples == 1000
    assert found["spread"].resamples == 0


def test_fewer_units_or_weights_or_another_method_are_drawn():
    n = MANY_UNITS
    rng = np.random.default_rng(2)
    rows_given = {"confidence": rng.normal(size=n), "residuals": rng.random(n) < 0.3}
    less = {name: column[1:] for name, column in rows_given.items()}
    asked = {"metrics": {"augrc": "augrc"}, "n_resamples": 30}
    assert bootstrap(**asked, **rows_given)["augrc"].resamples == 0
    assert bootstrap(**asked, **less)["augrc"].resamples == 30
    assert bootstrap(**asked, **rows_given, weights=np.full(n, 2.0))["augrc"].resamples == 30
    assert bootstrap(**asked, **rows_given, method="percentile")["augrc"].resamples == 30
    assert bootstrap({"naurc": "naurc"}, **rows_given, n_resamples=30)["naurc"].resamples == 30


def test_few_replicates_of_very_many_rows_count_their_own_error(monkeypatch):
    monkeypatch.setattr("stage1.evaluation.intervals._MOST_WEIGHTS", 1000)
    n = MANY_UNITS
    rng = np.random.default_rng(3)
    rows_given = {"confidence": rng.normal(size=n), "residuals": rng.random(n) < 0.3}
    found = bootstrap({"naurc": "naurc"}, **rows_given)["naurc"]
    assert found.resamples == 200
    assert found.freedom == approx(1 / (1 / 199 + 1 / (n - 1)))


def test_every_statistic_of_the_ranking_says_whether_it_has_an_influence():
    assert set(RANKED) <= set(SCALES)
    ranking = Ranking(np.arange(4.0), np.array([0.0, 1.0, 0.0, 1.0]))
    assert {name for name in SCALES if of_ranking(name, ranking) is None} == {"naurc", "aurc_achievable"}


def test_an_evaluation_of_many_rows_draws_nothing(monkeypatch):
    def refused(*arguments):
        raise AssertionError("drawn")

    monkeypatch.setattr("stage1.evaluation.intervals.resampling.draws", refused)
    scores, _ = many(MANY_UNITS, 7)
    exits = np.abs(scores.margin) > 1
    document = evaluate(
        scores,
        exits,
        (scores.margin > 0).astype(np.int64),
        lo=-1.0,
        hi=1.0,
        classes=["none", "roadwork"],
        targets={},
        policy="softmax",
        certified=False,
    )
    assert all(row["low"] < row["value"] < row["high"] for row in document["metrics"].values())
    assert all(before_after(scores, None)[name]["before"]["low"] is not None for name in ("nll", "brier", "ece"))
    assert linear_module.FEWEST_EFFECTIVE == 400
