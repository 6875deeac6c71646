"""What happens to the images of each class and slice: exits that are right, deferred, exits that are wrong."""

from __future__ import annotations

from typing import Any

from stage1.report.figures.drawing import (
    CERTIFIED,
    CLASS_COLOURS,
    GREY,
    INK,
    PALE,
    Document,
    Drawing,
    finished,
    fitting,
    new_figure,
)
from stage1.report.figures.figure import Documents, Figure, Material, Words
from stage1.report.numbers import percent

_PARTS = (
    ("exits rightly", CERTIFIED, "white", ""),
    ("defers", PALE, INK, ""),
    ("exits wrongly", CLASS_COLOURS[1], INK, "////"),
)


def split_exits(columns: list[str], names: list[str], counts: list[list[int]]) -> list[tuple[int, int, int]]:
    """(right, deferred, wrong) of each true class from the counts [K][K + 1] of exit_confusion.

    columns: "exit as <class>" of each class in any order, and "defer". Class k is right where it exits as itself.
    """
    rows = []
    for name, row in zip(names, counts, strict=True):
        right = sum(count for column, count in zip(columns, row, strict=True) if column == f"exit as {name}")
        deferred = sum(count for column, count in zip(columns, row, strict=True) if column == "defer")
        rows.append((right, deferred, sum(row) - right - deferred))
    return rows


def exits(evaluation: Document) -> Drawing:
    """evaluation: evaluation.json; `slices` (optional): rows {slice, value, counts [K][K + 1] as exit_confusion}."""
    table = evaluation["exit_confusion"]
    names = list(table["rows"])
    bars: list[tuple[str, tuple[int, int, int], bool]] = [
        (name, parts, False)
        for name, parts in zip(names, split_exits(table["columns"], names, table["counts"]), strict=True)
    ]
    previous = None
    for row in evaluation.get("slices") or []:
        for index, (name, parts) in enumerate(
            zip(names, split_exits(table["columns"], names, row["counts"]), strict=True)
        ):
            head = index == 0 and row["slice"] != previous
            bars.append((f"{row['slice']} {row['value']}: {name}", parts, head))
        previous = row["slice"]
    figure = new_figure(1.5 + 0.42 * len(bars) + 0.3 * sum(head for _, _, head in bars))
    axis = figure.subplots()
    place, ticks = 0.0, []
    for _, parts, head in bars:
        place += 1.0 + (0.7 if head else 0.0)
        ticks.append(place)
        _bar(axis, place, parts)
    axis.set_yticks(ticks, [fitting(name, 36) for name, _, _ in bars], color=INK)
    axis.set_ylim(place + 0.7, 0.3)
    axis.set_xlim(0, 1)
    axis.grid(False)
    axis.tick_params(axis="y", length=0)
    axis.spines.left.set_visible(False)
    axis.xaxis.set_major_formatter(lambda value, _: percent(value))
    axis.set_xlabel(f"share of the {evaluation['role']} images of that row")
    for label, colour, _, hatch in _PARTS:
        axis.bar(0, 0, color=colour, hatch=hatch, edgecolor="white", label=label)
    axis.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=3)
    return finished(figure)


def _bar(axis: Any, place: float, parts: tuple[int, int, int]) -> None:
    total = sum(parts)
    if not total:
        axis.text(0.01, place, "no images", va="center", fontsize=9, color=GREY)
        return
    start = 0.0
    for count, (_, colour, ink, hatch) in zip(parts, _PARTS, strict=True):
        share = count / total
        axis.barh(place, share, left=start, height=0.72, color=colour, hatch=hatch, edgecolor="white", linewidth=0.6)
        if share > 0.09:
            axis.text(start + share / 2, place, f"{count:,}", ha="center", va="center", fontsize=9, color=ink)
        start += share
    wrong = parts[2] / total
    if 0 < wrong <= 0.09:
        # Beside the bar, where a sliver has no room; np.float64 would print its type.
        axis.annotate(
            f"{parts[2]:,}",
            (1.0, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=INK,
            annotation_clip=False,
        )


# ---- on the page --------------------------------------------------------------------------------------------------


def _words(documents: Documents) -> Words:
    slices = " and slice" if documents.evaluation.get("slices") else ""
    return Words(
        f"Exits by class{slices}",
        f"Bars of the share of {documents.role} images that exit rightly, defer and exit wrongly.",
        f"Share of {documents.role} images of each class{slices}: exits that are right, deferred, exits"
        " that are wrong.",
    )


def _figure(material: Material) -> Drawing:
    return exits(material.evaluation)


FIGURE = Figure("exits", _figure, _words, "exits")
