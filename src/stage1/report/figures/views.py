"""Two figures of views: what further views cost and give, and how many views the images of val_test took.

The first draws certified coverage against the mean number of views, and against milliseconds; the second a bar for each
number of views, where evaluation stops as soon as the answer is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stage1.report.figures.drawing import (
    CERTIFIED,
    CLASS_COLOURS,
    GREY,
    INK,
    PALE,
    Document,
    Drawing,
    finished,
    new_figure,
    numbers,
    style,
)
from stage1.report.figures.figure import Documents, Figure, Material, Words
from stage1.report.numbers import percent


def view_costs(rows: Sequence[Document]) -> Drawing:
    """rows: one for each way of using views: name, kind, views, milliseconds (None: not measured), coverage, low, high.

    kind: rows of "adaptive" are one policy at several tolerances and joined by a line; every other row is a point of
    its own and carries its name. low, high: the interval of the coverage, None where there is none. views,
    milliseconds: means per image.
    """
    axes: list[tuple[str, str]] = [("views", "views per image, mean")]
    if all(row["milliseconds"] is not None for row in rows):
        axes.append(("milliseconds", "milliseconds per image, mean"))
    figure = new_figure(3.3 * len(axes))
    panels = figure.subplots(len(axes), 1, squeeze=False)[:, 0]
    curve = sorted((row for row in rows if row["kind"] == "adaptive"), key=lambda row: row["views"])
    single = [row for row in rows if row["kind"] != "adaptive"]
    for panel, (field, label) in zip(panels, axes, strict=True):
        for index, row in enumerate(single):
            look = {"color": CLASS_COLOURS[(index + 1) % len(CLASS_COLOURS)], "marker": "os^vPX*h"[index % 8]}
            _points(panel, [row], field, look | {"linestyle": "none", "label": row["name"]})
        if curve:
            _points(panel, curve, field, {"color": CLASS_COLOURS[0], "marker": "D", "label": "adaptive"})
        panel.set_xlim(0, None)
        panel.set_xlabel(label)
        panel.set_ylabel("certified coverage", color=INK)
        panel.yaxis.set_major_formatter(lambda value, _: percent(value))
    panels[0].legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return finished(figure)


def _points(panel: Any, rows: Sequence[Document], field: str, look: Document) -> None:
    x, y = (numbers([row[name] for row in rows]) for name in (field, "coverage"))
    low, high = (numbers([row[name] for row in rows]) for name in ("low", "high"))
    below, above = np.maximum(y - low, 0.0), np.maximum(high - y, 0.0)
    panel.errorbar(x, y, yerr=[below, above], capsize=3, elinewidth=1.2, markersize=7, zorder=4, **look)


_PARTS = (
    ("right", "exits rightly", CERTIFIED, ""),
    ("deferred", "defers", PALE, ""),
    ("wrong", "exits wrongly", CLASS_COLOURS[1], "////"),
)


def draw_trace(evaluation: Document, views: Document) -> Drawing | None:
    """The figure of evaluation.json's section `views`; None where every image is seen with every view.

    Same document, same bytes. Raises MissingError without matplotlib.
    """
    if "views" not in evaluation or not views["order"]:
        return None
    with style():
        return _draw(evaluation)


def _draw(evaluation: Document) -> Drawing:
    section = evaluation["views"]
    places = np.array([row["views"] for row in section["used"]])
    total = sum(row[part] for row in section["used"] for part, *_ in _PARTS)
    figure = new_figure(3.6)
    axis = figure.subplots()
    bottom = np.zeros(len(places))
    for part, label, colour, hatch in _PARTS:
        share = np.array([row[part] for row in section["used"]]) / max(total, 1)
        axis.bar(
            places,
            share,
            bottom=bottom,
            color=colour,
            hatch=hatch,
            edgecolor="white" if part != "deferred" else GREY,
            linewidth=0.6,
            width=0.78,
            label=label,
        )
        bottom += share
    for place, height in zip(places, bottom, strict=True):
        axis.annotate(
            f"{round(height * total):,}",
            (place, height),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=INK,
        )
    axis.set_xlim(0.3, section["of"] + 0.7)
    if section["of"] <= 20:
        axis.set_xticks(range(1, section["of"] + 1))
    axis.set_ylim(0, 1.12 * float(bottom.max(initial=0.01)))
    axis.axvline(section["mean"], color=INK, linewidth=1.1, linestyle=(0, (6, 3)), label=f"mean {section['mean']:.2f}")
    axis.grid(axis="x", visible=False)
    axis.yaxis.set_major_formatter(lambda value, _: percent(round(value, 6)))
    axis.set_xlabel("views looked at")
    axis.set_ylabel(f"share of {evaluation['role']}", color=INK)
    axis.legend(loc="lower center", bbox_to_anchor=(0.45, 1.0), ncols=4)
    return finished(figure)


# ---- on the page --------------------------------------------------------------------------------------------------


def _words(documents: Documents) -> Words:
    role = documents.role
    return Words(
        "Views looked at",
        f"Bars of the share of {role} images by the number of views looked at, split into exits that are right, "
        "deferred, exits that are wrong.",
        f"Images of {role} by the number of views after which looking stopped, and what became of them. Dashed: the "
        "mean.",
    )


def _figure(material: Material) -> Drawing | None:
    return None if material.views is None else draw_trace(material.evaluation, material.views)


FIGURE = Figure("views", _figure, _words, "views")
