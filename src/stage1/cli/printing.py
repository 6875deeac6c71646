"""Results as lines for people. Each takes the document that --json would print."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import typer


def outlined(folder: Path, config: Any, allow_change: bool) -> dict[str, Any]:
    from stage1.runs.anchoring import anchored
    from stage1.runs.directory import RunDir, kept_config, read_state, refuse_change
    from stage1.runs.runner import outlook
    from stage1.stages import STAGES

    stored = kept_config(folder)
    if stored is not None and not allow_change:
        refuse_change(folder, stored, config)
    return {"run": str(folder), "stages": outlook(RunDir(folder, anchored(config), read_state(folder)), STAGES)}


def dry_run_lines(document: dict[str, Any]) -> list[str]:
    return [
        document["run"],
        *(
            f"{row['stage']:<10} {'skip' if row['skip'] else 'run ':<5} inputs"
            f" {(row['inputs_digest'] or 'not known yet')[:16]:<16} config: {', '.join(row['config']) or '-'}  reads:"
            f" {', '.join(row['reads']) or 'sources'}"
            for row in document["stages"]
        ),
    ]


def run_summary(result: Any, verdict: Any) -> dict[str, Any]:
    certificate = result.certificate
    return {
        "run": str(result.folder),
        "certified": certificate.certified,
        "statement": certificate.statement,
        "needed": certificate.needed,
        "coverage": certificate.coverage.value,
        "verdict": asdict(verdict),
        "report": str(result.folder / "report.html"),
        "bundle": str(result.bundle),
        "done": list(result.done),
        "skipped": list(result.skipped),
        "seconds": round(result.seconds, 1),
    }


def run_lines(summary: dict[str, Any]) -> list[str]:
    return [
        "",
        f"CERTIFIED  {summary['statement']}",
        *abstaining_lines(summary),
        "",
        f"report  {summary['report']}",
        f"bundle  {summary['bundle']}",
    ]


def abstaining_lines(certificate: dict[str, Any]) -> list[str]:
    """What it takes to open the side, or classes, that stay shut; nothing where all exit or nothing does."""
    if not certificate["certified"] or not certificate["needed"]:
        return []
    return [f"To open what stays shut: {certificate['needed']}"]


def slice_lines(certificate: dict[str, Any]) -> list[str]:
    """A line for each slice with thresholds of its own: what exits there and where, or why its images defer."""
    rows = [row for row in certificate.get("slices", ()) if row.get("own")]

    def said(row: dict[str, Any]) -> str:
        if not row["certified"]:
            return f"defers: {row['reason']}"
        lo, hi = ("never" if row[side] is None else f"{row[side]:.4g}" for side in ("lo", "hi"))
        return f"holds: {row['exits']} of {row['n']} exit (lo {lo}, hi {hi})"

    names = [f"{row['attribute']}={row['value']}" for row in rows]
    width = max(map(len, names), default=0)
    return [f"  {name.ljust(width)}  {said(row)}" for name, row in zip(names, rows, strict=True)]


def check_lines(result: dict[str, Any]) -> list[str]:
    return [
        f"{'ok  ' if check['passed'] else 'FAIL'}  {check['policy']:<8} {check['check']:<44} {check['detail']}"
        for check in result["checks"]
    ]


def evaluation_lines(document: dict[str, Any]) -> list[str]:
    from stage1.evaluation.summary import metrics_rows

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    return [
        f"{'metric':<20}{'value':>9}{'low':>9}{'high':>9}",
        *(
            f"{row['metric']:<20}{number(row['value']):>9}{number(row['low']):>9}{number(row['high']):>9}"
            for row in metrics_rows(document)
        ),
        *argmax_lines(document),
        *shift_lines(document),
    ]


_CLASSES_SHOWN = 12


def argmax_lines(document: dict[str, Any]) -> list[str]:
    """The policy beside the plain argmax: coverage and errors, of each class too where there are few."""
    from stage1.evaluation import argmax

    rows = argmax.argmax_lines(document)
    if not rows:
        return []
    names = list(rows[0].per_class) if len(rows[0].per_class) <= _CLASSES_SHOWN else []
    widths = {name: max(len(name), 11) + 2 for name in names}

    def line(row: Any) -> str:
        error = "-" if row.error is None else f"{row.error:.4f}"
        return f"{row.rule:<26}{row.n:>9}{row.coverage:>10.4f}{row.errors:>7}{error:>9}"

    return [
        "",
        f"{'wrong answers':<26}{'answered':>9}{'coverage':>10}{'wrong':>7}{'error':>9}"
        + "".join(f"{name:>{widths[name]}}" for name in names),
        *(
            line(row) + "".join(f"{'{} of {}'.format(*row.per_class[name]):>{widths[name]}}" for name in names)
            for row in rows
        ),
    ]


def shift_lines(document: dict[str, Any]) -> list[str]:
    from stage1.stages.label_shift import shift_lines

    return ["", *shift_lines(document["label_shift"]), ""] if "label_shift" in document else []


_COLOURS = {"green": typer.colors.GREEN, "amber": typer.colors.YELLOW, "red": typer.colors.RED}


def verdict_line(verdict: Any) -> str:
    """The last line of `calibrate`, `evaluate` and `run`; coloured where the terminal is one."""
    return typer.style(verdict.text, fg=_COLOURS[verdict.colour], bold=True)


def verify_lines(document: dict[str, Any]) -> list[str]:
    if not document["ok"]:
        return [f"CHANGED  {document['bundle']}", *document["problems"]]
    numbers = any(note.startswith("texts not compared") for note in document["notes"])
    recomputed = "; the certificate follows from calibration.parquet" if document["recomputed"] else ""
    recomputed += " (its numbers; its texts were not compared)" if numbers else ""
    return [
        f"ok  {document['bundle']}  {document['digest']}  {document['files']} files{recomputed}",
        *(f"note  {note}" for note in document["notes"]),
    ]


def comparison_lines(document: dict[str, Any]) -> list[str]:
    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:.4f}"

    return [
        f"{'metric':<14}{'a':>9}{'b':>9}{'a - b':>9}{'low':>9}{'high':>9}{'p':>9}  verdict",
        *(
            f"{row['metric']:<14}"
            + "".join(f"{number(row[key]):>9}" for key in ("a", "b", "difference", "low", "high", "p_value"))
            + f"  {row['verdict']}"
            for row in document["rows"]
        ),
    ]


def audit_lines(found: dict[str, Any]) -> list[str]:
    low, high = found["violation_low"], found["violation_high"]
    return [
        (
            f"{found['policy']}, {', '.join(f'{name} <= {target:g}' for name, target in found['risks'].items())} at"
            f" {found['confidence']:g}, {found['draws']} draws of {found['n_select']} + {found['n_calib']}"
        ),
        (
            f"certified   violation {found['violation']:.4f} [{low:.4f}, {high:.4f}]  coverage {found['coverage']:.4f} "
            f" (certified in {found['certified']:.3f})"
        ),
        (
            f"plug-in     violation {found['plug_in_violation']:.4f}                    coverage"
            f" {found['plug_in_coverage']:.4f}"
        ),
    ]
