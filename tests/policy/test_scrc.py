"""The SCRC policy: what it decides, what its certificate says, whether the promise holds."""

from __future__ import annotations

import re
from dataclasses import fields
from math import ceil, inf, log, sqrt

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.policy import scrc_choice
from stage1.policy.schema import SCRCPARAMS_KIND
from stage1.policy.scrc import ScrcPolicy, class_log_odds
from stage1.policy.scrc_fit import fit_scrc
from stage1.policy.units import Counting
from stage1.risk.conformal import coverage_rank, transductive_thresholds
from stage1.scores import Scores, from_probabilities
from stage1.storage.documents import read_document, write_document

RISKS = {"miss_rate": 0.05, "false_exit_rate": 0.05}
CLASSES = ("none", "roadwork")


def binary(rng: np.random.Generator, n: int, positive_share: float = 0.3, *, gate: bool = False) -> Scores:
    """Margins N(-+ 3, 2), wide where the image is hard; the gate knows half of how hard."""
    labels = (rng.random(n) < positive_share).astype(np.int64)
    hard = rng.random(n)
    margin = (2 * labels - 1) * 3.0 + rng.normal(0, 0.5 + 4 * hard, n)
    return Scores(
        logits=np.stack([np.zeros(n), margin], axis=1),
        labels=labels,
        gate=2 - 4 * hard + rng.normal(0, 1, n) if gate else None,
    )


def many(rng: np.random.Generator, n: int, classes: int = 4) -> Scores:
    labels = rng.integers(0, classes, n)
    return Scores(logits=rng.normal(0, 1.5, (n, classes)) + 6.0 * np.eye(classes)[labels], labels=labels)


def fit(scores: Scores, **options) -> ScrcPolicy:
    counting = {item.name: options.pop(item.name) for item in fields(Counting) if item.name in options}
    return fit_scrc(**{"calib": scores, "risks": RISKS, "coverage": 0.7, **options, "counting": Counting(**counting)})


def true_risks(policy: ScrcPolicy, population: Scores) -> dict[str, float]:
    """Wrong exits among the selected of each class of a population that is the truth itself, and its coverage."""
    decision, (selected, _) = policy.decide(population), policy.sets(population)
    labels = population.known_labels
    wrong = decision.exit & (decision.label != labels)
    found = {
        f"class {k}": wrong[selected & (labels == k)].sum() / max((selected & (labels == k)).sum(), 1)
        for k in range(population.n_classes)
    }
    return {**found, "coverage": float(selected.mean())}


# ---- what it decides ---------------------------------------------------------------------------------------------


def test_log_odds_are_those_of_the_softmax():
    logits = np.random.default_rng(0).normal(0, 3, (200, 5))
    p = Scores(logits=logits).probabilities
    np.testing.assert_allclose(class_log_odds(logits), np.log(p / (1 - p)), rtol=1e-9, atol=1e-9)
    two = Scores(logits=logits[:, :2])
    np.testing.assert_array_equal(class_log_odds(two.logits)[:, 1], two.margin)
    np.testing.assert_array_equal(class_log_odds(two.logits)[:, 0], -two.margin)


def test_log_odds_stay_apart_where_probabilities_are_all_one():
    sure = np.array([[0.0, 40.0], [0.0, 50.0], [1e308, -1e308]])
    odds = class_log_odds(sure)
    assert odds[1, 1] == 50 > odds[0, 1] == 40
    assert np.isfinite(odds).all()
    spread = class_log_odds(np.array([[0.0, -50.0, 90.0], [1e308, -1e308, 0.0], [0.0, 0.0, 0.0]]))
    assert np.isfinite(spread).all()
    np.testing.assert_allclose(spread[0], [-90, -140, 90])
    np.testing.assert_allclose(spread[2], -np.log(2))


