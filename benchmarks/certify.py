"""What certifying costs: each rule over all thresholds of 1,000,000 scores, MAPIE's controller beside it, and the
command line.

    python benchmarks/certify.py

Each row of the tables is the work of one process, so that its peak memory is its own; the peak counts from what the
process held before (scores included), and an interpreter that only imports numpy is in the same table. MAPIE is given
100,000 labels and 100 pairs of thresholds, as its controller holds one prediction for each label and pair; ours has the
same labels and no grid.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROWS = 100_000
MANY = 1_000_000
PAIRS = 100
SELECT = 5_000
TARGET = 0.02

# what, policy, the two risks
RULES = {
    "softmax, two-sided walk": ("softmax", ("fnr", "false_exit_rate")),
    "softmax, both ratios along the calibrated path": ("softmax", ("fnr", "fpr")),
    "gate, both ratios": ("gate", ("fnr", "fpr")),
    "scrc, class-wise": ("scrc", ("miss_rate", "false_exit_rate")),
}


# ---- the work of one process ---------------------------------------------------------------------------------------


def scores_of(rows: int, seed: int, gate: bool = False) -> Any:
    """Scores of ALGORITHMS 2.4's design: Beta(3.5, 1) against Beta(1, 3.5), 30 % positives; a gate that knows
    something.
    """
    import numpy as np
    from scipy import special

    from stage1 import Scores

    rng = np.random.default_rng(seed)
    labels = (rng.random(rows) < 0.3).astype(np.int64)
    p = np.where(labels == 1, rng.beta(3.5, 1.0, rows), rng.beta(1.0, 3.5, rows))
    margin = special.logit(p)
    right = (margin > 0) == (labels == 1)
    second = np.abs(margin) + 2.0 * right + rng.normal(size=rows) if gate else None
    return Scores(logits=np.stack([np.zeros(rows), margin], axis=1), labels=labels, gate=second)


def ours(rule: str, rows: int) -> dict[str, Any]:
    """Certify two risks on `rows` labels: seconds and the coverage of the calibration labels."""
    from stage1 import fit_policy

    policy, risks = RULES[rule]
    calib, select = scores_of(rows, 0, policy == "gate"), scores_of(SELECT, 1, policy == "gate")
    before, began, cpu = peak(), time.perf_counter(), time.process_time()
    fitted = fit_policy(policy, calib=calib, select=select, risks=dict.fromkeys(risks, TARGET))
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - cpu,
        "held": before,
        "coverage": fitted.decide(calib).coverage,
        "certified": fitted.certified,
    }


def mapie(fwer: str, rows: int) -> dict[str, Any]:
    """MAPIE's controller for fnr and fpr on the same labels over 100 pairs of thresholds (quantiles of the scores)."""
    import numpy as np
    from peer import controller, quantile_pairs

    calib, select = scores_of(rows, 0), scores_of(SELECT, 1)
    # 14 thresholds a side make 105 pairs with lo <= hi.
    pairs = quantile_pairs(np.sort(select.margin), 14)[:PAIRS]
    control = controller(pairs, TARGET, fwer)
    before, began, cpu = peak(), time.perf_counter(), time.process_time()
    if fwer == "split_fixed_sequence":
        control.learn_fixed_sequence_order(select.margin, select.known_labels, binary=True)
    control.calibrate(calib.margin, calib.known_labels)
    seconds, spent = time.perf_counter() - began, time.process_time() - cpu
    best = control.best_predict_param
    inside = 0.0 if best is None else float(((calib.margin < best[0]) | (calib.margin > best[1])).mean())
    return {"seconds": seconds, "cpu": spent, "held": before, "coverage": inside, "certified": best is not None}


def make(path: str, rows: int) -> None:
    """Score file for the command line: 5,000 rows of val_select, else of val_calib; beside it as many of val_test."""
    import numpy as np

    from stage1.scores import write_scores

    roles = np.where(np.arange(rows) < SELECT, "val_select", "val_calib")
    write_scores(path, scores_of(rows, 0), roles)
    write_scores(Path(path).with_name("test" + Path(path).suffix), scores_of(rows, 1))


def peak() -> float:
    """MiB at the highest so far in this process."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


WORK: dict[str, Callable[..., dict[str, Any]]] = {"ours": ours, "mapie": mapie}


# ---- processes -----------------------------------------------------------------------------------------------------


def timed(command: list[str]) -> tuple[float, float, str]:
    """(CPU seconds, peak MiB, stdout) of a process."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, output


def measured(kind: str, name: str, rows: int) -> dict[str, Any]:
    """The document of one piece of work, with the peak memory of its process."""
    _, highest, output = timed([sys.executable, __file__, "--work", kind, name, str(rows)])
    found: dict[str, Any] = json.loads(output)
    return found | {"peak": highest}


def main() -> None:
    print(f"{platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    rows = [(rule, "ours", rule, MANY) for rule in RULES]
    both = "softmax, both ratios along the calibrated path"
    rows.append((f"{both}, same labels as MAPIE", "ours", both, ROWS))
    # Not imported here: a child's peak memory counts from what its parent held when it was started.
    if find_spec("mapie") is None:
        print("MAPIE is not installed: its rows are left out (pip install mapie)")
    else:
        rows += [
            (f"MAPIE {version('mapie')}, {PAIRS} pairs, {fwer}", "mapie", fwer, ROWS)
            for fwer in ("bonferroni", "bonferroni_holm", "split_fixed_sequence")
        ]
    print(
        f"\n{f'certify two risks <= {TARGET:g} at 95 %':<74}"
        f"{'labels':>10}{'seconds':>9}{'CPU s':>8}{'peak MiB':>10}{'coverage':>10}"
    )
    for what, kind, name, labels in rows:
        found = measured(kind, name, labels)
        print(
            f"{what:<74}{labels:>10,}{found['seconds']:>9.2f}{found['cpu']:>8.2f}"
            f"{found['peak']:>10.0f}{found['coverage']:>10.3f}"
        )
    print(f"\n{'whole process, reading the file included':<74}{'':>10}{'CPU s':>9}{'':>8}{'peak MiB':>10}")
    command_line("import numpy", [sys.executable, "-c", "import numpy"])
    stage1 = [sys.executable, "-m", "stage1.cli"]
    for rows in (ROWS, MANY):
        for ending in ("npz", "parquet", "csv"):
            with tempfile.TemporaryDirectory() as folder:
                scores, out = Path(folder) / f"scores.{ending}", Path(folder) / "out"
                subprocess.run([sys.executable, __file__, "--make", str(scores), str(rows)], check=True)
                what = f"{rows:,} scores, {ending}"
                command_line(
                    f"calibrate, {what}", [*stage1, "calibrate", "--scores", str(scores), "--output", str(out)]
                )
                test = ["--scores", str(scores.with_name(f"test.{ending}")), "--policy", str(out)]
                command_line(f"evaluate, {what}", [*stage1, "evaluate", *test, "--output", str(out)])


def command_line(what: str, command: list[str]) -> None:
    """Print a row of the second table."""
    seconds, highest, _ = timed(command)
    print(f"{what:<74}{'':>10}{seconds:>9.2f}{'':>8}{highest:>10.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(sys.argv[2], int(sys.argv[3]))
    elif sys.argv[1:2] == ["--work"]:
        kind, name, labels = sys.argv[2:]
        print(json.dumps(WORK[kind](name, int(labels))))
    else:
        main()
