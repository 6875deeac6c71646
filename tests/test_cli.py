"""The command line as a user meets it: help, versions, bad input, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from .command_line import stage1
from .runs.conftest import one_line_error

COMMANDS = [
    "run",
    "demo",
    "smoke",
    "split",
    "preprocess",
    "pretrain",
    "tune",
    "extract",
    "train",
    "export",
    "score",
    "calibrate",
    "evaluate",
    "report",
    "bundle",
    "predict",
    "verify",
    "compare",
    "audit",
    "attempts",
    "audit-labels",
    "plan",
    "doctor",
    "backbones",
    "challenge",
    "streetvision",
    "cascade",
    "serve",
    "store",
    "config",
]
GROUPS = ("cascade", "challenge", "config", "store", "streetvision")  # commands of their own stand below these


def test_help_is_grouped_and_names_every_command():
    text = stage1("--help").stdout
    for panel in ("Whole runs", "Single stages", "Bundles and scores", "Before and around"):
        assert panel in text
    for command in COMMANDS:
        assert re.search(rf"[│|] {command}\s", text), command


@pytest.mark.parametrize(
    "command",
    [
        *(name for name in COMMANDS if name not in GROUPS),
        *(
            "cascade run",
            "cascade evaluate",
            "cascade plan",
            "challenge make",
            "challenge report",
            "streetvision run",
            "streetvision check",
            "streetvision reward",
            "streetvision card",
            "streetvision cascade",
            "store verify",
            "store info",
            "store export",
            "store delete",
            "store prune",
            "config show",
            "config schema",
            "config recipes",
        ),
    ],
)
def test_every_command_has_help_with_one_example(command):
    result = stage1(*command.split(), "--help")
    assert result.returncode == 0
    assert result.stdout.count("Example: stage1") == 1


def test_version_and_unknown_option():
    assert stage1("--version").stdout.startswith("stage1-pro ")
    assert stage1("run", "--nonsense").returncode == 2


def test_json_is_one_document_on_stdout():
    for arguments in (
        ["plan", "--json"],
        ["doctor", "--json"],
        ["config", "show", "--json"],
        ["config", "show", "--origin", "--json"],
        ["config", "schema"],
    ):
        json.loads(stage1(*arguments).stdout)


def test_environment_reaches_the_config():
    shown = json.loads(stage1("config", "show", "--origin", "--json", environment={"STAGE1_TRAIN__EPOCHS": "7"}).stdout)
    assert shown["train.epochs"] == {"value": 7, "origin": "env STAGE1_TRAIN__EPOCHS"}


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["run", "--recipe", "nope"], 2, ["'nope'", "recipes"]),
        (["run", "--phase", "6"], 2, ["continuous-learning", "not built yet"]),
        (["run", "--phase", "9"], 2, ["0 to 6"]),
        (["run", "--phase", "1", "--recipe", "demo"], 2, ["one of them"]),
        (["run", "none.yaml"], 3, ["none.yaml", "no such config file"]),
        (["run", "--recipe", "baseline"], 2, ["data.table", "not set"]),
        (["run", "--recipe", "baseline", "data.table=none.csv"], 3, ["none.csv"]),
        (["run", "--recipe", "baseline", "trian.epochs=3"], 2, ["train.epochs"]),
        (["calibrate"], 2, ["run directory"]),
        (["calibrate", "nowhere"], 3, ["nowhere", "not a run directory"]),
        (["calibrate", "--scores", "none.npz"], 3, ["none.npz"]),
        (["smoke", "--policy", "x"], 2, ["unknown"]),
        (["verify", "nowhere"], 3, ["nowhere"]),
        (["predict", "nowhere", "x.jpg"], 3, ["nowhere"]),
        (["plan", "risks.fnr=0"], 2, ["risks.fnr"]),
        (["plan", "confidence=1"], 2, ["confidence"]),
        (["plan", "--prior", "0"], 2, ["prior"]),
        (["config", "show", "--recipe", "x"], 2, ["recipe"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value and isinstance(value[0], str) else None,
)
def test_bad_input_is_one_line_with_its_exit_code(arguments, code, words, tmp_path):
    one_line_error(stage1(*arguments, cwd=tmp_path), code, *words)
    assert list(tmp_path.rglob("*.json")) == []


# ---- scores of any model, without torch


@pytest.fixture
def scores_file(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 800)
    np.savez(
        tmp_path / "scores.npz",
        logits=np.stack([np.zeros(1600), rng.normal(0, 1.2, 1600) + 5 * labels - 2.5], 1),
        labels=labels,
    )
    return tmp_path / "scores.npz"


def without_torch(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys\nclass Block:\n    def find_spec(self, name, path=None, target=None):\n        if"
        " name.split('.')[0] in ('torch', 'timm', 'sklearn', 'matplotlib'): raise ImportError(name + ' is"
        f" blocked')\nsys.meta_path.insert(0, Block())\nsys.argv = {['stage1', *map(str, arguments)]!r}\nfrom"
        " stage1.cli import main\nmain()"
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_calibrate_and_evaluate_without_torch(scores_file, tmp_path):
    out = tmp_path / "out"
    result = without_torch("calibrate", "--scores", scores_file, "--output", out, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["certified"] is True
    result = without_torch(
        "evaluate", "--scores", out / "scores.parquet", "--policy", out, "--json", "evaluation.resamples=20"
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["risks"]["fnr"]["target"] == 0.02


def test_real_scores_without_torch(coco_scores, tmp_path):
    columns = ["--values", "probabilities", "--columns", "scores=prob"]
    assert (
        without_torch("calibrate", "--scores", coco_scores, *columns, "--output", tmp_path, "risks.fnr=0.05").returncode
        == 0
    )
    result = without_torch(
        "evaluate", "--scores", tmp_path / "scores.parquet", "--policy", tmp_path, "--json", "evaluation.resamples=100"
    )
    document = json.loads(result.stdout)
    assert document["certified"]
    assert document["risks"]["fnr"]["low"] <= 0.05


def test_not_certifiable_scores_exit_4_with_the_arithmetic(scores_file, tmp_path):
    result = stage1("calibrate", "--scores", scores_file, "--output", tmp_path / "out", "risks.false_exit_rate=0.001")
    one_line_error(result, 4, "cannot certify false_exit_rate <= 0.001", "needed with 0 errors")
    assert json.loads((tmp_path / "out" / "thresholds.json").read_text())["lo"] is None


@pytest.mark.parametrize(
    "options, words",
    [
        (["--values", "guess"], ["never guessed"]),
        (["--shares", "1,2"], ["--shares"]),
        (["--columns", "scores"], ["FIELD=NAME"]),
        (["--columns", "label=nope"], ["no column 'nope'"]),
    ],
)
def test_bad_score_options(scores_file, tmp_path, options, words):
    one_line_error(stage1("calibrate", "--scores", scores_file, "--output", tmp_path / "out", *options), 2, *words)


def test_a_closed_pipe_is_no_error(tmp_path):
    command = f"{sys.executable} -m stage1.cli config schema | head -1"
    result = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, env=os.environ, timeout=60
    )
    assert "Traceback" not in result.stderr


# ---- compare and audit


def test_compare_names_the_better_model_and_refuses_other_images(scores_file, tmp_path):
    rng = np.random.default_rng(1)
    with np.load(scores_file) as archive:
        logits, labels = archive["logits"], archive["labels"]
    worse = logits + rng.normal(0, 2.0, logits.shape) * [0, 1]
    np.savez(tmp_path / "worse.npz", logits=worse, labels=labels)
    document = json.loads(stage1("compare", scores_file, tmp_path / "worse.npz", "--resamples", "100", "--json").stdout)
    rows = {row["metric"]: row for row in document["rows"]}
    assert rows["augrc"]["better"] == "a"
    assert rows["augrc"]["high"] < 0
    assert rows["augrc"]["p_value"] < 0.05
    np.savez(tmp_path / "other.npz", logits=worse[:-1], labels=labels[:-1])
    one_line_error(stage1("compare", scores_file, tmp_path / "other.npz"), 2, "1599")


def test_audit_keeps_the_promise_and_the_plug_in_does_not(scores_file):
    arguments = ["--draws", "60", "--select", "300", "--calib", "2500", "--json", "-q", "risks={fnr: 0.01, fpr: 0.01}"]
    found = json.loads(stage1("audit", "--scores", scores_file, *arguments).stdout)
    assert found["kept"]
    assert found["certified"] > 0.9
    assert found["coverage"] > 0.5
    assert found["plug_in_violation"] > 0.3
