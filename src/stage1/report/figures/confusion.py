"""What the policy did with the images of each class: counts and shares, as a matrix."""

from __future__ import annotations

import numpy as np

from stage1.report.figures.drawing import INK, Document, Drawing, finished, fitting, new_figure
from stage1.report.figures.figure import Figure
from stage1.report.numbers import percent


def exit_confusion(evaluation: Document) -> Drawing:
    """evaluation: evaluation.json; what the policy did with the images of each class."""
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


FIGURE = Figure("exit_confusion", lambda material: exit_confusion(material.evaluation))
