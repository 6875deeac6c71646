"""The table of the report's figures: what is drawn for a run, in the order in which the files are written."""

from __future__ import annotations

from collections.abc import Mapping

from stage1.report.figures import confusion, exit, need, reliability, risk, score, shift, threshold, views
from stage1.report.figures.drawing import Document, Drawing, style
from stage1.report.figures.figure import Documents, Figure, Material, Words
from stage1.scores import Scores

FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        risk.FIGURE,
        score.FIGURE,
        reliability.FIGURE,
        confusion.FIGURE,
        exit.FIGURE,
        need.FIGURE,
        threshold.FIGURE,
        shift.FIGURE,
        views.FIGURE,
    )
}
"""Every figure of the report. A further one is its file, ending in its row, and its line here."""


def draw_figures(
    *,
    certificate: Document,
    evaluation: Document,
    policy: Document,
    scores: Scores,
    calibration: Scores | None = None,
    views: Document | None = None,
) -> dict[str, Drawing]:
    """The figures of FIGURES that this run has, by name, each as PNG and SVG bytes.

    certificate, evaluation, policy: the documents certificate.json, evaluation.json, thresholds.json. Optional in
    evaluation: `reliability_before` (rows as `reliability`, before the calibration map), `slices` (rows {slice, value,
    counts}), `label_shift`, `views`. scores: the scores of val_test, [N, K] with labels; they draw how each certified
    risk moves with its threshold. calibration: the labelled units of val_calib that the certificate counted; without
    them there is no threshold plane. views: as `write_report`.
    Raises MissingError where matplotlib is not installed.
    """
    material = Material(
        certificate=certificate,
        evaluation=evaluation,
        policy=policy,
        views=views,
        scores=scores,
        calibration=calibration,
    )
    with style():
        drawn = {name: figure.draw(material) for name, figure in FIGURES.items()}
    return {name: drawing for name, drawing in drawn.items() if drawing is not None}


def words_of_figures(documents: Documents, drawn: Mapping[str, Drawing]) -> dict[str, Words]:
    """The words of each drawn figure that has a place on the page."""
    return {
        name: figure.words(documents)
        for name, figure in FIGURES.items()
        if name in drawn and figure.words is not None and figure.place != "file"
    }
