"""Extraction end to end against its limit: decoding alone (D), the session alone (S), both together.

    python benchmarks/extraction.py [--images 600] [--side 640] [--batch 32] [--rounds 3]

D and S are measured on all cores, each as fast as this code can do it alone: then no way of sharing the cores can beat
1 / (1/D + 1/S) images per second. The three are measured in turns within one run, so that a change in what else the
machine does touches all of them; the ratio of the medians is printed last.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from stage1.runtime.preprocessing import Preprocessing, load_tensor
from stage1.runtime.session import Engine, cores
from stage1.runtime.stream import StreamTimes, stream


def write_images(folder: Path, count: int, side: int, seed: int) -> list[Path]:
    """`count` JPEG files (quality 90) of smooth shapes with noise: about as many bytes per pixel as street photos."""
    rng = np.random.default_rng(seed)
    paths = []
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (side // 20, side // 20, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(smooth + rng.integers(-8, 9, (side, side, 1)), 0, 255).astype(np.uint8)
        paths.append(folder / f"{index:05d}.jpg")
        Image.fromarray(noisy).save(paths[-1], quality=90)
    return paths


def embedded_onnx(folder: Path) -> Path:
    """The embedded backbone, exported."""
    from stage1.config import BackboneConfig
    from stage1.model.backbone import load_backbone
    from stage1.model.export import export_backbone

    path = folder / "backbone.onnx"
    export_backbone(load_backbone(BackboneConfig(), seed=0), path)
    return path


def rate(count: int, work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--side", type=int, default=640, help="side of the JPEG files in pixels")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", type=Path, help="another .onnx file than the embedded backbone")
    options = parser.parse_args()
    spec = Preprocessing()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        engine = Engine(options.model or embedded_onnx(folder))
        paths = write_images(folder, options.images, options.side, seed=0)
        batch = np.stack([load_tensor(path.read_bytes(), spec) for path in paths[: options.batch]])
        batches = -(-options.images // options.batch)
        times = StreamTimes()

        def decode_alone() -> None:
            with ThreadPoolExecutor(cores()) as pool:
                for _ in pool.map(lambda path: load_tensor(path.read_bytes(), spec).shape, paths):
                    pass

        def session_alone() -> None:
            with ThreadPoolExecutor(engine.parallel) as pool:
                for _ in pool.map(engine.run, [batch] * batches):
                    pass

        def together() -> None:
            for _ in stream(engine, paths, spec, batch_size=options.batch, times=times):
                pass

        for warm in (decode_alone, session_alone):
            warm()
        rates: dict[str, list[float]] = {"D": [], "S": [], "both": []}
        for _ in range(options.rounds):
            rates["D"].append(rate(len(paths), decode_alone))
            rates["S"].append(rate(batches * options.batch, session_alone))
            rates["both"].append(rate(len(paths), together))
    decode, session, both = (statistics.median(values) for values in rates.values())
    limit = 1 / (1 / decode + 1 / session)
    print(f"{platform.machine()}, {cores()} cores, Python {platform.python_version()}, provider {engine.provider}")
    print(f"{options.images} JPEGs of {options.side} px, batch {options.batch}, median of {options.rounds} rounds")
    print(f"D     decoding alone     {decode:8.1f} images/s   rounds {_numbers(rates['D'])}")
    print(f"S     session alone      {session:8.1f} images/s   rounds {_numbers(rates['S'])}")
    print(f"both  end to end         {both:8.1f} images/s   rounds {_numbers(rates['both'])}")
    print(f"limit 1 / (1/D + 1/S)    {limit:8.1f} images/s")
    print(f"ratio {both / limit:.3f}   (session idle, waiting for decoding: {times.waiting_share:.0%} of the time)")


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.0f}" for value in values)


if __name__ == "__main__":
    main()
