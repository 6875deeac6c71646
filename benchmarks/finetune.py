"""Training on images: LoRA against full fine-tuning, and whether training ever waits for its images.

    python benchmarks/finetune.py [--backbone vit_small_patch16_224] [--side 224] [--batch 16] [--steps 6] [--scenes 60]
    [--workers 0] [--four-epochs]

--four-epochs alone: CPU seconds of an image in a step of 8, in a validation (raw and averaged weights) and in the first
look that sets the head's scale, for ROWS, and what follows for four epochs of 1,200 images with 300 of val_select and
512 looked at first: 4,800, 1,200 and 512 of them. One thread; CPU seconds hardly depend on what else the machine does,
and two cores need half of them where all scales.

Both parts go through `train_on_images`, as the stage `tune` does. Steps: an untrained ViT on noise, full fine-tuning
(images.unfreeze=all) and LoRA of all linear layers (rank 8), each in a process of its own: median time from step to
step without the first two, and by how much the process's peak memory rose over what it held when training began.
Waiting: the embedded CNN, last three stages, on --scenes generated videos of 320 px with the augmentation of the
recipe: share of the training time in which no image was ready.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stage1.config import AdapterConfig, BackboneConfig, HeadConfig, ImageTrainConfig, TrainConfig
from stage1.model.backbone import load_backbone
from stage1.simulation.scenes import write_roadscenes
from stage1.training.image_tuning import train_on_images
from stage1.training.image_watch import Watch

KINDS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "full": ({"unfreeze": "all"}, {}),
    "lora": ({}, {"kind": "lora"}),
}


BATCH = 8
WAYS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "lite0, last 3 stages": ("embedded", {"unfreeze": "last", "blocks": 3}, {}),
    "ViT-S/14, last block": ("vit", {"unfreeze": "last"}, {}),
    "ViT-S/14, LoRA of 4 blocks": ("vit", {}, {"kind": "lora", "blocks": 4}),
    "ViT-S/14, LoRA": ("vit", {}, {"kind": "lora"}),
    "ViT-S/14, DoRA": ("vit", {}, {"kind": "dora"}),
}


ROWS = (
    ("ViT-S/14, last block", "bfloat16"),
    ("ViT-S/14, LoRA", "bfloat16"),
    ("lite0, last 3 stages", "float32"),
    ("ViT-S/14, LoRA of 4 blocks", "bfloat16"),
    ("ViT-S/14, LoRA", "float32"),
    ("ViT-S/14, DoRA", "bfloat16"),
    ("ViT-S/14, last block", "float32"),
)


def noise(n: int, side: int, seed: int) -> tuple[list[str], list[bytes], np.ndarray]:
    rng = np.random.default_rng(seed)
    items = []
    for _ in range(n):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(stream, "JPEG")
        items.append(stream.getvalue())
    return [f"{seed}-{index}" for index in range(n)], items, np.arange(n) % 2


def steps(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Seconds for a step, MiB of peak memory above the start, trained parameters. Peaks only rise: one kind to a
    process.
    """
    images, adapter = KINDS[kind]
    backbone = load_backbone(
        BackboneConfig(name=options.backbone, random_weights=True, input_size=options.side, pooling="mean"), 0
    )
    before, moments = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, []

    def asked() -> bool:
        moments.append(time.perf_counter())
        return False

    with tempfile.TemporaryDirectory() as folder:
        result = train_on_images(
            backbone,
            noise(options.steps * options.batch, options.side, 0),
            noise(4, options.side, 1),
            config=TrainConfig(epochs=1, batch_size=options.batch, ema_decay=0.0),
            head=HeadConfig(kind="linear"),
            images=ImageTrainConfig(augment="none", threads=1, statistics_images=4, workers=1, **images),
            adapter=AdapterConfig(**adapter),
            n_classes=2,
            seed=0,
            folder=Path(folder),
            stop=asked,
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "seconds": statistics.median(np.diff(moments)[1:].tolist()),
        "mebibytes": (peak - before) / 1024,
        "trainable": result.trainable,
    }


