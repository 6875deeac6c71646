"""What every worker of pytest-xdist needs and one of them makes: the others wait for it, and then have it too."""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

Made = TypeVar("Made")


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """The folder for temporary files of this run of pytest, the same in all its workers."""
    own = factory.getbasetemp()
    return own.parent if "PYTEST_XDIST_WORKER" in os.environ else own


def made_once(path: Path, make: Callable[[], Made]) -> Made:
    """What `make` returned in the process that came first, kept in `path` as a pickle: the tests' own, of this run.

    A `make` that fails leaves nothing, and the next process tries again.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{path}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            made = make()
            part = path.with_name(f"{path.name}.part")
            part.write_bytes(pickle.dumps(made))
            part.replace(path)
        return pickle.loads(path.read_bytes())
