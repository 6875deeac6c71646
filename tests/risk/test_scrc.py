"""SCRC: oracles of ALGORITHMS 1.3 and 1.5, exact validity by simulation, and the published rules as controls that
must fail.
"""

from __future__ import annotations

from math import ceil, floor, inf, log, nan, sqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from stage1.errors import DataError
from stage1.risk.conformal import (
    allowed_losses,
    class_floor,
    coverage_rank,
    inductive_selection,
    inductive_threshold,
    transductive_cuts,
    transductive_thresholds,
)
from stage1.risk.testing import order_statistic_rank


def published_allowed_losses(m: int, alpha: float) -> int:
    """Eq. 15 of arXiv 2512.12844: one too many unless (m + 1) alpha is whole."""
    return ceil((m + 1) * alpha - 1e-12) - 1


# ---- oracles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "coverage", "rank", "dkw"), [(100, 0.7, 78, 83), (1000, 0.7, 725, 739), (1000, 0.85, 869, 889)]
)
def test_coverage_rank_equals_the_worked_values_and_beats_dkw(n, coverage, rank, dkw):
    assert coverage_rank(n, coverage, 0.05) == rank
    assert ceil(n * (coverage + sqrt(log(1 / 0.05) / (2 * n)))) == dkw > rank


@given(st.integers(0, 400), st.floats(0.01, 0.99), st.floats(0.001, 0.5))
def test_coverage_rank_is_the_smallest_by_scipy(n, coverage, delta):
    rank = coverage_rank(n, coverage, delta)
    assert stats.binom.sf(rank - 1, n, coverage) <= delta * (1 + 1e-9)
    assert stats.binom.sf(rank - 2, n, coverage) > delta * (1 - 1e-9)


@pytest.mark.parametrize(
    ("m", "alpha", "published", "right"),
    [
        (9, 0.15, 0.2, 0.1),
        (19, 0.07, 0.1, 0.05),
        (49, 0.03, 0.04, 0.02),
        (99, 0.025, 0.03, 0.02),
        (60, 0.05, 4 / 61, 3 / 61),
        (100, 0.05, 6 / 101, 5 / 101),
    ],
)
def test_the_published_rule_allows_one_loss_too_many(m, alpha, published, right):
    # For continuous scores the true risk of "allowed losses" is (allowed + 1) / (m + 1) exactly.
    assert (published_allowed_losses(m, alpha) + 1) / (m + 1) == pytest.approx(published)
    assert published > alpha
    assert (allowed_losses(m, alpha) + 1) / (m + 1) == pytest.approx(right)


def test_the_oracles_of_m_60():
    assert published_allowed_losses(60, 0.05) + 1 == pytest.approx(0.0656 * 61, abs=0.01)
    assert allowed_losses(60, 0.05) + 1 == pytest.approx(0.0492 * 61, abs=0.01)


def test_a_zero_loss_budget_is_legitimate_and_float_noise_costs_nothing():
    assert allowed_losses(19, 0.05) == 0  # 20 * 0.05 = 1
    assert allowed_losses(18, 0.05) == -1
    assert allowed_losses(28, 1 / 29) == 0
    assert allowed_losses(0, 0.9) == -1


@given(st.integers(0, 500), st.floats(0.001, 0.999))
def test_allowed_losses_is_the_largest_that_crc_accepts(m, alpha):
    allowed = allowed_losses(m, alpha)
    assert -1 <= allowed < max(m, 1)
    assert allowed == -1 or allowed + 1 <= alpha * (m + 1) + 1e-9
    assert allowed + 2 > alpha * (m + 1) - 1e-9 or allowed == m - 1


def percentile_selected(confidences: np.ndarray, coverage: float) -> int:
    """Stage 1 of the authors' code: numpy's percentile instead of the M-th largest."""
    return int((confidences >= np.quantile(confidences, 1 - coverage, method="higher")).sum())


