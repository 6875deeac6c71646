"""The way in: a store by its path or URL."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from stage1.errors import ConfigError, StoreAway
from stage1.extras import require

if TYPE_CHECKING:
    from stage1.store.event_store import Store


def open_store(
    url: str | os.PathLike[str],
    spool: str | os.PathLike[str] | None = None,
    *,
    record: bool = True,
    wait_s: float = 10.0,
) -> Store:
    """Open a store to record in; its tables are made where there are none.

    url: path of a SQLite file, or postgresql://USER@HOST/NAME. spool: folder of its own on a local disk; of SQLite it
    is FILE.spool unless given. record: False to look at a store that is there (`stage1 store verify`): nothing is made.
    wait_s: how long a database that does not answer yet is waited for.
    Raises ConfigError for a place that can hold no store, MissingError where a package or (record=False) the store is
    missing, StoreAway where the database does not answer.
    """
    require(["sqlalchemy", "alembic"], "the event store")
    from stage1.store.database import Database
    from stage1.store.event_store import Store
    from stage1.store.spool import Spool

    database = Database(url, must_exist=not record)
    if record and spool is None:
        if database.file is None:
            raise ConfigError(f"{database.name}: give spool=FOLDER, on a local disk, to record in it")
        spool = f"{database.file}.spool"
    end = time.monotonic() + wait_s
    while True:
        try:
            database.migrate() if record else database.require_tables()
            store_id = database.store_id()
            break
        except StoreAway:
            if time.monotonic() > end:
                raise
            time.sleep(0.2)
    return Store(database, Spool(Path(spool), store_id) if record and spool is not None else None)
