"""Potholes dealt at random: a fine-tuned backbone that sees the whole photo at 448 px, against views through frozen
features on the same deals.

    python benchmarks/tuned.py --table POTHOLES/labels.csv --cache runs/views --output runs/tuned [--first-split 200]
    [--splits 5] [--training 0.5]

Each deal is that of benchmarks/views.py --data potholes-iid with the same seed. The fine-tuned arm is `stage1 run
--recipe finetune` (last three stages of the embedded network) on the four parts as role tables, as a user would run it;
its coverage on val_test is read from evaluation.json. The other rows are those of views.py. Differences are paired by
deal; standard errors over deals. A finished deal is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stage1.data.table import SampleTable
from views import ROLES, Problem, dealt, loaded, of_split

OTHERS = (
    "whole / whole",
    "mil / mean",
    "probe / mean of tiles",
    "probe / whole, max, mean",
    "pooled, mlp / pooled",
    "pooled, 5 mlps / pooled",
)
SETTINGS = ("backbone.input_size=448", "images.epochs=5", "images.batch_size=16")


def tuned(data: Problem, images: Sequence[str], folder: Path) -> dict[str, float]:
    """Coverage and risks on val_test of one CLI run on the deal."""
    found = folder / "run" / "evaluation.json"
    if not found.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for role in ROLES:
            with open(folder / f"{role}.csv", "w", newline="", encoding="utf-8") as handle:
                table = csv.writer(handle)
                table.writerow(["image", "label"])
                table.writerows([images[row], int(data.labels[row])] for row in data.rows(role))
        tables = ", ".join(f"{role}: {folder.resolve() / role}.csv" for role in ROLES)
        risks = ", ".join(f"{risk}: {level:g}" for risk, level in data.risks.items())
        command = [
            str(Path(sys.executable).with_name("stage1")),
            "run",
            "--recipe",
            "finetune",
            "--output",
            str(folder / "run"),
            "data.source=auto",
            f"data.role_tables={{{tables}}}",
            "data.near_duplicates=false",
            f"risks={{{risks}}}",
            "assume_iid=true",
            *SETTINGS,
        ]
        began = time.perf_counter()
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if not found.is_file():
            raise SystemExit(f"{' '.join(command)}: exit {done.returncode}: {done.stderr[-2000:]}")
        print(f"  fine-tuned in {time.perf_counter() - began:.0f} s", flush=True)
    document = json.loads(found.read_text(encoding="utf-8"))
    return {
        "coverage": document["coverage"]["overall"]["value"],
        **{risk: document["risks"][risk]["observed"] for risk in data.risks},
    }


def others(data: Problem) -> dict[str, dict[str, float]]:
    """The same of the rows of views.py, the MIL row by its pool."""
    found, rows = of_split(data, 0, None, ()), {}
    for row, arm in zip(found.rows, found.test["arms"], strict=True):
        name = f"{'mil' if row.how.startswith('mil') else row.how} / {row.pool}"
        rows.setdefault(name, {"coverage": arm["metrics"]["coverage"]["value"]})
    return {name: rows[name] for name in OTHERS}


def text_of(deals: Sequence[Mapping[str, Mapping[str, float]]], names: Sequence[str]) -> str:
    lines = ["| arm | coverage (se) | fine-tuned - arm (se) |", "|---|---|---|"]
    mine = np.array([deal["fine-tuned"]["coverage"] for deal in deals])
    for name in ("fine-tuned", *names):
        values = np.array([deal[name]["coverage"] for deal in deals])
        differs = "-" if name == "fine-tuned" else f"{(mine - values).mean():+.3f} ({error(mine - values):.3f})"
        lines.append(f"| {name} | {values.mean():.3f} ({error(values):.3f}) | {differs} |")
    risks = [risk for risk in deals[0]["fine-tuned"] if risk != "coverage"]
    seen = ", ".join(f"{risk} {np.mean([deal['fine-tuned'][risk] for deal in deals]):.3f}" for risk in risks)
    return "\n".join([*lines, "", f"Fine-tuned, observed on val_test, mean over {len(deals)} deals: {seen}."])


def error(values: np.ndarray) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=Path("runs/views"))
    parser.add_argument("--output", type=Path, default=Path("runs/tuned"))
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--first-split", type=int, default=200)
    parser.add_argument("--training", type=float, default=0.5)
    given = parser.parse_args()
    data = loaded("potholes-iid", given.table, given.cache, 1e9)
    images = [str(path) for path in SampleTable.read(given.cache / "potholes" / "samples.parquet").paths]
    deals = []
    for seed in range(given.first_split, given.first_split + given.splits):
        deal = dealt(data, seed, given.training)
        deals.append({"fine-tuned": tuned(deal, images, given.output / str(seed)), **others(deal)})
        print(seed, json.dumps(deals[-1]), flush=True)
    print(text_of(deals, OTHERS))


if __name__ == "__main__":
    main()
