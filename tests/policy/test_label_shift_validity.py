"""At 10, 50 and 90 % positives: what is certified of one class holds, `error` holds where it is stated for, and only
there.

Each draw takes val_select and val_calib at the population's own balance and fits the real policy. The truth at a
balance follows from the rates within each class of the whole population, weighed: exact, no sample. The control is an
`error` certified at the balance of val_calib and used at another one.
"""

from __future__ import annotations

import numpy as np
import pytest

from stage1 import Scores, fit_policy
from stage1.calibration import choose_map
from stage1.evaluation.label_shift import estimate_prior
from stage1.evaluation.restate import ClassRates, restate
from stage1.risk import binomial_lower
from stage1.scores import read_scores

PRIORS = (0.1, 0.5, 0.9)


def simulated_population(n=60_000):
    """30 % positives, harder than negatives: the error of any rule rises with their share."""
    rng = np.random.default_rng(0)
    labels = (rng.random(n) < 0.3).astype(int)
    margin = 3.0 * (labels - 0.5) + rng.normal(size=n) * np.where(labels == 1, 1.3, 0.8)
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels)


def at_balance(population, rng, n, prior):
    """n rows with replacement, each positive with probability `prior`."""
    positives = rng.binomial(n, prior)
    rows = [
        rng.choice(np.flatnonzero(population.labels == label), count)
        for label, count in ((1, positives), (0, n - positives))
    ]
    return population.take(np.concatenate(rows))


def class_rates(policy, population):
    decision = policy.decide(population)
    return ClassRates.measured(decision.exit, decision.label, population.labels)


def risks_at(policy, population, prior):
    """Every risk on the population at this balance: counted on rows weighed to it, not by the formulas under test."""
    decision, labels = policy.decide(population), population.labels
    share = population.labels.mean()
    weight = np.where(labels == 1, prior / share, (1 - prior) / (1 - share))
    wrong = decision.exit & (decision.label != labels)

    def ratio(hits, base):
        return float(weight[hits & base].sum() / weight[base].sum()) if base.any() else 0.0

    positive, negative = labels == 1, labels == 0
    return {
        "fnr": ratio(wrong, positive & decision.exit),
        "miss_rate": ratio(wrong, positive),
        "fpr": ratio(wrong, negative & decision.exit),
        "false_exit_rate": ratio(wrong, negative),
        "error": ratio(wrong, decision.exit),
    }


def violations(population, risks, draws, *, target_prior=None, delta=0.1, n_select=300, n_calib=1500):
    """prior -> how many of the draws certified something that is false at this balance; and the share certified."""
    broken, certified = dict.fromkeys(PRIORS, 0), 0
    own = float(population.labels.mean())
    for seed in range(draws):
        rng = np.random.default_rng((seed, 3))
        policy = fit_policy(
            "softmax",
            select=at_balance(population, rng, n_select, own),
            calib=at_balance(population, rng, n_calib, own),
            risks=risks,
            confidence=1 - delta,
            target_prior=target_prior,
        )
        certified += policy.certified
        for prior in PRIORS:
            found = risks_at(policy, population, prior)
            broken[prior] += policy.certified and any(found[name] > target for name, target in risks.items())
    return broken, certified / draws


def kept(count, draws, delta):
    """No evidence (95 %, one-sided... of both tails) that it happens more often than delta."""
    return float(binomial_lower(count, draws, 0.025)) <= delta


def check_certificates(population, draws, level):
    """level: target of the risks, chosen so that certificates are made and their bounds are near."""
    for risks in (
        {"fnr": level, "false_exit_rate": level},
        {"fnr": level, "fpr": level},
        {"miss_rate": level, "false_exit_rate": level},
    ):
        broken, certified = violations(population, risks, draws)
        assert certified > 0.9, risks
        for prior in PRIORS:
            assert kept(broken[prior], draws, 0.1), (risks, prior, broken)
        assert len(set(broken.values())) == 1  # one class at a time: the same draws at every balance


