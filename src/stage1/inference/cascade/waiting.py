"""Calls that know no deadline of their own, waited for up to one: Python cannot stop them, so their number is bounded instead."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")


class Overdue(Exception):
    """No result within the deadline, or no free slot to ask for one."""


class Waiting(Generic[Result]):
    """Calls in daemon threads, which keep neither the caller nor the process. slots: calls at once, overdue ones included.

    A call that hangs keeps its slot until it returns; with all slots taken the next one waits for a slot, within its deadline.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._free = threading.BoundedSemaphore(slots)

    def call(self, function: Callable[[], Result], seconds: float) -> Result:
        """What `function()` returns, or raises, SystemExit and its like included. Raises Overdue."""
        until = time.monotonic() + seconds
        if not self._free.acquire(timeout=seconds):
            raise Overdue(f"{self._slots} earlier calls have not returned")
        outcomes: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

        def work() -> None:
            try:
                outcome: tuple[Any, BaseException | None] = (function(), None)
            except BaseException as error:  # handed to the caller, who decides
                outcome = (None, error)
            self._free.release()
            outcomes.put(outcome)

        try:
            threading.Thread(target=work, daemon=True, name="stage1-waiting").start()
        except RuntimeError:  # the machine has no thread left
            self._free.release()
            raise
        try:
            result, error = outcomes.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty as empty:
            raise Overdue(f"no answer within {seconds:g} s") from empty
        if error is not None:
            raise error
        found: Result = result
        return found
