"""Whether the independent check agrees with the certificate, and the colour that follows."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from stage1.evaluation import evaluate
from stage1.evaluation.verdict import Seen, check_coverage, check_risk, judge
from stage1.policy import fit_policy
from stage1.scores import Scores

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
)
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


# ---- the verdict -------------------------------------------------------------------------------------------------

CLASSES = ("none", "roadwork")


def drawn(n, seed, *, apart=1.8, prior=0.5, per_group=None):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prior).astype(np.int64)
    margin = rng.normal(np.where(labels == 1, apart, -apart), 1.0)
    groups = None if per_group is None else [f"{seed} {row // per_group}" for row in range(n)]
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels, groups=groups)


@cache
def _made(n_calib, n_test, apart, prior, test_prior, per_group, options):
    fit: dict[str, Any] = {"risks": {"fnr": 0.05, "false_exit_rate": 0.05}} | {
        key: dict(value) if key == "risks" else value for key, value in options
    }
    policy = fit_policy(
        "softmax",
        calib=drawn(n_calib, 1, apart=apart, prior=prior, per_group=per_group),
        select=drawn(400, 3, apart=apart, prior=prior),
        classes=CLASSES,
        **fit,
    )
    test = drawn(n_test, 2, apart=apart, prior=test_prior, per_group=per_group)
    decision = policy.decide(test)
    evaluation = evaluate(
        test,
        decision.exit,
        decision.label,
        lo=policy.lo,
        hi=policy.hi,
        classes=CLASSES,
        policy="softmax",
        targets={name: risk.target for name, risk in policy.certificate.risks.items()},
        certified=policy.certified,
        resamples=20,
    )
    return policy, evaluation


def made(n_calib=2000, n_test=600, apart=1.8, prior=0.5, test_prior=0.5, per_group=None, **options):
    frozen = tuple((key, tuple(value.items()) if isinstance(value, dict) else value) for key, value in options.items())
    return _made(n_calib, n_test, apart, prior, test_prior, per_group, frozen)


def verdict(**case):
    policy, evaluation = made(**case)
    return judge(policy.certificate.to_document(), evaluation)


def test_a_good_certificate_is_green():
    found = verdict()
    assert (found.colour, found.title, found.reasons) == ("green", "Certified", ())
    assert "agrees" in found.line
    assert found.text.startswith("GREEN  Certified. ")


def test_scores_upside_down_are_red_and_the_cause_is_named():
    """AUROC .013, every answer wrong, certified (5 % of the negatives may exit as positive): it was green."""
    policy, evaluation = made(n_calib=1200, n_test=500, apart=-1.6, prior=0.3, test_prior=0.3)
    assert policy.certified
    assert evaluation["metrics"]["auroc"]["value"] < 0.02
    error = evaluation["risks"]["error"]
    assert error["errors"] == error["n"] >= 5
    found = judge(policy.certificate.to_document(), evaluation)
    assert found.colour == "red"
    assert found.title == "Do not trust it"
    reasons = " ".join(found.reasons)
    assert "reversed score columns" in reasons
    assert "below 0.5" in reasons
    assert f"{error['errors']} of {error['n']} answers on val_test are wrong" in reasons


def test_scores_upside_down_are_red_before_val_test_is_opened():
    policy, _ = made(n_calib=1200, n_test=500, apart=-1.6, prior=0.3, test_prior=0.3)
    calib = drawn(1200, 1, apart=-1.6, prior=0.3)
    decision = policy.decide(calib)
    seen = Seen.of_scores(calib, decision.exit, decision.label, CLASSES, "val_calib")
    found = judge(policy.certificate.to_document(), None, seen)
    assert found.colour == "red"
    assert "reversed score columns" in " ".join(found.reasons)


def test_a_refusal_of_reversed_scores_names_the_cause_too():
    found = verdict(apart=-1.8, risks={"fnr": 0.05, "fpr": 0.05})
    assert (found.colour, found.title) == ("red", "Not certifiable")
    assert "reversed score columns" in " ".join(found.reasons)


def test_scores_that_order_nothing_are_not_called_reversed_for_sure():
    seen = Seen("val_test", {"none": 300, "roadwork": 300}, 0.47, 0.5, 0.54, 100, 40)
    found = judge(made()[0].certificate.to_document(), None, seen)
    assert found.colour == "red"
    assert "order nothing" in found.reasons[0]


@pytest.mark.parametrize(
    "case, said",
    [
        ({"risks": {"miss_rate": 0.05}, "allow_one_sided": True}, "no image exits as 'roadwork'"),
        ({"risks": {"fnr": 0.05}, "allow_one_sided": True}, "no limit"),
        ({"risks": {"miss_rate": 0.001, "false_exit_rate": 0.05}, "apart": 2.5}, "no image exits as 'none'"),
        ({"risks": {"fnr": 0.02, "false_exit_rate": 0.02}, "apart": 0.6}, "exit (under 20 %)"),
        ({"n_test": 40}, "too few"),
        ({"attempt": 3}, "look 3 at the same calibration images: the confidence is 85 %"),
        ({"assume_iid": True, "per_group": 4}, "assume_iid"),
        ({"n_calib": 4000, "n_test": 80, "per_group": 4}, "groups"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_is_amber(case, said):
    found = verdict(**case)
    assert (found.colour, found.title) == ("amber", "Certified, with care"), found
    assert any(said in reason for reason in found.reasons), found.reasons


def test_a_balance_that_the_certificate_is_not_of_is_amber():
    policy, evaluation = made(risks={"error": 0.05})
    certificate = policy.certificate.to_document()
    shift = {"moves": ["error"], "estimates": [{"prior": {"none": 0.9, "roadwork": 0.1}}]}
    assert judge(certificate, evaluation).colour == "green"
    found = judge(certificate, evaluation | {"label_shift": shift})
    assert found.colour == "amber"
    assert "error is certified for the balance of the calibration images, not for the 10 % roadwork" in found.reasons[0]
    assert judge(certificate | {"target_prior": 0.1}, evaluation | {"label_shift": shift}).colour == "green"
    unmoved = shift | {"moves": []}
    assert judge(certificate, evaluation | {"label_shift": unmoved}).colour == "green"


def test_no_independent_check_is_amber_unless_it_is_still_to_come():
    policy, _ = made()
    certificate = policy.certificate.to_document()
    assert judge(certificate, None).reasons == ("no independent check was made",)
    calib = drawn(2000, 1)
    decision = policy.decide(calib)
    seen = Seen.of_scores(calib, decision.exit, decision.label, CLASSES, "val_calib")
    found = judge(certificate, None, seen)
    assert found.colour == "green"
    assert "val_test has not been looked at yet" in found.line


def test_a_contradiction_and_a_refusal_are_red():
    policy, evaluation = made()
    certificate = policy.certificate.to_document()
    against = evaluation | {"risks": evaluation["risks"] | {"fnr": observed(errors=40, low=0.09, high=0.18)}}
    found = judge(certificate, against)
    assert (found.colour, found.title) == ("red", "Certified, but contradicted")
    assert "on fnr." in found.line
    assert "false_exit_rate" not in found.line
    assert judge(certificate | {"certified": False}, evaluation).title == "Not certifiable"
    assert judge(None, evaluation).colour == "red"


def test_worse_than_the_majority_class_is_red_beyond_chance_only():
    certificate = made()[0].certificate.to_document()

    def seen(accuracy, high):
        return Seen("val_calib", {"none": 900, "roadwork": 100}, 0.8, accuracy, high, 500, 10)

    assert judge(certificate, None, seen(0.6, 0.64)).colour == "red"
    assert "always answering 'none' for 90 %" in judge(certificate, None, seen(0.6, 0.64)).reasons[0]
    assert judge(certificate, None, seen(0.89, 0.91)).colour == "green"


def test_numbers_of_scores_are_those_of_the_evaluation():
    policy, evaluation = made()
    test = drawn(600, 2)
    decision = policy.decide(test)
    ours, theirs = (
        Seen.of_scores(test, decision.exit, decision.label, CLASSES, "val_test"),
        Seen.of_evaluation(evaluation),
    )
    assert ours.of_class == theirs.of_class
    assert (ours.exits, ours.wrong, ours.accuracy) == (theirs.exits, theirs.wrong, theirs.accuracy)
    assert ours.auroc == pytest.approx(theirs.auroc, abs=1e-12)
