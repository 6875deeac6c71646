"""How many units each risk needs: against the wrong answers allowed, and against the target, with what the run has."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from stage1.report.figures.drawing import CLASS_COLOURS, GREY, INK, Document, Drawing, finished, new_figure
from stage1.report.figures.figure import Documents, Figure, Material, Words
from stage1.report.numbers import percent
from stage1.risk import minimum_samples

_MOST_POINTS = 45
_MOST_NAMED = 4
"""Risks that are named one by one. Of more, those of one target and delta share line and name: names cover the dots."""
MARKERS = ("o", "s", "^", "v", "P", "X", "*", "h")
DASHES: tuple[Any, ...] = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 2, 2)), (0, (1, 1)))


def error_steps(most: int) -> list[int]:
    """0, 1, 2 ... most; thinned evenly where there are more than fit the figure."""
    return sorted({int(value) for value in np.linspace(0, most, min(most + 1, _MOST_POINTS)).round()})


def _lower_name(told: str, row: Document, together: bool) -> str:
    return f"{told}, each with its wrong answers" if together else f"{told}, {row['errors']:,} wrong"


def units_needed(certificate: Document) -> Drawing:
    """certificate: certificate.json; each risk's target, delta, n and errors."""
    risks = {name: row for name, row in certificate["risks"].items() if 0 < row["target"] < 1 and 0 < row["delta"] < 1}
    figure = new_figure(6.6)
    above, below = figure.subplots(2, 1)
    most = max([10, *(round(1.6 * row["errors"]) for row in risks.values())])
    steps = error_steps(most)
    targets = np.geomspace(0.005, 0.2, 25)
    if risks:
        wide = [row["target"] for row in risks.values()]
        targets = np.geomspace(min(0.25 * min(wide), 0.005), min(0.9, max(4 * max(wide), 0.1)), 25)
    many, kinds = len(risks) > _MOST_NAMED, Counter((row["target"], row["delta"]) for row in risks.values())
    named: set[tuple[float, float]] = set()
    for place, (name, row) in enumerate(risks.items()):
        kind = row["target"], row["delta"]
        index = list(kinds).index(kind) if many else place
        together = many and kinds[kind] > 1
        told = f"{kinds[kind]} risks" if together else name
        shown, first = not together or kind not in named, kind not in named or not many
        named.add(kind)
        look = {
            "color": CLASS_COLOURS[index % len(CLASS_COLOURS)],
            "linestyle": DASHES[index % len(DASHES)],
            "label": f"{told} ≤ {percent(row['target'])}" if shown else None,
        }
        mark = {
            "color": look["color"],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 9,
            "markeredgecolor": "white",
        }
        needed = [minimum_samples(row["target"], row["delta"], errors) for errors in steps]
        if first:
            above.plot(steps, needed, **look)
        here = [minimum_samples(float(target), row["delta"], row["errors"]) for target in targets]
        below.plot(targets, here, **look | {"label": _lower_name(told, row, together) if shown else None})
        for axis, x in ((above, row["errors"]), (below, row["target"])):
            if row["n"]:
                axis.plot(x, row["n"], zorder=6, linestyle="none", **mark)
            if row["n"] and not many:
                axis.annotate(
                    f"{row['n']:,} here",
                    (x, row["n"]),
                    xytext=(0, 8),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                    color=INK,
                    zorder=7,
                    bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
                )
    for index, delta in enumerate(dict.fromkeys(row["delta"] for row in risks.values())):
        none = [minimum_samples(float(target), delta, 0) for target in targets]
        below.plot(
            targets,
            none,
            color=GREY,
            linewidth=1.2,
            linestyle=(0, (1.5, 2)),
            label="none wrong" if index == 0 else None,
        )
    below.set_xscale("log")
    below.set_yscale("log")
    for axis in (above, below):
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axis.set_ylabel(f"{certificate['unit']}s counted")
        if risks:
            axis.legend(loc="upper right" if axis is below else "lower right" if many else "upper left")
    above.set_ylim(0, None)
    above.set_xlim(-0.3, None)
    above.set_xlabel("wrong answers among them")
    above.xaxis.get_major_locator().set_params(integer=True)
    below.set_xlabel("target")
    below.yaxis.get_major_locator().set_params(subs=(1.0, 3.0))
    ticks = [
        tick for tick in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if targets[0] <= tick <= targets[-1]
    ]
    below.set_xticks(ticks, [percent(tick) for tick in ticks])
    below.minorticks_off()
    return finished(figure)


# ---- on the page --------------------------------------------------------------------------------------------------


def _words(documents: Documents) -> Words:
    units = documents.units
    return Words(
        f"How many {units} it takes",
        f"Two charts of the {units} that each risk needs: against the wrong answers allowed, and against the target. "
        "Marked: what this run has.",
        f"Dots: the counted {units} and wrong answers of this run. On or above its line a risk is within its target. "
        "Below: the same number for other targets; dotted if none were wrong.",
    )


def _figure(material: Material) -> Drawing:
    return units_needed(material.certificate)


FIGURE = Figure("units_needed", _figure, _words, "need")
