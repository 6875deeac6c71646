"""`error` from few groups: a fixed sequence by hand and ours on the same scores and draws, and what any test could do.

    python benchmarks/few_groups.py --features DIR/roadsigns/features.npy [--splits 24] [--draws 200]

The road signs as in benchmarks/side_by_side/run.py (same roles of split 0, 1, ..; the features that its by_hand.py
caches). One head for both, logistic regression on train + val_select, C by grouped cross-validation; val_select's own
scores out of fold. A draw: as many groups as val_calib has, with replacement, of the held-out ones, whose risk is the
truth. By hand: one random image of each, fixed sequence from the 59 (29) surest. Ours: order, start and unit from
val_select once for each split, as `fit_policy` fixes them, then the same one image of each group ("group mean": all of
them).

"ceiling": no test with this order of images certifies more often. For a place that answers a share c of the images with
q of them wrong, mix the truth with a share p of groups whose images all are answered and wrong, so that every place is
above the target: p = max (target c - q) / (1 - q - target (1 - c)). Under that mixture a valid test certifies with
probability <= delta; with probability (1 - p)^n no bad group is drawn, and it sees just what the truth shows: so under
the truth it certifies with probability <= delta / (1 - p)^n.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from stage1 import Scores
from stage1.policy.boundary import boundary_of_scores
from stage1.policy.closed_form import Thresholds
from stage1.policy.group_means import Frames, better_unit, choose_by_means, means_path
from stage1.policy.target import Request
from stage1.policy.threshold_choice import rule
from stage1.policy.units import ALL_IMAGES

sys.path.insert(0, str(Path(__file__).parent))
from contest.methods import Rule
from side_by_side.run import sequence, table, truth, two_columns

STRENGTHS = (3e-3, 1e-2, 3e-2, 0.1, 0.3)
DELTA, TARGETS = 0.05, (0.05, 0.1)


class Split(NamedTuple):
    select: Scores
    pool: Scores
    groups: int  # of val_calib


def scored(features: np.ndarray, split: int) -> Split:
    with tempfile.TemporaryDirectory() as folder:
        rows = list(csv.DictReader(table("roadsigns", split, Path(folder)).open()))
    label, group, role = (np.array([row[name] for row in rows]) for name in ("label", "group", "role"))
    y, own = label.astype(int), np.isin(role, ["train", "val_select"])
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    best = None
    for strength in STRENGTHS:
        head = LogisticRegression(C=strength, max_iter=300)
        out = cross_val_predict(head, features[own], y[own], groups=group[own], cv=folds, method="decision_function")
        loss = float(np.logaddexp(0, np.where(y[own] == 1, -out, out)).mean())
        if best is None or loss < best[0]:
            best = loss, head, out
    margin = best[1].fit(features[own], y[own]).decision_function(features)
    margin[own] = best[2]
    parts = [role == "val_select", np.isin(role, ["val_calib", "val_test"])]
    select, pool = (two_columns(margin[part], y[part], group[part]) for part in parts)
    return Split(select, pool, len(np.unique(group[role == "val_calib"])))


def weights(pool: Scores) -> np.ndarray:
    _, place, size = np.unique(pool.groups, return_inverse=True, return_counts=True)
    return 1 / size[place] / len(size)


def ceiling(pool: Scores, groups: int, target: float) -> float:
    """The most that any test could certify along the order of confidence."""
    weight, order = weights(pool), np.argsort(-np.abs(pool.margin), kind="stable")
    covered, wrong = np.cumsum(weight[order]), np.cumsum((weight * ((pool.margin > 0) != pool.known_labels))[order])
    p = float(np.max((target * covered - wrong) / (1 - wrong - target * (1 - covered))))
    return min(DELTA / (1 - p) ** groups, 1.0)


def exits(cuts: Thresholds, pool: Scores) -> np.ndarray:
    as_zero, as_one = cuts.exits(pool.margin)
    return np.where(as_zero, 0, np.where(as_one, 1, -1))


def judged(split: Split, target: float, draws: int) -> tuple[dict[str, np.ndarray], str]:
    """Of each way the (certified, coverage, violation) of each draw, and the unit that auto takes."""
    select, pool, n = split
    request = Request({"error": target}, boundary=boundary_of_scores(select, None))
    score, names = select.margin, np.unique(pool.groups)
    rows_of = [np.flatnonzero(pool.groups == name) for name in names]
    # The signs have ten images each, so every draw has the paths of this one.
    sample = two_columns(pool.margin[: 10 * n], pool.known_labels[: 10 * n], np.repeat(np.arange(n), 10))
    paths = {way: means_path(select, score, sample, request, drawn=way == "group_draws") for way in ALL_IMAGES}
    unit = better_unit(select, score, request, n, paths["group_mean"], 0)
    walk = rule(request, n, score, select.known_labels)
    found: dict[str, list[tuple[float, float]]] = {"by hand": [], "ours, group": [], "group mean": [], "auto": []}
    for draw in range(draws):
        rng = np.random.default_rng([17, draw])
        drawn = rng.integers(len(names), size=n)
        one = np.array([rng.choice(rows_of[at]) for at in drawn])
        calib = two_columns(pool.margin[one], pool.known_labels[one], np.arange(n))
        every = np.concatenate([rows_of[at] for at in drawn])
        who = np.repeat(np.arange(n), [len(rows_of[at]) for at in drawn])
        full = two_columns(pool.margin[every], pool.known_labels[every], who)
        rules: dict[str, Rule | None] = {"by hand": sequence(calib, target)}
        rules["ours, group"] = partial(exits, walk(calib.margin, calib.known_labels).thresholds)
        for way in {"group_mean", unit} - {"group"}:
            rules[way] = partial(
                exits, choose_by_means(Frames.of(full.margin, full, draw, way), request, paths[way]).thresholds
            )
        rules["group mean"] = rules["group_mean"]
        rules["auto"] = rules["ours, group"] if unit == "group" else rules[unit]
        for name, values in found.items():
            values.append(truth(rules[name], pool))
    return {
        name: np.array([(cover > 0, cover, risk > target) for cover, risk in values], dtype=float)
        for name, values in found.items()
    }, unit


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=24)
    parser.add_argument("--draws", type=int, default=200)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # the largest C need not converge to be judged
    features = np.load(options.features).astype(np.float64)
    means: dict[float, list[dict[str, np.ndarray]]] = {target: [] for target in TARGETS}
    for number in range(options.splits):
        split = scored(features, number)
        for target in TARGETS:
            each, unit = judged(split, target, options.draws)
            row = {name: values.mean(axis=0) for name, values in each.items()}
            row["ceiling"] = np.array([ceiling(split.pool, split.groups, target), np.nan, np.nan])
            means[target].append(row)
            print(number, target, unit, {name: values.round(3).tolist() for name, values in row.items()}, flush=True)
    print("\nerror <=  way          certified  coverage  violation   less by hand: certified (se), coverage (se)")
    for target, rows in means.items():
        for name in rows[0]:
            values = np.array([row[name] for row in rows])
            apart = values - np.array([row["by hand"] for row in rows])
            mean, error = apart.mean(axis=0), apart.std(axis=0, ddof=1) / np.sqrt(len(rows))
            print(
                f"{target:<9g} {name:12} {values[:, 0].mean():9.3f} {values[:, 1].mean():9.3f}"
                f" {values[:, 2].mean():10.3f}   {mean[0]:+.3f} ({error[0]:.3f}), {mean[1]:+.3f} ({error[1]:.3f})"
            )


if __name__ == "__main__":
    main()
