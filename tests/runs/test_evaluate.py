"""`stage1 report`: the page of scores of any model, without images, and of a run, rewritten."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stage1.cli import app
from stage1.errors import NotCertifiable
from stage1.scores import Scores, write_scores

from ..command_line import stage1
from ..drawing import figures_undrawn
from ..report.browser import CHROMIUM, chromium
from .conftest import finished, one_line_error, photos  # noqa: F401 (fixtures)

FIGURES = True  # drawn, and looked at; but not once for each policy

CLASSES = "data.classes=[clean, roadwork]"


def write_file(folder: Path, n: int = 3000, groups: bool = False) -> Path:
    rng = np.random.default_rng(4)
    labels = (rng.random(n) < 0.45).astype(int)
    margin = rng.normal(5.6 * labels - 2.8, 1.6)
    write_scores(
        folder / "mine.csv",
        Scores(
            logits=np.stack([np.zeros(n), margin], axis=1),
            labels=labels,
            ids=np.array([f"{i:05d}.jpg" for i in range(n)]),
            groups=np.array([f"camera {i // 3}" for i in range(n)]) if groups else None,
        ),
    )
    return folder / "mine.csv"


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("reports")
    scores = write_file(folder)
    for command in (
        ["calibrate", "--scores", scores, "--output", "runs/mine", "risks.fnr=0.05", CLASSES],
        ["evaluate", "--scores", "runs/mine/scores.parquet", "--policy", "runs/mine", "evaluation.resamples=50"],
        ["report", "runs/mine"],
    ):
        result = stage1(*command, cwd=folder)
        assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "runs/mine/report.html"
    return folder / "runs" / "mine"


def test_the_page_says_what_the_documents_say_and_shows_no_image_of_a_row(desk):
    page = (desk / "report.html").read_text(encoding="utf-8")
    certificate = json.loads((desk / "certificate.json").read_text())
    assert certificate["certified"]
    assert html.escape(certificate["statement"], quote=True).replace("&#x27;", "&#39;") in page
    assert "Worst errors" not in page
    assert "stage1 verify" not in page
    assert "Threshold explorer" in page
    roles = re.findall(r'<th scope="row">(val_\w+)</th>', page)
    assert roles == ["val_select", "val_calib", "val_test"]
    for name in ("risk_coverage", "threshold_plane", "units_needed", "reliability"):
        assert (desk / "figures" / f"{name}.png").is_file()
        assert (desk / "figures" / f"{name}.svg").is_file()


def test_the_command_on_the_page_makes_the_same_certificate(desk, tmp_path):
    page = (desk / "report.html").read_text(encoding="utf-8")
    command = html.unescape(re.search(r"<code>(stage1 calibrate .*?)</code>", page).group(1))
    shutil.copy(desk / "scores.parquet", tmp_path)
    result = stage1(*shlex.split(command)[1:], cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "again" / "certificate.json").read_bytes() == (desk / "certificate.json").read_bytes()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the page is not rendered")
def test_a_browser_renders_it_without_errors(desk, tmp_path):
    done = chromium(desk / "report.html", tmp_path / "profile", "--enable-logging=stderr", "--dump-dom")
    assert "</footer>" in done.stdout
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []


def test_the_same_folder_gives_the_same_bytes(desk):
    before = (desk / "report.html").read_bytes()
    assert stage1("report", desk).returncode == 0
    assert (desk / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    "options",
    [
        ["policy.name=scrc", "risks={miss_rate: 0.05, false_exit_rate: 0.05}"],
        ["policy.name=gate", "risks={fnr: 0.1, fpr: 0.1}"],
        ["risks={fnr: 0.1, fpr: 0.1}", "coverage=0.3", "seed=3", "confidence=0.9", "class_coverage={clean: 0.3}"],
        ["risks={fnr: 0.0001, false_exit_rate: 0.0001}"],
        ["risks={miss_rate: 0.2, false_exit_rate: 0.2}"],
    ],
    ids=["scrc", "gate", "floors", "not certifiable", "groups"],
)
def test_every_policy_has_a_page_and_a_command_that_repeats_it(options, tmp_path, request, monkeypatch):
    def here(*arguments: str) -> None:
        result = CliRunner().invoke(app, arguments)
        assert result.exception is None or isinstance(result.exception, NotCertifiable), result.exception

    scores = write_file(tmp_path, groups="groups" in request.node.name)
    monkeypatch.chdir(tmp_path)
    with figures_undrawn():
        here("calibrate", "--scores", str(scores), "--output", "mine", CLASSES, *options)
        here("evaluate", "--scores", "mine/scores.parquet", "--policy", "mine", "evaluation.resamples=5")
        here("report", "mine")
    made = json.loads((tmp_path / "mine" / "certificate.json").read_text())
    assert made["certified"] == ("not certifiable" not in request.node.name)
    page = (tmp_path / "mine" / "report.html").read_text(encoding="utf-8")
    command = html.unescape(re.search(r"<code>(stage1 calibrate .*?)</code>", page).group(1))
    monkeypatch.chdir(tmp_path / "mine")
    here(*shlex.split(command)[1:])
    assert json.loads((tmp_path / "mine" / "again" / "certificate.json").read_text()) == made


def test_what_is_missing_or_does_not_belong_together_is_named(desk, tmp_path):
    one_line_error(stage1("report", tmp_path), 3, "neither a run directory")
    folder = shutil.copytree(desk, tmp_path / "mine")
    (folder / "evaluation.json").unlink()
    one_line_error(stage1("report", folder), 3, "evaluation.json", "stage1 evaluate --scores")
    shutil.copy(desk / "evaluation.json", folder)
    (folder / "thresholds.json").unlink()
    one_line_error(stage1("report", folder), 3, "no policy file")
    shutil.copy(desk / "thresholds.json", folder)
    document = json.loads((folder / "evaluation.json").read_text())
    document["coverage"]["overall"]["exits"] -= 1
    (folder / "evaluation.json").write_text(json.dumps(document))
    one_line_error(stage1("report", folder), 5, "evaluation.json", "again")


def test_the_report_of_a_run_is_rewritten_and_nothing_else_runs_again(finished, tmp_path):  # noqa: F811
    run = shutil.copytree(finished.folder, tmp_path / "run")
    before = (run / "report.html").read_bytes()
    (run / "report.html").write_text("spoilt")
    result = stage1("report", run, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["report"] == str(run / "report.html")
    assert (run / "report.html").read_bytes() == before
    assert "evaluate" not in _to_do(run)
    # The control: a page that nobody accounts for makes the stage run again.
    (run / "report.html").write_text("spoilt")
    assert "evaluate" in _to_do(run)


def _to_do(run: Path) -> list[str]:
    from stage1.runs import opened, outlook
    from stage1.stages import STAGES

    with opened(run, None) as directory:
        return [row["stage"] for row in outlook(directory, STAGES) if not row["skip"]]
