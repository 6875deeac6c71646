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

from stage1.late import library
from stage1.policy.counts import ClassExits
from stage1.policy.thresholds_multiclass import Grid, Model, answer_maps, model_of
from stage1.risk import minimum_samples
from stage1.risk.risks import risk_of, risk_parts
from stage1.risk.testing import max_errors_each

special = library("scipy.special")

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
# Points of a normal distribution and their weights (Gauss and Hermite).
_STEPS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(5)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()


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
    grid = Grid.of(confidence, probabilities.argmax(axis=1), probabilities.shape[1])
    models = [model_of(own, grid, probabilities, labels) for own in answer_maps(confidence, grid, labels)]
    paths = []
    for own in models:
        for name in MODES if mode == "auto" else (mode,):
            places = _one(own, goal) if name == "one" else _per_class(own, goal)
            if len(places):
                start, expected = _judged(places, models, goal)
                paths.append(ClassPath(grid.cuts[places], start, expected, name))
    # One threshold where it is as good: less to go wrong, and the first of equals is taken.
    paths.sort(key=lambda path: path.mode != "one")
    return max(paths, key=lambda path: path.expected, default=None)


# ---- sequences of thresholds -------------------------------------------------------------------------------------


def _one(model: Model, goal: ClassGoal) -> Ints:
    """Places [T, K] with one threshold: per share the lowest that keeps all modelled risks."""
    k, steps = model.exits.shape
    places = np.repeat(np.arange(1, steps)[:, None], k, axis=1)
    exits = model.at(places)
    worst = np.zeros(len(places))
    for name, target in goal.targets.items():
        errors, trials = exits.counts(name, goal.classes)
        worst = np.maximum(worst, np.divide(errors, trials, out=np.zeros_like(errors), where=trials > 0) / target)
    found: list[int] = []
    for share in _SHARES:
        kept = np.flatnonzero(worst <= share)
        if len(kept) and (not found or kept[-1] > found[-1]):
            found.append(int(kept[-1]))
    return places[found]


def _per_class(model: Model, goal: ClassGoal) -> Ints:
    """Places [T, K] with one threshold per class: per share the greatest exits that keep all modelled risks."""
    solver = _Solver(model, goal)
    found: list[Ints] = []
    before = np.zeros(len(model.kinds), dtype=np.int64)
    for share in _SHARES:
        places = np.maximum(before, solver.solve(share))
        if (places > before).any():
            found.append(places)
        before = places
        if (places == solver.last).all():
            break
    return np.array(found, dtype=np.int64).reshape(-1, len(model.kinds))


class _Solver:
    """Greatest places at which every modelled risk is at most a share of its target."""

    def __init__(self, model: Model, goal: ClassGoal) -> None:
        self._model, self._goal = model, goal
        k, steps = model.exits.shape
        self._classes = np.arange(k)
        self.last = np.full(k, steps - 1)
        self._everyone = model.at(self.last[None, :])
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
        """What a wrong answer of each class counts in a risk, [K]."""
        return self._model.kinds[:, index] if kind in _OF_TRUTH else np.ones(len(self._classes))

    def _table(self, kind: str, index: int) -> Ints:
        """Places [bars, K] at which nobody adds more than a bar to the wrong answers of the risk; bars rise."""
        added = self._model.level * self._weights(kind, index)[:, None]
        bars = np.unique(np.quantile(added[:, 1:], np.linspace(0, 1, _BARS)))
        columns = [np.searchsorted(row[1:], bars, side="right") for row in added]
        return np.asarray(np.concatenate([np.zeros((1, len(added))), np.stack(columns, axis=1)]), dtype=np.int64)

    def solve(self, share: float) -> Ints:
        """Places int [K]. From everything, shrunk until nothing is too much: a greatest fixed point."""
        places = self.last.copy()
        for name, (kind, index) in self._parts.items():
            if kind == "wrong":
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
        exits, wrong = self._model.exits[index], self._model.wrong[index]
        return int(np.flatnonzero(wrong <= limit * exits)[-1])

    def _abstaining(self, places: Ints) -> Ints:
        short = [index for index, least in self._least.items() if self._model.exits[index, places[index]] < least]
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
            errors, trials = self._model.at(places[None, :]).counts(name, self._goal.classes)
            return bool(errors[0] <= limit * trials[0])
        wrong, exits = self._model.wrong[self._classes, places], self._model.exits[self._classes, places]
        if kind == "error":
            return bool(wrong.sum() <= limit * exits.sum())
        missed = float(wrong @ self._weights(kind, index))
        if kind == "miss_rate":
            return bool(missed <= limit * self._everyone.members[index])
        right = float(exits[index] - wrong[index])
        return missed <= limit * (missed + right)


# ---- prediction --------------------------------------------------------------------------------------------------


def _judged(places: Ints, models: Sequence[Model], goal: ClassGoal) -> tuple[int, float]:
    """(start, expected coverage): the start from which the walk is expected to reach furthest, under all maps alike."""
    exits = [model.at(places) for model in models]
    chance = np.mean([_chance(each, goal) for each in exits], axis=0)
    cover = exits[0].exits / exits[0].total
    gain = np.diff(cover)
    best, expected = 0, -1.0
    for start in range(len(chance)):
        # What passes at a place is taken to have passed before it: one sample decides all.
        reached = np.minimum.accumulate(chance[start:])
        value = float(reached[0] * cover[start] + reached[1:] @ gain[start:])
        if value > expected + 1e-12:
            best, expected = start, value
    return best, expected


def _chance(exits: ClassExits, goal: ClassGoal) -> Floats:
    """Predicted chance of each rule to pass every test on n units, float [T].

    Binomial at the expected rate, averaged over the number of trials: val_select knows their share to one part in its
    own size, and how many errors a test allows leaps with them.
    """
    chance = np.ones(len(exits.as_class))
    for name, target in goal.targets.items():
        errors, trials = exits.counts(name, goal.classes)
        share = np.clip(trials / exits.total, 0.0, 1.0)
        doubt = goal.n * np.sqrt(share * (1 - share) * (1 / goal.n + 1 / exits.total))
        rate = np.clip(np.divide(errors, trials, out=np.zeros_like(errors), where=trials > 0), 0.0, 1.0)
        n = np.round(np.clip(goal.n * share + _STEPS[:, None] * doubt, 0, goal.n))
        allowed = max_errors_each(n.ravel(), target, goal.delta).reshape(n.shape)
        passed = _WEIGHTS @ np.where(allowed >= 0, special.bdtr(np.maximum(allowed, 0), np.maximum(n, 1), rate), 0.0)
        # A class that stays closed asks nothing of wrong.<class>.
        chance *= np.where((trials == 0) & risk_of(name, goal.classes)[0].by_answer, 1.0, passed)
    return chance
