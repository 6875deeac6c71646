"""Start-up: `import stage1`, `stage1 --help` and a warm `stage1 run`, each against an empty interpreter in the same
run.
"""

from __future__ import annotations

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 9
RUN = ["run", "--recipe", "smoke", "--quiet"]


def seconds(command: list[str]) -> float:
    """Median wall time of a whole process, after one that is not counted."""
    times = []
    for _ in range(ROUNDS + 1):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def main() -> None:
    python = sys.executable
    empty = seconds([python, "-c", "pass"])
    with tempfile.TemporaryDirectory() as folder:
        run = [python, "-m", "stage1.cli", *RUN, "--output", str(Path(folder) / "run")]
        began = time.perf_counter()
        subprocess.run(run, check=True, stdout=subprocess.DEVNULL)
        cold = time.perf_counter() - began
        rows = {
            "import stage1": seconds([python, "-c", "import stage1"]),
            "stage1 --help": seconds([python, "-m", "stage1.cli", "--help"]),
            "warm stage1 run (smoke)": seconds(run),
        }
    print(
        f"{platform.machine()}, Python {platform.python_version()}, median of {ROUNDS}; empty interpreter {empty:.3f}"
        f" s; cold run {cold:.1f} s"
    )
    print(f"{'what':<26}{'seconds':>9}{'x empty':>9}")
    for name, value in rows.items():
        print(f"{name:<26}{value:>9.3f}{value / empty:>9.1f}")
    print(f"cold run / warm run: {cold / rows['warm stage1 run (smoke)']:.0f}")


if __name__ == "__main__":
    main()
