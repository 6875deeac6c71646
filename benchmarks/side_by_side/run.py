"""Our one command beside the same job by hand (by_hand.py): same images, same roles, same redraws.

`python benchmarks/side_by_side/run.py --cache DIR [--data roadsigns ...] [--splits 6]` measures (a result file for
each data set and split, kept ones are not measured again); `--write` makes side_by_side.md of what is there.

Per split: 40 % of the groups train, 10 % val_select, 50 % held out (35 % val_calib, 15 % val_test). AUROC and AUGRC are
of the held out images. Certified coverage: 100 draws of as many groups as val_calib has, with replacement, from the
held out ones, which are then the population whose risk is the truth (a group counts once, its images share its weight).
Ours: `fit_policy` with its defaults, ordered by val_select. By hand: one random image of each drawn group, then a fixed
sequence of exact tests, zugzwang or MAPIE (benchmarks/contest/methods.py). Wall, CPU and RSS are those of the whole
process, from image files to the certified model, in the first split: later ones read the features that it cached (one
core each: OMP_NUM_THREADS counts for both). Ours writes the report and the bundle too.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stage1 import Scores
from stage1.evaluation import augrc
from stage1.scores import read_role

sys.path.insert(0, str(Path(__file__).parents[1]))
from contest.methods import METHODS, Answers, Rule, ours

from side_by_side.by_hand import fixed_sequence

HERE = Path(__file__).parent
SHARED = HERE.parents[1].parent / "shared" / "data"
SHARES = {"train": 0.4, "val_select": 0.1, "val_calib": 0.35, "val_test": 0.15}
TARGETS = {"roadsigns": 0.05, "potholes": 0.2, "scenes": 0.02}
SCENES = {"videos": 1000, "size": 320, "seed": 0}
BY_HAND = ("zugzwang platt", "mapie multi bonferroni_holm")
CONFIDENCE = 0.95


def table(data: str, split: int, cache: Path) -> Path:
    """A CSV of image, label (0 or 1), group, role: groups at random to roles, stratified by the group's label."""
    folder = cache / data
    folder.mkdir(parents=True, exist_ok=True)
    rows = scenes(folder) if data == "scenes" else photos(data)
    rng = np.random.default_rng(split)
    positive = {row["group"]: False for row in rows} | {row["group"]: True for row in rows if row["label"] == "1"}
    role: dict[str, str] = {}
    for side in (False, True):
        groups = rng.permutation(sorted(group for group, is_one in positive.items() if is_one == side))
        ends = np.round(np.cumsum(list(SHARES.values())) * len(groups)).astype(int)
        for name, start, end in zip(SHARES, [0, *ends], ends, strict=False):
            role |= {str(group): name for group in groups[start:end]}
    path = folder / f"split-{split}.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "label", "group", "role"])
        writer.writeheader()
        writer.writerows({**row, "role": role[row["group"]]} for row in rows)
    return path


def photos(data: str) -> list[dict[str, str]]:
    return listed(SHARED / data / "labels.csv", "roadwork" if data == "roadsigns" else "1")


def scenes(folder: Path) -> list[dict[str, str]]:
    """Generated street scenes as files, made once."""
    from stage1.simulation.scenes import write_roadscenes

    return listed(write_roadscenes(folder / "drawn", **SCENES), "roadwork")


def listed(labels: Path, one: str) -> list[dict[str, str]]:
    with labels.open() as file:
        return [
            {"image": str(labels.parent / row["image"]), "label": str(int(row["label"] == one)), "group": row["group"]}
            for row in csv.DictReader(file)
        ]


def measured(command: list[str], log: Path) -> dict[str, float]:
    """Wall and CPU seconds and peak RSS (MiB) of one process and its children. Raises where it fails."""
    began = time.perf_counter()
    with log.open("w") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (0, 4):  # 4: not certifiable on this one draw; scores and report are there
        raise SystemExit(f"{' '.join(command)}: exit status {child.returncode}\n{log.read_text()[-2000:]}")
    return {
        "wall": time.perf_counter() - began,
        "cpu": usage.ru_utime + usage.ru_stime,
        "rss": usage.ru_maxrss / 1024,
    }


def two_columns(margin: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> Scores:
    logits = np.stack([np.zeros_like(margin), margin], axis=1).astype(np.float64)
    return Scores(logits=logits, labels=labels.astype(np.int64), groups=groups.astype(str))


def by_hand(csv_file: Path, out: Path, target: float) -> tuple[dict[str, float], dict[str, Scores]]:
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(HERE / "by_hand.py"), str(csv_file), str(out), str(target)]
    cost = measured([*command, str(out.parent / "features.npy")], out / "log.txt")
    found = np.load(out / "scores.npz")
    parts = {role: found["role"] == role for role in SHARES}
    columns = ("margin", "label", "group")
    return cost, {role: two_columns(*(found[name][rows] for name in columns)) for role, rows in parts.items()}


def one_command(csv_file: Path, out: Path, target: float) -> tuple[dict[str, float], dict[str, Scores]]:
    command = [sys.executable, "-m", "stage1.cli", "run", "--recipe", "baseline", "--quiet", "--output", str(out)]
    command += [f"data.table={csv_file}", f"risks={{error: {target}}}", f"features.store={out.parent / 'store'}"]
    cost = measured(command, out.with_suffix(".log"))
    return cost, {role: read_role(out, role) for role in SHARES if role != "train"}


