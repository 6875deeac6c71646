"""The figure of `stage1 plan`: labelled images that each risk takes, before any is labelled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stage1.errors import DataError
from stage1.report.drawing import CLASS_COLOURS, INK, Drawing, finished, new_figure, style
from stage1.report.need_figure import DASHES, MARKERS
from stage1.report.wording import percent

FIELDS = ("risk", "target", "side", "errors", "counted", "in_class", "in_total")


def draw_plan(
    needs: Sequence[Mapping[str, Any]], *, confidence: float | None = None, at_hand: Mapping[str, int] | None = None
) -> bytes:
    """PNG bytes of how many images each risk needs against the wrong answers to be survived.

    needs: rows as stage1.risk.planning.ClassNeed (dataclasses.asdict of it). confidence: for the title. at_hand: images of the
    "positive" and "negative" class that there are; drawn as a line. The same rows give the same bytes.
    Raises DataError for no rows or a row without a field, MissingError without matplotlib.
    """
    return plan_drawing(needs, confidence=confidence, at_hand=at_hand).png


def plan_drawing(
    needs: Sequence[Mapping[str, Any]], *, confidence: float | None = None, at_hand: Mapping[str, int] | None = None
) -> Drawing:
    """The same as PNG and SVG."""
    if not needs:
        raise DataError("needs: no rows; a plan needs at least one risk")
    for row in needs:
        missing = [field for field in FIELDS if field not in row]
        if missing:
            raise DataError(f"needs: a row has no `{missing[0]}`; give rows as stage1.risk.planning.ClassNeed")
    with style():
        return _draw(needs, confidence, dict(at_hand or {}))


def _draw(needs: Sequence[Mapping[str, Any]], confidence: float | None, at_hand: dict[str, int]) -> Drawing:
    risks = list(dict.fromkeys((row["risk"], row["target"], row["side"]) for row in needs))
    figure = new_figure(6.6)
    above, below = figure.subplots(2, 1, sharex=True)
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
        above.annotate(f"{first['in_class']:,}", (first["errors"], first["in_class"]), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
        below.annotate(f"{first['in_total']:,}", (first["errors"], first["in_total"]), xytext=(0, 9), textcoords="offset points", ha="center", fontsize=9)  # fmt: skip
    for side, images in at_hand.items():
        above.axhline(images, color=INK, linewidth=1.1, linestyle=(0, (6, 3)))
        above.annotate(f"{images:,} {side}s at hand", (1.0, images), xycoords=("axes fraction", "data"), xytext=(-3, 3),
                       textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
    if at_hand:
        below.axhline(sum(at_hand.values()), color=INK, linewidth=1.1, linestyle=(0, (6, 3)))
    for axis in (above, below):
        axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        # Room above for the legend, which must not lie on a line.
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
    return finished(figure)