@pytest.mark.parametrize("variant", ["I", "T"])
@pytest.mark.parametrize("make", [binary, lambda rng, n: binary(rng, n, gate=True), many])
def test_a_set_of_one_class_exits_as_it_and_everything_else_defers(variant, make):
    rng = np.random.default_rng(1)
    calib, fresh = make(rng, 3000), make(rng, 500)
    risks = RISKS if calib.n_classes == 2 else {"miss_rate": 0.05}
    policy = fit(calib, variant=variant, risks=risks)
    decision = policy.decide(fresh)
    p = fresh.probabilities
    g = p.max(axis=1) if fresh.gate is None else 1 / (1 + np.exp(-fresh.gate))
    tau = 1 / (1 + np.exp(-policy.tau))
    assert policy.certified
    for row in range(len(fresh)):
        inside = [k for k in range(fresh.n_classes) if p[row, k] >= 1 - policy.lambdas[k]]
        assert decision.exit[row] == (len(inside) == 1 and g[row] > tau)
        if decision.exit[row]:
            assert decision.label[row] == inside[0]
    assert (decision.label[~decision.exit] == p.argmax(axis=1)[~decision.exit]).all()
    expected = p[:, 1] if fresh.n_classes == 2 else p[np.arange(500), decision.label]
    np.testing.assert_array_equal(decision.probability, expected)


@pytest.mark.parametrize("seed", range(5))
def test_variant_t_decides_as_if_each_image_were_ranked_with_the_calibration_images(seed):
    rng = np.random.default_rng(seed)
    calib, fresh = binary(rng, 700, gate=True), binary(rng, 400, gate=True)
    policy = fit(calib, variant="T")
    truth = np.where(calib.known_labels == 1, calib.margin, -calib.margin)
    found = {}
    for k, risk in enumerate(("false_exit_rate", "miss_rate")):
        found[k] = transductive_thresholds(
            calib.gate, truth, fresh.gate, coverage=0.7, alpha=RISKS[risk], members=calib.known_labels == k
        )
    lo, hi = found[1][1], -found[0][1]
    selected = found[0][0]
    as_0, as_1 = (
        selected & (fresh.margin < lo) & (fresh.margin <= hi),
        selected & (fresh.margin > hi) & (fresh.margin >= lo),
    )
    decision = policy.decide(fresh)
    np.testing.assert_array_equal(policy.sets(fresh)[0], selected)
    # Never riskier than image by image; equal but for the one calibration image at tau, and the closed gap of empty
    # sets.
    exits_0, exits_1 = decision.exit & (decision.label == 0), decision.exit & (decision.label == 1)
    assert not (exits_0 & ~(fresh.margin < lo)).any()
    assert not (exits_1 & ~(fresh.margin > hi)).any()
    assert (as_0 & ~exits_0).mean() + (as_1 & ~exits_1).mean() < 0.02


@settings(max_examples=60)
@given(st.integers(0, 2**31), st.integers(20, 400), st.sampled_from("IT"), st.floats(0.2, 0.95), st.booleans())
def test_two_classes_with_their_own_confidence_collapse_to_two_thresholds(seed, n, variant, coverage, tied):
    rng = np.random.default_rng(seed)
    scores = binary(rng, n)
    if tied:
        scores = Scores(logits=np.round(scores.logits), labels=scores.labels)
    policy = fit(scores, variant=variant, coverage=coverage, risks={"miss_rate": 0.2, "false_exit_rate": 0.1})
    lo, hi = policy.equivalent_thresholds
    margin = np.concatenate(
        [scores.margin, binary(rng, 200).margin, [0.0, policy.tau, -policy.tau][: 3 * (policy.tau > -inf)]]
    )
    decision = policy.decide(Scores(logits=np.stack([np.zeros_like(margin), margin], axis=1)))
    as_0, as_1 = (
        (margin < lo if lo is not None else margin != margin),
        (margin > hi if hi is not None else margin != margin),
    )
    np.testing.assert_array_equal(decision.exit, as_0 | as_1)
    assert (decision.label[as_0] == 0).all()
    assert (decision.label[as_1] == 1).all()


