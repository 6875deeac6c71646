"""The path for K classes: a sequence of thresholds from safe to risky, made on val_select alone (ALGORITHMS 2.4, 2.5).

A map P(right | confidence, answered class) is fitted on val_select, and with it the share of every true class among the wrong
answers, so that no tail is counted from a handful of errors. For each share u of the targets one set of thresholds has just
these modelled risks. Three maps, each with one threshold for all or one for each class, give paths; every path is judged under
all three maps: where to start, and which to walk. Validity rests on none of this: the path is fixed before a calibration
label is seen. Only power depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from stage1.policy.multiclass_counts import ClassExits
from stage1.policy.path import fit_logistic
from stage1.policy.request import risk_parts
from stage1.risk import minimum_samples

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Labels = NDArray[np.int64]

MODES = ("one", "per_class")
MINIMUM_ROWS = 10
# Far beyond the targets: where the maps see too much risk, testing itself says where to stop.
_SHARES = np.geomspace(0.1, 40.0, 120)
_SATURATED = 40.0
_BARS = 400
# How far classes may differ in the log odds of being right at one confidence: a handful of errors a class must not say more.
_CLASS_SPREAD = 0.5


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
    blocks = _Blocks.of(confidence, probabilities.argmax(axis=1))
    models = [_model(p, blocks, probabilities, labels) for p in _maps(confidence, blocks.answer, labels)]
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


# ---- the sample of val_select, sorted once -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Rows by answered class, the most confident first, equal confidences as one block.

    For class k, places 0..B_k say how many of its blocks exit; they stand in flat arrays from offset[k] on.
    rows: order of the rows; ends: flat, rows that exit at each place (as a position in `rows`); cuts: flat, threshold of each place.
    """

    answer: Labels
    rows: Ints
    offset: Ints
    sizes: Ints
    ends: Ints
    cuts: Floats
    confidence: Floats

    @classmethod
    def of(cls, confidence: Floats, answer: Labels) -> _Blocks:
        k = int(answer.max()) + 1
        room = 1.0 + float(np.ptp(confidence))
        rows, offset, sizes, ends, cuts = [], [], [], [], []
        done = place = 0
        for index in range(k):
            own = np.flatnonzero(answer == index)
            own = own[np.argsort(-confidence[own], kind="stable")]
            values = confidence[own]
            last = np.flatnonzero(np.append(values[1:] != values[:-1], True)) if len(own) else np.zeros(0, np.int64)
            distinct = values[last]
            below = np.append(distinct[1:], distinct[-1:] - room)
            rows.append(own)
            offset.append(place)
            sizes.append(len(last))
            ends.append(np.concatenate([[done], done + last + 1]))
            cuts.append(np.concatenate([[np.inf], (distinct + below) / 2]))
            done += len(own)
            place += len(last) + 1
        return cls(
            answer, np.concatenate(rows), np.array(offset), np.array(sizes), np.concatenate(ends).astype(np.int64),
            np.concatenate(cuts), confidence,
        )  # fmt: skip

    @property
    def k(self) -> int:
        return len(self.offset)

    def cumulated(self, values: Floats) -> Floats:
        """Sum of a value per row over the rows that exit at each place of their class, flat."""
        running = np.concatenate([[0.0], np.cumsum(values[self.rows])])
        start = np.repeat(running[self.ends[self.offset]], self.sizes + 1)
        return np.asarray(running[self.ends] - start)


# ---- maps --------------------------------------------------------------------------------------------------------


def _maps(confidence: Floats, answer: Labels, labels: Labels) -> list[Floats]:
    """P(right) of every row, float [N], under each map: Platt, logistic on normal scores of ranks, mean of their logits."""
    right = (answer == labels).astype(np.int64)
    ordered = np.sort(confidence)

    def platt(c: Floats) -> Floats:
        return np.clip(c, -_SATURATED, _SATURATED)[:, None]

    def ranks(c: Floats) -> Floats:
        place = (np.searchsorted(ordered, c, side="left") + np.searchsorted(ordered, c, side="right")) / 2
        z = special.ndtri(np.clip(place / len(ordered), 0.5 / len(ordered), 1 - 0.5 / len(ordered)))
        return np.stack([z, np.maximum(z, 0.0), z**3], axis=1)

    # One right and one wrong answer of middling confidence more: a val_select without errors must not promise none ever.
    middle = np.full(2, np.median(confidence))
    logits = [
        fit_logistic(
            np.concatenate([features(confidence), features(middle)]),
            np.concatenate([right, np.array([0, 1])]),
        )(features(confidence))
        for features in (platt, ranks)
    ]
    return [special.expit(_with_classes(z, answer, right)) for z in (logits[0], logits[1], (logits[0] + logits[1]) / 2)]


