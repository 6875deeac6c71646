"""The figure of a cascade: risk of the whole against what an image costs, as the first stage's thresholds move."""

from __future__ import annotations

from typing import Any

import numpy as np

from stage1.errors import DataError
from stage1.report.figures.drawing import (
    CERTIFIED,
    CLASS_COLOURS,
    GREY,
    INK,
    Document,
    Drawing,
    finished,
    new_figure,
    numbers,
    style,
)
from stage1.report.numbers import percent

_RISKS = (("miss_rate", "o", (CLASS_COLOURS[1])), ("false_exit_rate", "s", CLASS_COLOURS[0]))


def draw_frontier(document: Document) -> Drawing:
    """document: cascade.json. Two panels, one per risk: observed on val_calib and upper bound against cost.

    The cost is money for 1,000 images where some stage has a price, else milliseconds an image. Raises DataError where
    the document has no frontier and no chosen configuration, MissingError without matplotlib.
    """
    rows = list(document["frontier"]) or [document["chosen"]]
    if not rows:
        raise DataError("frontier: no configurations; evaluate the cascade first")
    priced = any(row["money"] > 0 for row in [*rows, document["chosen"]])
    with style():
        figure = new_figure(7.2)
        axes = figure.subplots(len(_RISKS), 1, sharex=True)
        for axis, risk in zip(axes, _RISKS, strict=True):
            _panel(axis, rows, document["chosen"], risk, priced, document["classes"])
        axes[0].tick_params(labelbottom=False)
        unit = f"{document['currency']} for 1,000 images" if priced else "milliseconds an image"
        axes[-1].set_xlabel(f"cost: {unit}")
        _deferred_axis(axes[0], rows, priced)
        # Room above the curves for the legend, and for what the dotted line is.
        for axis, room in zip(axes, (1.28, 1.14), strict=True):
            axis.set_ylim(0.0, room * axis.get_ylim()[1])
        _chosen_label(axes[1], document["chosen"], priced)
        axes[0].legend(loc="upper right", ncols=2, fontsize=9, frameon=True, framealpha=1.0, edgecolor="white")
        return finished(figure)


def cost_of(row: Document, priced: bool) -> float:
    """What the x axis shows of a configuration."""
    return float(1000 * row["money"] if priced else row["milliseconds"])


def _panel(
    axis: Any, rows: list[Any], chosen: Document, risk: tuple[str, str, str], priced: bool, classes: list[str]
) -> None:
    name, marker, colour = risk
    ordered = sorted(rows, key=lambda row: cost_of(row, priced))
    cost = np.array([cost_of(row, priced) for row in ordered])
    observed = numbers([row["risks"][name]["observed"] for row in ordered])
    bound = numbers([row["risks"][name]["bound"] for row in ordered])
    axis.plot(cost, observed, marker=marker, markersize=4.5, color=colour, label="observed on val_calib")
    axis.plot(cost, bound, color=colour, linestyle=(0, (5, 2)), linewidth=1.3, label="upper bound, each by itself")
    sure = np.array([row["certified"] for row in ordered])
    if sure.any():
        axis.plot(
            cost[sure],
            observed[sure],
            marker=marker,
            markersize=9,
            linestyle="none",
            markerfacecolor="none",
            markeredgecolor=CERTIFIED,
            markeredgewidth=1.6,
            label="passed, in the order of testing",
        )
    here = cost_of(chosen, priced)
    axis.axvline(here, color=INK, linewidth=1.0, linestyle=(0, (1.5, 2)))
    target = chosen["risks"][name]["target"]
    if target is not None:
        axis.axhline(target, color=GREY, linewidth=1.1)
        axis.annotate(
            f"limit {percent(target)}",
            (1.0, target),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
            color=INK,
        )
    axis.set_ylim(bottom=0.0)
    axis.yaxis.set_major_formatter(lambda value, _: percent(round(value, 6)))
    of, called = (classes[1], classes[0]) if name == "miss_rate" else (classes[0], classes[1])
    axis.set_title(_shortened(f"{name}: {of} images answered '{called}'"))


def _shortened(text: str, most: int = 62) -> str:
    return text if len(text) <= most else f"{text[: most - 2]} .."


def _chosen_label(axis: Any, chosen: Document, priced: bool) -> None:
    """What the dotted line is, on the side of it that has room."""
    here = cost_of(chosen, priced)
    left, right = axis.get_xlim()
    on_the_right = here < (left + right) / 2
    word = "chosen, certified" if chosen["certified"] else "as configured, not certified"
    axis.annotate(
        f"{word}: {percent(round(chosen['deferred'], 3))} deferred",
        (here, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(4 if on_the_right else -4, -12),
        textcoords="offset points",
        ha="left" if on_the_right else "right",
        fontsize=9,
        color=INK,
    )


def _deferred_axis(axis: Any, rows: list[Any], priced: bool) -> None:
    """The share that is deferred, over the top panel, at the cost that it has."""
    ordered = sorted(rows, key=lambda row: cost_of(row, priced))
    places = [cost_of(row, priced) for row in ordered]
    if len(places) < 3 or places[-1] <= places[0]:
        return
    wanted = [places[0] + part * (places[-1] - places[0]) for part in (0.0, 0.25, 0.5, 0.75, 1.0)]
    shares = np.interp(wanted, places, [row["deferred"] for row in ordered])
    axis.set_title(axis.get_title(loc="left"), loc="left", pad=30)
    top = axis.secondary_xaxis("top")
    top.set_xticks(wanted, [percent(round(float(share), 2)) for share in shares], fontsize=9, color=GREY)
    top.tick_params(length=0)
    top.set_xlabel("deferred", fontsize=9, color=GREY, labelpad=2)
