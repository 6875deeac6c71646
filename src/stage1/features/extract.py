"""Extraction: images of a table -> features in the store, by the shipped engine or by torch, as the role allows."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from stage1.config import FeaturesConfig
from stage1.errors import DataError
from stage1.features.store import Failed, FeatureKey, FeatureStore
from stage1.runtime.crops import ViewPolicy
from stage1.runtime.preprocessing import load_tensor
from stage1.runtime.session import Engine, Runner
from stage1.runtime.stream import Item, StreamTimes, read_item, stream

if TYPE_CHECKING:
    from stage1.model.backbone import Backbone

log = logging.getLogger("stage1")

EngineName = Literal["onnx", "torch"]
_MEASURED_BATCHES = 2
# Where every core runs a batch of its own, large batches are no faster, and 64 cores times 64 images would fill memory.
_CORE_BATCH = 16


@dataclass(frozen=True, slots=True)
class Progress:
    """How far extraction is. done includes failed images; waiting_share: of the time, engine idle for decoding."""

    done: int
    total: int
    images_per_second: float
    waiting_share: float


@dataclass(frozen=True, slots=True)
class Extraction:
    """Features of the images that could be read, and who could not.

    features: float32 [M, D], with views [M, V, D]; rows: int64 [M], their positions in the ids asked for, ascending.
    failed: (id, error) of the rest, none of which has a row. engine: which one made them; key: under which they are
    stored.
    """

    features: NDArray[np.float32]
    rows: NDArray[np.int64]
    failed: list[tuple[str, Exception]]
    engine: EngineName
    key: FeatureKey


def extract_features(
    ids: Sequence[str],
    items: Sequence[Item],
    backbone: Backbone,
    backbone_onnx: str | os.PathLike[str],
    store: FeatureStore,
    config: FeaturesConfig,
    *,
    engine: Literal["auto", "onnx", "torch"] = "auto",
    progress: Callable[[Progress], None] | None = None,
    views: ViewPolicy | None = None,
) -> Extraction:
    """Make the features that the store lacks and return all of them, in order.

    ids: str [N], sha256 of each image's bytes; items: where to read each. backbone_onnx: its export.
    engine: "onnx" for evaluation roles, always (what is certified is what ships). "auto" takes the one that has more of
    these images in the store already, else measures both on a few of the images and takes the faster; it logs which.
    views: features of each of these views instead, from one decode, stored side by side under a key of their own.
    Raises DataError (not one image readable), IntegrityError (damaged export), and what the store raises.
    """
    session = Engine(backbone_onnx)
    keys = {"onnx": onnx_key(backbone, session), "torch": torch_key(backbone)}
    if views is not None:
        keys = {name: replace(key, views=views.digest) for name, key in keys.items()}
    chosen: EngineName = _choose(ids, items, backbone, session, store, keys, config) if engine == "auto" else engine
    runner: Runner = session if chosen == "onnx" else backbone.to("auto")
    key = keys[chosen]
    times = StreamTimes()
    batch_size = config.max_batch_size if runner.parallel == 1 else min(config.max_batch_size, _CORE_BATCH)

    def compute(todo: Sequence[Item], cuts: Sequence[int]) -> Iterator[tuple[NDArray[np.int64], NDArray[Any], Failed]]:
        batches = stream(
            runner,
            todo,
            backbone.preprocessing,
            views=views,
            batch_size=batch_size,
            workers=config.workers,
            cuts=cuts,
            times=times,
        )
        for rows, outputs, failed in batches:
            made = outputs[0]
            yield rows, made.reshape(len(made), int(np.prod(made.shape[1:]))), failed

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(Progress(done, total, times.images_per_second, times.waiting_share))

    failed = store.extract(ids, items, key, compute, shard_size=config.shard_size, progress=report)
    if times.images:
        log.info(
            "extracted %d images with %s: %.0f images/s, %.0f %% of the time waiting for decoding",
            times.images,
            chosen,
            times.images_per_second,
            100 * times.waiting_share,
        )
    stored = store.has(ids, key)
    rows = np.flatnonzero(stored)
    if not len(rows):
        first = f"; the first: {failed[0][1]}" if failed else ""
        raise DataError(f"extract: none of {len(ids)} images could be read{first}")
    features = per_view(store.read([ids[row] for row in rows.tolist()], key), views)
    errors = {ids[row]: error for row, error in failed}
    lacking = [ids[row] for row in np.flatnonzero(~stored).tolist()]
    return Extraction(features, rows, [(name, errors[name]) for name in lacking], chosen, key)


def per_view(features: NDArray[np.float32], views: ViewPolicy | None) -> NDArray[np.float32]:
    """Rows of the store [N, V * D] as [N, V, D]; without views unchanged."""
    return features if views is None else features.reshape(len(features), views.count, -1)


def onnx_key(backbone: Backbone, session: Engine) -> FeatureKey:
    """The key of features made by the shipped engine; float32, whatever torch would compute in."""
    import onnxruntime

    name = f"onnx:{session.digest}:{onnxruntime.__version__}:{session.provider}"
    return FeatureKey(backbone.preprocessing.digest, backbone.fingerprint, backbone.pooling, "float32", name)


def torch_key(backbone: Backbone) -> FeatureKey:
    """The key of features made by torch on the device that `Backbone.to("auto")` picks."""
    device = backbone.to("auto").device.type
    return FeatureKey(
        backbone.preprocessing.digest, backbone.fingerprint, backbone.pooling, backbone.dtype, f"torch:{device}"
    )


def _choose(
    ids: Sequence[str],
    items: Sequence[Item],
    backbone: Backbone,
    session: Engine,
    store: FeatureStore,
    keys: dict[str, FeatureKey],
    config: FeaturesConfig,
) -> EngineName:
    stored = {name: int(store.has(ids, key).sum()) for name, key in keys.items()}
    if any(stored.values()):  # also what makes a resumed run go on with the engine it began with
        chosen: EngineName = "onnx" if stored["onnx"] >= stored["torch"] else "torch"
        log.info("features.engine=auto: %s, it made %d of these images before", chosen, stored[chosen])
        return chosen
    batch = _sample(items, backbone, config)
    if batch is None:
        return "onnx"
    rates = {
        "onnx": _images_per_second(session, batch, session.parallel),
        "torch": _images_per_second(backbone, batch, backbone.parallel),
    }
    chosen = "onnx" if rates["onnx"] >= rates["torch"] else "torch"
    log.info("features.engine=auto: %s (images/s: onnx %.0f, torch %.0f)", chosen, rates["onnx"], rates["torch"])
    return chosen


def _sample(items: Sequence[Item], backbone: Backbone, config: FeaturesConfig) -> NDArray[np.float32] | None:
    """One batch of the first images that can be read, at most 16; None where none can."""
    tensors: list[NDArray[np.float32]] = []
    wanted = min(config.max_batch_size, 16)
    for item in items[: 4 * wanted]:
        if len(tensors) == wanted:
            break
        try:
            tensors.append(
                load_tensor(read_item(item, max_pixels=backbone.preprocessing.max_pixels), backbone.preprocessing)
            )
        except (DataError, OSError):
            continue  # named by the extraction itself, which comes to it next
    return np.stack(tensors) if tensors else None


def _images_per_second(runner: Runner, batch: NDArray[np.float32], parallel: int) -> float:
    runner.run(batch)  # the first call allocates and plans
    count = _MEASURED_BATCHES * parallel
    start = time.perf_counter()
    with ThreadPoolExecutor(parallel) as pool:
        for _ in pool.map(runner.run, [batch] * count):
            pass
    return count * len(batch) / (time.perf_counter() - start)