def _with_classes(logits: Floats, answer: Labels, right: Labels) -> Floats:
    """The logits moved by one offset for each answered class, its most likely value under a normal prior of mean 0."""
    k = int(answer.max()) + 1
    offset = np.zeros(k)
    for _ in range(20):
        p = special.expit(logits + offset[answer])
        gradient = np.bincount(answer, right - p, k) - offset / _CLASS_SPREAD**2
        curvature = np.bincount(answer, p * (1 - p), k) + 1 / _CLASS_SPREAD**2
        offset = offset + np.clip(gradient / curvature, -1.0, 1.0)
    return np.asarray(logits + offset[answer])


@dataclass(frozen=True, slots=True)
class _Model:
    """One map over the blocks. exits, wrong: flat, cumulated rows and modelled wrong answers; level: flat, P(wrong) of the
    last block at each place, never falling as confidence falls. kinds: [K, K], true class of the wrong answers of each class."""

    exits: Floats
    wrong: Floats
    level: Floats
    kinds: Floats

    def at(self, places: Ints, blocks: _Blocks) -> ClassExits:
        """Modelled counts on val_select at places int [T, K]."""
        k = len(self.kinds)
        flat = blocks.offset + places
        as_class, wrong = np.zeros((len(places), k)), np.zeros((len(places), k))
        as_class[:, : blocks.k], wrong[:, : blocks.k] = self.exits[flat], self.wrong[flat]
        right = as_class - wrong
        last = blocks.offset + blocks.sizes
        everyone = np.zeros(k)
        everyone[: blocks.k] = self.exits[last] - self.wrong[last]
        all_wrong = np.zeros(k)
        all_wrong[: blocks.k] = self.wrong[last]
        return ClassExits(as_class, right, right + wrong @ self.kinds, everyone + all_wrong @ self.kinds)


def _model(p: Floats, blocks: _Blocks, probabilities: Floats, labels: Labels) -> _Model:
    n, k = probabilities.shape
    answer, rows = blocks.answer, np.arange(n)
    wrong = np.empty(n)
    for index in range(blocks.k):
        start, end = blocks.ends[blocks.offset[index]], blocks.ends[blocks.offset[index] + blocks.sizes[index]]
        own = blocks.rows[start:end]
        wrong[own] = np.maximum.accumulate(1 - p[own])
    # Which class is it, given that the answer is wrong: what softmax says of the others, weighted by the chance of error, with
    # the errors that were seen.
    others = probabilities.copy()
    others[rows, answer] = 0.0
    total = others.sum(axis=1, keepdims=True)
    others = np.where(total > 0, others / np.maximum(total, 1e-300), 1.0 / (k - 1))
    others[rows, answer] = 0.0
    kinds = np.zeros((k, k))
    np.add.at(kinds, answer, wrong[:, None] * others)
    missed = answer != labels
    np.add.at(kinds, (answer[missed], labels[missed]), 1.0)
    kinds += 1e-3 * (1 - np.eye(k))
    level = np.concatenate([
        np.concatenate([[0.0], wrong[blocks.rows[blocks.ends[start + 1 : start + size + 1] - 1]]])
        for start, size in zip(blocks.offset.tolist(), blocks.sizes.tolist(), strict=True)
    ])  # fmt: skip
    return _Model(
        exits=blocks.cumulated(np.ones(n)),
        wrong=blocks.cumulated(wrong),
        level=level,
        kinds=kinds / kinds.sum(axis=1, keepdims=True),
    )


# ---- sequences of thresholds -------------------------------------------------------------------------------------


def _one(model: _Model, blocks: _Blocks, goal: ClassGoal) -> tuple[Ints, Floats]:
    """(places [T, K], thresholds [T, K]) with one threshold: for rising shares the lowest at which every modelled risk is kept."""
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


