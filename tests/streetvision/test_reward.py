"""The client's reward: its rules one by one, and the exact expectation against enumeration, simulation and the
published table.
"""

from __future__ import annotations

import warnings
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_score,
    recall_score,
    roc_auc_score,
)

from stage1.errors import DataError
from stage1.streetvision.reward import (
    ALPHA,
    expected_reward,
    mcc_of_table,
    moving_average,
    play,
    reward_formula,
    simulated,
)

# STREETVISION.md, expected reward at balanced labels: made there by simulation, so rounded and a few thousandths off.
PUBLISHED = {
    (0.996, 0.132): 0.740,
    (0.95, 0.05): 0.800,
    (0.98, 0.05): 0.856,
    (0.97, 0.03): 0.877,
    (0.98, 0.02): 0.915,
    (0.99, 0.01): 0.957,
    (0.5, 0.5): 0.026,
}
ROUNDING, THEIR_ERROR = 0.0005, 0.003


@pytest.mark.parametrize("rates, published", PUBLISHED.items(), ids=str)
def test_the_published_table(rates, published):
    assert float(expected_reward(*rates)) == pytest.approx(published, abs=ROUNDING + THEIR_ERROR)


@pytest.mark.parametrize("rates", PUBLISHED, ids=str)
def test_expectation_is_what_the_rule_pays_on_average(rates):
    ends = simulated(*rates, answers=400, runs=250, seed=3)
    standard_error = ends.std(ddof=1) / np.sqrt(len(ends))
    # .95^300 of the score is still that of the warm-up, whatever that was: 2e-7
    assert abs(ends.mean() - float(expected_reward(*rates))) <= 3.5 * standard_error
    assert standard_error < 0.012  # power: an error of .04 anywhere would be seen


@pytest.mark.parametrize("answers", [1, 2, 3, 4])
@pytest.mark.parametrize("tpr, fpr, prior", [(0.9, 0.2, 0.5), (0.6, 0.5, 0.3), (1.0, 0.0, 0.8)])
def test_expectation_equals_enumeration(tpr, fpr, prior, answers):
    total = 0.0
    for labels in product((0, 1), repeat=answers):
        for said in product((0, 1), repeat=answers):
            chance = np.prod(
                [
                    (prior if y else 1 - prior) * ((tpr if a else 1 - tpr) if y else (fpr if a else 1 - fpr))
                    for y, a in zip(labels, said, strict=True)
                ]
            )
            total += chance * play(said, labels).rewards[-1]
    assert float(expected_reward(tpr, fpr, prior, answers=answers)) == pytest.approx(total, abs=1e-12)


def test_recent_answers_are_a_random_part_of_the_window():
    # 12 answers: the 10 of the accuracy are not all of the window any more.
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 2, (4000, 12))
    said = (rng.random((4000, 12)) < np.where(labels == 1, 0.8, 0.3)).astype(float)
    ends = np.array([play(a, y).rewards[-1] for a, y in zip(said, labels, strict=True)])
    assert ends.mean() == pytest.approx(
        float(expected_reward(0.8, 0.3, answers=12)), abs=3.5 * ends.std() / np.sqrt(4000)
    )


@settings(max_examples=60, deadline=None)
@given(st.floats(0.5, 1.0), st.floats(0.0, 0.49), st.floats(0.05, 0.95), st.floats(0.0, 0.2))
def test_better_rates_never_pay_less(tpr, fpr, prior, step):
    here = float(expected_reward(tpr, fpr, prior))
    assert 0.0 <= here <= 1.0 + 1e-12
    assert float(expected_reward(min(1.0, tpr + step), fpr, prior)) >= here - 1e-12
    assert float(expected_reward(tpr, max(0.0, fpr - step), prior)) >= here - 1e-12


@settings(max_examples=30, deadline=None)
@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(0.1, 0.9))
def test_naming_the_classes_the_other_way_round_pays_the_same(tpr, fpr, prior):
    assert float(expected_reward(tpr, fpr, prior)) == pytest.approx(
        float(expected_reward(1 - fpr, 1 - tpr, 1 - prior)), abs=1e-10
    )


def test_expected_reward_broadcasts_and_knows_its_ends():
    many = expected_reward(np.array([[0.9], [1.0]]), np.array([0.1, 0.0, 0.3]))
    assert many.shape == (2, 3)
    assert many[0, 0] == pytest.approx(float(expected_reward(0.9, 0.1)))
    # Always right: only 100 equal labels in a row keep it from 1.
    assert many[1, 1] == pytest.approx(1.0, abs=1e-12)
    assert float(expected_reward(1.0, 1.0)) == pytest.approx((0.5**3) * 0.5 * (1.6 / 4 + 0.1 * 0.5 * 6) * 0.5, abs=0.02)


@pytest.mark.parametrize(
    "arguments, word",
    [
        ((1.1, 0.0), "tpr"),
        ((0.5, -0.1), "fpr"),
        ((0.5, float("nan")), "fpr"),
        ((0.5, 0.5, 2.0), "prior"),
        ((0.5, 0.5, 0.5, 0), "answers"),
    ],
)
def test_bad_rates_are_named(arguments, word):
    with pytest.raises(DataError, match=word):
        expected_reward(*arguments)


# ---- played


def test_warm_up_uses_what_there_is():
    rewards = play([1.0, 0.0, 1.0], [1, 0, 0]).rewards
    assert rewards[0] == 0.5**3  # one label only: MCC counts 0, accuracy 1
    assert rewards[1] == 1.0
    assert rewards[2] == pytest.approx(float(reward_formula(mcc_of_table(1, 1, 1, 2), 2 / 3)))


