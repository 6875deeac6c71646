"""Exits of more than two classes: what is asked, counted, certified, written, and refused."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stage1 import Scores, fit_policy, load_policy
from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.evaluation.rates import exit_rates
from stage1.policy import Certificate, MulticlassPolicy, refit
from stage1.policy.counts import count_class_exits, never_wrong, risks_hold
from stage1.policy.ordering_multiclass import ClassGoal, class_path
from stage1.policy.target import Request
from stage1.risk.risks import risk_names, risk_parts

from .multiclass_draws import NAMES, draw


def fit(seed=0, n=(400, 3000), risks=None, **options):
    rng = np.random.default_rng(seed)
    select, calib = (draw(rng, size) for size in n)
    return fit_policy("softmax", select=select, calib=calib, risks=risks or {"error": 0.05}, classes=NAMES, **options)


# ---- counts against a plain loop -------------------------------------------------------------------------------


def test_counts_equal_a_plain_loop_and_the_evaluation():
    rng = np.random.default_rng(3)
    n, k = 300, 3
    confidence = np.round(rng.normal(0, 1, n), 1)  # ties
    answer, labels = rng.integers(0, k, n), rng.integers(0, k, n)
    thresholds = -np.sort(-np.round(rng.normal(0, 1, (6, k)), 1), axis=0)
    thresholds[0, 1] = np.inf
    exits = count_class_exits(confidence, answer, labels, thresholds)
    for row, cuts in enumerate(thresholds):
        leaves = np.array([c > cuts[a] for c, a in zip(confidence, answer, strict=True)])
        if not leaves.any():
            continue
        rates = exit_rates(leaves, answer, labels, classes=list("abc"))
        for name in risk_names("abc"):
            errors, trials = exits.counts(name, "abc")
            assert (errors[row], trials[row]) == (rates[name]["errors"], rates[name]["n"]), name
        assert exits.exits[row] == leaves.sum()


def test_a_class_that_is_shut_gives_no_wrong_answer_and_nothing_certifies_where_all_are_shut():
    open_classes = np.array([[False, False, False], [True, False, False], [True, True, False]])
    assert never_wrong("wrong.b", "abc", open_classes).tolist() == [True, True, False]
    assert never_wrong("fnr.a", "abc", open_classes).tolist() == [True, True, False]
    assert never_wrong("fnr.b", "abc", open_classes).tolist() == [True, False, False]
    none = count_class_exits(np.zeros(4), np.zeros(4, int), np.zeros(4, int), np.full((1, 3), np.inf))
    assert not risks_hold(none, {"wrong.a": 0.1}, "abc", 0.05, np.zeros((1, 3), bool)).any()


# ---- the certificate -------------------------------------------------------------------------------------------


def test_certificate_is_the_exact_tail_of_its_own_decisions():
    policy = fit(risks={"error": 0.05, "fnr.cat": 0.08, "wrong.dog": 0.08}, confidence=0.9)
    rng = np.random.default_rng(0)
    _, calib = (draw(rng, size) for size in (400, 3000))
    certificate = policy.certificate
    assert certificate.certified
    decision = policy.decide(calib)
    rates = exit_rates(decision.exit, decision.label, calib.known_labels, classes=NAMES)
    for name, risk in certificate.risks.items():
        assert (risk.errors, risk.n) == (rates[name]["errors"], rates[name]["n"])
        assert stats.binom.cdf(risk.errors, risk.n, risk.target) <= 0.1
        assert risk.alone == pytest.approx(stats.beta.ppf(0.9, risk.errors + 1, risk.n - risk.errors), abs=1e-9)
    for risk in certificate.risks.values():
        assert risk.alone <= risk.bound == risk.target  # a failure stopped the walk: nothing beyond the target is shown
    assert "among images that exit, at most 5 % are answered wrongly" in certificate.statement
    assert "among 'cat' images that exit, at most 8 % are answered wrongly" in certificate.statement
    assert "of the images that exit as 'dog', at most 8 % are not 'dog'" in certificate.statement
    assert certificate.coverage.exits == decision.exit.sum()


def test_at_the_end_of_the_path_all_targets_shrink_by_one_factor():
    """Easy classes: every image exits and nothing failed, so the data show more than the targets."""
    rng = np.random.default_rng(1)
    select, calib = draw(rng, 400), draw(rng, 3000)
    policy = fit_policy(
        "softmax",
        select=select,
        calib=calib,
        risks={"error": 0.4, "fnr.cat": 0.5},
        confidence=0.9,
        classes=NAMES,
        allow_one_sided=True,
    )
    certificate = policy.certificate
    assert certificate.coverage.value == 1.0
    scale = max(risk.alone / risk.target for risk in certificate.risks.values())
    assert scale < 1
    for risk in certificate.risks.values():
        assert risk.bound == pytest.approx(scale * risk.target)
        assert risk.alone <= risk.bound


def test_floors_hold_with_their_bounds_or_are_refused_by_name():
    policy = fit(risks={"error": 0.1}, coverage=0.5, class_coverage={"cat": 0.4})
    certificate = policy.certificate
    assert certificate.certified
    assert certificate.coverage.bound >= 0.5
    assert certificate.per_class["cat"].bound >= 0.4
    assert certificate.risks["error"].delta == pytest.approx(0.025)
    refused = fit(risks={"error": 0.03}, coverage=0.98).certificate
    assert not refused.certified
    assert "coverage >= 0.98 is not reached" in refused.reason


def test_not_certifiable_says_which_risk_and_at_what_n():
    policy = fit(n=(400, 300), risks={"error": 0.004})
    assert not policy.certificate.certified
    assert not policy.decide(draw(np.random.default_rng(5), 500)).exit.any()
    assert policy.thresholds == (None,) * 3
    assert re.search(r"749 counted images are needed|error <= 0.004", policy.certificate.reason)
    assert policy.certificate.needed


def test_class_balance_matters_for_some_risks_only():
    per_class = fit(risks={"fnr.cat": 0.1, "fnr.dog": 0.1, "fnr.owl": 0.1}).certificate
    assert any("may differ" in line for line in per_class.assumptions)
    pooled = fit(risks={"wrong.cat": 0.1, "error": 0.1}).certificate
    assert any("wrong.cat and error move with it" in line for line in pooled.assumptions)


def test_one_image_of_each_group_is_counted():
    rng = np.random.default_rng(8)
    select, calib = draw(rng, 400), draw(rng, 1000)
    grouped = Scores(
        logits=np.repeat(calib.logits, 4, axis=0),
        labels=np.repeat(calib.known_labels, 4),
        groups=np.repeat(np.arange(1000).astype(str), 4),
        ids=np.arange(4000).astype(str),
    )
    alone = fit_policy("softmax", select=select, calib=calib, risks={"error": 0.08}, classes=NAMES)
    policy = fit_policy("softmax", select=select, calib=grouped, risks={"error": 0.08}, classes=NAMES)
    assert policy.certificate.unit == "group"
    assert policy.certificate.n_units == 1000
    assert policy.thresholds == alone.thresholds
    with pytest.raises(ConfigError, match="group_mean is for two classes"):
        fit_policy("softmax", select=select, calib=grouped, risks={"error": 0.08}, classes=NAMES, unit="group_mean")


# ---- thresholds --------------------------------------------------------------------------------------------------


def test_path_is_nested_and_falls_to_everything():
    rng = np.random.default_rng(1)
    select = draw(rng, 500)
    from stage1.scores.confidence import msp

    for mode in ("one", "per_class"):
        goal = ClassGoal({"error": 0.05, "fnr.cat": 0.1}, NAMES, 3000, 0.05)
        path = class_path(msp(select.logits), select.probabilities, select.known_labels, goal, mode)
        assert (np.diff(np.where(np.isinf(path.thresholds), 1e9, path.thresholds), axis=0) <= 0).all()
        exits = count_class_exits(
            msp(select.logits), select.logits.argmax(axis=1), select.known_labels, path.thresholds
        ).exits
        assert exits[-1] == len(select)
        assert 0 < exits[path.start] < len(select)
        if mode == "one":
            assert (path.thresholds == path.thresholds[:, :1]).all()


def errors_by_class(rates, n=4000, seed=0):
    """Scores whose confidence says nothing of the class: answers of class k are wrong with probability rates[k]."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(rates), n)
    confidence = rng.exponential(1.0, n)
    wrong = rng.random(n) < np.array(rates)[labels] * np.exp(-confidence)
    logits = np.zeros((n, len(rates)))
    logits[np.arange(n), labels] = 3 + confidence
    return Scores(logits=logits, labels=np.where(wrong, (labels + 1) % len(rates), labels))


