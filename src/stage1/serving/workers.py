"""The worker processes of a set of bundles: started, asked, watched, started again; a thread of the server for each.

A worker that dies (a bomb, the kernel's choice under memory pressure, kill -9) takes no request with it: its batch goes
to another one, first in line.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from stage1.errors import IntegrityError, Stage1Error
from stage1.serving.batching import Job, Queue
from stage1.serving.settings import Settings
from stage1.serving.wire import receive, send

log = logging.getLogger("stage1.serving")

_START_S = 120.0  # until the first answer of a process: a busy machine may load a large model slowly
_LOOK_S = 0.2  # how often an idle worker's process is looked at
_GIVE_UP_STARTS = 3  # a new set of workers that cannot start is given up after so many deaths
_LONGEST_PAUSE_S = 10.0


class _Died(Exception):
    """The process ended, or took too long and was ended."""


class Worker:
    """One process and the thread that talks to it."""

    def __init__(self, pool: Pool, number: int) -> None:
        self._pool, self._queue = pool, pool.queue
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._asked: Future[bool] | None = None
        self.busy_since: float | None = None
        self.starts = 0
        self.thread = threading.Thread(target=self._run, name=f"stage1-worker-{number}", daemon=True)

    @property
    def pid(self) -> int | None:
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    def ask(self) -> Future[bool]:
        """Whether the process answers; one with a batch is not interrupted, and counts as one that does."""
        asked: Future[bool] = Future()
        if self.busy_since is not None and self.pid is not None:
            asked.set_result(True)
        else:
            self._asked = asked
            self._queue.wake()
        return asked

    def _run(self) -> None:
        failures = 0
        while not self._pool.stopped:
            try:
                seconds = self._start()
            except (_Died, Stage1Error, OSError) as error:
                failures += 1
                self._end(kill=True)
                self._pool.could_not_start(error, final=failures >= _GIVE_UP_STARTS)
                if self._pool.wait_stopped(min(_LONGEST_PAUSE_S, 0.1 * 2**failures)):
                    break
                continue
            failures = 0
            self._queue.count_worker(+1, seconds)
            self._pool.is_ready(self)
            try:
                if self._answer():
                    break
            except _Died as error:
                log.warning("a worker died (%s); starting it again", error)
                self._pool.on_death()
            finally:
                self._queue.count_worker(-1)
                self._end(kill=not self._pool.closing)
        self._end(kill=False)

    def _start(self) -> float:
        """Seconds for an image, as its warm-up measured it."""
        ours, theirs = Pipe()
        self.starts += 1
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "stage1.serving.worker", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                process_group=0,
            )
        self._connection = ours
        found = self._exchange(self._pool.wanted, [], _START_S)
        for digest, why in found["failed"].items():
            self._pool.on_gone(digest, why)
        return max(found["seconds"].values(), default=0.0)

    def _answer(self) -> bool:
        """Batch after batch; True where the queue is closed and empty. Raises _Died."""
        while True:
            batch = self._queue.take(_LOOK_S, lambda: self._asked is not None)
            if batch is None:
                return True
            if batch:
                self._answer_batch(batch)
            elif (asked := self._asked) is not None:
                self._asked = None
                alive = bool(self._exchange({"kind": "ping"}, [], 5.0))
                if asked.set_running_or_notify_cancel():
                    asked.set_result(alive)
            elif self.pid is None:
                raise _Died(self._how())

    def _answer_batch(self, batch: list[Job]) -> None:
        ticket = batch[0].ticket
        message = {
            "kind": ticket.kind,
            "bundle": ticket.bundle,
            "slices": [job.ticket.slices[job.index] for job in batch],
        }
        began = self.busy_since = time.monotonic()
        try:
            found = self._exchange(message, [job.blob for job in batch], self._pool.image_s * len(batch) + 5.0)
        except _Died as error:
            self._queue.not_answered(batch, "the process that read it died")
            raise _Died(f"{error}, with {len(batch)} image(s)") from error
        finally:
            self.busy_since = None
        if "rows" in found:
            seconds = time.monotonic() - began
            self._queue.answered(batch, found["rows"], seconds)
            self._pool.on_batch(len(batch), seconds)
        elif "gone" in found:
            self._queue.answered(batch, [None] * len(batch), 0.0)
        else:
            self._queue.not_answered(batch, found["error"])

    def _exchange(self, message: Mapping[str, Any], blobs: list[bytes], seconds: float) -> dict[str, Any]:
        connection = self._connection
        assert connection is not None, "a worker that was not started"
        try:
            send(connection, dict(message), blobs)
            if not connection.poll(seconds):
                raise _Died(f"no answer after {seconds:g} s")
            return receive(connection)[0]
        except (EOFError, OSError) as error:
            raise _Died(self._how()) from error

    def _how(self) -> str:
        if self._process is None:
            return "not started"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1.0)
        return f"exit status {self._process.poll()}"

    def _end(self, *, kill: bool) -> None:
        """Close the pipe, which ends the process; then wait for it."""
        if (asked := self._asked) is not None:
            self._asked = None
            if asked.set_running_or_notify_cancel():
                asked.set_result(False)
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._process is not None:
            if kill:
                self._process.kill()
            try:
                self._process.wait(10.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None


class Pool:
    """Workers that all hold the same bundles (digest -> folder), and their queue.

    on_gone: called with (digest, reason) where a worker finds a bundle changed. on_batch: (images, seconds) of a batch.
    on_death: a worker died.
    """

    def __init__(
        self,
        bundles: Mapping[str, Path],
        settings: Settings,
        queue: Queue,
        *,
        on_gone: Callable[[str, str], None],
        on_batch: Callable[[int, float], None],
        on_death: Callable[[], None],
    ) -> None:
        self.queue = queue
        self.image_s = settings.image_s
        self.on_batch, self.on_death = on_batch, on_death
        self.wanted = {
            "bundles": {digest: os.fspath(folder) for digest, folder in bundles.items()},
            "batch_images": settings.batch_images,
            "device": settings.device,
        }
        self._tell_gone = on_gone
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._up: set[Worker] = set()
        self._started: Future[None] = Future()
        self.closing = False
        count = settings.workers or len(os.sched_getaffinity(0))
        self.workers = [Worker(self, number) for number in range(count)]

    # ---- for the server ------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Until every worker has answered an image. Raises Stage1Error where one cannot."""
        for worker in self.workers:
            worker.thread.start()
        try:
            await asyncio.wrap_future(self._started)
        except BaseException:
            self.stop()
            raise

    async def answering(self, seconds: float = 1.0) -> int:
        """How many workers answer just now."""
        asked = [asyncio.wrap_future(worker.ask()) for worker in self.workers if worker in self._up]
        if not asked:
            return 0
        done, late = await asyncio.wait(asked, timeout=seconds)
        for future in late:
            future.cancel()
        return sum(not future.cancelled() and future.exception() is None and future.result() for future in done)

    async def drain(self) -> None:
        """Answer what waits, then end the processes."""
        self.closing = True
        self.queue.close()
        await asyncio.to_thread(self._join)

    def stop(self) -> None:
        """End the threads after what they do now; what waits is not answered."""
        self.closing = True
        self._stopped.set()
        self.queue.close()

    def _join(self) -> None:
        for worker in self.workers:
            worker.thread.join()

    # ---- for the workers' threads --------------------------------------------------------------------------------

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def wait_stopped(self, seconds: float) -> bool:
        return self._stopped.wait(seconds)

    def is_ready(self, worker: Worker) -> None:
        with self._lock:
            self._up.add(worker)
            if len(self._up) == len(self.workers) and not self._started.done():
                self._started.set_result(None)

    def could_not_start(self, error: Exception, *, final: bool) -> None:
        log.warning("a worker could not start: %s", error)
        with self._lock:
            if final and not self._started.done():
                self._started.set_exception(Stage1Error(f"serve: no worker can start ({error})"))

    def on_gone(self, digest: str, why: str) -> None:
        with self._lock:
            if not self._started.done():
                self._started.set_exception(IntegrityError(why))
        self._tell_gone(digest, why)
