"""The path for K classes: a sequence of thresholds from safe to risky, made on val_select alone (ALGORITHMS 2.4, 2.5).

A map P(right | confidence, answered class) is fitted on val_select, and with it the share of every true class among the
wrong answers, so that no tail is counted from a handful of errors. For each share u of the targets one set of
thresholds has just these modelled risks. Three maps, each with one threshold for all or one for each class, give paths;
every path is judged under all three maps: where to start, and which to walk. Validity needs none of this: the path
is fixed before a calibration label is seen. Only power depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from stage1.policy.counts import ClassExits
from stage1.policy.thresholds_multiclass import Blocks, Model, answer_maps, model_of
from stage1.risk import minimum_samples
from stage1.risk.risks import risk_of, risk_parts
from stage1.risk.testing import max_errors_each

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Labels = NDArray[np.int64]

MODES = ("one", "per_class")
MINIMUM_ROWS = 10
# Far beyond the targets: where the maps see too much risk, testing itself says where to stop.
_SHARES = np.geomspace(0.1, 40.0, 120)
_BARS = 400
# Wrong answers of these count by the true class of the image; they have sums of their own, as error and wrong have.
_OF_TRUTH = ("fnr", "miss_rate")


@dataclass(frozen=True, slots=True)
class ClassGoal:
    """What is to be certified on n calibration units at delta: risks of these classes."""

    targets: Mapping[str, float]
    classes: Sequence[str]
    n: int
    delta: float


@dataclass(frozen=True, slots=True)
class ClassPath:
    """thresholds: float [T, K], from the safest to the riskiest, never rising, +inf = that class never exits.

    start: where testing begins. expected: predicted coverage. mode: "one" or "per_class".
    """

    thresholds: Floats
    start: int
    expected: float
    mode: str


def class_path(
    confidence: Floats, probabilities: Floats, labels: Labels, goal: ClassGoal, mode: str = "auto"
) -> ClassPath | None:
    """The path that val_select suggests for `goal`: the best of both modes for "auto", else of `mode`.

    confidence: float [N], probabilities: float [N, K] (the answer is the largest), labels: int [N], all of val_select.
    Returns None for fewer than 10 rows, or where no map sees thresholds at which the risks could be certified.
    """
    if len(labels) < MINIMUM_ROWS:
        return None
    blocks = Blocks.of(confidence, probabilities.argmax(axis=1))
    models = [model_of(p, blocks, probabilities, labels) for p in answer_maps(confidence, blocks.answer, labels)]
    paths = []
    for own in models:
        for name in MODES if mode == "auto" else (mode,):
            places, thresholds = _one(own, blocks, goal) if name == "one" else _per_class(own, blocks, goal)
            if len(places):
                start, expected = _judged(places, models, blocks, goal)
                paths.append(ClassPath(thresholds, start, expected, name))
    # One threshold where it is as good: less to go wrong, and the first of equals is taken.
    paths.sort(key=lambda path: path.mode != "one")
    return max(paths, key=lambda path: path.expected, default=None)


# ---- sequences of thresholds -------------------------------------------------------------------------------------


def _one(model: Model, blocks: Blocks, goal: ClassGoal) -> tuple[Ints, Floats]:
    """(places [T, K], thresholds [T, K]) with one threshold: per share the lowest that keeps all modelled risks."""
    values = np.unique(blocks.confidence)[::-1]
    if len(values) > 4000:
        values = values[np.unique(np.linspace(0, len(values) - 1, 4000).round().astype(int))]
    cuts = (values + np.append(values[1:], values[-1] - 1.0 - np.ptp(values))) / 2
    places = np.stack(
        [
            np.searchsorted(-blocks.cuts[start : start + size + 1], -cuts, side="right") - 1
            for start, size in zip(blocks.offset.tolist(), blocks.sizes.tolist(), strict=True)
        ],
        axis=1,
    )
    exits = model.at(places, blocks)
    worst = np.zeros(len(cuts))
    for name, target in goal.targets.items():
        errors, trials = exits.counts(name, goal.classes)
        worst = np.maximum(worst, np.divide(errors, trials, out=np.zeros_like(errors), where=trials > 0) / target)
    found: list[int] = []
    for share in _SHARES:
        kept = np.flatnonzero(worst <= share)
        if len(kept) and (not found or kept[-1] > found[-1]):
            found.append(int(kept[-1]))
    k = len(model.kinds)
    return places[found], np.repeat(cuts[found][:, None], k, axis=1)


def _per_class(model: Model, blocks: Blocks, goal: ClassGoal) -> tuple[Ints, Floats]:
    """(places, thresholds) with one per class: per share the greatest exits that keep all modelled risks."""
    solver = _Solver(model, blocks, goal)
    found: list[Ints] = []
    before = np.zeros(blocks.k, dtype=np.int64)
    for share in _SHARES:
        places = np.maximum(before, solver.solve(share))
        if (places > before).any():
            found.append(places)
        before = places
        if (places == blocks.sizes).all():
            break
    table = np.array(found, dtype=np.int64).reshape(-1, blocks.k)
    thresholds = np.full((len(table), len(model.kinds)), np.inf)
    thresholds[:, : blocks.k] = blocks.cuts[blocks.offset + table]
    return table, thresholds


class _Solver:
    """Greatest places at which every modelled risk is at most a share of its target."""

    def __init__(self, model: Model, blocks: Blocks, goal: ClassGoal) -> None:
        self._model, self._blocks, self._goal = model, blocks, goal
        last = blocks.sizes[None, :]
        self._everyone = model.at(last, blocks)
        self._parts = {name: risk_parts(name, goal.classes) for name in goal.targets}
        self._bars = {name: self._table(kind, index) for name, (kind, index) in self._parts.items() if kind != "wrong"}
        self._scale = goal.n / max(float(self._everyone.total), 1.0)
        # Fewer exits than the test needs with no error at all cannot be certified: such a class stays closed.
        self._least = {
            index: minimum_samples(goal.targets[name], goal.delta) / self._scale
            for name, (kind, index) in self._parts.items()
            if kind == "wrong"
        }

    def _weights(self, kind: str, index: int) -> Floats:
        """What a wrong answer of each class counts in a risk, [blocks.k]."""
        return self._model.kinds[: self._blocks.k, index] if kind in _OF_TRUTH else np.ones(self._blocks.k)

    def _table(self, kind: str, index: int) -> Ints:
        """Places [bars, K] at which no block adds more than a bar to the wrong answers of the risk; bars rise."""
        blocks, level = self._blocks, self._model.level
        weights = self._weights(kind, index)
        added = level * np.repeat(weights, blocks.sizes + 1)
        bars = np.unique(np.quantile(added, np.linspace(0, 1, _BARS)))
        columns = [
            np.searchsorted(added[start + 1 : start + size + 1], bars, side="right")
            for start, size in zip(blocks.offset.tolist(), blocks.sizes.tolist(), strict=True)
        ]
        return np.asarray(np.concatenate([np.zeros((1, blocks.k)), np.stack(columns, axis=1)]), dtype=np.int64)

    def solve(self, share: float) -> Ints:
        """Places int [K]. From everything, shrunk until nothing is too much: a greatest fixed point."""
        places = self._blocks.sizes.copy()
        for name, (kind, index) in self._parts.items():
            if kind == "wrong" and index < self._blocks.k:
                places[index] = self._answered(index, min(share * self._goal.targets[name], 0.999))
        for _ in range(50):
            before = places
            for name, (kind, _) in self._parts.items():
                if kind != "wrong":
                    places = self._shrunk(places, name, min(share * self._goal.targets[name], 0.999))
            places = self._abstaining(places)
            if (places == before).all():
                break
        return places

    def _answered(self, index: int, limit: float) -> int:
        """wrong.<class> depends on one class: the last place whose modelled share of wrong answers holds."""
        start, size = self._blocks.offset[index], self._blocks.sizes[index]
        exits, wrong = self._model.exits[start : start + size + 1], self._model.wrong[start : start + size + 1]
        return int(np.flatnonzero(wrong <= limit * exits)[-1])

    def _abstaining(self, places: Ints) -> Ints:
        short = [
            index
            for index, least in self._least.items()
            if index < self._blocks.k and self._model.exits[self._blocks.offset[index] + places[index]] < least
        ]
        places = places.copy()
        places[short] = 0
        return places

    def _shrunk(self, places: Ints, name: str, limit: float) -> Ints:
        """The places under the highest bar that keeps the risk; wrong answers beyond it buy least, and go first."""
        if self._kept(places, name, limit):
            return places
        table = self._bars[name]
        low, high = 0, len(table) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._kept(np.minimum(places, table[middle]), name, limit):
                low = middle
            else:
                high = middle
        return np.asarray(np.minimum(places, table[low]))

    def _kept(self, places: Ints, name: str, limit: float) -> bool:
        kind, index = self._parts[name]
        if kind not in ("error", *_OF_TRUTH):
            errors, trials = self._model.at(places[None, :], self._blocks).counts(name, self._goal.classes)
            return bool(errors[0] <= limit * trials[0])
        flat = self._blocks.offset + places
        wrong, exits = self._model.wrong[flat], self._model.exits[flat]
        if kind == "error":
            return bool(wrong.sum() <= limit * exits.sum())
        missed = float(wrong @ self._weights(kind, index))
        if kind == "miss_rate":
            return bool(missed <= limit * self._everyone.members[index])
        right = float(exits[index] - wrong[index]) if index < self._blocks.k else 0.0
        return missed <= limit * (missed + right)


# ---- prediction --------------------------------------------------------------------------------------------------


def _judged(places: Ints, models: Sequence[Model], blocks: Blocks, goal: ClassGoal) -> tuple[int, float]:
    """(start, expected coverage): the start from which the walk is expected to reach furthest, under all maps alike."""
    exits = [model.at(places, blocks) for model in models]
    chance = np.mean([_chance(each, goal) for each in exits], axis=0)
    cover = exits[0].exits / exits[0].total
    best, expected = 0, -1.0
    for start in range(len(chance)):
        # What passes at a place is taken to have passed before it: one sample decides all.
        reached = np.minimum.accumulate(chance[start:])
        gain = np.diff(cover[start:], prepend=0.0)
        value = float(reached @ gain)
        if value > expected + 1e-12:
            best, expected = start, value
    return best, expected


def _chance(exits: ClassExits, goal: ClassGoal) -> Floats:
    """Predicted chance of each rule to pass every test on n units, float [T]: binomial at the expected counts."""
    scale = goal.n / exits.total
    chance = np.ones(len(exits.as_class))
    for name, target in goal.targets.items():
        errors, trials = exits.counts(name, goal.classes)
        n = np.round(trials * scale)
        allowed = max_errors_each(n, target, goal.delta)
        rate = np.clip(np.divide(errors, trials, out=np.zeros_like(errors), where=trials > 0), 0.0, 1.0)
        passed = np.where(allowed >= 0, special.bdtr(np.maximum(allowed, 0), np.maximum(n, 1), rate), 0.0)
        # A class that stays closed asks nothing of wrong.<class>.
        chance *= np.where((trials == 0) & risk_of(name, goal.classes)[0].by_answer, 1.0, passed)
    return chance