def test_one_lambda_for_both_classes_is_one_symmetric_threshold():
    policy = fit(binary(np.random.default_rng(2), 5000), coverage=0.6, risks={"miss_rate": 0.3, "false_exit_rate": 0.3})
    lo, hi = policy.equivalent_thresholds
    assert policy.lambdas[0] == policy.lambdas[1]
    assert lo == -hi == -policy.tau
    assert "cuts of one score" in policy.certificate.statement


def test_a_gate_or_more_classes_do_not_collapse():
    rng = np.random.default_rng(3)
    assert fit(binary(rng, 2000, gate=True)).equivalent_thresholds is None
    assert fit(many(rng, 2000), risks={"miss_rate": 0.05}).equivalent_thresholds is None


@pytest.mark.parametrize("variant", ["I", "T"])
def test_rising_maps_of_the_scores_and_the_order_of_rows_change_no_exit(variant):
    rng = np.random.default_rng(4)
    calib, fresh = binary(rng, 2000, gate=True), binary(rng, 500, gate=True)
    exits = fit(calib, variant=variant).decide(fresh).exit
    order = rng.permutation(len(calib))
    np.testing.assert_array_equal(fit(calib.take(order), variant=variant).decide(fresh).exit, exits)

    def mapped(scores: Scores) -> Scores:
        return Scores(logits=scores.logits * 0.25, labels=scores.labels, gate=np.arctan(scores.gate))

    np.testing.assert_array_equal(fit(mapped(calib), variant=variant).decide(mapped(fresh)).exit, exits)