@pytest.mark.parametrize(("n", "coverage", "theirs", "ours"), [(9, 0.75, 7, 8), (100, 0.95, 95, 96)])
def test_the_percentile_selects_too_few_and_the_rank_does_not(n, coverage, theirs, ours):
    everyone = np.random.default_rng(0).permutation(n + 1).astype(float)
    assert percentile_selected(everyone, coverage) == theirs
    assert theirs / (n + 1) < coverage
    # Each of the n + 1 in the role of the test sample: that many of them are selected, so P(selected) is that share.
    selected = 0
    for row, confidence in enumerate(everyone):
        lower, _ = transductive_cuts(np.delete(everyone, row), coverage)
        selected += confidence >= lower
    assert selected == ours
    assert ours / (n + 1) >= coverage


# ---- properties --------------------------------------------------------------------------------------------------


def by_definition(confidence, truth, test, coverage, alpha, members):
    """SCRC-T of one test sample as ALGORITHMS 1.5 states it: sort all n + 1."""
    everyone = np.sort(np.append(confidence, test))[::-1]
    tau = everyone[ceil(coverage * len(everyone) - 1e-9) - 1]
    if test < tau:
        return False, nan
    scores = np.sort(truth[(confidence >= tau) & members])
    allowed = floor((len(scores) + 1) * alpha + 1e-12) - 1
    return True, scores[allowed] if allowed >= 0 else -inf


@settings(max_examples=200)
@given(st.integers(1, 40), st.integers(2, 60), st.floats(0.05, 0.95), st.floats(0.05, 0.9), st.integers(0, 2**31))
def test_transductive_thresholds_equal_the_definition_with_and_without_ties(n, levels, coverage, alpha, seed):
    rng = np.random.default_rng(seed)
    confidence, truth = rng.integers(0, levels, n).astype(float), rng.integers(0, levels, n).astype(float)
    members, test = rng.random(n) < 0.6, rng.integers(-1, levels + 1, 12).astype(float)
    selected, floors = transductive_thresholds(confidence, truth, test, coverage=coverage, alpha=alpha, members=members)
    for one, in_it, at in zip(test, selected, floors, strict=True):
        expected = by_definition(confidence, truth, one, coverage, alpha, members)
        assert (in_it, at) == expected or (not in_it and not expected[0] and np.isnan(at))


@given(st.integers(1, 300), st.floats(0.05, 0.95), st.integers(0, 2**31))
def test_inductive_threshold_equals_the_definition(n, alpha, seed):
    rng = np.random.default_rng(seed)
    confidence, truth, members = rng.random(n), rng.random(n), rng.random(n) < 0.5
    found = inductive_threshold(
        confidence, truth, coverage=0.6, alpha=alpha, delta_coverage=0.1, delta_risk=0.1, members=members
    )
    rank = coverage_rank(n, 0.6, 0.1)
    assert found.tau == (np.sort(confidence)[::-1][rank - 1] if rank <= n else -inf)
    scores = np.sort(truth[(confidence > found.tau) & members])
    assert found.selected == len(scores)
    # the least conservative floor for which it, and every lower one, certifies: no rule but a scan
    certifies = [stats.binom.cdf(k, len(scores), alpha) <= 0.1 for k in range(len(scores))]
    allowed = certifies.index(False) - 1 if False in certifies else len(scores) - 1
    assert found.allowed == allowed
    assert found.floor == (scores[allowed] if allowed >= 0 else -inf)


def test_rows_in_another_order_change_nothing():
    rng = np.random.default_rng(3)
    g, truth, order = rng.random(200), rng.random(200), rng.permutation(200)
    options = {"coverage": 0.7, "alpha": 0.1, "delta_coverage": 0.05, "delta_risk": 0.05}
    assert inductive_threshold(g, truth, **options) == inductive_threshold(g[order], truth[order], **options)
    assert transductive_cuts(g, 0.7) == transductive_cuts(g[order], 0.7)


def test_where_no_rank_is_safe_everything_is_selected():
    # 0.9 ** 28 > 0.05: even the smallest of 28 confidences may cut off more than a tenth
    assert coverage_rank(28, 0.9, 0.05) == 29
    selection = inductive_selection(np.arange(28.0), 0.9, 0.05)
    assert (selection.tau, selection.above, selection.covers) == (-inf, 28, True)
    assert coverage_rank(29, 0.9, 0.05) == 29


