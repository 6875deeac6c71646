"""A certificate of several views names them, keeps its numbers, and comes out again when it is recomputed."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.policy import Certificate, ViewsClaim, fit_policy, on_views, refit
from stage1.scores import Scores

CLAIM = ViewsClaim("a" * 64, "10 views (whole + 3x3 tiles, 12 % overlap), aggregated by mean")


def drawn(n: int, seed: int, n_classes: int = 2) -> Scores:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, n_classes, n)
    logits = rng.normal(0, 1, (n, n_classes)) + 2.2 * np.eye(n_classes)[labels]
    return Scores(logits=logits, labels=labels, ids=[f"{seed} {row}" for row in range(n)])


@pytest.mark.parametrize(
    ("name", "n_classes", "risks"),
    [
        ("softmax", 2, {"miss_rate": 0.05, "false_exit_rate": 0.05}),
        ("gate", 2, {"miss_rate": 0.05, "false_exit_rate": 0.05}),
        ("scrc", 2, {"miss_rate": 0.05, "false_exit_rate": 0.05}),
        ("softmax", 3, {"error": 0.1}),
    ],
)
def test_the_views_are_part_of_what_is_certified(name, n_classes, risks, tmp_path):
    select, calib = drawn(400, 1, n_classes), drawn(1500, 2, n_classes)
    plain = fit_policy(name, select=select, calib=calib, risks=risks)
    viewed = on_views(plain, CLAIM)
    before, after = plain.certificate, viewed.certificate
    assert before.certified
    assert after.views == CLAIM
    assert after.statement == f"{before.statement} Every image is judged on {CLAIM.description}."
    assert any(CLAIM.digest in line for line in after.void_if)
    assert (after.risks, after.coverage, viewed.margin_thresholds) == (
        before.risks,
        before.coverage,
        plain.margin_thresholds,
    )
    after.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json") == after
    assert refit(viewed, calib=calib, select=select).certificate == after


def test_without_views_nothing_changes(tmp_path):
    policy = fit_policy("softmax", calib=drawn(500, 0), risks={"miss_rate": 0.1, "false_exit_rate": 0.1})
    assert on_views(policy, None) is policy
    assert "views" not in policy.certificate.to_document()
    policy.certificate.save(tmp_path / "certificate.json")
    assert Certificate.load(tmp_path / "certificate.json") == policy.certificate
