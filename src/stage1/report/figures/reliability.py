"""Reliability: observed share against stated probability with exact intervals, before and after the calibration map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stage1.report.figures.drawing import CLASS_COLOURS, GREY, Document, Drawing, finished, fitting, new_figure
from stage1.report.figures.figure import Documents, Figure, Material, Words
from stage1.report.numbers import percent
from stage1.risk import binomial_lower, binomial_upper


def reliability(evaluation: Document) -> Drawing:
    """evaluation: evaluation.json; `reliability_before` (optional) holds the same rows before the calibration map."""
    rows = {"after": evaluation["reliability"]}
    before = evaluation.get("reliability_before")
    if before:
        rows = {"before the calibration map": before, "after": evaluation["reliability"]}
    figure = new_figure(4.9)
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    highest = 0.0
    for label, bins in rows.items():
        main = label == "after"
        highest = max(highest, _bins(axis, below, bins, evaluation["level"], label, main))
    if highest:
        below.set_ylim(0, 1.15 * highest)
        below.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if before:
        axis.legend(loc="lower right")
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylabel(
        f"observed share of {fitting(evaluation['classes'][-1])}"
        if len(evaluation["classes"]) == 2
        else "observed rate"
    )
    axis.text(
        0.02,
        0.97,
        f"exact {percent(evaluation['level'])} intervals\ndashed: perfect",
        transform=axis.transAxes,
        va="top",
        fontsize=9,
        color=GREY,
    )
    below.set_ylabel("images per bin")
    below.set_xlabel("predicted probability")
    return finished(figure)


def _bins(axis: Any, below: Any, rows: Sequence[Document], level: float, label: str, main: bool) -> float:
    """Draw the bins that hold an image; returns the fullest bin's count."""
    bins = [row for row in rows if row["count"] and row["observed_rate"] is not None]
    if not bins:
        return 0.0
    count = np.array([row["count"] for row in bins])
    mean, rate = (
        np.array([row[key] for row in bins], dtype=np.float64) for key in ("mean_probability", "observed_rate")
    )
    hits, tail = np.round(rate * count), (1 - level) / 2
    spread = np.maximum([rate - binomial_lower(hits, count, tail), binomial_upper(hits, count, tail) - rate], 0.0)
    colour = CLASS_COLOURS[0] if main else CLASS_COLOURS[1]
    # Told apart by form as well: hollow squares on a dashed line are the map's input.
    look = {"fmt": "o-"} if main else {"fmt": "s", "linestyle": (0, (4, 2)), "markerfacecolor": "white", "alpha": 0.9}
    axis.errorbar(mean, rate, yerr=spread, color=colour, markersize=5.5, capsize=3, linewidth=1.3, label=label, **look)
    below.vlines(mean, 0, count, color=colour, linewidth=4.0 if main else 2.0, alpha=1.0 if main else 0.6)
    return float(count.max())


# ---- on the page --------------------------------------------------------------------------------------------------


def _words(documents: Documents) -> Words:
    evaluation = documents.evaluation
    of = documents.positive if len(evaluation["classes"]) == 2 else "right answers"
    alt = (
        f"Reliability diagram: observed share of {of} against the predicted probability, with the number of images per "
        "bin."
    )
    both = ", before and after the calibration map" if evaluation.get("reliability_before") else ""
    caption = f"Whether a stated probability is met{both}. " + (
        "The thresholds lie on the score after the map, which was fitted and frozen before the calibration images were "
        "looked at."
        if documents.mapped
        else "The certificate does not depend on it: thresholds act on the order of the scores."
    )
    return Words("Reliability", alt, caption)


def _figure(material: Material) -> Drawing:
    return reliability(material.evaluation)


FIGURE = Figure("reliability", _figure, _words, "scores")
