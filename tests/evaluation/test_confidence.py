"""Confidence scores: formulas, scipy, what two classes make of them, and the choice by AUGRC."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stage1 import Scores
from stage1.errors import ConfigError, DataError
from stage1.evaluation import augrc, auroc_failure, choose_confidence, confidence
from stage1.evaluation.score_selection import energy, entropy, margin, maxlogit_pnorm, msp
from stage1.scores import from_probabilities

relaxed = settings(deadline=None, max_examples=60)


def logits_of(k, n=st.integers(1, 12)):
    return n.flatmap(lambda rows: arrays(np.float64, (rows, k), elements=st.integers(-20, 20).map(lambda v: v / 4)))


def softmax(logits):
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


@relaxed
@given(st.integers(2, 6).flatmap(logits_of))
def test_scores_equal_their_formulas(logits):
    from scipy.special import logsumexp
    from scipy.stats import entropy as peer

    p = softmax(logits)
    top = p.max(axis=1)
    np.testing.assert_allclose(1 / (1 + np.exp(-msp(logits))), top, atol=1e-9)
    ordered = np.sort(logits, axis=1)
    np.testing.assert_allclose(margin(logits), ordered[:, -1] - ordered[:, -2])
    np.testing.assert_allclose(entropy(logits), -peer(p, axis=1), atol=1e-12)
    total = logsumexp(logits, axis=1)
    if np.abs(total).max() >= 1e-9:
        np.testing.assert_allclose(energy(logits), total, atol=1e-12)


@relaxed
@example(np.full((1, 5), 0.75), 1)  # 1e200 times it has a mean that is off by a rounding
@given(logits_of(5), st.sampled_from([1, 2, 3, 7.5]))
def test_pnorm_equals_its_formula(logits, p):
    centred = logits - logits.mean(axis=1, keepdims=True)
    norm = np.linalg.norm(centred, ord=p, axis=1)
    expected = np.where(norm > 0, centred.max(axis=1) / np.where(norm > 0, norm, 1), 0.0)
    np.testing.assert_allclose(maxlogit_pnorm(logits, p), expected, atol=1e-12)
    np.testing.assert_allclose(maxlogit_pnorm(1e200 * logits + 7, p), expected, atol=1e-9)  # neither scale nor shift


@relaxed
@given(logits_of(2, st.integers(2, 12)))
def test_two_classes_have_one_order(logits):
    size = np.abs(logits[:, 1] - logits[:, 0])
    order = np.sign(np.subtract.outer(size, size))
    for score in (msp, margin, entropy):
        values = score(logits)
        gaps = np.subtract.outer(values, values)
        assert (np.sign(np.where(np.abs(gaps) < 1e-13, 0, gaps)) == order).all(), score.__name__
    np.testing.assert_allclose(msp(logits), size, atol=1e-12)


def test_scores_do_not_saturate():
    logits = np.array([[0.0, 60.0, 1.0], [0.0, 61.0, 1.0], [0.0, 800.0, 1.0]])
    assert (softmax(logits).max(axis=1) == 1.0).all()
    for score in (msp, margin, entropy):
        assert (np.diff(score(logits)) >= 0).all()
        assert score(logits)[1] > score(logits)[0]


def test_pnorm_of_two_classes_is_refused_because_constant():
    logits = np.random.default_rng(0).normal(size=(50, 2))
    centred = logits - logits.mean(axis=1, keepdims=True)
    values = centred.max(axis=1) / np.linalg.norm(centred, ord=3, axis=1)
    np.testing.assert_allclose(values, 2 ** (-1 / 3))
    with pytest.raises(DataError, match="constant .* two classes; use msp"):
        maxlogit_pnorm(logits, 3)


def test_energy_of_log_probabilities_is_refused():
    with pytest.raises(DataError, match="log-probabilities"):
        energy(from_probabilities([[0.2, 0.3, 0.5], [0.1, 0.1, 0.8]]).logits)


# ---- the choice --------------------------------------------------------------------------------------------------


def multiclass(n=3000, scale=0.0, seed=0):
    """Five classes; `scale` > 0: a random temperature for each row, which fools MSP but not the p-norm."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, n)
    logits = rng.normal(size=(n, 5)) + 1.5 * np.eye(5)[labels]
    return Scores(logits * np.exp(scale * rng.normal(size=(n, 1))), labels=labels)


