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
