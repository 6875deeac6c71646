"""The error rate at a stated class balance: against enumeration, in its properties, and at the boundary."""

from __future__ import annotations

from math import ceil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stage1.errors import DataError
from stage1.risk import binomial_lower, binomial_pvalue, binomial_upper
from stage1.risk.stratified import (
    Strata,
    stated_error,
    stratified_chance,
    stratified_minimum,
    stratified_passes,
    stratified_upper,
    weighted_share_passes,
    weighted_share_upper,
)

DELTA = 0.05


def enumerated(e1, x1, n1, e0, x0, n0, prior, level, delta, points=241):
    """sup over nulls on a grid of P(T <= seen), by summing every pair of counts; the intervals at the module's shares.

    Written from the definition: no cells, no blocks, no corners.
    """
    one, zero = prior / n1, (1 - prior) / n0
    if one > zero:
        e1, x1, n1, e0, x0, n0, prior, one, zero = e0, x0, n0, e1, x1, n1, 1 - prior, zero, one
    tail = 0.06 * delta / 4
    q1, q0 = ((float(binomial_lower(x, n, tail)), float(binomial_upper(x, n, tail))) for x, n in ((x1, n1), (x0, n0)))
    w = (prior * q1[0] / (prior * q1[0] + (1 - prior) * q0[1]), prior * q1[1] / (prior * q1[1] + (1 - prior) * q0[0]))
    limits = float(binomial_lower(e1, x1, 0.02 * delta)), float(binomial_upper(e1, x1, 0.02 * delta))
    wrong1, wrong0 = np.meshgrid(np.arange(x1 + 1), np.arange(x0 + 1), indexing="ij")
    inside = one * wrong1 + zero * wrong0 <= one * e1 + zero * e0 + 1e-12
    worst = 0.0
    for weight in np.linspace(*w, 7):
        for rate1 in np.linspace(*limits, points):
            rate0 = (level - weight * rate1) / (1 - weight)
            if rate0 <= 1:
                joint = np.outer(
                    stats.binom.pmf(np.arange(x1 + 1), x1, rate1), stats.binom.pmf(np.arange(x0 + 1), x0, max(rate0, 0))
                )
                worst = max(worst, float(joint[inside].sum()))
    return 0.1 * delta + worst


SMALL = [
    (1, 80, 100, 0, 30, 40, 0.5, 0.10),
    (2, 90, 100, 1, 38, 40, 0.3, 0.12),
    (0, 60, 60, 0, 25, 30, 0.6, 0.08),
    (1, 40, 60, 2, 70, 90, 0.8, 0.15),
    (0, 0, 20, 1, 60, 70, 0.2, 0.30),
]


@pytest.mark.parametrize("case", SMALL)
def test_the_bound_is_where_enumeration_says(case):
    *counts, prior, _ = case
    strata = Strata.of(*counts)
    upper = float(stratified_upper(strata, prior, DELTA)[0])
    # Cells bound the supremum from above: never below the enumeration, and close to it.
    assert enumerated(*counts, prior, upper, DELTA) <= DELTA + 1e-9
    assert enumerated(*counts, prior, 0.97 * upper, DELTA) > DELTA * 0.98


def test_one_class_alone_with_its_weight_known_is_close_to_clopper_pearson():
    """A prior near 1 leaves one binomial: the bound is its own at delta less what is spent."""
    strata = Strata.of(4, 500, 500, 0, 400, 400)
    upper = float(weighted_share_upper(strata, 0.999, DELTA)[0])
    alone = float(binomial_upper(4, 500, DELTA))
    assert alone * 0.99 < upper < alone * 1.06


@settings(max_examples=40, deadline=None)
@given(
    members=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    shares=st.tuples(*[st.floats(0, 1)] * 4),
    prior=st.floats(0.05, 0.95),
    level=st.floats(0.01, 0.5),
)
def test_decision_bound_and_mirror_agree(members, shares, prior, level):
    (n1, n0), (a, b, c, d) = members, shares
    x1, x0 = round(a * n1), round(b * n0)
    e1, e0 = round(c * c * x1), round(d * d * x0)
    strata, mirrored = Strata.of(e1, x1, n1, e0, x0, n0), Strata.of(e0, x0, n0, e1, x1, n1)
    passed = bool(stratified_passes(strata, prior, level, DELTA)[0])
    upper = float(stratified_upper(strata, prior, DELTA, level)[0])
    assert passed == (upper <= level)
    seen = float(stated_error(strata, prior)[0])
    assert np.isnan(seen) or upper >= seen
    if abs(prior / n1 - (1 - prior) / n0) > 1e-9:
        assert float(stratified_upper(mirrored, 1 - prior, DELTA)[0]) == pytest.approx(
            float(stratified_upper(strata, prior, DELTA)[0]), rel=2e-4
        )
    share = Strata.of(e1, n1, n1, e0, n0, n0)
    assert bool(weighted_share_passes(share, prior, level, DELTA)[0]) == (
        float(weighted_share_upper(share, prior, DELTA)[0]) <= level
    )


def test_no_exit_shows_nothing_and_impossible_counts_are_refused():
    assert stratified_upper(Strata.of(0, 0, 50, 0, 0, 50), 0.5, DELTA).tolist() == [1.0]
    assert not stratified_passes(Strata.of(0, 0, 50, 0, 0, 50), 0.5, 0.9, DELTA).any()
    with pytest.raises(DataError, match="positives"):
        Strata.of(3, 2, 50, 0, 0, 50)