def check_error(population, draws, level):
    for reported in PRIORS:
        broken, certified = violations(population, {"error": level}, draws, target_prior=reported)
        assert kept(broken[reported], draws, 0.1), (reported, broken)
        assert certified > 0.5, (reported, certified)
    # the control: certified for the balance of val_calib, where the true error is lower than at 90 % positives
    broken, certified = violations(population, {"error": level}, draws)
    assert certified > 0.9
    assert not kept(broken[0.9], draws, 0.1), broken


def check_intervals(population, draws, n_resamples, methods=("bbse", "mlls")):
    """The interval of the prior covers at its level; the map's kind is chosen on val_select, the map fitted on the
    source.
    """
    own = float(population.labels.mean())
    rates = {}
    for prior in PRIORS:
        hits = dict.fromkeys(methods, 0)
        for seed in range(draws):
            rng = np.random.default_rng((seed, round(100 * prior), 4))
            select, source = at_balance(population, rng, 400, own), at_balance(population, rng, 1200, own)
            target = Scores(logits=at_balance(population, rng, 800, prior).logits)
            chosen = choose_map(select, candidates=["platt", "beta"]).map if "mlls" in methods else None
            fitted = None if chosen is None else chosen.refit(source)
            for method in methods:
                found = estimate_prior(
                    source, target, method=method, calibration=fitted, n_resamples=n_resamples, seed=seed
                )
                hits[method] += found.low[1] <= prior <= found.high[1]
        rates |= {(method, prior): count / draws for method, count in hits.items()}
    return rates


def within(rate, draws, level=0.95):
    return rate >= level - 3 * np.sqrt(level * (1 - level) / draws)


# ---- fast --------------------------------------------------------------------------------------------------------


def test_class_conditional_certificates_hold_at_every_balance():
    population = simulated_population(20_000)
    risks = {"fnr": 0.05, "false_exit_rate": 0.05}
    broken, certified = violations(population, risks, 120)
    assert certified > 0.9
    assert all(kept(count, 120, 0.1) for count in broken.values()), broken


def test_error_holds_at_the_stated_balance_and_not_elsewhere():
    population = simulated_population(20_000)
    draws = 30
    broken, certified = violations(population, {"error": 0.05}, draws, target_prior=0.9, n_select=200)
    assert certified > 0.5, certified
    assert kept(broken[0.9], draws, 0.1), broken
    control, certified = violations(population, {"error": 0.05}, draws, n_select=200)
    assert certified > 0.9, certified
    assert not kept(control[0.9], draws, 0.1), control


def test_the_restated_error_is_that_of_the_weighed_population():
    population = simulated_population(20_000)
    policy = fit_policy("softmax", calib=population.take(np.arange(2000)), risks={"fnr": 0.05, "false_exit_rate": 0.05})
    for prior in PRIORS:
        assert restate(prior, class_rates(policy, population)).error == pytest.approx(
            risks_at(policy, population, prior)["error"]
        )


def test_the_interval_of_the_prior_covers():
    rates = check_intervals(simulated_population(20_000), 40, 60, methods=("bbse",))
    assert within(np.mean(list(rates.values())), 120), rates


# ---- long, on simulated and on real scores -----------------------------------------------------------------------


@pytest.fixture(params=["simulated", "coco"])
def population(request):
    if request.param == "simulated":
        return simulated_population()
    return read_scores(request.getfixturevalue("coco_scores"), values="probabilities", columns={"scores": "prob"})[0]


@pytest.mark.slow
def test_certificates_hold_at_every_balance_in_full(population):
    check_certificates(population, 300, 0.05)


@pytest.mark.slow
def test_error_at_a_stated_balance_in_full(population):
    check_error(population, 150, 0.05 if len(population) == 60_000 else 0.03)


@pytest.mark.slow
def test_intervals_of_the_prior_in_full(population):
    rates = check_intervals(population, 60, 80)
    for (method, prior), rate in rates.items():
        # mlls rests on the map, and on real scores no map is quite right: .91 of 100 at 90 % positives of COCO,
        # measured
        least = 0.95 if method == "bbse" or len(population) == 60_000 else 0.9
        assert within(rate, 60, least), (method, prior, rate)
