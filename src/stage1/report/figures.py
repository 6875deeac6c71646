"""The figures of the report as PNG bytes: same documents in, same bytes out."""

from __future__ import annotations

import numpy as np

from stage1.report.drawing import CLASS_COLOURS, GREY, INK, Document, new_figure, png_bytes, style
from stage1.report.risk_figure import risk_coverage
from stage1.report.score_figure import score_histogram
from stage1.report.wording import percent
from stage1.risk import binomial_lower, binomial_upper
from stage1.scores import Scores


def draw_figures(*, certificate: Document, evaluation: Document, policy: Document, scores: Scores) -> dict[str, bytes]:
    """All figures of the report: {"risk_coverage" | "score_histogram" | "reliability" | "exit_confusion": PNG bytes}.

    certificate, evaluation, policy: the documents certificate.json, evaluation.json, thresholds.json.
    scores: the scores of val_test, [N, 2] with labels; they draw how each certified risk moves with its threshold.
    Raises MissingError where matplotlib is not installed.
    """
    with style():
        return {
            "risk_coverage": risk_coverage(certificate, evaluation, policy, scores),
            "score_histogram": score_histogram(evaluation, policy, scores),
            "reliability": _reliability(evaluation),
            "exit_confusion": _exit_confusion(evaluation),
        }


def _reliability(evaluation: Document) -> bytes:
    bins = [row for row in evaluation["reliability"] if row["count"] and row["observed_rate"] is not None]
    figure = new_figure(4.9)
    axis, below = figure.subplots(2, 1, sharex=True, height_ratios=[3.2, 1.0])
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1.2, linestyle=(0, (4, 3)))
    if bins:
        count = np.array([row["count"] for row in bins])
        mean, rate = (
            np.array([row[key] for row in bins], dtype=np.float64) for key in ("mean_probability", "observed_rate")
        )
        hits, tail = np.round(rate * count), (1 - evaluation["level"]) / 2
        spread = np.maximum([rate - binomial_lower(hits, count, tail), binomial_upper(hits, count, tail) - rate], 0.0)
        axis.errorbar(
            mean, rate, yerr=spread, fmt="o-", color=CLASS_COLOURS[0], markersize=5.5, capsize=3, linewidth=1.3
        )
        below.vlines(mean, 0, count, color=CLASS_COLOURS[0], linewidth=4.0)
        below.set_ylim(0, 1.15 * float(count.max()))
        below.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set_ylim(-0.02, 1.02)
    axis.set_xlim(-0.02, 1.02)
    axis.set_ylabel(
        f"observed share of {evaluation['classes'][-1]}" if len(evaluation["classes"]) == 2 else "observed rate"
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
    return png_bytes(figure)


def _exit_confusion(evaluation: Document) -> bytes:
    table = evaluation["exit_confusion"]
    counts = np.asarray(table["counts"], dtype=np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1.0)
    figure = new_figure(1.0 + 0.75 * len(table["rows"]))
    axis = figure.subplots()
    # Half of the colour scale: dark type stays readable on the fullest cell.
    axis.imshow(share, cmap="Blues", vmin=0.0, vmax=1.8, aspect="auto")
    for row, column in np.ndindex(*counts.shape):
        text = f"{counts[row, column]:,.0f}\n{percent(share[row, column]) if totals[row, 0] else '–'}"
        axis.text(column, row, text, ha="center", va="center", color=INK)
    axis.set_xticks(range(len(table["columns"])), table["columns"], color=INK)
    axis.set_yticks(range(len(table["rows"])), [f"true {name}" for name in table["rows"]], color=INK)
    axis.grid(False)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    for side in axis.spines.values():
        side.set_visible(False)
    return png_bytes(figure)
