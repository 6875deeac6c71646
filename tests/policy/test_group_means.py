"""Certificates from all images of groups: valid where images of a group agree, stronger where they do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from stage1.errors import ConfigError
from stage1.policy import fit_policy, load_policy, refit
from stage1.policy.certificate import Certificate
from stage1.policy.closed_form import Thresholds
from stage1.policy.group_means import Frames, estimate, intraclass_correlation, minimum_groups, risk_claims
from stage1.policy.target import Request
from stage1.risk.bounds import betting_pvalue
from stage1.risk.clusters import group_pvalue
from stage1.scores import Scores

SEPARATION, DELTA = 3.0, 0.05
RISKS = {"miss_rate": 0.05, "false_exit_rate": 0.05}


def clustered(rng, groups, correlation, size=10, prefix="c", mixed=False):
    """Latent normal scores; images of a group share a part of variance `correlation`. mixed: both classes in each
    group.
    """
    labels = (rng.random((groups, size)) < 0.5) if mixed else np.repeat(rng.random((groups, 1)) < 0.5, size, axis=1)
    shared = np.sqrt(correlation) * rng.normal(size=(groups, 1))
    score = (labels - 0.5) * SEPARATION + shared + np.sqrt(1 - correlation) * rng.normal(size=(groups, size))
    return Scores(
        logits=np.stack([np.zeros(groups * size), score.ravel()], axis=1),
        labels=labels.ravel().astype(int),
        groups=np.repeat([f"{prefix}{g}" for g in range(groups)], size),
        ids=[f"{prefix}{i}" for i in range(groups * size)],
    )


def truth(policy):
    lo, hi = policy.lo if policy.lo is not None else -np.inf, policy.hi if policy.hi is not None else np.inf
    half = SEPARATION / 2
    miss, right, false, right0 = norm.cdf(lo - half), norm.sf(hi - half), norm.sf(hi + half), norm.cdf(lo + half)
    risks = {
        "miss_rate": miss,
        "false_exit_rate": false,
        "fnr": miss / max(miss + right, 1e-300),
        "fpr": false / max(false + right0, 1e-300),
    }
    return risks, (miss + right + false + right0) / 2


def simulate(unit, correlation, draws, *, groups=300, select=60, risks=RISKS, seed=5, mixed=False):
    """(violations, mean coverage, share of draws with group means)."""
    rng = np.random.default_rng([seed, int(100 * correlation)])
    broken = means = 0
    coverage = []
    for draw in range(draws):
        a = clustered(rng, select, correlation, prefix="s", mixed=mixed)
        b = clustered(rng, groups, correlation, mixed=mixed)
        policy = fit_policy("softmax", select=a, calib=b, risks=risks, unit=unit, assume_iid=unit == "image", seed=draw)
        found, exits = truth(policy)
        broken += any(found[name] > target for name, target in risks.items())
        means += policy.certificate.unit == "group_mean"
        coverage.append(exits)
    return broken, float(np.mean(coverage)), means / draws


def limit(draws):
    return draws * DELTA + 3 * np.sqrt(draws * DELTA * (1 - DELTA))


@pytest.mark.parametrize("draws", [24, pytest.param(60, marks=pytest.mark.slow)])
def test_frames_break_the_promise_where_they_agree_and_group_methods_keep_it(draws):
    assert simulate("image", 0.9, draws)[0] > limit(draws)  # the control that must fail
    single, means = simulate("group", 0.9, draws), simulate("group_mean", 0.9, draws)
    assert max(single[0], means[0], simulate("group_draws", 0.9, draws)[0]) <= limit(draws)
    assert single[1] > 0.6  # valid and useless is not enough


def test_many_draws_certify_more_than_one_where_images_agree_in_part_and_refit_gives_the_same():
    # With miss_rate both begin at a fixed pair; fnr and fpr alone begin, one image a group, at counted trials.
    ratios = {"fnr": 0.05, "fpr": 0.05, "miss_rate": 0.05}
    single, many = (simulate(unit, 0.05, 8, risks=ratios) for unit in ("group", "group_draws"))
    assert many[0] <= limit(8)
    assert many[1] > single[1] + 0.05
    rng = np.random.default_rng(11)
    calib, select = clustered(rng, 300, 0.3), clustered(rng, 80, 0.3, prefix="s")
    policy = fit_policy("softmax", select=select, calib=calib, risks=RISKS, unit="group_draws", seed=3)
    reported = policy.certificate
    assert (reported.certified, reported.unit, reported.n_units, reported.n_images) == (True, "group_draws", 300, 3000)
    assert "21 draws of one image of each group" in reported.statement
    assert all(risk.bound <= risk.target for risk in reported.risks.values())
    assert refit(policy, calib=calib, select=select) == policy
    assert fit_policy("softmax", select=select, calib=calib, risks=RISKS, seed=3).certificate.unit == "group_draws"
    shuffled = calib.take(rng.permutation(len(calib)))
    assert fit_policy("softmax", select=select, calib=shuffled, risks=RISKS, unit="group_draws", seed=3) == policy


def test_the_verdict_hangs_less_on_the_hash_with_many_draws():
    rng = np.random.default_rng(2)
    calib, select = clustered(rng, 200, 0.2), clustered(rng, 80, 0.2, prefix="s")

    def exits(unit):
        fitted = [
            fit_policy("softmax", select=select, calib=calib, risks=RISKS, unit=unit, seed=seed) for seed in range(8)
        ]
        return [truth(policy)[1] for policy in fitted]

    one, many = exits("group"), exits("group_draws")
    assert np.std(many) < np.std(one)
    assert np.mean(many) > np.mean(one)


def test_group_means_certify_more_where_images_hardly_agree():
    single, means = simulate("group", 0.05, 15), simulate("group_mean", 0.05, 15)
    assert means[1] > single[1] + 0.02
    assert means[2] == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("risks, mixed", [(RISKS, False), (RISKS, True), ({"fnr": 0.05, "fpr": 0.05}, False)])
def test_show_two_through_fit_policy(risks, mixed):
    """300 groups of 10 frames, val_select 60 groups: violations and coverage of every way to count, and of the
    choice.
    """
    draws = 150
    lines = []
    for correlation in (0.05, 0.3, 0.6, 0.95):
        found = {
            unit: simulate(unit, correlation, draws, risks=risks, mixed=mixed)
            for unit in ("image", "group", "group_mean", "auto")
        }
        lines.append(
            f"{correlation:<5g}"
            + "".join(f"{unit:>12}: {broken / draws:.3f} {cover:.3f}" for unit, (broken, cover, _) in found.items())
        )
        assert all(found[unit][0] <= limit(draws) for unit in ("group", "group_mean", "auto")), lines
        # The tests of risk/test_clusters.py say how often the choice is wrong; here: what that costs.
        assert found["auto"][1] >= max(found["group"][1], found["group_mean"][1]) - 0.1, lines
    print("\n" + "\n".join(lines))


def test_the_certificate_is_the_test_of_risk_groups_and_says_so(tmp_path):
    rng = np.random.default_rng(11)
    calib, select = clustered(rng, 300, 0.1), clustered(rng, 80, 0.1, prefix="s")
    policy = fit_policy("softmax", select=select, calib=calib, risks=RISKS, unit="group_mean", seed=3)
    reported = policy.certificate
    assert (reported.certified, reported.unit, reported.n_units, reported.n_images) == (True, "group_mean", 300, 3000)
    assert "random image of a random group" in reported.statement
    missed = (calib.labels == 1) & (calib.margin < policy.lo)
    pvalue = group_pvalue(missed, calib.labels == 1, calib.groups, 0.05, seed=3)
    assert pvalue <= DELTA
    assert reported.risks["miss_rate"].errors == missed.sum()
    assert reported.risks["miss_rate"].bound <= 0.05
    policy.save(tmp_path / "thresholds.json")
    reported.save(tmp_path / "certificate.json")
    again = refit(load_policy(tmp_path), calib=calib, select=select)
    assert again.certificate.to_document() == reported.to_document()
    assert Certificate.load(tmp_path / "certificate.json") == reported


def test_floors_and_their_failure():
    rng = np.random.default_rng(12)
    calib, select = clustered(rng, 300, 0.1), clustered(rng, 80, 0.1, prefix="s")
    common = {"select": select, "calib": calib, "risks": RISKS, "unit": "group_mean"}
    held = fit_policy("softmax", coverage=0.6, class_coverage={"1": 0.6}, **common).certificate
    assert held.certified
    assert held.coverage.bound >= 0.6
    assert held.per_class["1"].bound >= 0.6
    refused = fit_policy("softmax", coverage=0.99, **common).certificate
    assert not refused.certified
    assert "coverage >= 0.99" in refused.reason


def test_what_cannot_be_certified_names_the_risk_and_the_groups_needed():
    rng = np.random.default_rng(13)
    calib, select = clustered(rng, 30, 0.1), clustered(rng, 80, 0.1, prefix="s")
    refused = fit_policy(
        "softmax", select=select, calib=calib, risks={"fnr": 0.01, "fpr": 0.01}, unit="group_mean"
    ).certificate
    assert not refused.certified
    assert "fnr" in refused.reason or "fpr" in refused.reason
    assert "groups" in refused.needed


def test_minimum_groups_is_the_first_that_passes():
    n = minimum_groups(0.05, DELTA)
    assert betting_pvalue(np.zeros(n), 0.05) <= DELTA < betting_pvalue(np.zeros(n - 1), 0.05)


def test_estimates_weigh_groups_alike():
    scores = Scores(
        logits=[[0, -1], [0, -1], [0, -1], [0, 1]], labels=[1, 1, 1, 1], groups=["a", "a", "a", "b"], ids=list("wxyz")
    )
    frames = Frames.of(scores.margin, scores, seed=0)
    claim = risk_claims(Request({"miss_rate": 0.1}, allow_one_sided=True))["miss_rate"]
    assert estimate(frames, claim, Thresholds(0.0, 0.0)) == pytest.approx(0.5)  # 3 of 4 images, 1 of 2 groups
    assert estimate(frames, claim, Thresholds(None, None)) == 0.0


def test_intraclass_correlation_sees_agreement():
    rng = np.random.default_rng(14)
    low, high = (clustered(rng, 400, rho) for rho in (0.0, 0.95))
    assert intraclass_correlation(low, low.margin) < 0.05
    assert intraclass_correlation(high, high.margin) > 0.5
    single = low.take(np.arange(0, len(low), 10))
    assert intraclass_correlation(single, single.margin) == 1.0


def test_bad_requests_are_named():
    rng = np.random.default_rng(15)
    calib, select = clustered(rng, 60, 0.1), clustered(rng, 60, 0.1, prefix="s")
    with pytest.raises(ConfigError, match="target_prior"):
        fit_policy("softmax", select=select, calib=calib, risks={"error": 0.1}, target_prior=0.5, unit="group_mean")
    with pytest.raises(ConfigError, match="select"):
        fit_policy("softmax", calib=calib, risks=RISKS, unit="group_mean")
    with pytest.raises(ConfigError, match="group_mean"):
        fit_policy("scrc", select=select, calib=calib, risks=RISKS, unit="group_mean")
