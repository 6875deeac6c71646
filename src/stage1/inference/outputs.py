"""What the model says of images, batch by batch, and the scores that policies take of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.inference.views import SPREAD, ViewOutputs, ViewTrace, joined_traces, look
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import Scores

if TYPE_CHECKING:
    from stage1.views import ViewsDocument


@dataclass(frozen=True, slots=True)
class ModelOutputs:
    """The outputs of n images.

    logits: [n, K], float32 as the model gives them, float64 where they are aggregated from views. gate: [n] or None.
    trace: which views of each image were evaluated, and which decided; None where there are no views.
    """

    logits: NDArray[Any]
    gate: NDArray[Any] | None
    trace: ViewTrace | None = None

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Which images have an answer at all, bool [n]: a model may give NaN for one strange image."""
        finite: NDArray[np.bool_] = np.isfinite(self.logits).all(axis=1)
        return finite if self.gate is None else finite & np.isfinite(self.gate)

    def scores(self, rows: NDArray[np.bool_] | None = None, **columns: Any) -> Scores:
        """Scores of these rows (None: all); columns: labels, groups, ids, slices of them. Raises DataError for NaN."""
        kept = slice(None) if rows is None else rows
        return Scores(
            logits=self.logits[kept].astype(np.float64),
            gate=None if self.gate is None else self.gate[kept].astype(np.float64),
            extra={} if self.trace is None else {SPREAD: self.trace.spread[kept]},
            **columns,
        )


def outputs_of_views(outputs: ViewOutputs, views: ViewsDocument, spec: Preprocessing) -> ModelOutputs:
    """What the images' own outputs are, of all their views: as a predictor with these views gives them."""
    trace = look(outputs, views, spec)
    return ModelOutputs(trace.logits, trace.gate, trace)


def joined(parts: Sequence[ModelOutputs], n_classes: int, *, gate: bool) -> ModelOutputs:
    """All batches as one; where there is none, an empty one of this shape."""
    if not parts:
        return ModelOutputs(np.zeros((0, n_classes), np.float32), np.zeros(0, np.float32) if gate else None)
    gates = [part.gate for part in parts if part.gate is not None]
    traces = [part.trace for part in parts if part.trace is not None]
    return ModelOutputs(
        np.concatenate([part.logits for part in parts]),
        np.concatenate(gates) if gates else None,
        joined_traces(traces) if traces else None,
    )
