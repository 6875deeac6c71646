"""The figure of `stage1 plan`: labelled units that each risk takes, and the chance of a certificate by their number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stage1.errors import DataError
from stage1.report.figures.drawing import CERTIFIED, CLASS_COLOURS, INK, Drawing, finished, new_figure, style
from stage1.report.figures.need import DASHES, MARKERS
from stage1.report.numbers import percent

FIELDS = ("risk", "target", "side", "errors", "counted", "in_class", "in_total")


def draw_plan(
    needs: Sequence[Mapping[str, Any]], *, confidence: float | None = None, at_hand: Mapping[str, int] | None = None
) -> bytes:
    """PNG bytes of how many images each risk needs against the wrong answers to be survived.

    needs: rows as stage1.risk.sample_size.ClassNeed (dataclasses.asdict of it). confidence: for the title. at_hand:
    images of the "positive" and "negative" class that there are; drawn as a line. The same rows give the same bytes.
    Raises DataError for no rows or a row without a field, MissingError without matplotlib.
    """
    return plan_drawing(needs, confidence=confidence, at_hand=at_hand).png


def plan_drawing(
    needs: Sequence[Mapping[str, Any]],
    *,
    confidence: float | None = None,
    at_hand: Mapping[str, int] | None = None,
    success: Mapping[str, Any] | None = None,
    pilot: Mapping[str, Any] | None = None,
) -> Drawing:
    """The same as PNG and SVG, with a panel for the chance of a certificate where `success` or `pilot` is given.

    success, pilot: as in the document of stage1.commands.plan.make_plan. With a pilot, needs may be empty.
    """
    if not needs and pilot is None:
        raise DataError("needs: no rows; a plan needs at least one risk, or a pilot")
    for row in needs:
        missing = [field for field in FIELDS if field not in row]
        if missing:
            raise DataError(f"needs: a row has no `{missing[0]}`; give rows as stage1.risk.sample_size.ClassNeed")
    with style():
        more = success is not None or pilot is not None
        figure = new_figure((6.6 if needs else 0.0) + (3.8 if more else 0.0))
        axes = list(figure.subplots((2 if needs else 0) + more, 1, squeeze=False)[:, 0])
        if needs:
            axes[0].sharex(axes[1])
            axes[0].tick_params(labelbottom=False)
            _draw_needs(axes[0], axes[1], needs, confidence, dict(at_hand or {}))
        if more:
            _draw_chance(axes[-1], success, pilot)
        return finished(figure)


def _draw_needs(
    above: Any, below: Any, needs: Sequence[Mapping[str, Any]], confidence: float | None, at_hand: dict[str, int]
) -> None:
    risks = list(dict.fromkeys((row["risk"], row["target"], row["side"]) for row in needs))
    most = max(row["errors"] for row in needs)
    for index, (risk, target, side) in enumerate(risks):
        rows = sorted(
            (row for row in needs if (row["risk"], row["target"], row["side"]) == (risk, target, side)),
            key=lambda row: row["errors"],
        )
        errors = [row["errors"] for row in rows]
        look = {
            "color": CLASS_COLOURS[index % len(CLASS_COLOURS)],
            "linestyle": DASHES[index % len(DASHES)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 6,
        }
        above.plot(errors, [row["in_class"] for row in rows], label=f"{risk} ≤ {percent(target)}: {side}s", **look)
        below.plot(errors, [row["in_total"] for row in rows], label=f"{risk} ≤ {percent(target)}", **look)
        first = rows[0]
        above.annotate(
            f"{first['in_class']:,}",
            (first["errors"], first["in_class"]),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
        below.annotate(
            f"{first['in_total']:,}",
            (first["errors"], first["in_total"]),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            fontsize=9,
        )
    for side, images in at_hand.items():
        above.axhline(images, color=INK, linewidth=1.1, linestyle=(0, (6, 3)))
        above.annotate(
            f"{images:,} {side}s at hand",
            (1.0, images),
            xycoords=("axes fraction", "data"),
            xytext=(-3, 3),
            textcoords="offset points",
            ha="right",
            fontsize=9,
        )
    if at_hand:
        below.axhline(sum(at_hand.values()), color=INK, linewidth=1.1, linestyle=(0, (6, 3)))
    for axis in (above, below):
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        # Room above for the legend, which must not cover a line.
        axis.set_ylim(0, 1.4 * axis.dataLim.y1)
    above.set_title(
        "Labelled units of the class" + ("" if confidence is None else f", at confidence {percent(confidence)}")
    )
    below.set_title("Labelled units of any class, at the expected share")
    above.set_ylabel("units of the class")
    below.set_ylabel("units in all")
    below.set_xlim(-0.03 * max(most, 1), 1.06 * max(most, 1))
    below.set_xlabel("wrong answers that the certificate survives")
    below.xaxis.get_major_locator().set_params(integer=True)
    above.legend(loc="upper left", ncols=1)


def _draw_chance(axis: Any, success: Mapping[str, Any] | None, pilot: Mapping[str, Any] | None) -> None:
    """P(certified) by number of labels: exact tail at fixed thresholds, and drawing from the pilot."""
    wanted = (pilot or success or {})["wanted"]
    marks: list[tuple[int, str]] = []
    if success is not None:
        axis.plot(
            *zip(*success["curve"], strict=True),
            color=CLASS_COLOURS[1],
            linestyle=DASHES[1],
            label=f"exact tail, val_calib alone, true risks {percent(success['expected_share'])} of targets",
        )
        marks.append((success["in_total"], CLASS_COLOURS[1]))
    if pilot is not None:
        rows = list(pilot["trials"])
        while len(rows) > 2 and rows[1]["certified"] == 0:  # one size at which nothing is certified is enough
            rows.pop(0)
        n = [row["n"] for row in rows]
        axis.plot(
            n, [row["coverage"] for row in rows], color=CERTIFIED, linestyle=DASHES[2], label="pilot: mean coverage"
        )
        middle = [row["success"] for row in rows]
        ends = [[row["success"] - row["low"] for row in rows], [row["high"] - row["success"] for row in rows]]
        axis.errorbar(
            n,
            middle,
            yerr=ends,
            color=CLASS_COLOURS[0],
            marker="o",
            markersize=5,
            capsize=3,
            elinewidth=1.2,
            linewidth=1.2,
            label="pilot: certified, with simulation error",
        )
        if pilot["n"] is not None:
            marks.append((pilot["n"], CLASS_COLOURS[0]))
    axis.axhline(wanted, color=INK, linewidth=1.1, linestyle=(0, (6, 3)))
    axis.annotate(
        f"wanted: {percent(wanted)}",
        (0.0, wanted),
        xycoords=("axes fraction", "data"),
        xytext=(3, 3),
        textcoords="offset points",
        fontsize=9,
    )
    for place, colour in marks:
        axis.plot([place, place], [0.0, wanted], color=colour, linewidth=1.1, linestyle=(0, (1.5, 2)))
        axis.annotate(f"{place:,}", (place, 0.0), xytext=(4, 4), textcoords="offset points", fontsize=9, color=INK)
    axis.set_xscale("log")
    # Few plain numbers: the default of a log axis has either two ticks or powers of ten.
    axis.xaxis.get_major_locator().set_params(subs=(1.0, 2.0, 5.0))
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.minorticks_off()
    # Room above 100 % for the legend, which must not cover a line.
    axis.set_ylim(0.0, 1.06 + 0.14 * len(axis.get_legend_handles_labels()[0]))
    axis.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    axis.yaxis.set_major_formatter(lambda value, _: percent(round(value, 6)))
    unit = "units of val_calib" if pilot is None else f"labelled {pilot['unit']}s in all"
    axis.set_xlabel(unit)
    axis.set_title("Chance that the whole target is certified")
    axis.legend(loc="upper left")
