"""Several views of each image through the model: one forward, one model of all views, or in turn until safe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import IntegrityError
from stage1.runtime.crops import ViewPolicy, adds_nothing, cut
from stage1.runtime.preprocessing import Preprocessing
from stage1.runtime.session import Engine, Outputs
from stage1.runtime.stream import AllViews, Item, Work, stream

if TYPE_CHECKING:
    from stage1.views import ViewsDocument

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Failure = tuple[int, Exception]
SPREAD = "view_spread"
WITHOUT = "without_view"  # output of a model that makes one answer of all views
# Images of one batch where views are evaluated one by one: the forwards shrink as images stop, and their pixels wait in
# memory.
_ONE_BY_ONE = 4


@dataclass(frozen=True, slots=True)
class ViewOutputs:
    """What the model says of the views of n images.

    logits: float32 [n, V, K]; gate: float32 [n, V] or None; sizes: int64 [n, 2], (height, width) of the decoded images.
    Where views are evaluated one by one, those beyond the stop hold 0.
    answer: None; or float32 [n, K], the images' own logits, of a model that makes them of all views together: its
    `logits` are then those without each view, and its gate is the image's, [n].
    """

    logits: NDArray[np.float32]
    gate: NDArray[np.float32] | None
    sizes: Ints
    answer: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class ViewTrace:
    """The images' own outputs, aggregated from their views; a row of NaN where the model gave NaN or infinity.

    logits: float64 [n, K]; gate: float64 [n] or None; spread: float64 [n], standard deviation of the log-odds of the
    answer over the views that were evaluated; used: int64 [n], how many; deciding: int64 [n], the view with the largest
    contribution to the answer; boxes: int64 [n, 4], of that view (top, left, bottom, right); small: bool [n],
    tiles and crops add nothing.
    """

    logits: Floats
    gate: Floats | None
    spread: Floats
    used: Ints
    deciding: Ints
    boxes: Ints
    small: NDArray[np.bool_]


class Viewing:
    """The views of images through one engine.

    logits, gate: which of the engine's outputs these are (gate None: there is none). batch_size: rows of a forward.
    """

    def __init__(
        self, engine: Engine, spec: Preprocessing, logits: int, gate: int | None, *, batch_size: int, workers: int
    ) -> None:
        self.engine, self.spec = engine, spec
        self._logits, self._gate = logits, gate
        self._batch_size, self._workers = batch_size, workers

    def outputs(self, items: Sequence[Item], policy: ViewPolicy) -> Iterator[tuple[Ints, ViewOutputs, list[Failure]]]:
        """All views of every image, batch by batch: (rows, outputs, failed) as `stream.stream`."""
        batches = stream(
            self.engine, items, self.spec, views=policy, batch_size=self._batch_size, workers=self._workers
        )
        for rows, outputs, failed in batches:
            yield rows, self._of_single_views(outputs), failed

    def work(self, views: ViewsDocument) -> Work:
        """What a stream does with images of these views; adaptive ones evaluate no view beyond the stop."""
        if views.pooled:
            return _Together(self.engine, self.spec, views.policy)
        if views.sequence is None:
            return AllViews(self.engine, self.spec, views.policy)
        if self._gate is not None:
            raise IntegrityError("views.json: adaptive views with a model that has a gate; score it anew")
        return _OneByOne(self.engine, self.spec, views, self._logits)

    def batch_images(self, views: ViewsDocument) -> int:
        """How many images a batch of `work(views)` holds."""
        views_at_once = views.policy.count if views.sequence is None else _ONE_BY_ONE
        return max(min(1, self._batch_size), self._batch_size // views_at_once)

    def trace(self, outputs: Outputs, views: ViewsDocument) -> ViewTrace:
        """The aggregated outputs of the images of a batch, from what `work(views)` gave for it."""
        if views.pooled:
            gate = None if self._gate is None else outputs[self._gate]
            without = outputs[self.engine.output_names.index(WITHOUT)]
            of_views = ViewOutputs(without, gate, outputs[-1], outputs[self._logits])
        elif views.sequence is None:
            of_views = self._of_single_views(outputs)
        else:
            of_views = ViewOutputs(outputs[0], None, outputs[1])
        return look(of_views, views, self.spec)

    def _of_single_views(self, outputs: Outputs) -> ViewOutputs:
        gate = None if self._gate is None else outputs[self._gate]
        return ViewOutputs(outputs[self._logits], gate, outputs[-1])


def look(outputs: ViewOutputs, views: ViewsDocument, spec: Preprocessing) -> ViewTrace:
    """The images' outputs from those of their views, by the frozen policy."""
    n, count, n_classes = outputs.logits.shape
    if count != views.policy.count:
        raise IntegrityError(f"views.json: {views.policy.count} views, the model was run on {count}; score it anew")
    if views.pooled:
        return _trace_together(outputs, views, spec)
    finite = np.asarray(np.isfinite(outputs.logits).all(axis=(1, 2)))
    if outputs.gate is not None:
        finite = finite & np.isfinite(outputs.gate).all(axis=1)
    logits = np.full((n, n_classes), np.nan)
    used, deciding = np.zeros(n, dtype=np.int64), np.zeros(n, dtype=np.int64)
    spread = np.full(n, np.nan)
    if finite.any():
        seen = outputs.logits[finite].astype(np.float64)
        logits[finite], used[finite], deciding[finite] = views.aggregate(seen)
        spread[finite] = _spread(seen, logits[finite], used[finite], views)
    # The gate has no aggregator of its own: the mean is what it says of the image as a whole.
    gate = None if outputs.gate is None else np.where(finite, outputs.gate.astype(np.float64).mean(axis=1), np.nan)
    return ViewTrace(logits, gate, spread, used, deciding, *_placed(outputs.sizes, deciding, views.policy, spec))


