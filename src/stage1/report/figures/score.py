"""Histograms of the raw score by class, with the thresholds and the shares on each side of them."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np

from stage1.report.figures.drawing import (
    CLASS_COLOURS,
    INK,
    Document,
    Drawing,
    Floats,
    finished,
    fitting,
    new_figure,
    numbers,
)
from stage1.report.figures.figure import Documents, Figure, Material, Words
from stage1.report.numbers import number
from stage1.scores import Scores


def histogram_edges(values: Floats, thresholds: list[float], bins: int = 60) -> tuple[Floats, bool]:
    """Bin edges [B+1] over where the scores are, and whether scores lie beyond them.

    values: raw scores [N]. A threshold is always an edge: no bar straddles it, so what exits can be counted.
    Ends at the last score within 2.5 interquartile ranges of the quartiles: a few scores far out (a saturated
    probability has a raw score of 700) must not press everything else into one bar. What lies beyond belongs into the
    outermost bars.
    """
    ends = list(thresholds)
    if len(values):
        first, third = np.quantile(values, [0.25, 0.75])
        room = 2.5 * (third - first) or 1.0
        near = values[(values >= first - room) & (values <= third + room)]
        ends += [float(near.min()), float(near.max())]
    low, high = (min(ends), max(ends)) if ends else (0.0, 0.0)
    margin = 0.02 * (high - low) or 0.5
    low, high = low - margin, high + margin
    corners = np.unique([low, *thresholds, high])
    parts = [
        np.linspace(start, end, max(1, round(bins * (end - start) / (high - low))) + 1)
        for start, end in pairwise(corners)
    ]
    beyond = bool(len(values) and (values.min() < low or values.max() > high))
    return np.unique(np.concatenate(parts)), beyond


def _histogram(evaluation: Document, scores: Scores, thresholds: list[float]) -> tuple[Floats, dict[str, Floats], bool]:
    if scores.n_classes != 2:
        drawn = evaluation["histogram"]
        return numbers(drawn["edges"]), {name: numbers(counts) for name, counts in drawn["counts"].items()}, False
    edges, beyond = histogram_edges(scores.margin, thresholds)
    inside = np.clip(scores.margin, edges[0], edges[-1])
    names = evaluation["classes"]
    return (
        edges,
        {name: np.histogram(inside[scores.known_labels == k], edges)[0].astype(float) for k, name in enumerate(names)},
        beyond,
    )


def score_histogram(evaluation: Document, policy: Document, scores: Scores) -> Drawing:
    thresholds = [value for value in (policy["lo"], policy["hi"]) if value is not None]
    edges, counts, beyond = _histogram(evaluation, scores, thresholds)
    names, table = list(counts), evaluation["exit_confusion"]
    figure = new_figure(1.2 + 1.6 * max(2, len(names)))
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    highest = max(1.0, *(float(values.max(initial=0.0)) for values in counts.values()))
    # The positive class on top, the other one hanging below it: the tails that cross a threshold face each other.
    for axis, name in zip(axes, reversed(names), strict=True):
        index = names.index(name)
        mirrored = len(names) == 2 and index == 0
        colour = CLASS_COLOURS[index % len(CLASS_COLOURS)]
        axis.stairs(np.maximum(counts[name], 0.5), edges, baseline=0.5, fill=True, color=colour, alpha=0.85)
        _count_axis(axis, 0.5, highest * 12.0)
        if mirrored:
            axis.invert_yaxis()
            axis.spines.bottom.set_visible(False)
            axis.spines.top.set_visible(True)
            axis.tick_params(axis="x", length=0)
        if policy.get("by_slice") is None:
            _regions(axis, edges, policy)
            _region_counts(axis, edges, policy, table["columns"], table["counts"][index], mirrored)
        for pair in _pairs(policy):
            for value, side_colour in ((pair["lo"], CLASS_COLOURS[0]), (pair["hi"], CLASS_COLOURS[1])):
                if value is not None:
                    axis.axvline(value, color=side_colour, linewidth=0.9, linestyle=(0, (5, 2)))
        axis.set_ylabel(f"{fitting(name, 20)}\nimages (log)", color=colour)
    for value, text in ((policy["lo"], "lo"), (policy["hi"], "hi")):
        if value is not None:
            left = text == "lo"
            axes[0].annotate(
                f"{text} = {value:.3g}",
                (value, 1.0),
                xycoords=axes[0].get_xaxis_transform(),
                xytext=(-3 if left else 3, 2),
                textcoords="offset points",
                ha="right" if left else "left",
                fontsize=10,
            )
    if not thresholds and not policy["certified"]:
        axes[0].set_title("No thresholds: every image defers", fontsize=10, weight="normal")
    axes[-1].set_xlim(edges[0], edges[-1])
    kind = f"{evaluation.get('calibration', {}).get('score', 'raw')} score"
    label = (
        f"{kind}: logit of {fitting(names[-1], 20)} minus logit of {fitting(names[0], 20)}"
        if len(names) == 2
        else "confidence: logit of the largest probability"
    )
    axes[-1].set_xlabel(f"{label}\n(the outermost bars hold everything beyond)" if beyond else label)
    return finished(figure)


def _count_axis(axis: Any, bottom: float, top: float) -> None:
    axis.set_yscale("log")
    axis.set_ylim(bottom, top)
    axis.set_yticks([10.0**power for power in range(0, int(math.log10(top)) + 1)])
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.minorticks_off()


def _regions(axis: Any, edges: Floats, policy: Document) -> None:
    for value, colour, end in ((policy["lo"], CLASS_COLOURS[0], edges[0]), (policy["hi"], CLASS_COLOURS[1], edges[-1])):
        if value is not None:
            axis.axvspan(value, end, color=colour, alpha=0.08, linewidth=0)
            axis.axvline(value, color=INK, linewidth=1.3, linestyle=(0, (5, 2)))


def _pairs(policy: Document) -> list[Document]:
    """The thresholds of each slice; none where one pair is for all images."""
    by_slice = policy.get("by_slice")
    return [] if by_slice is None else list(by_slice["values"])


def _region_counts(
    axis: Any, edges: Floats, policy: Document, columns: list[str], counts: list[int], mirrored: bool
) -> None:
    if len(columns) != 3:
        return
    lo, hi = policy["lo"], policy["hi"]
    left, right = (edges[0] if lo is None else lo), (edges[-1] if hi is None else hi)
    for (start, end), column, count in zip(
        ((edges[0], left), (left, right), (right, edges[-1])), columns, counts, strict=True
    ):
        # In a narrow region only the count, in a sliver nothing: the table on the page has it all.
        width = (end - start) / (edges[-1] - edges[0])
        column = fitting(column)
        text = f"{column}\n{count:,}" if width > 0.017 * len(column) else f"{count:,}"
        if width > 0.06:
            axis.text(
                (start + end) / 2,
                0.04 if mirrored else 0.96,
                text,
                ha="center",
                va="bottom" if mirrored else "top",
                transform=axis.get_xaxis_transform(),
                fontsize=9,
                linespacing=1.25,
            )


# ---- on the page --------------------------------------------------------------------------------------------------


def _words(documents: Documents) -> Words:
    certificate, policy = documents.certificate, documents.policy
    if len(documents.evaluation["classes"]) > 2:
        alt = (
            "Histograms of the confidence (logit of the largest probability) of the images of each class, logarithmic "
            "counts."
        )
        caption = "No threshold: every image defers."
        if certificate["certified"] and "shown_thresholds" in policy:
            caption = (
                f"An image exits as its likeliest class iff its confidence ({policy['confidence_score']}) is above the "
                f"threshold of that class: {', '.join(policy['shown_thresholds'])}."
            )
        elif certificate["certified"]:
            caption = "The logit of the largest probability of the images of each true class."
        return Words("Confidence by class", alt, caption)
    lo, hi = number(policy["lo"]), number(policy["hi"])
    alt = (
        f"Histograms of the {'mapped' if documents.mapped else 'raw'} score, {documents.positive} above, "
        f"{documents.negative} below, logarithmic counts. Threshold lo {lo}, hi {hi}."
    )
    if certificate["certified"] and _pairs(policy):
        attribute = policy["by_slice"]["attribute"]
        caption = (
            f"Each {attribute} has thresholds of its own (lines: lo in the colour of {documents.negative}, hi in that"
            f" of {documents.positive}); they are listed with the certificate."
        )
        return Words("Scores and thresholds", alt.replace(f" Threshold lo {lo}, hi {hi}.", ""), caption)
    caption = "No threshold: both sides are shut, every image defers."
    if policy["lo"] is not None or policy["hi"] is not None:
        caption = (
            f"Below lo ({lo}) an image exits as {documents.negative}, above hi ({hi}) as {documents.positive}, between "
            "them it defers; – means that this side never exits."
        )
    return Words("Scores and thresholds", alt, caption)


def _figure(material: Material) -> Drawing:
    return score_histogram(material.evaluation, material.policy, material.scores)


FIGURE = Figure("score_histogram", _figure, _words, "scores")
