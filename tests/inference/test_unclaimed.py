"""SCRC with a class that is shut: what a bundle, its answers, its card and its pages say of it."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stage1.bundle import verify_bundle
from stage1.cli import app
from stage1.inference import load_bundle
from stage1.policy import fit_policy
from stage1.scores import Scores

from .conftest import bundle_parts

NAMES = ("red", "green", "blue")
SHUT = "no image exits as 'blue', of which val_calib has too few"
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "grey": (120, 120, 120)}


def drawn(n: int, seed: int = 0) -> Scores:
    """Three classes well apart, the last one a hundredth of the images."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=[0.5, 0.49, 0.01])
    logits = rng.normal(0, 1.2, (n, 3)) + 5.0 * np.eye(3)[labels]
    return Scores(logits, labels=labels, ids=[f"{seed:032x}{row:032x}" for row in range(n)])


@pytest.fixture(scope="module", params=["I", "T"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("unclaimed")
    run, calibration = made / "run", drawn(1000)
    run.mkdir()
    risks = {"miss_rate": 0.05 if request.param == "I" else 0.02}
    policy = fit_policy("scrc", calib=calibration, risks=risks, coverage=0.6, classes=NAMES, variant=request.param)
    assert [found.name for found in policy.certificate.unclaimed] == ["blue"]
    policy.save(run / "scrcparams.json")
    policy.certificate.save(run / "certificate.json")
    model = bundle_parts.tiny_model(3, by_colour=True)
    (run / "model.onnx").write_bytes(model)
    parts = bundle_parts.Parts(run, calibration, model)
    return parts.write(made / "bundle", classes=NAMES, policy_file=run / "scrcparams.json")


@pytest.fixture
def colours(tmp_path: Path) -> list[Path]:
    for name, colour in COLOURS.items():
        (tmp_path / f"{name}.png").write_bytes(bundle_parts.picture(colour, kind="PNG"))
    return [tmp_path / f"{name}.png" for name in COLOURS]


def test_an_image_of_the_shut_class_defers_and_says_why(folder: Path, colours: list[Path]) -> None:
    rows = load_bundle(folder).predict(colours)
    assert [row.decision for row in rows] == ["exit:red", "exit:green", "defer", "defer"]
    assert [row.label for row in rows[:3]] == ["red", "green", "blue"]
    # An image that no class stands out in defers by its score, not because a class is shut.
    assert [row.reason for row in rows] == [None, None, SHUT, None]


def test_a_risk_that_is_added_to_the_default_is_told_from_one_that_replaces_it(tmp_path: Path) -> None:
    np.savez(tmp_path / "s.npz", logits=drawn(300).logits, labels=drawn(300).known_labels)
    given = ["--scores", str(tmp_path / "s.npz"), "policy.name=scrc", "risks.miss_rate=0.03", "--output", str(tmp_path)]
    error = CliRunner().invoke(app, ["calibrate", *given]).exception
    assert "risks={...} replaces the default target, risks.NAME= adds to it" in str(error)


@pytest.mark.parametrize("kind", ["table", "csv", "json"])
def test_every_format_of_predict_says_it(folder: Path, colours: list[Path], kind: str) -> None:
    done = CliRunner().invoke(app, ["predict", str(folder), *map(str, colours), "--format", kind])
    assert done.exit_code == 0, done.output
    if kind == "table":
        lines = [line for line in done.stdout.splitlines() if SHUT in line]
        assert len(lines) == 1
        assert lines[0].split()[:2] == ["defer", "blue"]
        return
    if kind == "csv":
        rows = list(csv.DictReader(io.StringIO(done.stdout)))
    else:
        document = json.loads(done.stdout)
        assert document["bundle"]["unclaimed"] == ["blue"]
        rows = document["rows"]
    assert [row["reason"] or None for row in rows] == [None, None, SHUT, None]


def test_a_bundle_without_a_shut_class_says_nothing_of_one(bundle_folder: Path, colours: list[Path]) -> None:
    done = CliRunner().invoke(app, ["predict", str(bundle_folder), str(colours[0]), "--json"])
    document = json.loads(done.stdout)
    assert "unclaimed" not in document["bundle"]
    assert "reason" not in document["rows"][0]


def test_the_bundle_follows_from_its_data_and_its_card_says_what_opens_the_class(folder: Path) -> None:
    assert verify_bundle(folder, recompute=True).ok
    card, certificate = (folder / "README.md").read_text(), json.loads((folder / "certificate.json").read_text())
    assert f"- to open what stays shut: {certificate['needed']}" in card
    assert "No claim about blue images, and no image exits as 'blue'" in card
    assert "`miss_rate.blue`" not in card.partition("## Evaluation")[0]


def test_scores_to_certificate_evaluation_and_page_as_a_user_makes_them(tmp_path: Path) -> None:
    scores = drawn(3000, seed=4)
    np.savez(tmp_path / "s.npz", logits=scores.logits, labels=np.array(NAMES)[scores.known_labels], ids=scores.ids)
    out, options = tmp_path / "out", ["data.classes=[red,green,blue]", "policy.name=scrc", "risks={miss_rate: 0.03}"]
    runner = CliRunner()
    for variant in ("I", "T"):
        given = ["--scores", str(tmp_path / "s.npz"), *options, f"policy.variant={variant}", "--output", str(out)]
        made = runner.invoke(app, ["calibrate", *given, "--quiet"])
        assert made.exit_code == 0, made.output
        assert "No claim about blue images" in made.stdout
    # The second look is at a mean, which has no confidence that it could cost.
    asked = ["--scores", str(out / "scores.parquet"), "--policy", str(out), "evaluation.resamples=5"]
    seen = runner.invoke(app, ["evaluate", *asked])
    assert "the mean of the best of 2 may be 2 times as large" in seen.output
    assert "the confidence is" not in seen.output
    pytest.importorskip("matplotlib")
    assert runner.invoke(app, ["report", str(out)]).exit_code == 0
    page = re.sub(r"<script.*?</script>|data:image[^\"]*", "", (out / "report.html").read_text(), flags=re.S)
    assert "on average, without a confidence" in page
    assert "<li>confidence" not in page
    assert "Shut, and not claimed" in page
    assert "the class of the largest logit" in page
    assert "green bar" not in page
