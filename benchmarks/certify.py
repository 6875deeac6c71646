"""Calibrate and evaluate 100,000 scores through the command line, 1,000 bootstraps: wall time and peak memory of each process.

    python benchmarks/certify.py

Beside each: an interpreter that only imports numpy, in the same run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROWS = 100_000


def timed(command: list[str]) -> tuple[float, float]:
    """(seconds, peak MiB) of a process."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def make(path: str) -> None:
    """Scores of ALGORITHMS 2.4's design for val_calib and val_test."""
    import numpy as np
    from scipy import special

    from stage1 import Scores
    from stage1.scores import write_scores

    rng = np.random.default_rng(0)
    labels = (rng.random(2 * ROWS) < 0.3).astype(np.int64)
    p = np.where(labels == 1, rng.beta(3.5, 1.0, 2 * ROWS), rng.beta(1.0, 3.5, 2 * ROWS))
    scores = Scores(logits=np.stack([np.zeros(2 * ROWS), special.logit(p)], axis=1), labels=labels)
    write_scores(path, scores, np.repeat(["val_calib", "val_test"], ROWS))


def main() -> None:
    stage1 = [sys.executable, "-m", "stage1.cli"]
    with tempfile.TemporaryDirectory() as name:
        scores, out = str(Path(name) / "scores.parquet"), str(Path(name) / "out")
        # In a process of its own: a child's peak memory counts from what its parent held when it was started.
        subprocess.run([sys.executable, __file__, "--make", scores], check=True)
        rows = {
            "import numpy": timed([sys.executable, "-c", "import numpy"]),
            f"calibrate, {ROWS:,} scores": timed([*stage1, "calibrate", "--scores", scores, "--output", out]),
            f"evaluate, {ROWS:,} scores, 1,000 bootstraps": timed(
                [*stage1, "evaluate", "--scores", f"{out}/scores.parquet", "--policy", out]
            ),
        }
    print(f"{platform.machine()}, Python {platform.python_version()}, {os.cpu_count()} cores")
    print(f"{'what':<46}{'seconds':>9}{'peak MiB':>10}")
    for what, (seconds, peak) in rows.items():
        print(f"{what:<46}{seconds:>9.2f}{peak:>10.0f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--make"]:
        make(sys.argv[2])
    else:
        main()
