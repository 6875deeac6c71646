"""Every test of a store runs on SQLite and on a PostgreSQL server, where this machine has one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from stage1.store import Store, open_store

from .postgres import Server, running_server


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    with running_server() as started:
        yield started


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where an empty store can be: a path, and a URL."""
    if request.param == "sqlite":
        return str(tmp_path / "store.db")
    return str(request.getfixturevalue("server").schema())


@pytest.fixture
def opened(place: str, tmp_path: Path) -> Iterator[Callable[[], Store]]:
    """Opens the store at `place`, with a spool in tmp_path; closes what is open at the end."""
    stores: list[Store] = []

    def opening() -> Store:
        stores.append(open_store(place, spool=tmp_path / "spool"))
        return stores[-1]

    yield opening
    for store in stores:
        store.close(5)


@pytest.fixture
def store(opened: Callable[[], Store]) -> Store:
    return opened()
