"""The order of the rooms, the graph of files, the weight of imports, and the names that must not appear."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

PACKAGE = "stage1"
SOURCE = Path(__file__).parents[1] / "src" / PACKAGE
# From the ground up: a file imports files of its own room and of rooms above it in this list, and nothing else. Late
# imports and those under TYPE_CHECKING count. The face of the package (`stage1/__init__.py`) is the last one.
ROOMS = (
    *(
        "version",
        "late",
        "errors",
        "extras",
        "storage",
        "scores",
        "store",
        "runtime",
        "sources",
        "risk",
        "calibration",
        "evaluation",
    ),
    *(
        "policy",
        "views",
        "config",
        "data",
        "model",
        "features",
        "training",
        "bundle",
        "monitoring",
        "inference",
        "report",
        "cascade",
    ),
    *("integrations", "simulation", "streetvision", "serving", "runs", "stages", "commands", "cli", PACKAGE),
)
TORCH_ROOMS = {"model", "features", "training"}
ABOVE_TORCH = TORCH_ROOMS | {"stages", "commands", "integrations", "simulation", "streetvision.challenge"}
"""Rooms and folders whose files may import those of a torch room."""
MAY_USE_TORCH = ABOVE_TORCH | {"scores", "streetvision"}  # scores: the .pt files of a role, late
HEAVY = {"torch", "torchvision", "timm", "sklearn", "pandas"}
SERVED = {"fastapi", "uvicorn", "sqlalchemy", "alembic"}
LATE = {"matplotlib", "jinja2", "datasets", "onnx"}
AT_IMPORT = TORCH_ROOMS | {"integrations", "simulation", "streetvision"}  # may need them at import time

Modules = Mapping[str, str]
"""Source of each module, by its name below the package: {"": .., "risk.bounds": ..}."""


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


@cache
def tree() -> dict[str, str]:
    """The package as `Modules`."""
    found = {}
    for path in modules():
        parts = path.relative_to(SOURCE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = path.read_text(encoding="utf-8")
    return found


# ---- what the rule is checked with: functions of a tree, so that a small one can be planted ----------------------


def room(module: str) -> str:
    return module.partition(".")[0] or PACKAGE


def inside(module: str, places: Iterable[str]) -> bool:
    """Whether the module is one of these rooms or folders, or in one of them."""
    return any(module == place or module.startswith(f"{place}.") for place in places)


def imported(source: str, *, at_import_only: bool = False) -> set[str]:
    """Dotted names that a source imports, wherever. at_import_only: not in functions, nor under TYPE_CHECKING."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if at_import_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            return
        if at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(source))
    return found


def needs(tree: Modules) -> dict[str, set[str]]:
    """The files that each file imports. A name out of a room's `__init__.py` is an import of that file."""

    def files(source: str) -> Iterator[str]:
        for name in imported(source):
            first, _, rest = name.partition(".")
            if first == PACKAGE:
                yield rest if rest in tree else rest.rpartition(".")[0]

    return {module: set(files(source)) - {module} for module, source in tree.items()}


def circle(tree: Modules) -> list[str]:
    """One circle of files that import each other, [] where there is none."""
    try:
        graphlib.TopologicalSorter(needs(tree)).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def against_the_order(tree: Modules, rooms: Sequence[str]) -> list[str]:
    """A line for each import of a room that stands below, in the list, the one that imports."""
    place = {name: index for index, name in enumerate(rooms)}
    return [
        f"{module or PACKAGE} imports {other or PACKAGE}"
        for module, others in needs(tree).items()
        for other in sorted(others)
        if place[room(other)] > place[room(module)]
    ]


def torch_where_it_may_not_be(tree: Modules) -> list[str]:
    """A line for each import of a heavy package, or of a file of a torch room, where numpy is all there is."""
    lines = []
    for module, others in needs(tree).items():
        heavy = {name.partition(".")[0] for name in imported(tree[module])} & HEAVY
        lines += [f"{module or PACKAGE} imports {name}" for name in sorted(heavy) if not inside(module, MAY_USE_TORCH)]
        rooms = {room(other) for other in others} & TORCH_ROOMS
        if not inside(module, ABOVE_TORCH) and module != "":  # the face is lazy
            lines += [f"{module} imports {name}" for name in sorted(rooms)]
    return lines


def loaded_too_early(tree: Modules) -> list[str]:
    """A line for each heavy package that a file imports when it is imported itself, outside the rooms that need it."""
    return [
        f"{module or PACKAGE} imports {name}"
        for module, source in tree.items()
        if not inside(module, AT_IMPORT)
        for name in sorted({name.partition(".")[0] for name in imported(source, at_import_only=True)} & (HEAVY | LATE))
    ]


# ---- the package --------------------------------------------------------------------------------------------------


def test_the_rooms_of_the_tree_are_those_of_the_order():
    assert {room(module) for module in tree()} == set(ROOMS)


def test_imports_go_one_way():
    assert against_the_order(tree(), ROOMS) == []


def test_no_circle_of_files():
    assert circle(tree()) == []


def test_torch_stays_in_its_rooms():
    assert torch_where_it_may_not_be(tree()) == []


def test_no_heavy_package_at_import():
    assert loaded_too_early(tree()) == []


