"""The comparison of benchmarks/arms.py as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from arm_bench.judging import REFERENCE, Table
from stage1.evaluation.arms import best_arm
from stage1.scores import ROLES


def markdown(table: Table, seeds: int) -> str:
    data = table.data
    chosen = best_arm(table.select, "augrc")
    counts = ", ".join(
        f"{role} {len(data.rows(role))} images in {len(np.unique(data.groups(role)))} groups" for role in ROLES
    )
    target = " and ".join(f"{name} <= {level:g}" for name, level in data.risks.items())
    unit = (
        "images counted as independent (assume_iid), which frames of one segment are not: the certificate is nominal"
        if data.assume_iid
        else "groups respected"
    )
    extra = f" redraws ({len(table.redrawn[REFERENCE])}): coverage | difference to linear (2.5 % to 97.5 %) |"
    redraws = bool(table.redrawn[REFERENCE])
    lines = [
        f"## {data.name}, {seeds} seed{'s' * (seeds > 1)}",
        "",
        (
            f"Input {data.size} px. {counts}. Target {target}, each seed's certificate at 95 %, {unit}. Differences are"
            f" to {REFERENCE}, with 95 % intervals."
        ),
        "",
        "| arm | trained parameters | CPU s | AUGRC val_select, e-3 | AUGRC val_test, e-3 | difference | certified |"
        " coverage (sd of seeds) | difference | exit error | fnr, false exits on val_test |"
        + (extra if redraws else ""),
        "|---" * (13 if redraws else 11) + "|",
    ]
    on_select = {arm["name"]: arm["metrics"] for arm in table.select["arms"]}
    for arm in table.test["arms"]:
        name, values = arm["name"], arm["metrics"]
        runs, coverage, held = table.runs[name], values["coverage"], table.held[name]
        cells = [
            f"**{name}**" if name == chosen else name,
            f"{runs[0].parameters:,}",
            f"{np.mean([run.seconds for run in runs]):.1f}",
            f"{1000 * on_select[name]['augrc']['value']:.2f}",
            f"{1000 * values['augrc']['value']:.2f}",
            _difference(table.test, name, "augrc", 1000.0),
            f"{table.certified[name]} of {len(runs)}",
            f"{coverage['value']:.3f}" + ("" if coverage["sd"] is None else f" ({coverage['sd']:.3f})"),
            _difference(table.test, name, "coverage", 1.0),
            _number(values["exit_error"]["value"], 4),
            f"{held['fnr']:.3f}, {held['false_exit_rate']:.3f}",
            *(_redraws(table.redrawn, name) if redraws else ()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Least AUGRC on val_select: {chosen} (bold). {_verdict(table)}"]
    if (few := table.test["n_groups"]) < 20:
        lines.append(
            f"val_test has {few} groups: intervals from so few are rough, and no verdict here should be leaned on."
        )
    if table.by_groups:
        lines.append(table.by_groups)
    gates = [
        f"{name} {sum(choice == 'gate' for choice in choices)} of {len(choices)}"
        for name, choices in table.kept.items()
        if any(choices)
    ]
    if gates:
        lines.append(
            f"Gates that gained on val_select beyond chance, and were used: {', '.join(gates)}; else softmax was kept."
        )
    notes = [
        f"{name} seed {seed}: {run.note}"
        for name, runs in table.runs.items()
        for seed, run in enumerate(runs)
        if run.note
    ]
    if notes:
        lines.append(f"Chosen or noted in training: {'. '.join(notes)}.")
    return "\n".join([*lines, ""])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _row(comparison: Mapping[str, Any], arm: str, metric: str) -> Mapping[str, Any] | None:
    return next((row for row in comparison["differences"] if row["arm"] == arm and row["metric"] == metric), None)


def _difference(comparison: Mapping[str, Any], arm: str, metric: str, scale: float) -> str:
    row = _row(comparison, arm, metric)
    if row is None or row["difference"] is None:
        return "-"
    digits = 2 if scale != 1.0 else 3
    text = f"{scale * row['difference']:+.{digits}f}"
    return (
        text if row["low"] is None else f"{text} [{scale * row['low']:+.{digits}f}, {scale * row['high']:+.{digits}f}]"
    )


def _redraws(redraws: Mapping[str, Sequence[float]], arm: str) -> tuple[str, str]:
    values = np.asarray(redraws[arm])
    if not len(values):
        return "-", "-"
    gap = values - np.asarray(redraws[REFERENCE])
    low, high = np.quantile(gap, [0.025, 0.975])
    return f"{values.mean():.3f}", "-" if arm == REFERENCE else f"{gap.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def _verdict(table: Table) -> str:
    found = []
    for name in table.runs:
        row = _row(table.test, name, "coverage")
        if row is not None and row["low"] is not None and row["low"] > 0:
            found.append(f"{name} ({row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}])")
    if not found:
        return "No arm's certified coverage is above linear's with an interval that excludes zero."
    return f"Certified coverage above linear's, interval without zero: {', '.join(found)}."
