"""What a figure of the report is: drawn from the documents of a run, with its words and its place on the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from stage1.report.explorer import Evidence, collect
from stage1.report.figures.drawing import Document, Drawing
from stage1.scores import Scores

Place = Literal["risk", "scores", "thresholds", "exits", "need", "shift", "views", "file"]
"""Where the page shows it, in the order of the page; file: beside the page only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """certificate.json, evaluation.json and thresholds.json of a run; views: what views.json says, None without."""

    certificate: Document
    evaluation: Document
    policy: Document
    views: Document | None = None

    @property
    def role(self) -> str:
        return str(self.evaluation["role"])

    @property
    def negative(self) -> str:
        return str(self.evaluation["classes"][0])

    @property
    def positive(self) -> str:
        return str(self.evaluation["classes"][-1])

    @property
    def units(self) -> str:
        """What the certificate counted, in the plural."""
        return "groups" if self.certificate["unit"] == "group" else "images"

    @property
    def mapped(self) -> bool:
        """Whether the thresholds are on the score after the calibration map."""
        calibration = self.evaluation.get("calibration")
        return calibration is not None and calibration["score"] == "mapped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Material(Documents):
    """What a figure is drawn from: the documents, and scores.

    scores: of val_test, [N, K] with labels. calibration: the labelled units of val_calib that the certificate counted,
    None where they are not available.
    """

    scores: Scores
    calibration: Scores | None = None

    @property
    def evidence(self) -> Evidence | str:
        """The counts of the certificate at any thresholds, or why they cannot be given back."""
        return collect(self.certificate, self.policy, self.calibration)


@dataclass(frozen=True, slots=True)
class Words:
    """title: above the figure. alt: for who does not see it. caption: below it, how to read it."""

    title: str
    alt: str
    caption: str


@dataclass(frozen=True, slots=True)
class Figure:
    """A row of FIGURES.

    name: of its files in figures/. draw: None where this run has nothing to draw; called with the style of all figures,
    and the same material gives the same bytes. words: asked where it was drawn and has a place on the page.
    """

    name: str
    draw: Callable[[Material], Drawing | None]
    words: Callable[[Documents], Words] | None = None
    place: Place = "file"
