"""Coverage and error at a stated class balance."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.errors import DataError
from stage1.evaluation import bootstrap, exit_rates, prior_weights
from stage1.evaluation.restate import (
    ClassCounts,
    ClassRates,
    restate,
    restate_between,
    restated_interval,
    restated_metrics,
)

RATES = ClassRates.binary(m=0.01, c=0.6, f=0.02, t=0.7)


@pytest.mark.parametrize("prior, error", [(0.1, 0.026798), (0.5, 0.022556), (0.9, 0.017713)])
def test_worked_values(prior, error):
    found = restate(prior, RATES)
    assert found.error == pytest.approx(error, abs=5e-7)
    assert found.coverage == pytest.approx(prior * 0.61 + (1 - prior) * 0.72)


def test_at_its_own_balance_it_is_what_was_observed():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 500)
    leaves, answer = rng.random(500) < 0.7, np.where(rng.random(500) < 0.8, labels, rng.integers(0, 3, 500))
    found = restate(np.bincount(labels) / 500, ClassRates.measured(leaves, answer, labels, 3))
    observed = exit_rates(leaves, answer, labels)
    assert found.error == pytest.approx(observed["error"]["observed"])
    assert found.coverage == pytest.approx(observed["coverage"]["overall"]["value"])


def test_at_another_balance_it_is_what_a_sample_of_that_balance_shows():
    """Rates measured at 30 % positives, restated, against 200,000 fresh rows at 10, 50 and 90 %; the error measured at
    30 % is the control."""
    rng = np.random.default_rng(1)

    def draw(n, prior):
        labels = (rng.random(n) < prior).astype(int)
        margin = 2.0 * (labels - 0.5) + rng.normal(size=n) * np.where(labels == 1, 1.4, 0.7)
        return np.abs(margin) > 0.5, (margin > 0).astype(int), labels

    measured = draw(200_000, 0.3)
    rates = ClassRates.measured(*measured)
    unmoved = restate(0.3, rates).error
    for prior in (0.1, 0.5, 0.9):
        fresh = exit_rates(*draw(200_000, prior))
        error, n = fresh["error"]["observed"], fresh["error"]["n"]
        tolerance = 4 * np.sqrt(error * (1 - error) * 2 / n)
        assert restate(prior, rates).error == pytest.approx(error, abs=tolerance)
        assert restate(prior, rates).coverage == pytest.approx(fresh["coverage"]["overall"]["value"], abs=0.006)
        assert abs(unmoved - error) > tolerance


def test_a_range_of_balances_is_bounded_by_its_ends():
    low, high = restate_between(0.1, 0.9, RATES)
    inside = [restate(prior, RATES) for prior in np.linspace(0.1, 0.9, 41)]
    assert low.error == pytest.approx(min(one.error for one in inside)) == pytest.approx(0.017713, abs=1e-6)
    assert high.error == pytest.approx(max(one.error for one in inside))
    assert (low.coverage, high.coverage) == pytest.approx((0.621, 0.709))


def test_nothing_exits():
    never = ClassRates(exits=(0.0, 0.5), errors=(0.0, 0.1))
    assert restate(0.0, never) == (0.0, None)
    assert restate_between(0.0, 0.5, never)[0].error == pytest.approx(0.2)


def test_bad_input_is_named():
    with pytest.raises(DataError, match="errors <= exits"):
        ClassRates(exits=(0.1, 0.5), errors=(0.2, 0.1))
    with pytest.raises(DataError, match="prior"):
        restate(1.2, RATES)
    with pytest.raises(DataError, match="3 shares"):
        restate(0.5, ClassRates(exits=(1, 1, 1), errors=(0, 0, 0)))
    with pytest.raises(DataError, match="low <= high"):
        restate_between(0.9, 0.1, RATES)
    with pytest.raises(DataError, match="no row of class 1"):
        ClassRates.measured([True], [0], [0])


# ---- with intervals ----------------------------------------------------------------------------------------------


def sample(rng, n, prior):
    """(exits, answers, labels) with m, c, f, t = .01, .6, .02, .7."""
    labels = (rng.random(n) < prior).astype(int)
    place = rng.random(n)
    wrong = place < np.where(labels == 1, 0.01, 0.02)
    leaves = place < np.where(labels == 1, 0.61, 0.72)
    return leaves, np.where(wrong, 1 - labels, labels), labels


def test_counts_give_the_observed_rates():
    rows = sample(np.random.default_rng(2), 400, 0.4)
    assert ClassCounts.counted(*rows).rates == ClassRates.measured(*rows)
    low, high = restated_interval([0.2, 0.8], ClassCounts.counted(*rows))[0]
    assert low < restate(0.8, ClassRates.measured(*rows)).coverage < high


@pytest.mark.parametrize("estimated", [False, True])
def test_intervals_hold_the_truth_and_need_the_uncertainty_of_the_prior(estimated):
    """Prior .9 estimated from 80 target rows; taken as stated, its error alone makes the interval miss."""
    truth, draws, level = restate(0.9, RATES), 300, 0.9
    held, naive = np.zeros(2), np.zeros(2)
    for seed in range(draws):
        rng = np.random.default_rng((seed, 5))
        # plenty of labelled rows where the prior is estimated: then it alone is uncertain
        n = np.array((700_000, 300_000)) if estimated else np.array((1000, 500))
        errors = rng.binomial(n, RATES.errors)
        right = rng.binomial(n - errors, (np.array(RATES.exits) - RATES.errors) / (1 - np.array(RATES.errors)))
        counts = ClassCounts(tuple(n.tolist()), tuple((errors + right).tolist()), tuple(errors.tolist()))
        share = rng.binomial(80, 0.9) / 80 if estimated else 0.9
        again = rng.binomial(80, share, 200) / 80 if estimated else np.array([share])
        found = restated_interval(np.stack([1 - again, again], axis=1), counts, level)
        alone = restated_interval([1 - share, share], counts, level)
        for index, value in enumerate(truth):
            held[index] += found[index][0] <= value <= found[index][1]
            naive[index] += alone[index][0] <= value <= alone[index][1]
    assert (held / draws >= level - 3 * np.sqrt(level * (1 - level) / draws)).all(), held / draws
    if estimated:
        assert naive[0] / draws < level - 0.2, naive / draws  # coverage moves much with the prior, error little


def test_an_interval_where_nothing_exits_knows_nothing_of_the_error():
    coverage, error = restated_interval([0.5, 0.5], ClassCounts(n=(50, 50), exits=(0, 0), errors=(0, 0)))
    assert coverage[0] == 0.0
    assert 0.0 < coverage[1] < 0.2
    assert error == (0.0, 1.0)


def test_metrics_are_those_of_rows_weighed_by_hand():
    rng = np.random.default_rng(3)
    labels = (rng.random(300) < 0.3).astype(int)
    confidence, wrong = rng.random(300), rng.random(300) < 0.2
    metrics = {"aurc": "aurc", "accuracy": "accuracy", "mean": lambda c, r, w: float((w * c).sum() / w.sum())}
    found = restated_metrics(
        metrics, confidence=confidence, residuals=wrong, labels=labels, groups=None, prior=0.8, n_resamples=200
    )
    plain = bootstrap(
        metrics,
        confidence=confidence,
        residuals=wrong,
        labels=labels,
        weights=prior_weights(labels, 0.8),
        n_resamples=200,
    )
    for name in metrics:
        assert found[name].value == pytest.approx(plain[name].value)
        # stratified draws keep the classes: here both are the same replicates
        assert (found[name].low, found[name].high) == pytest.approx((plain[name].low, plain[name].high))


def test_metrics_carry_the_uncertainty_of_the_prior_and_groups():
    rng = np.random.default_rng(4)
    labels = np.repeat(rng.integers(0, 2, 60), 10)
    wrong = rng.random(600) < np.where(labels == 1, 0.05, 0.4)
    options = {"confidence": rng.random(600), "residuals": wrong, "labels": labels, "prior": 0.5}

    def length(**more):
        one = restated_metrics({"accuracy": "accuracy"}, **options, **{"groups": None, **more})["accuracy"]
        return one.high - one.low

    again = np.clip(rng.normal(0.5, 0.15, 300), 0, 1)
    assert length(replicates=np.stack([1 - again, again], axis=1)) > 1.5 * length()
    copies = np.repeat(rng.random(60) < 0.3, 10)  # a group is right or wrong as a whole
    options["residuals"] = copies
    assert length(groups=np.repeat(np.arange(60), 10)) > 2 * length()


def test_bad_counts_and_priors_are_named():
    with pytest.raises(DataError, match="errors <= exits"):
        ClassCounts((5, 5), (2, 2), (3, 0))
    with pytest.raises(DataError, match="no row of class 1"):
        ClassCounts((5, 0), (2, 0), (1, 0))
    with pytest.raises(DataError, match="sum to 1"):
        restated_interval([0.5, 0.6], ClassCounts((5, 5), (2, 2), (1, 0)))
    with pytest.raises(DataError, match="each share needs rows"):
        restated_metrics(
            {}, confidence=np.ones(3), residuals=np.zeros(3), labels=np.zeros(3, dtype=int), groups=None, prior=0.5
        )
