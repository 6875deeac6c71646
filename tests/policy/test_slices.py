"""Claims for slices: jointly true at the stated confidence, whichever thresholds were chosen."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.errors import ConfigError
from stage1.policy import fit_policy, load_policy, refit
from stage1.policy.target import Request
from stage1.policy.threshold_choice import choose, path_from
from stage1.scores import Scores

RISKS = {"fnr": 0.1, "false_exit_rate": 0.1}
# Separation of each city: the last one is so bad that its claim is false wherever the others allow exits.
CITIES = {"a": 5.0, "b": 4.0, "c": 1.0}
SHARES = (0.5, 0.4, 0.1)


def drawn(rng, n, prefix):
    city = rng.choice(list(CITIES), n, p=SHARES)
    labels = rng.integers(0, 2, n)
    score = (labels - 0.5) * np.vectorize(CITIES.get)(city) + rng.normal(size=n)
    night = np.where(rng.random(n) < 0.3, "1", "0")
    return Scores(
        logits=np.stack([np.zeros(n), score], axis=1),
        labels=labels,
        ids=[f"{prefix}{i}" for i in range(n)],
        slices={"city": city, "night": night},
    )


@pytest.fixture(scope="module")
def population():
    return drawn(np.random.default_rng(1), 400_000, "p")


def risks_of(policy, scores):
    decision, labels = policy.decide(scores), scores.labels
    missed = decision.exit & (decision.label == 0) & (labels == 1)
    return {
        "fnr": missed.sum() / max((decision.exit & (labels == 1)).sum(), 1),
        "false_exit_rate": (decision.exit & (decision.label == 1) & (labels == 0)).sum() / (labels == 0).sum(),
    }


def test_slices_hold_where_they_say_so(population):
    rng = np.random.default_rng(2)
    draws, broken, held = 60, 0, {}
    parts = {f"city={city}": population.take(population.slices["city"] == city) for city in CITIES}
    parts |= {f"night={n}": population.take(population.slices["night"] == n) for n in "01"}
    for _ in range(draws):
        policy = fit_policy(
            "softmax", select=drawn(rng, 500, "s"), calib=drawn(rng, 3000, "c"), risks=RISKS, slices=("city", "night")
        )
        claims = policy.certificate.slices
        assert [claim.name for claim in claims] == ["city=a", "city=b", "city=c", "night=0", "night=1"]
        assert all(claim.delta == pytest.approx(0.05 / 5) for claim in claims)
        certified = [claim.name for claim in claims if claim.certified]
        false = [
            name for name in certified if any(risk > RISKS[key] for key, risk in risks_of(policy, parts[name]).items())
        ]
        broken += bool(false)
        for name in certified:
            held[name] = held.get(name, 0) + 1
    assert broken <= draws * 0.05 + 3 * np.sqrt(draws * 0.05 * 0.95)
    assert held.get("city=c", 0) <= 3  # where the claim is false it is not made
    assert held["city=a"] >= 0.9 * draws  # and where it is true it is


def test_the_sentence_states_the_multiplicity_and_refit_agrees(tmp_path):
    rng = np.random.default_rng(3)
    select, calib = drawn(rng, 500, "s"), drawn(rng, 3000, "c")
    policy = fit_policy("softmax", select=select, calib=calib, risks=RISKS, slices=("city",))
    reported = policy.certificate
    assert "for the 3 slices asked for (each at 98.33 %)" in reported.statement
    assert "Not shown for city=c" in reported.statement
    counts = reported.slices[0].risks["false_exit_rate"]
    inside = calib.take(calib.slices["city"] == "a")
    assert counts.n == (inside.labels == 0).sum()
    policy.save(tmp_path / "thresholds.json")
    reported.save(tmp_path / "certificate.json")
    again = refit(load_policy(tmp_path), calib=calib, select=select)
    assert again.certificate == reported


def test_slices_of_groups_and_of_the_gate():
    rng = np.random.default_rng(4)
    select, calib = drawn(rng, 600, "s"), drawn(rng, 4000, "c")

    def grouped(scores):
        return Scores(
            logits=scores.logits,
            labels=scores.labels,
            ids=scores.ids,
            slices=scores.slices,
            groups=[f"g{i // 4}" for i in range(len(scores))],
        )

    for unit in ("group", "group_mean"):
        found = fit_policy(
            "softmax",
            select=grouped(select),
            calib=grouped(calib),
            risks={"miss_rate": 0.1, "false_exit_rate": 0.1},
            slices=("night",),
            unit=unit,
        ).certificate
        assert found.unit == unit
        held = {claim.value: claim.certified for claim in found.slices}
        assert set(held) == {"0", "1"}
        assert held["0"]
    assert fit_policy("gate", select=select, calib=calib, risks=RISKS, slices=("night",)).certificate.slices


def test_bad_slices_are_named():
    rng = np.random.default_rng(5)
    select, calib = drawn(rng, 200, "s"), drawn(rng, 300, "c")
    with pytest.raises(ConfigError, match="'town' is not among"):
        fit_policy("softmax", select=select, calib=calib, risks=RISKS, slices=("town",))
    with pytest.raises(ConfigError, match="slices"):
        fit_policy("scrc", select=select, calib=calib, risks=RISKS, slices=("city",))
    many = Scores(logits=calib.logits, labels=calib.labels, slices={"town": [str(i) for i in range(300)]})
    with pytest.raises(ConfigError, match="at most 50"):
        fit_policy(
            "softmax", select=select, calib=many, risks={"miss_rate": 0.3, "false_exit_rate": 0.3}, slices=("town",)
        )


def test_slices_are_tested_along_one_path_only():
    """A second path, tested where the first fails, would be chosen by calibration labels: slices would have to pay
    for it.
    """
    rng = np.random.default_rng(6)
    request = Request({"fnr": 0.02, "fpr": 0.02})
    hedged = 0
    for _ in range(200):
        n = 150
        labels = rng.integers(0, 2, n)
        score = (labels - 0.5) * rng.uniform(2, 8) + rng.standard_t(2, n)
        path = path_from(request, 1500, score, labels)
        if path is None or path.second is None:
            continue
        hedged += 1
        calib = rng.integers(0, 2, 1500)
        chosen = choose((calib - 0.5) * 8 + rng.normal(size=1500), calib, request, score, labels, along_path=True)
        assert chosen.delta == pytest.approx(0.05)
        if chosen.path is not None:
            assert chosen.path.second is None
    assert hedged  # without one this test says nothing
