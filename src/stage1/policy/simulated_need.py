"""How many units a refusal of two thresholds asks for: the rule of val_select, on draws of the labelled units."""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stage1.policy.group_means import Frames, choose_by_means
from stage1.policy.power import MOST_ROWS, SURE, Pool, needed_units
from stage1.policy.target import Request
from stage1.policy.threshold_choice import Rule, path_from, rule
from stage1.policy.units import ALL_IMAGES
from stage1.risk.clusters import GroupLayout
from stage1.risk.group_draws import DRAWS
from stage1.scores import Scores

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

_FEWEST = 10  # images of each class to draw from
_MOST_BETS = 20_000  # rows of one draw: betting reads every image of it


class Sample(Protocol):
    """What was counted (two_thresholds.Units, group_means.Frames)."""

    @property
    def score(self) -> Floats: ...

    @property
    def labels(self) -> Labels: ...

    def __len__(self) -> int: ...


def simulated_need(
    sample: Sample,
    request: Request,
    select: Scores | None,
    select_score: Floats | None,
    seed: int,
    unit: str = "image",
) -> int | None:
    """Units of val_calib, in all, with which SURE of the draws certify the whole target (policy/power.py).

    The rule is the one that val_select fixed. Drawn are units of val_select and the present ones of val_calib together:
    val_select alone, on which the rule was made, flatters it. unit: image, group or group_mean; groups are drawn whole.
    None without val_select, where a class has fewer than 10 images, or no number up to 64 times the present one does.
    """
    if select is None or select.labels is None or select_score is None:
        return None
    pool, score, labels = _pool(sample, select, select_score, unit)
    if min((labels == 0).sum(), (labels == 1).sum()) < _FEWEST:
        return None
    present = len(sample)
    size_of_unit = len(labels) / max(pool.units, 1)
    most = int((_MOST_BETS if unit in ALL_IMAGES else MOST_ROWS) / size_of_unit)
    select_labels = select.known_labels

    @lru_cache(maxsize=1)
    def fitted(size: int) -> Rule:
        # Where a walk starts depends on the number of units. How many of each class there will be is not known.
        return rule(request, size, select_score, select_labels)

    means = path_from(request, 8 * present, select_score, select_labels) if unit in ALL_IMAGES else None

    def attempt(_: int, size: int, rng: np.random.Generator) -> float | None:
        rows, sizes = pool.draw(size, rng)
        if sizes is not None and unit in ALL_IMAGES:
            layout = GroupLayout(np.arange(len(rows)), np.cumsum(sizes) - sizes, sizes)
            numbers = rng.random((size, DRAWS)) if unit == "group_draws" else None
            chosen = choose_by_means(Frames(score[rows], labels[rows], layout, numbers), request, means).thresholds
        else:
            if sizes is not None:  # one image of each group
                rows = rows[np.cumsum(sizes) - sizes + rng.integers(0, sizes)]
            chosen = fitted(size)(score[rows], labels[rows]).thresholds
        sides = (chosen.lo is not None) + (chosen.hi is not None)
        return 0.0 if sides == 2 or (request.one_sided and sides == 1) else None

    return needed_units(present, attempt, success=SURE, most=most, seed=seed)


def _pool(sample: Sample, select: Scores, select_score: Floats, unit: str) -> tuple[Pool, Floats, Labels]:
    """What is drawn from, with the score and label of each row: val_select first, then what val_calib counted."""
    before = len(select)
    score = np.concatenate([select_score, sample.score])
    labels = np.concatenate([select.known_labels, sample.labels])
    if unit == "image":
        return Pool(len(labels), guess=True), score, labels
    members = [np.array([row]) for row in range(before)]
    if select.groups is not None:
        members = list(Pool.of_groups(select.groups).members or ())
    if isinstance(sample, Frames):
        layout = sample.layout
        parts = np.split(before + layout.rows, np.cumsum(layout.sizes)[:-1])
    else:
        parts = [np.array([row]) for row in range(before, len(labels))]
    return Pool(len(labels), (*members, *parts), guess=True), score, labels
