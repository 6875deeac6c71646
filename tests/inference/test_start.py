"""What `stage1 predict` loads to answer: nothing of training, tables, statistics or how policies are fitted."""

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


def test_the_command_asked_for_is_built_alone_and_help_shows_all():
    from stage1.cli import app
    from stage1.cli.options import asked_for

    for name in ("predict", "verify"):
        one = asked_for(app, [name, "x"])
        assert [len(one.registered_commands), len(one.registered_groups)] == [1, 0]
    for arguments in ([], ["--help"], ["config", "show"], ["prdict"]):
        assert asked_for(app, arguments) is app
    assert len(app.registered_commands) > 20