# ---- the file and the certificate --------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["I", "T"])
@pytest.mark.parametrize("make", [binary, lambda rng, n: binary(rng, n, gate=True), many])
def test_the_file_alone_decides_alike(tmp_path, variant, make):
    rng = np.random.default_rng(5)
    policy = fit(make(rng, 1500), variant=variant, risks=RISKS if make is not many else {"miss_rate": 0.05})
    policy.save(tmp_path / "scrcparams.json")
    again = ScrcPolicy.from_document(read_document(tmp_path / "scrcparams.json", SCRCPARAMS_KIND))
    assert again.to_document() == policy.to_document()
    fresh = make(rng, 1000)
    for one, other in zip(policy.sets(fresh), again.sets(fresh), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(again.decide(fresh).exit, policy.decide(fresh).exit)
    assert policy.decide(fresh).exit.any()


def test_the_schema_refuses_what_does_not_belong(tmp_path):
    document = fit(binary(np.random.default_rng(6), 1000)).to_document()
    for broken in (
        {**document, "lo": 1.0},
        {**document, "variant": "X"},
        {**document, "xi": 1.0},
        {**document, "tau": "1"},
    ):
        with pytest.raises(IntegrityError, match="scrcparams"):
            write_document(tmp_path / "scrcparams.json", broken, SCRCPARAMS_KIND)
    with pytest.raises(IntegrityError, match="3 floors for 2 classes"):
        ScrcPolicy.from_document({**document, "floors": [0.0, 0.0, 0.0]})


@pytest.mark.parametrize("variant", ["I", "T"])
def test_the_certificate_names_its_denominator_and_its_kind_of_promise(tmp_path, variant):
    policy = fit(binary(np.random.default_rng(7), 3000), variant=variant, classes=CLASSES)
    certificate = policy.certificate
    assert certificate.certified
    assert "at most 5 % of all roadwork images exit as 'none'" in certificate.statement
    assert "shares of all images of a class, not of those that exit" in certificate.statement
    assert "The same limits hold among the selected images of a class" in certificate.statement
    assert "and at least 70 % of all images." in certificate.statement
    assert "not among images that exit: they do not bound fnr or fpr" in " ".join(certificate.assumptions)
    pac = "With confidence 95 % over calibration sets, at most 5 % of all roadwork images exit as 'none'"
    assert certificate.statement.startswith(
        pac if variant == "I" else "On average over calibration sets and images (in expectation"
    )
    assert ("PAC: over" if variant == "I" else "It is not PAC") in " ".join(certificate.assumptions)
    assert ("PAC" if variant == "I" else "in expectation") in certificate.method
    assert "selected" in certificate.method
    for risk in certificate.risks.values():
        assert risk.bound <= risk.target
    certificate.save(tmp_path / "certificate.json")
    assert type(certificate).load(tmp_path / "certificate.json") == certificate


def test_the_numbers_of_the_certificate_can_be_counted_by_hand():
    calib = binary(np.random.default_rng(8), 3000, gate=True)
    policy = fit(calib)
    rank = coverage_rank(3000, 0.7, 0.05 * 0.2) + ceil(0.01 * 3000)
    assert policy.tau == np.sort(calib.gate)[::-1][rank - 1]
    for risk, k in (("miss_rate", 1), ("false_exit_rate", 0)):
        members = (calib.gate > policy.tau) & (calib.known_labels == k)
        decision = policy.decide(calib)
        bound = policy.certificate.risks[risk]
        assert bound.n == members.sum()
        assert bound.errors == (members & decision.exit & (decision.label != k)).sum()
    # the three deltas: coverage, and each of two risks
    delta = policy.certificate.risks["miss_rate"].delta
    assert (1 - 0.05 * 0.2) * (1 - delta) ** 2 == pytest.approx(0.95)


def test_more_than_two_classes_have_a_floor_and_a_risk_each():
    calib = many(np.random.default_rng(9), 4000)
    policy = fit(calib, risks={"miss_rate": 0.05}, classes=("a", "b", "c", "d"))
    assert list(policy.certificate.risks) == ["miss_rate.a", "miss_rate.b", "miss_rate.c", "miss_rate.d"]
    assert all(risk.holds for risk in policy.certificate.risks.values())
    said = "at most 5 % of all images of class 'a', 'b', 'c' and 'd' exit with a wrong answer, each class by itself"
    assert said in policy.certificate.statement
    each = fit(calib, risks={f"miss_rate.{k}": 0.05 + 0.01 * k for k in range(4)})
    assert each.alpha["miss_rate.3"] == 0.08
    assert "at most 8 % of all '3' images exit with a wrong answer" in each.certificate.statement


# ---- not certifiable, bad input ----------------------------------------------------------------------------------


def refused(policy: ScrcPolicy, scores: Scores) -> str:
    certificate = policy.certificate
    assert not policy.certified
    assert not certificate.certified
    assert not policy.decide(scores).exit.any()
    assert certificate.coverage.exits == 0
    assert certificate.statement.startswith("Not certifiable")
    assert certificate.statement.endswith("Every image defers.")
    assert certificate.reason in certificate.statement
    assert certificate.needed
    return f"{certificate.reason} {certificate.needed}"


@pytest.mark.parametrize("variant", ["I", "T"])
def test_too_few_images_say_how_many_it_takes(variant):
    scores = binary(np.random.default_rng(10), 30)
    text = refused(
        fit(scores, variant=variant, classes=CLASSES, risks={"miss_rate": 0.02, "false_exit_rate": 0.02}), scores
    )
    assert ("at 95 %" in text) == (variant == "I")
    delta = 1 - sqrt(0.95 / 0.99)  # a fifth of the 5 % goes to coverage, the rest to two risks
    needed = {"I": ceil(log(delta) / log(1 - 0.02)), "T": 49}[variant]
    assert f"({needed} selected needed with 0 errors)" in text
    assert "risks={miss_rate: " in text


def test_the_nearest_target_named_can_be_certified():
    scores = binary(np.random.default_rng(11), 200)
    short = fit(scores, classes=CLASSES, risks={"miss_rate": 0.01, "false_exit_rate": 0.01})
    assert "selected" in refused(short, scores)
    nearest = yaml.safe_load(re.search(r"risks=(\{.*?\})", short.certificate.needed)[1])
    assert fit(scores, risks=nearest).certificate.reason is None
    tighter = fit(scores, risks={name: value - 0.001 for name, value in nearest.items()})
    assert not tighter.certified


@pytest.mark.parametrize("variant", ["I", "T"])
@pytest.mark.parametrize("label", [0, 1])
def test_one_class_alone_certifies_nothing(variant, label):
    scores = binary(np.random.default_rng(12), 500)
    scores = scores.take(scores.known_labels == label)
    policy = fit(scores, variant=variant)
    # The class that is there never exits as the other one; as itself it may not exit, since the other has no floor.
    assert policy.decide(scores).coverage == policy.certificate.coverage.value
    decision = policy.decide(scores)
    assert not decision.exit[decision.label == label].any()
    assert "0 selected of 0" in policy.certificate.reason


@pytest.mark.parametrize("variant", ["I", "T"])
def test_all_tied_and_a_block_of_ties(variant):
    rng = np.random.default_rng(13)
    labels = (rng.random(1000) < 0.3).astype(int)
    tied = from_probabilities(np.full(1000, 0.7), labels=labels)
    refused(fit(tied, variant=variant), tied)
    p = np.where(labels == 1, rng.beta(5, 1, 1000), rng.beta(1, 5, 1000))
    p[rng.random(1000) < 0.7] = 1.0
    block = from_probabilities(p, labels=labels)
    text = refused(fit(block, variant=variant, coverage=0.5), block)
    if variant == "I":
        assert "calibration images tie at the confidence that coverage 0.5 cuts" in text
        assert "coverage=0.7, which the present ones certify" in text
        assert fit(block, variant=variant, coverage=0.7).certified


def test_ties_that_the_spare_ranks_absorb_are_no_obstacle():
    rng = np.random.default_rng(14)
    scores = binary(rng, 3000)
    p = np.round(scores.probabilities[:, 1], 3)  # a CSV with three decimals
    policy = fit(from_probabilities(p, labels=scores.labels), coverage=0.8)
    assert policy.certified
    assert policy.decide(from_probabilities(p)).coverage > 0.6


def test_a_reason_known_beforehand_refuses():
    policy = fit(binary(np.random.default_rng(15), 3000), uncertified_because="12 images leak.")
    assert not policy.certified
    assert (policy.certificate.reason, policy.certificate.needed) == ("12 images leak.", None)
    assert not policy.decide(binary(np.random.default_rng(16), 50)).exit.any()


@pytest.mark.parametrize(
    ("options", "kind", "word"),
    [
        ({"variant": "U"}, ConfigError, "variant"),
        ({"coverage": 1.0}, ConfigError, "coverage"),
        ({"coverage": None}, ConfigError, "coverage"),
        ({"confidence": 0.0}, ConfigError, "confidence"),
        ({"risks": {}}, ConfigError, "empty target"),
        ({"risks": {"miss_rate": 0.05}}, ConfigError, "miss_rate and false_exit_rate"),
        ({"risks": {"fnr": 0.02, "false_exit_rate": 0.05}}, ConfigError, "fnr"),
        ({"risks": {"miss_rate": 0.05, "false_exit_rate": 1.5}}, ConfigError, "risks.false_exit_rate"),
        ({"classes": ("a", "b", "c")}, DataError, "3 names for 2 classes"),
        ({"unit": "frame"}, ConfigError, "unit"),
    ],
)
def test_wrong_options_are_named(options, kind, word):
    with pytest.raises(kind, match=word):
        fit(binary(np.random.default_rng(17), 100), **options)


def test_wrong_scores_are_named():
    scores = binary(np.random.default_rng(18), 1000, gate=True)
    policy = fit(scores)
    with pytest.raises(DataError, match="gate"):
        policy.decide(Scores(logits=scores.logits))
    with pytest.raises(DataError, match="3 columns"):
        policy.decide(Scores(logits=np.zeros((2, 3)), gate=np.zeros(2)))
    with pytest.raises(DataError, match="labels are needed"):
        fit(Scores(logits=scores.logits))
    with pytest.raises(DataError, match="needs labelled images"):
        fit(scores.take(np.zeros(1000, dtype=bool)))
    ids = np.arange(1000).astype(str)
    named = Scores(logits=scores.logits, labels=scores.labels, ids=ids)
    with pytest.raises(DataError, match="was in val_select too"):
        fit(named, select=named.take([3]))
    assert fit(binary(np.random.default_rng(19), 50, gate=True).take([0])).certified is False


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 60),
    st.integers(2, 4),
    st.sampled_from("IT"),
    st.floats(0.02, 0.98),
    st.floats(0.001, 0.999),
    st.sampled_from([1.0, 30.0, 1e300]),
    st.booleans(),
)
def test_random_arrays_never_break_it_and_never_certify_above_the_target(
    seed, n, classes, variant, xi, alpha, scale, gate
):
    rng = np.random.default_rng(seed)
    scores = Scores(
        logits=np.round(rng.normal(0, 1, (n, classes)), int(rng.integers(0, 4))) * scale,
        labels=rng.integers(0, classes, n),
        gate=np.round(rng.normal(0, 1, n), 1) if gate else None,
        groups=rng.integers(0, n, n) if rng.random() < 0.3 else None,
    )
    risks = {"miss_rate": alpha, "false_exit_rate": alpha} if classes == 2 else {"miss_rate": alpha}
    policy = fit(scores, variant=variant, coverage=xi, risks=risks)
    assert policy.certified == policy.certificate.certified
    assert not policy.certified or all(risk.bound <= risk.target for risk in policy.certificate.risks.values())
    assert policy.certified or not policy.decide(scores).exit.any()
    assert ScrcPolicy.from_document(policy.to_document()).to_document() == policy.to_document()


