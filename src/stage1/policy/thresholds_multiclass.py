"""val_select on K classes: the grid of thresholds, and P(right | confidence, answered class) on it under maps.

Every class has the same grid: cuts between the confidences of all rows. A class of few answers then has thresholds as
fine as any other, also above its own most confident row, and a class without an answer has them too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.late import library
from stage1.policy.counts import ClassExits
from stage1.policy.score_maps import fit_logistic

special = library("scipy.special")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Labels = NDArray[np.int64]

_SATURATED = 40.0
_PLACES, _CELLS = 4000, 2_000_000
# How far classes differ in the log odds of being right at one confidence, if they do: one of these, the likeliest.
_CLASS_SPREADS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5)
_SPREAD_COSTS = 0.5  # log likelihood: the likeliest of many spreads is above 0 by chance alone


# ---- the grid ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grid:
    """Thresholds of every class, from none exits to all exit, and where the rows of val_select lie on them.

    cuts: float [P], falling, the first +inf; values: float [P - 1], the least confidence that each further place lets
    exit. answer: int [N]; block: int [N], the first place at which each row exits. k: classes.
    """

    cuts: Floats
    values: Floats
    answer: Labels
    block: Ints
    k: int

    @classmethod
    def of(cls, confidence: Floats, answer: Labels, k: int) -> Grid:
        """Cuts half-way between distinct confidences; of very many, every so many."""
        distinct = np.unique(confidence)[::-1]
        below = np.append(distinct[1:], distinct[-1] - 1.0 - np.ptp(distinct))
        most = min(_PLACES, max(_CELLS // k, 100))
        if len(distinct) > most:
            kept = np.unique(np.linspace(0, len(distinct) - 1, most).round().astype(int))
            distinct, below = distinct[kept], below[kept]
        cuts = np.concatenate([[np.inf], (distinct + below) / 2])
        return cls(cuts, distinct, answer, np.searchsorted(-cuts, -confidence, side="right"), k)

    def cumulated(self, values: Floats) -> Floats:
        """Sum of a value per row over the rows of each class that exit at each place, float [K, P]."""
        table = np.zeros((self.k, len(self.cuts)))
        np.add.at(table, (self.answer, self.block), values)
        return np.cumsum(table, axis=1)


# ---- maps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AnswerMap:
    """Log odds of being right: of_value, float [P - 1], on the values of the grid, and an offset of each class, [K]."""

    of_value: Floats
    offset: Floats


def answer_maps(confidence: Floats, grid: Grid, labels: Labels) -> list[AnswerMap]:
    """Three maps: Platt, logistic on normal scores of ranks, the mean of their logits."""
    right = (grid.answer == labels).astype(np.int64)
    ordered = np.sort(confidence)

    def platt(c: Floats) -> Floats:
        return np.clip(c, -_SATURATED, _SATURATED)[:, None]

    def ranks(c: Floats) -> Floats:
        place = (np.searchsorted(ordered, c, side="left") + np.searchsorted(ordered, c, side="right")) / 2
        z = special.ndtri(np.clip(place / len(ordered), 0.5 / len(ordered), 1 - 0.5 / len(ordered)))
        return np.stack([z, np.maximum(z, 0.0), z**3], axis=1)

    # One right and one wrong answer of middling confidence more: a val_select without errors must not promise none
    # ever.
    middle = np.full(2, np.median(confidence))
    logits = []
    for features in (platt, ranks):
        found = fit_logistic(
            np.concatenate([features(confidence), features(middle)]),
            np.concatenate([right, np.array([0, 1])]),
        )
        logits.append((found(features(confidence)), found(features(grid.values))))
    pairs = [*logits, tuple((a + b) / 2 for a, b in zip(*logits, strict=True))]
    return [AnswerMap(of_value, class_offsets(of_row, grid.answer, right, grid.k)) for of_row, of_value in pairs]


def class_offsets(logits: Floats, answer: Labels, right: Labels, k: int) -> Floats:
    """What each answered class adds to the log odds of being right, float [K]: most likely under a normal prior.

    The spread of the prior is the one under which the answers are likeliest (empirical Bayes, Laplace's approximation):
    0 where the errors do not tell the classes apart, and then thresholds by class are one threshold.
    """
    best, found = -np.inf, np.zeros(k)
    for spread in _CLASS_SPREADS:
        offset, curvature = _offsets(logits, answer, right, k, spread)
        z = logits + offset[answer]
        likely = float(z @ right - np.logaddexp(0.0, z).sum())
        if spread > 0:
            likely -= (
                float((offset**2).sum()) / (2 * spread**2)
                + 0.5 * float(np.log1p(spread**2 * curvature).sum())
                + _SPREAD_COSTS
            )
        if likely > best:
            best, found = likely, offset
    return found


def _offsets(logits: Floats, answer: Labels, right: Labels, k: int, spread: float) -> tuple[Floats, Floats]:
    """(offsets, information of the answers on each), float [K] each."""
    offset, curvature = np.zeros(k), np.zeros(k)
    for _ in range(20 if spread > 0 else 0):
        p = special.expit(logits + offset[answer])
        curvature = np.asarray(np.bincount(answer, p * (1 - p), k), dtype=np.float64)
        gradient = np.bincount(answer, right - p, k) - offset / spread**2
        offset = offset + np.clip(gradient / (curvature + 1 / spread**2), -1.0, 1.0)
    return offset, curvature


# ---- counts under a map --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """One map over the grid, float [K, P] each. exits, wrong: rows and modelled wrong answers of each class that exit
    at each place; level: P(wrong) at the least confidence that exits there, never falling as confidence falls.
    kinds: [K, K], true class of the wrong answers of each class.
    """

    exits: Floats
    wrong: Floats
    level: Floats
    kinds: Floats

    def at(self, places: Ints) -> ClassExits:
        """Modelled counts on val_select at places int [T, K]."""
        classes = np.arange(len(self.kinds))
        as_class, wrong = self.exits[classes, places], self.wrong[classes, places]
        right = as_class - wrong
        everyone, all_wrong = self.exits[:, -1] - self.wrong[:, -1], self.wrong[:, -1]
        return ClassExits(as_class, right, right + wrong @ self.kinds, everyone + all_wrong @ self.kinds)


def model_of(own: AnswerMap, grid: Grid, probabilities: Floats, labels: Labels) -> Model:
    """What a map says of val_select; probabilities: float [N, K]."""
    n, k = probabilities.shape
    answer, rows = grid.answer, np.arange(n)
    at_value = special.expit(-(own.of_value[None, :] + own.offset[:, None]))
    level = np.concatenate([np.zeros((k, 1)), np.maximum.accumulate(at_value, axis=1)], axis=1)
    wrong = level[answer, grid.block]
    # Which class is it, given that the answer is wrong: what softmax says of the others, weighted by the chance of
    # error, with the errors that were seen.
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
    return Model(
        exits=grid.cumulated(np.ones(n)),
        wrong=grid.cumulated(wrong),
        level=level,
        kinds=kinds / kinds.sum(axis=1, keepdims=True),
    )