def test_choice_is_the_smallest_augrc_and_the_table_shows_it():
    scores = multiclass(scale=1.0)
    name, table = choose_confidence(scores)
    assert name.startswith("maxlogit_pnorm(")
    by_name = {row["confidence"]: row for row in table}
    assert len(by_name) == len(table) == 4 + 9
    assert by_name[name]["augrc"] == min(row["augrc"] for row in table)
    wrong = scores.logits.argmax(axis=1) != scores.labels
    for row in table:
        values = confidence(row["confidence"], scores.logits)
        assert row["augrc"] == pytest.approx(augrc(values, wrong))
        assert row["auroc_f"] == pytest.approx(auroc_failure(values, wrong))
    # the choice holds on fresh data
    fresh = multiclass(scale=1.0, seed=1)
    wrong = fresh.logits.argmax(axis=1) != fresh.labels
    assert augrc(confidence(name, fresh.logits), wrong) < augrc(confidence("msp", fresh.logits), wrong) - 0.01


def test_msp_stays_where_nothing_is_better():
    scores = multiclass(n=200)
    right = Scores(np.eye(5)[scores.labels] * 3, labels=scores.labels)  # nothing wrong: all the same
    assert choose_confidence(right)[0] == "msp"


def test_two_classes_keep_msp_and_the_table_says_why():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 300)
    scores = Scores(rng.normal(size=(300, 2)) + np.eye(2)[labels], labels=labels)
    name, table = choose_confidence(scores)
    assert name == "msp"
    rows = {row["confidence"]: row for row in table}
    assert rows["msp"]["augrc"] == pytest.approx(rows["entropy"]["augrc"]) == pytest.approx(rows["margin"]["augrc"])
    assert rows["maxlogit_pnorm"]["augrc"] is None
    assert "two classes" in rows["maxlogit_pnorm"]["note"]


def test_probabilities_leave_energy_out():
    rng = np.random.default_rng(3)
    scores = from_probabilities(rng.dirichlet(np.ones(3), 100), labels=rng.integers(0, 3, 100))
    name, table = choose_confidence(scores, pnorms=[2])
    notes = {row["confidence"]: row["note"] for row in table}
    assert "log-probabilities" in notes["energy"]
    assert name != "energy"
    assert list(notes) == ["msp", "margin", "entropy", "energy", "maxlogit_pnorm(2)"]


# ---- bad input ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("score", [msp, margin, entropy, energy, lambda z: maxlogit_pnorm(z, 2)])
@pytest.mark.parametrize(
    "logits, words",
    [
        ([[0.0, float("nan"), 1.0]], "row 0 has NaN"),
        ([[1.0], [2.0]], "shape"),
        ([1.0, 2.0], "shape"),
    ],
)
def test_bad_logits_are_named(score, logits, words):
    with pytest.raises(DataError, match=words):
        score(logits)


@pytest.mark.parametrize("name", ["softmax", "maxlogit_pnorm", "maxlogit_pnorm(x)", "maxlogit_pnorm(2", ""])
def test_unknown_names_are_named(name):
    with pytest.raises(ConfigError, match="is unknown; use msp, margin"):
        confidence(name, np.zeros((2, 3)))


def test_bad_choices_are_named():
    with pytest.raises(DataError, match="labels"):
        choose_confidence(Scores(np.zeros((3, 3))))
    with pytest.raises(DataError, match="no rows"):
        choose_confidence(Scores(np.zeros((0, 3)), labels=np.zeros(0, dtype=int)))
    with pytest.raises(DataError, match="p = 0.5"):
        confidence("maxlogit_pnorm(0.5)", np.eye(3))
    with pytest.raises(DataError, match="overflow"):
        msp([[1e308, -1e308]])
