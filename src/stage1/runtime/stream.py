"""Decoding ahead of the session, in threads: extraction, scoring and predict read their images through this stream."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stage1.errors import DataError
from stage1.runtime.crops import ViewPolicy, cut
from stage1.runtime.images import MAX_PIXELS, decode, read_image_file
from stage1.runtime.preprocessing import Preprocessing, to_tensor
from stage1.runtime.session import Outputs, Runner, cores

Item: TypeAlias = str | Path | bytes | Callable[[], bytes]
Batch: TypeAlias = tuple[NDArray[np.int64], Outputs, list[tuple[int, Exception]]]


@dataclass(slots=True)
class StreamTimes:
    """Where the time of a stream went. All in seconds; decode and run are summed over threads."""

    seconds: float = 0.0  # wall clock from the first item to the last batch taken
    waiting: float = 0.0  # of these, with no batch in the session: waiting for decoding
    decode: float = 0.0
    run: float = 0.0
    images: int = 0
    failed: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _running: int = field(default=0, repr=False)
    _idle_since: float = field(default=0.0, repr=False)

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0

    @property
    def waiting_share(self) -> float:
        """Share of the wall clock in which the session had nothing to do because images were still being decoded."""
        return self.waiting / self.seconds if self.seconds else 0.0

    @contextmanager
    def _in_session(self) -> Iterator[None]:
        start = time.perf_counter()
        with self._lock:
            if self._running == 0:
                self.waiting += start - self._idle_since
            self._running += 1
        try:
            yield
        finally:
            end = time.perf_counter()
            with self._lock:
                self._running -= 1
                self._idle_since = end
                self.run += end - start


def read_item(item: Item, *, max_pixels: int = MAX_PIXELS) -> bytes:
    """The bytes of one item: bytes themselves, a path to read, or a function to call. Raises OSError, DataError.

    max_pixels: see `images.read_image_file`, which reads paths.
    """
    if isinstance(item, bytes):
        return item
    return item() if callable(item) else read_image_file(item, max_pixels=max_pixels)


class Work(Protocol):
    """What a stream does with an image (in a decoding thread) and with a batch of them. max_pixels: of one image."""

    max_pixels: int

    @property
    def parallel(self) -> int:
        """How many `run` calls may go on at once."""
        ...

    def prepare(self, rgb: NDArray[np.uint8]) -> Any:
        """What is kept of a decoded image, uint8 [H, W, 3], until its batch is full."""
        ...

    def run(self, prepared: list[Any]) -> Outputs:
        """The outputs of a batch, each with one row for each image."""
        ...

    def empty(self) -> Outputs:
        """The outputs for no image: each with 0 rows."""
        ...


class WholeImages:
    """One tensor for each image."""

    def __init__(self, engine: Runner, spec: Preprocessing) -> None:
        self.parallel = engine.parallel
        self.max_pixels = spec.max_pixels
        self._engine, self._spec = engine, spec

    def prepare(self, rgb: NDArray[np.uint8]) -> NDArray[np.float32]:
        return to_tensor(rgb, self._spec)

    def run(self, prepared: list[NDArray[np.float32]]) -> Outputs:
        # One image alone needs no copy.
        return self._engine.run(prepared[0][None] if len(prepared) == 1 else np.stack(prepared))

    def empty(self) -> Outputs:
        return self._engine.empty()


class AllViews:
    """All views of each image, from one decode, in one forward of the batch."""

    def __init__(self, engine: Runner, spec: Preprocessing, views: ViewPolicy) -> None:
        self.parallel = engine.parallel
        self.max_pixels = spec.max_pixels
        self._engine, self._spec, self._views = engine, spec, views

    def prepare(self, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        return cut(rgb, self._views, self._spec), (rgb.shape[0], rgb.shape[1])

    def run(self, prepared: list[tuple[NDArray[np.float32], tuple[int, int]]]) -> Outputs:
        tensors = [tensors for tensors, _ in prepared]
        outputs = self._engine.run(tensors[0] if len(tensors) == 1 else np.concatenate(tensors))
        return self._shaped(outputs, [size for _, size in prepared])

    def empty(self) -> Outputs:
        return self._shaped(self._engine.empty(), [])

    def _shaped(self, outputs: Outputs, sizes: list[tuple[int, int]]) -> Outputs:
        n, count = len(sizes), self._views.count
        per_view = (values.reshape(n, count, *values.shape[1:]) for values in outputs)
        return (*per_view, np.array(sizes, dtype=np.int64).reshape(n, 2))


def stream(
    engine: Runner,
    items: Sequence[Item],
    spec: Preprocessing,
    *,
    views: ViewPolicy | None = None,
    batch_size: int = 32,
    workers: int = 0,
    cuts: Collection[int] = (),
    times: StreamTimes | None = None,
) -> Iterator[Batch]:
    """Run every image through the engine, decoding ahead in threads; yields (rows, outputs, failed) in item order.

    rows: int64 [n], positions in `items` of the images of this batch. outputs: the engine's, each with n rows.
    failed: (row, error) of the items since the last batch that could not be read or decoded (DataError with ImageError
    among them, or OSError); they are in no batch and nothing replaces them. Each item is in exactly one of both.
    views: run each image's V views instead, cut from one decode; outputs are then [n, V, ...] and one more comes last,
    int64 [n, 2]: (height, width) of each decoded image.
    Batches hold `batch_size` good images (with views: as many as fit `batch_size` views, at least one; the last one
    fewer; 0 where only failures are left), so which images share a batch depends on the items alone, never on timing or
    threads.
    cuts: rows at which a new batch must begin (a shard's first row), so that batches of one part do not depend on the
    parts before it.
    workers: decoding threads, 0 = one per core. At most (engine.parallel + 4) batches are held in memory. The threads
    end with the generator, however it ends (exhausted, closed, Ctrl-C). Other errors (bugs, MemoryError) go through.
    """
    work: Work = WholeImages(engine, spec) if views is None else AllViews(engine, spec, views)
    images = batch_size if views is None or batch_size < 1 else max(1, batch_size // views.count)
    yield from stream_work(work, items, batch_size=images, workers=workers, cuts=cuts, times=times)


def stream_work(
    work: Work,
    items: Sequence[Item],
    *,
    batch_size: int = 32,
    workers: int = 0,
    cuts: Collection[int] = (),
    times: StreamTimes | None = None,
) -> Iterator[Batch]:
    """As `stream`, for any work; batch_size counts images."""
    if batch_size < 1 or workers < 0:
        raise DataError(f"batch_size={batch_size}, workers={workers}: batch_size must be >= 1 and workers >= 0")
    clock = times if times is not None else StreamTimes()
    workers = workers or cores()
    # One pool for both kinds of work where the engine lets every thread run a batch: then each core always has a task
    # of one thread, and none waits for another. An engine that takes one batch at a time gets a thread of its own.
    decoders = ThreadPoolExecutor(workers, thread_name_prefix="stage1-decode")
    shared = work.parallel >= workers
    runners = decoders if shared else ThreadPoolExecutor(work.parallel, thread_name_prefix="stage1-run")
    began = clock._idle_since = time.perf_counter()
    spent_before = clock.seconds
    try:
        for batch in _batches(work, items, batch_size, workers, frozenset(cuts), decoders, runners, clock):
            clock.seconds = spent_before + time.perf_counter() - began
            clock.images += len(batch[0])
            clock.failed += len(batch[2])
            yield batch
    finally:
        for pool in {decoders, runners}:
            pool.shutdown(wait=True, cancel_futures=True)


def _batches(
    work: Work,
    items: Sequence[Item],
    batch_size: int,
    workers: int,
    cuts: frozenset[int],
    decoders: ThreadPoolExecutor,
    runners: ThreadPoolExecutor,
    clock: StreamTimes,
) -> Iterator[Batch]:
    decoding: deque[Future[Any]] = deque()
    running: deque[tuple[Future[Outputs], list[int], list[tuple[int, Exception]]]] = deque()
    rows: list[int] = []
    prepared: list[Any] = []
    failed: list[tuple[int, Exception]] = []
    sent = 0
    for row in range(len(items)):
        # Ahead of the batch that is being filled: enough to keep every thread busy while batches run.
        while sent < min(len(items), row + 2 * batch_size + 2 * workers):
            decoding.append(decoders.submit(_prepared, work, items[sent], clock))
            sent += 1
        result = decoding.popleft().result()
        if isinstance(result, Exception):
            failed.append((row, result))
        else:
            rows.append(row)
            prepared.append(result)
        if len(rows) == batch_size or (rows and (row + 1 == len(items) or row + 1 in cuts)):
            running.append((runners.submit(_run, work, prepared, clock), rows, failed))
            rows, prepared, failed = [], [], []
        while len(running) > work.parallel or (running and running[0][0].done()):
            yield _finished(*running.popleft())
    while running:
        yield _finished(*running.popleft())
    if failed:
        yield np.zeros(0, dtype=np.int64), work.empty(), failed


def _finished(future: Future[Outputs], rows: list[int], failed: list[tuple[int, Exception]]) -> Batch:
    return np.array(rows, dtype=np.int64), future.result(), failed


def _prepared(work: Work, item: Item, clock: StreamTimes) -> Any:
    """What `work` keeps of the image, or the exception that says why there is nothing."""
    start = time.perf_counter()
    try:
        return work.prepare(decode(read_item(item, max_pixels=work.max_pixels), max_pixels=work.max_pixels))
    except (DataError, OSError) as error:
        return error
    finally:
        spent = time.perf_counter() - start
        with clock._lock:
            clock.decode += spent


def _run(work: Work, prepared: list[Any], clock: StreamTimes) -> Outputs:
    with clock._in_session():
        return work.run(prepared)
