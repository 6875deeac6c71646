"""The client's detector end to end against the bare ONNX Runtime session, call by call in turns.

    python benchmarks/detector.py [--bundle BUNDLE] [--calls 300] [--rounds 5]

End to end: a 224 px JPEG as the client hands it over (a PIL image, read lazily) to a float, with decoding,
preprocessing, policy, calibration map, counting and the thread that keeps the deadline. The bare session: the same
tensor, ready, through the same model with the same options of ONNX Runtime, and nothing of ours. Start-up: a fresh
process from its first line to a detector that is ready. Without --bundle a small run makes one at 224 px on the
embedded backbone.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from PIL import Image

from stage1.bundle import read_manifest
from stage1.runtime.preprocessing import Preprocessing, load_tensor
from stage1.streetvision import Stage1Detector
from stage1.streetvision.challenge import LEVELS, challenge
from stage1.streetvision.check import scenes


def small_bundle(folder: Path) -> Path:
    run = [sys.executable, "-m", "stage1.cli", "run", "--recipe", "smoke", "backbone.input_size=224", "--quiet"]
    subprocess.run([*run, "--output", str(folder / "run")], check=True, stdout=subprocess.DEVNULL)
    return folder / "run" / "bundle"


def bare_session(model: Path) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    return ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def startup(folder: Path) -> float:
    """Seconds of a fresh process, from its first line on, until the detector is there."""
    code = (
        "import sys, time\nbegan = time.perf_counter()\nfrom stage1.streetvision import Stage1Detector\n"
        "Stage1Detector(config_name=sys.argv[1])\nprint(time.perf_counter() - began)\n"
    )
    run = [sys.executable, "-c", code, str(folder)]
    return float(subprocess.run(run, check=True, capture_output=True, text=True).stdout)


def milliseconds(work: Callable[[], object]) -> tuple[float, float]:
    """(wall, processor) time, of all threads of this process."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return 1000 * (time.perf_counter() - wall), 1000 * (time.process_time() - processor)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="another bundle than that of the small run")
    parser.add_argument("--calls", type=int, default=300, help="per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=5, help="fresh processes for the start-up")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.bundle or small_bundle(Path(temporary))
        detector = Stage1Detector(config_name=str(folder))
        spec = Preprocessing.from_json(read_manifest(folder)["preprocessing"])
        session = bare_session(folder / "model.onnx")
        starts = sorted(startup(folder) for _ in range(options.starts))
    image = session.get_inputs()[0].name
    frames = scenes(each=8)
    jpegs = [challenge(frame.image, level).jpeg for frame in frames for level in LEVELS]
    tensors = [load_tensor(data, spec)[None] for data in jpegs]
    detector(Image.open(io.BytesIO(jpegs[0])))
    session.run(None, {image: tensors[0]})
    shape = (2, options.rounds, options.calls)
    wall, processor = np.empty(shape), np.empty(shape)
    for number in range(options.rounds):
        for index in range(options.calls):
            data, tensor = jpegs[index % len(jpegs)], tensors[index % len(jpegs)]
            calls = (
                lambda data=data: detector(Image.open(io.BytesIO(data))),
                lambda tensor=tensor: session.run(None, {image: tensor}),
            )
            for what, call in enumerate(calls):
                wall[what, number, index], processor[what, number, index] = milliseconds(call)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, provider {detector.provider}, {spec.size} px model"
    )
    print(f"{options.calls} calls in each of {options.rounds} rounds, one thread, detector and session in turns")
    print(f"{'what':<10}{'p10 ms':>8}{'p50 ms':>8}{'p99 ms':>8}{'CPU ms':>8}")
    for what, name in enumerate(("detector", "session")):
        p10, p50, p99 = np.quantile(wall[what], (0.1, 0.5, 0.99))
        print(f"{name:<10}{p10:>8.2f}{p50:>8.2f}{p99:>8.2f}{np.median(processor[what]):>8.2f}")
    # Processor time leaves out what other processes take; wall time is what the client waits for.
    for name, times in (("CPU time", processor), ("wall time", wall)):
        ratios = np.median(times[0], axis=1) / np.median(times[1], axis=1)
        shown = " ".join(f"{ratio:.2f}" for ratio in ratios)
        print(f"ratio detector / session, {name}: {statistics.median(ratios):.2f}   rounds {shown}")
    print(f"start-up {statistics.median(starts):.2f} s (median of {len(starts)}, {starts[0]:.2f} to {starts[-1]:.2f})")
    if fallbacks := detector.counts["fallback"]:
        raise SystemExit(f"{fallbacks} calls got the fallback answer")


if __name__ == "__main__":
    main()
