"""One view or ten: what tiles, each way of pooling them, heads trained through the pool, and adaptive views are worth.

    python benchmarks/views.py --data scenes --table SCENES/labels.csv --cache runs/views [--redraws 40] [--write]
    python benchmarks/views.py --data potholes potholes-iid --table POTHOLES/labels.csv --cache runs/views [--write]

Views: the whole image and 3 x 3 tiles with 12 % overlap, features of the embedded backbone, made once
(view_bench/features.py). Heads are linear (view_bench/heads.py). Everything is chosen on val_select: each row's ridge
by the NLL out of fold, the chosen row by AUGRC, the sequence of the adaptive rows. Then thresholds are fitted and
certified on val_calib by `fit_policy`, and all is measured on val_test.
AUGRC is of the score after the calibration map of val_select. Intervals are 95 %, groups resampled whole, differences
paired; --redraws cuts val_calib + val_test anew into parts of the same size, whole groups: what another calibration set
would have made of the coverage (their 2.5 % and 97.5 % points describe, they are no confidence interval).

scenes: split by hash 40/10/35/15. potholes: split `balanced`, 6 to 8 road segments a role, images counted as
independent (nominal).
potholes-iid: images dealt at random, 40/10/33/17 (--training moves the first share), --splits times; means over the
splits.
--write puts each table into benchmarks/views.md in place of one with the same heading; --figure FILE.png draws the cost
curve.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from view_bench.features import view_features
from view_bench.heads import RIDGES, TRAINED, LinearHead, train
from view_bench.learned import HEADS, inputs, trained_logits
from view_bench.measures import Measured, Row, means_over_splits, measure, paired
from view_bench.tables import draw, iid_table, paired_lines, table, write
from view_bench.timing import Timing, timing

from stage1.calibration import fit_map
from stage1.calibration.folds import fold_of_rows
from stage1.evaluation.probability import nll_rows
from stage1.runtime.crops import ViewPolicy
from stage1.scores import Scores
from stage1.views import Pooled, ViewsDocument, aggregator, fit_sequence

TEN = ViewPolicy(grid=(3, 3))
ROLES = ("train", "val_select", "val_calib", "val_test")
POOLS = ("mean", "topk:3", "lse:8", "noisy_or", "max", "learned")
TOLERANCES = (0.1, 0.3, 0.5, 0.7, 0.9)
TOLERANCE = 0.7  # that of the package
SCENES = ("split.method=hash", "split.fractions={train: 0.4, val_select: 0.1, val_calib: 0.35, val_test: 0.15}")
TARGETS: dict[str, tuple[dict[str, float], bool]] = {
    "scenes": ({"fnr": 0.02, "false_exit_rate": 0.05}, False),
    "potholes": ({"fnr": 0.20, "false_exit_rate": 0.20}, True),
    "potholes-iid": ({"fnr": 0.10, "false_exit_rate": 0.10}, True),
}


@dataclass(frozen=True)
class Problem:
    """Features of all views [N, V, D] with the role of each image."""

    name: str
    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    roles: NDArray[np.str_]
    risks: Mapping[str, float]
    assume_iid: bool

    def rows(self, role: str) -> NDArray[np.int64]:
        return np.flatnonzero(self.roles == role)

    def scores(self, role: str, logits: NDArray[np.float64]) -> Scores:
        rows = self.rows(role)
        return Scores(
            logits=logits, labels=self.labels[rows], groups=None if self.name == "potholes-iid" else self.groups[rows]
        )


# ---- from features to rows -----------------------------------------------------------------------------------------


def rows_of(data: Problem) -> list[Row]:
    """The single view first; then each head with each pool, the ridge of each by NLL out of fold on val_select."""
    x, y = data.features[data.rows("train")], data.labels[data.rows("train")]
    found: dict[tuple[str, str], Row] = {}
    for ridge in RIDGES:
        start = None
        for how in TRAINED:
            head = train(x, y, how, ridge, start if how.startswith("mil") else None)
            start = head if how == "views" else start
            logits = all_logits(data, head)
            for pool in ("whole", *POOLS) if how == "whole" else POOLS:
                row = pooled(data, how, pool, logits, head, ridge)
                if (how, pool) not in found or row.loss < found[how, pool].loss:
                    found[how, pool] = row
    mil = [
        min((found[how, pool] for how in TRAINED if how.startswith("mil")), key=lambda row: row.loss) for pool in POOLS
    ]
    return [found["whole", "whole"], *(found[how, pool] for how in ("whole", "views") for pool in POOLS), *mil]


def all_logits(data: Problem, head: LinearHead) -> dict[str, NDArray[np.float64]]:
    margins = {role: head.margins(data.features[data.rows(role)]) for role in ROLES[1:]}
    return {role: np.stack([-m / 2, m / 2], axis=2) for role, m in margins.items()}


def pooled(
    data: Problem, how: str, pool: str, logits: Mapping[str, NDArray[np.float64]], head: LinearHead, ridge: float
) -> Row:
    made = aggregator(pool, TEN, logits["val_select"], data.labels[data.rows("val_select")])
    select, calib, test = (data.scores(role, made(logits[role])) for role in ROLES[1:])

    def fitted_on(rows: NDArray[np.bool_]) -> Callable[[NDArray[np.float64]], NDArray[np.float64]]:
        return aggregator(pool, TEN, logits["val_select"][rows], select.known_labels[rows])

    unseen = out_of_fold(select, logits["val_select"], fitted_on)
    views = 1.0 if pool == "whole" else float(TEN.count)
    return Row(how, pool, ridge, unseen, select, calib, test, views, nll(unseen), head, ViewsDocument(TEN, made))


def out_of_fold(select: Scores, logits: NDArray[np.float64], fitted_on: Callable[..., Any]) -> Scores:
    """The scores of val_select after a Platt map, aggregator and map fitted on other folds than the row's."""
    fold = fold_of_rows(select, 5, 0)
    unseen = np.empty_like(select.logits)
    for part in range(int(fold.max()) + 1):
        inside = fold != part
        made = fitted_on(inside)
        fitted = fit_map("platt", replace(select.take(inside), logits=made(logits[inside])))
        unseen[~inside] = fitted.log_probabilities(made(logits[~inside]))
    return replace(select, logits=unseen)


