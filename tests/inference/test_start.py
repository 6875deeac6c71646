"""What `stage1 predict` and `--help` load: nothing of training, tables, statistics or how policies are fitted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

LIBRARIES = (
    *("torch", "torchvision", "timm", "sklearn", "pandas", "matplotlib", "jinja2", "onnx", "datasets"),
    *("scipy", "pyarrow", "yaml", "rich", "PIL.PdfParser"),
)
OURS = (
    *(
        "evaluation",
        "stages",
        "commands",
        "report",
        "training",
        "model",
        "config",
        "sources.registry",
        "views.document",
    ),
    *("bundle.card", "bundle.pack", "bundle.recomputation", "bundle.looks", "scores.score_files"),
    *(
        "policy.in_slices",
        "policy.two_thresholds",
        "policy.class_thresholds",
        "policy.gate_model",
        "policy.scrc_choice",
    ),
    *("policy.certify", "policy.ordering", "calibration.selection", "risk.bounds"),
)
HELPS = """
import contextlib, io, sys
import typer
from stage1.cli import app, main

def paths(command, words):
    yield words
    for name, below in vars(command).get("commands", dict()).items():
        yield from paths(below, [*words, name])

for words in paths(typer.main.get_command(app), []):
    {planted}
    sys.argv = ["stage1", *words, "--help"]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main()
    print(*words, ":", *sorted(name for name in {unwanted!r} if name in sys.modules))
"""
PROGRAM = """
import sys
{planted}
from stage1.cli import main
try:
    main()
finally:
    unwanted = {unwanted!r}
    print("LOADED", *sorted(name for name in unwanted if name in sys.modules), file=sys.stderr)
"""


def loaded(*arguments: str | Path, planted: str = "") -> tuple[str, list[str]]:
    """(stdout of `stage1 ARGUMENTS`, which of the unwanted modules its process had loaded at its end)."""
    program = PROGRAM.format(planted=planted, unwanted=[*LIBRARIES, *(f"stage1.{name}" for name in OURS)])
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr.splitlines()[-1].split()[1:]


@pytest.mark.parametrize("kind", ["table", "json"])
def test_predict_loads_only_what_an_answer_needs(bundle_folder, photos, kind):
    printed, unwanted = loaded("predict", bundle_folder, photos / "1 red.jpg", photos / "2 blue.png", "--format", kind)
    assert "exit:roadwork" in printed
    assert unwanted == []


@pytest.mark.parametrize("planted", ["pandas", "scipy", "stage1.policy.in_slices"])
def test_a_planted_import_is_found(bundle_folder, photos, planted):
    _, unwanted = loaded("predict", bundle_folder, photos / "1 red.jpg", planted=f"import {planted}")
    assert planted in unwanted


def of_helps(*, planted: str = "pass") -> dict[str, list[str]]:
    """Command -> which of the unwanted modules were loaded when its `--help` had been shown, after those before it.

    rich draws the help; numpy is no part of it.
    """
    unwanted = [*(name for name in LIBRARIES if name != "rich"), "numpy", *(f"stage1.{name}" for name in OURS)]
    program = HELPS.format(planted=planted, unwanted=unwanted)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    return {
        words.strip(): found.split() for words, _, found in (line.partition(":") for line in done.stdout.splitlines())
    }


def test_help_of_every_command_loads_nothing_of_what_it_does():
    found = of_helps()
    assert {"", "run", "calibrate", "predict", "cascade plan", "config show"} <= set(found)
    assert {command: names for command, names in found.items() if names} == {}


def test_a_planted_import_is_found_at_the_command_that_loads_it():
    found = of_helps(planted='"calibrate" in words and __import__("stage1.policy.in_slices")')
    first = next(command for command, names in found.items() if names)
    assert first == "calibrate"
    assert {"numpy", "stage1.policy.in_slices"} <= set(found[first])


def test_the_command_asked_for_is_built_alone_and_help_shows_all():
    from stage1.cli import app
    from stage1.cli.options import asked_for

    for name in ("predict", "verify"):
        one = asked_for(app, [name, "x"])
        assert [len(one.registered_commands), len(one.registered_groups)] == [1, 0]
    for arguments in ([], ["--help"], ["config", "show"], ["prdict"]):
        assert asked_for(app, arguments) is app
    assert len(app.registered_commands) > 20