def test_the_smallest_sample_without_errors_is_the_smallest():
    """Against a plain count upwards, the classes in the shares of the sample."""
    for n1, n0, prior in ((100, 100, 0.5), (300, 100, 0.5), (100, 300, 0.7)):
        found = stratified_minimum(Strata.of(0, n1, n1, 0, n0, n0), prior, 0.05, DELTA)
        unit = max(n1, n0)
        counted = next(
            (ceil(k * n1 / unit), ceil(k * n0 / unit))
            for k in range(1, 2000)
            if stratified_passes(
                Strata.of(0, a := ceil(k * n1 / unit), a, 0, b := ceil(k * n0 / unit), b), prior, 0.05, DELTA
            )[0]
        )
        assert found == sum(counted)
    assert stratified_minimum(Strata.of(0, 100, 100, 0, 0, 0), 0.5, 0.05, DELTA) is None


def drawn(rng, draws, n1, n0, exit1, exit0, rate1, rate0):
    x1, x0 = rng.binomial(n1, exit1, draws), rng.binomial(n0, exit0, draws)
    return Strata.of(rng.binomial(x1, rate1), x1, n1, rng.binomial(x0, rate0), x0, n0)


def at_level(level, prior, exit1, exit0, share):
    """(rate1, rate0) with an error of `level` among exits at `prior`, `share` of it wrong positives."""
    w = prior * exit1 / (prior * exit1 + (1 - prior) * exit0)
    return level * share / w, level * (1 - share) / (1 - w)


def thinned(strata, prior, rng):
    """(errors, exits) of a sample thinned to the stated balance, and its delta: the floor of ALGORITHMS 13."""
    n1, n0 = int(strata.positives), int(strata.negatives)
    sizes = np.arange(1, int(min(n1 / prior, n0 / (1 - prior))) + 2)
    few = stats.binom.sf(n1, sizes, prior) + stats.binom.sf(n0, sizes, 1 - prior)
    size = int(sizes[few <= 0.001].max())
    k1 = np.minimum(rng.binomial(size, prior, len(strata)), n1)
    parts = []
    for kept, members, exits, wrong in (
        (k1, n1, strata.exits1, strata.wrong1),
        (np.minimum(size - k1, n0), n0, strata.exits0, strata.wrong0),
    ):
        left = rng.hypergeometric(exits.astype(int), members - exits.astype(int), kept)
        bad = rng.hypergeometric(wrong.astype(int), exits.astype(int) - wrong.astype(int), left)
        parts.append((bad, left))
    return parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]


NULLS = [
    # n1, n0, prior, exit rates, share of the error that is wrong positives
    (1350, 150, 0.5, (0.9, 0.8), 0.5),
    (1350, 150, 0.5, (0.9, 0.6), 0.05),
    (600, 900, 0.6, (0.7, 0.5), 0.95),
    (200, 1800, 0.3, (0.5, 0.9), 0.5),
]


def check_at_the_boundary(draws, seed):
    rng = np.random.default_rng(seed)
    for n1, n0, prior, exits, share in NULLS:
        level = 0.03
        rates = at_level(level * 1.0001, prior, *exits, share)
        strata = drawn(rng, draws, n1, n0, *exits, *rates)
        false = stratified_passes(strata, prior, level, DELTA).mean()
        assert false <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / draws), (n1, n0, prior, false)
        # The control: what was seen, without any confidence.
        assert (stated_error(strata, prior) <= level).mean() > 0.3
    # Another control: exact, but of the sample's own balance.
    strata = drawn(rng, draws, 1350, 150, 0.9, 0.8, *at_level(0.0301, 0.5, 0.9, 0.8, 0.1))
    own = binomial_pvalue(strata.wrong1 + strata.wrong0, strata.exits1 + strata.exits0, 0.03) <= DELTA
    assert own.mean() > 0.5


def test_false_certificates_at_the_boundary():
    check_at_the_boundary(2000, 1)


@pytest.mark.slow
def test_false_certificates_at_the_boundary_in_full():
    check_at_the_boundary(20_000, 2)


def test_it_is_stronger_than_thinning_where_both_classes_err():
    """The path makes errors of both classes alike. Where all are of the small class thinning would win: .49 to .43."""
    rng, draws = np.random.default_rng(3), 1500
    for (n1, n0, prior, exits, _), gain in zip(NULLS, (0.08, 0.08, 0.0, 0.0), strict=True):
        strata = drawn(rng, draws, n1, n0, *exits, *at_level(0.009, prior, *exits, 0.5))
        ours = stratified_passes(strata, prior, 0.03, DELTA).mean()
        errors, trials = thinned(strata, prior, rng)
        theirs = (binomial_pvalue(errors, trials, 0.03) <= DELTA - 0.001).mean()
        assert ours > theirs + gain, (n1, n0, ours, theirs)


def test_the_forecast_is_near_the_chance():
    rng = np.random.default_rng(4)
    for n1, n0, prior, exits, share in NULLS:
        for true in (0.006, 0.012, 0.018):
            rate1, rate0 = at_level(true, prior, *exits, share)
            chance = stratified_passes(drawn(rng, 600, n1, n0, *exits, rate1, rate0), prior, 0.03, DELTA).mean()
            x1, x0 = n1 * exits[0], n0 * exits[1]
            awaited = Strata(
                *(np.array([v]) for v in (x1 * rate1, x1)), n1, *(np.array([v]) for v in (x0 * rate0, x0)), n0
            )
            said = float(stratified_chance(awaited, prior, 0.03, DELTA)[0])
            assert abs(said - chance) < 0.15