def test_groups_count_once_each():
    rng = np.random.default_rng(20)
    frames = binary(rng, 300)
    repeated = frames.take(np.repeat(np.arange(300), 10))
    video = Scores(logits=repeated.logits, labels=repeated.labels, groups=np.repeat(np.arange(300), 10))
    policy = fit(video, classes=CLASSES)
    assert (policy.certificate.unit, policy.certificate.n_units, policy.certificate.n_images) == ("group", 300, 3000)
    assert (
        "random group" in policy.certificate.statement + "".join(policy.certificate.assumptions) or not policy.certified
    )
    assert policy.to_document() == fit(frames, classes=CLASSES).to_document()
    assumed = fit(video, classes=CLASSES, assume_iid=True)
    assert assumed.certificate.assume_iid
    assert "assume_iid" in assumed.certificate.statement


# ---- does the promise hold ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def population() -> Scores:
    """4,000 rows that are the population itself: samples are drawn with replacement, so with ties, and risks are
    exact.
    """
    return binary(np.random.default_rng(100), 4000, gate=True)


def inductive(population: Scores, draws: int, n: int, seed: int) -> tuple[float, float, float, float]:
    """(joint violation, mean coverage, mean exits, joint violation of the plug-in): xi = .7, both risks .05, delta
    .1.
    """
    rng = np.random.default_rng(seed)
    broken, plugged, coverage, exits = 0, 0, [], []

    def fails(policy: ScrcPolicy) -> bool:
        truth = true_risks(policy, population)
        return truth["class 0"] > 0.05 or truth["class 1"] > 0.05 or truth["coverage"] < 0.7

    for _ in range(draws):
        calib = population.take(rng.integers(0, len(population), n))
        policy = fit(calib, confidence=0.9)
        if policy.certified:
            broken += fails(policy)
            coverage.append(true_risks(policy, population)["coverage"])
        exits.append(policy.decide(population).coverage)
        tau = float(np.quantile(calib.gate, 0.3))
        chosen, labels = calib.gate > tau, calib.known_labels
        floors = tuple(
            float(np.quantile(np.where(labels == 1, calib.margin, -calib.margin)[chosen & (labels == k)], 0.05))
            for k in (0, 1)
        )
        plugged += fails(ScrcPolicy("I", "gate", tau, floors, ("0", "1"), True, 0.7, RISKS))
    return broken / draws, float(np.mean(coverage)), float(np.mean(exits)), plugged / draws


