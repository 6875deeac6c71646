"""The figures of the report as PNG and SVG: same documents in, same bytes out."""

from __future__ import annotations

import numpy as np

from stage1.report.explorer import collect
from stage1.report.figures.drawing import INK, Document, Drawing, finished, fitting, new_figure, style
from stage1.report.figures.exit import exits
from stage1.report.figures.need import units_needed
from stage1.report.figures.reliability import reliability
from stage1.report.figures.risk import risk_coverage
from stage1.report.figures.score import score_histogram
from stage1.report.figures.threshold import threshold_plane
from stage1.report.numbers import percent
from stage1.scores import Scores


def draw_figures(
    *, certificate: Document, evaluation: Document, policy: Document, scores: Scores, calibration: Scores | None = None
) -> dict[str, Drawing]:
    """All figures of the report by name, each as PNG and SVG bytes.

    risk_coverage, score_histogram, reliability, exit_confusion, units_needed, exits; threshold_plane where
    `calibration` gives back the counts of the certificate (stage1.report.explorer.collect).
    certificate, evaluation, policy: the documents certificate.json, evaluation.json, thresholds.json. Optional in
    evaluation:
    `reliability_before` (rows as `reliability`, before the calibration map), `slices` (rows {slice, value, counts}).
    scores: the scores of val_test, [N, 2] with labels; they draw how each certified risk moves with its threshold.
    calibration: the labelled units of val_calib that the certificate counted.
    Raises MissingError where matplotlib is not installed.
    """
    evidence = collect(certificate, policy, calibration)
    with style():
        drawn = {
            "risk_coverage": risk_coverage(certificate, evaluation, policy, scores),
            "score_histogram": score_histogram(evaluation, policy, scores),
            "reliability": reliability(evaluation),
            "exit_confusion": _exit_confusion(evaluation),
            "exits": exits(evaluation),
            "units_needed": units_needed(certificate),
        }
        if not isinstance(evidence, str):
            drawn["threshold_plane"] = threshold_plane(evidence, [str(name) for name in certificate["classes"]])
    return drawn


def _exit_confusion(evaluation: Document) -> Drawing:
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
    axis.set_xticks(range(len(table["columns"])), [fitting(name, 22) for name in table["columns"]], color=INK)
    axis.set_yticks(range(len(table["rows"])), [f"true {fitting(name, 22)}" for name in table["rows"]], color=INK)
    axis.grid(False)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    for side in axis.spines.values():
        side.set_visible(False)
    return finished(figure)
