"""Cost against risk as the first stage's thresholds move: what each stage costs, measured, and one row per configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.inference.cascade.candidates import Candidate
from stage1.inference.cascade.certify import Sample, measure
from stage1.inference.cascade.config import CascadeConfig
from stage1.inference.cascade.resilience import ANSWERED
from stage1.inference.cascade.rules import Recorded, final_answers
from stage1.inference.cascade.whole import Labelled

Floats = NDArray[np.float64]


def stage_costs(recorded: Recorded, config: CascadeConfig) -> list[dict[str, Any]]:
    """Of each stage: calls, share failed, attempts per image, milliseconds (median, 95th percentile), and what an image costs.

    money: attempts times the price; milliseconds: the config's, else the mean as measured, retries and time-outs included;
    waited_milliseconds: mean wait for calls.per_minute, which is of the evaluation's hurry and no cost of the stage.
    """
    rows = []
    for place, stage in enumerate(config.stages):
        asked = recorded.outcome[:, place] != ""
        spent, tries = recorded.milliseconds[asked, place], recorded.attempts[asked, place]
        attempts = float(tries.mean()) if len(tries) else 0.0
        measured = float(spent.mean()) if len(spent) else 0.0
        rows.append({
            "stage": stage.name, "kind": stage.kind, "calls": int(asked.sum()), "attempts": attempts,
            "failed": float((recorded.outcome[asked, place] != ANSWERED).mean()) if asked.any() else 0.0,
            "median_milliseconds": float(np.median(spent)) if len(spent) else None,
            "p95_milliseconds": float(np.quantile(spent, 0.95)) if len(spent) else None,
            "waited_milliseconds": float(recorded.waited_ms[asked, place].mean()) if asked.any() else 0.0,
            "money": stage.cost.money * attempts,
            "milliseconds": measured if stage.cost.milliseconds is None else stage.cost.milliseconds,
        })  # fmt: skip
    return rows


def frontier(
    config: CascadeConfig,
    ordered: Sequence[Candidate],
    calib: Labelled,
    select: Labelled | None,
    *,
    unit: str,
    delta: float,
    passed: Sequence[int],
) -> list[dict[str, Any]]:
    """One row per configuration: rules, share that reaches each stage, cost per image, risks on val_calib with their bounds.

    The upper bounds hold one by one at 1 - delta; only rows with `certified` hold together. delta, unit: of the certificate.
    passed: places of `ordered` that its test passed.
    """
    costs = stage_costs(calib.recorded, config)
    sample = Sample.of(calib.known, unit, config.seed)
    targets = {name: config.risks.get(name) for name in ("miss_rate", "false_exit_rate")}
    rows = []
    for place, candidate in enumerate(ordered):
        final = final_answers(calib.recorded, candidate.rules, config.default_probability)
        reach = final.asked.mean(axis=0)
        risks = measure(sample, final.positive[sample.rows], targets, delta, None)
        rows.append({
            "rules": [rule.to_document() for rule in candidate.rules],
            "deferred": float(reach[1]), "reach": [float(share) for share in reach],
            "money": _per_image(reach, costs, "money"), "milliseconds": _per_image(reach, costs, "milliseconds"),
            "certified": place in passed,
            "risks": {name: {"observed": risk.observed, "bound": risk.bound, "target": risk.target} for name, risk in risks.items()},
            "select": _on(select, candidate, config),
        })  # fmt: skip
    return rows


def _per_image(reach: Floats, costs: Sequence[dict[str, Any]], name: str) -> float:
    return float(sum(share * cost[name] for share, cost in zip(reach.tolist(), costs, strict=True)))


def _on(labelled: Labelled | None, candidate: Candidate, config: CascadeConfig) -> dict[str, float | None] | None:
    """Plain rates of a configuration on a role."""
    if labelled is None or not len(labelled):
        return None
    return rates(labelled, final_answers(labelled.recorded, candidate.rules, config.default_probability).positive)


def rates(labelled: Labelled, positive: NDArray[np.bool_]) -> dict[str, float | None]:
    """miss_rate, false_exit_rate and their counts of given answers; None for a class without images."""
    labels = labelled.known.known_labels
    ones, zeros = int((labels == 1).sum()), int((labels == 0).sum())
    misses, false = int(((labels == 1) & ~positive).sum()), int(((labels == 0) & positive).sum())
    return {
        "miss_rate": misses / ones if ones else None, "false_exit_rate": false / zeros if zeros else None,
        "positives": ones, "negatives": zeros, "misses": misses, "false_exits": false,
    }  # fmt: skip
