"""The queue between requests and workers: it counts images, knows how long they will wait, and refuses in time.

A request is a ticket of one or more jobs, an image each. A worker that is free takes at once what waits, up to a batch:
batches grow with the load and cost no waiting without it. A ticket is admitted only where its images can be expected to
be answered within its deadline, so that what is accepted is kept and the rest is refused while it can still go
elsewhere.

Thread-safe; tickets are put from the thread of the event loop, jobs are taken by the threads of the workers.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stage1.serving.refusal import Refusal

RowDocument = dict[str, Any]
"""A `Row` as plain values."""

# Of the time that is left, the share that a request may be expected to wait, and to take in all: what is measured is a
# mean, and a queue that is longer than this does not make the workers faster.
_WAIT_SHARE, _WHOLE_SHARE = 0.5, 0.8
# Weight of the newest batch in the mean time per image.
_NEWEST = 0.1
# How far behind the first job others of its bundle are looked for.
_LOOK_AHEAD = 256
# Deaths of workers with an image in their batch until it is tried alone, and until it is given up.
ALONE_AFTER, GIVEN_UP_AFTER = 2, 3


@dataclass(eq=False, slots=True)
class Ticket:
    """The images of one request. rows: the answer of each, filled by workers; None: its bundle is gone.

    kind: "images" (files) or "tensors". slices: the value of the slicing attribute of each. deadline:
    time.monotonic().
    """

    bundle: str
    kind: str
    blobs: Sequence[bytes]
    slices: Sequence[str]
    deadline: float
    future: asyncio.Future[None]
    rows: list[RowDocument | None] = field(default_factory=list)
    left: int = 0
    waiting: int = 0
    over: bool = False
    refusal: Refusal | None = None

    def __post_init__(self) -> None:
        self.rows = [None] * len(self.blobs)
        self.left = len(self.blobs)

    def settle(self) -> None:
        """In the thread of the event loop, once."""
        if not self.future.done():
            if self.refusal is None:
                self.future.set_result(None)
            else:
                self.future.set_exception(self.refusal)


@dataclass(eq=False, slots=True)
class Job:
    """One image of a ticket. deaths: batches with it that no answer came of."""

    ticket: Ticket
    index: int
    deaths: int = 0

    @property
    def blob(self) -> bytes:
        return self.ticket.blobs[self.index]


class Queue:
    """size: most images that wait. batch: most of a worker's batch. settle: gets the tickets that are over."""

    def __init__(self, size: int, batch: int, settle: Callable[[list[Ticket]], None]) -> None:
        self._size, self._batch, self._settle = size, batch, settle
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self.waiting = 0
        self.running = 0
        self.workers = 0
        self.seconds_per_image = 0.0

    # ---- the side of the requests --------------------------------------------------------------------------------

    def expected_wait(self) -> float:
        """Seconds until an image that comes now would be begun."""
        return (self.waiting + self.running) * self.seconds_per_image / max(1, self.workers)

    def require_room(self, images: int, deadline: float) -> None:
        """Raises Refusal (503) where so many more images would not fit, or not be answered by `deadline`."""
        wait = self.expected_wait()
        if self._closed:
            raise Refusal(503, "stopping", "the server is stopping; ask another one", retry_after=1)
        if self.workers == 0:
            raise Refusal(503, "not_ready", "no worker is ready yet; try again", retry_after=1)
        if self.waiting + images > self._size:
            raise Refusal(503, "queue_full", f"{self.waiting} images wait; try again", retry_after=wait)
        need = wait + images * self.seconds_per_image / self.workers
        left = deadline - time.monotonic()
        if wait > _WAIT_SHARE * left or need > _WHOLE_SHARE * left:
            raise Refusal(
                503,
                "overloaded",
                f"{images} images would take about {need:.2f} s, more than its deadline leaves; try again",
                retry_after=max(wait - _WAIT_SHARE * left, need - _WHOLE_SHARE * left),
            )

    def put(self, ticket: Ticket) -> None:
        """Raises Refusal as `require_room`; what is taken is answered, refused at its deadline, or its client left."""
        with self._changed:
            self.require_room(len(ticket.blobs), ticket.deadline)
            self._jobs.extend(Job(ticket, index) for index in range(len(ticket.blobs)))
            ticket.waiting = len(ticket.blobs)
            self.waiting += ticket.waiting
            self._changed.notify(min(len(ticket.blobs), max(1, self.workers)))

    def leave(self, ticket: Ticket) -> None:
        """Its client has left: what still waits of it is not begun, and its room is free at once."""
        with self._changed:
            self._drop(ticket)

    # ---- the side of the workers ---------------------------------------------------------------------------------

    def take(self, timeout: float, called: Callable[[], bool] = lambda: False) -> list[Job] | None:
        """The next batch: of one bundle and one kind. [] after `timeout` seconds, or once `called()` says so after a
        `wake`; None: closed, and nothing waits.
        """
        late: list[Ticket] = []
        with self._changed:
            if not self.waiting and not self._closed and not called():
                self._changed.wait(timeout)
            batch = self._next(late)
            self.running += len(batch)
            closed = self._closed and not batch and not self._jobs
        if late:
            self._settle(late)
        return None if closed else batch

    def answered(self, batch: Sequence[Job], rows: Iterable[RowDocument | None], seconds: float) -> None:
        """The rows of a batch that took so many seconds."""
        over: list[Ticket] = []
        with self._changed:
            self.running -= len(batch)
            each = seconds / len(batch)
            # The first batches of a process are slow; a mean that begins with one would refuse for a while.
            self.seconds_per_image += _NEWEST * (each - self.seconds_per_image) if self.seconds_per_image else each
            for job, row in zip(batch, rows, strict=True):
                self._filled(job, row, over)
        self._settle(over)

    def not_answered(self, batch: Sequence[Job], why: str) -> None:
        """No answer came of this batch: each image goes to another worker first in line, or is given up."""
        over: list[Ticket] = []
        with self._changed:
            self.running -= len(batch)
            again = []
            for job in batch:
                job.deaths += 1
                if job.deaths >= GIVEN_UP_AFTER:
                    self._filled(job, broken_row(f"no answer: {why}, {job.deaths} times; check the file"), over)
                elif not job.ticket.over:
                    again.append(job)
                    job.ticket.waiting += 1
            self._jobs.extendleft(reversed(again))
            self.waiting += len(again)
            self._changed.notify_all()
        self._settle(over)

    def wake(self) -> None:
        """Every `take` that waits looks whether it was called."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more is taken in; what waits is still answered."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def count_worker(self, change: int, seconds_per_image: float = 0.0) -> None:
        """A worker is ready (+1), with the time that its first image took, or gone (-1)."""
        with self._changed:
            self.workers += change
            self.seconds_per_image = self.seconds_per_image or seconds_per_image

    # ---- under the lock ------------------------------------------------------------------------------------------

    def _next(self, late: list[Ticket]) -> list[Job]:
        """The first job and those that can go with it. An image that was in several deaths goes alone."""
        wanted = min(self._batch, -(-self.waiting // max(1, self.workers)))
        batch: list[Job] = []
        passed: list[Job] = []
        now = time.monotonic()
        while self._jobs and len(batch) < max(1, wanted) and len(passed) < _LOOK_AHEAD:
            job = self._jobs.popleft()
            ticket = job.ticket
            if ticket.over:
                continue  # counted when it was dropped
            if ticket.deadline < now + self.seconds_per_image:
                ticket.refusal = Refusal(503, "deadline", "not answered within its deadline; try again", retry_after=1)
                self._drop(ticket)
                late.append(ticket)
                continue
            first = batch[0] if batch else job
            alone = job.deaths >= ALONE_AFTER
            fits = ticket.bundle == first.ticket.bundle and ticket.kind == first.ticket.kind
            if batch and (alone or not fits):
                passed.append(job)
                continue
            batch.append(job)
            ticket.waiting -= 1
            self.waiting -= 1
            if alone:
                break
        self._jobs.extendleft(reversed(passed))
        return batch

    def _drop(self, ticket: Ticket) -> None:
        ticket.over = True
        self.waiting -= ticket.waiting
        ticket.waiting = 0

    def _filled(self, job: Job, row: RowDocument | None, over: list[Ticket]) -> None:
        ticket = job.ticket
        ticket.rows[job.index] = row
        ticket.left -= 1
        if ticket.left == 0 and not ticket.over:
            ticket.over = True
            over.append(ticket)


def broken_row(error: str) -> RowDocument:
    """The row of an image without an answer."""
    return {"label": None, "probability": None, "exit": False, "decision": "defer", "error": error}
