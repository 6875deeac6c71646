"""Start a walk along the path where val_calib itself has enough trials, and go on image by image (ALGORITHMS 2.4, 13).

A start placed on val_select has to guess how many images exit there: too early, and no error is forgiven (at fnr <= .05
none among 59 to 92 exits); too late, and there are more errors than needed. Here the walk starts where the m-th trial
of each risk has been counted, m fixed beforehand, and asks every place from there on.

The path is continuous: between two of its pairs lo and hi move in proportion, so that each image has a time t at which
it begins to exit, and x on the path lets exit what has t < x. T_r: the time of trial m_r + 1 of risk r (fnr: positives,
fpr: negatives, error: all images). Testing starts at S = max T_r, not before
the first pair and not after the last, and stops at the first failure; what ships is the last place that passed.

Proof that a risk is too large where it ships with probability at most delta. Within a class, (t, wrong) of its images
are independent draws; r(x) = P(wrong | t < x) is continuous where times are. Bad places: some risk above its target.
Whatever bad place ships, S or the first bad place after S has passed.
(1) S is bad, by risk r. If S = T_r, the m_r trials before it are, given S, independent draws with t < S. If S comes
from the other class, or is the first or the last pair, they are such draws given their number. Errors are
Bin(trials, r(S)): they pass with probability at most delta, given S.
(2) S is not bad, between two bad stretches that end at b and begin at a: fixed numbers. At a some risk r is exactly at
its target, at b it is not above. That S is there says, of the trials of r: enough before a; and either nothing more or
at most m_r before b. Given their number before a, few before b means more from b to a, where the share of errors is
above the target if it is below before b: errors are more, in distribution, than Bin(trials, target). a passes with
probability at most delta, given that S is there.
(1) and (2) exclude each other for each S, so together delta. Of fnr and fpr each has a class of its own, which (1) and
(2) use: other risks beside them keep the fixed start. `error` alone has one class, all images.
Tied times: give tied images a random order, and time is continuous. A tied block passes here where it would in every
order, and no place within it ships.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stage1.policy.stepping import errors_allowed
from stage1.risk.definition import Bools
from stage1.risk.testing import minimum_samples

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Labels = NDArray[np.int64]

COUNTED = (frozenset({"fnr", "fpr"}), frozenset({"error"}))
"""Targets for which the proof holds."""
_FORGIVEN = 24  # starts to choose among, for each risk
_EARLIEST = 0.3  # of the trials that are expected: maps that see too much risk would start where no error is forgiven
_SAME = 5e-4  # of mean coverage: less than simulation can tell, so the start that forgives more is taken


@dataclass(frozen=True, slots=True)
class Reached:
    """The last place that passed, as its pair (lo, hi), -inf and +inf: that side never exits; None: the first failed.

    first: the pair of the first test. step: the pair of the path at or before the place; at_end: it is the last one.
    """

    pair: tuple[float, float] | None
    first: tuple[float, float]
    step: int
    at_end: bool


def exit_times(lo: Floats, hi: Floats, score: Floats) -> tuple[Floats, Bools]:
    """(time at which each image begins to exit, -1: at the first pair, +inf: never; whether it exits as 0), [N] each.

    lo never falls, hi never rises, float [T] each; the path is at pair g at time g. From an infinite cut to a finite
    one it jumps at once.

    >>> exit_times(np.array([-1.0, 0.0, 1.0]), np.array([4.0, 3.0, 2.0]), np.array([-0.5, 2.0, 2.25, -3.0]))[0].tolist()
    [0.5, inf, 1.75, -1.0]
    """
    as_zero, as_one = _times(lo, score), _times(-hi, -score)
    return np.minimum(as_zero, as_one), as_zero <= as_one


def _times(cuts: Floats, score: Floats) -> Floats:
    """When a rising cut has passed each score."""
    step = np.searchsorted(cuts, score, side="right")
    after, before = cuts[np.minimum(step, len(cuts) - 1)], cuts[np.maximum(step - 1, 0)]
    with np.errstate(invalid="ignore"):
        wide = np.where(np.isfinite(before) & (after > before), after - before, np.inf)
    part = np.where(np.isfinite(before), score - before, 0.0) / wide
    # Rounding must not bring the time to the next pair, at which the score exits.
    time = step - 1 + np.clip(part, 0.0, 1.0 - 1e-12)
    return np.where(step == 0, -1.0, np.where(step == len(cuts), np.inf, time))


def walk_from_count(
    lo: Floats,
    hi: Floats,
    score: Floats,
    labels: Labels,
    targets: Mapping[str, float],
    forgiven: Mapping[str, int],
    delta: float,
    start: int = 0,
) -> Reached:
    """Walk from where an exact test forgives so many errors of each risk; score float [N], labels int [N] of val_calib.

    start: the first pair that may be tested.

    >>> rng = np.random.default_rng(0)
    >>> labels = (rng.random(2000) < 0.5).astype(np.int64)
    >>> score = rng.normal(size=2000) + 3.0 * labels - 1.5
    >>> cut = np.linspace(-4, 0, 50)
    >>> found = walk_from_count(cut, -cut, score, labels, {"error": 0.05}, {"error": 0}, 0.05)
    >>> found.pair is not None and found.pair[1] < 0.4
    True
    """
    times, as_zero = exit_times(lo, hi, score)
    times[times < start] = -1.0
    leaves = np.isfinite(times)
    order = np.flatnonzero(leaves)[np.argsort(times[leaves], kind="stable")]
    time, label = times[order], labels[order]
    wrong = (label == 1) == as_zero[order]
    # Blocks of one time; their edges are the places between which an image begins to exit.
    edges = np.concatenate([[0], np.flatnonzero(np.diff(time) > 0) + 1, [len(order)]])[: len(order) + 1]
    opening = int(len(time) > 0 and time[0] < 0)
    first, passed, before = 0, np.ones(len(edges) - 1, dtype=np.bool_), True
    counts = {}
    trials = {name: trials_needed(forgiven[name], target, delta) for name, target in targets.items()}
    for name in targets:
        own = np.ones(len(label), dtype=np.bool_) if name == "error" else label == (1 if name == "fnr" else 0)
        at = np.flatnonzero(own)
        block = len(edges) - 1
        if len(at) > trials[name]:
            block = int(np.searchsorted(edges, at[trials[name]], side="right")) - 1
        first = max(first, block)
        counts[name] = _cumulated(own)[edges], _cumulated(own & wrong)[edges]
    # The first pair is a place whatever exits there, and the end of the path is one.
    inside = opening <= first < len(edges) - 1 and edges[first + 1] - edges[first] > 1
    first = max(first, opening)
    for name, target in targets.items():
        trials_at, errors = counts[name]
        least = trials_at[:-1] + np.diff(errors)
        if inside:
            least[first] = max(least[first], min(trials[name], int(trials_at[first + 1])))
        if len(least):  # else no image exits on the whole path
            passed &= errors[1:] <= errors_allowed(least, target, delta)
        before &= bool(errors[first] <= errors_allowed(trials_at[first], target, delta))

    def pair(edge: int) -> tuple[float, float]:
        """The pair that lets exit just what comes before this edge."""
        if edge == len(edges) - 1:
            return float(lo[-1]), float(hi[-1])
        return _pair_at(lo, hi, float(time[edges[edge]]), score, times)

    if not inside and not before:
        return Reached(None, pair(first), start, False)
    failed = np.flatnonzero(~passed[first:])
    last = first + (int(failed[0]) if len(failed) else len(passed) - first)
    if inside and last == first:
        return Reached(None, pair(first + 1), start, False)
    at_end = last == len(edges) - 1
    step = len(lo) - 1 if at_end else int(time[edges[last]])
    return Reached(pair(last), pair(first + inside), step, at_end)


def _cumulated(flags: Bools) -> Ints:
    return np.concatenate([[0], np.cumsum(flags)])


def _pair_at(lo: Floats, hi: Floats, place: float, score: Floats, times: Floats) -> tuple[float, float]:
    """lo and hi at this time; whatever rounding does, just the scores with a smaller time exit."""
    step = int(place)
    cuts = []
    for rising, own in ((lo, score), (-hi, -score)):
        before, after = float(rising[step]), float(rising[min(step + 1, len(rising) - 1)])
        # From an infinite cut the path jumps, so at the very moment it still stands there.
        cut = before if not np.isfinite(before) or place == step else before + (place - step) * (after - before)
        stays = own[times >= place]
        leaves = own[(times < place) & (_times(rising, own) < place)]
        if len(leaves):
            cut = max(cut, float(np.nextafter(leaves.max(), np.inf)))
        cuts.append(min(cut, float(stays.min())) if len(stays) else cut)
    return cuts[0], -cuts[1]


@dataclass(frozen=True, slots=True)
class Counted:
    """Where to start: forgiven errors of each risk, from pair `start` on; coverage reached in each sample, [B]."""

    forgiven: dict[str, int]
    start: int
    expected: float
    reached: Floats


def best_counts(
    samples: Mapping[str, tuple[Ints, Ints]],
    blocks: Bools,
    coverage: Floats,
    weight: Floats,
    targets: Mapping[str, float],
    delta: float,
) -> Counted:
    """The start from which simulated samples reach furthest on average.

    samples: (errors, trials) of each risk, int [B, T]; blocks: bool [T], whether a block of tied scores lies between
    this pair and the one before; coverage: float [T]; weight: float [B], sum 1. The start is where there are just as
    many trials as its errors take, and not before the first pair or the one behind a block.
    """
    steps = len(coverage)
    passed, through = np.ones((len(weight), steps), np.bool_), np.ones((len(weight), steps), np.bool_)
    asked, starts, least = [], [], {}
    for name, target in targets.items():
        errors, trials = samples[name]
        here = errors <= errors_allowed(trials, target, delta)
        # Within a block the wrong answers may come first.
        least[name] = trials.copy()
        least[name][:, 1:] = trials[:, :-1] + np.diff(errors, axis=1)
        passed &= here
        through &= np.where(blocks, errors <= errors_allowed(least[name], target, delta), here)
        numbers, needed = _forgiving(int(trials.max()), target, delta)
        early = needed < _EARLIEST * float(trials[:, -1] @ weight)
        kept = slice(min(int(early.sum()), len(needed) - 1), None)
        numbers, needed = numbers[kept], needed[kept]
        asked.append((name, numbers, needed))
        starts.append(np.stack([np.minimum((trials < m).sum(axis=1), steps - 1) for m in needed], axis=1))
    rows = np.arange(len(weight))
    where = np.where(through, steps, np.arange(steps))
    failure = np.minimum.accumulate(where[:, ::-1], axis=1)[:, ::-1]
    failure = np.concatenate([failure, np.full((len(rows), 1), steps)], axis=1)
    options = []
    for place in np.ndindex(*(len(numbers) for _, numbers, _ in asked)):
        counted = np.max([own[:, index] for own, index in zip(starts, place, strict=True)], axis=0)
        inside = blocks[counted]
        begins = passed[rows, counted]
        for (name, _, needed), index in zip(asked, place, strict=True):
            enough = np.maximum(least[name][rows, counted], needed[index])
            inside_passes = samples[name][0][rows, counted] <= errors_allowed(enough, targets[name], delta)
            begins = begins & (inside_passes | ~inside)
        for start in (0, *np.flatnonzero(blocks).tolist()):
            at = np.maximum(counted, start)
            held = np.where(counted > start, begins, passed[rows, at])
            reached = np.where(held, coverage[failure[rows, at + 1] - 1], 0.0)
            value = float(reached @ weight)
            options.append((value, place, start, reached))
    most = max(value for value, *_ in options)
    value, place, start, reached = max(
        (option for option in options if option[0] >= most - _SAME), key=lambda option: (sum(option[1]), -option[2])
    )
    chosen = {name: int(numbers[index]) for (name, numbers, _), index in zip(asked, place, strict=True)}
    return Counted(chosen, start, value, reached)


@lru_cache(maxsize=1024)
def trials_needed(errors: int, target: float, delta: float) -> int:
    """minimum_samples, kept: a walk is short."""
    return minimum_samples(target, delta, errors)


def _forgiving(most: int, target: float, delta: float) -> tuple[Ints, Ints]:
    """(errors, trials that an exact test takes to forgive so many), up to `most` trials; some where there are many."""
    allowed = errors_allowed(np.arange(most + 1), target, delta)
    jumps = np.flatnonzero(np.diff(allowed) > 0) + 1
    if not len(jumps):
        return np.array([0]), np.array([most + 1])
    errors = np.unique(np.round(np.geomspace(1, len(jumps), _FORGIVEN)).astype(np.int64)) - 1
    return errors, jumps[errors]