def nll(scores: Scores) -> float:
    return float(nll_rows(scores.logits, scores.known_labels).mean())


def probes(data: Problem) -> list[Row]:
    """What orientation came from: one linear probe on pooled features, of the tiles alone and of whole, largest and
    mean.
    """
    whole, tiles = data.features[:, :1], data.features[:, 1:]
    mean = tiles.mean(axis=1, keepdims=True)
    known = {
        "mean of tiles": mean,
        "whole, max, mean": np.concatenate([whole, tiles.max(axis=1, keepdims=True), mean], axis=2),
    }
    found = []
    for name, features in known.items():
        rows = []
        for ridge in RIDGES:
            head = train(features[data.rows("train")], data.labels[data.rows("train")], "whole", ridge)
            made = {role: head.margins(features[data.rows(role)])[:, 0] for role in ROLES[1:]}
            select, calib, test = (data.scores(role, np.stack([-m / 2, m / 2], axis=1)) for role, m in made.items())
            unseen = out_of_fold(select, select.logits, lambda rows: lambda logits: logits)
            rows.append(
                Row("probe", name, ridge, unseen, select, calib, test, float(TEN.count), nll(unseen), head, None)
            )
        found.append(min(rows, key=lambda row: row.loss))
    return found


def of_package(data: Problem, base: Row) -> list[Row]:
    """Heads of the package's trainer: on the whole view, and on pooled features of all (`views.train=pooled`)."""
    found = []
    for how, rows in inputs(data.features, TEN).items():
        for name, config in HEADS.items():
            if how == "whole" and config.members > 1:
                continue
            made = trained_logits(rows, data.labels, data.rows("train"), data.rows("val_select"), config)
            select, calib, test = (data.scores(role, made[data.rows(role)]) for role in ROLES[1:])
            unseen = out_of_fold(select, select.logits, lambda rows: lambda logits: logits)
            frozen = ViewsDocument(TEN, Pooled()) if how == "pooled" else None
            views = float(TEN.count) if how == "pooled" else 1.0
            found.append(
                Row(
                    f"{how}, {name}",
                    how,
                    float("nan"),
                    unseen,
                    select,
                    calib,
                    test,
                    views,
                    nll(unseen),
                    base.head,
                    frozen,
                )
            )
    return found


