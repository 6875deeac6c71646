"""Coverage and error at every class balance, and where the target lies: estimated, stated, and as measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from stage1.evaluation.restate import ClassCounts
from stage1.report.figures.drawing import (
    CLASS_COLOURS,
    GREY,
    INK,
    Document,
    Drawing,
    finished,
    fitting,
    new_figure,
    style,
)
from stage1.report.figures.figure import Documents, Figure, Material, Words
from stage1.report.figures.need import MARKERS
from stage1.report.numbers import percent

_NAMES = {"mlls": "estimated, mlls", "bbse": "estimated, bbse", "stated": "stated"}


def draw_shift(evaluation: Document) -> Drawing | None:
    """The figure of evaluation.json's section `label_shift`; None without one, or for more than two classes.

    The lines follow from the rates within each class, which do not move: coverage is straight, error a ratio of
    straight lines. Points: each estimate with its intervals, across (share) and upwards. Same document, same bytes.
    Raises MissingError without matplotlib.
    """
    if "label_shift" not in evaluation or len(evaluation["classes"]) != 2:
        return None
    with style():
        return _draw(evaluation)


def counts_of(evaluation: Document) -> ClassCounts:
    """Exits and wrong exits of both classes, from the decisions that evaluation.json counts."""
    table = np.array(evaluation["exit_confusion"]["counts"])
    return ClassCounts(
        n=tuple(table.sum(axis=1).tolist()),
        exits=tuple((table[:, 0] + table[:, 2]).tolist()),
        errors=(int(table[0, 2]), int(table[1, 0])),
    )


def _draw(evaluation: Document) -> Drawing:
    shift, positive = evaluation["label_shift"], str(evaluation["classes"][1])
    rates = counts_of(evaluation).rates
    share = np.linspace(0.0, 1.0, 201)
    weights = np.stack([1.0 - share, share], axis=1)
    covered, wrong = weights @ np.array(rates.exits), weights @ np.array(rates.errors)
    lines = {
        "error": np.divide(wrong, covered, out=np.full(len(share), np.nan), where=covered > 0),
        "coverage": covered,
    }
    figure = new_figure(6.4)
    panels = dict(zip(lines, figure.subplots(2, 1, sharex=True), strict=True))
    here = shift["test"]["shares"][positive]
    for name, axis in panels.items():
        axis.plot(share, lines[name], color=GREY, zorder=2)
        axis.axvline(here, color=INK, linewidth=1.1, linestyle=(0, (6, 3)), zorder=1)
        known = lines[name][np.isfinite(lines[name])]
        highest, lowest = float(known.max(initial=0.0)), float(known.min(initial=1.0))
        for index, row in enumerate(shift["estimates"]):
            if row[name]["value"] is None:
                continue
            look: dict[str, Any] = {
                "color": CLASS_COLOURS[index % len(CLASS_COLOURS)],
                "marker": MARKERS[index % len(MARKERS)],
            }
            x, y = row["prior"][positive], row[name]["value"]
            across = None if row["low"] is None else _ends(x, row["low"][positive], row["high"][positive])
            upwards = None if row[name]["low"] is None else _ends(y, row[name]["low"], row[name]["high"])
            axis.errorbar(
                x,
                y,
                xerr=across,
                yerr=upwards,
                linestyle="none",
                markersize=11 - 3 * index,
                markerfacecolor="white",
                markeredgewidth=1.8,
                capsize=3 + 3 * index,
                elinewidth=1.4,
                label=_NAMES[row["method"]],
                zorder=3 + index,
                **look,
            )
            highest = max(highest, y, row[name]["high"] or 0.0)
            lowest = min(lowest, y, 1.0 if row[name]["low"] is None else row[name]["low"])
        axis.yaxis.set_major_formatter(lambda value, _: percent(round(value, 6)))
        if name == "error":
            axis.set_ylim(0, min(1.04, 1.45 * highest) if highest > 0 else 1.04)
        else:  # room below for the legend
            room = 1.0 - lowest
            axis.set_ylim(max(0.0, lowest - 1.2 * room - 0.01), 1.0 + 0.08 * room + 0.002)
        axis.set_ylabel(name)
    top = panels["error"]
    top.set_title("Error among exits, at each class balance")
    panels["coverage"].set_title("Coverage, at each class balance")
    top.annotate(
        "labelled test",
        (here, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4 if here < 0.7 else -4, -3),
        textcoords="offset points",
        ha="left" if here < 0.7 else "right",
        va="top",
        fontsize=9,
    )
    handles, labels = top.get_legend_handles_labels()
    if handles:
        panels["coverage"].legend(handles, labels, loc="lower left" if here > 0.3 else "lower right")
    panels["coverage"].set_xlim(-0.02, 1.02)
    panels["coverage"].xaxis.set_major_formatter(lambda value, _: percent(round(value, 6)))
    panels["coverage"].set_xlabel(f"share of {fitting(positive)}")
    return finished(figure)


def _ends(value: float, low: float, high: float) -> list[list[float]]:
    """Distances of an interval's ends from its value, as errorbar takes them; never negative."""
    return [[max(value - low, 0.0)], [max(high - value, 0.0)]]


# ---- on the page --------------------------------------------------------------------------------------------------


def _words(documents: Documents) -> Words:
    role, positive = documents.role, documents.positive
    return Words(
        f"Error and coverage, by share of {positive}",
        f"Lines of error among exits and of coverage against the share of {positive}, with the target's estimated or "
        "stated share marked.",
        f"Lines: from the rates within each class on {role}. Points: the target, with intervals across and upwards. "
        f"Dashed: the share in {role}.",
    )


def _figure(material: Material) -> Drawing | None:
    return draw_shift(material.evaluation)


FIGURE = Figure("label_shift", _figure, _words, "shift")
