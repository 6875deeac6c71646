"""Real data, where this checkout has it beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[2] / "shared" / "data"


def shared_file(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"../shared/data/{name} is not beside this checkout")
    return path


@pytest.fixture(scope="session")
def coco_scores() -> Path:
    return shared_file("scores/coco_person_tresnetxl.npz")


@pytest.fixture(scope="session")
def potholes() -> Path:
    return shared_file("potholes/labels.csv")


# Files that take minutes: where files are shared out to workers, the last one to start must not be one of these.
LONG = (
    "test_docs.py",
    "test_kill.py",
    "test_tuning_run.py",
    "test_views_run.py",
    "test_export.py",
    "test_pooled.py",
    "test_show.py",
    "test_huggingface.py",
    "test_recompute.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
