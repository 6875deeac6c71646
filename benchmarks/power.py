"""Certified coverage at both ratios (fnr and fpr), 95 %: how much of the images a certificate lets exit, and what it costs.

    python benchmarks/power.py [--draws 120]

Gaussian scores (separation 2.5, 30 % positives, 10 % of the labels for selection), and, where ../shared/data is beside the
checkout, real scores of published models as the population (15 % for selection), drawn with replacement: the true risk and
coverage of every fitted policy are then known. "no confidence": the same path, thresholds whose observed risks meet the targets.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from pathlib import Path

import numpy as np
from scipy import special

from stage1 import Scores
from stage1.config import load_config
from stage1.pipeline.audit import Sizes, audit
from stage1.scores import from_probabilities

SHARED = Path(__file__).parents[2] / "shared" / "data" / "scores"
GAUSSIAN = 400_000  # the population: large enough that drawing from it is drawing from the distribution


def gaussian() -> Scores:
    rng = np.random.default_rng(0)
    labels = (rng.random(GAUSSIAN) < 0.3).astype(np.int64)
    margin = rng.normal(size=GAUSSIAN) + 2.5 * labels
    return Scores(logits=np.stack([np.zeros(GAUSSIAN), margin], axis=1), labels=labels)


def coco() -> Scores:
    with np.load(SHARED / "coco_person_tresnetxl.npz") as archive:
        return from_probabilities(archive["prob"], labels=archive["label"])


def cifar(positive: list[int], negative: list[int]) -> Scores:
    with np.load(SHARED / "cifar10_wideresnet16_4.npz") as archive:
        probabilities, truth = archive["predictions"].astype(float), archive["ground_truth"].ravel()
    rows = np.isin(truth, positive + negative)
    logs = np.log(np.maximum(probabilities[rows], 1e-300))
    logits = np.stack([special.logsumexp(logs[:, side], axis=1) for side in (negative, positive)], axis=1)
    return Scores(logits=logits, labels=np.isin(truth[rows], positive).astype(np.int64))


CASES: list[tuple[str, Callable[[], Scores], int, float, float, float]] = [
    # name, population, labels in all, share for selection, target of both ratios, coverage wanted
    ("Gaussian", gaussian, 8_000, 0.10, 0.02, 0.46),
    ("Gaussian", gaussian, 40_000, 0.10, 0.02, 0.55),
    ("CIFAR-10 cat / dog", lambda: cifar([5], [3]), 1_300, 0.15, 0.05, 0.71),
    ("COCO person", coco, 3_200, 0.15, 0.05, 0.985),
    ("COCO person", coco, 3_200, 0.15, 0.02, 0.91),
    ("CIFAR-10 animal / vehicle", lambda: cifar([2, 3, 4, 5, 6, 7], [0, 1, 8, 9]), 6_000, 0.15, 0.01, 0.955),
]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=120)
    draws = parser.parse_args().draws
    print(f"{platform.machine()}, {draws} draws each, 95 %")
    print(
        f"{'scores':<27}{'labels':>7}{'target':>8}{'coverage':>10}{'wanted':>8}{'violation':>11}{'no confidence: coverage, violation':>36}"
    )
    for name, population, labels, share, target, wanted in CASES:
        if name != "Gaussian" and not SHARED.is_dir():
            print(f"{name:<27}skipped: ../shared/data is not beside this checkout")
            continue
        config, _ = load_config(overrides=[f"risks={{fnr: {target}, fpr: {target}}}"], environment={})
        sizes = Sizes(int(labels * share), labels - int(labels * share))
        found = audit(population(), config, draws=draws, sizes=sizes, seed=8)
        print(
            f"{name:<27}{labels:>7}{target:>8g}{found['coverage']:>10.3f}{wanted:>8g}{found['violation']:>11.3f}"
            f"{found['plug_in_coverage']:>25.3f}{found['plug_in_violation']:>11.3f}"
        )


if __name__ == "__main__":
    main()