def held_out(scores: dict[str, Scores]) -> Scores:
    parts = [scores[role] for role in ("val_calib", "val_test")]
    columns = ("margin", "known_labels", "groups")
    return two_columns(*(np.concatenate([getattr(part, name) for part in parts]) for name in columns))


def auroc(scores: Scores) -> float:
    from scipy.stats import rankdata

    labels, ranks = scores.known_labels, rankdata(scores.margin)
    ones = int(labels.sum())
    return float((ranks[labels == 1].sum() - ones * (ones + 1) / 2) / (ones * (len(labels) - ones)))


def quality(scores: Scores) -> dict[str, float]:
    wrong = (scores.margin > 0) != scores.known_labels
    return {
        "accuracy": float(1 - wrong.mean()),
        "auroc": auroc(scores),
        "augrc": float(augrc(np.abs(scores.margin), wrong.astype(float))),
    }


def truth(rule: Rule | None, population: Scores) -> tuple[float, float]:
    """(coverage, error among answers), each group of the population with weight 1."""
    if rule is None:
        return 0.0, 0.0
    _, place, size = np.unique(population.groups, return_inverse=True, return_counts=True)
    weight = 1 / size[place] / len(size)
    answers = rule(population)
    exits = answers >= 0
    covered = float(weight[exits].sum())
    return covered, float(weight[exits & (answers != population.known_labels)].sum() / max(covered, 1e-12))


def sequence(calib: Scores, target: float) -> Rule | None:
    """The fixed sequence of by_hand.py: one threshold on the larger probability."""
    p = 1 / (1 + np.exp(-calib.margin))
    threshold = fixed_sequence(p, (calib.margin > 0) != calib.known_labels, target)
    return None if threshold is None else partial(surest, threshold)


def surest(threshold: float, scores: Scores) -> Answers:
    p = 1 / (1 + np.exp(-scores.margin))
    return np.where(np.maximum(p, 1 - p) >= threshold, (scores.margin > 0).astype(int), -1)


def certified(select: Scores, pool: Scores, groups: int, target: float, mine: bool, draws: int) -> dict[str, Any]:
    """Method -> coverage and violation of each draw of `groups` groups of the pool."""
    names, place = np.unique(pool.groups, return_inverse=True)
    rows_of = [np.flatnonzero(place == at) for at in range(len(names))]
    found: dict[str, list[tuple[float, float]]] = {}
    for draw in range(draws):
        rng = np.random.default_rng([17, draw])
        drawn = rng.integers(len(names), size=groups)
        if mine:
            rows = np.concatenate([rows_of[at] for at in drawn])
            # A group that is drawn twice is two groups of this sample.
            who = np.concatenate([[f"{k}"] * len(rows_of[at]) for k, at in enumerate(drawn)])
            calib = two_columns(pool.margin[rows], pool.known_labels[rows], who)
            found.setdefault("ours", []).append(truth(ours("error", select, calib, target, CONFIDENCE), pool))
            continue
        rows = np.array([rng.choice(rows_of[at]) for at in drawn])
        calib = two_columns(pool.margin[rows], pool.known_labels[rows], np.arange(groups))
        nothing = two_columns(np.zeros(0), np.zeros(0), np.zeros(0))
        found.setdefault("fixed sequence", []).append(truth(sequence(calib, target), pool))
        for name in BY_HAND:
            rule = METHODS["error", name](nothing, calib, target, CONFIDENCE)
            found.setdefault(name, []).append(truth(rule, pool))
    return {
        name: {
            "coverage": [one for one, _ in values],
            "violation": float(np.mean([risk > target for _, risk in values])),
            "certified": float(np.mean([one > 0 for one, _ in values])),
        }
        for name, values in found.items()
    }


def measure(data: str, split: int, cache: Path, draws: int) -> dict[str, Any]:
    csv_file, target = table(data, split, cache), TARGETS[data]
    uncached = not (cache / data / "features.npy").is_file() and not (cache / data / "store").is_dir()
    result: dict[str, Any] = {
        "uncached": uncached,
        "data": data,
        "split": split,
        "target": target,
        "machine": platform.machine(),
    }
    for name, way in (("by hand", by_hand), ("ours", one_command)):
        cost, scores = way(csv_file, cache / data / f"{name.replace(' ', '-')}-{split}", target)
        pool = held_out(scores)
        groups = len(np.unique(scores["val_calib"].groups))
        made = certified(scores["val_select"], pool, groups, target, name == "ours", draws)
        result[name] = {**quality(pool), **cost, "certified": made, "groups": groups}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for tables, runs and result files")
    parser.add_argument("--data", nargs="*", default=list(TARGETS), choices=list(TARGETS))
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--write", action="store_true", help="make side_by_side.md of the results that are there")
    options = parser.parse_args()
    results = options.cache / "results"
    results.mkdir(parents=True, exist_ok=True)
    if options.write:
        from side_by_side.page import page

        found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
        (HERE.parent / "side_by_side.md").write_text(page(found))
        return
    for split in range(options.splits):
        for data in options.data:
            path = results / f"{data}-{split}.json"
            if not path.is_file():
                path.write_text(json.dumps(measure(data, split, options.cache, options.draws), indent=1))
            print(path.name, flush=True)


if __name__ == "__main__":
    main()
