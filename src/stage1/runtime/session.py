"""The one ONNX Runtime session: extraction, scoring and predict run their batches here (the stream decodes ahead)."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from stage1.errors import DataError, IntegrityError, MissingError, Stage1Error
from stage1.storage.files import digest_bytes, digest_file

log = logging.getLogger("stage1")

Outputs: TypeAlias = tuple[NDArray[Any], ...]

# Images of one run on the CPU, where each image is a sum of its own: the bits are those of any larger batch, and the
# tensors between the layers stay small (lite0 at 224 px, one core: 180 MB in all against 466 MB at 32, 15 % less time).
_CPU_IMAGES = 4

# How ONNX Runtime, torch and CUDA word a failed allocation; most have no exception class of their own for it.
_OUT_OF_MEMORY = (
    "failed to allocate",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "cannot allocate",
    "can't allocate",
    "alloc_failed",
)


class Runner(Protocol):
    """What `stream` needs: an Engine, or the torch module that replaces it in training."""

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
    deadline_s: a batch that takes longer than this for each of its images (or views) is given up: a model may hold a
    loop without an end. None: no limit.
    device: "cpu", "cuda" or "cuda:N", None: CUDA where its provider is installed. What stands in for a device that is
    not there is logged. intra_op_threads: within one batch; above 1 sums may differ in the last digit.
    Raises MissingError (no such file), IntegrityError (not a model that can run here).
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | bytes,
        *,
        threads: int = 0,
        deadline_s: float | None = None,
        device: str | None = None,
        intra_op_threads: int = 1,
    ) -> None:
        if threads < 0:
            raise DataError(f"threads: {threads}; give 0 (one per core) or more")
        if deadline_s is not None and not 0 < deadline_s < threading.TIMEOUT_MAX:
            raise DataError(f"deadline: {deadline_s} s; give a number above 0, or none")
        self._deadline_s = deadline_s
        where = "model" if isinstance(model, bytes) else os.fspath(model)
        if isinstance(model, bytes):
            self.digest = digest_bytes(model)
        elif Path(model).is_file():
            self.digest = digest_file(model)
        else:
            raise MissingError(f"{where}: no such model file; run the stage that exports it")
        self._session = _session(model, where, device, intra_op_threads)
        self.provider: str = self._session.get_providers()[0].removesuffix("ExecutionProvider")
        self.parallel: int = 1 if self.provider == "CUDA" else threads or cores()
        inputs = self._session.get_inputs()
        fits = len(inputs) == 1 and len(inputs[0].shape) in (4, 5) and inputs[0].type == "tensor(float)"
        if not fits or (len(inputs[0].shape) == 5 and not isinstance(inputs[0].shape[1], int)):
            found = ", ".join(f"{item.name} {item.type}{item.shape}" for item in inputs) or "none"
            raise IntegrityError(
                f"{where}: one float32 image input [N, 3, S, S] (or [N, views, 3, S, S]) expected, not {found}; export"
                " it anew"
            )
        self._input = inputs[0]
        self.output_names: tuple[str, ...] = tuple(item.name for item in self._session.get_outputs())
        self._limit = BatchLimit(_CPU_IMAGES if self.provider == "CPU" else None)

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

        A model with `views` takes [N, V, 3, S, S]. Stage1Error where the deadline passes. Where memory runs out, the
        batch is halved (down to 1), this is logged, and later batches keep to that size.
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
        feed = {self._input.name: batch}
        if self._deadline_s is None:
            return tuple(self._session.run(None, feed))
        import onnxruntime as ort

        options = ort.RunOptions()
        seconds = self._deadline_s * len(batch) * (self.views or 1)
        # The runtime checks `terminate` between the nodes of a graph, those inside a loop among them.
        timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), setattr, (options, "terminate", True))
        timer.daemon = True
        timer.start()
        try:
            return tuple(self._session.run(None, feed, options))
        except Exception as error:
            if not options.terminate:
                raise
            raise Stage1Error(
                f"model: no answer for {len(batch)} image(s) after {seconds:g} s ({self._deadline_s:g} s for each); "
                "it may never end. Give it more with --deadline (deadline_s)"
            ) from error
        finally:
            timer.cancel()

    def empty(self) -> Outputs:
        """The outputs for no image: shape [0, ...] each."""
        shapes = ([d if isinstance(d, int) else 0 for d in item.shape[1:]] for item in self._session.get_outputs())
        return tuple(np.zeros((0, *shape), dtype=np.float32) for shape in shapes)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class BatchLimit:
    """The largest batch to run at once, or that memory has been seen to hold. size: to start with, None: no limit."""

    def __init__(self, size: int | None = None) -> None:
        self.size = size

    def run(self, call: Callable[[NDArray[np.float32]], Outputs], batch: NDArray[np.float32]) -> Outputs:
        """`call` on the batch, in pieces of at most `size` images; the outputs joined.

        One image alone is summed in another order by some matrix products: no piece is as small as that unless the
        batch is, or `size` is less than 3.
        Where `call` runs out of memory, `size` is halved (down to 1) and this is logged.
        Raises MemoryError where even one image does not fit; other errors of `call` go through.
        """
        pieces: list[Outputs] = []
        start = 0
        while start < len(batch):
            left = len(batch) - start
            step = min(left, self.size or left)
            step -= left - step == 1 and step > 2
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


def _session(
    model: str | os.PathLike[str] | bytes, where: str, device: str | None = None, intra_op_threads: int = 1
) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.use_deterministic_compute = True
    options.log_severity_level = 4  # what matters is raised; warnings about its own graph passes are not for the user
    try:
        source = model if isinstance(model, bytes) else os.fspath(model)
        return ort.InferenceSession(source, options, providers=_providers(device, ort.get_available_providers()))
    except Exception as error:  # the runtime raises about ten kinds, some of them plain RuntimeError
        if out_of_memory(error):
            raise MemoryError(f"{where}: no memory to load this model") from error
        why = " ".join(str(error).split())[:160]
        raise IntegrityError(f"{where}: ONNX Runtime cannot load it ({why}); restore or export it anew") from error


def _providers(device: str | None, available: Sequence[str]) -> list[Any]:
    """The providers of ONNX Runtime for a device, the CPU always last."""
    kind, _, number = ("cuda" if device is None else device).partition(":")
    if kind == "cuda" and "CUDAExecutionProvider" in available:
        # The defaults (TF32, algorithms chosen by timing) would make two runs of one batch differ.
        cuda = {"use_tf32": "0", "cudnn_conv_algo_search": "DEFAULT"} | ({"device_id": number} if number else {})
        return [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    if device is not None and kind == "cuda":
        log.warning(
            "device %s: this onnxruntime has no CUDA provider (pip install onnxruntime-gpu); running on the CPU", device
        )
    elif kind not in ("cpu", "cuda"):
        log.warning("device %s: unknown here; running on the CPU", device)
    return ["CPUExecutionProvider"]