def test_classes_that_err_alike_have_one_threshold_and_others_have_their_own():
    from stage1.policy.class_thresholds import path_of

    def spread(rates):
        path = path_of(errors_by_class(rates), "msp", ClassGoal({"error": 0.02}, NAMES, 3000, 0.05), "per_class")
        return float(np.ptp(path.thresholds[path.start]))

    assert spread((0.2, 0.2, 0.2)) == 0
    assert spread((0.02, 0.2, 0.6)) > 0.5


def test_a_class_without_an_answer_on_val_select_is_not_shut_by_that():
    """Few rows say nothing of it: it exits where the others do, and the error counts it with them."""
    calib = draw(np.random.default_rng(1), 3000)
    few = draw(np.random.default_rng(0), 100)
    select = few.take(np.flatnonzero(few.logits.argmax(axis=1) != 2))
    assert not (select.logits.argmax(axis=1) == 2).any()
    policy = fit_policy("softmax", select=select, calib=calib, risks={"error": 0.1}, classes=NAMES)
    assert policy.certified
    assert None not in policy.thresholds
    decision = policy.decide(calib)
    assert (decision.exit & (decision.label == 2)).any()


@pytest.mark.parametrize(
    ("others", "risks"),
    [(0.1, {"error": 0.03}), (0.02, {f"wrong.{name}": 0.05 for name in NAMES})],
    ids=["error", "wrong"],
)
def test_why_a_class_is_shut_is_what_the_counts_say(others, risks):
    """A third of the images are answered owl, so that they are few is no reason; that most of them are wrong is."""
    select, calib = (errors_by_class((others, others, 2.5), size, seed=size) for size in (600, 3000))
    policy = fit_policy("softmax", select=select, calib=calib, risks=risks, classes=NAMES)
    assert policy.certified
    assert policy.certificate.never_answered == ("owl",)
    assert re.search(
        "No image exits as 'owl': (val_select expects such answers to be wrong too often"
        "|the first thresholds that would let one exit were not certified)",
        policy.certificate.statement,
    ), policy.certificate.statement


