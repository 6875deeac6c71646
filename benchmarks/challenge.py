"""Challenges per second on one core, by level, with decoding and without.

    python benchmarks/challenge.py [--images 100] [--side 768] [--rounds 5]

The frames are generated street scenes as JPEG files in memory. A call is what `challenge make` does for an image:
decode, distort, encode. One thread, CPU time: what else the machine does counts little. The rounds go through the
levels in turns; medians are printed.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import io
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from stage1.runtime.images import decode
from stage1.simulation.scenes import video_frames
from stage1.streetvision.challenge import LEVELS, challenge, distort, jpeg


def frames(count: int, side: int) -> list[np.ndarray]:
    """Street scenes of the demo, `side` px square."""
    found: list[np.ndarray] = []
    video = 0
    while len(found) < count:
        found += video_frames(0, video, side)[1]
        video += 1
    return found[:count]


def per_second(work: Callable[[int, Any], object], items: Sequence[Any]) -> float:
    began = time.process_time()
    for place, item in enumerate(items):
        work(place, item)
    return len(items) / (time.process_time() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100)
    parser.add_argument("--side", type=int, default=768)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    pixels = frames(options.images, options.side)
    files = []
    for rgb in pixels:
        stream = io.BytesIO()
        Image.fromarray(rgb).save(stream, "JPEG", quality=88)
        files.append(stream.getvalue())
    small = [distort(rgb, 0, np.random.default_rng(0)) for rgb in pixels]
    tasks: dict[str, tuple[Callable[[int, Any], object], Sequence[Any]]] = {
        "decode alone": (lambda place, data: decode(data), files),
        "encode alone (224 px)": (lambda place, rgb: jpeg(rgb), small),
    }
    for name in (*LEVELS, "mixture"):
        tasks[f"{name}, from bytes"] = (lambda place, data, name=name: challenge(data, name, key=str(place)), files)
        tasks[f"{name}, from pixels"] = (lambda place, rgb, name=name: challenge(rgb, name, key=str(place)), pixels)
    rates: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(options.rounds):
        for name, (work, items) in tasks.items():
            rates[name].append(per_second(work, items))
    print(
        f"{platform.processor() or platform.machine()}, one thread, {options.images} scenes of {options.side} px,"
        f" median of {options.rounds} rounds"
    )
    print(f"{'':<24}{'images/s':>10}{'ms':>8}")
    for name, found in rates.items():
        rate = statistics.median(found)
        print(f"{name:<24}{rate:>10.0f}{1000 / rate:>8.2f}")


if __name__ == "__main__":
    main()
