"""Scores that are tied: saturated probabilities, a handful of values, a third of the images at one value."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from stage1 import Scores, fit_policy
from stage1.policy.counts import certifies, count_exits
from stage1.policy.ordering import Goal, calibrated_path
from stage1.policy.target import Request
from stage1.policy.threshold_choice import choose

BOTH = {"fnr": 0.05, "fpr": 0.05}


def gaussian(rng, n, separation=2.5, prior=0.3):
    labels = (rng.random(n) < prior).astype(np.int64)
    return rng.normal(size=n) + separation * labels, labels


def five_values(score):
    values = np.array([-1.19, -0.19, 0.55, 1.52, 3.07])
    return values[np.searchsorted([-0.5, 0.25, 0.9, 2.2], score)]


def a_third_at_one_value(score):
    return np.where(score < -0.1, -0.9, score)


def float32_probabilities(score):
    """A sharp model: logits six times as large, as probabilities that float32 and a clip at 1e-7 let through."""
    p = np.clip(special.expit(6 * (score - 1.25)).astype(np.float32), 1e-7, np.float32(1 - 1e-7)).astype(np.float64)
    return special.logit(p)


TIED = {"five values": five_values, "a third at one": a_third_at_one_value, "float32": float32_probabilities}


@pytest.mark.parametrize("tie", TIED.values(), ids=TIED.keys())
def test_tied_scores_are_certified_as_far_as_their_values_allow(tie):
    coverage, whole = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        (select, select_labels), (score, labels) = gaussian(rng, 600), gaussian(rng, 3400)
        request = Request(BOTH, 0.95)
        for scores, found in ((tie, coverage), (lambda values: values, whole)):
            chosen = choose(scores(score), labels, request, scores(select), select_labels).thresholds
            found.append(np.logical_or(*chosen.exits(scores(score))).mean())
    assert min(coverage) > 0.4
    # A handful of values costs what lies between them, a clip next to nothing.
    assert np.mean(coverage) > np.mean(whole) - 0.2


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), values=st.integers(2, 9), limit=st.none() | st.floats(-1, 4))
def test_no_cut_lies_on_a_value_and_each_step_takes_in_whole_blocks(seed, values, limit):
    """Where all scores are tied nothing is smoothed: a cut on a value would stand for a part of its images."""
    rng = np.random.default_rng(seed)
    score, labels = gaussian(rng, 400)
    score = np.round(score * values / 6)
    limits = None if limit is None else (limit, limit)
    path = calibrated_path(score, labels, Goal(BOTH, 3000, 0.05, limits=limits))
    present = np.unique(score)
    for lo, hi in zip(path.lo, path.hi, strict=True):
        assert lo <= hi
        if limits is not None:
            assert lo <= limit <= hi
        assert not np.isin([lo, hi], present).any() or limit in present
    exits = [(int((present < lo).sum()), int((present > hi).sum())) for lo, hi in zip(path.lo, path.hi, strict=True)]
    assert all(b[0] >= a[0] and b[1] >= a[1] for a, b in pairwise(exits))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_the_images_does_not_matter_and_equal_scores_get_one_answer(seed):
    rng = np.random.default_rng(seed)
    (select, select_labels), (score, labels) = gaussian(rng, 300), gaussian(rng, 1200)
    select, score = np.round(2 * select) / 2, np.round(2 * score) / 2
    one, two = rng.permutation(len(select)), rng.permutation(len(score))
    request = Request(BOTH, 0.95)
    first = choose(score, labels, request, select, select_labels)
    again = choose(score[two], labels[two], request, select[one], select_labels[one])
    assert first.thresholds == again.thresholds
    # More images that are answered rightly never take away what was shown there.
    if first.place is not None and None not in (first.thresholds.lo, first.thresholds.hi):
        more = np.concatenate([score, np.full(50, score.min()), np.full(50, score.max())])
        added = np.concatenate([labels, np.zeros(50, int), np.ones(50, int)])
        exits = count_exits(more[added == 0], more[added == 1], first.path.lo, first.path.hi)
        assert certifies(exits, BOTH, 0.05, None)[first.place]


POSITIVE = np.array([0.0503, 0.0, 0.0, 0.0, 0.9497])  # of the positives at each of five values: fnr > .05 at each pair
NEGATIVE = np.array([0.55, 0.25, 0.12, 0.07, 0.01])


def five_valued(rng, n):
    labels = (rng.random(n) < 0.5).astype(np.int64)
    place = np.where(labels == 1, rng.choice(5, n, p=POSITIVE), rng.choice(5, n, p=NEGATIVE))
    return place.astype(np.float64), labels


def check_tied_boundary(draws, seed, delta=0.1):
    """Whatever lets negatives exit is false here: each certificate is a violation."""
    rng = np.random.default_rng(seed)
    false = naive = 0
    for _ in range(draws):
        (select, select_labels), (score, labels) = five_valued(rng, 200), five_valued(rng, 1000)
        found = choose(score, labels, Request(BOTH, 1 - delta), select, select_labels)
        false += found.place is not None
        exits = count_exits(score[labels == 0], score[labels == 1], np.array([0.5]), np.array([3.5]))
        naive += all(int(errors[0]) <= 0.05 * int(n[0]) for errors, n in map(exits.counts, BOTH))
    assert false / draws <= delta + 3 * np.sqrt(delta * (1 - delta) / draws)
    assert naive / draws > 0.3


def test_false_certificates_of_tied_scores():
    check_tied_boundary(150, 1)


@pytest.mark.slow
def test_false_certificates_of_tied_scores_in_full():
    check_tied_boundary(2000, 2)


def test_a_policy_on_saturated_scores_lets_both_classes_exit():
    rng = np.random.default_rng(3)
    made = []
    for n in (600, 3400):
        score, labels = gaussian(rng, n, separation=4.0, prior=0.5)
        margin = float32_probabilities(score - 0.75)
        made.append(Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels))
    policy = fit_policy("softmax", select=made[0], calib=made[1], risks={"fnr": 0.02, "fpr": 0.02})
    assert policy.certified
    assert None not in policy.margin_thresholds
