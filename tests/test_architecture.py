"""The import rule of DESIGN.md, the weight of imports, and the names that must not appear."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "stage1"
CORE = {"errors", "extras", "storage", "scores", "runtime", "sources", "risk"}
# Each room may import the rooms named.
NUMPY = {
    **dict.fromkeys(CORE, CORE),
    "calibration": CORE,
    "policy": CORE | {"calibration"},
    "evaluation": CORE | {"calibration"},
}
NUMPY |= {
    "views": CORE | {"calibration", "evaluation"},
    "bundle": CORE | {"calibration", "policy", "evaluation", "views"},
    "inference": CORE | {"calibration", "policy", "evaluation", "views", "bundle"},
    "report": CORE | {"calibration", "policy", "evaluation", "views"},
    "cascade": CORE | {"config", "calibration", "policy", "evaluation", "views", "bundle", "inference"},
}
# The config stands above what it names: its maps, aggregators and sources are those of the registries.
NUMPY["config"] = CORE | {"calibration", "views"}
TORCH = {
    "data": CORE | {"config", "evaluation"},
    "model": CORE | {"config", "evaluation", "data"},
    "features": CORE | {"config", "evaluation", "data", "model"},
    "training": CORE | {"config", "evaluation", "data", "model", "features"},
}
RULE = {**NUMPY, **TORCH}
# Adapters to the tools of others: each imports the tool it is named after, and `import stage1` none of them.
RULE["integrations"] = set(RULE) | {"streetvision"}
RULE["simulation"] = CORE | {"config", "data"}
RULE["streetvision"] = set(RULE)
RULE["runs"] = set(RULE) | {"stages"}
RULE["stages"] = set(RULE) | {"commands"}
RULE["commands"] = set(RULE)
RULE["cli"] = set(RULE)
HEAVY = {"torch", "torchvision", "timm", "sklearn", "pandas"}
LATE = {"matplotlib", "jinja2", "datasets", "onnx"}


def modules():
    return sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path, *, only_at_import: bool) -> set[str]:
    """Dotted names imported, without those under `if TYPE_CHECKING`; only_at_import: not those inside functions."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if only_at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_go_one_way(path):
    own = room(path)
    if own == "__init__":
        return  # the public API: everything in it is lazy, which test_light_imports shows
    for name in imports(path, only_at_import=False):
        parts = name.split(".")
        if parts[0] == "stage1" and len(parts) > 1 and parts[1] not in ("__version__", own):
            assert parts[1] in RULE[own], f"{own} may not import {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_the_numpy_half_and_data_never_import_torch(path):
    if room(path) in (set(NUMPY) | {"data", "cli", "__init__"}) - {"scores"}:
        roots = {name.split(".")[0] for name in imports(path, only_at_import=False)}
        assert not roots & HEAVY, path
    roots = {name.split(".")[0] for name in imports(path, only_at_import=True)}
    if room(path) not in {*TORCH, "integrations", "simulation", "streetvision"} or room(path) == "data":
        assert not roots & (HEAVY | LATE), path


@pytest.mark.parametrize(
    "what",
    ["import stage1", "import stage1.cli", "from stage1 import Scores, fit_policy, load_policy, load_bundle, run"],
)
def test_light_imports(what):
    code = (
        f"{what}\nimport sys\nprint([name for name in {sorted(HEAVY | {'matplotlib', 'jinja2'})!r} if name in"
        " sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_files_of_config_go_one_way():
    files = [path for path in (SOURCE / "config").glob("*.py") if path.stem != "__init__"]
    needs = {
        path.stem: {
            name.split(".")[2] for name in imports(path, only_at_import=False) if name.startswith("stage1.config.")
        }
        for path in files
    }
    assert set().union(*needs.values()) <= set(needs), "a file of config imports from the whole of it"
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError


def test_no_rooms_for_leftovers():
    names = {part.removesuffix(".py") for path in modules() for part in path.relative_to(SOURCE).parts}
    assert not names & {"utils", "util", "helpers", "common", "misc"}


def test_no_pickle_and_no_remote_code():
    for path in modules():
        text = path.read_text(encoding="utf-8")
        for forbidden in (
            "import pickle",
            "weights_only=False",
            "allow_pickle=True",
            "trust_remote_code=True",
            "yaml.load(",
        ):
            assert forbidden not in text, f"{path}: {forbidden}"


def test_every_module_says_what_it_is():
    for path in modules():
        if path.name != "__init__.py" or path.read_text(encoding="utf-8").strip():
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
