"""`cascade plan`: the upper bound of the share of images that reaches the second stage, and FITS at a capacity a little
below what truly arrives, which is then false.

Groups bring as many images as they have; where large groups defer more, the share of images is not the share of groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from interval_bench.tally import Answer, Case
from stage1.cascade import CascadeConfig, Labelled, Recorded
from stage1.cascade.rules import Rule
from stage1.commands.cascade import _counted
from stage1.commands.cascade_plan import _from_counts, load
from stage1.policy.units import one_per_group
from stage1.scores import Scores

CONFIG = CascadeConfig.model_validate(
    {
        "classes": ["none", "roadwork"],
        "stages": [
            {"name": "a", "callable": "a:b", "exit": {"below": 0.3, "above": 0.7}},
            {"name": "b", "callable": "a:b"},
        ],
    }
)
RULES = (Rule("thresholds", 0.3, 0.7, 0.5), Rule("always", None, None, 0.5))
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Deferring:
    """groups with `sizes` ("equal": 10, "geometric": mean 10, "pareto": index 1.5, at most 120); P(deferred) of a group
    is Beta with mean `share`; size_counts: 1.6 times that in groups above 12 images, .6 times in the others.
    """

    groups: int
    sizes: str
    share: float
    size_counts: bool

    @property
    def name(self) -> str:
        tied = ", large groups defer more" if self.size_counts else ""
        return f"{self.groups} groups, {self.sizes} sizes, {self.share:g} deferred{tied}"

    def draw(self, rng: np.random.Generator, groups: int | None = None) -> tuple[Ints, Ints]:
        """(deferred, images) of each group."""
        count = self.groups if groups is None else groups
        if self.sizes == "equal":
            size = np.full(count, 10)
        elif self.sizes == "geometric":
            size = rng.geometric(0.1, count)
        else:
            size = np.minimum(np.ceil(3 * rng.pareto(1.5, count) + 1), 120).astype(np.int64)
        chance = rng.beta(self.share * 7 / 3, (1 - self.share) * 7 / 3, count)  # correlation .3 within a group
        if self.size_counts:
            chance = np.clip(chance * np.where(size > 12, 1.6, 0.6), 0, 1)
        return rng.binomial(size, chance), size

    def truth(self) -> float:
        """Share of all images, from a million groups."""
        deferred, size = self.draw(np.random.default_rng(20261130), 1_000_000)
        return float(deferred.sum() / size.sum())


def planned(population: Deferring, truth: float, rng: np.random.Generator) -> Mapping[str, Answer]:
    deferred, size = population.draw(rng)
    n = int(size.sum())
    group = np.repeat(np.arange(len(size)), size)
    place = np.arange(n) - np.repeat(np.cumsum(size) - size, size)
    unsure = place < np.repeat(deferred, size)
    probability = np.stack([np.where(unsure, 0.5, 0.9), np.full(n, 0.9)], axis=1)
    names = np.array([f"{row}-{rng.integers(1 << 60)}" for row in range(n)])
    recorded = Recorded(
        names,
        probability,
        np.full((n, 2), -1, dtype=np.int64),
        np.full((n, 2), "answered", dtype="<U16"),
        np.ones((n, 2), dtype=np.int64),
        np.ones((n, 2)),
        np.zeros((n, 2)),
    )
    known = Scores(np.zeros((n, 2)), labels=np.arange(n) % 2, ids=names, groups=group.astype(np.str_))
    part = Labelled(recorded, known)
    stages = _counted(part, RULES, CONFIG)
    # The old evaluation counts one image of each group.
    units = n if "clusters" in stages[0] else len(one_per_group(known, CONFIG.seed))
    found = _from_counts({"units": units, "positives": 0, "choices": 1}, stages_of(stages), None, 0.05)[0]
    fits = load(1.0, found, truth * 0.999)["fits"]
    if not getattr(found, "bounded", True):
        return {"share that is deferred, upper bound": Answer(None, bool(fits))}
    return {
        "share that is deferred, upper bound": Answer(found.upper >= truth, bool(fits), found.upper - found.observed)
    }


def stages_of(stages: list[dict[str, object]]) -> list[dict[str, object]]:
    """Without counts of positives: no prior is given here."""
    return [{**stage, "deferred_positives": 0} for stage in stages]


SETTINGS = (
    *(Deferring(groups, "equal", 0.3, False) for groups in (6, 20, 30, 50)),
    *(Deferring(groups, "equal", 0.05, False) for groups in (30, 50)),
    *(Deferring(groups, "geometric", 0.3, True) for groups in (10, 30, 50, 150)),
    *(Deferring(groups, "pareto", 0.3, True) for groups in (30, 50, 150)),
    *(Deferring(groups, "pareto", 0.7, True) for groups in (30, 50, 150)),
    *(Deferring(groups, "pareto", 0.05, True) for groups in (50, 150)),
)
CASES = tuple(Case(setting.name, partial(planned, setting, setting.truth())) for setting in SETTINGS)
