"""`evaluate --target`: the shares of the classes in unlabelled scores (mlls, bbse), and "mlls and bbse disagree", which
is false where only the balance differs.

The model is overconfident and shifted, so that a map with an intercept is needed; val_select is small, so that often
none is chosen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from interval_bench.tally import Answer, Case, interval_answer
from stage1 import fit_policy
from stage1.policy import Policy
from stage1.scores import Scores
from stage1.stages.label_shift import Shift, label_shift

RESAMPLES = 80
SOURCE_PRIOR = 0.3


@dataclass(frozen=True, slots=True)
class Target:
    """rows of the target at balance `prior`; source: labelled rows at .3, a quarter as many in val_select.

    groups of the target, each of one class (pure) or with a share of its own; None: independent rows. The power of
    "disagree" is in tests/evaluation/test_label_shift.py.
    """

    source: int
    rows: int
    prior: float
    groups: int | None = None
    pure: bool = True

    @property
    def name(self) -> str:
        kind = "" if self.groups is None else f" in {self.groups} groups{' of one class each' * self.pure}"
        return f"{self.source} labelled, {self.rows} of {self.prior:g} positives{kind}"

    def target(self, rng: np.random.Generator) -> Scores:
        if self.groups is None:
            return scores(rng, (rng.random(self.rows) < self.prior).astype(np.int64))
        if self.pure:
            share = (rng.random(self.groups) < self.prior).astype(np.float64)
        else:
            share = rng.beta(4 * self.prior, 4 * (1 - self.prior), self.groups)
        group = np.repeat(np.arange(self.groups), self.rows // self.groups)
        return scores(rng, (rng.random(len(group)) < share[group]).astype(np.int64), group)


def scores(rng: np.random.Generator, labels: np.ndarray, group: np.ndarray | None = None) -> Scores:
    """Two normals, 2 apart; rows of a group share .3 of their noise."""
    noise = rng.normal(size=len(labels))
    if group is not None:
        noise = np.sqrt(0.7) * noise + np.sqrt(0.3) * rng.normal(size=group.max() + 1)[group]
    margin = 1.7 * (2.0 * (labels - 0.5) + noise) + 0.5
    return Scores(
        np.stack([np.zeros(len(labels)), margin], axis=1),
        labels=labels,
        groups=None if group is None else group.astype(np.str_),
    )


@lru_cache(maxsize=1)
def policy() -> Policy:
    rng = np.random.default_rng(20261130)
    select, calib = (scores(rng, (rng.random(n) < SOURCE_PRIOR).astype(np.int64)) for n in (200, 1000))
    return fit_policy("softmax", select=select, calib=calib, risks={"fnr": 0.3}, allow_one_sided=True)


def estimated(population: Target, rng: np.random.Generator) -> Mapping[str, Answer]:
    select, source, test = (
        scores(rng, balanced(rng, n)) for n in (max(population.source // 4, 40), population.source, 60)
    )
    shift = Shift(population.target(rng), None, source, "val_calib", select)
    section = label_shift(test, policy(), shift, resamples=RESAMPLES, seed=int(rng.integers(1 << 30)))
    rows = {row["method"]: row for row in section["estimates"]}
    found = {}
    for method in ("mlls", "bbse"):
        row = rows.get(method)
        low, high = (None if row is None or row[end] is None else row[end]["1"] for end in ("low", "high"))
        found[f"P(positive) by {method}"] = interval_answer(low, high, population.prior)
    found["mlls and bbse disagree"] = Answer(None, section["agree"] is False)
    return found


def balanced(rng: np.random.Generator, n: int) -> np.ndarray:
    labels = (rng.random(n) < SOURCE_PRIOR).astype(np.int64)
    labels[:4] = [0, 1, 0, 1]
    return labels


SETTINGS = (
    Target(100, 100, 0.1),
    Target(100, 100, 0.9),
    Target(300, 300, 0.5),
    Target(300, 300, 0.9),
    Target(1000, 1000, 0.9),
    Target(300, 300, 0.5, 6),
    Target(300, 300, 0.5, 20),
    Target(300, 300, 0.5, 50),
    Target(300, 300, 0.2, 20, pure=False),
)
# A draw takes seconds where rows are many.
CASES = tuple(
    Case(setting.name, partial(estimated, setting), share=0.3 if setting.source >= 1000 else 1.0)
    for setting in SETTINGS
)
