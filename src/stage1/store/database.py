"""The database behind a store, SQLite in a file (WAL) or PostgreSQL by URL: transactions, tables, errors."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, inspect, make_url, select, text

from stage1.errors import ConfigError, IntegrityError, MissingError, Stage1Error, StoreAway, StoreError
from stage1.extras import require
from stage1.store.tables import head

REVISION = "0001"
"""Of the tables that this version reads and writes: the newest of `migrations/versions`."""
MIGRATIONS = Path(__file__).parent / "migrations"
_BUSY_MS = 2000
_WRITE = "stage1_write"
_ONE_AT_A_TIME = 0x57A6E1  # key of PostgreSQL's advisory lock while tables are made


class Database:
    """Transactions on the database of a store.

    place: path of a SQLite file, or URL (sqlite:///PATH, postgresql://USER@HOST/NAME). `name` is it without a password.
    Every error of the driver becomes one line: StoreAway where the database may come back, IntegrityError where the
    file is damaged, StoreError else.
    """

    def __init__(self, place: str | os.PathLike[str], *, must_exist: bool = False) -> None:
        self.url = location(place)
        self.name = self.url.render_as_string(hide_password=True)
        self.file: Path | None = None
        if self.url.get_backend_name() == "sqlite":
            self.file = Path(str(self.url.database)).absolute()
            self.name = str(self.file)
            _prepare_file(self.file, must_exist=must_exist)
            self.engine = _sqlite_engine(self.file, to_record=not must_exist)
        else:
            require(["psycopg"], self.name)
            self.engine = _postgres_engine(self.url)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read-only transaction in which nothing that others write appears."""
        isolation: dict[str, Any] = {} if self.file else {"isolation_level": "REPEATABLE READ"}
        with self._errors(), self.engine.connect() as connection:
            connection = connection.execution_options(**isolation)
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed, durably, when the block ends without an error. Of SQLite there is one at a
        time in the whole machine; of PostgreSQL the one that appends holds the row of `head`.
        """
        with self._errors(), self.engine.connect() as connection:
            connection = connection.execution_options(**{_WRITE: True})
            with connection.begin():
                yield connection

    def migrate(self) -> None:
        """Make the tables, or bring those of an older version up to date. Several processes may call it at once."""
        found = self.revision()
        if found == REVISION:
            return
        require(["alembic"], "the event store")
        from stage1.store.migration import is_known, upgrade

        if found is not None and not is_known(found, MIGRATIONS):
            self.require_tables()
        with self.writing() as connection:
            if self.file is None:
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ONE_AT_A_TIME})
                if (encoding := connection.execute(text("SHOW server_encoding")).scalar()) != "UTF8":
                    raise ConfigError(f"{self.name}: the database has the encoding {encoding}; make one with UTF8")
            upgrade(connection, MIGRATIONS)
        self.require_tables()

    def revision(self) -> str | None:
        """Of the tables that are there; None where there are none."""
        with self.reading() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return None
            return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()

    def require_tables(self) -> None:
        """Raises MissingError where there is no store, StoreError where its tables are of another version."""
        found = self.revision()
        if found is None:
            raise MissingError(f"{self.name}: holds no store; a server makes one, or stage1.store.open_store")
        if found != REVISION:
            raise StoreError(
                f"{self.name}: its tables are of revision {found}, this version's are of {REVISION}; an older store is"
                " brought up to date when a server opens it, a newer one needs a newer stage1-pro"
            )

    def store_id(self) -> str:
        """The random name that the store got when its tables were made."""
        with self.reading() as connection:
            found = connection.execute(select(head.c.store).where(head.c.id == 1)).scalar()
        if not isinstance(found, str):
            raise IntegrityError(f"{self.name}: the head of the chain is missing")
        return found

    def forget_erased(self) -> None:
        """Overwrite what a deletion left in SQLite's log, as far as no reader holds it. PostgreSQL has autovacuum."""
        if self.file is not None:
            with self._errors(), self.engine.connect() as connection:
                cursor = connection.connection.cursor()
                cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                cursor.close()

    def close(self) -> None:
        self.engine.dispose()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (exc.SQLAlchemyError, sqlite3.Error) as error:
            raise self.explained(error) from error

    def explained(self, error: exc.SQLAlchemyError | sqlite3.Error) -> Stage1Error:
        """The one-line error of the package for one of the driver."""
        cause = error.orig if isinstance(error, exc.DBAPIError) and error.orig is not None else error
        why = (str(cause).strip().splitlines() or [type(cause).__name__])[0][:300]
        if type(cause) is sqlite3.DatabaseError or why.startswith("Could not decode to UTF-8"):
            return IntegrityError(f"{self.name}: is no SQLite database, or a damaged one ({why})")
        away = isinstance(
            error, (exc.OperationalError, exc.InterfaceError, exc.TimeoutError, sqlite3.OperationalError)
        ) or (isinstance(error, exc.DBAPIError) and error.connection_invalidated)
        return (StoreAway if away else StoreError)(f"{self.name}: {why}")


def location(place: str | os.PathLike[str]) -> URL:
    """The URL of a place. A path is taken as it is: no character in it means anything.

    Raises ConfigError for a URL of another database, or a SQLite one without a file.
    """
    given = os.fspath(place)
    if "://" not in given:
        if not given or given == ":memory:" or "\0" in given:
            raise ConfigError(f"{given!r}: a store needs a file; give its path")
        return URL.create("sqlite", database=given)
    try:
        url = make_url(given)
    except exc.ArgumentError as error:
        raise ConfigError("the URL of the store cannot be read; it looks like postgresql://USER@HOST/NAME") from error
    backend = url.get_backend_name()
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend == "sqlite" and url.database and url.database != ":memory:" and not url.query:
        return URL.create("sqlite", database=url.database)
    raise ConfigError(f"{url.render_as_string(hide_password=True)}: a store is a file of SQLite, or postgresql://..")


def _prepare_file(file: Path, *, must_exist: bool) -> None:
    if file.is_dir():
        raise ConfigError(f"{file}: is a folder; give the file of the store")
    if file.exists():
        return
    if must_exist:
        raise MissingError(f"{file}: is not there")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))  # what people sent is nobody else's to read
    except OSError as error:
        raise StoreError(f"{file}: cannot be made ({error.strerror})") from error


def _sqlite_engine(file: Path, *, to_record: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(file)),
        connect_args={"timeout": _BUSY_MS / 1000, "check_same_thread": False},
        pool_size=8,
        max_overflow=8,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        # Python's driver would begin transactions by itself, and late; SQLAlchemy's documentation says to switch it off
        # (dialects/sqlite, "Serializable isolation / Savepoints / Transactional DDL").
        connection.isolation_level = None
        cursor = connection.cursor()
        if to_record:  # a file that is only looked at stays what it is
            cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # the spool lets go of what was committed
        cursor.execute("PRAGMA secure_delete=ON")  # erased is overwritten
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        write = connection.get_execution_options().get(_WRITE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine


def _postgres_engine(url: URL) -> Engine:
    # A server that is gone without a word is noticed after 15 s, not after the two hours of TCP.
    gone = {"connect_timeout": 5, "tcp_user_timeout": 15000, "keepalives_idle": 10}
    given = {**gone, "application_name": "stage1", **url.query}
    # A lock that somebody holds is an error to try again, so that a store can be closed meanwhile.
    given["options"] = f"{given.get('options', '')} -c lock_timeout={_BUSY_MS}".strip()
    return create_engine(url.set(query={}), connect_args=given, pool_size=8, max_overflow=8, pool_pre_ping=True)
