"""Every command in the documents runs, and every command of the program stands in them."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest

from stage1 import Scores
from stage1.scores import write_scores

from .command_line import stage1
from .drawing import no_figures_drawn  # noqa: F401 (fixture)
from .runs.conftest import finished, photos  # noqa: F401 (fixtures)
from .test_cli import COMMANDS
from .tracing import backbones_traced_once  # noqa: F401 (fixture)
from .workers import no_processes_started  # noqa: F401 (fixture)

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs" / "TUTORIAL.md"
CASCADE = ROOT / "docs" / "CASCADE.md"
SERVE = ROOT / "docs" / "SERVE.md"
STORE = ROOT / "docs" / "STORE.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The lines after `$ ` in the console blocks of a page, each with the lines of output that the page shows below
    it.
    """
    found: list[tuple[str, list[str]]] = []
    for block in blocks(page, "console"):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip() and line != "...":
                found[-1][1].append(" ".join(line.split()))
    return found


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.S)


@contextmanager
def second_stage(folder: Path) -> Iterator[None]:
    """cascade.yaml and second.py as the page has them, for this run and a free port; its server runs while this is
    open.
    """
    with closing(socket.create_server(("127.0.0.1", 0))) as probe:
        port = str(probe.getsockname()[1])
    (server,), (example,) = blocks(CASCADE, "python"), blocks(CASCADE, "yaml")
    (folder / "second.py").write_text(server, encoding="utf-8")
    classes = json.loads((folder / "runs" / "demo" / "bundle" / "bundle.json").read_text())["classes"]
    changes = {
        "[none, roadwork]": f"[{', '.join(classes)}]",
        ":8600/": f":{port}/",
        # What so few images can show.
        "{miss_rate: 0.05, false_exit_rate: 0.05}": "{miss_rate: 0.4, false_exit_rate: 0.4}",
    }
    for old, new in changes.items():
        example = example.replace(old, new)
    (folder / "cascade.yaml").write_text(example, encoding="utf-8")
    command = [sys.executable, "second.py", "runs/demo/bundle", port]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < until:
                with suppress(OSError), closing(socket.create_connection(("127.0.0.1", int(port)), 1)):
                    break
                time.sleep(0.1)
            yield
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def desk(tmp_path_factory, finished, photos) -> Iterator[Path]:  # noqa: F811
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
    # The files of the tutorial and of the page on the store come from the pages themselves.
    subprocess.run([sys.executable, "-c", blocks(TUTORIAL, "python")[0]], cwd=folder, check=True)
    subprocess.run([sys.executable, "-c", blocks(STORE, "python")[0]], cwd=folder, check=True)
    with second_stage(folder):
        yield folder


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_the_documents_run(page, desk):
    for command, shown in commands(page):
        words = shlex.split(command, comments=True)
        expected = int(found[1]) if (found := re.search(r"# exit code (\d+)$", command)) else 0
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.M), command
            continue
        assert words[0] == "stage1", f"{page.name}: {command}"
        if words[1] == "run" and "--dry-run" in words:
            words += ["--output", str(desk / "runs" / "dry")]  # runs/demo holds another config here
        result = stage1(*words[1:], cwd=desk)
        assert result.returncode == expected, f"{page.name}: {command}\n{result.stderr}"
        printed = " ".join((result.stdout + result.stderr).split())
        for line in shown:
            assert line in printed, f"{page.name}: {command}\nshows: {line}\nprints: {printed}"


def test_the_last_block_of_the_tutorial_runs(desk):
    code = "\n".join(blocks(TUTORIAL, "python"))
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=desk, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("With confidence 95 %, among images of class '1' that exit")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of `stage1 serve` of the finished run, as the page starts it, on a port that is free."""
    command = [sys.executable, "-m", "stage1.cli", "serve", "runs/demo/bundle", "--port", "0", "--workers", "1"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("listening on http://").strip()
            assert process.stdout.readline().startswith("ready: ")
            yield address
        finally:
            process.terminate()


def test_the_blocks_of_the_page_on_serving_run(desk):
    pytest.importorskip("fastapi", reason="the extra serve is not installed")
    pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")
    with served(desk) as address:
        code = "\n".join(blocks(SERVE, "python")).replace("127.0.0.1:8000", address)
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=desk, timeout=120)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("VALID softmax-")
    assert lines[1].startswith("2 answers under ")
    assert lines[2:] in (["['stored']", "[True] VALID"], ["['stored']", "[False] VALID"])


def test_every_option_that_the_page_on_serving_names_is_one():
    known = set(re.findall(r"--[a-z-]+", stage1("serve", "--help").stdout))
    named = set(re.findall(r"--[a-z][a-z-]+", SERVE.read_text(encoding="utf-8")))
    assert named - known == set()
    assert {"--host"} | named >= known - {"--help", "--spool", "--queue", "--batch", "--max-deadline", "--device"}


def test_every_command_stands_in_the_documents():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for command in COMMANDS:
        assert f"stage1 {command}" in text, command


def test_links_between_documents_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
