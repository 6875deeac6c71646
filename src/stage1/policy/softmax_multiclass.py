"""Softmax policy for K > 2 classes: the likeliest class is the answer, given iff its confidence passes that class's
threshold. How the thresholds are chosen: policy/class_thresholds.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import DataError, IntegrityError
from stage1.policy.base import Decision, PlainPolicy
from stage1.policy.certificate import Certificate
from stage1.policy.schema import THRESHOLDS_KIND
from stage1.scores import Scores
from stage1.scores.confidence import confidence

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class MulticlassPolicy(PlainPolicy):
    """A fitted policy. certificate is None only for thresholds that were loaded without one.

    confidence_score: name in `stage1.scores.confidence`. thresholds: float [K] on it, by the answered class: exits iff
    the confidence is greater; None: nothing exits as that class. mode: "one" threshold, or one "per_class".

    >>> policy = MulticlassPolicy("msp", (1.0, 2.0, None), "per_class", ("cat", "cow", "dog"), certified=False)
    >>> decision = policy.decide(Scores(np.array([[5.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 9.0]])))
    >>> decision.exit.tolist(), decision.label.tolist()
    ([True, False, False], [0, 1, 2])
    """

    confidence_score: str
    thresholds: tuple[float | None, ...]
    mode: str
    classes: tuple[str, ...]
    certified: bool
    certificate: Certificate | None = None

    name = "softmax"
    document_kind = THRESHOLDS_KIND

    @property
    def cuts(self) -> Floats:
        """The thresholds, float [K]; +inf: nothing exits as that class."""
        return np.array([np.inf if value is None else value for value in self.thresholds])

    @property
    def margin_thresholds(self) -> tuple[float | None, float | None]:
        """(None, None): more than two classes have no single margin."""
        return None, None

    def decide(self, scores: Scores) -> Decision:
        """Exit, label and probability of the label of every row. Raises DataError for another number of classes."""
        if scores.n_classes != len(self.classes):
            raise DataError(
                f"logits: {scores.n_classes} columns; this policy was fitted on {len(self.classes)} classes"
            )
        label = scores.logits.argmax(axis=1)
        exits = confidence(self.confidence_score, scores.logits) > self.cuts[label]
        probability = np.take_along_axis(scores.probabilities, label[:, None], axis=1)[:, 0]
        return Decision(exit=exits, label=label.astype(np.int64), probability=probability)

    def to_document(self) -> dict[str, Any]:
        """Plain values for thresholds.json."""
        return {
            "policy": self.name,
            "confidence_score": self.confidence_score,
            "thresholds": list(self.thresholds),
            "mode": self.mode,
            "classes": list(self.classes),
            "certified": self.certified,
        }

    @classmethod
    def from_document(cls, document: dict[str, Any], certificate: Certificate | None = None) -> MulticlassPolicy:
        """The inverse of to_document (shape checked by the schema). Raises IntegrityError if lengths disagree."""
        if len(document["thresholds"]) != len(document["classes"]):
            raise IntegrityError(
                f"thresholds: {len(document['thresholds'])} for {len(document['classes'])} classes; run `stage1"
                " calibrate` again"
            )
        return cls(
            document["confidence_score"],
            tuple(document["thresholds"]),
            document["mode"],
            tuple(document["classes"]),
            document["certified"],
            certificate,
        )

    def refit_options(self) -> dict[str, Any]:
        """confidence_score and thresholds."""
        return {"confidence_score": self.confidence_score, "thresholds": self.mode}

    def shown(self) -> dict[str, Any]:
        """The confidence, and the threshold of each class in words."""
        cuts = zip(self.classes, self.thresholds, strict=True)
        return {
            "confidence_score": self.confidence_score,
            "shown_thresholds": [f"{name} {'never' if cut is None else f'{cut:.4g}'}" for name, cut in cuts],
        }
