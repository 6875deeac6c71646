"""The whole by the command line: a bundle, a real HTTP server with faults, a certificate that is true, a record
that goes on.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from stage1.bundle.manifest import read_calibration
from stage1.cascade import DeferRate, arrival_rate, capacity_per_minute, defer_rate, load, open_cascade
from stage1.cascade.config import StageConfig
from stage1.cascade.schema import CASCADE_KIND
from stage1.cli import app
from stage1.commands import cascade_images
from stage1.errors import ConfigError, Stage1Error
from stage1.report.figures.frontier import draw_frontier
from stage1.risk import binomial_lower, binomial_upper
from stage1.storage.documents import read_document

from ..command_line import stage1 as entry_point
from .server import green, serving

CLASSES = ("none", "roadwork")
LIMIT = 0.10
IMAGES = 1200


def write_images(folder: Path, n: int = IMAGES, seed: int = 0) -> Path:
    """n images of one colour: red against blue is what the bundle sees (it defers much), green tells the class
    better.
    """
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = ["image,label,role"]
    for index in range(n):
        sign = 2 * int(rng.integers(0, 2)) - 1
        # The tiny model's score is 12 * (red - blue) / 255.
        margin = 1.8 * sign + 2.0 * rng.normal()
        red = np.clip(255 * (0.45 + margin / 12), 0, 255)
        level = np.clip(128 + 14 * sign + 5 * rng.normal(), 0, 255)
        colour = tuple(round(float(value)) for value in (red, level, 255 * 0.45))
        # The text makes each image another file with the same pixels.
        image = Image.new("RGB", (32, 32), colour)
        image.save(folder / "images" / f"{index:04d}.png", pnginfo=_text(index))
        role = ("val_select", "val_calib", "val_calib", "val_calib", "val_test", "val_test")[index % 6]
        rows.append(f"images/{index:04d}.png,{CLASSES[(sign + 1) // 2]},{role}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


def _text(index: int) -> PngInfo:
    info = PngInfo()
    info.add_text("number", str(index))
    return info


def faulty(handler, body: bytes) -> None:
    """10 % of the images hang, 5 % come back as garbage; which ones follows from their bytes, so that retries do
    not help.
    """
    share = int.from_bytes(hashlib.sha256(body).digest()[:8]) / 2**64
    if share < 0.10:
        handler.server.released.wait(5)
    elif share < 0.15:
        handler.say("<html>\x00 busy")
    else:
        handler.say(json.dumps({"probability": green(body)}))


def write_cascade(path: Path, bundle: Path, url: str, exit: object = "auto", **top: object) -> Path:
    document = {
        "name": "show", "classes": list(CLASSES), "currency": "EUR",
        "stages": [
            {"name": "first", "bundle": str(bundle), "exit": exit},
            {"name": "second", "http": {"url": url, "format": "bytes", "read_timeout_s": 0.5},
             "calls": {"retries": 0, "concurrency": 16, "breaker_failures": 40}, "cost": {"money": 0.004}},
        ],
        "risks": {"miss_rate": LIMIT, "false_exit_rate": LIMIT},
    }  # fmt: skip
    path.write_text(yaml.safe_dump(document | top))
    return path


FIGURES = True  # drawn, and looked at


@dataclass
class Result:
    returncode: int
    stdout: str
    stderr: str


def stage1(*arguments: str | Path) -> Result:
    """The command line in this process, with the exit codes of `main`; once in a process of its own, below."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if isinstance(result.exception, Stage1Error):
        return Result(result.exception.exit_code, result.stdout, f"{result.stderr}error: {result.exception}\n")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.stdout, result.stderr)


