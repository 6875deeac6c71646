"""Looks at the images of a run: two run directories on one table, a ledger in the bundle, one that was deleted."""

from __future__ import annotations

import json
import shutil

import pytest

from stage1.bundle import verify_bundle
from stage1.policy import Certificate

from ..command_line import stage1
from .conftest import SETTINGS  # noqa: F401 (the run that is shared)


@pytest.fixture
def first(finished, tmp_path):
    """A finished run with a first look at its images."""
    return shutil.copytree(finished.folder, tmp_path / "runs" / "first")


@pytest.fixture
def second(first):
    """Another run directory on the same table, which has not been calibrated."""
    folder = shutil.copytree(first, first.parent / "second")
    (folder / "attempts.json").unlink()
    return folder


def stated(folder):
    certificate = Certificate.load(folder / "certificate.json")
    assert certificate.statement.startswith(f"With confidence {100 * certificate.headline_confidence:.4g} %, ")
    return certificate.headline_confidence


def test_two_run_directories_on_one_table_share_the_count(first, second):
    assert stated(first) == pytest.approx(0.9)
    done = stage1("calibrate", second, "risks.miss_rate=0.31", "--quiet")
    assert done.returncode == 0, done.stderr
    assert stated(second) == pytest.approx(0.8)
    # The first, calibrated anew, is the pick of two; and so says its table.
    assert stage1("calibrate", first, "--force", "--quiet").returncode == 0
    assert stated(first) == pytest.approx(0.8)
    document = json.loads(stage1("attempts", first, "--json").stdout)
    assert len(document["looks"]) == 2
    (own,) = (row for row in document["looks"] if row["asked"]["risks"]["miss_rate"] == 0.3)
    assert own["since_dealt"]


def test_best_of_runs_as_planned_holds_at_the_whole_confidence(first, second):
    for folder, risk in ((first, 0.32), (second, 0.33)):
        (folder / "attempts.json").unlink(missing_ok=True)
        done = stage1("calibrate", folder, f"risks.miss_rate={risk}", "attempts.planned=2", "--quiet")
        assert done.returncode == 0, done.stderr
        assert stated(folder) == pytest.approx(0.9)
        assert Certificate.load(folder / "certificate.json").confidence == pytest.approx(0.95)


def test_the_ledger_travels_in_the_bundle_and_is_counted_there(first, second):
    assert stage1("calibrate", second, "risks.miss_rate=0.31", "--quiet").returncode == 0
    for stage in ("evaluate", "bundle"):
        done = stage1(stage, second, "--quiet")
        assert done.returncode == 0, done.stderr
    report = verify_bundle(second / "bundle", recompute=True)
    assert report.ok, report.problems
    document = json.loads(stage1("attempts", second / "bundle", "--json").stdout)
    assert [row["headline_confidence"] for row in document["looks"]] == pytest.approx([0.9, 0.8])
    card = (second / "bundle" / "README.md").read_text()
    assert "look 2 at its calibration images, 0.2 spent in all" in card
    # It was begun by a look: the copy had lost the one that began with the split.
    assert any("younger than its calibration images" in note for note in report.notes)


def test_a_ledger_that_began_with_the_split_is_as_old_as_its_images(finished):
    report = verify_bundle(finished.bundle)
    assert report.ok
    assert not any("attempts.json" in note or "ledger" in note for note in report.notes)


def test_a_look_left_out_of_the_bundle_is_seen(first, second):
    from stage1.bundle.looks import ledger_problems
    from stage1.bundle.manifest import read_calibration

    assert stage1("calibrate", second, "risks.miss_rate=0.31", "--quiet").returncode == 0
    certificate, calibration = Certificate.load(second / "certificate.json"), read_calibration(first / "bundle")
    assert list(ledger_problems(second, certificate, calibration)) == []
    document = json.loads((second / "attempts.json").read_text())
    (own,) = (look for look in document["looks"] if look["look"] == certificate.attempts.look)
    (second / "attempts.json").write_text(json.dumps(document | {"looks": [own]}))
    assert "is not the ledger that the certificate names" in next(ledger_problems(second, certificate, calibration))
    from dataclasses import replace

    from stage1.policy.ledger import ledger_digest

    forged = replace(certificate.attempts, ledger=ledger_digest(json.loads((second / "attempts.json").read_text())))
    problems = list(ledger_problems(second, replace(certificate, attempts=forged), calibration))
    assert [problem.split(" is ")[0] for problem in problems] == [
        f"certificate.json: attempts.{name}" for name in ("number", "spent", "headline_confidence")
    ]
    (second / "attempts.json").unlink()
    assert "missing" in next(ledger_problems(second, certificate, calibration))