@pytest.mark.parametrize(("draws", "n"), [(250, 1000), pytest.param(2000, 1000, marks=pytest.mark.slow)])
def test_variant_i_keeps_its_promise_with_power_and_the_plug_in_does_not(population, draws, n):
    violation, coverage, exits, plugged = inductive(population, draws, n, seed=21)
    print(
        f"n={n}, {draws} draws: violation {violation:.4f}, selected {coverage:.3f}, exits {exits:.3f}, plug-in"
        f" {plugged:.3f}"
    )
    assert violation <= 0.1 + 3 * sqrt(0.09 / draws)
    assert coverage > 0.7
    assert exits > 0.5
    assert plugged > 0.5


def transductive(population: Scores, draws: int, n: int, seed: int) -> dict[str, tuple[float, float]]:
    """Mean risk and its standard error per class, and mean coverage; calibration and test images from `population`."""
    rng = np.random.default_rng(seed)
    labels = population.known_labels
    wrong, inside, coverage = np.zeros((draws, 2)), np.zeros((draws, 2)), np.zeros(draws)
    for index in range(draws):
        policy = fit(population.take(rng.integers(0, len(population), n)), variant="T")
        decision, (selected, _) = policy.decide(population), policy.sets(population)
        coverage[index] = selected.mean()
        for k in (0, 1):
            inside[index, k] = (selected & (labels == k)).sum()
            wrong[index, k] = (decision.exit & (decision.label != k) & (labels == k)).sum()
    found = {"coverage": (float(coverage.mean()), float(coverage.std() / sqrt(draws)))}
    for k in (0, 1):
        # Selection is part of the event: a ratio of means, not the mean of ratios. Neither mean depends on the share of
        # class k among the test images, so what is shown here holds for every class balance.
        risk = wrong[:, k].sum() / inside[:, k].sum()
        spread = (wrong[:, k] - risk * inside[:, k]).std() / inside[:, k].mean()
        found[f"class {k}"] = (float(risk), float(spread / sqrt(draws)))
    return found


