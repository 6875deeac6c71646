"""Calls with a deadline: each in a daemon thread, so that a call which hangs blocks neither caller nor exit."""

from __future__ import annotations

import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")
_Outcomes = queue.SimpleQueue  # of one pair: (result, None) or (None, what was raised)
_Tasks = queue.SimpleQueue  # of (function, outcomes), or None: no more will come


class DeadlineExceeded(Exception):
    """No result within the deadline."""


class NoFreeSlot(DeadlineExceeded):
    """The function was not called: earlier calls kept all slots until the deadline."""


class DeadlineExecutor:
    """Calls functions and waits for them up to a deadline. slots: calls that may go on at once, overdue ones too.

    Python cannot stop a thread: a call that hangs keeps its slot until it returns. With all slots taken a call waits
    for one, within its own deadline, since most of what is ahead of it is only busy. A function that holds the
    interpreter lock while it hangs cannot be outrun.
    Threads stay for later calls (a new one each time costs milliseconds on a busy machine) and end with the executor.
    """

    def __init__(self, slots: int = 16) -> None:
        self._free = threading.BoundedSemaphore(slots)
        self._slots = slots
        self._idle: deque[_Tasks[Any]] = deque()
        self._all: list[_Tasks[Any]] = []
        weakref.finalize(self, _end, self._all)

    def call(self, function: Callable[[], Result], until: float) -> Result:
        """`function()`, waited for up to time.monotonic() == until.

        Raises DeadlineExceeded, or what the function raised (SystemExit and its like as RuntimeError: inside a call
        they must not end the process of the caller).
        """
        if not self._free.acquire(timeout=max(0.0, until - time.monotonic())):
            raise NoFreeSlot(f"{self._slots} earlier calls have not returned")
        outcomes: _Outcomes[tuple[Any, BaseException | None]] = queue.SimpleQueue()
        try:
            self._worker().put((function, outcomes))
        except RuntimeError:  # the machine has no thread left
            self._free.release()
            raise
        try:
            result, error = outcomes.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty as empty:
            raise DeadlineExceeded("no result before the deadline") from empty
        if isinstance(error, Exception):
            raise error
        if error is not None:
            raise RuntimeError(f"{type(error).__name__} inside the call") from error
        found: Result = result
        return found

    def call_within(self, function: Callable[[], Result], seconds: float) -> Result:
        """As `call`, with a deadline in so many seconds, which the error names."""
        try:
            return self.call(function, time.monotonic() + seconds)
        except NoFreeSlot:
            raise
        except DeadlineExceeded as error:
            raise DeadlineExceeded(f"no answer within {seconds:g} s") from error

    def _worker(self) -> _Tasks[Any]:
        """The tasks of a thread that has nothing to do: the one that was busy last, else a new one."""
        try:
            return self._idle.pop()
        except IndexError:
            tasks: _Tasks[Any] = queue.SimpleQueue()
            self._all.append(tasks)
            work = (tasks, self._idle, self._free)
            threading.Thread(target=_work, args=work, name="stage1-deadline", daemon=True).start()
            return tasks


def _work(tasks: _Tasks[Any], idle: deque[_Tasks[Any]], free: threading.BoundedSemaphore) -> None:
    # No reference to the executor, nor to a finished call: dropping the caller frees its memory.
    while (task := tasks.get()) is not None:
        function, outcomes = task
        try:
            outcome: tuple[Any, BaseException | None] = (function(), None)
        except BaseException as error:  # handed to the caller, who decides
            outcome = (None, error)
        # Idle, and the slot free, before the caller goes on: who calls in a row never meets its own last call.
        idle.append(tasks)
        free.release()
        outcomes.put(outcome)
        del task, function, outcomes, outcome


def _end(workers: list[_Tasks[Any]]) -> None:
    for tasks in workers:
        tasks.put(None)
