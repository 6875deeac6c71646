"""The thread that brings decisions from the spool to the database, and waits while that is away."""

from __future__ import annotations

import random
import threading
import time
from dataclasses import astuple

from stage1.errors import Stage1Error
from stage1.store.appending import Appended, append_decisions
from stage1.store.database import Database
from stage1.store.events import is_decision
from stage1.store.spool import Segment, Spool, read_lines

_BATCH = 1000  # decisions of one transaction
_LINGER_S = 0.1  # that decisions gather for one transaction, unless somebody asks for them
_IDLE_S = 5.0  # between looks for what other processes left
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 5.0


class Writer:
    """Starts at once. total: what became of the decisions so far; trouble: the last error while there is one."""

    def __init__(self, database: Database, spool: Spool) -> None:
        self._database, self._spool = database, spool
        self.total = Appended()
        self.trouble = ""
        self._landed = 0
        self._arrived = threading.Condition()
        self._wake = threading.Event()
        self._hurry = threading.Event()
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="stage1-store", daemon=True)
        self._adopted = spool.adopt()
        self._thread.start()

    @property
    def pending(self) -> int:
        return max(0, self._spool.appended - self._landed)

    def wake(self) -> None:
        self._wake.set()

    def flush(self, timeout: float | None) -> bool:
        wanted = self._spool.appended
        if self._landed >= wanted:
            return True
        self._hurry.set()
        self._wake.set()
        with self._arrived:
            return self._arrived.wait_for(lambda: self._landed >= wanted, timeout)

    def stop(self, timeout: float) -> bool:
        """Bring what waits, for up to `timeout` s, and end. False: some is left."""
        self._stop_at = time.monotonic() + timeout
        self._hurry.set()
        self._wake.set()
        self._thread.join()
        return self.pending == 0

    def _run(self) -> None:
        segments, taken_over = self._adopted, True
        while True:
            for place, segment in enumerate(segments):
                if not self._bring(segment, taken_over):
                    for left in segments[place:]:
                        self._spool.leave(left)
                    return
            taken = self._spool.take()
            segments, taken_over = [taken] if taken is not None else [], False
            if taken is None:
                if self._stop_at is not None:
                    return
                self._hurry.clear()
                if self._wake.wait(_IDLE_S):
                    self._wake.clear()
                    self._hurry.wait(_LINGER_S)
                else:
                    segments, taken_over = self._spool.adopt(), True

    def _bring(self, segment: Segment, taken_over: bool) -> bool:
        """Store the decisions of a segment, in transactions of some, and drop it. False: stopped before."""
        lines = read_lines(segment)
        contents = lines.contents
        if taken_over:  # by whatever version of this program it was written
            contents = [content for content in contents if is_decision(content)]
        landed = 0
        for start in range(0, len(contents), _BATCH):
            some = contents[start : start + _BATCH]
            if not self._append(some):
                return False
            landed += len(some)
            self._count(len(some))
        self._spool.drop(segment, keep_damaged=lines.damaged > 0 or len(contents) < len(lines.contents))
        self._count(segment.events - landed)
        return True

    def _append(self, contents: list[bytes]) -> bool:
        wait = _FIRST_WAIT_S
        while True:
            try:
                with self._database.writing() as connection:
                    done = append_decisions(connection, contents)
            except Stage1Error as error:
                self.trouble = str(error)
            except Exception as error:
                # Whatever it is, the decisions stay where they are safe, and the thread lives: `trouble` is shown.
                self.trouble = f"unexpected {type(error).__name__}: {error}"
            else:
                self.trouble = ""
                self.total = Appended(*(a + b for a, b in zip(astuple(self.total), astuple(done), strict=True)))
                return True
            left = wait if self._stop_at is None else self._stop_at - time.monotonic()
            if left <= 0:
                return False
            self._pause(min(wait, left) * random.uniform(0.5, 1.0))
            wait = min(2 * wait, _LONGEST_WAIT_S)

    def _pause(self, seconds: float) -> None:
        """Sleep, and wake up early where the store is closed."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and (self._stop_at is None or seconds < 0.1):
            time.sleep(min(0.05, max(0.0, end - time.monotonic())))

    def _count(self, n: int) -> None:
        with self._arrived:
            self._landed += n
            self._arrived.notify_all()
