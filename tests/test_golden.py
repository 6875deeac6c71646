"""The golden check: every artifact of a fixed set of runs has the digest that it had before the rooms were rebuilt."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[1] / "tools"
STORED = TOOLS / "golden.json"


def check(stored: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(TOOLS / "golden.py"), "check", str(stored), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 3:
        pytest.skip(done.stdout.strip())
    return done


@pytest.mark.slow
def test_every_artifact_is_as_it_was():
    done = check(STORED)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_changed_a_missing_and_a_new_artifact_are_named(tmp_path):
    document = json.loads(STORED.read_text(encoding="utf-8"))
    scores = document["scenarios"]["scores"]
    changed, missing = sorted(scores)[:2]
    scores[changed] = "0" * 64
    del scores[missing]
    scores["no/such.json"] = "0" * 64
    planted = tmp_path / "golden.json"
    planted.write_text(json.dumps(document), encoding="utf-8")
    done = check(planted, "--only", "scores")
    assert done.returncode == 1
    assert done.stdout.splitlines() == sorted(
        [f"scores/{changed}: changed", f"scores/{missing}: new", "scores/no/such.json: gone"],
        key=lambda line: line.split(":")[0],
    )