@pytest.mark.parametrize("draws", [400, pytest.param(5000, marks=pytest.mark.slow)])
def test_variant_t_keeps_its_mean_and_the_published_rule_does_not(monkeypatch, population, draws):
    right = transductive(population, draws, 300, seed=22)
    monkeypatch.setattr(scrc_choice, "allowed_losses", lambda m, alpha: ceil((m + 1) * alpha - 1e-12) - 1)
    monkeypatch.setattr(scrc_choice.RiskBound, "holds", property(lambda bound: True))  # its own check would stop it
    published = transductive(population, draws, 300, seed=22)
    print(f"T, {draws} draws: {right}; published rule: {published}")
    for k in (0, 1):
        assert right[f"class {k}"][0] <= 0.05 + 3 * right[f"class {k}"][1]
    assert right["class 1"][0] > 0.035  # power
    assert right["coverage"][0] >= 0.7 - 3 * right["coverage"][1]
    assert published["class 1"][0] > 0.05 + 3 * published["class 1"][1]


def test_more_classes_keep_the_promise():
    rng = np.random.default_rng(24)
    truth = many(rng, 5000)
    broken = 0
    for _ in range(150):
        policy = fit(truth.take(rng.integers(0, 5000, 1000)), risks={"miss_rate": 0.08}, confidence=0.9)
        risks = true_risks(policy, truth)
        broken += policy.certified and (max(risks[f"class {k}"] for k in range(4)) > 0.08 or risks["coverage"] < 0.7)
        assert policy.certified
    assert broken / 150 <= 0.1 + 3 * sqrt(0.09 / 150)
