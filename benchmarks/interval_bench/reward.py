"""`streetvision reward`: the reward at 0.5, and what moving between two equally good thresholds brings (0)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial

import numpy as np

from interval_bench.populations import Grouped
from interval_bench.tally import Answer, Case, interval_answer
from stage1 import Scores
from stage1.streetvision.reward import LevelRates

RESAMPLES = 400
LOW, HIGH = 0.35, 0.65  # alike: the population is symmetric


def rates(scores: Scores, resamples: int, seed: int) -> LevelRates:
    return LevelRates(
        scores.probabilities[:, 1], scores.known_labels, groups=scores.groups, resamples=resamples, seed=seed
    )


@lru_cache(maxsize=16)
def truth(population: Grouped) -> float:
    return rates(population.large(), 1, 0).table(0.5)[-1].reward


def draw(population: Grouped, rng: np.random.Generator) -> Mapping[str, Answer]:
    found = rates(population.draw(rng)[0], RESAMPLES, int(rng.integers(1 << 30)))
    row = found.table(0.5)[-1]
    gain = found.gain(HIGH, default=LOW)
    return {
        "reward": interval_answer(row.low, row.high, truth(population)),
        "gain of a threshold": interval_answer(gain.low, gain.high, 0.0, gain.verdict != "not shown"),
    }


SETTINGS = (
    Grouped(6, 20),
    Grouped(10, 20),
    Grouped(20, 20),
    Grouped(50, 20),
    Grouped(100, 1),
    Grouped(300, 1),
    Grouped(1000, 1),
)
CASES = tuple(Case(setting.name, partial(draw, setting)) for setting in SETTINGS)
