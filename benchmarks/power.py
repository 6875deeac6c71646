"""Certified coverage at both ratios (fnr and fpr), 95 %: how much of the images a certificate lets exit, and what it
costs.

    python benchmarks/power.py [--draws 120] [--peer-draws 20] [--seed 8] [--only both|prior]

Gaussian scores (separation 2.5, 30 % positives, 10 % of the labels for selection), and, where ../shared/data is beside
the checkout, real scores of published models as the population (15 % for selection), drawn with replacement: the true
risk and coverage of every fitted policy are then known. "no confidence": the same path, thresholds whose observed risks
meet the targets.

`error` at a stated prior: Gaussian scores whose share of positives is not the one that is stated, certified coverage of
the calibration balance; the labels are those of val_calib, beside 600 or a tenth for selection.

MAPIE's controller on the first --peer-draws of the same draws: Bonferroni and Holm test on all labels, split fixed
sequence learns its order on ours for selection; grids of 12, 22 and 32 quantiles a side (q) and of 10 and 19 on either
side of even odds (s), the best for each method shown (chosen on the result, in its favour). "ours" in that table is on
the same draws.

A section on slices (benchmarks/power_slices.py) stands between the two tables.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from stage1 import Scores, fit_policy
from stage1.commands.audit import Sizes, audit
from stage1.config import load_config

sys.path.insert(0, str(Path(__file__).parent))
from peer import FWER, certified_pair, grids
from populations import ANIMALS, CAT, DOG, SHARED, VEHICLES, cifar, clipped, coco, gaussian, log_odds
from power_slices import section as slices_section

CASES: list[tuple[str, Callable[[], Scores], int, float, float, float]] = [
    # name, population, labels in all, share for selection, target of both ratios, coverage wanted
    ("Gaussian", gaussian, 8_000, 0.10, 0.02, 0.46),
    ("Gaussian", gaussian, 40_000, 0.10, 0.02, 0.55),
    # Small samples; what is wanted is what was asked, and is not reached with a tenth of so few labels set apart.
    ("Gaussian log odds, 3.0", partial(log_odds, 3.0, 0.5), 600, 0.10, 0.05, 0.79),
    ("Gaussian log odds, 2.2", partial(log_odds, 2.2, 0.4), 1_500, 0.10, 0.05, 0.39),
    ("Gaussian log odds, 2.5", partial(log_odds, 2.5, 0.3), 600, 0.10, 0.05, 0.29),
    ("CIFAR-10 cat / dog", partial(cifar, CAT, DOG), 1_300, 0.15, 0.05, 0.71),
    ("COCO person", coco, 3_200, 0.15, 0.05, 0.985),
    ("COCO person", coco, 3_200, 0.15, 0.02, 0.91),
    ("CIFAR-10 animal / vehicle", partial(cifar, VEHICLES, ANIMALS), 6_000, 0.15, 0.01, 0.955),
    ("the same, clipped at 1e-7", partial(clipped, partial(cifar, VEHICLES, ANIMALS)), 6_000, 0.15, 0.01, 0.955),
]

PRIORS: list[tuple[float, float, float, float, Sizes, float]] = [
    # separation, share of positives in calibration, stated share, target of error, images, coverage wanted
    (2.5, 0.40, 0.60, 0.03, Sizes(150, 1_350), 0.53),
    (3.0, 0.90, 0.50, 0.02, Sizes(600, 3_000), 0.45),
    (3.0, 0.85, 0.50, 0.02, Sizes(600, 2_000), 0.45),
    (2.5, 0.90, 0.50, 0.05, Sizes(600, 1_000), 0.15),
]


def exits(population: Scores, lo: float | None, hi: float | None) -> tuple[float, float]:
    """(coverage, largest of the two ratios) of a pair on the population; None: that side never exits."""
    score, labels = population.margin, population.known_labels
    as_0 = score < (-np.inf if lo is None else lo)
    as_1 = score > (np.inf if hi is None else hi)
    fnr, fpr = (
        float((wrong & own).sum() / max((own & (as_0 | as_1)).sum(), 1))
        for wrong, own in ((as_0, labels == 1), (as_1, labels == 0))
    )
    return float((as_0 | as_1).mean()), max(fnr, fpr)


def beside(
    population: Scores, sizes: Sizes, target: float, draws: int, seed: int
) -> dict[str, tuple[float, float, str]]:
    """method -> (mean coverage, violation, its best grid) on the draws of `audit` with this seed."""
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, str], list[tuple[float, bool]]] = {}
    for _ in range(draws):
        # As the audit draws: val_select, then val_calib.
        select, calib = (
            population.take(rng.integers(0, len(population), size)) for size in (sizes.select, sizes.calib)
        )
        parts = (select.margin, select.known_labels), (calib.margin, calib.known_labels)
        policy = fit_policy("softmax", select=select, calib=calib, risks={"fnr": target, "fpr": target})
        pairs: dict[tuple[str, str], tuple[float | None, float | None] | None] = {
            ("ours", ""): policy.margin_thresholds
        }
        pairs |= {
            (fwer, grid): certified_pair(*parts, points, target, fwer)
            for grid, points in grids(*parts[0]).items()
            for fwer in FWER
        }
        for method, pair in pairs.items():
            coverage, risk = exits(population, *(pair or (None, None)))
            found.setdefault(method, []).append((coverage, risk > target))
    means = {method: np.mean(rows, axis=0) for method, rows in found.items()}
    best = {}
    for name in ("ours", *FWER):
        method = max((method for method in means if method[0] == name), key=lambda method: means[method][0])
        best[name] = (float(means[method][0]), float(means[method][1]), method[1])
    return best


def at_priors(draws: int, seed: int) -> None:
    """Print a row for each of PRIORS."""
    print(f"\nerror at a stated share of positives, {draws} draws each, 95 %, seed {seed}")
    print(
        f"{'separation':>10}{'share':>7}{'stated':>8}{'target':>8}{'images':>12}{'coverage':>10}{'wanted':>8}", end=""
    )
    print(f"{'certified':>11}{'violation':>11}")
    for separation, share, stated, target, sizes, wanted in PRIORS:
        overrides = [f"risks={{error: {target}}}", f"target_prior={stated}"]
        config, _ = load_config(overrides=overrides, environment={})
        found = audit(gaussian(separation, share), config, draws=draws, sizes=sizes, seed=seed)
        images = f"{sizes.select} + {sizes.calib}"
        print(
            f"{separation:>10g}{share:>7g}{stated:>8g}{target:>8g}{images:>12}{found['coverage']:>10.3f}{wanted:>8g}"
            f"{found['certified']:>11.3f}{found['violation']:>11.3f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=120)
    parser.add_argument("--peer-draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=8)
    parser.add_argument("--only", choices=("both", "prior"))
    arguments = parser.parse_args()
    if arguments.only != "both":
        at_priors(arguments.draws, arguments.seed)
    if arguments.only != "prior":
        both_ratios(arguments)


def both_ratios(arguments: argparse.Namespace) -> None:
    """Print a row for each of CASES, and the same beside MAPIE's controller."""
    cases = [case for case in CASES if case[0].startswith("Gaussian") or SHARED.is_dir()]
    if len(cases) < len(CASES):
        print("real scores are skipped: ../shared/data is not beside this checkout")
    populations = {make: make() for _, make, *_ in cases}
    print(f"{platform.machine()}, {arguments.draws} draws each, 95 %, seed {arguments.seed}")
    print(
        f"{'scores':<27}{'labels':>7}{'target':>8}{'coverage':>10}{'wanted':>8}{'certified':>11}{'violation':>11}"
        f"{'no confidence: coverage, violation':>36}"
    )
    for name, make, labels, share, target, wanted in cases:
        config, _ = load_config(overrides=[f"risks={{fnr: {target}, fpr: {target}}}"], environment={})
        sizes = Sizes(int(labels * share), labels - int(labels * share))
        found = audit(populations[make], config, draws=arguments.draws, sizes=sizes, seed=arguments.seed)
        print(
            f"{name:<27}{labels:>7}{target:>8g}{found['coverage']:>10.3f}{wanted:>8g}"
            f"{found['certified']:>11.3f}{found['violation']:>11.3f}"
            f"{found['plug_in_coverage']:>25.3f}{found['plug_in_violation']:>11.3f}",
            flush=True,
        )
    slices_section(arguments.draws, arguments.seed)
    if arguments.peer_draws < 1 or find_spec("mapie") is None:
        print("MAPIE's controller is left out")
        return
    print(f"\nbeside MAPIE's controller, the first {arguments.peer_draws} of these draws: coverage (violation; grid)")
    print(f"{'scores':<27}{'labels':>7}{'target':>8}{'ours':>16}" + "".join(f"{name:>26}" for name in FWER))
    for name, make, labels, share, target, _ in cases:
        sizes = Sizes(int(labels * share), labels - int(labels * share))
        best = beside(populations[make], sizes, target, arguments.peer_draws, arguments.seed)
        shown = [f"{cover:.3f} ({bad:.2f}{f'; {grid}' if grid else ''})" for cover, bad, grid in best.values()]
        print(
            f"{name:<27}{labels:>7}{target:>8g}{shown[0]:>16}" + "".join(f"{text:>26}" for text in shown[1:]),
            flush=True,
        )


if __name__ == "__main__":
    main()
