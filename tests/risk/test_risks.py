"""The table of risks: each row by hand, the sums that follow from it, and a row from outside the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stage1 import Scores, fit_policy
from stage1.config import RunConfig
from stage1.config.certify import AcceptanceGate
from stage1.errors import ConfigError
from stage1.evaluation import evaluate, exit_rates
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.policy import Certificate
from stage1.policy.counts import count_class_exits, count_exits
from stage1.policy.group_means import risk_rows
from stage1.policy.target import Request
from stage1.report.sections import risk_meaning
from stage1.risk.definition import Risk, cells
from stage1.risk.risks import RISKS, is_risk, register_risk, risk_names, risk_of, risk_parts, risks_for
from stage1.storage.documents import validate

NAMES = ("none", "roadwork")
MANY = ("a", "b", "c")


def by_hand(kind, k, rows):
    """(errors, trials) of rows (exits, answer, truth), each counted in words."""
    errors = trials = 0
    for exits, answer, truth in rows:
        wrong = exits and answer != truth
        if kind == "fnr":  # of class k, those that exit; wrong ones among them
            trials += exits and truth == k
            errors += wrong and truth == k
        elif kind == "miss_rate":  # of class k, all
            trials += truth == k
            errors += wrong and truth == k
        elif kind == "wrong":  # what exits as class k
            trials += exits and answer == k
            errors += wrong and answer == k
        else:  # all that exits
            trials += exits
            errors += wrong
    return errors, trials


ORACLE = {"fnr": ("fnr", 1), "fpr": ("fnr", 0), "miss_rate": ("miss_rate", 1), "false_exit_rate": ("miss_rate", 0)}


def drawn(n_classes):
    row = st.tuples(st.booleans(), st.integers(0, n_classes - 1), st.integers(0, n_classes - 1))
    return st.lists(row, min_size=1, max_size=30)


@settings(deadline=None, max_examples=60)
@given(drawn(2))
def test_each_row_of_two_classes_counts_what_it_says(rows):
    exits, answer, truth = (np.array(column) for column in zip(*rows, strict=True))
    for risk in risks_for(2):
        errors, trials = risk.counts(exits, answer, truth)
        assert (errors.sum(), trials.sum()) == by_hand(*ORACLE.get(risk.name, ("error", None)), rows), risk.name


@settings(deadline=None, max_examples=60)
@given(drawn(3))
def test_each_row_of_more_classes_counts_what_it_says(rows):
    exits, answer, truth = (np.array(column) for column in zip(*rows, strict=True))
    for name in risk_names(MANY):
        risk, k = risk_of(name, MANY)
        errors, trials = risk.counts(exits, answer, truth, k if risk.side == "class" else None)
        assert (errors.sum(), trials.sum()) == by_hand(risk.name, k, rows), name


@settings(deadline=None, max_examples=40)
@given(drawn(2), st.floats(-1, 1), st.floats(0, 1))
def test_the_sums_of_thresholds_are_the_counts_of_rows(rows, lo, width):
    labels = np.array([truth for _, _, truth in rows])
    score = np.random.default_rng(len(rows)).normal(size=len(rows))
    hi = lo + width
    counted = count_exits(score[labels == 0], score[labels == 1], np.array([lo]), np.array([hi]))
    for risk in risks_for(2):
        masks = risk.counts((score < lo) | (score > hi), (score > hi).astype(int), labels)
        assert [int(column[0]) for column in counted.counts(risk.name)] == [int(mask.sum()) for mask in masks]
        wide = risk_rows(risk.name, labels[:, None], (score < lo)[:, None], (score > hi)[:, None])
        assert [mask[:, 0].tolist() for mask in wide] == [mask.tolist() for mask in masks]


@settings(deadline=None, max_examples=40)
@given(drawn(3), st.integers(0, 2**16))
def test_the_sums_of_many_classes_are_the_counts_of_rows(rows, seed):
    _, answer, truth = (np.array(column) for column in zip(*rows, strict=True))
    rng = np.random.default_rng(seed)
    confidence, cuts = rng.random(len(rows)), rng.random(3)
    counted = count_class_exits(confidence, answer, truth, cuts[None, :])
    with outside(wrong_share_of_all(), missed_or_taken()):
        for name in (*risk_names(MANY),):
            risk, k = risk_of(name, MANY)
            masks = risk.counts(confidence > cuts[answer], answer, truth, k if risk.side == "class" else None)
            assert [int(column[0]) for column in counted.counts(name, MANY)] == [int(mask.sum()) for mask in masks]


# ---- from outside the package ------------------------------------------------------------------------------------


class outside:
    """Registered inside the block, gone after it."""

    def __init__(self, *risks):
        self.risks = risks

    def __enter__(self):
        for risk in self.risks:
            register_risk(risk)

    def __exit__(self, *_):
        for risk in self.risks:
            del RISKS[risk.key]


def wrong_positives(exits, answer, truth, k=None):
    trials = exits & (answer == 1)
    return trials & (truth == 0), trials


def false_discovery(**changed):
    return Risk(
        **{
            "name": "false_discovery",
            "side": "negative",
            "among": "exits",
            "monotone": False,
            "words": "of the images that exit as '{positive}', {at_most} are {negative}",
            "counts": wrong_positives,
            "meaning": "of images that exit as {positive}, the share that is {negative}",
        }
        | changed
    )


def wrong_share_of_all():
    """Wrong exits among all images: of any number of classes, and monotone."""

    def counts(exits, answer, truth, k=None):
        wrong = exits & (answer != truth)
        return wrong, np.ones_like(wrong)

    return Risk("silent", "both", "members", True, "{at_most} of all images exit with a wrong answer", counts)


def missed_or_taken():
    """Of the images that exit and are of a class or called it: those where only one of the two holds."""

    def counts(exits, answer, truth, k):
        trials = exits & ((answer == k) | (truth == k))
        return trials & (answer != truth), trials

    return Risk("apart", "class", "exits", False, "of the exits in '{of}' or as it, {at_most} are not both", counts)


def drawn_scores(n, seed, separation=3.0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.5).astype(int)
    margin = rng.normal(separation * (2 * labels - 1), 2.0)
    ids = np.array([f"{seed}-{row}" for row in range(n)])
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels, ids=ids)


@pytest.fixture
def samples():
    return {"select": drawn_scores(1500, 1), "calib": drawn_scores(2500, 2)}


def test_a_risk_from_outside_is_certified_said_evaluated_and_shown(samples, tmp_path):
    with outside(false_discovery()):
        policy = fit_policy("softmax", **samples, risks={"fnr": 0.05, "false_discovery": 0.04}, classes=NAMES)
        certificate = policy.certificate
        assert certificate.certified
        assert certificate.method == "fixed sequence along the calibrated path, exact binomial, union null"
        assert (
            "of the images that exit as 'roadwork', at most 4 % are none (at the class balance" in certificate.statement
        )
        decision = policy.decide(samples["calib"])
        as_positive = decision.exit & (decision.label == 1)
        counted = certificate.risks["false_discovery"]
        assert counted.n == as_positive.sum() > 0
        assert counted.errors == (as_positive & (samples["calib"].labels == 0)).sum()
        assert any("false_discovery moves with it" in text for text in certificate.assumptions)
        policy.certificate.save(tmp_path / "certificate.json")
        assert Certificate.load(tmp_path / "certificate.json").risks["false_discovery"].target == 0.04
        test = drawn_scores(1000, 3)
        decision = policy.decide(test)
        rates = exit_rates(decision.exit, decision.label, test.labels, classes=NAMES)
        assert rates["false_discovery"]["n"] == (decision.exit & (decision.label == 1)).sum()
        assert (
            risk_meaning("false_discovery", {"classes": NAMES})
            == "of images that exit as roadwork, the share that is none"
        )


def test_the_config_and_the_document_of_an_evaluation_take_it(samples):
    target = {"fnr": 0.05, "false_discovery": 0.04}
    with pytest.raises(ValueError, match="unknown risk 'false_discovery'"):
        RunConfig(risks=target)
    scores, decided = samples["calib"], samples["calib"].margin
    said = {"lo": -1.0, "hi": 1.0, "classes": NAMES, "policy": "softmax", "certified": False, "resamples": 20}
    with outside(false_discovery()):
        assert RunConfig(risks=target).risks == target
        assert AcceptanceGate(metric="false_discovery", at_most=0.1).metric == "false_discovery"
        document = evaluate(scores, np.abs(decided) > 1, (decided > 0).astype(int), targets=target, **said)
        validate({"schema_version": 1, **document}, EVALUATION_KIND, "evaluation")
        assert document["risks"]["false_discovery"]["target"] == 0.04
        assert document["risks"]["false_discovery"]["n"] == (decided > 1).sum()


def test_it_decides_where_testing_stops(samples):
    with outside(false_discovery()):
        covered = [
            fit_policy("softmax", **samples, risks={"fnr": 0.2, "false_discovery": target}).certificate.coverage.value
            for target in (0.02, 0.05)
        ]
    assert covered[0] < covered[1]


def test_the_control_is_refused_by_name(samples):
    with pytest.raises(ConfigError, match=r"risk 'false_discovery' is unknown; risks are fnr, miss_rate, fpr, fal"):
        fit_policy("softmax", **samples, risks={"fnr": 0.05, "false_discovery": 0.04})
    assert not is_risk("false_discovery", NAMES)
    assert "false_discovery" not in exit_rates([True], [1], [1])


def test_one_that_counts_all_images_is_certified_for_two_classes_and_for_more(samples):
    with outside(wrong_share_of_all(), missed_or_taken()):
        both = fit_policy("softmax", **samples, risks={"silent": 0.05}, classes=NAMES).certificate
        assert both.certified
        assert both.risks["silent"].n == len(samples["calib"])
        assert not both.unlimited
        rng = np.random.default_rng(5)
        labels = rng.integers(0, 3, 3000)
        logits = rng.normal(size=(3000, 3)) + 4.0 * np.eye(3)[labels]
        parts = [Scores(logits=logits[rows], labels=labels[rows]) for rows in (slice(1500), slice(1500, None))]
        for mode in ("one", "per_class"):
            many = fit_policy(
                "softmax",
                select=parts[0],
                calib=parts[1],
                risks={"silent": 0.05, "apart.b": 0.1},
                classes=MANY,
                thresholds=mode,
            ).certificate
            assert many.certified, many.reason
            assert many.risks["silent"].n == 1500
            assert "of the exits in 'b' or as it, at most 10 % are not both" in many.statement


def test_one_that_moves_with_the_balance_is_not_restated(samples):
    with outside(false_discovery()), pytest.raises(ConfigError, match="target_prior: false_discovery moves with"):
        Request({"fnr": 0.05, "false_discovery": 0.05}, target_prior=0.1)


def test_it_counts_in_group_means_as_everywhere(samples):
    with outside(false_discovery()):
        groups = np.arange(2500) // 2
        calib = Scores(
            logits=samples["calib"].logits, labels=samples["calib"].labels, ids=samples["calib"].ids, groups=groups
        )
        policy = fit_policy(
            "softmax",
            select=samples["select"],
            calib=calib,
            risks={"fnr": 0.1, "false_discovery": 0.1},
            unit="group_mean",
        )
        assert policy.certificate.certified, policy.certificate.reason


@pytest.mark.slow
def test_its_certificate_is_false_no_more_often_than_delta():
    """Against the true rate of Gaussian scores; the control takes the observed rate for the true one."""
    target, draws = 0.04, 300

    def true_rate(hi):
        wrong, right = stats.norm.sf(hi, -3.0, 2.0), stats.norm.sf(hi, 3.0, 2.0)
        return wrong / (wrong + right)

    def plug_in(scores):
        order = np.argsort(-scores.margin)
        rate = np.cumsum(scores.labels[order] == 0) / np.arange(1, len(scores) + 1)
        return scores.margin[order][np.flatnonzero(rate <= target)[-1]]

    false = control = 0
    with outside(false_discovery()):
        for seed in range(draws):
            select, calib = drawn_scores(300, 2 * seed), drawn_scores(600, 2 * seed + 1)
            policy = fit_policy("softmax", select=select, calib=calib, risks={"fnr": 0.2, "false_discovery": target})
            false += policy.hi is not None and true_rate(policy.hi) > target
            control += true_rate(plug_in(calib)) > target
    assert false / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    assert control / draws > 0.3


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"side": "positive"}, "side is 'positive', but its errors are of 'negative'"),
        ({"among": "members"}, "its trials are not what among='members' says"),
        ({"monotone": True}, "monotone, but its trials move"),
        ({"name": "false-discovery"}, "a name is letters"),
        ({"counts": lambda exits, answer, truth, k=None: (exits & (answer == truth), exits)}, "must be wrong answers"),
        ({"counts": lambda exits, answer, truth, k=None: (~exits, ~exits | exits)}, "must be wrong answers"),
    ],
)
def test_a_row_says_what_its_counting_does(changed, words):
    with pytest.raises(ConfigError, match=words):
        false_discovery(**changed)


def test_a_name_is_taken_once():
    with pytest.raises(ConfigError, match="the table has another one of this name"):
        register_risk(false_discovery(name="error", side="negative"))
    assert RISKS["error"].side == "both"


def test_parts_and_order():
    assert risk_names(NAMES) == ("fnr", "miss_rate", "fpr", "false_exit_rate", "error")
    assert risk_names(MANY)[:3] == ("error", "fnr.a", "fnr.b")
    assert risk_parts("wrong.c", MANY) == ("wrong", 2)
    assert risk_parts("error", MANY) == ("error", -1)
    assert [risk.name for risk in RISKS.values() if risk.monotone] == ["miss_rate", "false_exit_rate", "miss_rate"]
    errors, trials = cells(RISKS["fpr"])
    assert errors.tolist() == [[False, True, False], [False, False, False]]
    assert trials.tolist() == [[True, True, False], [False, False, False]]


def test_the_page_on_guarantees_lists_every_row():
    page = (Path(__file__).parents[2] / "docs" / "GUARANTEES.md").read_text(encoding="utf-8")
    for risk in RISKS.values():
        assert f"| `{risk.key.replace('<class>', 'CLASS')}` |" in page, risk.key
