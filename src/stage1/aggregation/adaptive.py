"""Adaptive views: look at one view after the other in a fixed order, and stop where the answer is safe or further views are no use.

The image's score is the calibrated log-odds of the prefix of views at which it stopped. Order, maps and bounds are frozen on
val_select, so the score is a fixed function of one image and every policy and certificate applies to it as to any other score.
All steps share one scale, hence one pair of thresholds: moving along the path of thresholds moves those of every step together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.aggregation.aggregators import Aggregator, Floats, from_document
from stage1.errors import DataError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """What is done after so many views: log-odds = slope * margin of `aggregator` + shift, then stop or go on.

    Stops where the log-odds is <= low, >= high, or within `hopeless` (ends included); None: not for that reason.
    """

    aggregator: Aggregator
    slope: float
    shift: float
    low: float | None = None
    high: float | None = None
    hopeless: tuple[float, float] | None = None

    def score(self, prefix: Floats) -> Floats:
        """Calibrated log-odds, float [N], of the margins of the views so far, [N, s]."""
        pair = self.aggregator(np.stack([-prefix / 2, prefix / 2], axis=2))
        return np.asarray(self.slope * (pair[:, 1] - pair[:, 0]) + self.shift)

    def stops(self, score: Floats) -> Bools:
        stop = np.zeros(len(score), dtype=np.bool_)
        if self.low is not None:
            stop |= score <= self.low
        if self.high is not None:
            stop |= score >= self.high
        if self.hopeless is not None:
            stop |= (score >= self.hopeless[0]) & (score <= self.hopeless[1])
        return stop

    def to_document(self) -> dict[str, Any]:
        return {
            "aggregator": self.aggregator.to_document(), "slope": self.slope, "shift": self.shift, "low": self.low, "high": self.high,
            "hopeless": None if self.hopeless is None else list(self.hopeless),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Sequence:
    """order: int, all views in the order in which they are looked at. steps: one for each prefix.

    expected: what val_select predicts ("views": mean number, "coverage", "coverage_all": with every view always; "none_early": why no
    image stops before the others, where that is so), for the reader.
    Raises DataError where order is no permutation or steps are not one for each view.
    """

    order: tuple[int, ...]
    steps: tuple[Step, ...]
    expected: Mapping[str, Any]

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.order))) or len(self.steps) != len(self.order):
            raise DataError(
                f"sequence: order {list(self.order)} with {len(self.steps)} steps; one step for each view is needed"
            )

    def step(self, prefix: Floats) -> tuple[Bools, Floats]:
        """(stop, score), bool and float [N], after the margins of the first s views in the order, float [N, s].

        After the last view every image stops. Raises DataError for more views than there are steps, or none.
        """
        seen = prefix.shape[1]
        if not 1 <= seen <= len(self.steps):
            raise DataError(f"sequence: {seen} views, 1 to {len(self.steps)} are expected")
        score = self.steps[seen - 1].score(prefix)
        stop = np.ones(len(score), dtype=np.bool_) if seen == len(self.steps) else self.steps[seen - 1].stops(score)
        return stop, score

    def run(self, view_margins: Floats) -> tuple[Floats, Ints]:
        """(score, number of views used), float and int [N], of complete margins float [N, V] in the policy's order.

        The same loop as view by view: margins beyond the stop are not looked at.
        """
        n, v = view_margins.shape
        if v != len(self.order):
            raise DataError(f"view logits: {v} views, the sequence is of {len(self.order)}; score with these views")
        ordered = view_margins[:, list(self.order)]
        score, used = np.empty(n), np.zeros(n, dtype=np.int64)
        open_rows = np.arange(n)
        for seen in range(1, v + 1):
            stop, now = self.step(ordered[open_rows, :seen])
            score[open_rows[stop]], used[open_rows[stop]] = now[stop], seen
            open_rows = open_rows[~stop]
        return score, used

    def pulls(self, view_margins: Floats, used: Ints) -> Floats:
        """How far each view pulled towards class 1 at the step where its image stopped, [N, V]; NaN where it was not looked at."""
        found = np.full(view_margins.shape, np.nan)
        for seen in np.unique(used).tolist():
            cells = np.ix_(np.flatnonzero(used == seen), np.array(self.order[:seen]))
            prefix = view_margins[cells]
            found[cells] = self.steps[seen - 1].aggregator.pulls(np.stack([-prefix / 2, prefix / 2], axis=2))
        return found

    def to_document(self) -> dict[str, Any]:
        return {
            "order": list(self.order),
            "steps": [step.to_document() for step in self.steps],
            "expected": dict(self.expected),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Sequence:
        """The inverse of `to_document`. Raises DataError."""
        steps = tuple(
            Step(from_document(row["aggregator"]), float(row["slope"]), float(row["shift"]), row["low"], row["high"],
                 None if row["hopeless"] is None else (row["hopeless"][0], row["hopeless"][1]))
            for row in document["steps"]
        )  # fmt: skip
        return cls(tuple(document["order"]), steps, document["expected"])
