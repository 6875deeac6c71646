"""Acceptance gates: what passes, what fails and why, and that a failed gate stops a run before its bundle."""

from __future__ import annotations

import shutil

import pytest
import yaml

from stage1.config import AcceptanceGate, load_config
from stage1.errors import ConfigError, DataError, MissingError, Stage1Error
from stage1.policy import load_policy
from stage1.runs.directory import RunDir
from stage1.runs.schema import ACCEPTANCE_KIND
from stage1.scores import read_role
from stage1.stages.acceptance import accept, accepted_in_words, check_reference, judge, require_accepted
from stage1.stages.evaluate import write_evaluation
from stage1.stages.val_test_looks import Measured
from stage1.storage.documents import read_document

from ..command_line import stage1
from .arm_runs import make_run, table
from .conftest import one_line_error

pytest.importorskip("torch", reason="run directories hold torch tensors")


# ---- one gate ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "by", "passed", "words"),
    [
        ({"at_least": 0.70}, "value", True, "value 0.75, asked >= 0.7"),
        ({"at_least": 0.70}, "bound", False, "lower bound 0.68, asked >= 0.7"),
        ({"at_most": 0.80}, "value", True, "value 0.75"),
        ({"at_most": 0.80}, "bound", False, "upper bound 0.82, asked <= 0.8"),
        ({"at_least": 0.75}, "value", True, ">= 0.75"),
        ({"at_most": 0.82}, "bound", True, "upper bound 0.82"),
    ],
)
def test_the_end_that_counts_against_the_run_is_judged(limits, by, passed, words):
    row = judge(AcceptanceGate(metric="coverage", by=by, **limits), Measured(0.75, 0.68, 0.82))
    assert row["passed"] is passed
    assert words in row["reason"]
    assert row["bound"] == (0.68 if "at_least" in limits else 0.82)


def test_what_is_undefined_fails_with_its_reason():
    row = judge(AcceptanceGate(metric="error", at_most=0.01, by="bound"), Measured(0.0, None, None, "no exits"))
    assert not row["passed"]
    assert row["reason"] == "upper bound undefined (no exits); asked <= 0.01"


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        ("[{metric: accuracy}]", "one of at_least and at_most"),
        ("[{metric: accuracy, at_least: 0.5, at_most: 0.6}]", "one of at_least and at_most"),
        ("[{metric: accurracy, at_least: 0.5}]", "did you mean 'accuracy'"),
        ("[{metric: gain.beauty, at_least: 0}]", "unknown"),
        ("[{metric: gain.augrc, at_least: 0}]", "acceptance.reference"),
        ("[{metric: certificate.fnr, at_least: 0, by: bound}]", "upper"),
        ("[{metric: accuracy, at_least: 0.5, phase: 9}]", "phase"),
    ],
)
def test_a_gate_that_makes_no_sense_is_refused_when_the_config_is_read(gates, words):
    with pytest.raises(ConfigError, match=words):
        load_config(overrides=[f"acceptance.gates={gates}"], environment={})


# ---- a run -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("accepted")
    samples = table()
    make_run(root / "frozen", samples, strength=1.0, overrides=("name=frozen",))
    make_run(root / "lora", samples, strength=1.4, overrides=("name=lora",))
    return root


def accepted(root, name, gates, *options):
    """accept() of a finished run whose config asks for these gates: the document, and the run."""
    stored = yaml.safe_load((root / name / "config.yaml").read_text())
    config, _ = load_config(
        values=stored, overrides=[f"acceptance.gates={gates}", "evaluation.resamples=100", *options], environment={}
    )
    run, policy = RunDir(root / name, config), load_policy(root / name)
    _, evaluation = write_evaluation(
        root / name,
        read_role(root / name, "val_test"),
        policy,
        targets={},
        paths=None,
        resamples=100,
        level=0.95,
        seed=0,
    )
    written = accept(run, evaluation)
    return (read_document(written[0], ACCEPTANCE_KIND) if written else None), run


def test_the_gates_of_the_issue(root):
    gates = (
        "[{metric: accuracy, at_least: 0.8, phase: 1}, {metric: gate.gain, at_least: 0, by: bound, phase: 3},"
        " {metric: gain.augrc, at_least: 0, by: bound, phase: 4}, {metric: gain.coverage, at_least: 0.1},"
        " {metric: gain.coverage, at_least: 0.1, by: bound, phase: 5},"
        " {metric: coverage, at_least: 0.7, by: bound}, {metric: certificate.fnr, at_most: 0.05, by: bound},"
        " {metric: error, at_most: 0.001, by: bound}]"
    )
    document, run = accepted(root, "lora", gates, f"acceptance.reference={root / 'frozen'}")
    rows = {row["metric"]: row for row in document["gates"] if row["phase"] != 5}
    assert {name for name, row in rows.items() if not row["passed"]} == {"gate.gain", "error"}
    # A gain in coverage has a value and no bound: the luck of val_calib is in it.
    (unbounded,) = (row for row in document["gates"] if row["phase"] == 5)
    assert (unbounded["passed"], unbounded["bound"]) == (False, None)
    assert "the luck of val_calib" in unbounded["reason"]
    assert "no gate" in rows["gate.gain"]["reason"]
    assert rows["error"]["bound"] > rows["error"]["observed"] > 0.001
    assert document["reference"] == "frozen"
    # A gain is positive where the run is better, whichever way the metric goes.
    assert rows["gain.augrc"]["observed"] > rows["gain.augrc"]["bound"] > 0
    assert rows["gain.coverage"]["observed"] > 0.1
    with pytest.raises(Stage1Error, match=r"phase 3 gate.gain failed: .*and 2 more.*--ignore-acceptance") as caught:
        require_accepted(run, ignore=False)
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (1, 0)
    assert len(require_accepted(run, ignore=True)) == 3
    assert accepted_in_words(run.path).startswith("FAILED and ignored, 3 of 8: phase 3 gate.gain")