def test_a_command_in_a_process_of_its_own_and_one_through_its_entry_point(evaluated, desk):
    path, folder, _, _ = evaluated
    command = [sys.executable, "-m", "stage1.cli", "cascade"]
    run = subprocess.run(
        [*command, "run", path, desk / "images" / "0003.png", "--certified", folder],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["label"] in CLASSES
    wrong = entry_point("cascade", "plan", desk / "none.yaml", "--rate", "1/s")
    assert wrong.returncode == 3
    assert wrong.stderr.splitlines() == [f"error: {desk / 'none.yaml'}: no such cascade file"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("desk")
    write_images(folder)
    return folder


@pytest.fixture(scope="module")
def server():
    with serving(faulty) as running:
        yield running


@pytest.fixture(scope="module")
def evaluated(desk, server, bundle_folder) -> tuple[Path, Path, subprocess.CompletedProcess[str], int]:
    """(cascade file, folder of evaluate, what it printed, requests that it took)."""
    path = write_cascade(desk / "cascade.yaml", bundle_folder, server.url())
    before = len(server.requests)
    result = stage1(
        "cascade", "evaluate", path, "--table", desk / "labels.csv", "--output", desk / "evaluated", "--json", "-q"
    )
    return path, desk / "evaluated", result, len(server.requests) - before


def test_every_image_is_asked_once_and_the_statement_is_true_on_the_test_set(evaluated):
    _, folder, result, requests = evaluated
    assert result.returncode == 0, result.stderr
    document = read_document(folder / "cascade.json", CASCADE_KIND)
    assert json.loads(result.stdout)["certificate"] == document["certificate"]
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()[1:]]
    assert len(lines) == len({line["image"] for line in lines}) == IMAGES
    assert all(
        [(call["stage"], call["attempts"]) for call in line["calls"]] == [("first", 1), ("second", 1)] for line in lines
    )
    # On a loaded machine a client may give up before the server reads its request.
    assert 0.9 * IMAGES < requests <= IMAGES
    outcomes = Counter(call["outcome"] for line in lines for call in line["calls"] if call["stage"] == "second")
    assert outcomes["invalid"] / IMAGES == pytest.approx(0.05, abs=0.02)
    # A loaded machine may add time-outs of its own; they are recorded like the others.
    assert 0.07 < outcomes["timeout"] / IMAGES < 0.5
    certificate = document["certificate"]
    assert certificate["certified"]
    assert certificate["failures"]["second"]["failed"] > 0
    assert certificate["fallbacks"] > 0
    assert "timeout" in certificate["statement"]
    test = document["test"]
    assert test["contradicted"] == []
    for wrong, of in (("misses", "positives"), ("false_exits", "negatives")):
        assert float(binomial_lower(test[wrong], test[of], 0.05)) <= LIMIT
    assert document["chosen"]["deferred"] < 1.0
    assert document["fallback_alone"]["misses"] >= 0


def test_the_figure_is_there_and_depends_on_the_document_alone(evaluated):
    _, folder, _, _ = evaluated
    pytest.importorskip("matplotlib", reason="the extra report is not installed")
    document = read_document(folder / "cascade.json", CASCADE_KIND)
    assert (folder / "frontier.png").read_bytes().startswith(b"\x89PNG")
    drawn = draw_frontier(document)
    assert (drawn.png, drawn.svg) == ((folder / "frontier.png").read_bytes(), (folder / "frontier.svg").read_bytes())
    free = json.loads(json.dumps(document))
    for row in [*free["frontier"], free["chosen"]]:
        row["money"] = 0.0
    assert draw_frontier(free).png != drawn.png


def test_evaluating_again_asks_nothing_and_other_limits_are_another_attempt(evaluated, desk, server, bundle_folder):
    path, folder, _, _ = evaluated
    before = (folder / "answers.jsonl").read_bytes()
    again = stage1("cascade", "evaluate", path, "--table", desk / "labels.csv", "--output", folder, "--json", "-q")
    first = json.loads(again.stdout)["certificate"]
    assert first["attempt"] == 1
    other = write_cascade(
        desk / "other.yaml", bundle_folder, server.url(), risks={"miss_rate": 0.2, "false_exit_rate": 0.2}
    )
    result = stage1("cascade", "evaluate", other, "--table", desk / "labels.csv", "--output", folder, "--json", "-q")
    second = json.loads(result.stdout)["certificate"]
    assert second["attempt"] == 2
    assert "look 2 at these calibration images" in second["statement"]
    assert second["deferred"] <= first["deferred"]
    assert (folder / "answers.jsonl").read_bytes() == before
    stage1("cascade", "evaluate", path, "--table", desk / "labels.csv", "--output", folder, "-q")
    recorded = stage1(
        "cascade",
        "evaluate",
        path,
        "--table",
        desk / "labels.csv",
        "--answers",
        folder / "answers.jsonl",
        "--output",
        desk / "third",
        "-q",
    )
    assert recorded.returncode == 0, recorded.stderr
    assert not (desk / "third" / "answers.jsonl").exists()


def test_run_answers_each_image_once_and_goes_on(evaluated, desk, server):
    path, folder, _, _ = evaluated
    refused = stage1("cascade", "run", path, desk / "images")
    assert refused.returncode == 2
    assert "--certified" in refused.stderr
    output = desk / "answers.jsonl"
    some = [desk / "images" / f"{index:04d}.png" for index in range(60)]
    result = stage1("cascade", "run", path, *some[:40], "--certified", folder, "--output", output)
    assert result.returncode == 0, result.stderr
    assert json.loads((folder / "cascade.json").read_text())["certificate"]["statement"] in result.stderr
    whole = output.read_bytes()
    output.write_bytes(whole[:-30])
    before = len(server.requests)
    assert stage1("cascade", "run", path, *some, "--certified", folder, "--output", output).returncode == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()[1:]]
    assert sorted(line["image"] for line in lines) == sorted(str(image) for image in some)
    new = lines[39:]
    assert len(server.requests) - before <= sum(len(line["calls"]) == 2 for line in new) < 60
    assert {line["label"] for line in lines} == set(CLASSES)
    printed = stage1("cascade", "run", path, some[0], desk / "gone.png", "--certified", folder, "-q")
    assert printed.returncode == 1
    assert [json.loads(line)["answered_by"] for line in printed.stdout.splitlines() if "gone.png" in line] == [
        "default"
    ]
    assert "error: 1 image(s)" in printed.stderr


