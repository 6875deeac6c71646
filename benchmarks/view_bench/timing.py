"""Milliseconds of views on one core: one decode and one view, one decode and ten, ten decodes; and adaptive, view
by view.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stage1.config import BackboneConfig
from stage1.data.table import SampleTable
from stage1.model.backbone import load_backbone
from stage1.runtime.crops import ViewPolicy, cut
from stage1.runtime.images import decode
from stage1.runtime.preprocessing import Preprocessing
from stage1.runtime.session import Engine
from stage1.views import Sequence
from view_bench.heads import LinearHead

IMAGES = 60


@dataclass(frozen=True)
class Timing:
    """Means per image in milliseconds, each way on the same images in turn. pixels: the median image's height and
    width.
    """

    single: float
    ten: float
    separate: float
    ten_without_model: float
    separate_without_model: float
    decode: float
    pixels: tuple[int, int]
    measure_adaptive: Callable[[Sequence, LinearHead], float]


def timing(cache: Path, policy: ViewPolicy) -> Timing:
    """Of IMAGES images of val_test spread over the table, after one warm-up round."""
    table = SampleTable.read(cache / "samples.parquet")
    rows = table.rows("val_test")[:: max(1, len(table.rows("val_test")) // IMAGES)][:IMAGES]
    data = [item() for item in table.items(rows)]
    engine = Engine(cache / "backbone.onnx", threads=1)
    spec = load_backbone(BackboneConfig(name="embedded", pooling="pool"), 0).preprocessing
    each = range(policy.count)
    ways: dict[str, Callable[[bytes], object]] = {
        "decode": decode,
        "single": lambda image: engine.run(cut(decode(image), policy, spec, [0])),
        "ten": lambda image: engine.run(cut(decode(image), policy, spec)),
        "separate": lambda image: [engine.run(cut(decode(image), policy, spec, [view])) for view in each],
        "ten_without_model": lambda image: cut(decode(image), policy, spec),
        "separate_without_model": lambda image: [cut(decode(image), policy, spec, [view]) for view in each],
    }
    spent = dict.fromkeys(ways, 0.0)
    for number, image in enumerate([data[0], *data]):
        for name, way in ways.items():  # in turn, so that a busy moment of the machine hits all of them
            began = time.process_time()
            way(image)
            spent[name] += (time.process_time() - began) * (number > 0)
    sizes = np.median([decode(image).shape[:2] for image in data], axis=0).astype(int)
    milliseconds = {name: 1000 * seconds / len(data) for name, seconds in spent.items()}

    def measure_adaptive(sequence: Sequence, head: LinearHead) -> float:
        began = time.process_time()
        for image in data:
            in_turn(image, engine, spec, policy, sequence, head)
        return 1000 * (time.process_time() - began) / len(data)

    return Timing(**milliseconds, pixels=(int(sizes[0]), int(sizes[1])), measure_adaptive=measure_adaptive)


def in_turn(
    image: bytes, engine: Engine, spec: Preprocessing, policy: ViewPolicy, sequence: Sequence, head: LinearHead
) -> tuple[float, int]:
    """(score, views used) of one image: decoded once, each view cut and run only when it is its turn."""
    rgb = decode(image)
    seen: list[float] = []
    for view in sequence.order:
        features = engine.run(cut(rgb, policy, spec, [view]))[0]
        seen.append(float(head.margins(features[None])[0, 0]))
        stop, score = sequence.step(np.array([seen]))
        if stop[0]:
            break
    return float(score[0]), len(seen)
