"""What a certificate leaves without a limit: the sentences against what the thresholds do, on every set of risks."""

from __future__ import annotations

from itertools import combinations, product

import numpy as np
import pytest

from stage1.evaluation import exit_rates
from stage1.policy import fit_policy
from stage1.policy.unlimited import unlimited, unlimited_rates
from stage1.risk.risks import risk_names
from stage1.scores import Scores

CLASSES = ("none", "roadwork")
THREE = ("a", "b", "c")


def overlapping(n=600, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    margin = rng.normal(np.where(labels == 1, 1.2, -1.2), 1.0)
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels)


def three(n=900, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    logits = rng.normal(0.0, 1.0, (n, 3))
    logits[np.arange(n), labels] += 3.0
    return Scores(logits=logits, labels=labels)


@pytest.mark.parametrize("risk, other", [("fnr", "none"), ("fpr", "roadwork")])
def test_where_every_image_exits_the_other_error_is_said_to_have_no_limit(risk, other):
    """risks={fnr: .05}: every image exits at a large fpr; "the other side never exits" was false."""
    calib = overlapping()
    # Every image exits only where exits against the probability are asked for.
    policy = fit_policy(
        "softmax", calib=calib, risks={risk: 0.05}, allow_one_sided=True, classes=CLASSES, against_argmax=True
    )
    certificate, decision = policy.certificate, policy.decide(calib)
    rates = exit_rates(decision.exit, decision.label, calib.labels)
    assert decision.coverage == 1.0
    assert rates["fpr" if risk == "fnr" else "fnr"]["observed"] > 0.1
    assert certificate.never_answered == ()
    (sentence,) = certificate.unlimited
    assert f"Wrong answers to {other} images have no limit" in sentence
    for name in ("fpr", "false_exit_rate") if risk == "fnr" else ("fnr", "miss_rate"):
        assert name in sentence
    assert sentence in certificate.statement


@pytest.mark.parametrize("risk, shut", [("miss_rate", "roadwork"), ("false_exit_rate", "none")])
def test_where_the_other_side_never_exits_that_is_said(risk, shut):
    calib = overlapping()
    policy = fit_policy("softmax", calib=calib, risks={risk: 0.05}, allow_one_sided=True, classes=CLASSES)
    assert policy.certificate.never_answered == (shut,)
    assert policy.certificate.unlimited == ()
    assert f"No image exits as '{shut}'" in policy.certificate.statement
    assert "no limit" not in policy.certificate.statement


def test_one_risk_with_a_floor_on_coverage_leaves_the_other_error_open_too():
    policy = fit_policy(
        "softmax",
        calib=overlapping(seed=1),
        select=overlapping(seed=2),
        risks={"miss_rate": 0.2},
        coverage=0.4,
        allow_one_sided=True,
        classes=CLASSES,
    )
    certificate = policy.certificate
    assert certificate.certified
    assert bool(certificate.unlimited) == (policy.hi is not None)
    assert certificate.never_answered == tuple(
        name for name, cut in zip(CLASSES, (policy.lo, policy.hi), strict=True) if cut is None
    )


def test_one_limited_class_of_three_leaves_the_others_open():
    policy = fit_policy(
        "softmax", calib=three(seed=1), select=three(seed=2), risks={"fnr.a": 0.1}, allow_one_sided=True, classes=THREE
    )
    (sentence,) = policy.certificate.unlimited
    assert "images of class 'b', 'c' have no limit" in sentence
    assert "fnr.b, fnr.c" in sentence
    assert sentence in policy.certificate.statement
    whole = fit_policy("softmax", calib=three(seed=1), select=three(seed=2), risks={"error": 0.1}, classes=THREE)
    assert whole.certificate.unlimited == ()


def test_scrc_limits_every_class():
    policy = fit_policy(
        "scrc", calib=overlapping(2000), risks={"miss_rate": 0.1, "false_exit_rate": 0.1}, classes=CLASSES
    )
    assert policy.certificate.certified
    assert policy.certificate.unlimited == ()


def limited_answer(risks, truth, answer, classes):
    """By the definitions alone: does some risk bound how often an image of class `truth` exits as `answer`?"""
    if "error" in risks:
        return True
    if len(classes) == 2:
        return bool(set(risks) & ({"fnr", "miss_rate"} if truth == classes[1] else {"fpr", "false_exit_rate"}))
    return f"fnr.{truth}" in risks or f"miss_rate.{truth}" in risks or f"wrong.{answer}" in risks


@pytest.mark.parametrize("classes", [CLASSES, THREE])
def test_every_set_of_up_to_three_risks_and_every_shut_side(classes):
    """The rates that are named cover exactly the wrong answers that are given and that nothing limits."""
    names = risk_names(classes)
    for size in (1, 2, 3):
        for risks in combinations(names, size):
            for shut in product((False, True), repeat=len(classes)):
                never = [name for name, closed in zip(classes, shut, strict=True) if closed]
                if len(never) == len(classes):
                    continue
                given = [(t, a) for t in classes for a in classes if t != a and a not in never]
                free = {(t, a) for t, a in given if not limited_answer(risks, t, a, classes)}
                rates = unlimited_rates(risks, classes, never)
                assert bool(rates) == bool(free), (risks, never)
                assert bool(unlimited(risks, classes, never)) == bool(free)
                covered = {
                    (t, a)
                    for t, a in given
                    for rate in rates
                    if rate in (f"fnr.{t}", f"wrong.{a}")
                    or rate in (("fnr", "miss_rate") if t == classes[-1] else ("fpr", "false_exit_rate"))
                }
                assert free <= covered, (risks, never, rates)