# ---- the rule itself: a violation of each kind is found -----------------------------------------------------------

SOUND = {
    "": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stage1.policy import fit",
    "errors": "",
    "risk": "from stage1.risk.bounds import upper",
    "risk.bounds": "from stage1.errors import DataError\nimport numpy",
    "policy": "from stage1.policy.softmax import fit",
    "policy.softmax": "from stage1.risk import upper",
    "training": "import torch",
    "stages": "def train():\n    from stage1.training import fit",
}
PLANTED = {
    "an import against the order": ("risk.bounds", "from stage1.policy import fit"),
    "a late import against the order": ("risk.bounds", "def f():\n    from stage1.policy.softmax import fit"),
    "a TYPE_CHECKING import against the order": (
        "risk.bounds",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stage1.policy import fit",
    ),
    "an import of the face": ("risk.bounds", "from stage1 import run"),
}
CIRCULAR = {
    "two files of a room": ("risk.bounds", "from stage1.risk.sequence import walk"),
    "a late import": ("risk.bounds", "def f():\n    from stage1.risk import sequence"),
    "a TYPE_CHECKING import": ("risk.bounds", "if TYPE_CHECKING:\n    import stage1.risk.sequence"),
    "the room as a whole": ("risk.bounds", "from stage1.risk import upper"),
}
TORCH = {
    "torch": ("policy.softmax", "import torch"),
    "torch, late": ("policy.softmax", "def f():\n    from torch import nn"),
    "torch for a type": ("policy.softmax", "if TYPE_CHECKING:\n    from torch import Tensor"),
    "timm": ("risk.bounds", "def f():\n    import timm.models"),
    "a torch room": ("runs.runner", "def f():\n    from stage1.training import fit"),
}


def test_a_sound_tree_passes():
    rooms = [name for name in ROOMS if name in {room(module) for module in SOUND}]
    assert against_the_order(SOUND, rooms) == []
    assert circle(SOUND) == []
    assert torch_where_it_may_not_be(SOUND) == []
    assert loaded_too_early(SOUND) == []


@pytest.mark.parametrize("module, source", PLANTED.values(), ids=PLANTED)
def test_an_import_against_the_order_is_found(module, source):
    assert len(against_the_order({**SOUND, module: source}, ROOMS)) == 1


@pytest.mark.parametrize("module, source", CIRCULAR.values(), ids=CIRCULAR)
def test_a_circle_is_found(module, source):
    planted = {**SOUND, "risk.sequence": "from stage1.risk.bounds import upper", module: source}
    assert "risk.bounds" in circle(planted)


@pytest.mark.parametrize("module, source", TORCH.values(), ids=TORCH)
def test_torch_in_the_numpy_half_is_found(module, source):
    assert len(torch_where_it_may_not_be({**SOUND, module: source})) == 1


def test_a_heavy_import_outside_a_function_is_found():
    assert loaded_too_early({**SOUND, "report": "import matplotlib"}) == ["report imports matplotlib"]
    assert loaded_too_early({**SOUND, "report": "def draw():\n    import matplotlib"}) == []


# ---- the weight of imports ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "what",
    ["import stage1", "import stage1.cli", "from stage1 import Scores, fit_policy, load_policy, load_bundle, run"],
)
def test_light_imports(what):
    code = (
        f"{what}\nimport sys\nprint([name for name in {sorted(HEAVY | SERVED | {'matplotlib', 'jinja2'})!r} if name in"
        " sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def late_names_beside_their_imports(tree: Modules) -> list[str]:
    """A line for each room whose names wait (stage1.late.names) and are not those that its type checker reads."""
    wrong = []
    for name, source in tree.items():
        body = ast.parse(source).body
        [branch] = [node for node in body if isinstance(node, ast.If) and "names(" in ast.unparse(node)] or [None]
        if branch is None:
            continue
        read = {
            (node.module.rpartition(".")[2], alias.name)
            for node in branch.body
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        call = next(node for node in ast.walk(branch) if isinstance(node, ast.Call))
        late = {(item.arg, each) for item in call.keywords for each in ast.literal_eval(item.value).split()}
        public = next(ast.literal_eval(node.value) for node in body if ast.unparse(node).startswith("__all__"))
        if read != late or {each for _, each in late} != set(public):
            wrong.append(f"{name}: {sorted(read ^ late) or sorted({each for _, each in late} ^ set(public))}")
    return wrong


def test_late_names_are_those_of_the_imports_beside_them():
    assert late_names_beside_their_imports(tree()) == []
    source = tree()["risk"]
    for broken in (
        source.replace('crc_threshold",', 'crc_thresholds",', 1),
        source.replace("import Risk\n", "import Risk, Side\n", 1),
        source.replace('    "plan",\n', "", 1),
    ):
        assert broken != source
        assert len(late_names_beside_their_imports({"risk": broken})) == 1


@pytest.mark.parametrize("name", [name for name, source in tree().items() if "__getattr__ = names(" in source])
def test_late_names_are_there(name):
    found = import_module(f"{PACKAGE}.{name}")
    assert all(getattr(found, each).__name__ == each for each in found.__all__ if each[0].islower())
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        found.nothing  # noqa: B018


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
