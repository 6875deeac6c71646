"""What a refusal or a shut side says: numbers that are true, and advice that certifies when it is obeyed."""

from __future__ import annotations

import re

import numpy as np
import pytest

from stage1 import Scores, fit_policy
from stage1.config import load_config
from stage1.policy.target import Request, passing_targets, settable


def classes(rng: np.random.Generator, n: int, k: int, sharpness: float) -> Scores:
    labels = rng.integers(0, k, n)
    return Scores(logits=sharpness * np.eye(k)[labels] + rng.normal(size=(n, k)), labels=labels)


def binary(rng: np.random.Generator, n: int, sharpness: float) -> Scores:
    labels = rng.integers(0, 2, n)
    margin = rng.normal(sharpness * (labels - 0.5), 1.0)
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels)


def advised(needed: str) -> dict[str, float]:
    """The target that the advice names, read as the command line reads it."""
    (text,) = re.findall(r"risks=\{[^}]*\}", needed)
    return load_config(overrides=[text], environment={})[0].risks


@pytest.mark.parametrize(
    "risks",
    [{"error": 0.01}, {"error": 0.02, "fnr.b": 0.01}, {"wrong.a": 0.01, "wrong.b": 0.01, "wrong.c": 0.01}],
    ids=lambda risks: "+".join(risks),
)
@pytest.mark.parametrize("seed", range(3))
def test_advice_for_more_than_two_classes_is_obeyed_once_and_certifies(risks, seed):
    rng = np.random.default_rng(seed)
    select, calib = classes(rng, 200, 3, 2.0), classes(rng, 150, 3, 2.0)
    asked = {"select": select, "calib": calib, "classes": ("a", "b", "c")}
    refused = fit_policy("softmax", **asked, risks=risks)
    assert not refused.certified
    target = advised(refused.certificate.needed)
    assert set(target) == set(risks)
    assert fit_policy("softmax", **asked, risks=target).certified


@pytest.mark.parametrize("risks", [{"fnr": 0.01, "fpr": 0.01}, {"error": 0.005}], ids=lambda risks: "+".join(risks))
@pytest.mark.parametrize("seed", range(3))
def test_advice_for_two_classes_along_a_path_is_obeyed_once_and_certifies(risks, seed):
    rng = np.random.default_rng(seed)
    select, calib = binary(rng, 200, 3.0), binary(rng, 150, 3.0)
    refused = fit_policy("softmax", select=select, calib=calib, risks=risks)
    assert not refused.certified
    assert fit_policy("softmax", select=select, calib=calib, risks=advised(refused.certificate.needed)).certified


def test_the_realistic_number_comes_before_the_least_by_arithmetic():
    rng = np.random.default_rng(0)
    refused = fit_policy(
        "softmax",
        select=binary(rng, 300, 4.0),
        calib=binary(rng, 90, 4.0),
        risks={"fnr": 0.02, "false_exit_rate": 0.05},
    )
    needed = refused.certificate.needed
    assert re.match(r"about \d+ calibration images of the same kind instead of 90", needed)
    assert needed.index("simulated from") < needed.index("at the least") < needed.index("more labelled")


def test_a_shut_side_says_how_many_exit_how_many_are_needed_and_which_target_would_do():
    """1,232 negatives are not too few: it is the positives beyond hi that are."""
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [1232, 200])
    margin = np.where(labels == 1, rng.normal(0.8, 1.2, 1432), rng.normal(-1.5, 1.0, 1432))
    scores = Scores(logits=np.stack([np.zeros(1432), margin], axis=1), labels=labels)
    policy = fit_policy("softmax", calib=scores, risks={"fnr": 0.02, "false_exit_rate": 0.02}, classes=("none", "work"))
    certificate = policy.certificate
    assert policy.certified
    assert policy.lo is None
    exits = int((margin[labels == 1] > policy.hi).sum())
    assert "too few" not in certificate.statement
    assert f"{exits} of 200 work images exit as 'work'" in certificate.statement
    assert "takes 182 with 0 errors" in certificate.statement
    (target,) = re.findall(r"risks\.fnr=(0\.[0-9]+)", certificate.needed)
    opened = fit_policy("softmax", calib=scores, risks={"fnr": float(target), "false_exit_rate": 0.02})
    assert opened.lo is not None


def test_images_that_are_enough_are_not_called_too_few_where_their_scores_are_not():
    """fnr alone: 400 positives, few of them on their own side of even odds."""
    rng = np.random.default_rng(2)
    labels = np.repeat([0, 1], 400)
    margin = np.where(labels == 1, rng.normal(-2.5, 1.5, 800), rng.normal(-4, 1.0, 800))
    scores = Scores(logits=np.stack([np.zeros(800), margin], axis=1), labels=labels)
    refused = fit_policy("softmax", calib=scores, risks={"fnr": 0.02}, allow_one_sided=True).certificate
    assert not refused.certified
    beyond = int((margin[labels == 1] > 0).sum())
    assert f"{beyond} of 400 images of class '1' exit as '1'" in refused.reason
    assert "400 images of class '1' cannot certify" not in refused.reason


def test_a_target_is_written_so_that_the_command_line_reads_it_back():
    for target in ({"error": 0.05}, {"fnr.cat": 0.1, "error": 0.2}, {"fnr.a b: c": 0.3}):
        assert advised(settable(target)) == target


def test_targets_that_nothing_can_pass_are_none():
    request = Request({"error": 0.1}, classes=("a", "b", "c"))
    assert passing_targets(request, lambda other: {"error": 1.0}) is None
    assert passing_targets(request, lambda other: None) is None
    assert passing_targets(request, lambda other: {} if other.risks["error"] >= 0.3 else {"error": 0.3}) == {
        "error": 0.3
    }


def test_a_target_that_is_none_is_no_advice():
    """With no image of a class in val_calib a rate "<= 1" would certify, and is no legal target."""
    rng = np.random.default_rng(0)
    calib = binary(rng, 40, 6.0)
    alone = calib.take(calib.known_labels == 1)
    policy = fit_policy(
        "softmax", select=binary(rng, 60, 6.0), calib=alone, risks={"miss_rate": 0.3, "false_exit_rate": 0.3}
    )
    assert policy.certificate is not None
    assert policy.certificate.needed is not None
    assert "false_exit_rate=1" not in policy.certificate.needed
    assert "11 more labelled images of class '0' in val_calib." in policy.certificate.needed
