"""Bring the tables of a store up to the newest revision, with alembic and the files in `migrations/versions`."""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from stage1.store.tables import metadata


def is_known(revision: str, folder: Path) -> bool:
    """Whether a revision is one of this version's."""
    return revision in {each.revision for each in ScriptDirectory(str(folder)).walk_revisions()}


def upgrade(connection: Connection, folder: Path, to: str = "head") -> None:
    """Run what is missing, in the transaction of `connection`. folder: that holds `versions`."""
    script = ScriptDirectory(str(folder))
    environment = EnvironmentContext(
        Config(), script, fn=lambda revision, _: script._upgrade_revs(to, revision), destination_rev=to
    )
    with environment:
        environment.configure(connection=connection, target_metadata=metadata)
        environment.run_migrations()
