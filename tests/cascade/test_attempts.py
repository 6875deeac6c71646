"""The same calibration images again are another look, wherever the output goes: every look shares the answers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stage1.cascade.schema import CASCADE_KIND
from stage1.cli import app
from stage1.commands.cascade import evaluate_cascade, evaluation_lines
from stage1.errors import NotCertifiable, Stage1Error
from stage1.policy import ledger
from stage1.storage.documents import read_document

from .desk import calls_of, write_desk, write_stages


@pytest.fixture(scope="module")
def answered(tmp_path_factory) -> Path:
    """A folder with labels.csv, c.yaml and ev/, of one evaluation that was not certifiable."""
    folder = tmp_path_factory.mktemp("attempts")
    write_desk(folder, 400)
    evaluate_cascade(write_stages(folder / "c.yaml", 0.01), folder / "labels.csv", folder / "ev")
    return folder


@pytest.fixture
def desk(answered, tmp_path) -> Path:
    """A copy, to be changed."""
    shutil.copytree(answered / "ev", tmp_path / "ev")
    return tmp_path


def again(answered: Path, limit: float, answers: Path, output: Path) -> dict:
    path = write_stages(answered / f"{limit}.yaml", limit)
    return evaluate_cascade(path, answered / "labels.csv", output, answers=answers)


def test_another_folder_counts_the_attempts_beside_the_answers(answered, desk):
    first = read_document(desk / "ev" / "cascade.json", CASCADE_KIND)
    assert (first["certificate"]["certified"], first["certificate"]["attempt"]) == (False, 1)
    before = calls_of(answered / "c.yaml")
    second = again(answered, 0.2, desk / "ev" / "answers.jsonl", desk / "ev2")
    assert calls_of(answered / "c.yaml") == before
    assert second["certificate"]["certified"]
    assert second["certificate"]["attempt"] == 2
    assert second["certificate"]["attempts"]["headline_confidence"] == 0.9
    assert second["certificate"]["statement"].startswith("With confidence 90 %, ")
    assert "This is look 2 at these calibration images" in second["certificate"]["statement"]
    assert second["history"][:1] == first["history"]
    # A third folder knows of the second, though it never saw it; the second's own folder goes on counting.
    third = again(answered, 0.21, desk / "ev" / "answers.jsonl", desk / "ev3")
    assert third["certificate"]["attempt"] == 3
    # The second, asked for again, is no new look; but what is shipped now was chosen among three.
    assert again(answered, 0.2, desk / "ev" / "answers.jsonl", desk / "ev2")["certificate"]["attempt"] == 3
    assert again(answered, 0.22, desk / "ev" / "answers.jsonl", desk / "ev2")["certificate"]["attempt"] == 4


def test_documents_alone_tell_of_earlier_attempts(answered, desk):
    """Folders from before attempts were kept beside the answers, or answers without that file."""
    (desk / "ev" / "answers.attempts.json").unlink()
    assert again(answered, 0.2, desk / "ev" / "answers.jsonl", desk / "ev2")["certificate"]["attempt"] == 2
    (desk / "ev" / "answers.attempts.json").unlink()
    shutil.copy(desk / "ev" / "answers.jsonl", desk / "moved.jsonl")
    # Of the output's own folder as before.
    assert again(answered, 0.23, desk / "moved.jsonl", desk / "ev2")["certificate"]["attempt"] == 3
    (desk / "ev2" / "cascade.json").unlink()
    assert again(answered, 0.24, desk / "moved.jsonl", desk / "ev2")["certificate"]["attempt"] == 4


def test_looks_overlap_by_image_and_other_images_are_a_first_look(answered, desk, tmp_path):
    table = (answered / "labels.csv").read_text().splitlines()
    rows, answers = table[1:], desk / "ev" / "answers.jsonl"
    calib = [line for line in rows if line.endswith("val_calib")]
    half = set(calib[: len(calib) // 2])

    def look(name: str, lines: list[str], limit: float) -> dict:
        text = "\n".join([table[0], *(f"{answered}/{line}" for line in lines)]) + "\n"
        (tmp_path / f"{name}.csv").write_text(text)
        path = write_stages(answered / f"{name}.yaml", limit)
        return evaluate_cascade(path, tmp_path / f"{name}.csv", tmp_path / "out" / name, answers=answers)["certificate"]

    shutil.copy(answers, tmp_path / "alone.jsonl")
    answers = tmp_path / "alone.jsonl"
    assert look("first", [line for line in rows if line not in half], 0.2)["attempt"] == 1
    # No image in common, though both are kept in the one file.
    assert look("other", [line for line in rows if line not in set(calib) - half], 0.2)["attempt"] == 1
    grown = look("grown", rows, 0.2)
    assert (grown["attempt"], grown["attempts"]["headline_confidence"]) == (3, 0.85)


def test_answers_where_nobody_may_write(answered, desk, monkeypatch):
    real = ledger.write_document

    def refused(path, document, kind):
        if kind.name == "attempts":
            raise Stage1Error(f"{path}: cannot be written (Read-only file system)")
        real(path, document, kind)

    monkeypatch.setattr(ledger, "write_document", refused)
    found = again(answered, 0.2, desk / "ev" / "answers.jsonl", desk / "ev2")
    assert found["certificate"]["attempt"] == 2
    (note,) = found["notes"]
    assert "Read-only file system" in note
    assert evaluation_lines(found)[-1] == note
    assert (desk / "ev2" / "cascade.json").is_file()


def test_by_the_command_line(answered, desk):
    path = write_stages(answered / "loose.yaml", 0.2)
    command = [
        "cascade",
        "evaluate",
        path,
        "--table",
        answered / "labels.csv",
        "--answers",
        desk / "ev" / "answers.jsonl",
        "--output",
        desk / "new",
        "-q",
    ]
    result = CliRunner().invoke(app, [str(part) for part in command])
    assert result.exit_code == 0, result.output
    assert "CERTIFIED" in result.stdout
    assert "look 2 at these calibration images" in result.stdout
    strict = write_stages(answered / "strict.yaml", 0.001)
    result = CliRunner().invoke(app, [*map(str, [*command[:2], strict, *command[3:]]), "--json"])
    assert isinstance(result.exception, NotCertifiable)
    assert json.loads(result.stdout)["certificate"]["attempt"] == 3
