"""The page on the architecture names every room of the tree, in the order that imports must keep."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from .test_architecture import PACKAGE, ROOMS, SOURCE

PAGE = Path(__file__).parents[1] / "docs" / "ARCHITECTURE.md"


def listed(text: str) -> list[str]:
    """Rooms of the page's table, from the top."""
    return re.findall(r"^\| `([a-z]+)` \| [^|\s]", text, flags=re.M)


def test_the_page_lists_every_room_once_in_the_order_of_imports():
    assert listed(PAGE.read_text(encoding="utf-8")) == [name for name in ROOMS if name != PACKAGE]


def test_every_room_of_the_tree_stands_in_the_order():
    rooms = {path.name for path in SOURCE.iterdir() if (path / "__init__.py").is_file()}
    files = {path.stem for path in SOURCE.glob("*.py") if path.stem != "__init__"}
    assert rooms | files == set(ROOMS) - {PACKAGE}


def test_a_room_that_is_left_out_or_out_of_order_is_seen():
    assert listed("| `risk` | what can be proved |\n| `errors` | one line each |\n| `views` | |") == ["risk", "errors"]


def test_dir_shows_the_public_names_before_any_of_them_is_imported():
    done = subprocess.run(
        [sys.executable, "-c", "import stage1; print(set(stage1.__all__) <= set(dir(stage1)), stage1.run.__name__)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True run\n"