def _per_class(model: _Model, blocks: _Blocks, goal: ClassGoal) -> tuple[Ints, Floats]:
    """(places, thresholds) with a threshold for each class: for rising shares the greatest exits that keep every modelled risk."""
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

    def __init__(self, model: _Model, blocks: _Blocks, goal: ClassGoal) -> None:
        self._model, self._blocks, self._goal = model, blocks, goal
        last = blocks.sizes[None, :]
        self._everyone = model.at(last, blocks)
        self._parts = {name: risk_parts(name, goal.classes) for name in goal.targets}
        self._bars = {name: self._table(kind, index) for name, (kind, index) in self._parts.items() if kind != "wrong"}
        self._scale = goal.n / max(float(self._everyone.total), 1.0)
        # Fewer exits than the test needs with no error at all cannot be certified: such a class stays shut.
        self._least = {
            index: minimum_samples(goal.targets[name], goal.delta) / self._scale
            for name, (kind, index) in self._parts.items()
            if kind == "wrong"
        }

    def _weights(self, kind: str, index: int) -> Floats:
        """What a wrong answer of each class counts in a risk, [blocks.k]."""
        return np.ones(self._blocks.k) if kind == "error" else self._model.kinds[: self._blocks.k, index]

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
            for name, (kind, index) in self._parts.items():
                if kind != "wrong":
                    places = self._shrunk(places, name, kind, index, min(share * self._goal.targets[name], 0.999))
            places = self._shut(places)
            if (places == before).all():
                break
        return places

    def _answered(self, index: int, limit: float) -> int:
        """wrong.<class> looks at one class only: the last place whose modelled share of wrong answers is within the limit."""
        start, size = self._blocks.offset[index], self._blocks.sizes[index]
        exits, wrong = self._model.exits[start : start + size + 1], self._model.wrong[start : start + size + 1]
        return int(np.flatnonzero(wrong <= limit * exits)[-1])

    def _shut(self, places: Ints) -> Ints:
        short = [
            index
            for index, least in self._least.items()
            if index < self._blocks.k and self._model.exits[self._blocks.offset[index] + places[index]] < least
        ]
        places = places.copy()
        places[short] = 0
        return places

    def _shrunk(self, places: Ints, name: str, kind: str, index: int, limit: float) -> Ints:
        """The places under the highest bar that keeps the risk; wrong answers beyond the bar go first, they buy least."""
        if self._kept(places, kind, index, limit):
            return places
        table = self._bars[name]
        low, high = 0, len(table) - 1
        while high - low > 1:
            middle = (low + high) // 2
            if self._kept(np.minimum(places, table[middle]), kind, index, limit):
                low = middle
            else:
                high = middle
        return np.asarray(np.minimum(places, table[low]))

    def _kept(self, places: Ints, kind: str, index: int, limit: float) -> bool:
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


def _judged(places: Ints, models: Sequence[_Model], blocks: _Blocks, goal: ClassGoal) -> tuple[int, float]:
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
        allowed = _most_errors(n, target, goal.delta)
        rate = np.clip(np.divide(errors, trials, out=np.zeros_like(errors), where=trials > 0), 0.0, 1.0)
        passed = np.where(allowed >= 0, special.bdtr(np.maximum(allowed, 0), np.maximum(n, 1), rate), 0.0)
        # A class that stays shut asks nothing of wrong.<class>.
        chance *= np.where((trials == 0) & (risk_parts(name, goal.classes)[0] == "wrong"), 1.0, passed)
    return chance


def _most_errors(n: Floats, target: float, delta: float) -> Floats:
    """`risk.max_errors` of each n [T], -1 where even no error is too many; the real solution of the tail, then rounded down."""
    size = np.maximum(n, 1)
    guess = np.floor(np.nan_to_num(special.bdtrik(delta, size, target), nan=-1.0))
    # The solver may stand one beside the truth.
    steps = np.clip(guess + np.array([[-1.0], [0.0], [1.0]]), -1.0, size)
    fits = (steps >= 0) & (special.bdtr(np.maximum(steps, 0), size, target) <= delta)
    return np.asarray(np.where(n > 0, np.where(fits, steps, -1.0).max(axis=0), -1.0))
