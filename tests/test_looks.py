"""Looks by the command line: five targets on one score file, another folder, another model on the same images."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from stage1 import Scores
from stage1.scores import write_scores

from .command_line import stage1


@pytest.fixture
def desk(tmp_path):
    """mine.parquet and theirs.parquet: two models on the same 1,800 images."""
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 900)
    names = [f"image {row}" for row in range(1800)]
    for seed, name in enumerate(("mine", "theirs")):
        margin = rng.normal(0, 1.2, 1800) + (5 - seed / 2) * labels - 2.5
        logits = np.stack([0 * margin, margin], axis=1)
        write_scores(tmp_path / f"{name}.parquet", Scores(logits=logits, labels=labels, ids=names))
    return tmp_path


def calibrate(desk, output, *options, scores="mine.parquet", code=0):
    done = stage1("calibrate", "--scores", scores, "--output", output, *options, "--json", cwd=desk)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout) if done.stdout else done.stderr


def stated(certificate):
    """The confidence in the sentence, per cent, which is that of `attempts`."""
    words = certificate["statement"].split(" %,")[0].removeprefix("With confidence ")
    assert float(words) == pytest.approx(100 * certificate["attempts"]["headline_confidence"])
    return float(words)


def test_five_targets_on_one_score_file_cost_confidence_each(desk):
    found = [calibrate(desk, "out", f"risks.fnr={fnr}") for fnr in (0.05, 0.06, 0.07, 0.08, 0.09)]
    assert [stated(one) for one in found] == [95, 90, 85, 80, 75]
    assert [one["attempt"] for one in found] == [1, 2, 3, 4, 5]
    again = calibrate(desk, "out", "risks.fnr=0.09")
    assert again == found[-1]
    table = stage1("attempts", "out", cwd=desk).stdout
    assert "5 look(s)" in table
    assert "75 %" in table
    document = json.loads(stage1("attempts", "mine.parquet", "--json", cwd=desk).stdout)
    assert [row["headline_confidence"] for row in document["looks"]] == [0.95, 0.9, 0.85, 0.8, 0.75]
    amber = stage1("calibrate", "--scores", "mine.parquet", "--output", "out", "risks.fnr=0.1", cwd=desk).stdout
    assert "the confidence is 70 %, not the 95 % that was asked for" in amber


def test_another_folder_another_model_and_another_place_are_counted(desk):
    assert stated(calibrate(desk, "runs/a", "risks.fnr=0.05")) == 95
    theirs = calibrate(desk, "runs/b", "risks.fnr=0.05", scores="theirs.parquet")
    assert stated(theirs) == 90  # found in the folder beside
    shutil.rmtree(desk / "runs" / "b")
    assert stated(calibrate(desk, "elsewhere/c", "risks.fnr=0.07")) == 85  # found beside the score file
    assert stated(calibrate(desk, "elsewhere/d", "risks.fnr=0.07", "split.seed=7")) == 80  # other images, in part


def test_other_images_are_a_first_look(desk):
    rows = Scores(logits=np.stack([np.zeros(1800), np.repeat([-3.0, 3.0], 900)], axis=1), labels=np.repeat([0, 1], 900))
    write_scores(desk / "fresh.parquet", Scores(rows.logits, rows.labels, ids=[f"fresh {row}" for row in range(1800)]))
    calibrate(desk, "runs/a", "risks.fnr=0.05")
    assert stated(calibrate(desk, "runs/b", "risks.fnr=0.05", scores="fresh.parquet")) == 95


def test_planned_looks_hold_together_and_one_more_is_refused(desk):
    for fnr in (0.05, 0.06):
        found = calibrate(desk, "out", f"risks.fnr={fnr}", "attempts.planned=2")
        assert (stated(found), found["confidence"]) == (95, pytest.approx(0.975))
    done = stage1(
        "calibrate", "--scores", "mine.parquet", "--output", "out", "risks.fnr=0.07", "attempts.planned=2", cwd=desk
    )
    assert done.returncode == 2
    assert "attempts.planned: 2 looks at these calibration images were planned, and 2 were made" in done.stderr


def test_sequential_looks_keep_the_confidence(desk):
    found = [calibrate(desk, "out", f"risks.fnr={fnr}", "attempts.schedule=sequential") for fnr in (0.05, 0.06, 0.07)]
    assert [stated(one) for one in found] == [95, 95, 95]
    assert [one["delta"] for one in found] == pytest.approx([0.05 * 6 / (np.pi * j) ** 2 for j in (1, 2, 3)])


def test_twenty_looks_leave_nothing(desk):
    for number in range(19):
        calibrate(desk, "out", f"seed={number}")
    refused = calibrate(desk, "out", "seed=19", code=4)
    assert "Nothing is left to promise" in refused["statement"]


def test_where_no_looks_are_known(desk):
    done = stage1("attempts", "mine.parquet", cwd=desk)
    assert done.returncode == 3
    assert "no looks are known here" in done.stderr
