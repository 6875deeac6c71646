"""What further views cost and give: certified coverage against the mean number of views, and against milliseconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stage1.report.drawing import CLASS_COLOURS, INK, Document, Drawing, finished, new_figure, numbers
from stage1.report.wording import percent


def view_costs(rows: Sequence[Document]) -> Drawing:
    """rows: one for each way of using views: name, kind, views, milliseconds (None: not measured), coverage, low, high.

    kind: rows of "adaptive" are one policy at several tolerances and joined by a line; every other row stands by itself and
    carries its name. low, high: the interval of the coverage, None where there is none. views, milliseconds: means per image.
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