def _trace_together(outputs: ViewOutputs, views: ViewsDocument, spec: Preprocessing) -> ViewTrace:
    """As `look`, of a model with one answer for all views: its logits stay; what is left is which view decided."""
    from stage1.views import deciding_view

    assert outputs.answer is not None, "outputs of single views for a head on pooled features"
    n, n_classes = outputs.answer.shape
    finite = np.isfinite(outputs.logits).all(axis=(1, 2)) & np.isfinite(outputs.answer).all(axis=1)
    if outputs.gate is not None:
        finite &= np.isfinite(outputs.gate)
    logits, spread, deciding = np.full((n, n_classes), np.nan), np.full(n, np.nan), np.zeros(n, dtype=np.int64)
    used = np.where(finite, views.policy.count, 0)
    if finite.any():
        logits[finite] = outputs.answer[finite]
        without = outputs.logits[finite].astype(np.float64)
        deciding[finite] = deciding_view(logits[finite], without)
        spread[finite] = _spread(without, logits[finite], used[finite], views)
    gate = None if outputs.gate is None else np.where(finite, outputs.gate.astype(np.float64), np.nan)
    return ViewTrace(logits, gate, spread, used, deciding, *_placed(outputs.sizes, deciding, views.policy, spec))


def _placed(sizes: Ints, deciding: Ints, policy: ViewPolicy, spec: Preprocessing) -> tuple[Ints, NDArray[np.bool_]]:
    """(boxes int64 [n, 4] of deciding views, bool [n] whether tiles and crops add nothing) by image size."""
    boxes = np.zeros((len(sizes), 4), dtype=np.int64)
    small = np.zeros(len(sizes), dtype=np.bool_)
    for row, (height, width) in enumerate(sizes.tolist()):
        boxes[row] = policy.boxes(height, width)[deciding[row]]
        small[row] = adds_nothing(height, width, spec, policy)
    return boxes, small


def _spread(view_logits: Floats, logits: Floats, used: Ints, views: ViewsDocument) -> Floats:
    """Standard deviation over the evaluated views of the log-odds of the class that is answered, float [n]."""
    answer = logits.argmax(axis=1)[:, None, None]
    own = np.take_along_axis(view_logits, np.broadcast_to(answer, (*view_logits.shape[:2], 1)), axis=2)[..., 0]
    others = np.where(np.arange(view_logits.shape[2]) == answer, -np.inf, view_logits)
    odds = own - np.logaddexp.reduce(others, axis=2)
    order = range(views.policy.count) if views.sequence is None else views.sequence.order
    odds = odds[:, list(order)]
    counted = np.arange(odds.shape[1]) < used[:, None]
    mean = np.where(counted, odds, 0.0).sum(axis=1) / used
    return np.asarray(np.sqrt(np.where(counted, (odds - mean[:, None]) ** 2, 0.0).sum(axis=1) / used))


def told(names: Sequence[str], row: int, trace: ViewTrace) -> dict[str, Any]:
    """Of one image: number of views evaluated, name and box of the deciding one, whether tiles add nothing."""
    top, left, bottom, right = trace.boxes[row].tolist()
    return {
        "views": int(trace.used[row]),
        "view": names[int(trace.deciding[row])],
        "box": (top, left, bottom, right),
        "small": bool(trace.small[row]),
    }


