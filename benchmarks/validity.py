"""Is the promise kept? `stage1 audit` on real scores for each policy, population and target, as one table.

    python benchmarks/validity.py [--draws 1000] [--jobs 2] [--only 'cat / dog'] [--write benchmarks/validity.md]
    [--files FOLDER]

Every cell is one `stage1 audit` (the same function, the same seed, the score file of --files): val_select and val_calib
are drawn with replacement from labelled scores, the policy is fitted, and each claim is compared with the truth, which
is then known. A cell fails where the exact 95 % interval of its violation rate lies above delta; then the script exits
1.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from stage1 import Scores
from stage1.scores import write_scores

sys.path.insert(0, str(Path(__file__).parent))
from populations import ANIMALS, CAT, DOG, SHARED, VEHICLES, cifar, cifar_classes, coco, second_score


@dataclass(frozen=True)
class Population:
    """name, file name, how to make it; draws of select + calib images; targets of the thresholds and of scrc."""

    name: str
    file: str
    make: Callable[[], Scores]
    select: int
    calib: int
    thresholds: tuple[str, ...]
    scrc: tuple[str, ...]
    scrc_coverage: float
    policies: tuple[str, ...] = ("softmax", "gate", "scrc")


POPULATIONS = (
    # Of each kind of rule one: a walk, both ratios, the error rate. The levels are such that not everything may exit.
    Population(
        "COCO person",
        "coco_person",
        coco,
        500,
        2500,
        ("fnr: 0.02, false_exit_rate: 0.02", "fnr: 0.02, fpr: 0.02", "error: 0.02"),
        tuple(f"miss_rate: {level}, false_exit_rate: {level}" for level in (0.01, 0.02, 0.03)),
        0.9,
    ),
    Population(
        "cat / dog",
        "cat_dog",
        partial(cifar, CAT, DOG),
        300,
        1500,
        ("fnr: 0.05, false_exit_rate: 0.05", "fnr: 0.05, fpr: 0.05", "error: 0.05"),
        tuple(f"miss_rate: {level}, false_exit_rate: {level}" for level in (0.03, 0.05, 0.08)),
        0.8,
    ),
    # No second score of these models is better than their softmax, so a gate that is kept needs one that is made up.
    Population(
        "cat / dog, simulated second score",
        "cat_dog_gate",
        partial(second_score, partial(cifar, CAT, DOG)),
        300,
        1500,
        ("fnr: 0.05, false_exit_rate: 0.05", "fnr: 0.05, fpr: 0.05", "error: 0.05"),
        (),
        0.8,
        ("gate",),
    ),
    Population(
        "animal / vehicle",
        "animal_vehicle",
        partial(cifar, VEHICLES, ANIMALS),
        750,
        4250,
        ("fnr: 0.01, false_exit_rate: 0.01", "fnr: 0.01, fpr: 0.01", "error: 0.01"),
        tuple(f"miss_rate: {level}, false_exit_rate: {level}" for level in (0.005, 0.01, 0.02)),
        0.9,
    ),
    Population(
        "10 classes",
        "cifar10",
        cifar_classes,
        1000,
        4000,
        ("error: 0.02", "error: 0.01, wrong.3: 0.05", ", ".join(f"miss_rate.{k}: 0.05" for k in range(10))),
        tuple(f"miss_rate: {level}" for level in (0.03, 0.05, 0.08)),
        0.8,
        ("softmax", "scrc"),
    ),
)


@dataclass(frozen=True)
class Cell:
    population: Population
    policy: str
    risks: str

    @property
    def overrides(self) -> list[str]:
        coverage = [f"coverage={self.population.scrc_coverage}"] if self.policy == "scrc" else []
        return [f"policy.name={self.policy}", f"risks={{{self.risks}}}", *coverage]

    def command(self, draws: int, folder: Path) -> str:
        population = self.population
        arguments = [
            "stage1",
            "audit",
            "--scores",
            str(folder / f"{population.file}.npz"),
            "--draws",
            str(draws),
            "--select",
            str(population.select),
            "--calib",
            str(population.calib),
            *self.overrides,
        ]
        return shlex.join(arguments)


def cells(only: str | None) -> Iterator[Cell]:
    for population in POPULATIONS:
        if only is not None and only != population.name:
            continue
        for policy in population.policies:
            for risks in population.scrc if policy == "scrc" else population.thresholds:
                yield Cell(population, policy, risks)


def run(cell: Cell, draws: int, folder: Path) -> tuple[dict[str, Any], float]:
    """(the document of the audit, CPU seconds), in a process of its own: what the command prints with --json."""
    from stage1.commands.audit import Sizes, audit
    from stage1.config import load_config
    from stage1.scores import read_scores

    began = time.process_time()
    config, _ = load_config(overrides=cell.overrides, environment={})
    population, _ = read_scores(folder / f"{cell.population.file}.npz")
    sizes = Sizes(cell.population.select, cell.population.calib)
    return audit(population, config, draws=draws, sizes=sizes, seed=config.seed), time.process_time() - began


def row(cell: Cell, found: dict[str, Any]) -> str:
    low, high = found["violation_low"], found["violation_high"]
    # SCRC's claim is about selected images of one of many classes; thresholds found without any confidence have no such
    # claim.
    sweep = (found["plug_in_violation"], found["plug_in_coverage"]) if found["plug_in_coverage"] else (None, None)
    shown = [f"{value:.3f}" if value is not None else "" for value in sweep]
    risks = cell.risks if cell.risks.count(",") < 3 else f"{cell.risks.partition(',')[0]}, .. of each class"
    at = f" (selected >= {cell.population.scrc_coverage:g})" if cell.policy == "scrc" else ""
    return (
        f"| {cell.population.name} | {cell.policy} | {risks}{at} | {found['violation']:.3f} [{low:.3f}, {high:.3f}] | "
        f"{found['coverage']:.3f} | {found['certified']:.3f} | {shown[0]} | {shown[1]} |"
    )


HEADER = (
    (
        "| scores | policy | target at 95 % | violation [95 % interval] | coverage | certified | plug-in: violation |"
        " coverage |"
    ),
    "|---|---|---|---|---|---|---|---|",
)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", help="one population, by its name in the table")
    parser.add_argument("--write", type=Path, help="write the table with its commands to this file")
    parser.add_argument("--files", type=Path, help="keep the score files here, for the commands")
    arguments = parser.parse_args()
    if not SHARED.is_dir():
        print("skipped: ../shared/data is not beside this checkout")
        return
    # One thread for each process, and processes that read this when they start: on arrays this small threads only wait.
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    table, began, seconds = list(cells(arguments.only)), time.perf_counter(), 0.0
    if not table:
        parser.error(f"--only: no scores of that name; use {', '.join(population.name for population in POPULATIONS)}")
    lines, broken = list(HEADER), []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.files or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for population in {cell.population.file: cell.population for cell in table}.values():
            write_scores(folder / f"{population.file}.npz", population.make())
        print(f"{platform.machine()}, {arguments.draws} draws a cell\n\n" + "\n".join(HEADER))
        with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
            jobs = [pool.submit(run, cell, arguments.draws, folder) for cell in table]
            for cell, job in zip(table, jobs, strict=True):
                found, spent = job.result()
                seconds += spent
                lines.append(row(cell, found))
                if not found["kept"]:
                    broken.append(cell)
                print(f"{lines[-1]} {1000 * spent / arguments.draws:.0f} CPU ms a draw", flush=True)
    minutes = (time.perf_counter() - began) / 60
    print(
        f"\n{len(table)} cells, {minutes:.1f} minutes with {arguments.jobs} processes, {seconds / 60:.1f} CPU minutes"
    )
    if arguments.write is not None:
        arguments.write.write_text(document(table, lines, arguments.draws), encoding="utf-8")
    if broken:
        raise SystemExit(
            f"the interval lies above delta: {', '.join(f'{cell.policy}, {cell.risks}' for cell in broken)}"
        )


def document(table: list[Cell], lines: list[str], draws: int) -> str:
    """validity.md: what was asked, the table, the command of each row."""
    commands = [cell.command(draws, Path("scores")) for cell in table]
    return "\n".join(
        [
            "# Is the promise kept?",
            "",
            (
                f"Each row: {draws:,} draws of val_select and val_calib, with replacement, from real labelled scores"
                " that stand for the"
            ),
            (
                "population, so that the true risks of every fitted policy are known. *Violation*: share of the draws"
                " whose certificate is"
            ),
            (
                "false, which may not exceed 5 %, with its exact interval. *Coverage*: mean share of the population"
                " that exits (0 in a draw"
            ),
            (
                "that certifies nothing). *Plug-in*: the usual practice on the same draws, the riskiest thresholds"
                " whose observed risks meet"
            ),
            (
                "the target; for SCRC it is that of thresholds with the same limits among all images (blank: thresholds"
                " have no such claim)."
            ),
            (
                "Where a gate shows no gain on val_select the softmax is kept, as in a run. Sizes of the draws stand in"
                " the commands."
            ),
            "",
            (
                "`python benchmarks/validity.py --draws 1000 --write benchmarks/validity.md --files scores` makes it"
                " all; one row by itself:"
            ),
            "",
            *lines,
            "",
            "```sh",
            *commands,
            "```",
            "",
        ]
    )


if __name__ == "__main__":
    main()
