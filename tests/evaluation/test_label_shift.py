"""The class balance of unlabelled scores: worked values, what scipy finds, and whether intervals cover the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.calibration import Platt, Vector
from stage1.errors import ConfigError, DataError
from stage1.evaluation.label_shift import FEWEST_GROUPS, bbse_weights, em_step, estimate_prior, mlls, shift_prior
from stage1.scores import Scores

PROBABILITIES = [0.9, 0.8, 0.3, 0.2, 0.1, 0.6, 0.05, 0.7]


def draw(rng, n, prior, groups=None):
    """Scores of two Gaussians, overconfident and shifted, so that only a map with an intercept mends them."""
    labels = (rng.random(n) < prior).astype(int)
    margin = 1.7 * (2.0 * (labels - 0.5) + rng.normal(size=n)) + 0.5
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels, groups=groups)


# ---- worked values and oracles -----------------------------------------------------------------------------------


def test_bbse_worked_value():
    weights = bbse_weights([[0.72, 0.03], [0.08, 0.17]], [0.55, 0.45])
    np.testing.assert_allclose(weights, [0.666667, 2.333333], atol=5e-7)
    np.testing.assert_allclose(weights * [0.8, 0.2], [0.533333, 0.466667], atol=5e-7)


def test_em_worked_iterates():
    prior = np.array([0.8, 0.2])
    for expected in (0.45625, 0.63594902, 0.73705838):
        prior = em_step(prior, PROBABILITIES, 0.2)
        assert prior[1] == pytest.approx(expected, abs=5e-9)


def test_mlls_worked_limit():
    assert mlls(PROBABILITIES, 0.2)[1] == pytest.approx(0.9433823, abs=5e-8)
    # where EM stops
    prior = np.array([0.8, 0.2])
    for _ in range(3000):
        prior = em_step(prior, PROBABILITIES, 0.2)
    np.testing.assert_allclose(mlls(PROBABILITIES, 0.2), prior, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_mlls_is_the_most_likely_prior(seed, k):
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(k, 0.5), 40)
    source = rng.dirichlet(np.full(k, 5.0))

    def likelihood(prior):
        return np.log((probabilities / source) @ prior).mean()

    found = mlls(probabilities, source)
    assert found.sum() == pytest.approx(1.0)
    assert found.min() >= 0
    others = np.vstack([rng.dirichlet(np.ones(k), 300), 0.999 * found + 0.001 * rng.dirichlet(np.ones(k), 300)])
    assert max(likelihood(prior) for prior in others) <= likelihood(found) + 1e-9


def test_shift_of_probabilities_is_bayes_rule():
    """Densities N(+-1, 1): the posterior at any prior is known."""
    x = np.linspace(-3, 3, 13)

    def posterior(prior):
        return 1 / (1 + (1 - prior) / prior * np.exp(-2 * x))

    np.testing.assert_allclose(shift_prior(posterior(0.3), 0.3, 0.8), posterior(0.8), atol=1e-12)
    both = np.stack([1 - posterior(0.3), posterior(0.3)], axis=1)
    np.testing.assert_allclose(shift_prior(both, [0.7, 0.3], [0.2, 0.8])[:, 1], posterior(0.8), atol=1e-12)
    np.testing.assert_allclose(shift_prior(shift_prior(both, 0.3, 0.8), 0.8, 0.3), both, atol=1e-12)


def test_shift_equals_a_platt_map_fitted_anew_at_the_other_balance():
    rng = np.random.default_rng(0)
    here, there = draw(rng, 30_000, 0.3), draw(rng, 30_000, 0.8)
    grid = np.stack([np.zeros(9), np.linspace(-4, 5, 9)], axis=1)
    moved = shift_prior(Platt.fit(here).apply(grid), 0.3, 0.8)
    np.testing.assert_allclose(moved, Platt.fit(there).apply(grid), atol=0.02)
    assert np.abs(Platt.fit(here).apply(grid) - Platt.fit(there).apply(grid)).max() > 0.3


# ---- estimates and intervals -------------------------------------------------------------------------------------


def test_without_a_shift_the_estimate_is_the_source():
    source = draw(np.random.default_rng(0), 800, 0.3)
    fitted = Platt.fit(source)
    for method in ("mlls", "bbse"):
        found = estimate_prior(source, source, method=method, calibration=fitted, n_resamples=20)
        assert found.prior[1] == pytest.approx(source.labels.mean(), abs=0.01)


@pytest.mark.parametrize("prior", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("method", ["mlls", "bbse"])
def test_large_samples_give_the_true_balance(method, prior):
    rng = np.random.default_rng((3, int(10 * prior)))
    source, target = draw(rng, 5000, 0.3), draw(rng, 5000, prior)
    found = estimate_prior(source, target, method=method, calibration=Platt.fit(source), n_resamples=40)
    assert found.prior[1] == pytest.approx(prior, abs=0.04)
    assert sum(found.prior) == pytest.approx(1.0)
    assert found.low[1] <= found.prior[1] <= found.high[1]
    assert found.low[0] == pytest.approx(1 - found.high[1], abs=1e-9)
    # the control: the mean calibrated probability stays where the source was
    naive = Platt.fit(source).apply(target.logits)[:, 1].mean()
    assert abs(naive - prior) > abs(found.prior[1] - prior) + 0.04


def test_three_classes():
    rng = np.random.default_rng(4)

    def three(n, shares):
        labels = rng.choice(3, n, p=shares)
        return Scores(logits=3.0 * np.eye(3)[labels] + rng.normal(size=(n, 3)) * 1.5, labels=labels)

    source, target = three(3000, [0.2, 0.3, 0.5]), three(3000, [0.6, 0.3, 0.1])
    for method in ("mlls", "bbse"):
        found = estimate_prior(source, target, method=method, calibration=Vector.fit(source), n_resamples=20)
        np.testing.assert_allclose(found.prior, [0.6, 0.3, 0.1], atol=0.05)


def covered(method, prior, draws, *, refit=True, n_resamples=80, n_source=250, n_target=400, grouped=None):
    hits = 0
    for seed in range(draws):
        rng = np.random.default_rng((seed, int(100 * prior), 17))
        source, target = draw(rng, n_source, 0.3), draw(rng, n_target, prior)
        if grouped is not None:  # ten copies of 40 rows
            rows = np.repeat(np.arange(40), 10)
            target = Scores(logits=target.logits[rows], groups=rows.astype(str) if grouped else None)
        fitted = Platt.fit(source) if method == "mlls" else None
        found = estimate_prior(
            source, target, method=method, calibration=fitted, refit=refit, n_resamples=n_resamples, seed=seed
        )
        hits += found.low[1] <= prior <= found.high[1]
    return hits / draws


def within(rate, draws, least=0.95):
    return rate >= least - 3 * np.sqrt(0.05 * 0.95 / draws)


@pytest.mark.parametrize("method, draws", [("bbse", 30), ("mlls", 8)])
def test_intervals_cover_the_true_balance(method, draws):
    rates = [covered(method, prior, draws) for prior in (0.1, 0.5, 0.9)]
    assert within(np.mean(rates), 3 * draws)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["bbse", "mlls"])
def test_intervals_cover_the_true_balance_at_each_of_three(method):
    for prior in (0.1, 0.5, 0.9):
        assert within(covered(method, prior, 200, n_resamples=200), 200), prior


@pytest.mark.slow
def test_a_map_taken_as_exact_makes_the_interval_too_short():
    assert not within(np.mean([covered("mlls", prior, 200, refit=False) for prior in (0.1, 0.5, 0.9)]), 600)


def test_copies_of_a_frame_need_groups():
    with_groups = covered("bbse", 0.5, 60, grouped=True)
    without = covered("bbse", 0.5, 60, grouped=False)
    assert within(with_groups, 60, least=0.93)  # 40 groups: percentile intervals are a little short
    assert not within(without, 60)


def test_same_seed_same_interval_and_labels_of_the_target_are_not_read():
    rng = np.random.default_rng(5)
    source, target = draw(rng, 300, 0.3), draw(rng, 300, 0.6)
    one = estimate_prior(source, target, method="bbse", n_resamples=50)
    assert one == estimate_prior(source, Scores(logits=target.logits), method="bbse", n_resamples=50)
    assert one != estimate_prior(source, target, method="bbse", n_resamples=50, seed=1)
    assert one.to_document()["prior"] == list(one.prior)
    # the replicates are what the interval is made of, and no part of the document
    assert one.replicates.shape == (one.resamples, 2)
    assert one.low[1] == np.quantile(one.replicates[:, 1], 0.025, method="lower")
    assert "replicates" not in one.to_document()


def test_two_methods_agree_where_chance_makes_their_difference():
    rng = np.random.default_rng(8)
    source, target = draw(rng, 1000, 0.3), draw(rng, 1000, 0.6)
    mlls, bbse = (
        estimate_prior(source, target, method=method, calibration=Platt.fit(source), n_resamples=60)
        for method in ("mlls", "bbse")
    )
    assert mlls.agrees_with(bbse)
    assert bbse.agrees_with(mlls)
    raw = estimate_prior(source, target, n_resamples=60)  # no map: overconfident and shifted, see draw
    elsewhere = estimate_prior(source, draw(rng, 1000, 0.95), method="bbse", n_resamples=60)
    assert not mlls.agrees_with(elsewhere)
    assert not elsewhere.agrees_with(raw)


def compared(rng, scale, n=300):
    """The two estimates where the scores of the target are `scale` times what they were."""
    source, target = draw(rng, n, 0.3), draw(rng, n, 0.6)
    target = Scores(logits=scale * target.logits)
    options = {"calibration": Platt.fit(source), "n_resamples": 40, "seed": int(rng.integers(1 << 30))}
    return [estimate_prior(source, target, method=method, **options) for method in ("mlls", "bbse")]


def test_disagreement_is_said_where_it_is_there_and_seldom_else():
    rng, draws = np.random.default_rng(9), 24
    said, met = {}, {}
    for scale in (1.0, 3.0):
        pairs = [compared(rng, scale) for _ in range(draws)]
        said[scale] = sum(one.agrees_with(other) is False for one, other in pairs) / draws
        # What was asked before, whether the two intervals meet, seldom notices it.
        met[scale] = sum(one.low[1] <= b.high[1] and b.low[1] <= one.high[1] for one, b in pairs) / draws
    assert said[1.0] <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    assert said[3.0] >= 0.5
    assert said[3.0] >= 1 - met[3.0]
    assert met[3.0] >= 0.5


def test_few_groups_have_no_interval_and_no_verdict():
    rng = np.random.default_rng(10)
    source = draw(rng, 300, 0.3)
    for groups, known in ((FEWEST_GROUPS - 1, False), (FEWEST_GROUPS, True)):
        target = draw(rng, 20 * groups, 0.6, groups=np.repeat(np.arange(groups), 20).astype(str))
        found, other = (estimate_prior(source, target, method=m, n_resamples=30) for m in ("bbse", "mlls"))
        assert found.units == groups
        assert (found.low is not None, found.high is not None) == (known, known)
        assert (found.agrees_with(other) is not None) is known
        assert found.to_document()["low"] == (list(found.low) if known else None)


def test_extreme_targets_stay_within_0_and_1():
    rng = np.random.default_rng(6)
    source, target = draw(rng, 300, 0.3), draw(rng, 100, 0.0)
    for method in ("mlls", "bbse"):
        found = estimate_prior(source, target, method=method, calibration=Platt.fit(source), n_resamples=40)
        assert 0 <= found.low[1] <= found.prior[1] <= found.high[1] <= 1
        assert found.low[1] < 0.02


def test_bad_input_is_named():
    rng = np.random.default_rng(7)
    source, target = draw(rng, 100, 0.3), draw(rng, 100, 0.3)
    with pytest.raises(ConfigError, match="'rlls' is unknown"):
        estimate_prior(source, target, method="rlls")
    with pytest.raises(DataError, match="labels"):
        estimate_prior(Scores(logits=source.logits), target)
    with pytest.raises(DataError, match="rows of 2 classes are needed"):
        estimate_prior(source, Scores(logits=np.zeros((4, 3))))
    with pytest.raises(DataError, match="no row of class 1"):
        estimate_prior(source.take(source.labels == 0), target)
    always = Scores(logits=np.tile([0.0, 9.0], (100, 1)), labels=source.labels)
    with pytest.raises(DataError, match="singular.*use mlls"):
        estimate_prior(always, target, method="bbse")
    for bad in ([0.5, 1.5], [[0.5, 0.4]], [[[0.5]]], []):
        with pytest.raises(DataError, match="probabilities"):
            mlls(bad, 0.5)
    with pytest.raises(DataError, match="source_prior: class 1 has share 0"):
        mlls([0.5], 0.0)
    with pytest.raises(DataError, match="row 1 is sure of a class"):
        shift_prior([0.5, 1.0], 0.5, 0.0)
