"""The store: record to the spool, bring to the database, ask, erase, verify. Safe to use from many threads."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sqlalchemy import Connection

from stage1.errors import ConfigError, DataError, StoreAway, StoreError
from stage1.store import reading
from stage1.store.appending import Outcome, append_labels
from stage1.store.chain import Verification
from stage1.store.database import Database
from stage1.store.deletion import Deleted, erase
from stage1.store.events import DecisionEvent, LabelEvent, canonical, decision_content, require_name
from stage1.store.exporting import Exported, What, export_table
from stage1.store.reading import StoredDecision, StoredLabel
from stage1.store.spool import Spool
from stage1.store.verification import verify_chain
from stage1.store.writer import Writer

_SOON_S = 5.0  # that a question waits for what was recorded before it


class Store:
    """Made by `open_store`. Without a spool it reads, labels, erases and verifies, and does not record."""

    def __init__(self, database: Database, spool: Spool | None) -> None:
        self._database, self._spool = database, spool
        self._closed = False
        self._writer = None if spool is None else Writer(database, spool)
        self.name = database.name

    def record(self, events: Sequence[DecisionEvent]) -> None:
        """Returns when the decisions are on the disk of this machine; the database gets them soon, each once.

        Raises StoreError where they cannot be kept (a full disk, a closed store): then none of them may be answered.
        """
        self._require_open()
        if self._spool is None or self._writer is None:
            raise ConfigError(f"{self.name}: was opened without a spool, so nothing can be recorded; give spool=FOLDER")
        if events:
            self._spool.append([canonical(decision_content(event)) for event in events])
            self._writer.wake()

    def label(self, events: Sequence[LabelEvent]) -> list[Outcome]:
        """Store labels, in the database when this returns; one outcome each: stored, known (there already), unknown
        image, or ambiguous image (image_id alone, which stands for several images).

        Raises StoreAway, and stores none of them, where the database does not answer.
        """
        self._require_open()
        if not events:
            return []
        if not self.flush(_SOON_S):
            raise StoreAway(f"{self.name}: the database is away ({self.trouble or 'busy'}); send the labels again")
        with self._database.writing() as connection:
            return append_labels(connection, events)

    @property
    def pending(self) -> int:
        """Decisions in this process's spool that the database does not have yet."""
        return 0 if self._writer is None else self._writer.pending

    @property
    def trouble(self) -> str:
        """Why the database does not take what waits; "" where it does."""
        return "" if self._writer is None else self._writer.trouble

    def flush(self, timeout: float | None = None) -> bool:
        """Wait until everything recorded before this call is in the database. False: it is not, after `timeout` s."""
        return True if self._writer is None else self._writer.flush(timeout)

    def decisions(
        self,
        *,
        after: int = 0,
        before: int | None = None,
        limit: int = 1000,
        exit: bool | None = None,
        state: str | None = None,
        audit_open: bool | None = None,
        model: str | None = None,
        newest: bool = False,
    ) -> list[StoredDecision]:
        """Decisions of the database, in the order of the chain after entry `after` and before entry `before`; newest:
        from the end (or from `before`) backwards.

        audit_open: audits that are asked for and have no label yet. What is pending is not among them.
        """
        self._require_open()
        with self._database.reading() as connection:
            return reading.read_decisions(
                connection,
                after=after,
                before=before,
                limit=limit,
                exit=exit,
                state=state,
                audit_open=audit_open,
                model=model,
                newest=newest,
            )

    def labels(self, *, after: int = 0, limit: int = 1000) -> list[StoredLabel]:
        """Labels in the order of the chain after entry `after`."""
        self._require_open()
        with self._database.reading() as connection:
            return reading.read_labels(connection, after=after, limit=limit)

    def find(self, request_id: str) -> list[StoredDecision]:
        """The decisions of a request with their labels, by index; [] where there is none. Waits for what is pending.

        Raises StoreAway where the database does not answer.
        """
        return self._found(reading.find_request, request_id)

    def find_image(self, image_digest: str) -> list[StoredDecision]:
        """The decisions about an image, newest first."""
        return self._found(reading.find_image, image_digest)

    def counts(self) -> dict[str, int]:
        """`reading.count`, and of this process: pending; known (recorded again); damaged (files of the spool that could
        not be read whole).
        """
        self._require_open()
        with self._database.reading() as connection:
            found = reading.count(connection)
        writer = self._writer
        return found | {
            "pending": self.pending,
            "known": 0 if writer is None else writer.total.known,
            "damaged": 0 if self._spool is None else self._spool.damaged(),
        }

    def verify(self, head: str = "") -> Verification:
        """Read the whole chain. head: a digest that was noted elsewhere, which has to be in it."""
        self._require_open()
        with self._database.reading() as connection:
            return verify_chain(connection, head)

    def head(self) -> str:
        """Digest of the last entry: noted elsewhere, it shows later that nothing up to here was changed or cut off."""
        self._require_open()
        with self._database.reading() as connection:
            return reading.read_head(connection)

    def delete(self, *, request_id: str = "", image_digest: str = "", who: str, why: str) -> Deleted:
        """Erase every decision of a request, or about an image, with their labels; an entry says who, when and why.

        Raises DataError unless one id is given, with who and why (up to 200 characters).
        """
        self._require_open()
        require_name("who", who, empty=False)
        require_name("why", why)
        if not why.strip():
            raise DataError("why: is empty; a deletion says why")
        require_name("request_id", request_id)
        require_name("image_digest", image_digest)
        self.flush(_SOON_S)
        with self._database.writing() as connection:
            deleted = erase(
                connection, request_id=request_id, image_digest=image_digest, who=who, why=why, at=time.time()
            )
        self._database.forget_erased()
        return deleted

    def export(self, path: str | os.PathLike[str], what: What = "decisions") -> Exported:
        """Write decisions or labels to a Parquet file, in the order of the chain; whole or not at all."""
        self._require_open()
        with self._database.reading() as connection:
            return export_table(connection, Path(path), what)

    def close(self, timeout: float = 30.0) -> bool:
        """Bring what waits to the database, for up to `timeout` s, and let go. False: some is left in the spool, where
        the next start finds it.
        """
        if self._closed:
            return True
        self._closed = True
        emptied = True
        if self._writer is not None and self._spool is not None:
            emptied = self._writer.stop(timeout)
            self._spool.close()
        self._database.close()
        return emptied

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _found(self, question: Callable[[Connection, str], list[StoredDecision]], value: str) -> list[StoredDecision]:
        self._require_open()
        self.flush(_SOON_S)
        if not _can_be_an_id(value):
            return []
        with self._database.reading() as connection:
            return question(connection, value)

    def _require_open(self) -> None:
        if self._closed:
            raise StoreError(f"{self.name}: the store is closed")


def _can_be_an_id(value: str) -> bool:
    try:
        require_name("id", value)
        return True
    except DataError:  # no event has such an id; PostgreSQL would not even take the question
        return False