def test_windows_forget():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 260)
    said = np.where(np.arange(260) < 150, 1 - labels, labels)  # all wrong, then all right
    rewards = play(said, labels).rewards
    assert rewards[149] == 0.0
    assert rewards[159] < 1.0  # the last ten are right, the last hundred are not
    assert rewards[249] == 1.0


def test_mcc_of_each_window_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 300)
    answers = np.clip(labels * 0.4 + rng.normal(0.3, 0.3, 300), 0, 1)
    rewards = play(answers, labels).rewards
    for end in (5, 40, 99, 100, 101, 250, 299):
        hundred, ten = slice(max(0, end - 99), end + 1), slice(max(0, end - 9), end + 1)
        said = answers > 0.5
        mcc = max(0.0, matthews_corrcoef(labels[hundred], said[hundred]))
        assert rewards[end] == pytest.approx((0.5 * mcc + 0.5 * (said[ten] == labels[ten]).mean()) ** 3)


def test_exactly_one_half_says_class_0():
    assert play([0.5, 0.500001], [0, 1]).rewards[1] == 1.0
    assert play([0.5], [1]).rewards[0] == 0.0


def test_out_of_range_and_no_reply_earn_nothing():
    answers = [0.9, 1.2, -0.1, -1.0, float("nan"), 0.1]
    labels = [1, 1, 0, 1, 1, 0]
    rewards = play(answers, labels).rewards
    assert (rewards[1:5] == 0).all()
    # NaN stands in both windows: the client's metrics are 0 there.
    assert rewards[5] == 0.0
    # 1.2 and -0.1 round to the right class and count as such later; -1 is left out of what is measured.
    assert play([0.9, 1.2, -0.1, -1.0, 0.1], [1, 1, 0, 1, 0]).rewards[4] == 1.0


def of_the_client(answers: np.ndarray, labels: np.ndarray) -> float:
    """The last reward as the client computes it: its scikit-learn calls, with every metric 0 where one of them
    raises.
    """

    def metrics(size: int) -> tuple[float, float]:
        kept = answers[-size:] != -1
        given, truth = answers[-size:][kept], labels[-size:][kept]
        said = np.round(given)
        if not len(given):
            return 0.0, 0.0
        try:
            accuracy = accuracy_score(truth, said)
            for score in (precision_score, recall_score, f1_score):
                score(truth, said, zero_division=0)
            both = len(np.unique(truth)) > 1 and len(np.unique(said)) > 1
            mcc = max(0.0, matthews_corrcoef(truth, said)) if both else 0.0
            if len(np.unique(truth)) > 1:
                roc_auc_score(truth, given)
        except ValueError:
            return 0.0, 0.0
        return accuracy, mcc

    in_range = 0.0 <= answers[-1] <= 1.0
    return (0.5 * metrics(100)[1] + 0.5 * metrics(10)[0]) ** 3 if in_range else 0.0


@pytest.mark.parametrize("odd", [7.0, -0.6, 1.5001, -2.0, float("nan"), float("inf"), 1e300])
def test_an_answer_that_rounds_to_no_class_costs_every_window_that_holds_it(odd):
    labels = np.tile([0, 1], 75)
    answers = labels.astype(float)
    answers[20] = odd
    rewards = play(answers, labels).rewards
    assert (rewards[:20] > 0).all()
    assert (rewards[20:30] == 0).all()  # neither MCC nor accuracy
    assert (rewards[30:120] == 0.125).all()  # accuracy of the last ten alone
    assert (rewards[120:] == 1.0).all()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([0.0, 0.02, 0.2, 0.8]), st.sampled_from([0.0, 0.3, 1.0]))
def test_every_reward_is_that_of_the_clients_own_calls(seed, strange, one_sided):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 130))
    labels = (rng.random(n) < max(0.5, one_sided)).astype(int)
    answers = np.clip(labels * 0.4 + rng.normal(0.3, 0.3, n), 0, 1)
    odd = np.array([-1.0, 1.2, -0.1, 2.0, 7.0, -0.8, np.nan, np.inf, 1e300, 1.5, -0.5])
    answers = np.where(rng.random(n) < strange, rng.choice(odd, n), answers)
    rewards = play(answers, labels).rewards
    for end in range(0, n, max(1, n // 12)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = of_the_client(answers[: end + 1], labels[: end + 1])
        assert rewards[end] == pytest.approx(expected, abs=1e-9), (end, answers[: end + 1][-12:])


def test_no_reply_takes_a_place_in_the_window():
    labels = np.tile([0, 1], 60)
    right, silent = labels.astype(float), labels.astype(float)
    right[0] = silent[0] = 1.0  # one wrong answer, then 99 places
    silent[1:11] = -1.0
    assert play(right[:101], labels[:101]).rewards[100] == play(silent[:101], labels[:101]).rewards[100] == 1.0
    assert play(silent[:100], labels[:100]).rewards[99] < play(right[:100], labels[:100]).rewards[99]


def test_one_label_only_counts_as_no_mcc():
    assert (play(np.ones(30), np.ones(30, dtype=int)).rewards == 0.125).all()


def test_moving_average_starts_at_zero():
    assert moving_average(np.ones(2)).tolist() == [ALPHA, ALPHA + (1 - ALPHA) * ALPHA]
    played = play([1.0] * 3, [1] * 3)
    assert played.scores.tolist() == moving_average(played.rewards).tolist()
    assert played.mean == 0.125


@pytest.mark.parametrize("answers, labels", [([], []), ([0.1], [0, 1]), ([0.1], [2])])
def test_bad_sequences_are_refused(answers, labels):
    with pytest.raises(DataError):
        play(answers, labels)