def test_the_worse_run_has_no_gain(root):
    gates = "[{metric: gain.nll, at_least: 0, by: bound}]"
    document, _ = accepted(root, "frozen", gates, f"acceptance.reference={root / 'lora'}")
    assert document["gates"][0]["observed"] < 0
    assert not document["passed"]


def test_no_gates_no_file(root):
    document, run = accepted(root, "lora", "[{metric: accuracy, at_least: 0.1}]")
    assert document["passed"]
    assert require_accepted(run, ignore=False) == []
    # The tests before looked at the same images.
    assert accepted_in_words(run.path) == "the acceptance gate passed at look 3 at the images of val_test"
    document, run = accepted(root, "lora", "[]")
    assert document is None
    assert not (run / "acceptance.json").exists()
    assert accepted_in_words(run.path) is None


def test_references_that_cannot_be_compared_with(root, tmp_path):
    config, _ = load_config(overrides=[f"acceptance.reference={tmp_path / 'none'}"], environment={})
    with pytest.raises(MissingError, match="not a run directory"):
        check_reference(config)
    make_run(tmp_path / "other", table(seed=5), strength=1.0)
    with pytest.raises(DataError, match="one split"):
        accepted(root, "lora", "[{metric: gain.nll, at_least: 0}]", f"acceptance.reference={tmp_path / 'other'}")
    with pytest.raises(ConfigError, match="not measured in this run"):
        accepted(root, "lora", "[{metric: coverage.tree, at_least: 0}]")


def test_a_failed_gate_stops_the_run_before_its_bundle(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    shutil.rmtree(folder / "bundle")
    config = folder / "config.yaml"
    gates = "acceptance.gates=[{metric: accuracy, at_least: 0.999, phase: 1}]"
    arguments = ["run", config, gates, "--allow-change", "--output", folder, "--quiet"]
    one_line_error(stage1(*arguments), 1, "phase 1 accuracy failed", "0.999", "--ignore-acceptance")
    assert not (folder / "bundle").exists()
    assert (folder / "report.html").is_file()
    one_line_error(stage1("bundle", folder), 1, "phase 1 accuracy failed")
    result = stage1(*arguments, "--ignore-acceptance")
    assert result.returncode == 0, result.stderr
    assert "FAILED and ignored, 1 of 1: phase 1 accuracy" in (folder / "bundle" / "README.md").read_text()
    assert stage1("verify", folder / "bundle").returncode == 0
    # A limit that is kept: the bundle is made again, and its card says that.
    again = stage1(
        "run", config, "acceptance.gates=[{metric: accuracy, at_least: 0.1}]", "--allow-change", "--output", folder
    )
    assert again.returncode == 0, again.stderr
    assert "ok    accuracy: value" in again.stderr
    assert "the acceptance gate passed" in (folder / "bundle" / "README.md").read_text()


# ---- looks at val_test -------------------------------------------------------------------------------------------


def test_every_look_at_the_same_images_is_counted(tmp_path):
    samples = table()
    for name, strength in (("one", 1.0), ("two", 1.4)):
        make_run(tmp_path / "runs" / name, samples, strength=strength, overrides=(f"name={name}",))
    make_run(tmp_path / "runs" / "other", table(seed=5), strength=1.0, overrides=("name=other",))
    gates = "[{metric: accuracy, at_least: 0.8, by: bound}]"
    root = tmp_path / "runs"
    first, _ = accepted(root, "one", gates)
    again, _ = accepted(root, "one", gates)
    assert (first["look"], again["look"]) == (1, 1)  # the same state again is the same look
    sibling, run = accepted(root, "two", gates)
    assert sibling["look"] == 2
    assert "look 2 at the images of val_test" in accepted_in_words(run.path)
    moved, _ = accepted(root, "one", "[{metric: accuracy, at_least: 0.7, by: bound}]")
    assert moved["look"] == 3
    # The same numbers, further out: what is looked at more often is sure of less.
    assert moved["gates"][0]["bound"] < first["gates"][0]["bound"]
    assert moved["gates"][0]["observed"] == first["gates"][0]["observed"]
    # Other images have been looked at once.
    assert accepted(root, "other", gates)[0]["look"] == 1
