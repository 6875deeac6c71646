"""Guards against a hang. None is a measure of speed: a busy machine does not reach them."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import pytest


@contextlib.contextmanager
def ends_within(seconds: float = 60.0) -> Iterator[None]:
    """What the block waits for comes in so many seconds, or the test fails there. Main thread only."""
    with _alarm(signal.ITIMER_REAL, signal.SIGALRM, seconds, "a hang"):
        yield


@contextlib.contextmanager
def spends_at_most(cpu_seconds: float) -> Iterator[None]:
    """The block spends no more CPU time of this process, or the test fails there: other load of the machine does not
    count. Main thread only.
    """
    with _alarm(signal.ITIMER_PROF, signal.SIGPROF, cpu_seconds, "too much CPU"):
        yield


@contextlib.contextmanager
def _alarm(timer: int, number: int, seconds: float, what: str) -> Iterator[None]:
    def late(_: int, __: FrameType | None) -> None:
        pytest.fail(f"{what}: not at its end after {seconds:g} s")  # no Exception: the tested code does not catch it

    before = signal.signal(number, late)
    signal.setitimer(timer, seconds)
    try:
        yield
    finally:
        signal.setitimer(timer, 0)
        signal.signal(number, before)
