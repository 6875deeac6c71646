"""Gate policy: equal to softmax where the gate is the margin, better where a second signal helps, and true to its
promise.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.evaluation.score_selection import accept_gate
from stage1.policy import fit_policy
from stage1.policy.certificate import Certificate
from stage1.policy.closed_form import Thresholds
from stage1.policy.gate import GatePolicy, _spread, _unspread, fit_gate, signed_gate
from stage1.policy.gate_model import cross_fitted_gate
from stage1.policy.schema import GATEPARAMS_KIND
from stage1.policy.units import Counting
from stage1.scores import Scores
from stage1.storage.documents import validate

from .hardness import hard_images
from .simulate import plug_in

TARGETS = {"fnr": 0.03, "false_exit_rate": 0.03}
CLOSED = [TARGETS, {"miss_rate": 0.03, "false_exit_rate": 0.03}, {"fpr": 0.03, "miss_rate": 0.03}]
DELTA = 0.1


@pytest.fixture(autouse=True)
def one_thread():
    # Small fits: on a busy machine BLAS threads wait for each other forty times longer than the sums take.
    with threadpoolctl.threadpool_limits(1):
        yield


def pair(seed, n_select=800, n_calib=3000, **fields):
    rng = np.random.default_rng(seed)
    select, extra_select = hard_images(rng, n_select, **fields)
    calib, extra_calib = hard_images(rng, n_calib, **fields)
    return {"select": select, "extra_select": extra_select, "calib": calib, "extra_calib": extra_calib}


def margin_as_gate(scores):
    return Scores(logits=scores.logits, labels=scores.labels, gate=np.abs(scores.margin))


# ---- signed score and decisions ------------------------------------------------------------------------------------


def test_signed_gate_is_g_with_the_sign_of_the_predicted_class():
    scores = Scores(logits=[[0.0, 2.0], [1.0, -1.0], [0.5, 0.5]])
    assert signed_gate(scores, [0.9, 0.8, 0.7]).tolist() == [0.9, -0.8, -0.7]
    for g in ([0.9, 0.8], [0.9, 0.8, 1.0], [0.9, 0.0, 0.5], [0.9, np.nan, 0.5]):
        with pytest.raises(DataError, match="g: "):
            signed_gate(scores, g)
    with pytest.raises(DataError, match="3 classes"):
        signed_gate(Scores(logits=np.zeros((3, 3))), [0.5, 0.5, 0.5])


def test_decisions_follow_the_thresholds_of_each_predicted_class():
    data = pair(1)
    policy = fit_gate(**data, risks=TARGETS)
    assert policy.certified
    assert policy.lo is not None
    assert policy.hi is not None
    scores, extra = hard_images(np.random.default_rng(2), 500)
    g = policy.model.apply(scores, extra)
    decision = policy.decide(scores, extra)
    ones = scores.margin > 0
    assert (decision.exit == np.where(ones, g > policy.hi, g > -policy.lo)).all()
    assert (decision.label == ones).all()
    assert decision.probability == pytest.approx(np.where(ones, g, 1 - g))
    with pytest.raises(DataError, match="hardness"):
        policy.decide(scores)
    closed = GatePolicy(policy.model, None, None, ("0", "1"), False)
    assert closed.decide(scores, extra).coverage == 0


@pytest.mark.parametrize("targets", CLOSED, ids="+".join)
def test_where_the_gate_is_the_margin_exits_are_those_of_softmax(targets):
    data = pair(3)
    select, calib = margin_as_gate(data["select"]), margin_as_gate(data["calib"])
    gate = fit_gate(select=select, calib=calib, risks=targets, source="gate")
    softmax = fit_policy("softmax", select=select, calib=calib, risks=targets)
    fresh = margin_as_gate(hard_images(np.random.default_rng(4), 20_000)[0])
    assert (gate.decide(fresh).exit == softmax.decide(fresh).exit).all()
    assert (gate.decide(fresh).label == softmax.decide(fresh).label).all()
    assert gate.certificate is not None
    assert softmax.certificate is not None
    assert gate.certificate.risks == softmax.certificate.risks
    assert gate.certificate.calib_digest == softmax.certificate.calib_digest
    assert gate.certificate.policy == "gate"


def test_where_softmax_is_kept_the_margin_decides():
    data = pair(5)
    kept = fit_gate(**data, risks=TARGETS, kept="softmax")
    softmax = fit_policy("softmax", select=data["select"], calib=data["calib"], risks=TARGETS)
    assert (kept.lo, kept.hi) == (softmax.lo, softmax.hi)
    ours, theirs = kept.decide(data["calib"]), softmax.decide(data["calib"])
    assert (ours.exit == theirs.exit).all()
    assert (ours.probability == theirs.probability).all()


@pytest.mark.parametrize("targets", [*CLOSED, {"fnr": 0.05, "fpr": 0.05}, {"error": 0.03}], ids="+".join)
def test_the_certificate_counts_what_decide_does(targets):
    data = pair(6)
    policy = fit_gate(**data, risks=targets)
    certificate = policy.certificate
    assert certificate is not None
    assert certificate.certified
    decision = policy.decide(data["calib"], data["extra_calib"])
    labels = data["calib"].known_labels
    assert certificate.coverage.exits == decision.exit.sum()
    miss = decision.exit & (decision.label == 0) & (labels == 1)
    false_exit = decision.exit & (decision.label == 1) & (labels == 0)
    errors = {
        "fnr": miss,
        "miss_rate": miss,
        "fpr": false_exit,
        "false_exit_rate": false_exit,
        "error": miss | false_exit,
    }
    for name, risk in certificate.risks.items():
        assert risk.errors == errors[name].sum()
        assert risk.holds
    assert any("fitted on val_select" in line for line in certificate.assumptions)


# ---- files ---------------------------------------------------------------------------------------------------------


def test_a_saved_policy_decides_the_same(tmp_path):
    data = pair(7)
    policy = fit_gate(**data, risks=TARGETS, classes=("none", "roadwork"))
    path = tmp_path / "gateparams.json"
    policy.save(path)
    assert policy.certificate is not None
    policy.certificate.save(tmp_path / "certificate.json")
    again = GatePolicy.load(path, Certificate.load(tmp_path / "certificate.json"))
    assert again == policy
    before, after = (item.decide(data["calib"], data["extra_calib"]) for item in (policy, again))
    assert (before.exit == after.exit).all()
    assert (before.probability == after.probability).all()
    assert "roadwork" in policy.certificate.statement


@pytest.mark.parametrize(
    "change",
    [{"lo": -3.0}, {"kept": "both"}, {"extra": 1}, {"policy": "softmax"}, {"classes": ["a"]}, {"model": {}}],
    ids=str,
)
def test_a_wrong_document_is_refused(tmp_path, change):
    policy = fit_gate(**pair(8, 400, 400), risks=TARGETS)
    document = {"schema_version": 1, **policy.to_document()}
    validate(document, GATEPARAMS_KIND, "here")
    path = tmp_path / "gateparams.json"
    path.write_text(json.dumps(document | change))
    with pytest.raises(IntegrityError, match=r"gateparams\.json"):
        GatePolicy.load(path)


# ---- refusals and bad input ----------------------------------------------------------------------------------------


def test_a_collapsed_gate_certifies_nothing_and_says_so():
    data = pair(9)
    select, calib = (
        Scores(logits=s.logits, labels=s.labels, gate=np.zeros(len(s))) for s in (data["select"], data["calib"])
    )
    policy = fit_gate(select=select, calib=calib, risks=TARGETS, source="gate")
    assert not policy.certified
    assert policy.certificate is not None
    assert "has collapsed: 100 %" in (policy.certificate.reason or "")
    assert "policy.name=softmax" in (policy.certificate.needed or "")
    assert policy.decide(calib).coverage == 0
    assert fit_gate(select=select, calib=calib, risks=TARGETS, source="gate", kept="softmax").certified


def test_leaks_and_wrong_arguments_are_named():
    ids = [f"{index}" for index in range(400)]
    data = pair(10, 400, 400, ids=ids)
    for change, error, message in (
        ({}, DataError, "was in val_select too"),
        ({"kept": "both"}, ConfigError, "kept: 'both'"),
        ({"classes": ("a",)}, DataError, "1 names for 2 classes"),
        ({"risks": {}}, ConfigError, "empty target"),
        ({"extra_calib": None}, DataError, "no column 'hardness'"),
    ):
        arguments = data | {"risks": TARGETS} | change
        if change:
            arguments["calib"] = Scores(logits=data["calib"].logits, labels=data["calib"].labels)
        with pytest.raises(error, match=message):
            fit_gate(**arguments)
    assert not fit_gate(**pair(10), risks=TARGETS, counting=Counting(uncertified_because="Leakage.")).certified


def test_groups_are_counted_once():
    groups = [f"video {index % 900}" for index in range(2700)]
    policy = fit_gate(**pair(11, 2700, 2700, groups=groups), risks={"miss_rate": 0.05, "false_exit_rate": 0.05})
    assert policy.certificate is not None
    assert policy.certificate.unit in ("group", "group_draws", "group_mean")
    assert policy.certificate.n_units == 900
    assert policy.certified


# ---- properties ----------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(2, 60), st.floats(-4, 4), st.floats(-4, 4), st.booleans())
def test_thresholds_survive_the_change_of_scale(seed, n, lo, hi, on_an_image):
    rng = np.random.default_rng(seed)
    # Many saturated and tied values: where rounding would show.
    g = np.clip(np.round(1 - 10.0 ** rng.integers(-17, 0, n), rng.integers(1, 18)), 1e-9, np.nextafter(1.0, 0.0))
    u = np.where(rng.random(n) < 0.5, -g, g)
    spread = _spread(u)
    assert (np.argsort(u, kind="stable") == np.argsort(spread, kind="stable")).all()
    if on_an_image:
        lo, hi = (float(value) for value in rng.choice(spread, 2))
    thresholds = Thresholds(min(lo, hi), max(lo, hi))
    found = _unspread(thresholds, spread, u)
    for ours, theirs in zip(found.exits(u), thresholds.exits(spread), strict=True):
        assert (ours == theirs).all()
    assert found.lo is not None
    assert found.hi is not None
    assert -1 <= found.lo <= 1
    assert _unspread(Thresholds(None, None), spread, u) == Thresholds(None, None)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(5, 200), st.booleans(), st.sampled_from(CLOSED))
def test_random_scores_never_give_a_bound_above_its_target(seed, n, tied, targets):
    rng = np.random.default_rng(seed)

    def scores():
        logits = rng.normal(size=(n, 2)) * 3
        labels = (logits[:, 1] + rng.normal(size=n) > logits[:, 0]).astype(int)
        return Scores(logits=np.round(logits) if tied else logits, labels=labels, gate=np.round(rng.normal(size=n)))

    policy = fit_gate(select=scores(), calib=scores(), risks={name: 5 * value for name, value in targets.items()})
    assert policy.certificate is not None
    assert policy.certified == policy.certificate.certified
    if policy.certified:
        assert all(risk.bound <= risk.target for risk in policy.certificate.risks.values())


# ---- does the promise hold, and is the gate worth it ---------------------------------------------------------------


def standard_error(rate, draws):
    return float(np.sqrt(rate * (1 - rate) / draws))


def broken(exits_as_negative, exits_as_positive, labels):
    """Whether the true risks (a population of 100,000) exceed TARGETS by more than its own sampling error explains."""
    positive = labels == 1
    miss, right = (exits_as_negative & positive).sum(), (exits_as_positive & positive).sum()
    false_exit = (exits_as_positive & ~positive).sum()
    return miss / max(miss + right, 1) > TARGETS["fnr"] or false_exit / (~positive).sum() > TARGETS["false_exit_rate"]


def simulate(draws, seed, *, helps, n_select=1000, n_calib=3000):
    """Means over draws: coverage and violation of gate and softmax, violation of the plug-in on u, share accepted."""
    population, columns = hard_images(np.random.default_rng(seed + 1), 100_000, helps=helps)
    labels = population.known_labels
    found = []
    for draw in range(draws):
        data = pair((seed, draw), n_select, n_calib, helps=helps)
        gate = fit_gate(**data, risks=TARGETS, confidence=1 - DELTA)
        softmax = fit_policy("softmax", select=data["select"], calib=data["calib"], risks=TARGETS, confidence=1 - DELTA)
        u = signed_gate(population, gate.model.apply(population, columns))
        on_calib = signed_gate(data["calib"], gate.model.apply(data["calib"], data["extra_calib"]))
        calib = Scores(logits=np.stack([0 * on_calib, on_calib], axis=1), labels=data["calib"].labels)
        sides = {
            "gate": Thresholds(gate.lo, gate.hi).exits(u),
            "softmax": Thresholds(softmax.lo, softmax.hi).exits(population.margin),
            "plug-in": Thresholds(*plug_in(calib, TARGETS["fnr"], TARGETS["false_exit_rate"])).exits(u),
        }
        row = {f"{name} broken": broken(*side, labels) for name, side in sides.items()}
        row |= {f"{name} coverage": float((side[0] | side[1]).mean()) for name, side in sides.items()}
        verdict = accept_gate(data["select"], cross_fitted_gate(data["select"], data["extra_select"]), n_resamples=300)
        found.append(row | {"accepted": verdict.accepted})
    return {name: float(np.mean([row[name] for row in found])) for name in found[0]}


def check(found, draws, *, helps):
    print(helps, draws, {name: round(value, 4) for name, value in found.items()})
    assert found["gate broken"] <= DELTA + 3 * standard_error(DELTA, draws)
    assert found["plug-in broken"] > DELTA + 3 * standard_error(DELTA, draws)
    if helps:
        assert found["accepted"] == 1
        assert found["gate coverage"] > found["softmax coverage"] + 0.15
    else:
        # .025 is the level of one side of the interval
        assert found["accepted"] <= 0.025 + 3 * standard_error(0.025, draws)


@pytest.mark.parametrize("helps", [True, False])
def test_gate_beats_softmax_where_a_second_signal_helps_and_is_refused_where_not(helps):
    check(simulate(9, 31, helps=helps), 9, helps=helps)


@pytest.mark.slow
@pytest.mark.parametrize("helps", [True, False])
def test_gate_keeps_its_promise_in_500_draws(helps):
    check(simulate(500, 32, helps=helps), 500, helps=helps)
