"""The contract of fit_policy: oracles, properties, honest refusals, units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pytest import approx
from scipy import stats

from stage1 import Scores, fit_policy, load_policy
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError
from stage1.policy import POLICY_FILES, Certificate, refit
from stage1.policy.units import one_per_group

from .simulate import beta_scores

BOTH = {"fnr": 0.02, "false_exit_rate": 0.05}
TARGET_SETS = [BOTH, {"fpr": 0.05, "miss_rate": 0.02}, {"miss_rate": 0.02, "false_exit_rate": 0.05}]


def binary(margin, labels, **fields) -> Scores:
    margin = np.asarray(margin, dtype=float)
    return Scores(logits=np.stack([np.zeros_like(margin), margin], axis=1), labels=labels, **fields)


def separable(n_negative: int, n_positive: int) -> Scores:
    margin = np.concatenate([np.linspace(-9, -1, n_negative), np.linspace(1, 9, n_positive)])
    return binary(margin, np.repeat([0, 1], [n_negative, n_positive]))


# ---- oracle: the rules of ALGORITHMS 2.4, written out plainly with scipy


def plain_walk(margin, labels, fnr, false_exit_rate, delta):
    negatives, positives = np.sort(margin[labels == 0])[::-1], np.sort(margin[labels == 1])
    k = 0
    while k < len(negatives) and stats.binom.cdf(k, len(negatives), false_exit_rate) <= delta:
        k += 1
    if k == 0:
        return None, None
    hi = negatives[k - 1]
    right = int((positives > hi).sum())
    j = 0
    while right and j <= len(positives) - right and stats.binom.cdf(j, j + right, fnr) <= delta:
        j += 1
    return (None if j == 0 else min(positives[j - 1], hi)), hi


@pytest.mark.parametrize("seed", range(5))
def test_walk_equals_the_plain_loop(seed):
    scores = beta_scores(np.random.default_rng(seed), 1500, 0.5)
    policy = fit_policy("softmax", calib=scores, risks=BOTH)
    lo, hi = plain_walk(scores.margin, scores.labels, 0.02, 0.05, 1 - 0.95**0.5)
    assert (policy.lo, policy.hi) == (lo, hi)
    mirrored = binary(-scores.margin, 1 - scores.labels)
    mirror = fit_policy("softmax", calib=mirrored, risks={"fpr": 0.02, "miss_rate": 0.05})
    assert (mirror.lo, mirror.hi) == (-hi, -lo)


def test_certificate_of_a_case_done_by_hand():
    # 400 negatives: P(Bin(400, .05) <= 10) = .0097 <= d' = .0253 < P(Bin <= 11) -> hi = 12th largest negative or so
    policy = fit_policy(
        "softmax", calib=separable(400, 400), risks=BOTH, classes=("none", "roadwork"), against_argmax=True
    )
    certificate = policy.certificate
    delta = 1 - 0.95**0.5
    errors = max(k for k in range(50) if stats.binom.cdf(k, 400, 0.05) <= delta)
    assert certificate.risks["false_exit_rate"].errors == errors
    assert certificate.risks["false_exit_rate"].bound == approx(stats.beta.ppf(1 - delta, errors + 1, 400 - errors))
    misses = max(k for k in range(50) if stats.binom.cdf(k, 400 + k, 0.02) <= delta)
    assert (certificate.risks["fnr"].n, certificate.risks["fnr"].errors) == (400, 0)  # lo is capped by hi
    assert misses > 0
    assert certificate.certified
    assert certificate.coverage.value == approx(799 / 800)  # the score that equals hi defers
    assert certificate.statement.startswith(
        "With confidence 95 %, among roadwork images that exit, at most 2 % are called 'none', "
        "and at most 5 % of all none images exit as 'roadwork'; 99.8 % of the calibration images exit."
    )


def test_a_class_that_is_named_by_a_number_reads_as_a_sentence():
    statement = fit_policy("softmax", calib=separable(400, 400), risks=BOTH).certificate.statement
    assert "among images of class '1' that exit, at most 2 % are called '0'" in statement


# ---- properties


@st.composite
def labelled_scores(draw):
    n = draw(st.integers(2, 400))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, 2, n)
    margin = rng.normal(size=n) + draw(st.floats(0, 6)) * labels
    if draw(st.booleans()):
        margin = np.round(margin, draw(st.integers(0, 2)))  # many ties
    return binary(margin, labels)


@settings(max_examples=150, deadline=None)
@given(labelled_scores(), st.sampled_from(TARGET_SETS), st.floats(0.02, 0.6), st.floats(0.5, 0.99))
def test_no_certificate_ever_exceeds_its_target(scores, names, target, confidence):
    policy = fit_policy("softmax", calib=scores, risks=dict.fromkeys(names, target), confidence=confidence)
    certificate, decision = policy.certificate, policy.decide(scores)
    if certificate.certified:
        assert decision.exit.any()
        assert all(risk.bound <= target for risk in certificate.risks.values())
        assert policy.lo is None or policy.hi is None or policy.lo <= policy.hi
        # recounted from the decisions, independently of the code under test
        wrong = decision.exit & (decision.label != scores.labels)
        for name, risk in certificate.risks.items():
            positive = name in ("fnr", "miss_rate")
            assert risk.errors == int((wrong & (scores.labels == positive)).sum())
    else:
        assert not decision.exit.any()
        assert certificate.reason
        assert certificate.needed


@settings(max_examples=50, deadline=None)
@given(labelled_scores(), st.sampled_from(TARGET_SETS), st.randoms(use_true_random=False))
def test_exits_do_not_depend_on_order_or_on_a_rising_map(scores, names, random):
    risks = dict.fromkeys(names, 0.2)
    exits = fit_policy("softmax", calib=scores, risks=risks).decide(scores).exit
    order = list(range(len(scores)))
    random.shuffle(order)
    shuffled = scores.take(order)
    assert (fit_policy("softmax", calib=shuffled, risks=risks).decide(shuffled).exit == exits[order]).all()
    mapped = binary(np.sinh(scores.margin / 2), scores.labels)
    assert (fit_policy("softmax", calib=mapped, risks=risks).decide(mapped).exit == exits).all()


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(-1e300, 1e300)), st.data())
def test_arbitrary_finite_scores_never_crash(margin, data):
    labels = data.draw(hnp.arrays(np.int64, len(margin), elements=st.integers(0, 1)))
    policy = fit_policy("softmax", calib=binary(margin, labels), risks=dict.fromkeys(BOTH, 0.3), confidence=0.6)
    assert policy.certificate.certified == policy.decide(binary(margin, labels)).exit.any()


# ---- refusals are arithmetic


def test_too_few_negatives_says_how_many():
    policy = fit_policy("softmax", calib=separable(60, 500), risks=BOTH, classes=("none", "roadwork"))
    assert not policy.certificate.certified
    assert (
        policy.certificate.reason
        == "60 none images cannot certify false_exit_rate <= 0.05 at 95 % (72 needed with 0 errors)."
    )
    assert (
        policy.certificate.needed
        == "12 more labelled none images in val_calib, or risks.false_exit_rate=0.06, the least that 60 can certify."
    )
    assert not policy.decide(separable(5, 5)).exit.any()
    assert fit_policy("softmax", calib=separable(72, 500), risks=BOTH).certified


def test_too_few_positives_closes_one_side_and_says_so():
    policy = fit_policy("softmax", calib=separable(500, 181), risks=BOTH, classes=("none", "roadwork"))
    certificate = policy.certificate
    assert policy.lo is None
    assert certificate.risks["fnr"].by_construction
    assert certificate.risks["fnr"].bound == 0.0
    assert "No image exits as 'none'" in certificate.statement
    assert (
        certificate.reason
        == "181 of 181 roadwork images exit as 'roadwork'; fnr <= 0.02 at 95 % takes 182 with 0 errors."
    )
    assert fit_policy("softmax", calib=separable(500, 182), risks=BOTH).lo is not None


@pytest.mark.parametrize(
    "scores",
    [separable(0, 300), separable(300, 0), binary(np.zeros(600), np.arange(600) % 2), binary([1.0], [1])],
    ids=["no negatives", "no positives", "all tied", "one image"],
)
@pytest.mark.parametrize(
    "risks", [BOTH, {"fpr": 0.05, "miss_rate": 0.05}, {"miss_rate": 0.05, "false_exit_rate": 0.05}]
)
def test_hopeless_input_defers_or_closes_a_side(scores, risks):
    policy = fit_policy("softmax", calib=scores, risks=risks)
    closed = policy.lo is None or policy.hi is None
    assert closed
    assert policy.certificate.reason


def test_seventy_percent_saturated_ties_move_as_a_block():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 1000)
    margin = np.where(labels == 1, 30.0, -30.0)
    blurred = rng.random(2000) < 0.3
    margin = np.where(blurred, rng.normal(size=2000) + labels, margin)
    policy = fit_policy("softmax", calib=binary(margin, labels), risks=BOTH)
    decision = policy.decide(binary(margin, labels))
    assert policy.certified
    for value in (30.0, -30.0):
        assert len(set(decision.exit[margin == value])) == 1


@pytest.mark.parametrize(
    "risks, message",
    [
        ({"fnr": 0.02}, "allow_one_sided"),
        ({"miss_rate": 0.02}, "allow_one_sided"),
        ({"fnr": 0.02, "miss_rate": 0.02}, "one side only"),
        ({"fnr": 0.02, "fpr": 0.02}, "fnr \\+ fpr needs labelled scores of val_select"),
        ({"error": 0.02}, "error needs labelled scores of val_select"),
        ({}, "empty target"),
        ({"fnr": 0.0, "false_exit_rate": 0.05}, "risks.fnr"),
        ({"fnr": 1.0, "false_exit_rate": 0.05}, "risks.fnr"),
        ({"fnr": -0.1, "false_exit_rate": 0.05}, "risks.fnr"),
        ({"fnrr": 0.1}, "'fnrr' is unknown"),
    ],
)
def test_targets_that_cannot_be_met_as_asked_are_refused_by_name(risks, message):
    with pytest.raises(ConfigError, match=message):
        fit_policy("softmax", calib=separable(300, 300), risks=risks)


def test_one_sided_targets_need_the_flag_and_leave_the_other_side_closed():
    policy = fit_policy("softmax", calib=separable(300, 300), risks={"miss_rate": 0.02}, allow_one_sided=True)
    assert policy.certified
    assert policy.hi is None


def test_a_ratio_alone_answers_every_image():
    """fnr alone, with the flag: then the ratio is a share of the class and one order statistic bounds it."""
    scores = beta_scores(np.random.default_rng(2), 2000, 0.5)
    policy = fit_policy("softmax", calib=scores, risks={"fnr": 0.02}, allow_one_sided=True, against_argmax=True)
    assert policy.lo == policy.hi
    assert policy.decide(scores).coverage == 1.0
    risk = policy.certificate.risks["fnr"]
    assert risk.n == int(scores.labels.sum())
    assert risk.errors == max(k for k in range(200) if stats.binom.cdf(k, risk.n, 0.02) <= 0.05)
    mirrored = binary(-scores.margin, 1 - scores.labels)
    mirror = fit_policy("softmax", calib=mirrored, risks={"fpr": 0.02}, allow_one_sided=True, against_argmax=True)
    assert mirror.lo == -policy.lo


def test_an_unknown_policy_is_refused_by_name():
    with pytest.raises(ConfigError, match="softmaxx"):
        fit_policy("softmaxx", calib=separable(300, 300), risks=BOTH)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5, -1.0])
def test_confidence_out_of_range(confidence):
    with pytest.raises(ConfigError, match="confidence"):
        fit_policy("softmax", calib=separable(300, 300), risks=BOTH, confidence=confidence)


def test_calibration_ids_seen_in_selection_are_refused():
    calib = binary([1.0, 2.0], [0, 1], ids=["a", "b"])
    with pytest.raises(DataError, match="id b"):
        fit_policy("softmax", select=binary([0.0], [0], ids=["b"]), calib=calib, risks=BOTH)


def test_a_reason_known_beforehand_defers_everything():
    policy = fit_policy("softmax", calib=separable(400, 400), risks=BOTH, uncertified_because="Leakage was allowed.")
    assert not policy.certified
    assert policy.certificate.reason == "Leakage was allowed."
    assert "Leakage was allowed. Every image defers." in policy.certificate.statement


# ---- units


def grouped(n_groups: int, frames: int) -> Scores:
    labels = np.repeat(np.arange(n_groups) % 2, frames)
    margin = np.where(labels == 1, 5.0, -5.0) + np.random.default_rng(1).normal(size=n_groups * frames)
    groups = np.repeat([f"video{index}" for index in range(n_groups)], frames)
    return binary(margin, labels, groups=groups, ids=[f"id{row}" for row in range(len(labels))])


def test_groups_count_once():
    certificate = fit_policy("softmax", calib=grouped(400, 10), risks=BOTH).certificate
    assert (certificate.unit, certificate.n_images, certificate.n_units) == ("group", 4000, 400)
    assert certificate.risks["false_exit_rate"].n == 200
    assert "random image of a random group" in certificate.statement


def test_image_level_with_groups_needs_assume_iid_and_says_so():
    scores = grouped(28, 40)
    assert not fit_policy("softmax", calib=scores, risks=BOTH).certified
    with pytest.raises(ConfigError, match="assume_iid"):
        fit_policy("softmax", calib=scores, risks=BOTH, unit="image")
    certificate = fit_policy("softmax", calib=scores, risks=BOTH, assume_iid=True).certificate
    assert certificate.certified
    assert certificate.assume_iid
    assert "assume_iid" in certificate.statement


def test_single_image_groups_are_images():
    scores = grouped(300, 1)
    assert fit_policy("softmax", calib=scores, risks=BOTH, assume_iid=True).certificate.unit == "image"
    assert not fit_policy("softmax", calib=scores, risks=BOTH, assume_iid=True).certificate.assume_iid


def test_the_draw_is_one_per_group_uniform_and_blind_to_labels():
    scores = grouped(200, 5)
    rows = one_per_group(scores, seed=3)
    assert sorted(scores.groups[rows]) == sorted(set(scores.groups))
    relabelled = Scores(logits=-scores.logits, labels=1 - scores.labels, groups=scores.groups, ids=scores.ids)
    assert (one_per_group(relabelled, seed=3) == rows).all()
    positions = np.concatenate([one_per_group(scores, seed) % 5 for seed in range(20)])
    assert stats.chisquare(np.bincount(positions, minlength=5)).pvalue > 1e-4


def test_frames_of_one_group_break_the_image_level_promise_and_not_the_group_level():
    """Ten identical frames per group: counting frames must fail, counting groups must hold."""
    rng, draws = np.random.default_rng(8), 200
    broken = {True: 0, False: 0}
    for _ in range(draws):
        base = beta_scores(rng, 300, 0.5)
        rows = np.repeat(np.arange(300), 10)
        scores = Scores(logits=base.logits[rows], labels=base.labels[rows], groups=rows.astype(str))
        for assume_iid in broken:
            policy = fit_policy(
                "softmax",
                calib=scores,
                risks={"miss_rate": 0.05, "false_exit_rate": 0.05},
                confidence=0.9,
                assume_iid=assume_iid,
            )
            miss = 0.0 if policy.lo is None else stats.beta(3.5, 1).cdf(1 / (1 + np.exp(-policy.lo)))
            false_exit = 0.0 if policy.hi is None else stats.beta(1, 3.5).sf(1 / (1 + np.exp(-policy.hi)))
            broken[assume_iid] += max(miss, false_exit) > 0.05
    assert broken[False] / draws <= 0.1 + 3 * np.sqrt(0.09 / draws)
    assert broken[True] / draws > 0.3


# ---- files


def test_round_trip(tmp_path):
    policy = fit_policy("softmax", calib=grouped(400, 3), risks=BOTH, classes=("none", "roadwork"))
    policy.save(tmp_path / "thresholds.json")
    policy.certificate.save(tmp_path / "certificate.json")
    assert load_policy(tmp_path) == policy
    assert Certificate.load(tmp_path / "certificate.json") == policy.certificate


def test_policies_exclude_each_other_on_read(tmp_path):
    fit_policy("softmax", calib=separable(400, 400), risks=BOTH).save(tmp_path / "thresholds.json")
    (tmp_path / "gateparams.json").write_text("{}")
    with pytest.raises(IntegrityError, match="exclude each other"):
        load_policy(tmp_path)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(MissingError, match="no policy file"):
        load_policy(tmp_path)
    fit_policy("softmax", calib=separable(400, 400), risks=BOTH).save(tmp_path / "thresholds.json")
    fit_policy("softmax", calib=separable(4, 4), risks=BOTH).certificate.save(tmp_path / "certificate.json")
    with pytest.raises(IntegrityError, match="does not belong"):
        load_policy(tmp_path / "thresholds.json")


@pytest.mark.parametrize(
    "name, options",
    [
        ("softmax", {}),
        ("gate", {}),
        ("gate", {"kept": "softmax"}),
        ("scrc", {"coverage": 0.5}),
        ("scrc", {"coverage": 0.5, "variant": "T"}),
    ],
)
def test_every_policy_comes_back_from_its_files_and_from_its_scores(name, options, tmp_path):
    rng = np.random.default_rng(4)
    scores = beta_scores(rng, 4000, 0.5)
    gate = rng.normal(size=4000) + 2 * ((scores.margin > 0) == (scores.labels == 1))
    scores = Scores(logits=scores.logits, labels=scores.labels, gate=gate)
    select, calib = scores.take(range(800)), scores.take(range(800, 4000))
    policy = fit_policy(name, select=select, calib=calib, risks={"miss_rate": 0.05, "false_exit_rate": 0.05}, **options)
    assert policy.certified
    assert policy.decide(calib).exit.any()
    policy.save(tmp_path / POLICY_FILES[name])
    policy.certificate.save(tmp_path / "certificate.json")
    loaded = load_policy(tmp_path)
    assert loaded.to_document() == policy.to_document()
    assert (loaded.decide(calib).exit == policy.decide(calib).exit).all()
    again = refit(loaded, calib=calib, select=select)
    assert again.to_document() == policy.to_document()
    assert again.certificate == policy.certificate
