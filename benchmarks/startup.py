"""Start-up and memory: `import stage1`, `stage1 --help`, a warm `stage1 run`; and `stage1 predict` of one image and of
many against a script of twenty lines (numpy, Pillow, ONNX Runtime) that does no more than answer.

`python benchmarks/startup.py` makes a bundle of its own (recipe smoke); `--bundle DIR --images DIR` takes yours. CPU
seconds are those of the process (user + system), wall the best of the rounds: other work of the machine moves the wall
clock, and CPU seconds little. Memory is the peak of the resident set.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROUNDS = 5
RUN = ["run", "--recipe", "smoke", "--quiet"]
ENDINGS = (".jpg", ".jpeg", ".png")
HAND_MADE = """
import json, sys
import numpy as np
import onnxruntime as ort
from PIL import Image

folder, paths = sys.argv[1], sys.argv[2:]
spec = json.load(open(f"{folder}/bundle.json"))["preprocessing"]
thresholds = json.load(open(f"{folder}/thresholds.json"))
options = ort.SessionOptions()
options.intra_op_num_threads = 1
session = ort.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
mean, std = (255 * np.array(spec[name], np.float32) for name in ("mean", "std"))
kernel = {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[spec["interpolation"]]

def tensor(path):
    image = Image.open(path).convert("RGB").resize((spec["size"],) * 2, kernel)
    return ((np.asarray(image, np.float32) - mean) / std).transpose(2, 0, 1)

for start in range(0, len(paths), 32):
    some = paths[start : start + 32]
    logits = session.run(["logits"], {session.get_inputs()[0].name: np.stack([tensor(path) for path in some])})[0]
    for path, margin in zip(some, logits[:, 1] - logits[:, 0]):
        lo, hi = thresholds["lo"], thresholds["hi"]
        exits = (lo is not None and margin < lo) or (hi is not None and margin > hi)
        print("exit" if exits else "defer", path)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """Of whole processes. wall: best of the rounds, cpu: median, both in seconds; memory: largest peak, MB."""

    wall: float
    cpu: float
    memory: float


def cost(command: list[str], *, core: bool, rounds: int = ROUNDS) -> Cost:
    """core: on one core alone. One further round, before the others, is not counted."""
    walls, cpus, peaks = [], [], []
    for _ in range(rounds + 1):
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=(lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})) if core else None,
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode not in (0, 1):  # 1: an image among them is broken
            raise SystemExit(f"{command}: exit {process.returncode}")
        walls.append(time.perf_counter() - began)
        cpus.append(used.ru_utime + used.ru_stime)
        peaks.append(used.ru_maxrss / 1024)
    return Cost(min(walls[1:]), statistics.median(cpus[1:]), max(peaks[1:]))


def answered(folder: Path, bundle: Path, images: list[str], rounds: int) -> dict[str, Cost]:
    """Cost of one image and of all, ours and by hand, in turns of one process each."""
    script = folder / "by_hand.py"
    script.write_text(HAND_MADE)
    ours = [sys.executable, "-m", "stage1.cli", "predict", str(bundle)]
    hand = [sys.executable, str(script), str(bundle)]
    many = len(images)
    return {
        "one image, by hand": cost([*hand, images[0]], core=False, rounds=rounds),
        "one image, stage1 predict": cost([*ours, images[0]], core=False, rounds=rounds),
        f"{many} images, one core, by hand": cost([*hand, *images], core=True, rounds=max(1, rounds // 2)),
        f"{many} images, one core, stage1 predict": cost([*ours, *images], core=True, rounds=max(1, rounds // 2)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="a bundle of two classes with thresholds on the softmax")
    parser.add_argument("--images", type=Path, help="folder of images")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    python = sys.executable
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = {"empty interpreter": cost([python, "-c", "pass"], core=False, rounds=given.rounds)}
        for what, command in {
            "import stage1": ["-c", "import stage1"],
            "stage1 --help": ["-m", "stage1.cli", "-h"],
        }.items():
            rows[what] = cost([python, *command], core=False, rounds=given.rounds)
        bundle, images = given.bundle, given.images
        if bundle is None or images is None:
            run = [python, "-m", "stage1.cli", *RUN, "--output", str(folder / "run")]
            rows["cold stage1 run (smoke)"] = cost_once(run)
            rows["warm stage1 run (smoke)"] = cost(run, core=False, rounds=given.rounds)
            bundle = bundle or folder / "run" / "bundle"
            images = images or folder / "run" / "roadscenes" / "images"
        paths = sorted(str(path) for path in images.iterdir() if path.suffix.lower() in ENDINGS)[: given.count]
        rows |= answered(folder, bundle, paths, given.rounds)
    print(
        f"{platform.machine()}, Python {platform.python_version()}, {len(os.sched_getaffinity(0))} cores, load"
        f" {os.getloadavg()[0]:.1f}, {given.rounds} rounds"
    )
    print(f"{'what':<42}{'wall s':>9}{'CPU s':>9}{'peak MB':>9}")
    for what, found in rows.items():
        print(f"{what:<42}{found.wall:>9.2f}{found.cpu:>9.2f}{found.memory:>9.0f}")


def cost_once(command: list[str]) -> Cost:
    """Of a command that does less the second time."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(wall, cpu, after.ru_maxrss / 1024)


if __name__ == "__main__":
    main()