def test_a_certificate_of_other_stages_is_not_taken(evaluated, desk, server, bundle_folder):
    _, folder, _, _ = evaluated
    moved = write_cascade(desk / "moved.yaml", bundle_folder, server.url("/elsewhere"))
    result = stage1("cascade", "run", moved, desk / "images" / "0000.png", "--certified", folder)
    assert result.returncode == 2
    assert "other stages" in result.stderr


def test_own_thresholds_are_not_certified_on_the_images_that_chose_them(
    evaluated, desk, server, bundle_folder, tmp_path, monkeypatch
):
    risks = {"miss_rate": 0.3, "false_exit_rate": 0.3}
    path = write_cascade(tmp_path / "own.yaml", bundle_folder, server.url(), exit="own", risks=risks)
    # As if the bundle had been certified on the images of this table.
    ids, opened = read_calibration(bundle_folder).ids, open_cascade(path)
    real = cascade_images._table(desk / "labels.csv", opened.config)
    changed = real.ids.copy()
    rows = np.flatnonzero(real.roles == "val_calib")
    changed[rows] = ids[: len(rows)]
    monkeypatch.setattr(cascade_images, "_table", lambda *_: replace(real, ids=changed))
    with pytest.raises(ConfigError, match="exit: auto"):
        cascade_images.roled_images(opened, desk / "labels.csv")
    # Some of them are left, and counted.
    changed[rows[:100]] = real.ids[rows[:100]]
    roled = cascade_images.roled_images(opened, desk / "labels.csv")
    assert (roled.roles == "val_calib").sum() == 100
    assert roled.left_out == {"in val_calib of a stage with exit: own": len(rows) - 100}
    monkeypatch.undo()
    # Without an overlap the own policy keeps its certificate beside that of the whole.
    result = stage1(
        "cascade",
        "evaluate",
        path,
        "--table",
        desk / "labels.csv",
        "--answers",
        desk / "evaluated" / "answers.jsonl",
        "--output",
        tmp_path / "e",
        "--json",
        "-q",
    )
    assert result.returncode == 0, result.stderr
    certificate = json.loads(result.stdout)["certificate"]
    statement, headline = certificate["statement"], certificate["attempts"]["headline_confidence"]
    assert "own certificate of 'first' (delta 0.05)" in statement
    assert f"so all hold together with confidence {100 * (headline - 0.05):.0f} %" in statement
    assert "one configuration tested once" in statement