def test_ties_at_tau_are_seen_and_spare_ranks_absorb_them():
    g = np.concatenate([np.full(40, 2.0), np.full(30, 1.0), np.full(30, 0.0)])
    cut_block = inductive_selection(g, 0.5, 0.05)  # rank 59 lies in the block of ones
    assert (cut_block.tau, cut_block.above, cut_block.ties, cut_block.covers) == (1.0, 40, 30, False)
    assert inductive_selection(g, 0.5, 0.05, spare=11).covers is False  # rank 70: the last of the block
    past = inductive_selection(g, 0.5, 0.05, spare=12)
    assert (past.tau, past.above, past.covers) == (0.0, 70, True)


@pytest.mark.parametrize(
    ("call", "word"),
    [
        (lambda: coverage_rank(10, 1.0, 0.05), "coverage"),
        (lambda: coverage_rank(-1, 0.5, 0.05), "n:"),
        (lambda: allowed_losses(10, 0.0), "alpha"),
        (lambda: allowed_losses(-1, 0.5), "m:"),
        (lambda: class_floor([0.1, nan], 0), "truth"),
        (lambda: class_floor([0.1], 1), "allowed"),
        (lambda: transductive_cuts([[1.0]], 0.5), "confidence"),
        (lambda: transductive_thresholds([1.0], [1.0, 2.0], [1.0], coverage=0.5, alpha=0.1), "truth"),
        (lambda: transductive_thresholds([1.0], [1.0], [inf], coverage=0.5, alpha=0.1), "test_confidence"),
        (
            lambda: inductive_threshold(
                [1.0], [1.0], coverage=0.5, alpha=0.1, delta_coverage=0.1, delta_risk=0.1, members=[1]
            ),
            "members",
        ),
    ],
)
def test_wrong_arguments_are_named(call, word):
    with pytest.raises(DataError, match=word):
        call()


# ---- validity ----------------------------------------------------------------------------------------------------
# g ~ U(0, 1), P(truth < f given g) = f ** (1 + 3 g): confident samples lose less, and every risk is known exactly.


def draw(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    g = rng.random(n)
    return g, rng.random(n) ** (1 / (1 + 3 * g))


def lost(at: float, tau: float) -> float:
    """P(loss and selected) where g > tau is selected and truth < at is lost."""
    return 0.0 if at <= 0 else (at**4 - at ** (1 + 3 * tau)) / (3 * log(at))


def transductive_risk(
    draws: int, n: int, coverage: float, alpha: float, allowed, seed: int
) -> tuple[float, float, float]:
    """(E[loss given selected], its standard error, P(selected)) over calibration sets and test sample, test
    integrated out.
    """
    rng = np.random.default_rng(seed)
    losses, shares = np.empty(draws), np.empty(draws)
    for index in range(draws):
        g, truth = draw(rng, n)
        lower, upper = transductive_cuts(g, coverage)
        chosen = truth[g >= upper]
        at = class_floor(chosen, allowed(len(chosen), alpha))
        tau = max(lower, 0.0)
        losses[index], shares[index] = lost(at, tau), 1 - tau
    risk = losses.mean() / shares.mean()
    return risk, float((losses - risk * shares).std() / shares.mean() / sqrt(draws)), float(shares.mean())


def test_transductive_risk_is_at_most_alpha_and_the_published_rule_is_not():
    # n = 100, coverage .6: M = 61, so exactly m = 60 calibration samples are selected beside a selected test sample
    risk, error, coverage = transductive_risk(4000, 100, 0.6, 0.05, allowed_losses, seed=1)
    assert risk <= 0.05 + 3 * error
    assert risk == pytest.approx(3 / 61, abs=4 * error)  # power: all that the rule may spend is spent
    assert coverage == pytest.approx(61 / 101, abs=0.004)
    published, error, _ = transductive_risk(4000, 100, 0.6, 0.05, published_allowed_losses, seed=1)
    assert published == pytest.approx(0.0656, abs=4 * error)
    assert published > 0.05 + 10 * error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "coverage", "alpha"), [(14, 0.6, 0.15), (31, 0.6, 0.07), (200, 0.7, 0.1), (1000, 0.7, 0.03)]
)
def test_transductive_risk_in_20000_draws(n, coverage, alpha):
    risk, error, share = transductive_risk(20_000, n, coverage, alpha, allowed_losses, seed=2)
    print(f"n={n} xi={coverage} alpha={alpha}: risk {risk:.5f} +- {error:.5f}, selected {share:.4f}")
    assert risk <= alpha + 3 * error
    assert share >= coverage - 0.003


