"""Real data, where this checkout has it beside it."""

from __future__ import annotations

import gc
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


# Files that take 15 s of CPU and more: where files are shared out to workers, the last one to start must not be one of
# these. The first makes the run that many share; the next four do without it, so that the other worker need not wait.
LONG = (
    "test_docs.py",
    "test_challenge.py",
    "test_figures.py",
    "test_slices.py",
    "test_export.py",
    "test_plan.py",
    "test_tuning_run.py",
    "test_kill.py",
    "test_launch.py",
    "test_ordering.py",
    "test_images.py",
    "test_scenes.py",
    "test_multiclass_run.py",
    "test_group_means.py",
    "test_reward_levels.py",
    "test_pooled_run.py",
    "test_views_run.py",
    "test_bad_input.py",
    "test_detector.py",
    "test_pooled.py",
    "test_evaluate.py",
    "test_show.py",
    "test_huggingface.py",
    "test_recompute.py",
)


def pytest_collectstart() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """What collection made (torch, seven thousand tests) stays to the end: the collector need not look through it."""
    gc.freeze()
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
