"""The figure of a comparison of arms: paired differences to the first arm with intervals, one panel for each metric."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stage1.errors import DataError
from stage1.report.arms_table import SHOWN
from stage1.report.figures.drawing import CERTIFIED, CLASS_COLOURS, GREY, INK, Drawing, finished, new_figure, style

_COLUMNS = 2
_PANELS = ("augrc", "aurc", "nll", "mcc", "coverage", "exit_error")
_LONGEST_NAME = 22


def arms_drawing(document: Mapping[str, Any]) -> Drawing:
    """PNG and SVG of the differences in a document of kind "comparison_arms"; a diamond: confirmed on val_test.

    Colour and marker both say the verdict: better (filled green circle), worse (filled vermilion square), no difference
    shown (open).
    The same document gives the same bytes. Raises DataError where there is no second arm, MissingError without
    matplotlib.
    """
    reference = document["reference"]
    others = [arm["name"] for arm in document["arms"] if arm["name"] != reference]
    if not others:
        raise DataError("arms: only one; a figure of differences needs two")
    panels = [name for name in _PANELS if name in document["arms"][0]["metrics"]]
    rows = -(-len(panels) // _COLUMNS)
    found = {(row["arm"], row["metric"]): row for row in document["differences"]}
    confirmation = document["confirmation"] or {"differences": []}
    confirmed = {(row["arm"], row["metric"]): row for row in confirmation["differences"]}
    lines = [(name, found, document["on"]) for name in others]
    lines += [(name, confirmed, "val_test") for name in others if any(arm == name for arm, _ in confirmed)]
    with style():
        figure = new_figure(rows * (1.2 + 0.3 * len(lines)) + 0.6)
        axes = figure.subplots(rows, _COLUMNS, squeeze=False, sharey=True)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, metric in zip(axes.flat, panels, strict=False):
            for place, (name, where, role) in enumerate(lines):
                _draw_row(axis, place, where[name, metric], name, diamond=where is confirmed and role == "val_test")
            _finish(axis, metric, lines)
        several = len({role for _, _, role in lines}) > 1
        figure.suptitle(
            f"Difference to {_short(reference)}, {document['level']:.0%} paired intervals on {document['on']}"
            + ("; diamond: confirmed on val_test" if several else ""),
            fontsize=10,
            x=0.01,
            ha="left",
        )
        return finished(figure)


def _draw_row(axis: Any, place: int, row: Mapping[str, Any], name: str, *, diamond: bool) -> None:
    if row["difference"] is None:
        axis.annotate(
            "undefined", (0.0, place), fontsize=8, color=GREY, va="center", xytext=(4, 0), textcoords="offset points"
        )
        return
    colour, filled = GREY, False
    marker = "D" if diamond else "o"
    if row["better"] is not None:
        better = row["better"] == name
        colour, filled = (CERTIFIED if better else CLASS_COLOURS[1]), True
        marker = "D" if diamond else ("o" if better else "s")
    if row["low"] is None:
        axis.annotate(
            "no interval",
            (row["difference"], place),
            fontsize=8,
            color=GREY,
            va="center",
            xytext=(8, 0),
            textcoords="offset points",
        )
    else:
        axis.plot([row["low"], row["high"]], [place, place], color=colour, linewidth=2.0, solid_capstyle="butt")
    axis.plot(
        [row["difference"]],
        [place],
        marker=marker,
        markersize=7,
        color=colour,
        linestyle="none",
        markerfacecolor=colour if filled else "white",
        markeredgewidth=1.6,
    )


def _finish(axis: Any, metric: str, lines: list[tuple[str, Any, str]]) -> None:
    label, _, good = SHOWN[metric]
    axis.axvline(0.0, color=INK, linewidth=1.0)
    axis.set_title(label, fontsize=10)
    axis.set_xlabel(f"{'←' if good == 'lower' else '→'} better", fontsize=9)
    roles = {role for _, _, role in lines}
    axis.set_yticks(
        range(len(lines)),
        [_short(name) + (f" on {role}" if len(roles) > 1 and role == "val_test" else "") for name, _, role in lines],
        fontsize=9,
    )
    axis.set_ylim(len(lines) - 0.4, -0.6)  # first arm on top
    axis.tick_params(axis="x", labelsize=8)
    axis.locator_params(axis="x", nbins=4)
    axis.grid(axis="y", visible=False)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"
