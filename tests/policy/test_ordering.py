"""The calibrated path: valid for every target set, and as strong as it is known to be."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest import approx
from scipy import stats

from stage1 import Scores, fit_policy
from stage1.errors import ConfigError
from stage1.policy.counts import certifies, count_exits, coverage_holds, coverage_lower, risk_upper
from stage1.policy.ordering import Goal, calibrated_path
from stage1.policy.score_maps import fit_logistic
from stage1.risk import binomial_pvalue
from stage1.risk.testing import fixed_sequence

SEPARATION = 2.5


def gaussian(rng, n, positive_share=0.3) -> Scores:
    labels = (rng.random(n) < positive_share).astype(np.int64)
    margin = rng.normal(size=n) + SEPARATION * labels
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels)


def truth(policy, prior=0.3) -> dict[str, float]:
    """Exact risks and coverage in this population."""
    lo = -np.inf if policy.lo is None else policy.lo
    hi = np.inf if policy.hi is None else policy.hi
    m, c = stats.norm.cdf(lo - SEPARATION), stats.norm.sf(hi - SEPARATION)
    f, t = stats.norm.sf(hi), stats.norm.cdf(lo)
    wrong, right = prior * m + (1 - prior) * f, prior * c + (1 - prior) * t
    return {
        "fnr": m / (m + c) if m else 0.0,
        "fpr": f / (f + t) if f else 0.0,
        "miss_rate": m,
        "false_exit_rate": f,
        "error": wrong / (wrong + right) if wrong else 0.0,
        "coverage": wrong + right,
        "positive": m + c,
        "negative": f + t,
    }


def simulate(draws, total, share, seed, **request):
    """(share of draws in which a claim is false, coverage of each draw, share certified)."""
    rng = np.random.default_rng(seed)
    broken, coverage, certified = 0, [], 0
    for _ in range(draws):
        scores = gaussian(rng, total)
        cut = int(total * share)
        policy = fit_policy("softmax", select=scores.take(range(cut)), calib=scores.take(range(cut, total)), **request)
        true = truth(policy, request.get("target_prior") or 0.3)
        if policy.certified:
            certified += 1
            false = any(true[name] > target for name, target in request["risks"].items())
            false |= request.get("coverage") is not None and true["coverage"] < request["coverage"]
            for name, floor in (request.get("class_coverage") or {}).items():
                false |= true["positive" if name == "1" else "negative"] < floor
            broken += bool(false)
        coverage.append(truth(policy)["coverage"])
    return broken / draws, np.array(coverage), certified / draws


# ---- pieces


def test_fixed_sequence_stops_at_the_first_failure():
    assert fixed_sequence([True, True, False, True]) == 1
    assert fixed_sequence([False, True]) is None
    assert fixed_sequence([False, True, True], start=1) == 2


@given(
    st.lists(st.integers(-4, 4), min_size=1, max_size=40),
    st.integers(-5, 5),
    st.integers(0, 5),
    st.randoms(use_true_random=False),
)
def test_counts_equal_a_plain_loop(values, lo, width, random):
    score = np.array(values, dtype=float)
    labels = np.array([random.randint(0, 1) for _ in values])
    hi = lo + width
    exits = count_exits(score[labels == 0], score[labels == 1], np.array([float(lo)]), np.array([float(hi)]))
    assert exits.miss[0] == sum(s < lo and y == 1 for s, y in zip(score, labels, strict=True))
    assert exits.right_positive[0] == sum(s > hi and y == 1 for s, y in zip(score, labels, strict=True))
    assert exits.false_exit[0] == sum(s > hi and y == 0 for s, y in zip(score, labels, strict=True))
    assert exits.right_negative[0] == sum(s < lo and y == 0 for s, y in zip(score, labels, strict=True))


def test_union_null_takes_the_largest_pvalue():
    exits = count_exits(np.linspace(-3, 0, 400), np.linspace(0, 3, 400), np.array([-0.01, 0.5]), np.array([0.01, 0.0]))
    targets = {"fnr": 0.02, "fpr": 0.02}
    p = np.max([binomial_pvalue(*exits.counts(name), 0.02) for name in targets], axis=0)
    assert (certifies(exits, targets, 0.05, None) == (p <= 0.05)).all()


def test_logistic_regression_agrees_with_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the oracle")
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)) * [1, 5, 0.1] + 2
    y = (rng.random(500) < 1 / (1 + np.exp(-(x[:, 0] - 0.3 * x[:, 1])))).astype(int)
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    oracle = linear_model.LogisticRegression(C=1 / (1e-3 * 500), tol=1e-10, max_iter=1000).fit(standard, y)
    assert fit_logistic(x, y)(x) == approx(oracle.decision_function(standard), abs=1e-5)


def test_path_goes_from_safe_to_risky():
    scores = gaussian(np.random.default_rng(1), 2000)
    path = calibrated_path(scores.margin, scores.labels, Goal({"fnr": 0.05, "fpr": 0.05}, 5000, 0.05))
    assert (np.diff(path.lo) >= 0).all()
    assert (np.diff(path.hi) <= 0).all()
    assert (path.lo <= path.hi).all()
    assert calibrated_path(scores.margin[:5], scores.labels[:5], Goal({"fnr": 0.05, "fpr": 0.05}, 5000, 0.05)) is None


def plain_pair(model, targets, prior=None, cuts=None):
    """One pair by a plain loop over every cut: the oracle of the vectorised fixed point."""
    last = len(model.below1) - 1
    low, high = (last, 0) if cuts is None else cuts
    while True:
        before = low, high
        if "miss_rate" in targets:
            low = max(g for g in range(low + 1) if model.below1[g] <= targets["miss_rate"])
        if "fnr" in targets:
            odds = targets["fnr"] / (1 - targets["fnr"])
            low = max(g for g in range(low + 1) if model.below1[g] <= odds * (1 - model.below1[high]))
        if "false_exit_rate" in targets:
            high = min(g for g in range(high, last + 1) if model.below0[g] >= 1 - targets["false_exit_rate"])
        if "fpr" in targets:
            odds = targets["fpr"] / (1 - targets["fpr"])
            high = min(g for g in range(high, last + 1) if model.below0[g] >= 1 - odds * model.below0[low])
        if (low, high) == before:
            return (low, high) if low <= high else ((low + high) // 2,) * 2


@pytest.mark.parametrize("ends", [(150, 0), (80, 81), (60, 95)], ids=["free", "limited", "a band between"])
@pytest.mark.parametrize("risks", [("fnr", "fpr"), ("miss_rate", "fpr"), ("fnr", "false_exit_rate")])
def test_all_shares_at_once_are_the_fixed_points_of_a_plain_loop(risks, ends):
    from stage1.policy.ordering import _class_model, _solve

    posterior = np.sort(np.random.default_rng(3).beta(0.3, 0.4, size=150))
    model = _class_model(posterior, np.ones(150))
    goal = Goal(dict.fromkeys(risks, 0.05), 1000, 0.05)
    shares = np.geomspace(0.1, 18.0, 12)
    low, high = _solve(model, goal, shares, ends)
    for share, ours in zip(shares, zip(low, high, strict=True), strict=True):
        assert ours == plain_pair(model, dict.fromkeys(risks, share * 0.05), cuts=ends)
    assert len({*low}) > 4


def test_steps_shrink_as_more_errors_are_expected():
    from stage1.policy.ordering import _shares

    labels = np.repeat([0, 1], [70, 30])
    few, many = (_shares(labels, Goal({"fnr": 0.02, "fpr": 0.05}, n, 0.05)) for n in (3000, 36_000))
    assert len(few) == 160
    assert 160 < len(many) <= 480
    assert many[1] / many[0] - 1 == approx(0.2 / np.sqrt(0.3 * 36_000 * 0.02), rel=0.15)
    assert (few[0], few[-1]) == (many[0], many[-1])


def saturated(rng, n) -> Scores:
    """Negatives close together, positives far apart, a third of all at one end: maps of scores and of ranks
    disagree.
    """
    labels = (rng.random(n) < 0.5).astype(np.int64)
    z = rng.normal(size=n) + 4.0 * (labels - 0.5)
    margin = np.where(z > 2.3, 700.0, np.where(z > 0, 6.0 * z, 0.5 * z))
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels)


def test_a_path_is_hedged_where_the_maps_disagree_only():
    goal = Goal({"fnr": 0.02, "fpr": 0.02}, 2700, 0.05)
    sure = [gaussian(np.random.default_rng(seed), 800) for seed in range(8)]
    unsure = [saturated(np.random.default_rng(seed), 480) for seed in range(8)]
    hedged = [
        [calibrated_path(scores.margin, scores.labels, goal).second is not None for scores in kind]
        for kind in (sure, unsure)
    ]
    assert sum(hedged[0]) <= 2
    assert sum(hedged[1]) >= 6
    path = calibrated_path(unsure[0].margin, unsure[0].labels, goal)
    assert path.second is None or path.second.second is None


def test_a_hedged_path_shares_its_delta():
    from dataclasses import replace

    from stage1.policy.ordering import DELTA_SPLIT, CandidateSequence
    from stage1.policy.target import Request
    from stage1.policy.threshold_choice import _along

    rng = np.random.default_rng(2)
    scores = gaussian(rng, 20_000)
    request = Request({"fnr": 0.05, "fpr": 0.05})
    safe = CandidateSequence(np.array([0.0]), np.array([2.8]), 0, 0.0, "safe")
    hopeless = CandidateSequence(np.array([1.25]), np.array([1.25]), 0, 0.0, "hopeless")

    def test(path):
        return _along(path, scores.margin, scores.labels, request, 0.05)

    assert test(safe).delta == 0.05
    assert test(replace(safe, second=hopeless)).delta == approx(0.05 * (1 - DELTA_SPLIT))
    insured = test(replace(hopeless, second=safe))
    assert insured.delta == approx(0.05 * DELTA_SPLIT)
    assert (insured.thresholds.lo, insured.thresholds.hi) == (0.0, 2.8)
    refused = test(replace(hopeless, second=hopeless))
    assert refused.thresholds.lo is None
    assert refused.first_failure is not None


@pytest.mark.parametrize("draws", [150, pytest.param(1500, marks=pytest.mark.slow)])
def test_a_hedged_path_keeps_its_promise(draws):
    """Two different paths and the whole delta: the worst case for a first failure that is forgiven."""
    from stage1.policy.ordering import CandidateSequence
    from stage1.policy.target import Request
    from stage1.policy.threshold_choice import _along

    rng, delta = np.random.default_rng(11), 0.1
    # Each pair breaks one promise by a hair: every certificate is false.
    first = CandidateSequence(
        np.array([stats.norm.ppf(0.0501) + SEPARATION]), np.array([9.0]), 0, 0.0, "too many misses"
    )
    request = Request({"miss_rate": 0.05, "false_exit_rate": 0.05}, 1 - delta)
    second = CandidateSequence(np.array([-9.0]), np.array([stats.norm.isf(0.0501)]), 0, 0.0, "too many false exits")
    both = CandidateSequence(first.lo, first.hi, 0, 0.0, "first", second)
    certified = unfair = 0
    for _ in range(draws):
        scores = gaussian(rng, 3000)
        certified += _along(both, scores.margin, scores.labels, request, delta).path is not None
        # The control: both at the full delta.
        unfair += any(
            _along(path, scores.margin, scores.labels, request, delta).path is not None for path in (first, second)
        )
    error = np.sqrt(delta * (1 - delta) / draws)
    assert certified / draws <= delta + 3 * error
    assert unfair / draws > delta + 2 * error


def test_error_at_a_prior_is_covered_and_not_vacuous():
    rng, draws = np.random.default_rng(5), 400
    lo, hi = np.array([0.5]), np.array([2.0])
    policy = type("Pair", (), {"lo": 0.5, "hi": 2.0})
    true = truth(policy, prior=0.6)
    false, high, bounds, floors = [], [], [], []
    for draw in range(draws):
        scores = gaussian(rng, 3000)
        exits = count_exits(scores.margin[scores.labels == 0], scores.margin[scores.labels == 1], lo, hi)
        # A bound below the truth is a certificate of the truth.
        false.append(bool(certifies(exits, {"error": true["error"]}, 0.1, 0.6)[0]))
        high.append(bool(coverage_holds(exits, true["coverage"], 0.6, 0.1)[0]))
        if draw < 40:
            bounds.append(float(risk_upper(exits, "error", 0.1, 0.6)[0]))
            floors.append(float(coverage_lower(exits, 0.6, 0.1)[0]))
            assert (bounds[-1] < true["error"]) == false[-1]
            assert (floors[-1] > true["coverage"]) == high[-1]
    assert np.mean(false) <= 0.1
    assert np.mean(high) <= 0.1
    assert np.mean(bounds) < 1.6 * true["error"]
    assert np.mean(floors) > true["coverage"] - 0.03


# ---- validity and power

REQUESTS = {
    "both ratios": {"risks": {"fnr": 0.05, "fpr": 0.05}},
    "error": {"risks": {"error": 0.03}},
    "error at a prior": {"risks": {"error": 0.05}, "target_prior": 0.5},
    "all": {"risks": {"fnr": 0.06, "fpr": 0.04, "miss_rate": 0.05, "false_exit_rate": 0.04, "error": 0.05}},
    "walk with a floor": {"risks": {"fnr": 0.1, "false_exit_rate": 0.1}, "coverage": 0.5},
    "class floors": {"risks": {"fnr": 0.1, "fpr": 0.1}, "class_coverage": {"0": 0.4, "1": 0.4}},
}


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
def test_every_target_set_keeps_its_promise_and_exits(request_):
    draws, delta = 25, 0.1
    violation, coverage, certified = simulate(draws, 4000, 0.15, seed=3, confidence=1 - delta, **request_)
    assert violation <= delta + 3 * np.sqrt(delta * (1 - delta) / draws)
    assert certified >= 0.8
    assert coverage.mean() >= 0.4


@pytest.mark.slow
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS.keys())
def test_every_target_set_keeps_its_promise_in_1000_draws(request_):
    draws, delta = 1000, 0.1
    violation, coverage, certified = simulate(draws, 4000, 0.15, seed=4, confidence=1 - delta, **request_)
    print(f"{request_}: violation {violation:.3f}, coverage {coverage.mean():.3f}, certified {certified:.3f}")
    assert violation <= delta + 3 * np.sqrt(delta * (1 - delta) / draws)
    assert certified >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("total, coverage", [(8000, 0.46), (40000, 0.55)])
def test_power_of_both_ratios(total, coverage):
    """Issue 5: mean certified coverage at fnr, fpr <= .02, 95 %, 10 % for selection; violation <= .05 + 3 se."""
    draws = 120
    violation, covered, _ = simulate(draws, total, 0.1, seed=8, risks={"fnr": 0.02, "fpr": 0.02}, confidence=0.95)
    error = covered.std() / np.sqrt(draws)
    print(f"{total}: coverage {covered.mean():.4f} (se {error:.4f}), violation {violation:.3f}")
    assert violation <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    assert covered.mean() + 3 * error >= coverage


# ---- refusals


def test_a_floor_that_cannot_be_reached_says_so():
    scores = gaussian(np.random.default_rng(0), 4000)
    select, calib = scores.take(range(600)), scores.take(range(600, 4000))
    policy = fit_policy("softmax", select=select, calib=calib, risks={"fnr": 0.02, "fpr": 0.02}, coverage=0.99)
    assert not policy.certified
    assert "coverage >= 0.99 is not reached" in policy.certificate.reason
    assert not policy.decide(scores).exit.any()


def test_a_path_that_fails_at_once_names_the_risk_and_what_it_takes():
    rng = np.random.default_rng(0)
    scores = gaussian(rng, 400)
    policy = fit_policy(
        "softmax", select=scores.take(range(200)), calib=scores.take(range(200, 400)), risks={"fnr": 0.01, "fpr": 0.01}
    )
    assert not policy.certified
    assert "exact bound" in policy.certificate.reason
    assert "risks={fnr: " in policy.certificate.needed


def test_what_it_takes_is_also_simulated_from_val_select():
    scores = gaussian(np.random.default_rng(0), 900)
    policy = fit_policy(
        "softmax",
        select=scores.take(range(600)),
        calib=scores.take(range(600, 900)),
        risks={"fnr": 0.05, "false_exit_rate": 0.05},
    )
    assert policy.lo is None
    assert "simulated from the labelled ones" in policy.certificate.needed
    enough = int(policy.certificate.needed.removeprefix("about ").split()[0])
    assert enough in (600, 1200, 2400, 4800, 9600, 19200)
    more = gaussian(np.random.default_rng(1), 2 * enough)
    assert fit_policy("softmax", calib=more, risks={"fnr": 0.05, "false_exit_rate": 0.05}).lo is not None


def test_certificate_carries_floor_and_prior():
    scores = gaussian(np.random.default_rng(0), 6000)
    policy = fit_policy(
        "softmax",
        select=scores.take(range(900)),
        calib=scores.take(range(900, 6000)),
        risks={"error": 0.05},
        coverage=0.5,
        class_coverage={"roadwork": 0.4},
        target_prior=0.5,
        classes=("none", "roadwork"),
    )
    certificate = policy.certificate
    assert certificate.certified
    assert certificate.coverage.bound >= 0.5
    assert certificate.per_class["roadwork"].bound >= 0.4
    assert "at most 5 % are answered wrongly (where 50 % of the images are roadwork)" in certificate.statement
    assert "at least 50 % of images exit" in certificate.statement


@pytest.mark.parametrize(
    "options, message",
    [
        ({"coverage": 1.0}, "coverage"),
        ({"target_prior": 0.0}, "target_prior"),
        ({"class_coverage": {"x": 0.5}}, "class_coverage.x"),
    ],
)
def test_floors_and_prior_out_of_range(options, message):
    scores = gaussian(np.random.default_rng(0), 400)
    with pytest.raises(ConfigError, match=message):
        fit_policy("softmax", select=scores, calib=scores, risks={"error": 0.05}, **options)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(40, 400),
    st.floats(0, 5),
    st.booleans(),
    st.sampled_from(list(REQUESTS.values())),
)
def test_random_scores_never_crash_and_never_exceed(seed, n, separation, ties, request_):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 2 * n)
    margin = rng.normal(size=2 * n) + separation * labels
    scores = Scores(logits=np.stack([np.zeros(2 * n), np.round(margin, 1) if ties else margin], axis=1), labels=labels)
    select = scores.take(range(n))
    if min(np.bincount(select.labels, minlength=2)) < 10:
        with pytest.raises(ConfigError, match="val_select"):
            fit_policy("softmax", select=select, calib=scores.take(range(n, 2 * n)), **request_)
        return
    policy = fit_policy("softmax", select=select, calib=scores.take(range(n, 2 * n)), **request_)
    for risk in policy.certificate.risks.values():
        assert not policy.certified or risk.bound <= risk.target
    assert policy.certified == policy.decide(scores.take(range(n, 2 * n))).exit.any()
