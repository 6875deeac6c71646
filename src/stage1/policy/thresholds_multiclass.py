"""val_select on K classes: rows sorted once by answered class, and P(right | confidence, answered class) under maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from stage1.policy.counts import ClassExits
from stage1.policy.ordering import fit_logistic

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Labels = NDArray[np.int64]

_SATURATED = 40.0
# How far classes may differ in the log odds of being right at one confidence: a handful of errors a class must not say
# more.
_CLASS_SPREAD = 0.5


# ---- the sample of val_select, sorted once -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Blocks:
    """Rows by answered class, the most confident first, equal confidences as one block.

    For class k, places 0..B_k say how many of its blocks exit; they are in flat arrays from offset[k] on.
    rows: order of the rows; ends: flat, rows that exit at each place (as a position in `rows`); cuts: flat, threshold
    of each place.
    """

    answer: Labels
    rows: Ints
    offset: Ints
    sizes: Ints
    ends: Ints
    cuts: Floats
    confidence: Floats

    @classmethod
    def of(cls, confidence: Floats, answer: Labels) -> Blocks:
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
            answer,
            np.concatenate(rows),
            np.array(offset),
            np.array(sizes),
            np.concatenate(ends).astype(np.int64),
            np.concatenate(cuts),
            confidence,
        )

    @property
    def k(self) -> int:
        return len(self.offset)

    def cumulated(self, values: Floats) -> Floats:
        """Sum of a value per row over the rows that exit at each place of their class, flat."""
        running = np.concatenate([[0.0], np.cumsum(values[self.rows])])
        start = np.repeat(running[self.ends[self.offset]], self.sizes + 1)
        return np.asarray(running[self.ends] - start)


# ---- maps --------------------------------------------------------------------------------------------------------


def answer_maps(confidence: Floats, answer: Labels, labels: Labels) -> list[Floats]:
    """P(right) of each row, float [N], under each map: Platt, logistic on normal scores of ranks, mean of logits."""
    right = (answer == labels).astype(np.int64)
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
class Model:
    """One map over the blocks. exits, wrong: flat, cumulated rows and modelled wrong answers; level: flat, P(wrong) of
    the last block at each place, never falling as confidence falls. kinds: [K, K], true class of the wrong answers of
    each class.
    """

    exits: Floats
    wrong: Floats
    level: Floats
    kinds: Floats

    def at(self, places: Ints, blocks: Blocks) -> ClassExits:
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


def model_of(p: Floats, blocks: Blocks, probabilities: Floats, labels: Labels) -> Model:
    n, k = probabilities.shape
    answer, rows = blocks.answer, np.arange(n)
    wrong = np.empty(n)
    for index in range(blocks.k):
        start, end = blocks.ends[blocks.offset[index]], blocks.ends[blocks.offset[index] + blocks.sizes[index]]
        own = blocks.rows[start:end]
        wrong[own] = np.maximum.accumulate(1 - p[own])
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
    level = np.concatenate(
        [
            np.concatenate([[0.0], wrong[blocks.rows[blocks.ends[start + 1 : start + size + 1] - 1]]])
            for start, size in zip(blocks.offset.tolist(), blocks.sizes.tolist(), strict=True)
        ]
    )
    return Model(
        exits=blocks.cumulated(np.ones(n)),
        wrong=blocks.cumulated(wrong),
        level=level,
        kinds=kinds / kinds.sum(axis=1, keepdims=True),
    )
