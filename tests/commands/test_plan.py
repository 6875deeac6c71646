"""`stage1 plan`: what the pilot promises is what an audit of the same sizes finds; groups, priors, and the command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stage1.commands import pilot as pilot_module
from stage1.commands.audit import Sizes, audit
from stage1.commands.pilot import _quick, pilot_plan
from stage1.commands.plan import Ask, make_plan, plan_lines, read_pilot, write_figure
from stage1.config import load_config
from stage1.errors import ConfigError, DataError
from stage1.scores import Scores, write_scores
from stage1.stages.fitting import fit_configured, frozen_map

from ..command_line import stage1
from ..runs.conftest import one_line_error


def scores(n, seed=0, prior=0.5, apart=3.0, groups=None):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prior).astype(int)
    margin = rng.normal(size=n) + apart * (labels - 0.5)
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels, groups=groups)


def config(*overrides):
    return load_config(overrides=list(overrides), environment={})[0]


WALK = "risks={fnr: 0.05, false_exit_rate: 0.1}"
PATH = "risks={fnr: 0.08, fpr: 0.08}"


# ---- the real method ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "overrides",
    [
        (WALK,),
        (PATH,),
        ("risks={error: 0.05}", "coverage=0.5", "target_prior=0.3"),
        ("risks={miss_rate: 0.02}", "allow_one_sided=true"),
    ],
)
def test_the_quick_fit_is_the_real_one(overrides):
    chosen = config(*overrides, "calibration.map=none")
    population = scores(1500)
    quick = _quick(chosen, population, ("0", "1"), frozen_map(chosen, population, gate=False, say=lambda text: None))
    seen = set()
    for seed in range(12):
        # few units in the first, so that both answers occur; tied scores in the second
        n = (30, 60, 120, 250, 500, 900)[seed % 6]
        select, calib = scores(150, seed=(1, seed)), scores(n, seed=(2, seed))
        if seed % 2:
            calib = Scores(logits=np.round(calib.logits), labels=calib.labels)
        policy = fit_configured(chosen, select=select, calib=calib, classes=("0", "1"), say=lambda text: None)
        whole = policy.certificate.certified and policy.certificate.reason is None
        found = quick(select, calib)
        assert (found is not None) == whole, seed
        if found is not None:
            assert found == policy.decide(population).coverage
        seen.add(whole)
    assert seen == {True, False}


@pytest.mark.parametrize(
    "overrides, n, planned",
    [(WALK, 230, 200), (PATH, 260, 60), pytest.param(PATH, 260, 200, marks=pytest.mark.slow)],
)
def test_the_pilot_promises_what_an_audit_finds(overrides, n, planned):
    """Other draws, the policies of `calibrate` whole: the same share certified, the same coverage, within Monte
    Carlo error. planned: draws of the pilot.
    """
    population, chosen, draws = scores(1200), config(overrides), 50
    (trial,) = pilot_plan(population, chosen, sizes=[n], draws=planned, seed=3).trials
    assert 0.1 < trial.success < 0.97
    audited = audit(population, chosen, draws=draws, sizes=Sizes(trial.n_select, trial.n_calib), seed=11)
    if overrides == PATH:  # a walk that leaves one side shut is certified for the audit, not whole for the plan
        error = np.sqrt(trial.success * (1 - trial.success) * (1 / draws + 1 / planned))
        assert trial.success == pytest.approx(audited["certified"], abs=4 * error)
        spread = trial.coverage_error * np.sqrt(1 + planned / draws)
        assert trial.coverage == pytest.approx(audited["coverage"], abs=4 * spread)
    else:
        assert trial.success <= audited["certified"] + 4 * np.sqrt(0.25 / draws)
    # the control: a quarter of the labels would have promised something else
    (fewer,) = pilot_plan(population, chosen, sizes=[n // 4], draws=40, seed=3).trials
    assert fewer.success < trial.success - 0.1


def test_the_search_finds_what_more_draws_confirm():
    population, chosen = scores(1500), config(WALK)
    found = pilot_plan(population, chosen, success=0.9, draws=150)
    assert found.below < found.n <= found.above
    (again,) = pilot_plan(population, chosen, sizes=[found.n], draws=800, seed=77).trials
    assert again.success > 0.9 - 0.06
    (before,) = pilot_plan(population, chosen, sizes=[found.below], draws=400, seed=77).trials
    assert before.success < 0.9
    assert found == pilot_plan(population, chosen, success=0.9, draws=150)  # the same seed, the same plan
    assert all(trial.low <= trial.success <= trial.high for trial in found.trials)
    coverage = [trial.coverage for trial in found.trials]
    assert coverage[-1] > coverage[0] + 0.3


def test_what_no_number_certifies_is_said(monkeypatch):
    monkeypatch.setattr(pilot_module, "_MOST_UNITS", 2000)
    document = make_plan(config(PATH), Ask(), scores(400, apart=0.0))
    assert document["pilot"]["n"] is None
    assert all(trial["draws"] == 20 for trial in document["pilot"]["trials"])  # hopeless: left at one block
    assert "not certified with probability 0.9 by any number up to" in plan_lines(document)[-1]


# ---- what is drawn -----------------------------------------------------------------------------------------------


def test_groups_are_the_unit():
    """Ten copies of each frame: 40 groups say as much as 40 images, not 400."""
    base = scores(300, apart=6.0)
    copies = np.repeat(np.arange(300), 10)
    grouped = Scores(logits=base.logits[copies], labels=base.labels[copies], groups=copies.astype(str))
    chosen = config("risks={miss_rate: 0.1, false_exit_rate: 0.1}", "unit=group")
    found = pilot_plan(grouped, chosen, sizes=[50, 130], draws=12, select_share=0.2)
    single = pilot_plan(base, chosen, sizes=[50, 130], draws=200, select_share=0.2)
    assert found.unit == "group"
    assert single.unit == "image"
    assert [trial.n_calib for trial in found.trials] == [40, 104]
    for one, other in zip(found.trials, single.trials, strict=True):
        assert one.success == pytest.approx(other.success, abs=4 * np.sqrt(0.25 / 12))
    assert found.trials[0].success < 0.1 < 0.9 < found.trials[1].success
    # the control: frames taken as independent certify already from 40 groups' worth of them
    assume = config("risks={miss_rate: 0.1, false_exit_rate: 0.1}", "assume_iid=true")
    assert pilot_plan(grouped, assume, sizes=[500], draws=20, select_share=0.2).trials[0].success > 0.9
    with pytest.raises(ConfigError, match="pilot of groups is drawn at its own balance"):
        pilot_plan(grouped, chosen, prior=0.5, sizes=[50])


def test_a_stated_prior_is_that_of_the_draws():
    """At 10 % positives the risk of the positives takes about five times the labels that it takes at 50 %."""
    population, chosen = scores(3000, prior=0.5, apart=5.0), config("risks={miss_rate: 0.1}", "allow_one_sided=true")
    n = {prior: pilot_plan(population, chosen, prior=prior, draws=100).n for prior in (0.1, 0.5)}
    assert 3.5 < n[0.1] / n[0.5] < 6.5
    assert pilot_plan(population, chosen, sizes=[60], draws=5).prior == pytest.approx(population.labels.mean())


def test_bad_input_is_named(tmp_path):
    population = scores(200)
    with pytest.raises(ConfigError, match="success=1"):
        pilot_plan(population, config(WALK), success=1.0)
    with pytest.raises(DataError, match="every class needs labelled rows"):
        pilot_plan(population.take(population.labels == 1), config(WALK))
    with pytest.raises(DataError, match="labels"):
        pilot_plan(Scores(logits=population.logits), config(WALK))
    with pytest.raises(ConfigError, match="size 1"):
        pilot_plan(population, config(WALK), sizes=[1])
    with pytest.raises(ConfigError, match="--expected-risk 1"):
        make_plan(config(WALK), Ask(success=0.9, expected=1.0))
    with pytest.raises(ConfigError, match="has no closed form"):
        make_plan(config("risks={error: 0.1}"), Ask())
    write_scores(tmp_path / "train.csv", population, np.repeat("train", 200))
    with pytest.raises(DataError, match="no rows but those of train"):
        read_pilot(tmp_path / "train.csv", values="logits", columns={}, classes=None)


# ---- the command -------------------------------------------------------------------------------------------------


def test_the_command_prints_and_draws(tmp_path):
    write_scores(tmp_path / "pilot.parquet", scores(400, apart=5.0))
    (tmp_path / "out").mkdir()
    result = stage1(
        "plan",
        "risks={error: 0.1, fnr: 0.1}",
        "--scores",
        "pilot.parquet",
        "--draws",
        "20",
        "--figure",
        "out/plan.svg",
        "-q",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    assert "to be certified with probability 0.9" in result.stdout.splitlines()[-1]
    assert b"<svg" in (tmp_path / "out/plan.svg").read_bytes()
    result = stage1("plan", "risks.fnr=0.1", "--success", "0.8", "--json", cwd=tmp_path)
    document = json.loads(result.stdout)
    assert document["pilot"] is None
    assert document["success"]["success"] >= 0.8
    assert document["needs"][0]["risk"] == "fnr"
    write_figure(document, tmp_path / "plan.png")
    assert (tmp_path / "plan.png").read_bytes().startswith(b"\x89PNG")
    one_line_error(stage1("plan", "--figure", "plan.pdf", cwd=tmp_path), 2, "plan.pdf", ".png or .svg")


def test_the_figure_has_a_panel_for_the_chance():
    from stage1.report.figures.plan import plan_drawing

    document = make_plan(config(WALK), Ask(success=0.8, draws=20), scores(800, apart=4.0))
    options = {"confidence": 0.95, "success": document["success"], "pilot": document["pilot"]}
    drawing = plan_drawing(document["needs"], **options)
    assert drawing == plan_drawing(document["needs"], **options)  # the same bytes
    height = {
        name: int.from_bytes(png[20:24], "big")
        for name, png in (
            ("both", drawing.png),
            ("needs", plan_drawing(document["needs"]).png),
            ("pilot", plan_drawing([], pilot=document["pilot"]).png),
        )
    }
    assert height["both"] > height["needs"] > height["pilot"]
    with pytest.raises(DataError, match="or a pilot"):
        plan_drawing([])


def test_the_prior_of_the_arithmetic_is_the_pilots():
    """Counts for a prior of one half stood above a pilot with a quarter of positives."""
    pilot = scores(1200)
    share = float(pilot.known_labels.mean())
    document = make_plan(config(WALK), Ask(draws=20), pilot)
    assert document["prior"] == document["pilot"]["prior"] == share
    assert make_plan(config(WALK), Ask(draws=20, prior=0.5), pilot)["prior"] == 0.5


def test_what_is_simulation_error_is_called_so():
    """An exact interval of the draws says nothing of what the pilot leaves open, and is not called a 95 % interval."""
    trial = {"n": 100, "n_select": 15, "n_calib": 85, "draws": 20, "success": 0.95, "low": 0.75, "high": 1.0}
    pilot = {"unit": "image", "prior": 0.4, "wanted": 0.9, "n": 100, "below": None, "above": None}
    pilot["interval"] = pilot_module.NO_INTERVAL
    document = {"needs": [], "success": None, "pilot": {**pilot, "trials": [{**trial, "coverage": 0.7}]}}
    text = "\n".join(plan_lines(document))
    assert "simulation error" in text
    assert "no interval" in text
    assert "95 %" not in text
    assert make_plan(config(WALK), Ask(draws=20), scores(400))["pilot"]["interval"].startswith("no interval: ")
