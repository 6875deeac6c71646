"""Whether the independent check agrees with the certificate."""

from __future__ import annotations

import pytest

from stage1.errors import IntegrityError
from stage1.report.verdict import check_coverage, check_risk, judge, refuse_disagreement

PROMISED = {"target": 0.02, "bound": 0.018, "observed": 0.01, "n": 700, "errors": 7, "by_construction": False}


def observed(errors=3, n=300, low=0.002, high=0.029, group_low=None, group_high=None):
    return {
        "observed": errors / n if n else None,
        "errors": errors,
        "n": n,
        "low": low,
        "high": high,
        "group_low": group_low,
        "group_high": group_high,
    }


@pytest.mark.parametrize(
    "seen,outcome",
    [
        (observed(), "consistent"),
        (observed(errors=9, low=0.0138, high=0.056), "consistent"),  # above the target, but chance can do that
        (observed(errors=20, low=0.041, high=0.101), "contradicts"),
        (observed(errors=0, n=0, low=0.0, high=1.0), "no evidence"),
        (None, "no evidence"),
    ],
)  # fmt: skip
def test_only_an_interval_wholly_above_the_target_contradicts(seen, outcome):
    assert check_risk("fnr", PROMISED, seen, "image").outcome == outcome


def test_groups_decide_by_the_interval_over_groups():
    seen = observed(errors=12, low=0.021, high=0.069, group_low=0.008, group_high=0.09)
    assert check_risk("fnr", PROMISED, seen, "image").outcome == "contradicts"
    assert check_risk("fnr", PROMISED, seen, "group").outcome == "consistent"


def test_a_side_that_never_exits_needs_no_evidence_but_may_not_err():
    never = PROMISED | {"by_construction": True}
    assert check_risk("fnr", never, observed(errors=0, n=0, low=0.0, high=1.0), "image").outcome == "consistent"
    assert check_risk("fnr", never, observed(errors=20, low=0.041, high=0.101), "image").outcome == "contradicts"


@pytest.mark.parametrize("exits,outcome", [(500, "consistent"), (300, "differs"), (700, "differs")])
def test_coverage_differs_only_beyond_chance(exits, outcome):
    seen = {"value": exits / 1000, "exits": exits, "n": 1000, "low": exits / 1000 - 0.03, "high": exits / 1000 + 0.03}
    assert check_coverage({"value": 0.51, "exits": 1020, "n": 2000}, seen, "image", 0.95).outcome == outcome


def test_the_verdict_names_what_contradicts_and_what_is_untested():
    evaluation = {"role": "val_test"}
    good = check_risk("fnr", PROMISED, observed(), "image")
    bad = check_risk("false_exit_rate", PROMISED, observed(errors=20, low=0.041, high=0.101), "image")
    silent = check_risk("fpr", PROMISED, None, "image")
    assert judge({"certified": True}, evaluation, [good]).kind == "trusted"
    verdict = judge({"certified": True}, evaluation, [good, bad, silent])
    assert verdict.kind == "contradicted"
    assert "false_exit_rate" in verdict.line
    assert "fnr" not in verdict.line
    assert judge({"certified": True}, evaluation, [good, silent]).kind == "untested"
    assert judge({"certified": False}, evaluation, [bad]).kind == "refused"


@pytest.mark.parametrize(
    "document,field,value",
    [("policy", "lo", -9.5), ("evaluation", "hi", 9.5), ("evaluation", "n", 7), ("policy", "certified", False)],
)
def test_documents_of_different_runs_make_no_report(certified, document, field, value):
    getattr(certified, document)[field] = value
    with pytest.raises(IntegrityError, match=f"`{field}`"):
        refuse_disagreement(certified.certificate, certified.evaluation, certified.policy, certified.scores)
