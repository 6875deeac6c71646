"""Is a gate accepted? The gain is that of the two AUGRC, its interval that of a plain paired bootstrap."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from stage1.errors import DataError
from stage1.evaluation import augrc
from stage1.evaluation.score_selection import accept_gate, softmax_confidence
from stage1.scores import Scores


def draw(seed, n, strength):
    """Binary scores with 25 % wrong answers; a second signal that knows them to a degree."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    right = rng.random(n) < 0.75
    margin = np.where(right, 1.0, -1.0) * (2 * labels - 1) * rng.uniform(0.2, 2, n)
    g = special.expit(strength * np.where(right, 1.0, -1.0) + rng.normal(size=n))
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels), g, ~right


def test_gain_and_interval_equal_a_plain_paired_bootstrap():
    scores, g, wrong = draw(1, 400, 0.5)
    found = accept_gate(scores, g, n_resamples=2000)
    softmax = np.abs(scores.margin)
    assert found.gain == pytest.approx(augrc(softmax, wrong) - augrc(g, wrong), abs=1e-12)
    rng = np.random.default_rng(0)
    plain = []
    for _ in range(1000):
        rows = np.concatenate(
            [rng.choice(np.flatnonzero(scores.labels == k), (scores.labels == k).sum()) for k in (0, 1)]
        )
        plain.append(augrc(softmax[rows], wrong[rows]) - augrc(g[rows], wrong[rows]))
    low, high = np.quantile(plain, [0.025, 0.975])
    spread = float(np.std(plain))
    assert found.low == pytest.approx(low, abs=0.2 * spread)  # 1,000 draws: the quantile's own error is .09 of it
    assert found.high == pytest.approx(high, abs=0.2 * spread)
    assert found.accepted
    assert "gate is kept" in found.reason


def test_a_gate_that_says_what_softmax_says_is_refused():
    scores, _, _ = draw(2, 300, 1.0)
    found = accept_gate(scores, special.expit(np.abs(scores.margin)))
    assert (found.gain, found.low, found.high) == (0.0, None, None)
    assert not found.accepted
    assert "softmax is kept" in found.reason


def test_noise_is_accepted_no_more_often_than_the_interval_says_and_a_signal_nearly_always():
    draws = 60
    noise = [accept_gate(*draw(100 + seed, 300, 0.0)[:2], n_resamples=200).accepted for seed in range(draws)]
    signal = [accept_gate(*draw(200 + seed, 300, 0.7)[:2], n_resamples=200).accepted for seed in range(draws)]
    assert np.mean(noise) <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / draws)
    assert np.mean(signal) > 0.9


def test_groups_widen_the_interval():
    scores, g, _ = draw(3, 60, 0.4)
    rows = np.repeat(np.arange(60), 10)
    many = Scores(logits=scores.logits[rows], labels=scores.known_labels[rows])
    grouped = Scores(logits=many.logits, labels=many.labels, groups=rows.astype(str))
    alone, together = accept_gate(many, g[rows]), accept_gate(grouped, g[rows])
    assert alone.gain == pytest.approx(together.gain)
    assert None not in (alone.low, alone.high, together.low, together.high)
    assert together.high - together.low > 2 * (alone.high - alone.low)


def test_nothing_to_compare_is_said():
    scores, g, _ = draw(4, 50, 1.0)
    sure = Scores(logits=scores.logits, labels=(scores.margin > 0).astype(int))
    one = Scores(logits=scores.logits, labels=scores.labels, groups=["a"] * 50)
    for found, words in (
        (accept_gate(sure, g), "all 50 answers in val_select are right"),
        (accept_gate(Scores(logits=scores.logits, labels=1 - sure.known_labels), g), "are wrong"),
        (accept_gate(scores, np.full(50, 0.7)), "constant"),
        (accept_gate(scores, np.full(50, 0.7), constant_because="1 wrong answer"), "softmax is kept: 1 wrong answer."),
        (accept_gate(one, g), "too few groups (1; 6 are the fewest"),
    ):
        assert not found.accepted
        assert found.reason.startswith("softmax is kept: ")
        assert words in found.reason
    for bad in (g[:10], np.where(np.arange(50) == 3, np.nan, g)):
        with pytest.raises(DataError):
            accept_gate(scores, bad)


def test_softmax_confidence_orders_as_the_largest_probability_and_does_not_saturate():
    rng = np.random.default_rng(5)
    scores = Scores(logits=rng.normal(size=(200, 4)) * 2)
    largest = scores.probabilities.max(axis=1)
    assert softmax_confidence(scores) == pytest.approx(special.logit(largest), abs=1e-9)
    two = Scores(logits=[[0.0, 50.0], [0.0, -700.0], [1.0, 0.0]])
    assert softmax_confidence(two).tolist() == [50.0, 700.0, 1.0]