def test_order_of_rows_and_monotone_maps_of_energy_free_scores_change_nothing():
    rng = np.random.default_rng(2)
    select, calib = draw(rng, 400), draw(rng, 2000)
    policy = fit_policy("softmax", select=select, calib=calib, risks={"error": 0.06}, classes=NAMES)
    shuffled = fit_policy(
        "softmax",
        select=select.take(rng.permutation(400)),
        calib=calib.take(rng.permutation(2000)),
        risks={"error": 0.06},
        classes=NAMES,
    )
    assert np.allclose(policy.thresholds, shuffled.thresholds, rtol=1e-9)
    moved = Scores(logits=calib.logits + rng.normal(0, 9, (2000, 1)), labels=calib.labels)
    assert policy.decide(moved).exit.tolist() == policy.decide(calib).exit.tolist()


def test_ties_at_a_threshold_exit_or_defer_as_a_block():
    rng = np.random.default_rng(4)
    select, calib = (
        Scores(logits=np.round(part.logits, 0), labels=part.labels) for part in (draw(rng, 400), draw(rng, 3000))
    )
    policy = fit_policy("softmax", select=select, calib=calib, risks={"error": 0.08}, classes=NAMES)
    decision = policy.decide(calib)
    from stage1.scores.confidence import msp

    for label in range(3):
        mine = decision.label == label
        seen = dict(zip(msp(calib.logits)[mine].tolist(), decision.exit[mine].tolist(), strict=True))
        assert all(
            seen[c] == e for c, e in zip(msp(calib.logits)[mine].tolist(), decision.exit[mine].tolist(), strict=True)
        )
    assert decision.exit.any()


