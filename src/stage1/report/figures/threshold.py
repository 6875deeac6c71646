"""The threshold plane: at which pairs (lo, hi) the exact bounds of all certified risks are within their targets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.report.explorer import Evidence
from stage1.report.figures.drawing import (
    CERTIFIED,
    CLASS_COLOURS,
    GREY,
    INK,
    Drawing,
    Floats,
    finished,
    fitting,
    new_figure,
)
from stage1.report.figures.figure import Documents, Figure, Material, Words
from stage1.report.figures.score import histogram_edges
from stage1.report.numbers import number, percent
from stage1.risk import binomial_pvalue

Bools = NDArray[np.bool_]
# Points along each axis: finer than a pixel of the printed figure.
_GRID = 420
_DASHES: tuple[Any, ...] = ("solid", (0, (6, 2)), (0, (2, 2)), (0, (7, 2, 2, 2)), (0, (1, 1)))


def feasible(evidence: Evidence, lo: Floats, hi: Floats) -> tuple[dict[str, Bools], Floats]:
    """Which pairs keep each risk within its target by the exact tail at its delta, bool [T]; their coverage, [T].

    lo, hi: float [T]. Each pair is judged as if it alone had been fixed in advance: what a reader may explore, not a
    certificate.
    """
    exits = evidence.exits(lo, hi)
    held = {}
    for name, target in evidence.targets.items():
        errors, n = exits.counts(name)
        held[name] = binomial_pvalue(errors, n, target) <= evidence.deltas[name]
    return held, exits.exits / evidence.n


def threshold_plane(evidence: Evidence, classes: list[str]) -> Drawing:
    scores = np.concatenate([evidence.negatives, evidence.positives])
    edges, _ = histogram_edges(scores, [value for value in (evidence.lo, evidence.hi) if value is not None])
    ticks = np.linspace(edges[0], edges[-1], _GRID)
    lo, hi = np.meshgrid(ticks, ticks)
    # Where lo > hi an image would exit as both: no such policy, nothing to count.
    allowed = lo <= hi
    held, covered = {name: np.zeros_like(allowed) for name in evidence.targets}, np.full(lo.shape, np.nan)
    found, coverage = feasible(evidence, lo[allowed], hi[allowed])
    for name, values in found.items():
        held[name][allowed] = values
    covered[allowed] = coverage
    figure = new_figure(5.9)
    axis = figure.subplots()
    axis.grid(False)
    _region(axis, ticks, np.logical_and.reduce(list(held.values())), CERTIFIED, 0.28)
    _region(axis, ticks, ~allowed, GREY, 0.16)
    _coverage_lines(axis, lo, hi, covered)
    colours = CLASS_COLOURS[1:2] + CLASS_COLOURS[0:1] + CLASS_COLOURS[3:]
    handles = []
    for (name, inside), colour, dash in zip(held.items(), colours, _DASHES, strict=False):
        edge = np.where(allowed, inside.astype(float), np.nan)
        if np.nanmin(edge) < np.nanmax(edge):
            axis.contour(lo, hi, edge, levels=[0.5], colors=[colour], linewidths=1.8, linestyles=[dash])
        label = f"{name} = {percent(evidence.targets[name])}"
        label += "" if inside.any() else ", out of reach"
        handles += axis.plot([], [], color=colour, linestyle=dash, label=label)
    _chosen_point(axis, evidence, ticks)
    axis.legend(
        handles=handles, loc="lower right", title="where the exact bound meets its target", title_fontsize=9, fontsize=9
    )
    axis.text(0.62, 0.35, "lo above hi:\nno such policy", transform=axis.transAxes, color=GREY, fontsize=9)
    axis.set_xlim(ticks[0], ticks[-1])
    axis.set_ylim(ticks[0], ticks[-1])
    axis.set_xlabel(f"lo: a score below it exits as {fitting(classes[0])}")
    axis.set_ylabel(f"hi: a score above it exits as {fitting(classes[-1])}")
    return finished(figure)


def _region(axis: Any, ticks: Floats, inside: Bools, colour: str, alpha: float) -> None:
    from matplotlib.colors import to_rgba

    paint = np.zeros((*inside.shape, 4))
    paint[inside] = to_rgba(colour, alpha)
    half = (ticks[1] - ticks[0]) / 2
    ends = (ticks[0] - half, ticks[-1] + half)
    axis.imshow(paint, origin="lower", extent=(*ends, *ends), aspect="auto", interpolation="nearest")


def _coverage_lines(axis: Any, lo: Floats, hi: Floats, covered: Floats) -> None:
    low, high = float(np.nanmin(covered)), float(np.nanmax(covered))
    levels = [level for level in (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95) if low < level < high]
    if levels:
        lines = axis.contour(lo, hi, covered, levels=levels, colors=[GREY], linewidths=0.7, alpha=0.8)
        axis.clabel(lines, fmt=lambda value: f"{percent(float(value))} exit", fontsize=8, inline=True)


def _chosen_point(axis: Any, evidence: Evidence, ticks: Floats) -> None:
    if not evidence.certified:
        axis.set_title("Nothing is certified at these targets", fontsize=10, weight="normal")
        return
    x = ticks[0] if evidence.lo is None else evidence.lo
    y = ticks[-1] if evidence.hi is None else evidence.hi
    axis.plot(x, y, "D", color=INK, markersize=8, markeredgecolor="white", zorder=6, clip_on=False)
    low, high = ("never" if value is None else f"{value:.3g}" for value in (evidence.lo, evidence.hi))
    # Towards the middle of the panel, where there is room.
    left = (x - ticks[0]) < 0.55 * (ticks[-1] - ticks[0])
    up = (y - ticks[0]) < 0.75 * (ticks[-1] - ticks[0])
    axis.annotate(
        f"certified: lo {low}, hi {high}",
        (x, y),
        xytext=(9 if left else -9, 9 if up else -9),
        textcoords="offset points",
        ha="left" if left else "right",
        va="bottom" if up else "top",
        zorder=7,
        fontsize=10,
        weight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1.5},
    )


# ---- on the page --------------------------------------------------------------------------------------------------


def _words(documents: Documents) -> Words:
    certified, policy = documents.certificate["certified"], documents.policy
    chosen = f" and the chosen pair, lo {number(policy['lo'])}, hi {number(policy['hi'])}" if certified else ""
    return Words(
        "Threshold plane",
        f"Map of all pairs of thresholds lo and hi on the calibration {documents.units}: where the exact bounds of all "
        f"certified risks are within their targets, with lines of equal coverage{chosen}.",
        "Green: every exact bound is within its target at that pair. "
        + (
            "Only the marked pair is certified: it was found by a procedure that pays for looking. Picking the best"
            " green "
            "pair afterwards would not be."
            if certified
            else "Nothing is certified: a green pair picked after looking would not be either."
        ),
    )


def _figure(material: Material) -> Drawing | None:
    evidence = material.evidence
    if isinstance(evidence, str):
        return None
    return threshold_plane(evidence, [str(name) for name in material.certificate["classes"]])


FIGURE = Figure("threshold_plane", _figure, _words, "thresholds")
