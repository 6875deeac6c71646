"""Every command in the documents runs, and every command of the program stands in them."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stage1 import Scores
from stage1.scores import write_scores

from .pipeline.conftest import finished, photos  # noqa: F401 (fixtures)
from .test_cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[str]:
    """The lines after `$ ` in the console blocks of a page."""
    blocks = re.findall(r"```console\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.fixture(scope="module")
def desk(tmp_path_factory, finished, photos) -> Path:  # noqa: F811
    """A working folder as the documents assume it: a finished run in runs/demo, scores in mine.parquet, photos/."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(finished.folder, folder / "runs" / "demo")
    shutil.copytree(photos.parent / "images", folder / "images")
    shutil.copy(photos, folder / "photos.csv")
    (folder / "photos").mkdir()
    for image in sorted((folder / "images").iterdir())[:6]:
        shutil.copy(image, folder / "photos")
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 900)
    logits = np.stack([np.zeros(1800), rng.normal(0, 1.2, 1800) + 5 * labels - 2.5], axis=1)
    write_scores(folder / "mine.parquet", Scores(logits=logits, labels=labels))
    theirs = logits + rng.normal(0, 1.0, logits.shape) * [0, 1]
    write_scores(folder / "theirs.parquet", Scores(logits=theirs, labels=labels))
    return folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documents_run(page, desk):
    for command in commands(page):
        words = shlex.split(command)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M), command
            continue
        assert words[0] == "stage1", f"{page.name}: {command}"
        if words[1] == "run" and "--dry-run" in words:
            words += ["--output", str(desk / "runs" / "dry")]  # runs/demo holds another config here
        result = subprocess.run(
            [sys.executable, "-m", "stage1.cli", *words[1:]], capture_output=True, text=True, cwd=desk, timeout=300
        )
        assert result.returncode == 0, f"{page.name}: {command}\n{result.stderr}"


def test_every_command_stands_in_the_documents():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for command in COMMANDS:
        assert f"stage1 {command}" in text, command


def test_links_between_documents_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
