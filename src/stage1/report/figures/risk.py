"""Risk against coverage: the model's curve, and each certified risk as its own threshold moves."""

from __future__ import annotations

from typing import Any

import numpy as np

from stage1.evaluation.verdict import interval
from stage1.policy.certificate import shown_bound
from stage1.report.figures.drawing import (
    CERTIFIED,
    CLASS_COLOURS,
    GREY,
    INK,
    Document,
    Drawing,
    Floats,
    finished,
    new_figure,
    numbers,
)
from stage1.report.figures.figure import Documents, Figure, Material, Words
from stage1.report.numbers import percent, upper_percent
from stage1.risk.risks import RISKS, closed_forms
from stage1.scores import Scores

MAX_POINTS = 400


def risk_path(risk: str, scores: Scores, lo: float | None, hi: float | None) -> tuple[Floats, Floats] | None:
    """How a risk and the coverage change while its own threshold moves over all scores and the other stays.

    risk: one among images of one class: of positives (fnr, miss_rate) lo moves, at most to hi; of negatives (fpr,
    false_exit_rate) hi moves, at least to lo.
    scores: [N, 2] with labels. lo, hi: raw scores, None = that side never exits.
    Returns (coverage [T], risk [T]) by rising coverage, T <= 400; None for another risk, where both sides abstain
    (there is no point to start from), or where the class has no image. Undefined risks (no exits) are left out.
    """
    row = closed_forms().get(risk)
    if row is None or (lo is None and hi is None):
        return None
    # Mirrored, "hi moves down the negatives" is "lo moves up the positives": one sweep for all four risks.
    moves_lo = row.side == "positive"
    sign = 1.0 if moves_lo else -1.0
    margin = sign * scores.margin
    own = scores.known_labels == (1 if moves_lo else 0)
    fixed = hi if moves_lo else lo
    other = np.inf if fixed is None else sign * fixed
    if not own.any():
        return None
    ordered, ordered_own = np.sort(margin), np.sort(margin[own])
    # The moving threshold is just above each distinct score below the fixed one: a tied block exits as a whole.
    steps = np.unique(margin[margin < other])
    wrong = np.concatenate([[0], np.searchsorted(ordered_own, steps, side="right")])
    exits = np.concatenate([[0], np.searchsorted(ordered, steps, side="right")]) + int((margin > other).sum())
    right = int((margin[own] > other).sum())
    below = wrong + right if row.among == "exits" else np.full_like(wrong, own.sum())
    defined = below > 0
    coverage, value = exits[defined] / len(scores), wrong[defined] / below[defined]
    keep: Any = np.unique(np.linspace(0, len(coverage) - 1, MAX_POINTS).round().astype(int)) if len(coverage) else []
    return coverage[keep], value[keep]


def risk_coverage(certificate: Document, evaluation: Document, policy: Document, scores: Scores) -> Drawing:
    paths = {}
    for name in certificate["risks"]:
        path = risk_path(name, scores, policy["lo"], policy["hi"]) if scores.n_classes == 2 else None
        if path is not None:
            paths[name] = path
    figure = new_figure(2.7 + 1.9 * len(paths))
    axes = figure.subplots(1 + len(paths), 1, sharex=True, squeeze=False, height_ratios=[1.3] + [1.0] * len(paths))[
        :, 0
    ]
    point = evaluation["operating_point"]
    for axis in axes:
        if point["coverage"]:
            axis.axvline(point["coverage"], color=GREY, linewidth=1.0, linestyle=(0, (2, 2)))
    _selective_panel(axes[0], certificate, evaluation)
    for axis, (name, path) in zip(axes[1:], paths.items(), strict=True):
        _risk_panel(axis, name, path, certificate, evaluation)
    axes[-1].set_xlabel(f"coverage: share of {evaluation['role']} that exits")
    # Beyond 1, so that a point at full coverage is not cut.
    axes[-1].set_xlim(0, 1.03)
    axes[-1].set_xticks(np.linspace(0, 1, 6))
    axes[-1].xaxis.set_major_formatter(lambda value, _: percent(value))
    return finished(figure)


def _selective_panel(axis: Any, certificate: Document, evaluation: Document) -> None:
    curve, point = evaluation["curve"], evaluation["operating_point"]
    coverage, selective = numbers(curve["coverage"]), numbers(curve["selective_risk"])
    axis.plot(coverage, selective, color=CLASS_COLOURS[0], label="wrong among exits")
    axis.plot(
        coverage,
        numbers(curve["generalised_risk"]),
        color=CLASS_COLOURS[5],
        linestyle=(0, (5, 2)),
        label="wrong exits among all",
    )
    marks, bound = [_last(selective, coverage)], certificate["risks"].get("error")
    if point["coverage"] and point["selective_risk"] is not None:
        axis.plot(
            point["coverage"], point["selective_risk"], "D", color=INK, markersize=7, label="this policy", zorder=5
        )
        marks.append(point["selective_risk"])
    if bound is not None:
        top = _risk_axis(axis, [*marks, bound["target"], bound["bound"] or 0.0])
        _bound_marks(axis, bound, shown_bound(certificate, "error"), point, top)
    else:
        _risk_axis(axis, marks)
    axis.set_title("Error against coverage, most confident first")
    # Away from the diamond, which may lie anywhere above the curve at low coverage.
    axis.legend(loc="upper left" if (point["coverage"] or 1.0) > 0.4 else "upper center")


