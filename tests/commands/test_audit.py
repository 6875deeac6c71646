"""audit: the truth it holds a certificate against, and its verdicts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.policy.multiclass_draws import NAMES, draw

from stage1 import Scores, fit_policy
from stage1.commands.audit import Sizes, _draw, _group_weights, audit, false_claims
from stage1.config import RunConfig, load_config
from stage1.errors import ConfigError, DataError
from stage1.evaluation.rates import exit_rates
from stage1.policy import MulticlassPolicy, SoftmaxPolicy


def config(*overrides: str) -> RunConfig:
    return load_config(overrides=overrides, environment={})[0]


def binary(n=400, groups=None, seed=0) -> Scores:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    margin = rng.normal(0, 1.5, n) + 2 * labels - 1
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels, groups=groups)


def claims_at(threshold: float, population: Scores, *overrides: str, weights=None):
    policy = SoftmaxPolicy(-threshold, threshold, ("0", "1"), True)
    return false_claims(policy, policy.decide(population), population, config(*overrides), ("0", "1"), weights)


def test_risks_of_the_whole_population_are_what_is_compared():
    population = binary()
    policy = SoftmaxPolicy(-0.5, 0.5, ("0", "1"), True)
    decision = policy.decide(population)
    rates = exit_rates(decision.exit, decision.label, population.known_labels)
    for name in ("fnr", "fpr", "miss_rate", "false_exit_rate", "error"):
        true = rates[name]["observed"]
        assert claims_at(0.5, population, f"risks={{{name}: {true + 1e-6}}}", "allow_one_sided=true") == []
        assert claims_at(0.5, population, f"risks={{{name}: {true - 1e-6}}}", "allow_one_sided=true") == [name]


def test_floors_are_claims_too():
    population = binary()
    covered = SoftmaxPolicy(-0.5, 0.5, ("0", "1"), True).decide(population).coverage
    assert claims_at(0.5, population, "risks={error: 0.9}", f"coverage={covered + 1e-6}") == ["coverage"]
    assert claims_at(0.5, population, "risks={error: 0.9}", f"coverage={covered - 1e-6}") == []
    assert claims_at(9.0, population, "risks={error: 0.9}", "class_coverage={'1': 0.5}") == ["class_coverage.1"]


def test_error_is_that_at_the_stated_prior():
    population = binary(4000)
    policy = SoftmaxPolicy(-0.2, 1.5, ("0", "1"), True)
    decision, labels = policy.decide(population), population.known_labels
    shares = (
        [(decision.exit & (labels == k) & (decision.label != k)).sum() / (labels == k).sum() for k in (0, 1)],
        [(decision.exit & (labels == k)).sum() / (labels == k).sum() for k in (0, 1)],
    )
    wrong, exits = (0.1 * pair[0] + 0.9 * pair[1] for pair in shares)
    true = float(wrong / exits)
    for target, found in ((true + 1e-6, []), (true - 1e-6, ["error"])):
        asked = config(f"risks={{error: {target}}}", "target_prior=0.9")
        assert false_claims(policy, decision, population, asked, ("0", "1"), None) == found


def test_a_slice_with_thresholds_of_its_own_is_a_claim_too():
    population = binary(4000)
    city = np.where(np.arange(4000) < 2000, "a", "b")
    population = replace(population, slices={"city": city}, ids=[f"p{row}" for row in range(4000)])
    select = replace(binary(400, seed=1), ids=[f"s{row}" for row in range(400)])
    policy = fit_policy("softmax", select=select, calib=population, risks={"error": 0.15}, slices=("city",))
    asked = config("risks={error: 0.15}")
    assert [claim.certified for claim in policy.certificate.slices] == [True, True]
    assert false_claims(policy, policy.decide(population), population, asked, ("0", "1"), None) == []
    # Half of b's labels turned around: its own claim is false, whatever the others make of the whole.
    turned = (city == "b") & (np.arange(4000) % 2 == 0)
    worse = replace(population, labels=np.where(turned, 1 - population.labels, population.labels))
    found = false_claims(policy, policy.decide(worse), worse, asked, ("0", "1"), None)
    assert "city=b: error" in found
    assert "city=a: error" not in found


def test_groups_weigh_alike_where_the_unit_is_the_group():
    # One group of 9 with errors, one of 1 without: of a random image of a random group half are wrong, of all images
    # .9.
    logits = np.array([[0.0, 1.0]] * 10)
    population = Scores(logits=logits, labels=np.array([0] * 9 + [1]), groups=np.array(["a"] * 9 + ["b"]))
    weights = _group_weights(population)
    assert weights.tolist() == [1 / 9] * 9 + [1.0]
    assert claims_at(0.5, population, "risks={error: 0.6}") == ["error"]
    assert claims_at(0.5, population, "risks={error: 0.6}", weights=weights) == []


def test_draws_keep_groups_whole_with_slices_and_signals():
    n = 60
    population = Scores(
        logits=np.random.default_rng(0).normal(size=(n, 2)),
        labels=np.arange(n) % 2,
        groups=np.repeat(np.arange(20), 3).astype(str),
        slices={"city": np.array(["x", "y"] * 30)},
        extra={"spread": np.arange(n) / n},
    )
    drawn = _draw(population, 30, np.random.default_rng(1), "s")
    assert len(drawn) == 30
    assert np.unique(drawn.groups, return_counts=True)[1].tolist() == [3] * 10
    assert set(drawn.slices) == {"city"}
    assert set(drawn.extra) == {"spread"}


def test_three_classes_keep_the_promise_and_the_plug_in_does_not():
    population = draw(np.random.default_rng(3), 5000)
    found = audit(
        population,
        config("risks={error: 0.04, wrong.dog: 0.08}", "confidence=0.9", "data.classes=[cat, dog, owl]"),
        draws=20,
        sizes=Sizes(300, 2000),
        seed=1,
    )
    assert found["kept"]
    assert found["certified"] > 0.9
    assert found["coverage"] > 0.5
    assert found["violation"] < found["plug_in_violation"]
    assert found["plug_in_violation"] > 0.1


def test_scrc_of_three_classes_is_held_against_its_selected_images():
    population = draw(np.random.default_rng(3), 4000)
    found = audit(
        population,
        config("policy.name=scrc", "coverage=0.6", "risks={miss_rate: 0.1}", "data.classes=[cat, dog, owl]"),
        draws=8,
        sizes=Sizes(100, 2000),
        seed=1,
    )
    assert found["certified"] == 1.0
    assert found["kept"]


def test_a_policy_that_breaks_its_claim_is_seen():
    population = draw(np.random.default_rng(3), 2000)
    policy = MulticlassPolicy("msp", (-9.0,) * 3, "one", NAMES, True)
    asked = config("risks={error: 0.01, fnr.owl: 0.9, wrong.dog: 0.001}")
    assert false_claims(policy, policy.decide(population), population, asked, NAMES, None) == ["error", "wrong.dog"]


def test_what_cannot_be_audited_is_refused():
    population = draw(np.random.default_rng(3), 200)
    with pytest.raises(ConfigError, match="at least 1 draw of 20"):
        audit(population, config("risks={error: 0.1}"), draws=0, sizes=Sizes(30, 30))
    with pytest.raises(ConfigError, match="a draw holds 1333333 images at most"):  # 100 million took 16 GB
        audit(population, config("risks={error: 0.1}"), draws=1, sizes=Sizes(30, 100_000_000))
    with pytest.raises(DataError, match="2 names for 3 columns"):
        audit(population, config("risks={error: 0.1}", "data.classes=[a, b]"), draws=1, sizes=Sizes(30, 30))
    with pytest.raises(ConfigError, match="SCRC-T promises a mean"):
        audit(
            population,
            config("policy.name=scrc", "policy.variant=T", "risks={miss_rate: 0.1}"),
            draws=1,
            sizes=Sizes(30, 30),
        )
    with pytest.raises(DataError, match="labels"):
        audit(Scores(logits=population.logits), config("risks={error: 0.1}"), draws=1, sizes=Sizes(30, 30))
