"""ExPLoRA on generated street scenes: does the loss fall, do the features stay alive, and does a linear probe gain?

    python benchmarks/explora.py [--images 600] [--side 64] [--epochs 2] [--objective masked|dino] [--backbone NAME]
        [--weights FILE] [--labelled 600] [--seed 0] [--resamples 1000] [--work FOLDER]

About --images frames without their labels for pretraining; about --labelled frames of other videos for the probe, a
third each to train, to choose the epoch, and to judge. Without --weights the ViT starts untrained: then the table says
what self-supervision alone gives, not what it adds to a good checkpoint. Printed: loss, rank and spread after each
epoch beside those before the first; and the probe before and after on the judging frames, paired, with 95 % intervals
by a bootstrap over videos.

--work keeps scenes and checkpoint: stopped by SIGTERM, the same command goes on from the last step.
"""

from __future__ import annotations

import argparse
import csv
import platform
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stage1.config import BackboneConfig, HeadConfig, PretrainConfig, TrainConfig
from stage1.evaluation.comparison import compare
from stage1.model.backbone import Backbone, load_backbone
from stage1.runtime.preprocessing import load_tensor
from stage1.scores import Scores
from stage1.simulation.scenes import describe_video, write_roadscenes
from stage1.training import train_head
from stage1.training.pretrain.run import pretrain
from stage1.training.pretrain.unlabelled import printed
from stage1.training.selection import all_logits

METRICS = ("accuracy", "augrc", "nll")


def videos_for(frames: int, seed: int, first: int = 0) -> int:
    """How many videos, counted from `first`, hold at least so many frames."""
    count = 0
    while frames > 0:
        frames -= describe_video(seed, first + count).frames
        count += 1
    return count


def features(backbone: Backbone, paths: list[Path]) -> NDArray[np.float32]:
    made = []
    for start in range(0, len(paths), 64):
        batch = [load_tensor(path.read_bytes(), backbone.preprocessing) for path in paths[start : start + 64]]
        made.append(backbone.features(np.stack(batch)))
    return np.concatenate(made)


def probe(
    made: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.str_], thirds: NDArray[np.int64], seed: int
) -> Scores:
    """A linear head on the first third, its epoch chosen on the second; scores of the last."""
    train, select, judge = (thirds == third for third in range(3))
    config = TrainConfig(epochs=60, batch_size=64, checkpoint_every=60)
    with tempfile.TemporaryDirectory() as folder:
        result = train_head(
            made[train],
            labels[train],
            made[select],
            labels[select],
            config=config,
            head=HeadConfig(kind="linear"),
            n_classes=2,
            seed=seed,
            folder=Path(folder),
        )
    logits = all_logits([result.head], made[judge])[0]
    return Scores(logits=logits.astype(np.float64), labels=labels[judge], groups=groups[judge])


@contextmanager
def place(work: Path | None) -> Iterator[Path]:
    if work is not None:
        yield work
        return
    with tempfile.TemporaryDirectory() as scratch:
        yield Path(scratch)


class Scenes:
    """Frames of `unlabelled` videos to pretrain on, and those of the videos after them, in thirds, for the probe."""

    def __init__(self, table: Path, unlabelled: int) -> None:
        with table.open(newline="") as stream:
            rows = list(csv.DictReader(stream))
        numbers = {name: index for index, name in enumerate(dict.fromkeys(row["group"] for row in rows))}
        number = np.array([numbers[row["group"]] for row in rows])
        paths = [table.parent / row["image"] for row in rows]
        kept = np.flatnonzero(number >= unlabelled)
        self.free = [path for path, video in zip(paths, number, strict=True) if video < unlabelled]
        self.paths = [paths[row] for row in kept]
        self.labels = np.array([rows[row]["label"] == "roadwork" for row in kept], dtype=np.int64)
        self.groups = np.array([rows[row]["group"] for row in kept])
        self.thirds = (number[kept] % 3).astype(np.int64)

    def probe(self, backbone: Backbone, seed: int) -> Scores:
        return probe(features(backbone, self.paths), self.labels, self.groups, self.thirds, seed)


def pretrained(backbone: Backbone, free: list[Path], options: argparse.Namespace, folder: Path) -> Backbone:
    """The backbone after ExPLoRA; prints a line for each epoch."""
    config = PretrainConfig(
        train_images=True,
        objective=options.objective,
        epochs=options.epochs,
        learning_rate=options.learning_rate,
        augment="aggressive" if options.objective == "dino" else "moderate",
        workers=1,
        threads=1,
    )
    wanted: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: wanted.append(number))
    began = time.perf_counter()
    result = pretrain(
        backbone,
        printed(free, [str(path) for path in free]),
        config=config,
        seed=options.seed,
        folder=folder,
        stop=lambda: bool(wanted),
    )
    print(f"\n{'epoch':<8}{'loss':>9}{'rank':>9}{'spread':>9}")
    print(f"{'before':<8}{'':>9}{result.before.rank:>9.2f}{result.before.spread:>9.3f}")
    for row in result.rows:
        print(f"{row['epoch']:<8}{row['loss']:>9.4f}{row['rank']:>9.2f}{row['spread']:>9.3f}")
    print(f"{result.share:.0%} of the parameters trained, {time.perf_counter() - began:.0f} s", flush=True)
    return result.backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=600)
    parser.add_argument("--labelled", type=int, default=600)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--objective", choices=("masked", "dino"), default="masked")
    parser.add_argument("--backbone", default="vit_tiny_patch16_224")
    parser.add_argument("--weights")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    unlabelled = videos_for(options.images, options.seed)
    videos = unlabelled + videos_for(options.labelled, options.seed, unlabelled)
    with place(options.work) as folder:
        table = write_roadscenes(folder / "scenes", videos=videos, size=options.side, seed=options.seed)
        scenes = Scenes(table, unlabelled)
        given = BackboneConfig(
            name=options.backbone,
            weights=options.weights,
            random_weights=options.weights is None,
            input_size=options.side,
            pooling="mean",
        )
        backbone = load_backbone(given, options.seed)
        start = "untrained" if options.weights is None else Path(options.weights).name
        print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}")
        print(
            f"{options.backbone} ({start}), {options.side} px, {len(scenes.free)} unlabelled frames, objective"
            f" {options.objective}"
        )
        before = scenes.probe(backbone, options.seed)
        after = scenes.probe(pretrained(backbone, scenes.free, options, folder / options.objective), options.seed)

    found = compare(after, before, names=("after", "before"), metrics=METRICS, n_resamples=options.resamples, seed=0)
    assert before.groups is not None  # given above
    print(f"\nlinear probe on {len(before)} frames of {len(np.unique(before.groups))} videos")
    print(f"{'metric':<10}{'before':>9}{'after':>9}{'gain':>9}{'low':>9}{'high':>9}  verdict")
    for row in found["rows"]:
        print(
            f"{row['metric']:<10}{row['b']:>9.4f}{row['a']:>9.4f}{row['difference']:>9.4f}"
            f"{row['low']:>9.4f}{row['high']:>9.4f}  {row['verdict']}"
        )


if __name__ == "__main__":
    main()
