"""Adaptive views: one view after the other in a fixed order, until the answer is safe or further views are no use.

The image's score is the calibrated log-odds of the prefix of views at which it stopped. Order, maps and bounds are
fitted on val_select and frozen, so the score is a fixed function of one image and every policy and certificate applies
to it as to any other score. All steps share one scale, hence one pair of thresholds: moving along the path of
thresholds moves those of every step together.

| part | fitted by |
|---|---|
| order | greedy: next comes the view that lowers the NLL of the prefix most |
| map of each prefix | the aggregator on its views, then Platt; the learned one is a log-odds already |
| where to stop | views/stopping.py |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.calibration.binary import Platt
from stage1.calibration.folds import fold_of_rows
from stage1.errors import ConfigError, DataError
from stage1.evaluation.probability import nll_rows
from stage1.runtime.crops import ViewPolicy
from stage1.scores import Scores
from stage1.views.base import Aggregator, Floats, margins
from stage1.views.registry import AGGREGATORS, aggregator, from_document
from stage1.views.stopping import Plan, expected_rates, plan_stops

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Step:
    """What is done after so many views: log-odds = slope * margin of `aggregator` + shift, then stop or go on.

    Stops where the log-odds is <= low, >= high, or within `futility` (ends included); None: not for that reason.
    """

    aggregator: Aggregator
    slope: float
    shift: float
    low: float | None = None
    high: float | None = None
    futility: tuple[float, float] | None = None

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
        if self.futility is not None:
            stop |= (score >= self.futility[0]) & (score <= self.futility[1])
        return stop

    def to_document(self) -> dict[str, Any]:
        return {
            "aggregator": self.aggregator.to_document(),
            "slope": self.slope,
            "shift": self.shift,
            "low": self.low,
            "high": self.high,
            "hopeless": None if self.futility is None else list(self.futility),
        }


@dataclass(frozen=True, slots=True)
class Sequence:
    """order: int, all views in the order of evaluation. steps: one for each prefix.

    expected: what val_select predicts ("views": mean number, "coverage", "coverage_all": with every view always;
    "none_early": why no image stops before the others, where that is so), for the reader.
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

        The same loop as view by view: margins beyond the stop are ignored.
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

    def contributions(self, view_margins: Floats, used: Ints) -> Floats:
        """Contribution of each view to class 1 where its image stopped, [N, V]; NaN: not evaluated."""
        found = np.full(view_margins.shape, np.nan)
        for seen in np.unique(used).tolist():
            cells = np.ix_(np.flatnonzero(used == seen), np.array(self.order[:seen]))
            prefix = view_margins[cells]
            found[cells] = self.steps[seen - 1].aggregator.contributions(np.stack([-prefix / 2, prefix / 2], axis=2))
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
            Step(
                from_document(row["aggregator"]),
                float(row["slope"]),
                float(row["shift"]),
                row["low"],
                row["high"],
                None if row["hopeless"] is None else (row["hopeless"][0], row["hopeless"][1]),
            )
            for row in document["steps"]
        )
        return cls(tuple(document["order"]), steps, document["expected"])


# Share of the error budget that early answers may use up. On train images of the demo's scenes at 768 px, by heads
# that had not seen them (topk:3): .3 needs 4.19 of 10 views and loses -.007 of coverage, .5 4.04 and -.003, .7 3.92 and
# +.002 (benchmarks/views.md).
TOLERANCE = 0.7
FOLDS = 5


