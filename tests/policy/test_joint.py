"""Printed bounds hold together: in at most delta of the draws some true risk lies above its bound; alone they do
not.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from stage1 import Scores, fit_policy
from stage1.evaluation.rates import exit_shares
from stage1.policy.certificate import Coverage, shown_bound
from stage1.policy.joint import as_earlier, joint_coverage, joint_risks
from stage1.policy.slices import SliceCounts
from stage1.policy.target import Request
from stage1.policy.threshold_choice import rule
from stage1.policy.two_thresholds import Units, measured_risks
from stage1.risk import binomial_upper

from .multiclass_draws import NAMES, draw
from .simulate import beta_scores, true_risks

DELTA = 0.05
SHARE = 0.3
SETS: dict[str, tuple[dict[str, float], dict]] = {
    "walk": ({"fnr": 0.02, "false_exit_rate": 0.05}, {}),
    "path": ({"fnr": 0.05, "fpr": 0.05}, {}),
    "order statistics": ({"miss_rate": 0.03, "false_exit_rate": 0.03}, {}),
    "error": ({"error": 0.05}, {}),
    "fnr alone": ({"fnr": 0.05}, {"allow_one_sided": True}),
}


def limit(draws: int) -> float:
    return DELTA + 3 * float(np.sqrt(DELTA * (1 - DELTA) / draws))


def truth(lo: float | None, hi: float | None) -> dict[str, float]:
    """true_risks of the Beta population at SHARE positives, and the error among exits."""
    risks = true_risks(lo, hi)
    positive, negative = (0.0 if x is None else 1 / (1 + np.exp(-x)) for x in (lo, hi))
    right = SHARE * (1 - (1.0 if hi is None else negative) ** 3.5) + (1 - SHARE) * (1 - (1 - positive) ** 3.5)
    wrong = SHARE * risks["miss_rate"] + (1 - SHARE) * risks["false_exit_rate"]
    return risks | {"error": wrong / (wrong + right) if wrong else 0.0}


# ---- what it is --------------------------------------------------------------------------------------------------


def test_one_factor_shrinks_all_targets():
    alone = {
        "fnr": SliceCounts(0.02, 0.01, 0.018, 900, 9),
        "fpr": SliceCounts(0.05, 0.01, 0.020, 900, 9),
        "miss_rate": SliceCounts(0.04, 0.0, 0.0, 900, 0),
    }
    joint = joint_risks(alone, at_end=True, never=frozenset({"miss_rate"}))
    assert joint["fnr"].bound == pytest.approx(0.018)
    assert joint["fpr"].bound == pytest.approx(0.9 * 0.05)
    assert joint["miss_rate"] is alone["miss_rate"]  # 0 by construction stays 0
    stopped = joint_risks(alone, at_end=False, never=frozenset({"miss_rate"}))
    assert (stopped["fnr"].bound, stopped["fpr"].bound, stopped["miss_rate"].bound) == (0.02, 0.05, 0.0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.001, 0.9), st.floats(0, 1)), min_size=1, max_size=5))
def test_joint_bounds_lie_between_the_single_ones_and_the_targets(rows):
    alone = {str(i): SliceCounts(target, None, share * target, 10, 0) for i, (target, share) in enumerate(rows)}
    for name, counts in joint_risks(alone, at_end=True).items():
        assert alone[name].bound <= counts.bound * (1 + 1e-12)
        assert counts.bound <= counts.target


def test_a_refused_target_has_no_joint_bound():
    with pytest.raises(AssertionError):
        joint_risks({"fnr": SliceCounts(0.02, None, 0.021, 10, 0)}, at_end=True)


def test_floors_shrink_alike():
    overall, shares = (
        Coverage(0.9, 100, 90, 0.5, 0.8, 0.8),
        {"a": Coverage(0.9, 50, 45, 0.4, 0.7), "b": Coverage(0.9, 50, 45)},
    )
    joint, by_class = joint_coverage(overall, shares, at_end=True)
    # .2 of .5 may defer, .3 of .6: the larger share of what was allowed is .5
    assert joint.bound == pytest.approx(0.75)
    assert by_class["a"].bound == pytest.approx(0.7)
    assert by_class["b"].bound is None
    stopped, _ = joint_coverage(overall, shares, at_end=False)
    assert stopped.bound == 0.5  # the floor itself


def test_scrc_t_states_no_bound_but_its_target():
    policy = fit_policy(
        "scrc",
        calib=beta_scores(np.random.default_rng(0), 800),
        variant="T",
        coverage=0.5,
        risks={"miss_rate": 0.05, "false_exit_rate": 0.05},
    )
    document = policy.certificate.to_document()
    assert policy.certified
    for name, risk in policy.certificate.risks.items():
        assert risk.by_construction or risk.bound == risk.target
        assert shown_bound(document, name) is None


def test_bounds_of_earlier_certificates_are_those_of_each_risk_alone():
    rng = np.random.default_rng(3)
    calib = beta_scores(rng, 3000)
    certificate = fit_policy("softmax", calib=calib, select=beta_scores(rng, 400), risks=SETS["path"][0]).certificate
    earlier = as_earlier(certificate)
    assert certificate.certified
    assert (certificate.bounds, earlier.bounds) == ("joint", None)
    for name, risk in earlier.risks.items():
        assert risk.bound == pytest.approx(float(binomial_upper(risk.errors, risk.n, risk.delta)))
        assert risk.bound <= certificate.risks[name].bound <= risk.target
        assert shown_bound(earlier.to_document(), name) is None
        shown = shown_bound(certificate.to_document(), name)
        assert shown == (certificate.risks[name].bound if certificate.risks[name].bound < risk.target else None)
    assert "alone" not in certificate.to_document()["risks"]["fnr"]


# ---- that it holds -----------------------------------------------------------------------------------------------


def test_at_fixed_thresholds_the_joint_bound_fails_in_delta_of_the_draws_at_most():
    """The proof in numbers, eight risks at a fixed pair: each bound alone at delta lies below a true risk far more
    often.
    """
    rng, draws, n = np.random.default_rng(0), 20_000, 400
    target = np.array([0.02, 0.02, 0.05, 0.05, 0.05, 0.1, 0.1, 0.1])
    for true in (target, 0.8 * target, target * np.linspace(0.2, 1.0, 8)):
        alone = binomial_upper(rng.binomial(n, true, (draws, 8)), n, DELTA)
        scale = (alone / target).max(axis=1, keepdims=True)
        assert (true > scale * target).any(axis=1).mean() <= limit(draws)
        assert (true > alone).any(axis=1).mean() > 0.2


@pytest.mark.parametrize("targets", [{"fnr": 0.05, "fpr": 0.05}, {"fnr": 0.05, "fpr": 0.05, "error": 0.04}])
def test_along_the_path_the_joint_bound_holds_and_bounds_alone_do_not(targets):
    """Thresholds that were chosen by looking, 1,200 draws on six paths; the control is what was printed before."""
    rng, n, each = np.random.default_rng(7), 5000, 200
    request = Request(targets, 1 - DELTA, classes=("0", "1"))
    joint = alone = 0
    for _ in range(6):
        select = beta_scores(rng, 300, SHARE)
        fit = rule(request, n, select.margin, select.known_labels)
        for _ in range(each):
            calib = beta_scores(rng, n, SHARE)
            choice = fit(calib.margin, calib.known_labels)
            sample = Units(calib.margin, calib.known_labels)
            if not np.logical_or(*choice.thresholds.exits(sample.score)).any():
                continue
            risks = measured_risks(choice.thresholds, sample, request, choice.delta, True)
            true = truth(choice.thresholds.lo, choice.thresholds.hi)
            alone += any(true[name] > risk.bound for name, risk in risks.items())
            joint += any(true[name] > risk.bound for name, risk in joint_risks(risks, at_end=choice.at_end).items())
    assert joint / (6 * each) <= limit(6 * each)
    assert alone / (6 * each) > limit(6 * each)


def simulate(targets: dict[str, float], options: dict, draws: int, seed: int) -> tuple[float, float]:
    """(share of draws in which some true risk is above its printed bound, the same for bounds alone), by fit_policy."""
    rng = np.random.default_rng(seed)
    above = alone = certified = 0
    for _ in range(draws):
        select, calib = beta_scores(rng, 300, SHARE), beta_scores(rng, 3000, SHARE)
        policy = fit_policy("softmax", select=select, calib=calib, risks=targets, confidence=1 - DELTA, **options)
        certified += policy.certified
        if policy.certified:
            true, risks = truth(policy.lo, policy.hi), policy.certificate.risks.items()
            above += any(true[name] > risk.bound for name, risk in risks)
            alone += any(true[name] > risk.alone for name, risk in risks)
    assert certified > 0.9 * draws
    return above / draws, alone / draws


@pytest.mark.slow
@pytest.mark.parametrize("name", SETS)
def test_printed_bounds_hold_in_3000_draws(name):
    targets, options = SETS[name]
    above, alone = simulate(targets, options, 3000, seed=17)
    print(f"{name}: above its printed bound {above:.4f}, above its bound alone {alone:.4f}")
    assert above <= limit(3000)
    if name == "path":
        assert alone > limit(3000)


@pytest.mark.slow
@pytest.mark.parametrize("risks", [{"error": 0.05}, {"fnr.cat": 0.1, "fnr.dog": 0.1, "fnr.owl": 0.1}], ids=str)
def test_printed_bounds_hold_for_more_than_two_classes(risks):
    rng, draws = np.random.default_rng(19), 1000
    population = draw(rng, 60_000)
    above = alone = 0
    for _ in range(draws):
        select, calib = (population.take(rng.integers(0, len(population), size)) for size in (400, 2000))
        policy = fit_policy("softmax", select=select, calib=calib, risks=risks, confidence=1 - DELTA, classes=NAMES)
        decided = policy.decide(population)
        shares, _, _ = exit_shares(decided.exit, decided.label, population.known_labels, NAMES)
        true = {name: shares[name].hits.sum() / max(shares[name].base.sum(), 1) for name in risks}
        above += any(true[name] > risk.bound for name, risk in policy.certificate.risks.items())
        alone += any(true[name] > risk.alone for name, risk in policy.certificate.risks.items())
    print(f"{risks}: above its printed bound {above / draws:.4f}, above its bound alone {alone / draws:.4f}")
    assert above / draws <= limit(draws)
    assert len(risks) == 1 or alone / draws > limit(draws)


@pytest.mark.slow
def test_printed_bounds_of_scrc_i_hold():
    rng, draws = np.random.default_rng(23), 3000
    population = beta_scores(rng, 200_000, SHARE)
    labels = population.known_labels
    above = 0
    for _ in range(draws):
        calib = population.take(rng.integers(0, len(population), 1500))
        policy = fit_policy(
            "scrc", calib=calib, coverage=0.7, risks={"miss_rate": 0.03, "false_exit_rate": 0.03}, confidence=1 - DELTA
        )
        selected, inside = policy.sets(population)
        true = {
            name: float((selected & ~inside[:, k] & (labels == k)).sum() / (selected & (labels == k)).sum())
            for name, k in (("miss_rate", 1), ("false_exit_rate", 0))
        }
        above += any(true[name] > risk.bound for name, risk in policy.certificate.risks.items())
    print(f"scrc I: above its printed bound {above / draws:.4f}")
    assert above / draws <= limit(draws)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["group", "group_mean"])
def test_printed_bounds_hold_where_groups_are_counted(unit):
    """400 videos of 6 frames that agree a little; risks tested together along the path, in group_mean by betting."""
    rng, draws, groups, size = np.random.default_rng(29), 600, 400, 6
    risks = {"fnr": 0.06, "fpr": 0.06}

    def videos(prefix: str, count: int) -> Scores:
        labels = np.repeat(rng.integers(0, 2, count), size)
        shared = np.repeat(rng.normal(0, np.sqrt(0.2), count), size)
        score = (labels - 0.5) * 3.0 + shared + np.sqrt(0.8) * rng.normal(size=count * size)
        return Scores(
            logits=np.stack([np.zeros(count * size), score], axis=1),
            labels=labels,
            groups=np.repeat([f"{prefix}{number}" for number in range(count)], size),
            ids=[f"{prefix}{number}" for number in range(count * size)],
        )

    above = certified = 0
    for number in range(draws):
        policy = fit_policy(
            "softmax", select=videos("s", 80), calib=videos("c", groups), risks=risks, unit=unit, seed=number
        )
        if not policy.certified:
            continue
        certified += 1
        lo, hi = (-np.inf if policy.lo is None else policy.lo), (np.inf if policy.hi is None else policy.hi)
        miss, right, false, right0 = norm.cdf(lo - 1.5), norm.sf(hi - 1.5), norm.sf(hi + 1.5), norm.cdf(lo + 1.5)
        true = {"fnr": miss / max(miss + right, 1e-300), "fpr": false / max(false + right0, 1e-300)}
        above += any(true[name] > risk.bound for name, risk in policy.certificate.risks.items())
    print(f"{unit}: above its printed bound {above / draws:.4f}, certified {certified / draws:.3f}")
    assert certified > 0.5 * draws
    assert above / draws <= limit(draws)
