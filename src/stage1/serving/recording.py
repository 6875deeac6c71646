"""Decisions go to the store before they are answered: many requests, one write, in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from stage1.errors import Stage1Error
from stage1.serving.refusal import Refusal
from stage1.store import DecisionEvent, ImageStore, Store

log = logging.getLogger("stage1.serving")

# Decisions of one write: its time bounds how long the first of them waits.
_MOST = 512


@dataclass(frozen=True, slots=True)
class _Entry:
    events: Sequence[DecisionEvent]
    images: Sequence[bytes]
    future: asyncio.Future[None]


class Recorder:
    """store: where decisions go. images: where image files go, None: they are not kept."""

    def __init__(self, store: Store, images: ImageStore | None, loop: asyncio.AbstractEventLoop) -> None:
        self.store, self.images = store, images
        self._loop = loop
        self._entries: queue.SimpleQueue[_Entry | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="stage1-recorder", daemon=True)
        self._thread.start()

    async def record(self, events: Sequence[DecisionEvent], images: Sequence[bytes]) -> None:
        """Returns when they are on the disk. Raises Refusal (503) where they cannot be kept: nothing is answered."""
        entry = _Entry(events, images if self.images is not None else (), self._loop.create_future())
        self._entries.put(entry)
        # A request that is given up here is recorded all the same: shielded, since the thread settles the future.
        await asyncio.shield(entry.future)

    def close(self) -> bool:
        """Write what was handed over, then bring the spool to the database; False: some is left for the next start."""
        self._entries.put(None)
        self._thread.join()
        return self.store.close()

    def _run(self) -> None:
        while (first := self._entries.get()) is not None:
            entries = [first]
            count, last = len(first.events), False
            while count < _MOST:
                try:
                    entry = self._entries.get_nowait()
                except queue.Empty:
                    break
                if entry is None:
                    last = True
                    break
                entries.append(entry)
                count += len(entry.events)
            self._write(entries)
            if last:
                return

    def _write(self, entries: list[_Entry]) -> None:
        failure: Exception | None = None
        try:
            if self.images is not None:
                for entry in entries:
                    for image in entry.images:
                        self.images.put(image)
            self.store.record([event for entry in entries for event in entry.events])
        except (Stage1Error, OSError) as error:
            log.error("decisions cannot be kept: %s", error)
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(_settle, entries, failure)


def _settle(entries: list[_Entry], failure: Exception | None) -> None:
    for entry in entries:
        if entry.future.done():
            continue
        if failure is None:
            entry.future.set_result(None)
        else:
            line = "the decision cannot be kept, so it is not given; try again, or another server"
            entry.future.set_exception(Refusal(503, "store_unavailable", line, retry_after=5))


def drawn(request_id: str, index: int, rate: float) -> bool:
    """Whether an audit is asked for: with probability `rate`, from an id that no client can choose.

    >>> drawn("a", 0, 0.0), drawn("a", 0, 1.0)
    (False, True)
    """
    digest = hashlib.sha256(f"audit {request_id} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < rate * 2.0**64