def fit_sequence(
    view_logits: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None,
    policy: ViewPolicy,
    name: str,
    *,
    risks: Mapping[str, float],
    confidence: float = 0.95,
    calibration_units: int | None = None,
    tolerance: float = TOLERANCE,
    seed: int = 0,
) -> Sequence:
    """The sequence for the aggregator `name` and the target, from labelled view logits of val_select, float [N, V, 2].

    calibration_units: how many independent units val_calib has (its size alone; None: as many as val_select), for
    thresholds are as far out as their number allows. tolerance: share of the errors that a certificate will allow
    which early answers may use.
    Raises ConfigError (aggregator "whole", which has no further views; a tolerance outside [0, 1)), DataError (one
    class only).
    """
    if name == "whole" or policy.count < 2:
        raise ConfigError("views.adaptive: the whole view alone is used, there are no further views to stop before")
    if not 0.0 <= tolerance < 1.0:
        raise ConfigError(f"views.tolerance: {tolerance:g}; give a share of the errors let pass, in [0, 1)")
    m, y = margins(view_logits), np.asarray(labels, dtype=np.int64)
    if m.shape[1] != policy.count:
        raise DataError(f"view logits: {m.shape[1]} views, the policy has {policy.count}; score with these views")
    if y.shape != (len(m),) or set(np.unique(y).tolist()) != {0, 1}:
        raise DataError("labels: adaptive views need images of both classes in val_select, labelled 0 and 1")
    keys = Scores(logits=np.stack([-m[:, 0], m[:, 0]], axis=1), labels=y, groups=groups)  # type: ignore[arg-type]
    order = _greedy_order(m, y, policy, name)
    ordered = m[:, order]
    fold = fold_of_rows(keys, FOLDS, seed)
    held_out = _held_out(ordered, y, policy, name, fold)
    units = calibration_units or (len(y) if keys.groups is None else len(np.unique(keys.groups)))
    rates = expected_rates(risks, confidence, units, float(y.mean()))
    plan = plan_stops(held_out, y, rates, tolerance)
    steps = [
        replace(_step(ordered[:, : seen + 1], y, policy, name), low=bound.low, high=bound.high)
        for seen, bound in enumerate(plan.bounds)
    ]
    expected: dict[str, float | str] = {
        "views": plan.views,
        "coverage": plan.coverage,
        "coverage_all": plan.coverage_all,
        "tolerance": float(tolerance),
    }
    if plan.none_early:
        expected["none_early"] = _none_early(plan, tolerance, units, policy.count)
    return Sequence(tuple(order), tuple(steps), expected)


def _none_early(plan: Plan, tolerance: float, units: int, count: int) -> str:
    if tolerance == 0:
        reason = "views.tolerance=0 allows no early answer"
    elif plan.coverage_all == 0:
        reason = f"by val_select no thresholds meet the target with {units} units of val_calib"
    else:
        reason = "by val_select no answer before the last view is sure enough for the target"
    return f"no image stops early, each is looked at with {plan.last} of {count} views: {reason}"


# ---- maps and order ----------------------------------------------------------------------------------------------


def _step(prefix: Floats, labels: NDArray[np.int64], policy: ViewPolicy, name: str) -> Step:
    """The map of one prefix, float [N, s], whose first view is the whole one where the policy has it."""
    if name in AGGREGATORS and (fit := AGGREGATORS[name].fit) is not None:  # its score is a log-odds already
        return Step(fit(prefix, labels, policy.whole), 1.0, 0.0)
    pool: Aggregator = aggregator(name, policy)
    pooled = pool(np.stack([-prefix / 2, prefix / 2], axis=2))
    fitted = Platt.fit(Scores(logits=pooled, labels=labels))
    return Step(pool, fitted.slope, fitted.shift)


def _greedy_order(m: Floats, labels: NDArray[np.int64], policy: ViewPolicy, name: str) -> list[int]:
    """The whole view first where there is one; then each time the view that lowers the NLL of the prefix most."""
    order = [0] if policy.whole else []
    while len(order) < policy.count:
        left = [view for view in range(policy.count) if view not in order]
        losses = [
            _loss(_step(m[:, [*order, view]], labels, policy, name), m[:, [*order, view]], labels) for view in left
        ]
        order.append(left[int(np.argmin(losses))])
    return order


def _loss(step: Step, prefix: Floats, labels: NDArray[np.int64]) -> float:
    score = step.score(prefix)
    return float(nll_rows(np.stack([-score / 2, score / 2], axis=1), labels).mean())


def _held_out(
    ordered: Floats, labels: NDArray[np.int64], policy: ViewPolicy, name: str, fold: NDArray[np.int64]
) -> Floats:
    """Log-odds after each view by maps fitted on the other folds, float [N, V]: what bounds are judged on."""
    found = np.empty_like(ordered)
    for part in range(int(fold.max()) + 1):
        inside = fold != part
        for seen in range(ordered.shape[1]):
            step = _step(ordered[inside, : seen + 1], labels[inside], policy, name)
            found[~inside, seen] = step.score(ordered[~inside, : seen + 1])
    return found