def inductive_violations(draws: int, n: int, seed: int, *, plug_in: bool = False):
    """(share with coverage < xi, share with risk > alpha, mean risk, both errors' delta = .05): xi = .7, alpha = .1."""
    rng = np.random.default_rng(seed)
    short, broken, risks = 0, 0, []
    for _ in range(draws):
        g, truth = draw(rng, n)
        found = inductive_threshold(g, truth, coverage=0.7, alpha=0.1, delta_coverage=0.05, delta_risk=0.05)
        tau, at = max(found.tau, 0.0), found.floor
        if plug_in:  # the empirical quantile of both: what is done where no confidence is asked for
            tau = float(np.quantile(g, 0.3))
            at = float(np.quantile(truth[g > tau], 0.1))
        short += 1 - tau < 0.7
        risks.append(lost(at, tau) / (1 - tau))
        broken += risks[-1] > 0.1
    return short / draws, broken / draws, float(np.mean(risks))


@pytest.mark.parametrize("n", [200, 1000])
def test_inductive_thresholds_keep_both_promises_with_power_and_the_plug_in_does_not(n):
    draws, error = 1500, sqrt(0.05 * 0.95 / 1500)
    short, broken, risk = inductive_violations(draws, n, seed=5)
    assert short <= 0.05 + 3 * error
    assert broken <= 0.05 + 3 * error
    # Power: the tails are exact, so both deltas are spent up to the lattice of whole losses.
    rank = coverage_rank(n, 0.7, 0.05)
    k = order_statistic_rank(rank - 1, 0.1, 0.05)
    assert short == pytest.approx(stats.binom.sf(rank - 1, n, 0.7), abs=3 * error)
    assert broken == pytest.approx(stats.binom.cdf(k - 1, rank - 1, 0.1), abs=3 * error)
    assert risk == pytest.approx(k / rank, abs=0.0015)
    assert k / rank > {200: 0.059, 1000: 0.08}[n]
    short, broken, _ = inductive_violations(300, n, seed=5, plug_in=True)
    assert short > 0.3
    assert broken > 0.3


@pytest.mark.parametrize(("levels", "xi", "mostly_covered"), [(150, 0.5, True), (20, 0.52, False)])
def test_ties_cost_no_promise(levels, xi, mostly_covered):
    # Ties everywhere. P(g > level k) = 1 - (k + 1) / levels; the loss depends on g, so what is selected matters.
    n, draws = 600, 1500
    grid = np.arange(levels) / levels
    rng = np.random.default_rng(8)
    short = broken = covered = naive_short = 0
    for _ in range(draws):
        g = np.floor(rng.random(n) * levels) / levels
        truth = rng.random(n) ** (1 / (1 + 3 * g))
        found = inductive_threshold(
            g, truth, coverage=xi, alpha=0.1, delta_coverage=0.05, delta_risk=0.05, spare=ceil(0.01 * n)
        )
        above = grid > found.tau
        covered += found.covers
        short += found.covers and above.mean() < xi
        broken += (max(found.floor, 0.0) ** (1 + 3 * grid[above])).mean() > 0.1
        naive_short += (grid > inductive_selection(g, xi, 0.05).tau).mean() < xi
    error = sqrt(0.05 * 0.95 / draws)
    assert short / draws <= 0.05 + 3 * error
    assert broken / draws <= 0.05 + 3 * error
    if mostly_covered:
        assert covered / draws > 0.6
    else:  # blocks of 30 swallow the spare ranks: without the check, the promise of coverage breaks
        assert naive_short / draws > 0.2
