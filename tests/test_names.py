"""Names: a concept goes by its field's word, a file name stands for one idea, no function hides its module."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "stage1"

# Identifiers (whole ones, a leading underscore aside) that were, and the field's word that is.
RETIRED = {
    "Along|ALONG|along_file": "HeadChoice, of a joint and a refit head",
    "Answered": "ModelOutputs",
    r"Looked\w*|LOOKED\w*|looked\w*|\w+_looked": "ViewTrace",
    "Frozen|FrozenMap|FrozenViews|read_frozen|frozen_identity": "FittedMap, ViewsDocument",
    "Lanes?|Late|Waiting|Overdue": "DeadlineExecutor, DeadlineExceeded",
    "Path": "CandidateSequence",
    "hedge|HEDGE": "delta_split",
    "hopeless|HOPELESS": "futility",
    "pulls?": "contributions",
    "Kept|kept_by": "DecidedBy, decided_by",
    "stated|Stated|stated_beside|check_stated": "reported",
    "tried": "first_failure, trial",
    r"shut|shut_\w+|SHUT_\w+": "abstains",
    "let_pass|lets_pass": "error_budget",
    "Entrants?|entrants?": "FinishedRun",
    "REORDERING": "NON_MONOTONE",
}
# Identifiers that mean something else: (file, identifier) -> what.
OTHER_MEANING = {
    ("cascade/endpoint.py", "SHUT_RDWR"): "of socket",
}

# Files that were, by name.
RETIRED_FILES = {
    "along": "head_choice",
    "answered": "outputs",
    "choose": "selection",
    "frozen": "document",
    "lanes": "deadline",
    "leakage": "duplicates",
    "looked": "views",
    "path": "ordering",
    "whole": "certificate",
    "wording": "certificate",
}
# Rooms whose files are named by what they serve: a section, a command, a stage, the subject of a figure.
SERVING = ("cli", "commands", "config", "report/figures", "stages")
# Names that several other rooms use for the same idea.
SAME_IDEA = {
    "__init__": "the face of a package",
    "adapter": "low-rank and norm adapters: what they are, and which of them pretraining trains",
    "attempts": "looks at calibration images, counted: of a policy, of a cascade",
    "base": "what all kinds of the room share",
    "card": "a model card: the bundle's, and the client's",
    "certificate": "what is promised, as a document and in words: of a policy, of a cascade",
    "certify": "the test that makes the certificate: of a policy, of a cascade",
    "conformal": "conformal risk control: the rule, and training through it",
    "document": "the JSON document of what was fitted: a map, a choice of views",
    "folder": "a folder of images with their labels, read or written",
    "gate": "the gate: its policy, and its training",
    "head": "the head: its modules, and its training",
    "listing": "which images a source lists",
    "registry": "the table of all kinds of the room",
    "schema": "the JSON documents of the room, as types",
    "runner": "what goes through the stages of a run or of a cascade, one after the other",
    "settings": "what an operator sets: of the detector, of the server",
    "selection": "the choice of one of several on val_select",
    "tables": "tables of images and answers, read or written",
    "view_pooling": "pooling over views: its module, and its training",
}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def inside(path: Path) -> str:
    return path.relative_to(SOURCE).as_posix()


def identifiers(path: Path) -> Iterator[str]:
    """Names of classes, functions, arguments, variables and attributes; the keys of a typed document are JSON's."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    keys = {
        id(row.target)
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any("Document" in ast.unparse(base) or "TypedDict" in ast.unparse(base) for base in node.bases)
        for row in node.body
        if isinstance(row, ast.AnnAssign)
    }
    for node in ast.walk(tree):
        if id(node) in keys:
            continue
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield node.name
        elif isinstance(node, ast.arg) or (isinstance(node, ast.keyword) and node.arg is not None):
            yield node.arg
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield node.asname or node.name


def retired(name: str) -> str | None:
    bare = name.lstrip("_")
    return next((word for pattern, word in RETIRED.items() if re.fullmatch(pattern, bare)), None)


def uses_pathlib(path: Path) -> bool:
    return "from pathlib import Path" in path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", modules(), ids=inside)
def test_no_retired_name_remains(path):
    found = {(inside(path), name): word for name in identifiers(path) if (word := retired(name)) is not None}
    if uses_pathlib(path):
        found = {place: word for place, word in found.items() if place[1] != "Path"}
    left = {place: word for place, word in found.items() if place not in OTHER_MEANING}
    assert not left, f"the field's word: {left}"


def test_the_table_of_retired_names_finds_them():
    assert retired("_HOPELESS") == "futility"
    assert retired("read_looked") == "ViewTrace"
    assert retired("restated") is None
    assert retired("frozen") is None  # dataclass(frozen=True)


def test_no_file_has_a_retired_name():
    assert {inside(path) for path in modules() if path.stem in RETIRED_FILES} == set()


def test_one_file_name_is_one_idea():
    rooms = defaultdict(list)
    for path in modules():
        if not inside(path).startswith(tuple(f"{room}/" for room in SERVING)):
            rooms[path.stem].append(inside(path))
    several = {name: files for name, files in rooms.items() if len(files) > 1}
    assert {name: files for name, files in several.items() if name not in SAME_IDEA} == {}
    assert set(SAME_IDEA) <= set(several), "a name that one file has needs no reason here"


def test_no_package_hides_a_module_behind_a_name_of_its_own():
    """`from stage1.policy import x` is never a function where stage1/policy/x.py is a file."""
    hidden = set()
    for face in SOURCE.rglob("__init__.py"):
        below = {path.stem for path in face.parent.glob("*.py")} | {
            path.parent.name for path in face.parent.glob("*/__init__.py")
        }
        package = ".".join(("stage1", *face.parent.relative_to(SOURCE).parts))
        for node in ast.parse(face.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom):
                names = {alias.asname or alias.name for alias in node.names}
                hidden |= {f"{package}.{name}" for name in names & below if node.module != package}
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in below:
                hidden.add(f"{package}.{node.name}")
    assert hidden == set()
