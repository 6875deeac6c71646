"""The stages as data: docs/DATA_FLOW.md says of each what its object says, and so does the command line."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
import typer

from stage1.cli.options import STAGES as PANEL
from stage1.cli.options import app
from stage1.config import RunConfig, load_config
from stage1.policy import POLICY_FILES
from stage1.stages import STAGES

PAGE = Path(__file__).parents[2] / "docs" / "DATA_FLOW.md"
TOKEN = re.compile(r"`([^`]+)`")
FILE = re.compile(r"\.(parquet|json|jsonl|csv|html|onnx|pt|pth|safetensors)$|_\*$")
ANY_ROLE = re.compile(r"^val_(\w+|\*)_(\*|logits\.pt|labels\.pt|ids\.json)$")
TUNES, VIEWS, PRETRAINS = "images.unfreeze=last", "views.grid=2x2", "pretrain.train_images=true"
SETTLED = "backbone.fit=squash"


def rows() -> dict[str, list[str]]:
    """Cells (config, reads, writes, invariant) of the page's table, by stage."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    found = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {TOKEN.findall(cells[0])[0]: cells[1:] for cells in found if len(cells) == 5}


def files(cell: str) -> set[str]:
    """The files that a cell names; `val_calib_*` stands for the three files of a role."""
    return {token for token in TOKEN.findall(cell) if FILE.search(token)}


def configs() -> list[RunConfig]:
    """One of each kind of run: every policy; with and without views, tuning, pretraining and a choice of the fit."""
    return [
        load_config(
            overrides=[
                f"policy.name={policy}",
                "risks={miss_rate: 0.1, false_exit_rate: 0.1}",
                *(key for key in keys if key),
            ],
            environment={},
        )[0]
        for policy, *keys in product(POLICY_FILES, ("", TUNES), ("", VIEWS), ("", PRETRAINS), ("", SETTLED))
    ]


def short(file: str) -> str:
    """The name as the page says it."""
    return re.sub(r"^(val_\w+?)_(logits\.pt|labels\.pt|ids\.json)$", r"\1_*", file)


def test_the_page_has_the_stages_in_their_order():
    assert list(rows()) == [stage.name for stage in STAGES]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_the_page_says_which_sections_and_files_a_stage_depends_on(stage):
    config, reads, _, _ = rows()[stage.name]
    assert tuple(TOKEN.findall(config)) == stage.sections
    assert files(reads) == {short(file) for config in configs() for file in stage.reads(config)}


def test_every_file_that_a_stage_reads_is_written_by_an_earlier_one():
    written: set[str] = set()
    for name, (_, reads, writes, _) in rows().items():
        assert {ANY_ROLE.sub("val_*", file) for file in files(reads)} <= written, name
        written |= {ANY_ROLE.sub("val_*", file) for file in files(writes)}


def test_asked_by_stands_at_the_stages_that_not_every_run_has():
    plain = load_config(overrides=[SETTLED], environment={})[0]
    assert [stage.name for stage in STAGES if not stage.wanted(plain)] == [s.name for s in STAGES if s.asked_by]
    asked = load_config(overrides=[TUNES, PRETRAINS], environment={})[0]
    assert all(stage.wanted(asked) for stage in STAGES)


def test_sections_are_keys_of_the_config():
    assert {section for stage in STAGES for section in stage.sections} <= set(RunConfig.model_fields)


def test_the_commands_of_stages_are_the_stages():
    shown = [name for name, command in typer.main.get_command(app).commands.items() if command.rich_help_panel == PANEL]
    assert shown == [*(stage.name for stage in STAGES), "report"]
