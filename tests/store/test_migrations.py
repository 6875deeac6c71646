"""The migrations that are shipped make the tables that the code reads."""

from __future__ import annotations

import threading

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Integer, text

from stage1.errors import StoreError
from stage1.store import open_store
from stage1.store.database import MIGRATIONS, REVISION, Database
from stage1.store.tables import metadata


@pytest.fixture
def database(place):
    database = Database(place)
    yield database
    database.close()


def differences(database: Database) -> list[object]:
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        return list(compare_metadata(context, metadata))


def test_the_newest_revision_is_the_one_of_the_code():
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [REVISION]


def test_migrated_tables_are_those_of_the_code(database):
    database.migrate()
    assert differences(database) == []
    database.migrate()  # a second time: nothing to do
    assert database.revision() == REVISION


def test_a_column_more_in_the_code_would_be_seen(database):
    database.migrate()
    table = metadata.tables["labels"]
    table.append_column(Column("more", Integer))
    try:
        assert len(differences(database)) == 1
    finally:
        table._columns.remove(table.c.more)


def test_many_that_start_at_once_make_one_store(place):
    ids, errors = [], []

    def start():
        database = Database(place)
        try:
            database.migrate()
            ids.append(database.store_id())
        except Exception as error:
            errors.append(error)
        finally:
            database.close()

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(ids) == 4
    assert len(set(ids)) == 1


def test_tables_of_a_newer_version_are_refused(place, database, tmp_path):
    database.migrate()
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for options in ({"record": False}, {"spool": tmp_path / "spool"}):
        with pytest.raises(StoreError, match="9999"):
            open_store(place, **options)