@pytest.mark.parametrize(
    "change, code, words",
    [
        (lambda text: text.replace("labels.csv", "none.csv"), 3, ["none.csv"]),
        (lambda text: text, 4, ["miss_rate", "0.001", "Needed"]),
    ],
)
def test_evaluate_refuses_in_one_line(evaluated, desk, server, bundle_folder, tmp_path, change, code, words):
    path = write_cascade(
        tmp_path / "strict.yaml", bundle_folder, server.url(), risks={"miss_rate": 0.001, "false_exit_rate": 0.001}
    )
    table = change(str(desk / "labels.csv"))
    result = stage1(
        "cascade",
        "evaluate",
        path,
        "--table",
        table,
        "--answers",
        desk / "evaluated" / "answers.jsonl",
        "--output",
        tmp_path / "out",
        "-q",
    )
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0]
    if code == 4:
        refused = stage1("cascade", "run", path, desk / "images" / "0000.png", "--certified", tmp_path / "out")
        assert refused.returncode == 4
        assert refused.stdout == ""


def test_outages_are_asked_anew(desk, bundle_folder, tmp_path):
    down = {"down": True}

    def reply(handler, body):
        handler.say("", 503) if down["down"] else handler.say(json.dumps({"probability": green(body)}))

    rows = (desk / "labels.csv").read_text().splitlines()
    (tmp_path / "labels.csv").write_text("\n".join([rows[0], *(f"{desk}/{row}" for row in rows[1:301])]) + "\n")
    with serving(reply) as server:
        document = yaml.safe_load(write_cascade(tmp_path / "c.yaml", bundle_folder, server.url()).read_text())
        document["stages"][1]["calls"] = {"retries": 0, "breaker_failures": 3, "breaker_pause_s": 60}
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(document))
        arguments = (
            "cascade",
            "evaluate",
            tmp_path / "c.yaml",
            "--table",
            tmp_path / "labels.csv",
            "--output",
            tmp_path / "e",
            "-q",
        )
        first = stage1(*arguments)
        assert first.returncode == 4
        assert "breaker_open" in first.stderr
        assert len(server.requests) < 12
        down["down"] = False
        second = stage1(*arguments)
        assert second.returncode == 0, second.stderr
        assert len(server.requests) > 280


# ---- the plan


def test_plan_from_an_evaluation_and_from_a_bundle(evaluated, desk, server, bundle_folder):
    path, folder, _, _ = evaluated
    found = json.loads(stage1("cascade", "plan", path, "--rate", "60/min", "--evaluated", folder, "--json").stdout)
    (second,) = found["stages"]
    assert second["defer"]["observed"] <= second["defer"]["upper"] < 1
    assert second["defer"]["method"] == "exact binomial"
    assert found["fits"] is second["fits"] is True
    crowded = stage1("cascade", "plan", path, "--rate", "2000/s", "--evaluated", folder)
    assert crowded.returncode == 1
    assert "DOES NOT FIT" in crowded.stdout
    assert "error: second cannot take" in crowded.stderr
    open_thresholds = stage1("cascade", "plan", path, "--rate", "60/min")
    assert open_thresholds.returncode == 2
    own = write_cascade(desk / "own.yaml", bundle_folder, server.url(), exit="own")
    document = yaml.safe_load(own.read_text())
    document["stages"][1]["calls"]["per_minute"] = 30
    own.write_text(yaml.safe_dump(document))
    (second,) = json.loads(stage1("cascade", "plan", own, "--rate", "60/min", "--json").stdout)["stages"]
    assert second["capacity_per_minute"] == 30
    assert "DKW" in second["defer"]["method"]
    assert second["defer"]["n"] == 2000


