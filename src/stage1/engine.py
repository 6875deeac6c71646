"""The one ONNX Runtime session and the stream that decodes ahead of it: extraction, scoring and predict run here."""

from __future__ import annotations

import logging
import os
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

from stage1.errors import DataError, IntegrityError, MissingError
from stage1.files import digest_bytes, digest_file
from stage1.images import Preprocessing, decode, load_tensor
from stage1.views import ViewPolicy, cut

log = logging.getLogger("stage1")

Item: TypeAlias = str | Path | bytes | Callable[[], bytes]
Outputs: TypeAlias = tuple[NDArray[Any], ...]
Batch: TypeAlias = tuple[NDArray[np.int64], Outputs, list[tuple[int, Exception]]]

# How ONNX Runtime, torch and CUDA word a failed allocation; most have no exception class of their own for it.
_OUT_OF_MEMORY = (
    "failed to allocate", "bad_alloc", "bad allocation", "out of memory",
    "cannot allocate", "can't allocate", "alloc_failed",
)  # fmt: skip


class Runner(Protocol):
    """What `stream` needs: an Engine, or the torch module that stands in for it in training."""

    @property
    def parallel(self) -> int:
        """How many `run` calls may go on at once."""
        ...

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """Outputs of float32 [N, 3, S, S], N >= 1; each has N rows."""
        ...

    def empty(self) -> Outputs:
        """The outputs for no image at all: each with 0 rows."""
        ...


class Engine:
    """One ONNX Runtime session over a model with one image input.

    model: path or bytes of an .onnx file. threads: how many batches may run at once, 0 = one per core.
    Each batch runs on one thread of its own: no barrier between threads to wait at, so decoding and the session share
    the cores without loss, and no sum depends on how many cores the machine has. Where the CUDA provider is installed
    it is used, one batch at a time. `run` may be called from several threads.
    Raises MissingError (no such file), IntegrityError (not a model that can run here).
    """

    def __init__(self, model: str | os.PathLike[str] | bytes, *, threads: int = 0) -> None:
        if threads < 0:
            raise DataError(f"threads: {threads}; give 0 (one per core) or more")
        where = "model" if isinstance(model, bytes) else os.fspath(model)
        if isinstance(model, bytes):
            self.digest = digest_bytes(model)
        elif Path(model).is_file():
            self.digest = digest_file(model)
        else:
            raise MissingError(f"{where}: no such model file; run the stage that exports it")
        self._session = _session(model, where)
        self.provider: str = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.parallel: int = 1 if self.provider == "CUDA" else threads or cores()
        inputs = self._session.get_inputs()
        fits = len(inputs) == 1 and len(inputs[0].shape) in (4, 5) and inputs[0].type == "tensor(float)"
        if not fits or (len(inputs[0].shape) == 5 and not isinstance(inputs[0].shape[1], int)):
            found = ", ".join(f"{item.name} {item.type}{item.shape}" for item in inputs) or "none"
            raise IntegrityError(
                f"{where}: one float32 image input [N, 3, S, S] (or [N, views, 3, S, S]) expected, not {found}; export it anew"
            )
        self._input = inputs[0]
        self.output_names: tuple[str, ...] = tuple(item.name for item in self._session.get_outputs())
        self._limit = BatchLimit()

    @property
    def input_size(self) -> int | None:
        """The side S of the input image, or None where the model leaves it open."""
        side = self._input.shape[-1]
        return side if isinstance(side, int) else None

    @property
    def views(self) -> int | None:
        """V where the model takes all views of an image together, [N, V, 3, S, S]; None for one that takes images."""
        return int(self._input.shape[1]) if len(self._input.shape) == 5 else None

    def run(self, batch: NDArray[np.float32]) -> Outputs:
        """All outputs for float32 [N, 3, S, S], N >= 1, each float32 with N rows, in the order of `output_names`.

        A model with `views` takes [N, V, 3, S, S]. Where memory runs out, the batch is halved (down to 1), this is logged, and later batches keep to that size.
        Raises DataError for another shape, MemoryError where even one image does not fit.
        """
        batch = np.ascontiguousarray(batch, dtype=np.float32)
        sides = self._input.shape[1:]
        if batch.ndim != 1 + len(sides) or any(
            isinstance(a, int) and a != b for a, b in zip(sides, batch.shape[1:], strict=True)
        ):
            raise DataError(f"batch: shape {batch.shape}; the model takes {['N', *sides]}")
        return self._limit.run(self._run, batch) if len(batch) else self.empty()

    def _run(self, batch: NDArray[np.float32]) -> Outputs:
        return tuple(self._session.run(None, {self._input.name: batch}))

    def empty(self) -> Outputs:
        """The outputs for no image: shape [0, ...] each."""
        shapes = ([d if isinstance(d, int) else 0 for d in item.shape[1:]] for item in self._session.get_outputs())
        return tuple(np.zeros((0, *shape), dtype=np.float32) for shape in shapes)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BatchLimit:
    """The largest batch that memory has been seen to hold; starts without a limit."""

    def __init__(self) -> None:
        self.size: int | None = None

    def run(self, call: Callable[[NDArray[np.float32]], Outputs], batch: NDArray[np.float32]) -> Outputs:
        """`call` on the batch, in pieces of at most `size` images; the outputs joined.

        Where `call` runs out of memory, `size` is halved (down to 1) and this is logged.
        Raises MemoryError where even one image does not fit; other errors of `call` go through.
        """
        pieces: list[Outputs] = []
        start = 0
        while start < len(batch):
            step = min(len(batch) - start, self.size or len(batch))
            try:
                pieces.append(call(batch[start : start + step]))
            except Exception as error:
                if not out_of_memory(error):
                    raise
                if step == 1:
                    raise MemoryError(f"no memory to run one image of shape {batch.shape[1:]}; free some") from error
                # Several threads may get here; the smallest size that any of them found holds.
                self.size = min(self.size or step, max(step // 2, 1))
                log.warning("memory ran out at a batch of %d; going on with %d", step, self.size)
            else:
                start += step
        return pieces[0] if len(pieces) == 1 else tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))


