"""Calibration maps in runs: the same decisions and probabilities in memory, in a folder and in a bundle; what is
certified.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stage1 import load_bundle, load_policy
from stage1.bundle import verify_bundle, write_bundle
from stage1.bundle.schema import BUNDLE_KIND
from stage1.calibration import (
    Beta,
    Dirichlet,
    FittedMap,
    Identity,
    Isotonic,
    Platt,
    Temperature,
    Vector,
    automatic,
    fit_map,
)
from stage1.commands.audit import Sizes, audit
from stage1.commands.scores import calibrate_scores, evaluate_scores
from stage1.config import CalibrationConfig, validated
from stage1.errors import ConfigError, IntegrityError
from stage1.evaluation import brier, ece, nll
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.policy import CalibratedPolicy, decided_on, fit_policy, refit, reported
from stage1.policy.calibrated import fit_calibrated
from stage1.runs.schema import STAGES_KIND
from stage1.scores import Scores, read_scores, write_scores
from stage1.stages.calibrate import save_policy
from stage1.stages.evaluate import write_evaluation
from stage1.stages.fitting import fit_configured, frozen_map
from stage1.stages.reporting import report_of_scores
from stage1.storage.documents import read_document

_SPEC = importlib.util.spec_from_file_location("bundle_parts", Path(__file__).parents[1] / "bundle" / "conftest.py")
parts = importlib.util.module_from_spec(_SPEC)
sys.modules.setdefault(_SPEC.name, parts)
_SPEC.loader.exec_module(parts)

CLASSES = ("none", "roadwork")
NAMES = ("temperature", "platt", "beta", "isotonic")
RISKS = {"fnr": 0.05, "false_exit_rate": 0.05}


def sample(n, seed=0, slope=2.5, shift=0.8, prefix="r"):
    """Overconfident scores with a bias: sigmoid(slope * t + shift) where sigmoid(t) is true."""
    rng = np.random.default_rng((seed, n))
    true = rng.normal(size=n) * 3.0
    labels = (rng.random(n) < 1 / (1 + np.exp(-true))).astype(np.int64)
    logits = np.stack([np.zeros(n), slope * true + shift], axis=1)
    return Scores(logits=logits, labels=labels, ids=[f"{prefix}{seed}-{row}" for row in range(n)])


def configured(kind="auto", risks=RISKS, **values):
    return validated({"risks": risks, "calibration": {"map": kind}, **values})


def fitted(kind="auto", said=None, select=None, calib=None, **values):
    return fit_configured(
        configured(kind, **values),
        select=sample(1500, 1) if select is None else select,
        calib=sample(4000, 2) if calib is None else calib,
        classes=CLASSES,
        say=(said if said is not None else []).append,
    )


@pytest.fixture(scope="module")
def policies():
    return {kind: fitted(kind) for kind in ("none", "auto", *NAMES)}


def same(one, other):
    for name in ("exit", "label", "probability"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


# ---- what the map does, and what it leaves alone -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["auto", *NAMES])
def test_the_map_lowers_the_loss_of_fresh_rows_and_is_named(kind, policies):
    fresh, policy = sample(6000, 3), policies[kind]
    assert policy.certified
    assert policy.frozen.map.name == kind or kind == "auto"
    assert policy.frozen.reason.startswith(policy.frozen.map.name)
    before = nll(fresh.probabilities, fresh.labels)
    after = nll(reported(policy, fresh).probabilities, fresh.labels)
    assert after < before - 0.02
    np.testing.assert_allclose(
        reported(policy, fresh).probabilities[:, 1], policy.decide(fresh).probability, atol=1e-12
    )


@pytest.mark.parametrize("kind", ["auto", "temperature", "platt", "beta"])
def test_a_rising_map_moves_no_decision_bit_by_bit(kind, policies):
    fresh = sample(6000, 3)
    plain, ours = policies["none"], policies[kind]
    assert ours.frozen.score == "raw"
    # Even odds move with the map, and with them the limits of the thresholds, which these targets do not reach.
    assert ours.certificate.boundary[0] != 0.0 or kind in ("temperature",)
    limits = {"boundary": None, "assumptions": ()}
    assert replace(ours.certificate, **limits) == replace(plain.certificate, **limits)
    for name in ("exit", "label"):
        np.testing.assert_array_equal(getattr(ours.decide(fresh), name), getattr(plain.decide(fresh), name))
    assert (ours.decide(fresh).probability != plain.decide(fresh).probability).any()
    assert {**ours.to_document(), "score": "raw"} == plain.to_document()


def test_isotonic_is_frozen_first_and_certified_on_its_own_score(policies):
    policy, calib, select = policies["isotonic"], sample(4000, 2), sample(1500, 1)
    assert policy.frozen.score == "mapped"
    # By hand: the same map, the same engine, on mapped scores
    by_hand = Isotonic.fit(select)
    plain = fit_policy(
        "softmax", select=by_hand.calibrate(select), calib=by_hand.calibrate(calib), risks=RISKS, classes=CLASSES
    )
    assert policy.margin_thresholds == plain.margin_thresholds
    assert policy.certificate.risks == plain.certificate.risks
    fresh = sample(6000, 3)
    same(policy.decide(fresh), plain.decide(by_hand.calibrate(fresh)))
    document, certificate = policy.to_document(), policy.certificate
    assert (document["score"], document["calibration"]) == ("mapped", policy.frozen.digest)
    assert any("isotonic map of calibration.json" in line and "val_select" in line for line in certificate.assumptions)
    assert any(policy.frozen.digest in line for line in certificate.void_if)
    assert not any("calibration.json" in line for line in policies["beta"].certificate.void_if)
    # Which images were counted is said of the images, not of their scores
    assert certificate.calib_digest == policies["none"].certificate.calib_digest


def test_what_is_said_has_the_numbers():
    said: list[str] = []
    fitted("auto", said)
    fitted("isotonic", said)
    assert len(said) == 2
    assert "calibration map: " in said[0]
    assert "cross-validated NLL" in said[0]
    assert "change -" in said[0]
    assert "thresholds and certificate are of the mapped score" in said[1]
    assert "mapped" not in said[0]


def test_auto_takes_only_maps_that_keep_the_order():
    assert automatic(2) == ("temperature", "platt", "beta")
    # Useless scores that point the wrong way: platt at slope 0 has the best NLL, and would tie every score
    turned = sample(1500, 1)
    turned = replace(turned, logits=-turned.logits)
    said: list[str] = []
    found = frozen_map(configured("auto"), turned, gate=False, say=said.append)
    assert isinstance(found.map, Identity)
    assert "would not keep the order" in said[0]
    assert fit_map("platt", turned).slope == 0


def test_a_map_that_does_not_help_is_not_kept():
    honest = sample(3000, 4, slope=1.0, shift=0.0)
    found = frozen_map(configured("isotonic"), honest, gate=False, say=[].append)
    assert isinstance(found.map, Identity)
    assert found.score == "raw"
    assert [row["name"] for row in found.comparison["table"]] == ["identity", "isotonic"]
    for reason, select in (
        ("calibration.map=none", honest),
        ("no labelled rows", honest.take([])),
        ("10 are needed", honest.take(np.arange(8))),
    ):
        kind = "none" if "none" in reason else "auto"
        found = frozen_map(configured(kind), select, gate=False, say=[].append)
        assert isinstance(found.map, Identity)
        assert reason in found.reason


def test_a_map_for_another_number_of_classes_is_refused():
    with pytest.raises(
        ConfigError, match=r"calibration\.map: vector is not for 2 classes; use auto, none, temperature"
    ):
        frozen_map(configured("vector"), sample(100), gate=False, say=[].append)
    with pytest.raises(ConfigError, match=r"calibration\.map"):
        configured("spline")


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "auto", *NAMES])
def test_read_back_it_decides_and_states_the_same(kind, policies, tmp_path):
    policy = policies[kind]
    written = save_policy(tmp_path, policy)
    assert sorted(path.name for path in written) == ["calibration.json", "certificate.json", "thresholds.json"]
    again = load_policy(tmp_path)
    assert again == policy
    assert again.frozen.digest == policy.frozen.digest
    for seed in range(3):
        scores = sample(2000, 50 + seed, slope=1.0 + seed, shift=seed - 1.0)
        same(again.decide(scores), policy.decide(scores))
        expected = policy.frozen.map.apply(scores.logits)[:, 1]
        np.testing.assert_allclose(again.decide(scores).probability, expected, atol=1e-12)


@pytest.mark.parametrize("kind", NAMES)
def test_refit_gives_the_same_policy_back(kind, policies):
    policy = policies[kind]
    again = refit(policy, calib=sample(4000, 2), select=sample(1500, 1))
    assert again == policy
    other = refit(policy, calib=sample(4000, 9), select=sample(1500, 1))
    assert other.to_document() != policy.to_document()


def test_thresholds_and_map_cannot_be_parted_where_the_score_is_mapped(policies, tmp_path):
    save_policy(tmp_path, policies["isotonic"])
    whole = (tmp_path / "calibration.json").read_bytes()
    (tmp_path / "calibration.json").unlink()
    with pytest.raises(IntegrityError, match=r"calibration\.json: missing"):
        load_policy(tmp_path)
    for other in (fit_map("isotonic", sample(1500, 7)), Temperature(slope=0.4, n=9, n_classes=2)):
        FittedMap(other).save(tmp_path / "calibration.json")
        with pytest.raises(IntegrityError, match="is not the map"):
            load_policy(tmp_path)
    document = json.loads(whole)
    document["parameters"]["curves"][0]["values"][0] -= 1e-9
    (tmp_path / "calibration.json").write_text(json.dumps(document))
    with pytest.raises(IntegrityError, match="is not the map"):
        load_policy(tmp_path)
    # and a mapped map may not slip under raw thresholds
    save_policy(tmp_path, policies["beta"])
    (tmp_path / "calibration.json").write_bytes(whole)
    with pytest.raises(IntegrityError, match="is not the map"):
        load_policy(tmp_path)


def test_a_policy_without_a_map_leaves_none_behind_and_old_folders_still_load(policies, tmp_path):
    save_policy(tmp_path, policies["beta"])
    plain = policies["none"].base
    save_policy(tmp_path, plain)
    assert not (tmp_path / "calibration.json").exists()
    assert load_policy(tmp_path) == plain
    assert "score" not in json.loads((tmp_path / "thresholds.json").read_text())


# ---- the bundle ----------------------------------------------------------------------------------------------------


def bundled(policy, folder, calib, select, evaluation=None):
    run = folder / "run"
    run.mkdir()
    (run / "model.onnx").write_bytes(parts.tiny_model())
    save_policy(run, policy)
    made = parts.Parts(run, calib, parts.tiny_model())
    return write_bundle(
        folder / "bundle",
        **(made.arguments() | {"selection": select, "map_file": run / "calibration.json", "evaluation": evaluation}),
    )


@pytest.mark.parametrize("kind", ["none", *NAMES])
def test_the_bundle_predicts_the_calibrated_probability(kind, tmp_path):
    select, calib = replace(parts.draw(1200, 5), ids=None), parts.draw(2000, 6)
    select = replace(select, logits=2.0 * select.logits + [0.0, 1.0], ids=[f"s{row}" for row in range(1200)])
    calib = replace(calib, logits=2.0 * calib.logits + [0.0, 1.0])
    policy = fitted(kind, select=select, calib=calib, risks={"fnr": 0.01, "false_exit_rate": 0.01})
    assert policy.certified
    folder = bundled(policy, tmp_path, calib, select)
    assert verify_bundle(folder, recompute=True).problems == ()
    bundle = load_bundle(folder)
    assert bundle.policy == policy
    manifest = read_document(folder / "bundle.json", BUNDLE_KIND)
    assert "calibration.json" in manifest["files"]
    assert manifest["probability"]["map"] == policy.frozen.map.name
    card = (folder / "README.md").read_text()
    assert f"- probability: {policy.frozen.map.name}" in card
    assert ("the thresholds lie on the score after this map" in card) == (kind == "isotonic")
    colours = np.random.default_rng(0).integers(0, 256, (60, 3))
    images = [parts.picture(tuple(int(part) for part in colour)) for colour in colours]
    rows, logits, failures = bundle.predictor.logits(images)
    assert not failures
    raw = Scores(logits=logits.astype(np.float64))
    answers = bundle.predict(images)
    assert len(rows) == len(answers) == 60
    offline = policy.frozen.map.apply(raw.logits)[:, 1]
    np.testing.assert_allclose([answer.probability for answer in answers], offline, atol=1e-6)
    expected = policy.decide(raw)
    assert [answer.exit for answer in answers] == expected.exit.tolist()
    assert 0 < expected.exit.sum() < 60
    by_hand = policy.base.decide(raw) if kind != "isotonic" else policy.base.decide(policy.frozen.map.calibrate(raw))
    assert [answer.label for answer in answers] == [CLASSES[label] for label in by_hand.label]


def test_verify_finds_a_map_that_was_not_made_on_val_select(tmp_path):
    """The control: isotonic fitted on the calibration images themselves, resealed with every digest right."""
    select, calib = replace(parts.draw(1200, 5), ids=[f"s{row}" for row in range(1200)]), parts.draw(2000, 6)
    cheat = FittedMap(Isotonic.fit(calib))

    def fit(rows, units, calibration):
        return fit_policy("softmax", select=rows, calib=units, risks=RISKS, classes=CLASSES, calibration=calibration)

    policy = fit_calibrated(cheat, fit, select=select, calib=calib)
    folder = bundled(policy, tmp_path, calib, select)
    assert verify_bundle(folder).ok
    assert any(
        "calibration.json: was fitted on other images" in line
        for line in verify_bundle(folder, recompute=True).problems
    )


def test_a_map_without_its_manifest_entry_is_found(tmp_path):
    select, calib = replace(parts.draw(1200, 5), ids=[f"s{row}" for row in range(1200)]), parts.draw(2000, 6)
    folder = bundled(fitted("platt", select=select, calib=calib), tmp_path, calib, select)
    (folder / "calibration.json").unlink()
    assert any("calibration.json: missing" in line for line in verify_bundle(folder).problems)


# ---- gate, SCRC, more classes --------------------------------------------------------------------------------------


def test_a_gate_in_use_keeps_its_own_probability(tmp_path):
    rng = np.random.default_rng(3)

    def hard(n, seed):
        scores = sample(n, seed, slope=1.2, shift=0.0)
        right = scores.logits.argmax(axis=1) == scores.labels
        return replace(scores, gate=rng.normal(np.where(right, 2.0, -2.0), 1.0))

    said: list[str] = []
    select, calib = hard(2000, 1), hard(4000, 2)
    policy = fitted("isotonic", said, select=select, calib=calib, policy={"name": "gate"})
    assert policy.base.decided_by == "gate"
    assert "the gate states a probability of its own" in said[-1]
    assert isinstance(policy.frozen.map, Identity)
    fresh = hard(1000, 3)
    same(policy.decide(fresh), policy.base.decide(fresh))
    save_policy(tmp_path, policy)
    same(load_policy(tmp_path).decide(fresh), policy.decide(fresh))
    np.testing.assert_allclose(
        reported(policy, fresh).probabilities[:, 1], policy.decide(fresh).probability, atol=1e-12
    )
    _, document = write_evaluation(tmp_path, fresh, policy, targets={}, paths=None, resamples=20, level=0.95, seed=0)
    assert document["calibration"]["map"] == "gate"
    assert document["metrics"]["nll"]["value"] == pytest.approx(nll(policy.decide(fresh).probability, fresh.labels))


def test_a_refused_gate_gets_the_map():
    policy = fitted("isotonic", policy={"name": "gate"})
    assert policy.base.decided_by == "softmax"
    assert policy.frozen.score == "mapped"
    again = refit(policy, calib=sample(4000, 2), select=sample(1500, 1))
    assert again == policy


@pytest.mark.parametrize("kind", NAMES)
def test_scrc_under_every_map(kind, tmp_path):
    asked = {"policy": {"name": "scrc"}, "risks": {"miss_rate": 0.1, "false_exit_rate": 0.1}, "coverage": 0.5}
    policy, plain = fitted(kind, **asked), fitted("none", **asked)
    fresh = sample(3000, 3)
    if kind == "isotonic":
        # One number must cut a share of the images; whole blocks at one value may leave no such cut, and it says so
        assert policy.certified or "tie at the confidence" in policy.certificate.reason
    else:
        assert policy.certified
        np.testing.assert_array_equal(policy.decide(fresh).exit, plain.decide(fresh).exit)
    save_policy(tmp_path, policy)
    same(load_policy(tmp_path).decide(fresh), policy.decide(fresh))
    assert refit(policy, calib=sample(4000, 2), select=sample(1500, 1)) == policy


def three(n, seed):
    rng = np.random.default_rng((seed, n, 3))
    true = rng.normal(size=(n, 3)) * 2.0
    labels = (true + rng.gumbel(size=(n, 3))).argmax(axis=1)
    return Scores(logits=2.0 * true, labels=labels, ids=[f"{seed}-{row}" for row in range(n)])


@pytest.mark.parametrize(
    "made, score",
    [
        (Identity(n=0, n_classes=3), "raw"),
        (Temperature(slope=0.5, n=9, n_classes=3), "raw"),
        (Temperature(slope=0.0, n=9, n_classes=3), "mapped"),
        (Vector(slopes=(1.0, 1.0, 1.0), shifts=(0.0, 0.0, 0.0), n=9, n_classes=3), "mapped"),
        (Platt(slope=0.5, shift=1.0, n=9, n_classes=2), "raw"),
        (Platt(slope=0.0, shift=1.0, n=9, n_classes=2), "mapped"),
        (Beta(a=0.0, b=2.0, c=1.0, n=9, n_classes=2), "raw"),
        (Beta(a=0.0, b=0.0, c=1.0, n=9, n_classes=2), "mapped"),
        (Dirichlet(weights=((1.0, 0.0), (0.0, 1.0)), shifts=(0.0, 0.0), lam=0.1, mu=0.1, n=9, n_classes=2), "raw"),
        (Isotonic(curves=(((0.0, 1.0), (0.2, 0.8)),), n=9, n_classes=2), "mapped"),
    ],
)
def test_on_which_score_the_thresholds_lie(made, score):
    assert FittedMap(made).score == score


@pytest.mark.parametrize("name, score", [("temperature", "raw"), ("vector", "mapped"), ("dirichlet", "mapped")])
def test_three_classes(name, score, tmp_path):
    select, calib, fresh = three(900, 1), three(2500, 2), three(2000, 3)
    frozen = FittedMap(fit_map(name, select))
    assert frozen.score == score

    def fit(rows, units, calibration):
        return fit_policy("scrc", select=rows, calib=units, risks={"miss_rate": 0.3}, classes=["a", "b", "c"])

    policy = fit_calibrated(frozen, fit, select=select, calib=calib)
    decision = policy.decide(fresh)
    probabilities = frozen.map.apply(fresh.logits)
    np.testing.assert_allclose(decision.probability, probabilities[np.arange(2000), decision.label], atol=1e-12)
    if score == "raw":
        np.testing.assert_array_equal(decision.label, policy.base.decide(fresh).label)
        np.testing.assert_array_equal(probabilities.argmax(axis=1), fresh.logits.argmax(axis=1))
    save_policy(tmp_path, policy)
    same(load_policy(tmp_path).decide(fresh), decision)
    assert automatic(3) == ("temperature",)


@pytest.mark.parametrize(("kind", "score"), [("auto", "raw"), ("vector", "mapped"), ("isotonic", "mapped")])
def test_softmax_policy_of_three_classes_from_the_config(kind, score, tmp_path):
    select, calib, fresh = three(1200, 1), three(4000, 2), three(2000, 3)
    config = validated({"risks": {"error": 0.1}, "calibration": {"map": kind}})
    policy = fit_configured(config, select=select, calib=calib, classes=["a", "b", "c"], say=[].append)
    assert policy.certified
    assert policy.frozen.score == score
    decision = policy.decide(fresh)
    assert 0 < decision.exit.sum() < 2000
    save_policy(tmp_path, policy)
    assert load_policy(tmp_path) == policy
    same(load_policy(tmp_path).decide(fresh), decision)
    assert refit(policy, calib=calib, select=select) == policy
    probabilities = policy.frozen.map.apply(fresh.logits)
    np.testing.assert_allclose(decision.probability, probabilities[np.arange(2000), decision.label], atol=1e-12)
    np.testing.assert_array_equal(decision.label, probabilities.argmax(axis=1))
    if kind == "auto":
        plain = fit_configured(
            config.model_copy(update={"calibration": CalibrationConfig(map="none")}),
            select=select,
            calib=calib,
            classes=["a", "b", "c"],
            say=[].append,
        )
        np.testing.assert_array_equal(decision.exit, plain.decide(fresh).exit)
    _, document = write_evaluation(tmp_path, fresh, policy, targets={}, paths=None, resamples=20, level=0.95, seed=0)
    assert document["metrics"]["nll"]["value"] == pytest.approx(nll(probabilities, fresh.labels))


# ---- evaluation and scores of any model ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["none", "platt", "isotonic"])
def test_evaluation_has_before_and_after(kind, policies, tmp_path):
    policy, test = policies[kind], sample(1500, 3)
    _, document = write_evaluation(tmp_path, test, policy, targets=RISKS, paths=None, resamples=60, level=0.95, seed=0)
    facts = document["calibration"]
    after = policy.frozen.map.apply(test.logits)
    for name, metric in (("nll", nll), ("brier", brier), ("ece", ece)):
        assert document["metrics"][name]["value"] == pytest.approx(metric(after, test.labels))
        if kind == "none":
            assert name not in facts
            continue
        assert facts[name]["before"]["value"] == pytest.approx(metric(test.probabilities, test.labels))
        assert facts[name]["after"] == document["metrics"][name]
        assert facts[name]["change"]["value"] == pytest.approx(
            facts[name]["after"]["value"] - facts[name]["before"]["value"]
        )
        assert facts[name]["change"]["high"] < 0
    assert ("reliability_before" in document) == (kind != "none")
    assert facts["score"] == ("mapped" if kind == "isotonic" else "raw")
    # Everything about the order is of the score that decides
    assert (document["lo"], document["hi"]) == policy.margin_thresholds
    shown = decided_on(policy, test)
    assert document["histogram"]["edges"][-1] == pytest.approx(shown.margin.max())
    table = (tmp_path / "eval_metrics.csv").read_text()
    assert ("nll.before" in table) == (kind != "none")


@pytest.mark.parametrize("kind", ["auto", "isotonic"])
def test_scores_of_any_model_end_to_end(kind, tmp_path):
    write_scores(tmp_path / "mine.parquet", replace(sample(6000, 8), ids=None))
    said: list[str] = []
    config = configured(kind, data={"classes": list(CLASSES)})
    policy, _ = calibrate_scores(
        tmp_path / "mine.parquet",
        tmp_path / "out",
        config=config,
        values="logits",
        columns={},
        shares="0.2,0.5,0.3",
        say=said.append,
    )
    assert isinstance(policy, CalibratedPolicy)
    assert len(said) == 1
    kept, roles = read_scores(tmp_path / "out" / "scores.parquet")
    np.testing.assert_array_equal(kept.logits, sample(6000, 8).logits)  # the file stays raw
    document = evaluate_scores(
        tmp_path / "out" / "scores.parquet",
        tmp_path / "out",
        tmp_path / "out",
        config=config,
        values="logits",
        columns={},
    )
    assert document["n"] == (roles == "val_test").sum()
    assert document["calibration"]["nll"]["change"]["high"] < 0
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    report_of_scores(tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "before and after the calibration map" in page
    assert f"Calibration map ({policy.frozen.map.name})" in page
    assert ("calibration.map=" in page) == (kind == "isotonic")
    assert ("No threshold explorer" in page) is False


# ---- validity ------------------------------------------------------------------------------------------------------


def kept_promise(draws):
    population = sample(20_000, 11)
    config = configured("isotonic", confidence=0.9)
    return audit(population, config, draws=draws, sizes=Sizes(400, 1200), seed=1)


def check_promise(found, draws):
    error = np.sqrt(0.1 * 0.9 / draws)
    assert found["violation"] <= 0.1 + 3 * error
    assert found["plug_in_violation"] > 0.25  # the control: no confidence, no promise
    assert found["certified"] > 0.5


def test_the_mapped_certificate_keeps_its_promise():
    check_promise(kept_promise(40), 40)


@pytest.mark.slow
def test_the_mapped_certificate_keeps_its_promise_long():
    check_promise(kept_promise(300), 300)


# ---- a run ---------------------------------------------------------------------------------------------------------


def test_a_run_has_its_map_in_folder_and_bundle(finished):
    entry = read_document(finished.folder / "stages.json", STAGES_KIND)["stages"]
    assert "calibration.json" in entry["calibrate"]["outputs"]
    run, shipped = finished.folder / "calibration.json", finished.bundle / "calibration.json"
    assert run.read_bytes() == shipped.read_bytes()
    assert FittedMap.load(run).comparison["table"][0]["name"] == "identity"
    assert "calibration" in read_document(finished.folder / "evaluation.json", EVALUATION_KIND)