@pytest.mark.parametrize("text, expected", [("120/min", 120.0), ("2/s", 120.0), ("5400/h", 90.0), ("0.5/m", 0.5)])
def test_rates(text, expected):
    assert arrival_rate(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["120", "x/min", "3/day", "-1/s", "0/s", "nan/s", "inf/s"])
def test_rates_that_are_none(text):
    with pytest.raises(ConfigError, match="120/min"):
        arrival_rate(text)


def test_the_uniform_bound_holds_where_the_thresholds_were_chosen_on_the_data():
    rng = np.random.default_rng(0)
    broken = {True: 0, False: 0}
    draws, n = 400, 200
    for _ in range(draws):
        score = rng.random(n)
        # The widest flattery: of all intervals of true width .5 the one that holds fewest images.
        starts = np.linspace(0, 0.5, 101)
        inside = ((score[:, None] >= starts) & (score[:, None] <= starts + 0.5)).sum(axis=0)
        start = starts[int(inside.argmin())]
        deferred = (score >= start) & (score <= start + 0.5)
        for fitted in broken:
            broken[fitted] += defer_rate(deferred, None, delta=0.05, prior=None, fitted_here=fitted).upper < 0.5
    assert broken[True] / draws <= 0.05
    assert broken[False] / draws > 0.08  # the control: an exact binomial is not for thresholds chosen here


def test_the_defer_rate_at_a_prior():
    deferred = np.repeat([True, False, True, False], [20, 80, 60, 40])
    labels = np.repeat([1, 1, 0, 0], [20, 80, 60, 40])
    found = defer_rate(deferred, labels, delta=0.05, prior=0.8, fitted_here=False)
    assert found.observed == pytest.approx(0.8 * 0.2 + 0.2 * 0.6)
    assert found.upper > found.observed
    every = defer_rate(np.ones(200, bool), labels, delta=0.05, prior=0.8, fitted_here=False)
    assert every.upper == 1.0


@pytest.mark.parametrize("draws", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_defer_rate_at_a_prior_spends_the_whole_of_delta_once(draws):
    """Both classes in one test, as the certificate has them: it holds, below the sum of two bounds at delta / 2."""
    rng, prior, shares = np.random.default_rng(1), 0.8, (0.6, 0.2)
    true = prior * shares[1] + (1 - prior) * shares[0]
    labels = np.repeat([1, 0], [100, 100])
    broken, single, saved = 0, 0, []
    for _ in range(draws):
        deferred = rng.random(200) < np.where(labels == 1, shares[1], shares[0])
        ones, zeros = (int(deferred[labels == label].sum()) for label in (1, 0))
        upper = defer_rate(deferred, labels, delta=0.05, prior=prior, fitted_here=False).upper
        halves = [float(binomial_upper(count, 100, 0.025)) for count in (ones, zeros)]
        saved.append(prior * halves[0] + (1 - prior) * halves[1] - upper)
        broken += upper < true
        # The control: what each class shows with delta of its own, none for the other, is no bound of the mixture.
        single += prior * ones / 100 + (1 - prior) * float(binomial_upper(zeros, 100, 0.05)) < true
    assert broken / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    assert single / draws > 0.15
    assert min(saved) > 0.01


def test_capacity_is_the_smaller_of_budget_and_speed():
    stage = StageConfig.model_validate({"name": "s", "callable": "a:b", "calls": {"per_minute": 100, "concurrency": 2}})
    assert capacity_per_minute(stage, 600.0, 1.0)[0] == 100
    assert capacity_per_minute(stage, 6000.0, 1.0)[0] == 20
    assert capacity_per_minute(stage, None, 2.0)[0] == 50
    free = stage.model_copy(update={"calls": stage.calls.model_copy(update={"per_minute": None})})
    assert capacity_per_minute(free, None, 1.0)[0] is None
    share = DeferRate(0.3, 0.4, 100, 0.05, "exact binomial", None)
    assert load(200.0, share, 90.0)["fits"]
    assert not load(200.0, share, 70.0)["fits"]
    assert load(200.0, share, 70.0)["rate_that_fits"] == pytest.approx(175.0)
    assert load(200.0, share, None)["fits"] is None