def joined_traces(parts: Sequence[ViewTrace]) -> ViewTrace:
    """All batches as one; there is at least one."""
    gates = [part.gate for part in parts if part.gate is not None]
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in ViewTrace.__slots__ if name != "gate"
    }
    return ViewTrace(gate=np.concatenate(gates) if gates else None, **columns)


def joined_views(parts: Sequence[ViewOutputs], policy: ViewPolicy, n_classes: int, *, gate: bool) -> ViewOutputs:
    """All batches as one; where there is none, an empty one of this shape."""
    if not parts:
        shape = (0, policy.count)
        return ViewOutputs(
            np.zeros((*shape, n_classes), np.float32),
            np.zeros(shape, np.float32) if gate else None,
            np.zeros((0, 2), np.int64),
        )
    gates = [part.gate for part in parts if part.gate is not None]
    return ViewOutputs(
        np.concatenate([part.logits for part in parts]),
        np.concatenate(gates) if gates else None,
        np.concatenate([part.sizes for part in parts]),
    )


class _Together:
    """All views of an image as one row of the batch, for a model that takes them so."""

    def __init__(self, engine: Engine, spec: Preprocessing, policy: ViewPolicy) -> None:
        self.parallel = engine.parallel
        self.max_pixels = spec.max_pixels
        self._engine, self._spec, self._policy = engine, spec, policy

    def prepare(self, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float32], tuple[int, int]]:
        return cut(rgb, self._policy, self._spec), (rgb.shape[0], rgb.shape[1])

    def run(self, prepared: list[tuple[NDArray[np.float32], tuple[int, int]]]) -> Outputs:
        outputs = self._engine.run(np.stack([tensors for tensors, _ in prepared]))
        return (*outputs, np.array([size for _, size in prepared], dtype=np.int64))

    def empty(self) -> Outputs:
        return (*self._engine.empty(), np.zeros((0, 2), np.int64))


# ---- one view after the other ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Pending:
    """A decoded image whose views are cut on request; or all of them where that takes less memory."""

    size: tuple[int, int]
    rgb: NDArray[np.uint8] | None
    tensors: NDArray[np.float32] | None

    def view(self, index: int, policy: ViewPolicy, spec: Preprocessing) -> NDArray[np.float32]:
        if self.tensors is not None:
            return np.asarray(self.tensors[index])
        assert self.rgb is not None
        return np.asarray(cut(self.rgb, policy, spec, [index])[0])


class _OneByOne:
    """Views in the learned order; an image that has stopped is in no further forward."""

    def __init__(self, engine: Engine, spec: Preprocessing, views: ViewsDocument, logits: int) -> None:
        assert views.sequence is not None
        self.parallel = engine.parallel
        self.max_pixels = spec.max_pixels
        self._engine, self._spec, self._logits = engine, spec, logits
        self._policy, self._sequence = views.policy, views.sequence

    def prepare(self, rgb: NDArray[np.uint8]) -> _Pending:
        size = (rgb.shape[0], rgb.shape[1])
        if rgb.nbytes <= self._policy.count * 4 * 3 * self._spec.size**2:
            return _Pending(size, rgb, None)
        return _Pending(size, None, cut(rgb, self._policy, self._spec))

    def run(self, prepared: list[_Pending]) -> Outputs:
        made: NDArray[np.float32] | None = None
        open_rows = np.arange(len(prepared))
        order = self._sequence.order
        for step, view in enumerate(order, start=1):
            batch = np.stack([prepared[row].view(view, self._policy, self._spec) for row in open_rows.tolist()])
            logits = self._engine.run(batch)[self._logits]
            if made is None:
                made = np.zeros((len(prepared), len(order), logits.shape[1]), dtype=np.float32)
            made[open_rows, view] = logits
            open_rows = open_rows[~self._stopped(made[open_rows][:, list(order[:step])])]
            if not len(open_rows):
                break
        assert made is not None, "a batch without an image"
        return made, np.array([image.size for image in prepared], dtype=np.int64)

    def empty(self) -> Outputs:
        n_classes = self._engine.empty()[self._logits].shape[1]
        return np.zeros((0, self._policy.count, n_classes), np.float32), np.zeros((0, 2), np.int64)

    def _stopped(self, prefix: NDArray[np.float32]) -> NDArray[np.bool_]:
        """bool [n] for logits [n, s, 2] of the views so far; what is not finite stops: it will not be answered."""
        margins = prefix[:, :, 1].astype(np.float64) - prefix[:, :, 0]
        finite = np.asarray(np.isfinite(margins).all(axis=1))
        stop = ~finite
        stop[finite] = self._sequence.step(margins[finite])[0]
        return stop
