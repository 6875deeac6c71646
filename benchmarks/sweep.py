"""64 heads as one batched computation, against the same heads one after the other.

    python benchmarks/sweep.py [--images 20000] [--dim 1280] [--epochs 10] [--alone 6] [--kind linear|mlp] [--hidden 64]

The sweep and single heads are timed in turns within one run, in CPU seconds of one thread: --alone of the 64, spread
over the grid, are trained by `train_head`, without checkpoints between; their median stands for one head. Printed: both
times, the ratio sweep / one head, the speed-up over 64 heads one after the other, and by how much the logits on
val_select of heads trained both ways differ. And a floor:
the time of nothing but the first layer's matrix products of these steps (forward, and gradient of the weights), for all
heads at once.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from stage1.config import HeadConfig, SweepConfig, TrainConfig
from stage1.training import train_head
from stage1.training.selection import LabelledFeatures, all_logits
from stage1.training.sweep import candidates, train_sweep


def problem(n: int, dim: int, seed: int) -> LabelledFeatures:
    """Features of unequal scale with one noisy direction: about 80 % of the labels can be told."""
    rng = np.random.default_rng(seed)
    direction = np.random.default_rng(99).normal(size=dim).astype(np.float32) / np.sqrt(dim)
    features = rng.normal(size=(n, dim)).astype(np.float32)
    labels = (features @ direction + 0.7 * rng.normal(size=n) > 0).astype(np.int64)
    return LabelledFeatures(features * np.linspace(0.2, 2.0, dim, dtype=np.float32), labels)


def products(heads: int, hidden: int, dim: int, rows: int, steps: int) -> float:
    """CPU seconds of the first layer's matrix products in `steps` steps of `rows` images: no order of work can do
    without them.
    """
    generator = torch.Generator().manual_seed(0)
    weight, batch, back = (
        torch.randn(*shape, generator=generator)
        for shape in ((heads * hidden, dim), (rows, dim), (heads * hidden, rows))
    )
    seconds = []
    for _ in range(30):
        began = time.process_time()
        _ = weight @ batch.T, back @ batch
        seconds.append(time.process_time() - began)
    return steps * statistics.median(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--alone", type=int, default=6)
    parser.add_argument("--kind", choices=("linear", "mlp"), default="linear")
    parser.add_argument("--hidden", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)  # what training itself does
    train, select = problem(options.images, options.dim, 0), problem(options.images // 5, options.dim, 1)
    config = TrainConfig(epochs=options.epochs, patience=options.epochs, checkpoint_every=options.epochs)
    head = HeadConfig(kind=options.kind, hidden=options.hidden)
    entrants = candidates(SweepConfig(enabled=True), config, head, 0)

    small = LabelledFeatures(select.features[:200], select.labels[:200])
    train_sweep(
        small, small, entrants, n_classes=2, resamples=1
    )  # what is imported on first use is no part of the race
    began = time.process_time()
    found = train_sweep(train, select, entrants, n_classes=2, resamples=1)
    together = time.process_time() - began
    seconds, gaps = [], []
    for place in np.linspace(0, len(found) - 1, options.alone).astype(int).tolist():
        one = found[place].candidate
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            result = train_head(
                train.features,
                train.labels,
                select.features,
                select.labels,
                config=one.train,
                head=one.head,
                n_classes=2,
                seed=one.seed,
                folder=Path(folder),
            )
            seconds.append(time.process_time() - began)
        gaps.append(float(np.abs(all_logits([result.head], select.features)[0] - found[place].logits).max()))
    single = statistics.median(seconds)
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread")
    print(
        f"{options.kind} heads, {options.images} x {options.dim} features, {options.epochs} epochs of batches of"
        f" {config.batch_size}"
    )
    print(f"{'one head (median of ' + str(options.alone) + ')':<44}{single:>9.2f} CPU s")
    print(f"{str(len(found)) + ' heads, batched':<44}{together:>9.2f} CPU s")
    print(f"{'batched / one head':<44}{together / single:>9.2f}")
    print(f"{'speed-up over one after the other':<44}{len(found) * single / together:>9.1f}")
    steps = options.epochs * math.ceil(options.images / config.batch_size)
    width = options.hidden if options.kind == "mlp" else 2
    floor = products(len(found), width, options.dim, config.batch_size, steps)
    print(f"{'floor: matrix products alone / one head':<44}{floor / single:>9.2f}")
    print(f"{'largest difference of a logit':<44}{max(gaps):>9.1e}")


if __name__ == "__main__":
    main()
