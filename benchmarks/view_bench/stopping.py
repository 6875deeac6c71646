"""The rule of adaptive views on train images alone: what it saves and what it costs, before any other image is looked
at.

    cd benchmarks && python -m view_bench.stopping --table SCENES/labels.csv --cache ../runs/views [--draws 16] [--pools
    topk:3 ...]

Log-odds of the views of each train image come from a head (trained through log-sum-exp) that has not seen its fold.
They are cut, whole groups, into as many groups as val_select has and fresh images, --draws times; the sequence is
fitted on the first. On the fresh images a certificate stands on as many groups as val_calib has, drawn from them with
replacement, --certificates times, for the stopped score and for the pool of all views alike; coverage is of all fresh
images. Draws share images: the spread over them describes, it is no standard error.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage1.calibration.folds import fold_of_rows
from stage1.policy import fit_policy
from stage1.runtime.crops import ViewPolicy
from stage1.scores import Scores
from stage1.views import aggregator, as_logits, fit_sequence
from stage1.views.adaptive import TOLERANCE
from view_bench.features import view_features
from view_bench.heads import train

TEN = ViewPolicy(grid=(3, 3))
SCENES = ("split.method=hash", "split.fractions={train: 0.4, val_select: 0.1, val_calib: 0.35, val_test: 0.15}")
RISKS = {"fnr": 0.02, "false_exit_rate": 0.05}
FOLDS = 5


@dataclass(frozen=True)
class Images:
    """Margins of every view, float [N, V], with label and group."""

    margins: NDArray[np.float64]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]

    def take(self, rows: NDArray[np.bool_]) -> Images:
        return Images(self.margins[rows], self.labels[rows], self.groups[rows])

    @property
    def logits(self) -> NDArray[np.float64]:
        return np.stack([-self.margins / 2, self.margins / 2], axis=2)


def held_out(features: NDArray[np.float32], labels: NDArray[np.int64], groups: NDArray[np.str_]) -> Images:
    keys = Scores(logits=np.zeros((len(labels), 2)), labels=labels, groups=groups)
    fold = fold_of_rows(keys, FOLDS, 1)
    margins = np.empty(features.shape[:2])
    for part in range(int(fold.max()) + 1):
        x, y = features[fold != part], labels[fold != part]
        head = train(x, y, "mil:lse:1", 1e-3, train(x, y, "views", 1e-3))
        margins[fold == part] = head.margins(features[fold == part])
    return Images(margins, labels, groups)


def one_draw(
    images: Images, pool: str, tolerance: float, select_groups: int, calib_groups: int, draw: int, certificates: int
) -> tuple[float, float, float]:
    """(views, coverage lost against all views, coverage with all views) of fresh images."""
    names, place = np.unique(images.groups, return_inverse=True)
    chosen = (np.random.default_rng(draw).permutation(len(names)) < select_groups)[place]
    select, fresh = images.take(chosen), images.take(~chosen)
    plan = fit_sequence(
        select.logits,
        select.labels,
        select.groups,
        TEN,
        pool,
        risks=RISKS,
        calibration_units=calib_groups,
        tolerance=tolerance,
    )
    score, used = plan.run(fresh.margins)
    both = as_logits(score), aggregator(pool, TEN, select.logits, select.labels)(fresh.logits)
    drawn = [resampled(fresh.groups, calib_groups, (7, draw, number)) for number in range(certificates)]
    reached = [np.mean([certified(logits, fresh.labels, *one) for one in drawn]) for logits in both]
    return float(used.mean()), float(reached[1] - reached[0]), float(reached[1])


def resampled(
    groups: NDArray[np.str_], count: int, seed: tuple[int, ...]
) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """(rows, group of each) of `count` groups drawn with replacement; a group drawn twice is two."""
    names, place = np.unique(groups, return_inverse=True)
    rows_of = [np.flatnonzero(place == index) for index in range(len(names))]
    picked = np.random.default_rng(seed).integers(0, len(names), count)
    rows = np.concatenate([rows_of[index] for index in picked])
    keys = np.repeat(np.arange(count), [len(rows_of[index]) for index in picked])
    return rows, keys.astype(np.str_)


def certified(
    logits: NDArray[np.float64], labels: NDArray[np.int64], rows: NDArray[np.int64], keys: NDArray[np.str_]
) -> float:
    calib = Scores(logits=logits[rows], labels=labels[rows], groups=keys)
    return fit_policy("softmax", calib=calib, risks=RISKS).decide(Scores(logits=logits, labels=labels)).coverage


def table(
    images: Images,
    pools: Sequence[str],
    tolerances: Sequence[float],
    draws: int,
    sizes: tuple[int, int],
    certificates: int,
) -> None:
    print("| pool | tolerance | views (sd over draws) | coverage, all views | lost (sd) | most lost |")
    print("|---|---|---|---|---|---|")
    for pool in pools:
        for tolerance in tolerances:
            found = np.array([one_draw(images, pool, tolerance, *sizes, draw, certificates) for draw in range(draws)])
            views, lost, everything = found.T
            print(
                f"| {pool} | {tolerance:g} | {views.mean():.2f} ({views.std():.2f}) | {everything.mean():.3f} "
                f"| {lost.mean():+.4f} ({lost.std():.3f}) | {lost.max():+.3f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/views"))
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--certificates", type=int, default=6)
    parser.add_argument("--pools", nargs="+", default=["topk:3", "lse:1", "noisy_or", "learned"])
    parser.add_argument("--tolerances", nargs="+", type=float, default=[TOLERANCE])
    given = parser.parse_args()
    made = view_features(given.table, TEN, given.cache / "scenes", SCENES)
    sizes = {role: len(np.unique(made.table.groups[made.table.roles == role])) for role in ("val_select", "val_calib")}
    rows = made.table.roles == "train"
    images = held_out(made.features[rows], made.table.labels[rows], made.table.groups[rows])
    table(
        images,
        given.pools,
        given.tolerances,
        given.draws,
        (sizes["val_select"], sizes["val_calib"]),
        given.certificates,
    )


if __name__ == "__main__":
    main()
