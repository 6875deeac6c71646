"""A linear head on many cached features, against scikit-learn's LogisticRegression on the same ones.

    python benchmarks/heads.py [--images 100000] [--dim 1280] [--epochs 20] [--judged 20000] [--rounds 1]

Features of unequal scale, labels of which about 80 % can be told (as in sweep.py). Both standardise, both use one
thread, and both are timed in turns, data in memory: `train_head` as the stage `train` calls it (it validates each
epoch, averages weights and writes checkpoints), and StandardScaler with LogisticRegression at its defaults (L-BFGS, C =
1) until it says it has converged. Printed: seconds, accuracy and NLL on features that neither has seen, with the
standard error of the accuracy.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sweep import problem
from threadpoolctl import threadpool_limits

from stage1.config import HeadConfig, TrainConfig
from stage1.training import train_head
from stage1.training.selection import LabelledFeatures, all_logits, select_metrics


def ours(
    train: LabelledFeatures, select: LabelledFeatures, judged: LabelledFeatures, epochs: int
) -> NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as folder:
        head = train_head(
            train.features,
            train.labels,
            select.features,
            select.labels,
            config=TrainConfig(epochs=epochs, patience=epochs),
            head=HeadConfig(kind="linear"),
            n_classes=2,
            seed=0,
            folder=Path(folder),
        ).head
    return all_logits([head], judged.features)[0]


def peer(train: LabelledFeatures, judged: LabelledFeatures) -> NDArray[np.float32]:
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    model.fit(train.features, train.labels)
    margin = model.decision_function(judged.features).astype(np.float32)
    return np.stack([np.zeros_like(margin), margin], axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--judged", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    train, judged = problem(options.images, options.dim, 0), problem(options.judged, options.dim, 2)
    select = problem(options.images // 20, options.dim, 1)
    rows = {
        f"head, {options.epochs} epochs": lambda: ours(train, select, judged, options.epochs),
        "LogisticRegression": lambda: peer(train, judged),
    }
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    logits: dict[str, NDArray[np.float32]] = {}
    with threadpool_limits(1):
        small = LabelledFeatures(judged.features[:500], judged.labels[:500])
        ours(small, small, small, 1)  # what is imported on first use is no part of the race
        peer(small, small)
        for _ in range(options.rounds):
            for name, run in rows.items():
                began = time.process_time()
                logits[name] = run()
                seconds[name].append(time.process_time() - began)
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, scikit-learn {sklearn.__version__},"
        " 1 thread"
    )
    print(f"{options.images} x {options.dim} features, judged on {options.judged}\n")
    print(f"{'':<24}{'CPU s':>9}{'accuracy':>10}{'s.e.':>9}{'NLL':>9}")
    for name, values in logits.items():
        found = select_metrics(values, judged.labels)
        error = float(np.sqrt(found.accuracy * (1 - found.accuracy) / options.judged))
        print(
            f"{name:<24}{statistics.median(seconds[name]):>9.2f}{found.accuracy:>10.4f}{error:>9.4f}{found.nll:>9.4f}"
        )
    first, second = (statistics.median(values) for values in seconds.values())
    print(f"\n{'time, head / LogisticRegression':<40}{first / second:.2f}")


if __name__ == "__main__":
    main()
