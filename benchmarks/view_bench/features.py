"""Features of every view of every image, once: one decode, all views through the embedded backbone's shipped engine,
kept as one array.

Used by benchmarks/views.py. A half-made array is gone on with; each image's row is written whole, and marked only then.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage1.config import load_config
from stage1.data.table import SampleTable
from stage1.model.backbone import load_backbone
from stage1.model.export import export_backbone
from stage1.runs.directory import opened
from stage1.runs.progress import Progress
from stage1.runs.runner import execute_one
from stage1.runtime.crops import ViewPolicy, cut
from stage1.runtime.images import decode
from stage1.runtime.preprocessing import Preprocessing
from stage1.runtime.session import Engine, cores
from stage1.stages import STAGES
from stage1.storage.files import write_text

_CHUNK = 64


@dataclass(frozen=True)
class ViewFeatures:
    """features: float32 [N, V, D], rows as in `table`."""

    table: SampleTable
    policy: ViewPolicy
    features: NDArray[np.float32]


def view_features(
    table_file: Path, policy: ViewPolicy, cache: Path, changes: Sequence[str], *, seconds: float = 1e9
) -> ViewFeatures:
    """Split the images as the package does (recipe baseline with `changes`), and make or read the features of all
    views.

    seconds: stop after about so long, with SystemExit; the next call goes on.
    """
    config, _ = load_config(recipe="baseline", overrides=[f"data.table={table_file}", *changes], environment={})
    with opened(cache, config) as run:
        if not (cache / "samples.parquet").is_file():
            execute_one(run, STAGES, "split", Progress(quiet=False))
    table = SampleTable.read(cache / "samples.parquet")
    backbone = load_backbone(config.backbone, config.seed)
    if not (cache / "backbone.onnx").is_file():
        export_backbone(backbone, cache / "backbone.onnx")
    engine, spec = Engine(cache / "backbone.onnx"), backbone.preprocessing
    place = cache / f"views-{policy.digest[:12]}.npy"
    shape = (len(table), policy.count, backbone.dim)
    features = np.lib.format.open_memmap(place, mode="r+" if place.exists() else "w+", dtype=np.float32, shape=shape)
    done_file = place.with_suffix(".json")
    done = json.loads(done_file.read_text(encoding="utf-8"))["done"] if done_file.exists() else 0
    items = table.items(range(len(table)))
    began, first = time.perf_counter(), done
    with ThreadPoolExecutor(cores()) as pool:
        while done < len(table):
            rows = range(done, min(done + _CHUNK, len(table)))
            for row, values in zip(
                rows, pool.map(lambda row: of_one(items[row], engine, policy, spec), rows), strict=True
            ):
                features[row] = values
            features.flush()
            done = rows.stop
            write_text(done_file, json.dumps({"done": done}))
            spent = time.perf_counter() - began
            if done % (10 * _CHUNK) == 0:
                print(f"  {done} of {len(table)} images, {(done - first) / spent:.1f} images/s", flush=True)
            if spent > seconds and done < len(table):
                raise SystemExit(f"{place}: {done} of {len(table)} images after {spent:.0f} s; run again to go on")
    return ViewFeatures(table, policy, np.asarray(features))


def of_one(item: Callable[[], bytes], engine: Engine, policy: ViewPolicy, spec: Preprocessing) -> NDArray[np.float32]:
    """float32 [V, D] of one image."""
    return np.asarray(engine.run(cut(decode(item()), policy, spec))[0])