def out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory (of the machine or of the accelerator) ran out."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _OUT_OF_MEMORY)


def _session(model: str | os.PathLike[str] | bytes, where: str) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what matters is raised; warnings about its own graph passes are not for the user
    providers: list[Any] = ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in ort.get_available_providers():
        # The defaults (TF32, algorithms chosen by timing) would make two runs of one batch differ.
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"}))
    try:
        source = model if isinstance(model, bytes) else os.fspath(model)
        return ort.InferenceSession(source, options, providers=providers)
    except Exception as error:  # the runtime raises about ten kinds, some of them plain RuntimeError
        if out_of_memory(error):
            raise MemoryError(f"{where}: no memory to load this model") from error
        why = " ".join(str(error).split())[:160]
        raise IntegrityError(f"{where}: ONNX Runtime cannot load it ({why}); restore or export it anew") from error


# ---- the stream --------------------------------------------------------------------------------------------------


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


def read_item(item: Item) -> bytes:
    """The bytes of one item: bytes themselves, a path to read, or a function to call. Raises OSError, DataError."""
    if isinstance(item, bytes):
        return item
    return item() if callable(item) else Path(item).read_bytes()


class Work(Protocol):
    """What a stream does with an image (in a decoding thread) and with a batch of them."""

    @property
    def parallel(self) -> int:
        """How many `run` calls may go on at once."""
        ...

    def prepare(self, data: bytes) -> Any:
        """What is kept of an image until its batch is full. Raises DataError where it cannot be read."""
        ...

    def run(self, prepared: list[Any]) -> Outputs:
        """The outputs of a batch, each with one row for each image."""
        ...

    def empty(self) -> Outputs:
        """The outputs for no image: each with 0 rows."""
        ...


class _WholeImages:
    """One tensor for each image."""

    def __init__(self, engine: Runner, spec: Preprocessing) -> None:
        self.parallel = engine.parallel
        self._engine, self._spec = engine, spec

    def prepare(self, data: bytes) -> NDArray[np.float32]:
        return load_tensor(data, self._spec)

    def run(self, prepared: list[NDArray[np.float32]]) -> Outputs:
        return self._engine.run(np.stack(prepared))

    def empty(self) -> Outputs:
        return self._engine.empty()


class _AllViews:
    """All views of each image, from one decode, in one forward of the batch."""

    def __init__(self, engine: Runner, spec: Preprocessing, views: ViewPolicy) -> None:
        self.parallel = engine.parallel
        self._engine, self._spec, self._views = engine, spec, views

    def prepare(self, data: bytes) -> tuple[NDArray[np.float32], tuple[int, int]]:
        rgb = decode(data, max_pixels=self._spec.max_pixels)
        return cut(rgb, self._views, self._spec), (rgb.shape[0], rgb.shape[1])

    def run(self, prepared: list[tuple[NDArray[np.float32], tuple[int, int]]]) -> Outputs:
        outputs = self._engine.run(np.concatenate([tensors for tensors, _ in prepared]))
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
    among them, or OSError); they are in no batch and nothing stands in for them. Each item is in exactly one of both.
    views: run each image's V views instead, cut from one decode; outputs are then [n, V, ...] and one more comes last, int64
    [n, 2]: (height, width) of each decoded image.
    Batches hold `batch_size` good images (with views: as many as fit `batch_size` views, at least one; the last one fewer; 0
    where only failures are left), so which images share a batch depends on the items alone, never on timing or threads.
    cuts: rows at which a new batch must begin (a shard's first row), so that batches of one part do not depend on the
    parts before it.
    workers: decoding threads, 0 = one per core. At most (engine.parallel + 4) batches are held in memory. The threads
    end with the generator, however it ends (exhausted, closed, Ctrl-C). Other errors (bugs, MemoryError) go through.
    """
    work: Work = _WholeImages(engine, spec) if views is None else _AllViews(engine, spec, views)
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
        return work.prepare(read_item(item))
    except (DataError, OSError) as error:
        return error
    finally:
        spent = time.perf_counter() - start
        with clock._lock:
            clock.decode += spent


def _run(work: Work, prepared: list[Any], clock: StreamTimes) -> Outputs:
    with clock._in_session():
        return work.run(prepared)
