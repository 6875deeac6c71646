"""The page side_by_side.md, made of the result files of run.py."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

NAMES = {"scenes": "generated scenes", "potholes": "potholes", "roadsigns": "road signs"}
OURS = "ours"
QUALITIES = (("auroc", "AUROC", 1), ("augrc", "AUGRC", -1), ("accuracy", "accuracy", 1))
COSTS = (("wall", "wall, s"), ("cpu", "CPU, s"), ("rss", "peak RSS, MiB"))


def mean_se(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error (0 where there is one value)."""
    found = np.asarray(values, dtype=float)
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(len(found))) if len(found) > 1 else 0.0


def behind(rows: list[dict[str, Any]]) -> list[str]:
    """What our side loses on one data set in the mean over its splits, and the standard error of the difference."""
    found = []
    for key, name, sign in QUALITIES:
        gap, se = mean_se([sign * (row["by hand"][key] - row[OURS][key]) for row in rows])
        if gap > 0:
            found.append(f"{name} {sign * gap:+.4f} (se {se:.4f}{SURELY if gap > se else ''})")
    for method in rows[0]["by hand"]["certified"]:
        differences = [coverage(row["by hand"], method) - coverage(row[OURS], OURS) for row in rows]
        gap, se = mean_se(differences)
        if gap > 0:
            found.append(f"certified coverage of {method} {gap:+.3f} (se {se:.3f}{SURELY if gap > se else ''})")
    for key, name in COSTS if rows[0].get("uncached") else ():  # later splits read cached features
        ratio = rows[0][OURS][key] / rows[0]["by hand"][key]
        if ratio > 1:
            found.append(f"{name.split(',')[0]} {ratio:.2f} times")
    return found


def coverage(side: dict[str, Any], method: str) -> float:
    return float(np.mean(side["certified"][method]["coverage"]))


def page(results: list[dict[str, Any]]) -> str:
    """Markdown of all results; what is lost stands in the first paragraph."""
    by_data: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        by_data[result["data"]].append(result)
    losses = [f"{NAMES[data]}: {', '.join(lost)}" for data, rows in by_data.items() if (lost := behind(rows))]
    lines = ["# One command beside the same job by hand", ""]
    lines += ["By hand is ahead in the mean: " + "; ".join(losses) + "." if losses else NO_LOSS, ""]
    lines += [ABOUT.format(lines=hand_lines()), ""]
    lines += ["| data, splits | | " + " | ".join(name for _, name, _ in QUALITIES) + " | "
              + " | ".join(name for _, name in COSTS) + " |"]  # fmt: skip
    lines += ["|---" * (2 + len(QUALITIES) + len(COSTS)) + "|"]
    for data, rows in by_data.items():
        for side in ("by hand", OURS):
            cells = ["{:.4f} ± {:.4f}".format(*mean_se([row[side][key] for row in rows])) for key, _, _ in QUALITIES]
            cells += [f"{rows[0][side][key]:.0f}" if rows[0].get("uncached") else "not measured" for key, _ in COSTS]
            lines.append(f"| {NAMES[data]}, {len(rows)} | {side} | " + " | ".join(cells) + " |")
    lines += ["", "| data | error <= | groups of a draw | method | certified in | coverage | violation (allowed .05) |",
              "|---|---|---|---|---|---|---|"]  # fmt: skip
    for data, rows in by_data.items():
        for side in ("by hand", OURS):
            for method in rows[0][side]["certified"]:
                mean, se = mean_se([coverage(row[side], method) for row in rows])
                shares = [mean_se([row[side]["certified"][method][key] for row in rows])[0]
                          for key in ("certified", "violation")]  # fmt: skip
                lines.append(
                    f"| {NAMES[data]} | {rows[0]['target']:g} | {rows[0][side]['groups']} |"
                    f" {method if side == OURS else 'by hand: ' + method} | {shares[0]:.2f} | {mean:.3f} ± {se:.3f} |"
                    f" {shares[1]:.3f} |"
                )
    return "\n".join(lines) + "\n"


def hand_lines() -> int:
    return len((Path(__file__).parent / "by_hand.py").read_text().splitlines())


SURELY = ", **more than one**"
NO_LOSS = "By hand is ahead in the mean of no row."
ABOUT = (
    "`python benchmarks/side_by_side/run.py --cache DIR`, then `--write`. By hand: benchmarks/side_by_side/by_hand.py,"
    " {lines} lines: EfficientNet-Lite0 by its own evaluation transform, logistic regression with C by grouped"
    " cross-validation on train + val_select, ONNX export with parity, and a certifying method on one random image of"
    " each calibration group. Ours: `stage1 run --recipe baseline data.table=... risks='{{error: ...}}'`, one command,"
    " which also writes the report and the bundle. Same images, same roles; the scores judged are of the held out"
    " images (val_calib and val_test); a mean and its standard error are over the splits by group. Certified coverage:"
    " 100 draws with replacement of as many groups as val_calib has, from the held-out groups, whose own risk is the"
    " truth."
)
