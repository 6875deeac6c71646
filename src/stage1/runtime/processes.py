"""`map` over processes, for work on images that holds the interpreter: drawing, distorting."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from typing import Any

from stage1.errors import Stage1Error

# Tasks below which a pool does not pay. Processes start in .3 s (spawn, numpy, Pillow), a task takes 36 ms (video of
# 160 px), 22 ms (challenge of 768 px) or 6 ms (of 160 px): on two cores a pool pays from 17, 28 or 105 tasks on.
_POOL_FROM = 24


@contextmanager
def mapper(
    workers: int, tasks: int, what: str, pieces: int = 4
) -> Iterator[Callable[[Any, Sequence[Any]], Iterator[Any]]]:
    """`map` over a pool of processes, or in this one where a pool does not pay.

    workers: processes; 0: one per usable core. tasks: how many there are. what: names the work in the error, e.g.
    "roadscenes: a drawing". pieces: tasks sent to a process at a time. Raises Stage1Error where a process dies.
    """
    workers = workers or len(os.sched_getaffinity(0))
    if workers == 1 or tasks < _POOL_FROM:
        yield lambda function, items: map(function, items)
        return
    # spawn: a fork of a process that runs torch's or ONNX Runtime's threads may hang.
    pool = ProcessPoolExecutor(min(workers, tasks), mp_context=get_context("spawn"))
    try:
        yield partial(pool.map, chunksize=pieces)
    except BrokenProcessPool as error:
        raise Stage1Error(f"{what} process died (memory, or no main guard in the script); use workers=1") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