# ---- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("risks", [{"error": 0.05}, {"wrong.cat": 0.05, "wrong.dog": 0.05, "wrong.owl": 0.05}])
def test_file_comes_back_and_refit_gives_the_same(tmp_path, risks):
    rng = np.random.default_rng(6)
    select, calib = draw(rng, 400), draw(rng, 2000)
    policy = fit_policy(
        "softmax", select=select, calib=calib, risks=risks, classes=NAMES, confidence_score="maxlogit_pnorm(3)"
    )
    policy.certificate.save(tmp_path / "certificate.json")
    policy.save(tmp_path / "thresholds.json")
    back = load_policy(tmp_path)
    assert back == policy
    assert isinstance(back, MulticlassPolicy)
    assert Certificate.load(tmp_path / "certificate.json") == policy.certificate
    assert refit(back, calib=calib, select=select) == policy
    damaged = policy.to_document()
    damaged["thresholds"] = [*damaged["thresholds"], 1.0]
    from stage1.policy.schema import THRESHOLDS_KIND
    from stage1.storage.documents import write_document

    write_document(tmp_path / "thresholds.json", damaged, THRESHOLDS_KIND)
    with pytest.raises(IntegrityError, match="4 for 3 classes"):
        load_policy(tmp_path)


def test_a_class_that_cannot_be_certified_stays_shut_and_is_named():
    rng = np.random.default_rng(11)
    select, calib = draw(rng, 600, shares=(0.49, 0.49, 0.02)), draw(rng, 3000, shares=(0.49, 0.49, 0.02))
    policy = fit_policy(
        "softmax", select=select, calib=calib, risks={f"wrong.{name}": 0.05 for name in NAMES}, classes=NAMES
    )
    assert policy.certified
    assert policy.thresholds[2] is None
    assert policy.certificate.risks["wrong.owl"].by_construction
    said = re.search(
        r"No image exits as 'owl': val_select expects (\d+) such answers among the calibration images,"
        r" and wrong.owl <= 0.05 takes 59 without an error",
        policy.certificate.statement,
    )
    assert said, policy.certificate.statement
    assert int(said[1]) < 59
    decision = policy.decide(calib)
    assert not (decision.exit & (decision.label == 2)).any()
    assert decision.coverage > 0.3


def test_the_advice_of_a_refusal_is_a_legal_target_that_certifies():
    tried = 0
    for seed, risks in [(3, {"error": 0.004}), (4, {"error": 0.01, "fnr.dog": 0.02}), (5, {"wrong.owl": 0.005})]:
        select, calib = (draw(np.random.default_rng([seed, part]), size) for part, size in enumerate((300, 500)))
        options = {"select": select, "calib": calib, "classes": NAMES, "allow_one_sided": True}
        refused = fit_policy("softmax", risks=risks, **options).certificate
        if refused.certified:
            continue
        advice = re.search(r"risks=\{(.*?)\}, which these images certify", refused.needed)
        assert advice, refused.needed
        asked = {name: float(value) for name, value in (part.split(": ") for part in advice[1].split(", "))}
        assert asked.keys() == risks.keys()
        assert fit_policy("softmax", risks=asked, **options).certified
        tried += 1
    assert tried >= 2