def _risk_panel(axis: Any, name: str, path: tuple[Floats, Floats], certificate: Document, evaluation: Document) -> None:
    bound, observed, point = certificate["risks"][name], evaluation["risks"].get(name), evaluation["operating_point"]
    colour = CLASS_COLOURS[1 if RISKS[name].side == "positive" else 0]
    axis.step(path[0], path[1], where="post", color=colour)
    marks = [bound["target"], bound["bound"] or 0.0]
    if observed and observed["observed"] is not None and point["coverage"]:
        # A bootstrap over groups may leave the observed value just outside.
        value, (low, high) = observed["observed"], interval(observed, evaluation["unit"])
        low, high = min(low or 0.0, value), max(1.0 if high is None else high, value)
        axis.errorbar(
            point["coverage"],
            value,
            yerr=[[value - low], [high - value]],
            fmt="D",
            color=INK,
            markersize=6,
            capsize=4,
            linewidth=1.5,
            zorder=5,
        )
        marks.append(min(high, 2.6 * bound["target"]))
    _bound_marks(axis, bound, shown_bound(certificate, name), point, _risk_axis(axis, marks))
    axis.set_title(f"{name} as its threshold moves")


def _bound_marks(axis: Any, bound: Document, joint: float | None, point: Document, top: float) -> None:
    """The target, and the joint bound at the coverage of the policy, where there is one to show."""
    white = {"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.85}
    axis.axhline(bound["target"], color=INK, linewidth=1.2, linestyle=(0, (6, 3)))
    axis.annotate(
        f"target {percent(bound['target'])}",
        (1.0, bound["target"]),
        xytext=(-2, 4),
        textcoords="offset points",
        fontsize=10,
        ha="right",
        bbox=white,
        zorder=6,
    )
    if joint is None or not point["coverage"]:
        return
    x, y = point["coverage"], joint
    axis.plot(
        [max(0.0, x - 0.05), min(1.0, x + 0.05)],
        [y, y],
        color=CERTIFIED,
        linewidth=3.5,
        solid_capstyle="butt",
        zorder=4,
    )
    # On the left, where the curve is low, unless there is no room; below the bar where the target lies close above it.
    left = x > 0.45
    axis.annotate(
        f"joint bound {upper_percent(y)}",
        (x - 0.05 if left else x + 0.05, y),
        xytext=(-5 if left else 5, 9 if bound["target"] - y > 0.22 * top or y < 0.2 * top else -9),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=10,
        color=CERTIFIED,
        bbox=white,
        zorder=6,
    )


def _risk_axis(axis: Any, marks: list[float]) -> float:
    # Scaled to what is decided here (target, bound, interval); a curve that leaves the top is simply worse than that.
    top = max(1.35 * max(marks), 1e-3)
    axis.set_ylim(0, top)
    axis.yaxis.set_major_formatter(lambda value, _: percent(value) if value else "0")
    return top


def _last(risk: Floats, coverage: Floats) -> float:
    """The risk at the greatest coverage that has one."""
    known = np.flatnonzero(np.isfinite(risk))
    return float(risk[known[np.argmax(coverage[known])]]) if len(known) else 0.0


# ---- on the page --------------------------------------------------------------------------------------------------


def _words(documents: Documents) -> Words:
    point, policy, role = documents.evaluation["operating_point"], documents.policy, documents.role
    alt = (
        f"Line chart of risk against coverage on {role}. This policy: coverage {percent(point['coverage'])}, error"
        " among "
        f"exits {percent(point['selective_risk'])}."
    )
    if policy["lo"] is not None or policy["hi"] is not None:
        caption = (
            "Each lower panel moves the one threshold its risk depends on and keeps the other. Diamond: this policy on "
            f"{role} with its interval; green bar: the joint bound; dashed: the target. With one threshold per class"
            " the "
            "policy need not lie on the curve above, which ranks both classes alike."
        )
    elif documents.certificate["certified"]:
        # Its bound and target are shares of the images that exit only where the target is the error.
        drawn = "; green bar: the joint bound; dashed: the target" if "error" in documents.certificate["risks"] else ""
        caption = (
            f"Diamond: this policy on {role}{drawn}. The policy need not lie on the curve, which ranks all images by"
            " one confidence."
        )
    else:
        caption = "There is no operating point: every image defers. The curve shows what the model itself can rank."
    return Words("Risk and coverage", alt, caption)


def _figure(material: Material) -> Drawing:
    return risk_coverage(material.certificate, material.evaluation, material.policy, material.scores)


FIGURE = Figure("risk_coverage", _figure, _words, "risk")
