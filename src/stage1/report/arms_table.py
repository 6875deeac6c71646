"""The comparison of arms as text: lines for a terminal, and Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Document = Mapping[str, Any]

# How a metric is called, how it is printed, and which way is good.
SHOWN = {
    "augrc": ("AUGRC", "{:.5f}", "lower"),
    "aurc": ("AURC", "{:.5f}", "lower"),
    "nll": ("NLL", "{:.4f}", "lower"),
    "mcc": ("MCC", "{:.4f}", "higher"),
    "accuracy": ("accuracy", "{:.4f}", "higher"),
    "coverage": ("certified coverage", "{:.4f}", "higher"),
    "exit_error": ("exit error", "{:.4f}", "lower"),
}


def arms_lines(document: Document) -> list[str]:
    """The table for a terminal: values, paired differences, costs, choice, confirmation, notes."""
    lines = [_headline(document), ""]
    for header, rows in _tables(document):
        lines += [*_aligned([header, *rows]), ""]
    notes = [*document["notes"], *_no_interval(document)]
    return [*lines, document["conclusion"], *(f"note: {note}" for note in notes)]


def arms_markdown(document: Document, figure: str | None = None) -> str:
    """The same as Markdown, with the figure at the end."""
    parts = ["# Comparison of arms", _headline(document), f"**{_escaped(document['conclusion'])}**"]
    for header, rows in _tables(document):
        cells = [[_escaped(cell) for cell in row] for row in (header, *rows)]
        rule = ["---", *["---:"] * (len(header) - 1)]
        parts.append("\n".join("| " + " | ".join(row) + " |" for row in (cells[0], rule, *cells[1:])))
    if notes := [*document["notes"], *_no_interval(document)]:
        parts.append("\n".join(f"- {_escaped(note)}" for note in notes))
    if figure:
        parts.append(f"![Paired differences to {_escaped(document['reference'])}]({figure})")
    return "\n\n".join(parts) + "\n"


def _headline(document: Document) -> str:
    counted = f"{document['n']} images" + (
        "" if document["unit"] == "image" else f" in {document['n_groups']} groups, which are drawn whole"
    )
    target = document["target"]
    at = (
        ""
        if target is None
        else "; certified for " + ", ".join(f"{name} <= {value:g}" for name, value in target.items())
    )
    return (
        f"{len(document['arms'])} arms on {document['on']}: {counted}; {document['level']:.0%} intervals of"
        f" {document['resamples']} paired draws{at}; splits equal by digest."
    )


def _tables(document: Document) -> list[tuple[list[str], list[list[str]]]]:
    arms = document["arms"]
    metrics = list(arms[0]["metrics"])
    names = [SHOWN[metric][0] for metric in metrics]
    values = (
        [f"value on {document['on']}", "seeds", *names],
        [
            [arm["name"], str(arm["seeds"]), *(_with_interval(metric, arm["metrics"][metric]) for metric in metrics)]
            for arm in arms
        ],
    )
    spread = (
        ["sd over seeds", *names],
        [[arm["name"], *(_number(metric, arm["metrics"][metric]["sd"]) for metric in metrics)] for arm in arms],
    )
    tables = [values]
    if any(arm["seeds"] > 1 for arm in arms):
        tables.append(spread)
    tables.append((["minus " + document["reference"], *names], _difference_rows(document, metrics)))
    cost = ["cost (mean over seeds)", "parameters", "model", "train", "all stages", "images/s", "memory", "certified"]
    tables.append((cost, [_cost(arm) for arm in arms]))
    confirmation = document["confirmation"]
    if confirmation is not None:
        rows = [
            [arm["name"], *(_with_interval(metric, arm["metrics"][metric]) for metric in metrics)]
            for arm in confirmation["arms"]
        ]
        rows += [
            [f"{row[0]} minus {confirmation['reference']}", *row[1:]] for row in _difference_rows(confirmation, metrics)
        ]
        tables.append((["the one chosen, on val_test", *names], rows))
    return tables


def _difference_rows(part: Document, metrics: Sequence[str]) -> list[list[str]]:
    found = {(row["arm"], row["metric"]): row for row in part["differences"]}
    others = [arm["name"] for arm in part["arms"] if arm["name"] != part["reference"]]
    rows = []
    for name in others:
        cells = []
        for metric in metrics:
            row = found[name, metric]
            mark = "" if row["better"] is None else " better" if row["better"] == name else " worse"
            cells.append(_with_interval(metric, {**row, "value": row["difference"]}, sign=True) + mark)
        rows.append([name, *cells])
    return rows


def _cost(arm: Document) -> list[str]:
    runs = arm["runs"]

    def mean(key: str) -> float | None:
        known = [run[key] for run in runs if run[key] is not None]
        return sum(known) / len(known) if len(known) == len(runs) else None

    def shown(key: str, form: str, scale: float = 1.0) -> str:
        value = mean(key)
        return "-" if value is None else form.format(value / scale)

    known = [run["certified"] for run in runs if run["certified"] is not None]
    return [
        arm["name"],
        shown("parameters", "{:,.0f}"),
        shown("model_bytes", "{:.1f} MB", 1e6),
        shown("train_seconds", "{:.1f} s"),
        shown("seconds", "{:.0f} s"),
        shown("images_per_second", "{:.0f}"),
        shown("score_peak_mib", "{:,.0f} MiB"),
        f"{sum(known)} of {len(known)}" if known else "-",
    ]


def _no_interval(document: Document) -> list[str]:
    """Why some numbers stand without an interval: "certified coverage (difference): no interval: .."."""
    found: dict[str, list[str]] = {}
    for part in (document, document["confirmation"] or {}):
        cells = [(metric, row) for arm in part.get("arms", ()) for metric, row in arm["metrics"].items()]
        cells += [(f"difference in {row['metric']}", row) for row in part.get("differences", ())]
        for name, row in cells:
            if "note" in row and name not in found.setdefault(row["note"], []):
                found[row["note"]].append(name)
    return [f"{', '.join(names)}: {why}." for why, names in found.items()]


def _number(metric: str, value: float | None, sign: bool = False) -> str:
    if value is None:
        return "-"
    form = SHOWN[metric][1]
    return (form.replace(":", ":+") if sign else form).format(value)


def _with_interval(metric: str, row: Document, sign: bool = False) -> str:
    value = _number(metric, row["value"], sign)
    if row["low"] is None or row["high"] is None:
        return value if row.get("note") is None else f"{value} [no interval]"
    return f"{value} [{_number(metric, row['low'], sign)}, {_number(metric, row['high'], sign)}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if place == 0 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _escaped(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
