"""A population whose truth is known: two stages that see the same image with different noise, and calls that fail."""

from __future__ import annotations

import numpy as np
from scipy import special

from stage1.cascade import CascadeConfig, Labelled, Recorded
from stage1.scores import Scores

FIRST, SECOND = 1.5, 2.6  # half the distance of the classes, in standard deviations of the stage's noise


def config(**changes: object) -> CascadeConfig:
    document = {
        "classes": ["none", "roadwork"],
        "stages": [
            {"name": "first", "callable": "a:b", "exit": "auto"},
            {
                "name": "second",
                "callable": "a:b",
                "answer_above": "auto",
                "cost": {"money": 0.002, "milliseconds": 400.0},
            },
        ],
        "risks": {"miss_rate": 0.05, "false_exit_rate": 0.05},
    }
    return CascadeConfig.model_validate(document | changes)


def draw(
    rng: np.random.Generator,
    n: int,
    *,
    failing: float = 0.15,
    per_group: int = 1,
    agreement: float = 0.0,
    second: float = SECOND,
) -> Labelled:
    """n images, half of each class. failing: share of calls to the second stage without an answer. per_group: images of
    a group, which share their class and, by `agreement` in [0, 1], their noise."""
    groups = np.arange(n) // per_group
    labels = rng.integers(0, 2, groups.max() + 1)[groups]
    sign = 2.0 * labels - 1.0

    def noise() -> np.ndarray:
        shared = rng.normal(size=groups.max() + 1)[groups]
        return np.sqrt(agreement) * shared + np.sqrt(1 - agreement) * rng.normal(size=n)

    probability = np.stack(
        [special.expit(2 * distance * (distance * sign + noise())) for distance in (FIRST, second)], axis=1
    )
    failed = rng.random(n) < failing
    probability[failed, 1] = np.nan
    outcome = np.full((n, 2), "answered", dtype="<U16")
    outcome[failed, 1] = np.where(rng.random(failed.sum()) < 2 / 3, "timeout", "invalid")
    names = np.array([f"{rng.integers(1 << 60)}-{row}" for row in range(n)])
    recorded = Recorded(
        names,
        probability,
        np.full((n, 2), -1, dtype=np.int64),
        outcome,
        np.ones((n, 2), dtype=np.int64),
        np.tile([8.0, 350.0], (n, 1)),
        np.zeros((n, 2)),
    )
    known = Scores(
        logits=np.zeros((n, 2)),
        labels=labels,
        ids=names,
        groups=None if per_group == 1 else [f"{names[0]} {group}" for group in groups],
    )
    return Labelled(recorded, known)


def true_risks(rules, failing: float = 0.15, second: float = SECOND) -> dict[str, float]:
    """Exact risks of two-stage rules in this population of independent noise."""
    first, last = rules
    cut = {
        "below": -np.inf if first.below is None else special.logit(first.below),
        "above": np.inf if first.above is None else special.logit(first.above),
    }

    def below(threshold: float, sign: float, distance: float) -> float:
        """P(logit < threshold | class)."""
        return float(special.ndtr(threshold / (2 * distance) - distance * sign))

    def negative(sign: float) -> float:
        """P(answered as the first class | class)."""
        low, high = below(cut["below"], sign, FIRST), below(cut["above"], sign, FIRST)
        middle = below(special.logit(first.answer_above), sign, FIRST)
        fallback = min(max(middle, low), high) - low
        return (
            low
            + failing * fallback
            + (1 - failing) * (high - low) * below(special.logit(last.answer_above), sign, second)
        )

    return {"miss_rate": negative(1.0), "false_exit_rate": 1 - negative(-1.0)}