def adaptive(data: Problem, base: Row, tolerance: float) -> Row:
    """A row with its views looked at in turn."""
    logits = all_logits(data, base.head)
    labels = data.labels[data.rows("val_select")]
    units = len(data.rows("val_calib")) if data.assume_iid else len(np.unique(data.groups[data.rows("val_calib")]))
    plan = fit_sequence(
        logits["val_select"],
        labels,
        base.select.groups,
        TEN,
        base.pool,
        risks=data.risks,
        calibration_units=units,
        tolerance=tolerance,
    )
    assert base.frozen is not None
    frozen = ViewsDocument(TEN, base.frozen.aggregator, plan)
    made = {role: frozen.aggregate(logits[role]) for role in ROLES[1:]}
    select, calib, test = (data.scores(role, made[role][0]) for role in ROLES[1:])
    return replace(
        base,
        pool=f"adaptive, {base.pool}",
        unseen=select,
        select=select,
        calib=calib,
        test=test,
        views=float(made["val_test"][1].mean()),
        frozen=frozen,
    )


# ---- data sets -----------------------------------------------------------------------------------------------------


def loaded(name: str, table_file: Path, cache: Path, seconds: float) -> Problem:
    kind = name.removesuffix("-iid")
    made = view_features(table_file, TEN, cache / kind, SCENES if kind == "scenes" else (), seconds=seconds)
    risks, assume_iid = TARGETS[name]
    return Problem(name, made.features, made.table.labels, made.table.groups, made.table.roles, risks, assume_iid)


def dealt(data: Problem, seed: int, training: float) -> Problem:
    """The same images dealt at random: `training`, a tenth to choose on, a third to certify, the rest to look at."""
    place = np.random.default_rng(seed).permutation(len(data.labels)) / len(data.labels)
    ends = np.cumsum([training, 0.1, 1 / 3])
    return replace(data, roles=np.array(ROLES)[np.searchsorted(ends, place, side="right")])


def of_split(data: Problem, redraws: int, times: Timing | None, tolerances: Sequence[float]) -> Measured:
    rows = rows_of(data)
    chosen = min(range(len(rows)), key=lambda place: rows[place].augrc_select)
    if data.name != "scenes":
        rows += probes(data)
    rows += of_package(data, rows[0])
    if rows[chosen].pool != "whole":
        rows += [adaptive(data, rows[chosen], tolerance) for tolerance in tolerances]
    return measure(rows, chosen, data.risks, data.assume_iid, redraws, times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=tuple(TARGETS), default=["scenes"])
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/views"))
    parser.add_argument("--redraws", type=int, default=40)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--first-split", type=int, default=0, help="seed of the first random deal")
    parser.add_argument("--training", type=float, default=0.4, help="share of images dealt to train (potholes-iid)")
    parser.add_argument(
        "--seconds", type=float, default=1e9, help="of feature extraction in this call; the next one goes on"
    )
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    for name in given.data:
        data = loaded(name, given.table, given.cache, given.seconds)
        if name == "potholes-iid":
            seeds = range(given.first_split, given.first_split + given.splits)
            splits = [of_split(dealt(data, seed, given.training), 0, None, (TOLERANCE,)) for seed in seeds]
            name += "" if given.training == 0.4 else f"-{100 * given.training:.0f}"
            text = iid_table(name, means_over_splits(splits), data.risks, given.splits, given.training)
            text += "\n".join(["", *paired_lines(paired(splits, "pooled, mlp / pooled")), ""])
        else:
            times = timing(given.cache / name.removesuffix("-iid"), TEN)
            found = of_split(data, given.redraws, times, TOLERANCES if given.figure else (TOLERANCE,))
            text = table(
                name,
                found,
                {role: (len(data.rows(role)), len(np.unique(data.groups[data.rows(role)]))) for role in ROLES},
            )
            if given.figure:
                draw(found, given.figure)
        print(text, flush=True)
        if given.write:
            write(name, text)


if __name__ == "__main__":
    main()
