"""Calls with a deadline: results and errors go through, a call that hangs is left behind, slots and threads are
bounded.
"""

from __future__ import annotations

import gc
import queue
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from stage1.runtime import deadline
from stage1.runtime.deadline import DeadlineExceeded, DeadlineExecutor, NoFreeSlot


def soon(seconds: float = 60.0) -> float:
    return time.monotonic() + seconds


def test_results_and_errors_go_through():
    executor = DeadlineExecutor()
    assert executor.call(lambda: 2, soon()) == 2
    with pytest.raises(ZeroDivisionError):
        executor.call(lambda: 1 / 0, soon())


def test_a_deadline_in_seconds_is_named():
    release = threading.Event()
    executor = DeadlineExecutor(slots=1)
    try:
        with pytest.raises(DeadlineExceeded, match="no answer within 0.02 s"):
            executor.call_within(release.wait, 0.02)
        with pytest.raises(NoFreeSlot, match="1 earlier calls"):
            executor.call_within(lambda: True, 0.02)
    finally:
        release.set()
    assert executor.call_within(lambda: True, 60.0)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_would_end_the_process_is_an_error_of_the_call(kind):
    def ends() -> None:
        raise kind("no GPU")

    with pytest.raises(RuntimeError, match=f"{kind.__name__} inside the call") as caught:
        DeadlineExecutor().call(ends, soon())
    assert isinstance(caught.value.__cause__, kind)


def test_a_call_that_hangs_keeps_its_slot_until_it_returns():
    release = threading.Event()
    executor = DeadlineExecutor(slots=2)
    try:
        for _ in range(2):
            with pytest.raises(DeadlineExceeded, match="before the deadline"):
                executor.call(release.wait, soon(0.02))
        with pytest.raises(NoFreeSlot, match="2 earlier calls"):
            executor.call(lambda: True, soon(0.05))
    finally:
        release.set()
    assert executor.call(lambda: True, soon())


def test_a_result_is_waited_for_up_to_the_deadline(monkeypatch):
    """By a clock that stands still: what is asked of the queue is the time that is left, and none where it is past."""
    asked = []

    class Late(queue.SimpleQueue):
        def get(self, block=True, timeout=None):
            if timeout is None:  # the thread that waits for work
                return super().get(block)
            asked.append(timeout)
            raise queue.Empty

    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: 100.0))
    monkeypatch.setattr(deadline, "queue", SimpleNamespace(SimpleQueue=Late, Empty=queue.Empty))
    for until in (100.25, 99.0):
        with pytest.raises(DeadlineExceeded, match="before the deadline"):
            DeadlineExecutor().call(lambda: True, until)
    assert asked == [0.25, 0.0]


def test_200_calls_at_once_wait_for_the_slots_and_all_get_their_result():
    executor = DeadlineExecutor(slots=16)
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda x: executor.call(lambda: time.sleep(0.01) or x, soon()), range(200)))
    assert found == list(range(200))


def test_without_a_thread_the_slot_stays_free(monkeypatch):
    executor = DeadlineExecutor(slots=1)

    def none_left(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(RuntimeError, match="can't start"):
        executor.call(lambda: 1, soon())
    monkeypatch.undo()
    assert executor.call(lambda: 1, soon()) == 1


def test_one_slot_serves_any_number_of_calls_in_a_row():
    executor = DeadlineExecutor(slots=1)
    assert [executor.call(lambda x=x: x, soon()) for x in range(200)] == list(range(200))


def test_there_are_no_more_threads_than_calls_at_once_and_they_end_with_the_executor():
    def threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "stage1-deadline"}

    before = threads()  # of detectors in other tests, which may end meanwhile
    executor = DeadlineExecutor()
    assert [executor.call(lambda x=x: x, soon()) for x in range(50)] == list(range(50))
    (mine,) = threads() - before
    del executor
    gc.collect()
    mine.join(60)
    assert not mine.is_alive()


def test_a_call_that_hangs_does_not_hold_up_the_end_of_the_process():
    code = (
        "import time\nfrom stage1.runtime.deadline import DeadlineExceeded, DeadlineExecutor\n"
        "try: DeadlineExecutor().call(lambda: time.sleep(600), time.monotonic() + 0.05)\n"
        "except DeadlineExceeded: print('late')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert run.stdout == "late\n"