def cpu_seconds(way: str, precision: str, count: int) -> dict[str, float]:
    """CPU seconds of a step, of validating its images and of a look at them; images of 320 px, distorted in steps."""
    name, images, adapter = WAYS[way]
    batch = BATCH
    shape = {"name": "embedded"}
    if name == "vit":
        shape = {"name": "vit_small_patch14_dinov2", "random_weights": True, "input_size": 224, "pooling": "cls"}
    moments: dict[str, list[float]] = {"statistics": [], "loss": [], "validation": []}

    def seen(_: int, note: str) -> None:
        key = next((key for key in moments if key in note), "statistics")
        moments[key].append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        train_on_images(
            load_backbone(BackboneConfig(**shape), 0),
            noise(count * batch, 320, 0),
            noise(2 * batch, 320, 1),
            config=TrainConfig(epochs=1, batch_size=batch),
            head=HeadConfig(kind="linear"),
            images=ImageTrainConfig(precision=precision, threads=1, workers=1, statistics_images=2 * batch, **images),
            adapter=AdapterConfig(**adapter),
            n_classes=2,
            seed=0,
            folder=Path(folder),
            watch=Watch(seen=seen),
        )
    taken = {key: float(np.median(np.diff(values))) / batch for key, values in moments.items()}
    return taken | {"minutes": (4800 * taken["loss"] + 1200 * taken["validation"] + 512 * taken["statistics"]) / 60}


def four_epochs(count: int) -> None:
    print("| what learns, arithmetic | CPU s of an image: step | validation | first look | four epochs: CPU minutes |")
    print("|---|---|---|---|---|")
    for way, precision in ROWS:
        row = cpu_seconds(way, precision, count)
        cells = (f"{row[key]:.3f}" for key in ("loss", "validation", "statistics"))
        print(f"| {way}, {precision} | {' | '.join(cells)} | {row['minutes']:.1f} |", flush=True)


def in_own_process(kind: str) -> dict[str, float]:
    command = [sys.executable, __file__, *sys.argv[1:], "--one", kind]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def waiting(videos: int, workers: int) -> tuple[float, int]:
    """Share of the training time spent waiting for images, and how many images were trained on (two epochs)."""
    with tempfile.TemporaryDirectory() as scratch:
        table = write_roadscenes(Path(scratch) / "scenes", videos=videos, size=320, seed=0)
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        paths = [str(table.parent / row["image"]) for row in rows]
        labels = np.array([row["label"] == "roadwork" for row in rows], dtype=np.int64)
        kept = len(rows) - 16
        result = train_on_images(
            load_backbone(BackboneConfig(name="embedded", pooling="pool"), 0),
            (paths[:kept], paths[:kept], labels[:kept]),
            (paths[kept:], paths[kept:], labels[kept:]),
            config=TrainConfig(epochs=2, batch_size=32),
            head=HeadConfig(kind="linear"),
            images=ImageTrainConfig(unfreeze="last", blocks=3, threads=1, workers=workers, statistics_images=64),
            adapter=AdapterConfig(),
            n_classes=2,
            seed=0,
            folder=Path(scratch),
        )
    return result.waiting_share, kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--scenes", type=int, default=80)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--one", choices=tuple(KINDS), help=argparse.SUPPRESS)
    parser.add_argument("--four-epochs", action="store_true")
    options = parser.parse_args()
    if options.four_epochs:
        four_epochs(options.steps)
        return
    if options.one:
        print(json.dumps(steps(options.one, options)))
        return
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread for the model")
    print(f"{options.backbone}, {options.side} px, steps of {options.batch} images\n")
    print(f"{'':<8}{'trained parameters':>20}{'s / step':>10}{'peak MiB above start':>22}")
    found = {kind: in_own_process(kind) for kind in KINDS}
    for kind, row in found.items():
        print(f"{kind:<8}{row['trainable']:>20,}{row['seconds']:>10.2f}{row['mebibytes']:>22.0f}")
    ratios = [found["lora"][name] / found["full"][name] for name in ("seconds", "mebibytes")]
    print(f"{'lora / full':<28}{ratios[0]:>10.2f}{ratios[1]:>22.2f}\n", flush=True)
    share, images = waiting(options.scenes, options.workers)
    print(f"waiting for images: {share:.1%} of the training time ({images} scenes of 320 px, two epochs)")


if __name__ == "__main__":
    main()
