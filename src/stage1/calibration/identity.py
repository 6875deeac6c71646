"""The identity: no map lowered the loss, or none was asked for. Written all the same, so that its absence says nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

from stage1.calibration.maps import CalibrationMap, FloatArray, log_softmax, provenance
from stage1.scores import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(CalibrationMap):
    """The softmax of the logits as they are; any K. n may be 0: it needs no row."""

    name: ClassVar[str] = "identity"

    @classmethod
    def fit(cls, scores: Scores) -> Self:
        """Nothing is fitted; n and fitted_on say on which rows other maps did not do better."""
        return cls(**provenance(scores))

    @property
    def monotone(self) -> bool:
        return self.n_classes == 2

    @property
    def keeps_order(self) -> bool:
        return True

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def calibrate(self, scores: Scores) -> Scores:
        """The scores themselves: not a bit of them may change by a map that does nothing."""
        return scores

    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        return log_softmax(logits)
