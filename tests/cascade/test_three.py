"""Three stages: thresholds of the middle one found on val_select too, the promise kept, and a plan that looks at
every stage.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import yaml
from scipy import special

from stage1.cascade import CascadeConfig, Labelled, Recorded, certify_cascade, defer_rate, final_answers
from stage1.cascade.candidates import candidates
from stage1.commands.cascade_plan import plan_cascade, plan_lines
from stage1.scores import Scores

DISTANCES = (1.2, 1.8, 2.6)  # half the distance of the classes in each stage's noise
LIMIT, DELTA = 0.05, 0.05


def config(*, exits: tuple[object, object] = ("auto", "auto"), **changes: object) -> CascadeConfig:
    stages = [
        {"name": "first", "callable": "a:b", "exit": exits[0]},
        {"name": "middle", "callable": "a:b", "exit": exits[1], "cost": {"money": 0.001}},
        {"name": "last", "callable": "a:b", "answer_above": "auto", "cost": {"money": 0.01}},
    ]
    risks = {"miss_rate": LIMIT, "false_exit_rate": LIMIT}
    return CascadeConfig.model_validate({"classes": ["none", "roadwork"], "stages": stages, "risks": risks} | changes)


def draw(rng: np.random.Generator, n: int) -> Labelled:
    labels = rng.integers(0, 2, n)
    sign = 2.0 * labels - 1.0
    probability = np.stack([special.expit(2 * d * (d * sign + rng.normal(size=n))) for d in DISTANCES], axis=1)
    shape = probability.shape
    names = np.array([f"{rng.integers(1 << 60)}-{row}" for row in range(n)])
    recorded = Recorded(
        names,
        probability,
        np.full(shape, -1, dtype=np.int64),
        np.full(shape, "answered", dtype="<U16"),
        np.ones(shape, dtype=np.int64),
        np.tile([8.0, 80.0, 800.0], (n, 1)),
        np.zeros(shape),
    )
    return Labelled(recorded, Scores(logits=np.zeros((n, 2)), labels=labels, ids=names))


def true_risks(rules) -> tuple[float, float]:
    """Exact (miss_rate, false_exit_rate): given the class the stages are independent."""

    def as_first_class(sign: float) -> float:
        reached, total = 1.0, 0.0
        for rule, d in zip(rules, DISTANCES, strict=True):
            cuts = (rule.answer_above,) * 2 if rule.kind == "always" else (rule.below, rule.above)
            edges = [
                open_end if cut is None else special.logit(cut)
                for cut, open_end in zip(cuts, (-np.inf, np.inf), strict=True)
            ]
            low, high = (float(special.ndtr(edge / (2 * d) - d * sign)) for edge in edges)
            total, reached = total + reached * low, reached * (high - low)
        return total

    return as_first_class(1.0), 1.0 - as_first_class(-1.0)


def test_both_bands_shrink_together_from_all_deferred_to_none():
    select = draw(np.random.default_rng(0), 600)
    arguments = {"n_calib": 1000, "delta": DELTA}
    found = candidates(select.recorded, select.known.known_labels, config(), varied=[0, 1], **arguments)
    reach = np.array([final_answers(select.recorded, one.rules).asked.mean(axis=0) for one in found])
    assert reach[0].tolist() == [1.0, 1.0, 1.0]
    assert reach[-1].tolist() == [1.0, 0.0, 0.0]
    assert np.all(np.diff(reach[:, 1:], axis=0) <= 0)
    assert len({one.rules for one in found}) == len(found) == 21
    # Each by itself: the other keeps the thresholds of the file.
    only = candidates(
        select.recorded,
        select.known.known_labels,
        config(exits=({"below": 0.1, "above": 0.9}, "auto")),
        varied=[1],
        **arguments,
    )
    assert {one.rules[0].to_document()["below"] for one in only} == {0.1}
    assert len({one.rules[1] for one in only}) == 21


def test_the_certificate_names_the_stages_whose_thresholds_moved():
    rng = np.random.default_rng(1)
    found, _ = certify_cascade(config(), draw(rng, 2500), draw(rng, 600))
    assert found.certified
    assert found.method.startswith("fixed sequence of thresholds of 'first' and 'middle' ordered on val_select")
    assert [rule.kind for rule in found.rules] == ["thresholds", "thresholds", "always"]
    assert max(true_risks(found.rules)) <= LIMIT


def test_truth_of_the_population_by_brute_force():
    rng = np.random.default_rng(2)
    found, _ = certify_cascade(config(), draw(rng, 2500), draw(rng, 600))
    many = draw(rng, 400_000)
    positive, labels = final_answers(many.recorded, found.rules).positive, many.known.known_labels
    miss, false = true_risks(found.rules)
    assert (~positive[labels == 1]).mean() == pytest.approx(miss, abs=0.0015)
    assert positive[labels == 0].mean() == pytest.approx(false, abs=0.0015)


def outcome(draws: int, seed: int, exits: tuple[object, object]) -> tuple[float, float, float]:
    """(share of draws with a false promise, share certified, mean money for 1,000 images where certified)."""
    rng, broken, money = np.random.default_rng(seed), 0, []
    for _ in range(draws):
        calib = draw(rng, 700)
        found, _ = certify_cascade(config(exits=exits), calib, draw(rng, 250))
        if found.certified:
            broken += max(true_risks(found.rules)) > LIMIT
            reach = final_answers(calib.recorded, found.rules).asked.mean(axis=0)
            money.append(1000 * float(reach @ [0.0, 0.001, 0.01]))
    return broken / draws, len(money) / draws, float(np.mean(money))


def test_the_promise_is_kept_and_a_middle_stage_on_auto_saves_money():
    broken, certified, money = outcome(40, 3, ("auto", "auto"))
    assert broken <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 40)
    assert certified > 0.85
    _, also, dearer = outcome(40, 3, ("auto", {"below": 0.0, "above": 1.0}))  # the middle one passes everything on
    assert also > 0.85
    assert money < 0.8 * dearer


@pytest.mark.slow
def test_the_promise_is_kept_in_two_thousand_draws():
    broken, certified, _ = outcome(2000, 4, ("auto", "auto"))
    assert broken <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / 2000)
    assert certified > 0.85


# ---- the plan looks at every stage


@pytest.fixture
def three(tmp_path, bundle_folder):
    """A cascade file of three stages; the last takes 6 images a minute, the middle one plenty."""
    (tmp_path / "stages_of_three.py").write_text("def half(data):\n    return 0.5\n")
    document = {
        "classes": ["none", "roadwork"],
        "stages": [
            {"name": "first", "bundle": str(bundle_folder), "exit": "own"},
            {
                "name": "middle",
                "callable": "stages_of_three:half",
                "exit": {"below": 0.2, "above": 0.8},
                "calls": {"per_minute": 6000},
            },
            {"name": "last", "callable": "stages_of_three:half", "calls": {"per_minute": 6}},
        ],
    }
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_later_stage_that_overflows_is_found(three):
    found = plan_cascade(three, "60/min")
    middle, last = found["stages"]
    # Of the bundle alone it is known what the first stage defers; all of that might reach the last one.
    assert middle["fits"]
    assert last["fits"] is None
    assert found["fits"] is None
    assert last["defer"] == middle["defer"]
    assert "MAY NOT FIT" in "\n".join(plan_lines(found))
    document = yaml.safe_load(three.read_text())
    document["stages"][2]["calls"]["per_minute"] = 6000
    three.write_text(yaml.safe_dump(document))
    assert plan_cascade(three, "60/min")["fits"] is True


def test_an_evaluation_counts_what_reaches_each_stage(three, tmp_path, monkeypatch):
    counts = {
        "role": "val_test",
        "choices": 1,
        "units": 400,
        "positives": 100,
        "stages": [
            {"stage": "middle", "deferred": 200, "deferred_positives": 80},
            {"stage": "last", "deferred": 100, "deferred_positives": 10},
        ],
    }
    costs = [
        {"milliseconds": 5.0, "attempts": 1.0},
        {"milliseconds": 5.0, "attempts": 1.0},
        {"milliseconds": 500.0, "attempts": 2.0},
    ]
    document = {"defer": counts, "costs": costs, "frontier": [], "roles": {"val_test": 400}}
    monkeypatch.setattr("stage1.commands.cascade_plan.certified_rules", lambda *_: ((), document))
    found = plan_cascade(three, "20/min", evaluated=tmp_path)
    middle, last = found["stages"]
    assert (middle["defer"]["observed"], last["defer"]["observed"]) == (0.5, 0.25)
    # Two bounds that hold together at 95 %: each has half of delta.
    assert last["defer"]["delta"] == pytest.approx(0.025)
    alone = defer_rate(np.arange(400) < 100, None, delta=0.05, prior=None, fitted_here=False)
    assert last["defer"]["upper"] > alone.upper
    # Six attempts a minute at two for an image.
    assert last["capacity_per_minute"] == 3
    assert (middle["fits"], last["fits"], found["fits"]) == (True, False, False)
    text = "\n".join(plan_lines(found))
    assert "'last' gets 25.0% of them" in text
    assert text.count("DOES NOT FIT") == 1
    at_prior = plan_cascade(three, "20/min", evaluated=tmp_path, prior=0.5)["stages"][1]["defer"]
    assert at_prior["observed"] == pytest.approx(0.5 * 10 / 100 + 0.5 * 90 / 300)
    counts["choices"] = 21
    chosen_here = plan_cascade(three, "20/min", evaluated=tmp_path)["stages"][1]["defer"]
    assert chosen_here["upper"] > last["defer"]["upper"]
    assert "21 configurations" in chosen_here["method"]
    assert json.dumps(found)


def test_the_bound_holds_for_the_configuration_that_was_chosen_on_the_same_images():
    """Of 21 nested configurations, the one that looks best on the very images: 21 bounds at once hold, one alone
    does not.
    """
    rng, draws, n, true = np.random.default_rng(5), 600, 150, 0.3
    broken = {1: 0, 21: 0}
    for _ in range(draws):
        columns = rng.random((n, 21)) < true
        best = columns[:, int(columns.sum(axis=0).argmin())]
        for choices in broken:
            broken[choices] += (
                defer_rate(best, None, delta=DELTA, prior=None, fitted_here=False, choices=choices).upper < true
            )
    assert broken[21] / draws <= DELTA + 3 * np.sqrt(DELTA * (1 - DELTA) / draws)
    assert broken[1] / draws > 0.3
