"""1,000 bootstraps on 100,000 scores: time, peak memory, and the ratio to the plain form in the same process.

    python benchmarks/evaluation.py [--rows 100000] [--resamples 1000]

Plain form: draw rows with replacement, copy them, sort by confidence, join ties, trapezoid; AURC and AUGRC from one
sort. Ours and the plain form take turns; the ratio is per replicate, of the fastest turn of each, in processor time
(both are single-threaded), so that a busy machine does not decide it. Limits: ratio 8 with distinct scores and with
ties, 30 s, 1 GiB.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time

import numpy as np

from stage1.evaluation import bootstrap, compare, evaluate
from stage1.scores import Scores

TURNS = 3
PLAIN_REPLICATES = 10
OUR_REPLICATES = 300


def made_scores(rows: int, seed: int, decimals: int | None) -> Scores:
    """Beta(3.5, 1) for the 30 % positives, Beta(1, 3.5) for the negatives; `decimals` rounds the scores into ties."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.3).astype(np.int64)
    p = np.clip(np.where(labels == 1, rng.beta(3.5, 1, rows), rng.beta(1, 3.5, rows)), 1e-6, 1 - 1e-6)
    margin = np.log(p / (1 - p))
    if decimals is not None:
        margin = margin.round(decimals)
    return Scores(np.stack([np.zeros(rows), margin], axis=1), labels=labels)


def plain_areas(confidence: np.ndarray, residuals: np.ndarray) -> tuple[float, float]:
    order = np.argsort(-confidence, kind="stable")
    ordered = confidence[order]
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), len(ordered) - 1)
    errors, accepted = np.cumsum(residuals[order])[ends], ends + 1
    coverage = np.append(0.0, accepted / len(ordered))
    selective = errors / accepted
    generalised = np.append(0.0, errors / len(ordered))
    return float(np.trapezoid(np.append(selective[0], selective), coverage)), float(np.trapezoid(generalised, coverage))


def plain_bootstrap(confidence: np.ndarray, residuals: np.ndarray, labels: np.ndarray, replicates: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    classes = [np.flatnonzero(labels == label) for label in (0, 1)]
    found = []
    for _ in range(replicates):
        rows = np.concatenate([rng.choice(members, len(members)) for members in classes])
        found.append(plain_areas(confidence[rows], residuals[rows]))
    return np.array(found)


def seconds(call, clock=time.perf_counter) -> float:
    start = clock()
    call()
    return clock() - start


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--resamples", type=int, default=1000)
    given = options.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}, numpy {np.__version__}")
    print(f"{given.rows} rows; memory of the process before: {peak_mib():.0f} MiB")
    metrics = {"aurc": "aurc", "augrc": "augrc"}

    ratios = []
    print(f"\n{'AURC + AUGRC, ms per replicate':34} {'ours':>8} {'plain':>8} {'ratio':>7}")
    for name, decimals in (("distinct scores", None), ("scores in blocks (2 decimals)", 2)):
        scores = made_scores(given.rows, 0, decimals)
        confidence, labels = np.abs(scores.margin), scores.known_labels
        residuals = ((scores.margin > 0) != labels).astype(np.float64)
        columns = {"confidence": confidence, "residuals": residuals, "labels": labels}
        ours, plain = [], []
        for _ in range(TURNS):
            our = lambda c=columns: bootstrap(metrics, **c, n_resamples=OUR_REPLICATES, method="percentile")  # noqa: E731
            ours.append(seconds(our, time.process_time) / OUR_REPLICATES)
            call = lambda c=confidence, r=residuals, y=labels: plain_bootstrap(c, r, y, PLAIN_REPLICATES)  # noqa: E731
            plain.append(seconds(call, time.process_time) / PLAIN_REPLICATES)
        best, other = min(ours) * 1000, min(plain) * 1000
        ratios.append(other / best)
        print(f"{name:34} {best:8.2f} {other:8.2f} {other / best:6.1f}x")

    scores = made_scores(given.rows, 1, None)
    confidence, labels = np.abs(scores.margin), scores.known_labels
    residuals = ((scores.margin > 0) != labels).astype(np.float64)
    columns = {"confidence": confidence, "residuals": residuals, "labels": labels}
    spent = seconds(lambda: bootstrap(metrics, **columns, n_resamples=given.resamples, method="percentile"))
    print(f"\n{given.resamples} bootstraps of AURC + AUGRC: {spent:.1f} s, peak {peak_mib():.0f} MiB")
    noise = np.random.default_rng(2).normal(scale=0.5, size=given.rows)
    other = Scores(scores.logits + np.stack([np.zeros(given.rows), noise], axis=1), labels=labels)
    paired = seconds(lambda: compare(scores, other, n_resamples=given.resamples))
    print(f"paired comparison, {given.resamples} bootstraps of 8 metrics and permutations of 4: {paired:.1f} s")
    leaves = np.abs(scores.margin) > 1
    label = (scores.margin > 0).astype(np.int64)
    asked = {
        "lo": -1.0,
        "hi": 1.0,
        "classes": ["none", "roadwork"],
        "targets": {},
        "policy": "softmax",
        "certified": False,
    }
    total = seconds(lambda: evaluate(scores, leaves, label, **asked, resamples=given.resamples))
    print(f"the whole evaluation, {given.resamples} bootstraps of 11 metrics: {total:.1f} s, peak {peak_mib():.0f} MiB")
    groups = np.arange(given.rows) // 5
    clustered = Scores(scores.logits, labels=labels, groups=groups.astype(np.str_))
    total_groups = seconds(lambda: evaluate(clustered, leaves, label, **asked, resamples=given.resamples))
    print(f"the same in groups of 5, with 8 rates more: {total_groups:.1f} s, peak {peak_mib():.0f} MiB")
    held = min(ratios) >= 8 and max(spent + total, total_groups, paired) < 30 and peak_mib() < 1024
    print(f"limits (8x, 30 s, 1 GiB): {'held' if held else 'BROKEN'}")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
