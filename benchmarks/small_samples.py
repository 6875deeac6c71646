"""Few labels: certified coverage at both ratios, beside a walk along the path of the truth on the same draws.

    python benchmarks/small_samples.py [--draws 120] [--seed 8]

The cases of benchmarks/power.py whose scores are log odds. The path of the truth has equal ratios in the distribution
that the scores come from, and starts where 2,000 samples of that distribution reach furthest: no label is spent on
selection that it needs, but it tests the same calibration images.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy.special import logit, ndtr, ndtri

from stage1 import fit_policy
from stage1.policy.counted_start import best_counts, walk_from_count
from stage1.policy.stepping import simulated_exits

sys.path.insert(0, str(Path(__file__).parent))
from populations import log_odds
from power import CASES, exits

DELTA = 0.05


def true_path(separation: float, share: float, target: float) -> tuple[np.ndarray, np.ndarray]:
    """(lo, hi) of the raw score, float [T] each: both ratios the same share of the target, up to even odds."""
    ratios = np.minimum(np.geomspace(0.001, 40, 480) * target, 0.999)
    odds = ratios / (1 - ratios)
    even = separation / 2 - logit(share) / separation
    lo = hi = np.full(len(ratios), even)
    for _ in range(400):
        lo = np.minimum(even, separation + ndtri(np.minimum(odds * ndtr(separation - hi), 1 - 1e-12)))
        hi = np.maximum(even, -ndtri(np.minimum(odds * ndtr(lo), 1 - 1e-12)))
    return np.maximum.accumulate(lo), np.minimum.accumulate(hi)


def beside_truth(separation: float, share: float, labels: int, part: float, target: float, draws: int, seed: int):
    """Coverage of ours and along the true path, float [draws, 2], on the draws of benchmarks/power.py."""
    targets, n_select = {"fnr": target, "fpr": target}, int(labels * part)
    n = labels - n_select
    lo, hi = true_path(separation, share, target)
    below1, below0 = (ndtr(lo - separation), ndtr(hi - separation)), (ndtr(lo), ndtr(hi))
    samples = simulated_exits(below1, below0, share, n, 2000, np.random.default_rng(5))
    exits1, exits0 = (under[0] + 1 - under[1] for under in (below1, below0))
    start = best_counts(
        {name: samples.counts(name) for name in targets},
        np.zeros(len(lo), np.bool_),
        share * exits1 + (1 - share) * exits0,
        np.full(2000, 1 / 2000),
        targets,
        DELTA,
    )
    population, rng, found = log_odds(separation, share), np.random.default_rng(seed), []
    as_log_odds = [separation * (cut - separation / 2) + logit(share) for cut in (lo, hi)]
    for _ in range(draws):
        select, calib = (population.take(rng.integers(0, len(population), size)) for size in (n_select, n))
        ours = fit_policy("softmax", select=select, calib=calib, risks=targets).margin_thresholds
        walk = walk_from_count(*as_log_odds, calib.margin, calib.known_labels, targets, start.forgiven, DELTA)
        found.append([exits(population, *pair)[0] for pair in (ours, walk.pair or (None, None))])
    return np.array(found)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=120)
    parser.add_argument("--seed", type=int, default=8)
    arguments = parser.parse_args()
    print(f"{arguments.draws} draws, seed {arguments.seed}, 95 %: coverage (se)")
    print(f"{'separation, share':<20}{'labels':>7}{'ours':>16}{'path of the truth':>20}{'ahead by':>16}")
    for name, make, labels, part, target, _ in CASES:
        if not name.startswith("Gaussian log odds"):
            continue
        separation, share = make.args  # type: ignore[attr-defined]
        rows = beside_truth(separation, share, labels, part, target, arguments.draws, arguments.seed)
        cells = [
            f"{each.mean():.3f} ({each.std() / np.sqrt(len(each)):.3f})" for each in (*rows.T, rows[:, 1] - rows[:, 0])
        ]
        print(f"{f'{separation:g}, {share:g}':<20}{labels:>7}{cells[0]:>16}{cells[1]:>20}{cells[2]:>16}", flush=True)


if __name__ == "__main__":
    main()