# ---- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"risks": {"fnr": 0.1}}, "'fnr' is for two classes, there are 3; use error, or fnr.<class>, e.g. fnr.cat"),
        ({"risks": {"fpr": 0.1}}, "'fpr' is for two classes"),
        ({"risks": {"error": 0.1, "fnr.dgo": 0.1}}, "no class 'dgo'; did you mean fnr.dog"),
        ({"risks": {"nonsense": 0.1}}, "risks are error, fnr.<class>, wrong.<class>, miss_rate.<class>"),
        ({"risks": {"fnr.cat": 0.1}}, "without a limit; add error, or one of these risks for each class"),
        ({"risks": {"error": 0.1}, "target_prior": 0.5}, "target_prior: 0.5 is a share of positives, and there are 3"),
        ({"risks": {"error": 1.5}}, "risks.error: must lie strictly between 0 and 1"),
        ({"risks": {"error": 0.1}, "class_coverage": {"cow": 0.5}}, "class_coverage.cow: no such class"),
        ({"risks": {"error": 0.1}, "thresholds": "two"}, "policy.thresholds: 'two' is unknown"),
        ({"risks": {"error": 0.1}, "confidence_score": "doubt"}, "confidence: 'doubt' is unknown"),
        ({"risks": {"error": 0.1}, "slices": ["city"]}, "slices"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(options, words):
    with pytest.raises(ConfigError) as error:
        fit(**options)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_gate_missing_select_and_wrong_names_are_refused():
    rng = np.random.default_rng(0)
    select, calib = draw(rng, 100), draw(rng, 300)
    with pytest.raises(ConfigError, match="gate: is for two classes, there are 3"):
        fit_policy("gate", select=select, calib=calib, risks={"error": 0.1}, classes=NAMES)
    for few in (None, select.take(range(9))):
        with pytest.raises(ConfigError, match="need at least 10"):
            fit_policy("softmax", select=few, calib=calib, risks={"error": 0.1}, classes=NAMES)
    with pytest.raises(DataError, match="2 names, 3 columns"):
        fit_policy("softmax", select=select, calib=calib, risks={"error": 0.1}, classes=("a", "b"))
    with pytest.raises(ConfigError, match=r"risk 'fnr.cat' is for more than two classes"):
        Request({"fnr.cat": 0.1}, classes=("cat", "dog"))


def test_risk_names_keep_classes_with_dots_apart():
    assert risk_parts("fnr.a.b", ("a", "b", "a.b")) == ("fnr", 2)
    assert Request({"fnr.a": 0.1}, classes=("a", "b", "c"), allow_one_sided=True).one_sided
    assert not Request(dict.fromkeys(("miss_rate.a", "fnr.b", "fnr.c"), 0.1), classes=("a", "b", "c")).one_sided


# ---- property ----------------------------------------------------------------------------------------------------


@st.composite
def problems(draw_):
    k = draw_(st.integers(3, 5))
    rng = np.random.default_rng(draw_(st.integers(0, 2**32 - 1)))
    scale = draw_(st.sampled_from([0.0, 0.5, 3.0, 300.0]))
    rounding = draw_(st.sampled_from([0, 1, 8]))

    def scores(n):
        labels = rng.integers(0, draw_(st.integers(1, k)), n)
        logits = rng.normal(0, 1, (n, k)) + scale * np.eye(k)[labels] * (rng.random((n, 1)) < 0.9)
        return Scores(logits=np.round(logits, rounding), labels=labels)

    classes = tuple("abcde"[:k])
    names = draw_(st.lists(st.sampled_from(risk_names(classes)), min_size=1, max_size=4, unique=True))
    risks = {name: draw_(st.sampled_from([0.02, 0.1, 0.4])) for name in names}
    floor = draw_(st.sampled_from([None, 0.2, 0.9]))
    return scores(draw_(st.integers(10, 120))), scores(draw_(st.integers(1, 400))), classes, risks, floor


@pytest.mark.parametrize("examples", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_no_certificate_has_a_bound_above_its_target(examples):
    settings(max_examples=examples, deadline=None)(given(problems(), *OPTIONS)(no_bound_above_its_target))()


OPTIONS = (
    st.sampled_from(["msp", "margin", "entropy", "energy", "maxlogit_pnorm(2)"]),
    st.sampled_from(["auto", "one", "per_class"]),
)


def no_bound_above_its_target(problem, score, mode):
    select, calib, classes, risks, floor = problem
    policy = fit_policy(
        "softmax",
        select=select,
        calib=calib,
        risks=risks,
        classes=classes,
        coverage=floor,
        allow_one_sided=True,
        confidence_score=score,
        thresholds=mode,
    )
    certificate, decision = policy.certificate, policy.decide(calib)
    assert decision.exit.any() == certificate.certified
    if not certificate.certified:
        assert certificate.reason
        assert certificate.needed
        return
    rates = exit_rates(decision.exit, decision.label, calib.known_labels, classes=classes)
    delta = 0.05 if floor is None else 0.025
    for name, risk in certificate.risks.items():
        assert (risk.errors, risk.n) == (rates[name]["errors"], rates[name]["n"])
        assert risk.by_construction or stats.binom.cdf(risk.errors, risk.n, risk.target) <= delta * (1 + 1e-9)
        assert risk.bound <= risk.target
    if floor is not None:
        assert certificate.coverage.bound >= floor


def test_every_kind_of_risk_alone_is_known():
    assert len(risk_names(NAMES)) == 1 + 3 * 3
    for kind, name in itertools.product(("fnr", "wrong", "miss_rate"), NAMES):
        assert fit(n=(100, 400), risks={f"{kind}.{name}": 0.3}, allow_one_sided=True).certificate.statement
