"""`evaluate`: every metric, risk and coverage that it prints with an interval, over images and over groups.

The model is calibrated, so its calibration error is 0, and so is what the identity map changes. Thresholds are fixed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np

from interval_bench.populations import Grouped
from interval_bench.tally import Answer, Case, interval_answer
from stage1 import Scores
from stage1.evaluation import evaluate

BAND = 1.5  # log-odds within which an image defers
RESAMPLES = 200


def evaluated(scores: Scores, resamples: int, seed: int) -> dict[str, Any]:
    margin = scores.margin
    return evaluate(
        scores,
        exit=np.abs(margin) > BAND,
        label=(margin > 0).astype(np.int64),
        lo=-BAND,
        hi=BAND,
        classes=["none", "roadwork"],
        targets={},
        policy="softmax",
        certified=False,
        resamples=resamples,
        seed=seed,
    )


def printed(document: Mapping[str, Any]) -> dict[str, tuple[float | None, float | None, float | None]]:
    """Row of the table -> value, low, high, as the product judges and prints them."""
    ends = ("group_low", "group_high") if document["unit"] == "group" else ("low", "high")
    found = {
        name: (row["value"], row["low"], row["high"]) for name, row in document["metrics"].items() if name != "coverage"
    }
    found |= {name: (row["observed"], *(row[end] for end in ends)) for name, row in document["risks"].items()}
    shares = {"coverage": document["coverage"]["overall"]}
    shares |= {f"coverage of {name}": row for name, row in document["coverage"]["per_class"].items()}
    return found | {name: (row["value"], *(row[end] for end in ends)) for name, row in shares.items()}


@lru_cache(maxsize=16)
def truth(population: Grouped) -> dict[str, float]:
    values = {name: row[0] for name, row in printed(evaluated(population.large(), 1, 0)).items()}
    return {name: value for name, value in values.items() if value is not None} | {"ece": 0.0}


def draw(population: Grouped, rng: np.random.Generator) -> Mapping[str, Answer]:
    document = evaluated(population.draw(rng)[0], RESAMPLES, int(rng.integers(1 << 30)))
    known = truth(population)
    return {name: interval_answer(low, high, known[name]) for name, (_, low, high) in printed(document).items()}


# Draws of those asked for: more where a bar of 3 standard errors would leave the answer open, fewer where it costs.
_SHARE = {"50 groups of 20": 2.0, "1000 independent images": 0.5}
SETTINGS = (
    Grouped(6, 20),
    Grouped(10, 20),
    Grouped(20, 20),
    Grouped(50, 20),
    Grouped(10, 20, pure=False),
    Grouped(100, 1),
    Grouped(300, 1),
    Grouped(1000, 1),
)
CASES = tuple(Case(setting.name, partial(draw, setting), _SHARE.get(setting.name, 1.0)) for setting in SETTINGS)
