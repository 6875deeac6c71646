"""Exact test of an error rate at a class balance that the sample does not have: each class is a sample of its own.

Of n1 positives x1 exit, e1 of them wrongly; of n0 negatives x0 and e0. With prior = P(y = 1) where the rule will work,
the error among exits is R = w r1 + (1 - w) r0: r1, r0 the error rates among the exits of each class, w the share of
positives among exits, w / (1 - w) = prior q1 / ((1 - prior) q0), with exit rates q1, q0. Tested is H0: R >= level.

    statistic   T = prior e1 / n1 + (1 - prior) e0 / n0, small where few exits are wrong
    p-value     spent + sup P(T <= what was seen | r1, r0), over r1 in I, w in J, r0 with w r1 + (1 - w) r0 = level

I: exact interval of one error rate from its own count. J: interval of w from exact intervals of q1 and q0. `spent`: the
chance that I or J fails. Why the p-value is valid: given x1 and x0 the errors are independent, Bin(x1, r1) and
Bin(x0, r0). J depends on x1 and x0 alone; where J holds the true w and I the true rate, the supremum is over a set that
holds the truth, so P(p <= delta) <= delta - spent + spent (Berger and Boos 1994). Where R is above the level errors are
only more frequent: T is then larger. Which class is r1 is decided by n1, n0 and the prior alone.

The supremum is not looked for, it is bounded: I is cut into cells; within a cell both error rates are at least those of
one corner (r1 at its lower end, r0 = the least that H0 leaves at its upper end), and P(T <= t) falls in both rates.
Raising `level` raises every corner, so p falls with the level, and the bound of R by bisection fits the test.

Beside thinning to a sample with the stated balance (ALGORITHMS 13): every label of the larger class counts, and no
draw by hash decides; benchmarks/power.py has the figures. The weighted mean of two shares of members (coverage at a
stated prior) is the same test with w known.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.late import library
from stage1.risk.bounds import binomial_lower, binomial_upper

special = library("scipy.special")

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

# Shares of delta that pay for the intervals of w and of one rate: of .02 to .2 the ones with most power (Gaussian).
_FOR_WEIGHT, _FOR_RATE = 0.06, 0.04
# Cells of the interval of a rate. All coarse cells are unions of fine ones: what passes with few passes with all.
_COARSE, _FINE = 6, 48
_BLOCKS = 64  # of errors of one class, each block counted as its smallest
_SPREAD = 8.0  # standard deviations of a binomial beyond which counts are one block
_AT_ONCE = 400_000  # probabilities held at a time
_MOST = 10**8  # exits of a class beyond which no sample is asked for
_CLOSE = 1e-4  # an upper bound is at most this share of itself above the exact one


@dataclass(frozen=True, slots=True)
class Strata:
    """Exits of T rules by class, whole numbers, float [T] each: wrong among exits. positives, negatives: members."""

    wrong1: Floats
    exits1: Floats
    positives: float
    wrong0: Floats
    exits0: Floats
    negatives: float

    @staticmethod
    def of(
        wrong1: ArrayLike, exits1: ArrayLike, positives: int, wrong0: ArrayLike, exits0: ArrayLike, negatives: int
    ) -> Strata:
        """Checked: 0 <= wrong <= exits <= members. Raises DataError."""
        w1, x1, w0, x0 = (np.atleast_1d(np.asarray(v, dtype=np.float64)) for v in (wrong1, exits1, wrong0, exits0))
        for name, wrong, exits, members in (("positives", w1, x1, positives), ("negatives", w0, x0, negatives)):
            if not ((wrong >= 0) & (wrong <= exits) & (exits <= members)).all():
                raise DataError(f"{name}: 0 <= wrong <= exits <= {members} does not hold")
        return Strata(w1, x1, float(positives), w0, x0, float(negatives))

    def __len__(self) -> int:
        return len(self.wrong1)

    def take(self, rows: NDArray[np.int64]) -> Strata:
        return Strata(
            self.wrong1[rows], self.exits1[rows], self.positives, self.wrong0[rows], self.exits0[rows], self.negatives
        )


def stated_error(counts: Strata, prior: float) -> Floats:
    """Observed error among exits with each class weighed to P(y = 1) = prior, float [T]; NaN where nothing exits.

    >>> stated_error(Strata.of(2, 100, 200, 1, 50, 50), 0.5).round(4).tolist()
    [0.02]
    """
    one, zero = prior / max(counts.positives, 1), (1 - prior) / max(counts.negatives, 1)
    wrong, exits = one * counts.wrong1 + zero * counts.wrong0, one * counts.exits1 + zero * counts.exits0
    return np.divide(wrong, exits, out=np.full_like(wrong, np.nan), where=exits > 0)


def stratified_passes(counts: Strata, prior: float, level: float, delta: float) -> Bools:
    """Which rules have an error among exits below `level` at P(y = 1) = prior, at confidence 1 - delta, bool [T].

    True exactly where stratified_upper with this `level` is at most `level`, in less time.

    >>> few, many = Strata.of(2, 900, 1000, 0, 190, 200), Strata.of(2, 900, 1000, 9, 190, 200)
    >>> [bool(stratified_passes(counts, 0.5, 0.03, 0.05)[0]) for counts in (few, many)]
    [True, False]
    """
    return _in_parts(counts, prior, level, lambda rows: _split(rows, prior, delta), delta)


def stratified_upper(counts: Strata, prior: float, delta: float, level: float | None = None) -> Floats:
    """Upper bound of the error among exits at P(y = 1) = prior at confidence 1 - delta, float [T]; 1.0: nothing known.

    The least level that stratified_passes, from above. level: one that the answer is to be on the same side of as the
    test.

    >>> stratified_upper(Strata.of(2, 900, 1000, 0, 190, 200), 0.5, 0.05).round(3).tolist()
    [0.009]
    """
    return _upper(_split(counts, prior, delta), delta, level)


def stratified_minimum(counts: Strata, prior: float, level: float, delta: float) -> int | None:
    """Smallest number of exits, none of them wrong, that certifies `level` with the classes and exits in these shares.

    counts: of one rule; where nothing exits, everything is taken to. None: no number does, as where a class is missing.

    >>> stratified_minimum(Strata.of(0, 90, 100, 0, 90, 100), 0.5, 0.02, 0.05)
    178
    """
    one, zero = float(counts.exits1[0]), float(counts.exits0[0])
    if one + zero == 0:
        one, zero = counts.positives, counts.negatives
    unit = max(one, zero)

    def passes(exits: float) -> bool:
        x1, x0 = np.ceil(exits * one / unit), np.ceil(exits * zero / unit)
        n1, n0 = (
            max(np.round(exits * members / unit), x) for members, x in ((counts.positives, x1), (counts.negatives, x0))
        )
        return bool(stratified_passes(Strata.of(0, x1, int(n1), 0, x0, int(n0)), prior, level, delta)[0])

    low, high = 0, 1
    while unit > 0 and not passes(high):
        low, high = high, 2 * high
        if high > _MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle, high)
    return int(np.ceil(high * one / unit) + np.ceil(high * zero / unit)) if unit > 0 else None


def weighted_share_passes(counts: Strata, prior: float, level: float, delta: float) -> Bools:
    """Which rules have prior p1 + (1 - prior) p0 below `level` at 1 - delta, bool [T]; see weighted_share_upper.

    >>> bool(weighted_share_passes(Strata.of(10, 1000, 1000, 4, 200, 200), 0.5, 0.03, 0.05)[0])
    True
    """
    known = np.full(len(counts), prior)
    return _in_parts(
        counts,
        prior,
        level,
        lambda rows: _ordered(rows, prior, known[: len(rows)], known[: len(rows)], _FOR_RATE * delta),
        delta,
    )


def weighted_share_upper(counts: Strata, prior: float, delta: float) -> Floats:
    """Upper bound of prior p1 + (1 - prior) p0 at 1 - delta, float [T]; p1, p0: shares of `exits` that are `wrong`.

    For shares of all members, give members as exits.

    >>> weighted_share_upper(Strata.of(10, 1000, 1000, 4, 200, 200), 0.5, 0.05).round(3).tolist()
    [0.028]
    """
    known = np.full(len(counts), prior)
    return _upper(_ordered(counts, prior, known, known, _FOR_RATE * delta), delta, None)


# ---- the test ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Pair:
    """The classes of T rules: `fine`, of which an error moves T less, and `rough`, of which it moves T `ratio` times.

    low, high: [T], limits of the weight of the fine class. rate_low, rate_high: [T], of its error rate. spent: of
    delta.
    """

    fine: Floats
    fine_of: Floats
    rough: Floats
    rough_of: Floats
    ratio: float
    low: Floats
    high: Floats
    rate_low: Floats
    rate_high: Floats
    spent: float

    def take(self, rows: NDArray[np.int64]) -> _Pair:
        arrays = (self.fine, self.fine_of, self.rough, self.rough_of)
        limits = (self.low, self.high, self.rate_low, self.rate_high)
        fine, fine_of, rough, rough_of = (values[rows] for values in arrays)
        low, high, rate_low, rate_high = (values[rows] for values in limits)
        return _Pair(fine, fine_of, rough, rough_of, self.ratio, low, high, rate_low, rate_high, self.spent)


def _split(counts: Strata, prior: float, delta: float) -> _Pair:
    """Weight of the positives among exits from exact intervals of both exit rates, four tails in all."""
    spent = _FOR_WEIGHT * delta
    low1, high1 = _interval(counts.exits1, counts.positives, spent / 2)
    low0, high0 = _interval(counts.exits0, counts.negatives, spent / 2)
    low = prior * low1 / (prior * low1 + (1 - prior) * high0)
    high = prior * high1 / (prior * high1 + (1 - prior) * low0)
    return _ordered(counts, prior, low, high, _FOR_RATE * delta, spent)


def _ordered(counts: Strata, prior: float, low: Floats, high: Floats, for_rate: float, spent: float = 0.0) -> _Pair:
    # Which class is the fine one depends on the members alone, never on errors.
    one, zero = prior / max(counts.positives, 1), (1 - prior) / max(counts.negatives, 1)
    first, second = (counts.wrong1, counts.exits1), (counts.wrong0, counts.exits0)
    if one > zero:
        one, zero, first, second, low, high = zero, one, second, first, 1 - high, 1 - low
    rate_low, rate_high = _interval(*first, for_rate)
    return _Pair(*first, *second, zero / one, low, high, rate_low, rate_high, spent + for_rate)


def _interval(count: Floats, of: ArrayLike, delta: float) -> tuple[Floats, Floats]:
    return binomial_lower(count, of, delta / 2), binomial_upper(count, of, delta / 2)


def _in_parts(counts: Strata, prior: float, level: float, pair_of: Callable[[Strata], _Pair], delta: float) -> Bools:
    passed = np.zeros(len(counts), dtype=np.bool_)
    # Where more is wrong than the level allows, no test of this level passes.
    possible = np.flatnonzero(np.nan_to_num(stated_error(counts, prior), nan=np.inf) < level)
    for rows in _parts(possible):
        passed[rows] = _passes(pair_of(counts.take(rows)), np.full(len(rows), level), delta)
    return passed


def _passes(pair: _Pair, level: Floats, delta: float) -> Bools:
    """level: [T]."""
    found = _pvalue(pair, level, _COARSE) <= delta
    # What fails at one null that is known to be true needs no finer cells.
    doubt = np.flatnonzero(~found & (_pvalue(pair, level, _COARSE, corners=False) <= delta))
    for row in doubt:
        one = np.array([row])
        found[row] = _pvalue(pair.take(one), level[one], _FINE)[0] <= delta
    return found


def _upper(pair: _Pair, delta: float, level: float | None) -> Floats:
    # What was seen is rejected at no level up to itself: see _in_parts.
    trials = pair.fine_of + pair.ratio * pair.rough_of
    seen = np.divide(pair.fine + pair.ratio * pair.rough, trials, out=np.ones_like(trials), where=trials > 0)
    low, high = seen, np.ones_like(seen)
    middle = (low + high) / 2 if level is None else np.where(low < level, level, (low + high) / 2)
    while len(rows := np.flatnonzero(high - low > _CLOSE * high)):
        passed = np.zeros(len(low), dtype=np.bool_)
        for part in _parts(rows):
            passed[part] = _passes(pair.take(part), middle[part], delta)
        low, high = np.where(passed, low, np.maximum(low, middle)), np.where(passed, middle, high)
        # Bounds are small: halving their ratio gets there sooner.
        middle = np.where(low > high / 100, np.sqrt(low * high), np.where(low > 0, (low + high) / 2, high / 4))
    return high


def _parts(rows: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return np.array_split(rows, -(-len(rows) * _COARSE * _BLOCKS // _AT_ONCE)) if len(rows) else []


def _pvalue(pair: _Pair, level: Floats, cells: int, *, corners: bool = True) -> Floats:
    """Bound of the p-value of each rule, float [T]; corners=False: its value at nulls that exist, so never above it."""
    share = np.linspace(0.0, 1.0, cells + 1)
    edges = pair.rate_low[:, None] + (pair.rate_high - pair.rate_low)[:, None] * share
    rate = edges[:, :-1]
    # The lower edges of the coarse cells are lower edges of fine ones too, so these values bound the fine p from below.
    other = _least(pair, level, edges[:, 1:] if corners else rate)
    tail = _tail(pair, rate, np.clip(other, 0.0, 1.0), level)
    return np.asarray(pair.spent + np.where(other <= 1, tail, 0.0).max(axis=1))


def _least(pair: _Pair, level: Floats, rate: Floats) -> Floats:
    """Least error rate of the rough class that H0 leaves where that of the fine class is `rate`, float [T, J]."""

    def at(weight: Floats) -> Floats:
        w = weight[:, None]
        return np.asarray((level[:, None] - w * rate) / np.maximum(1 - w, 1e-300))

    # Monotone in the weight, so at one of its ends.
    return np.minimum(at(pair.low), at(pair.high))


def _tail(pair: _Pair, rate: Floats, other: Floats, level: Floats) -> Floats:
    """P(T <= what was seen) at these error rates of the fine and the rough class, float [T, J], never too small."""
    seen = pair.fine + pair.ratio * pair.rough
    slack = 1e-9 * np.maximum(seen, 1.0)
    most = np.minimum(np.floor((seen + slack) / pair.ratio), pair.rough_of)
    # Counts of the rough class in blocks, each taken as its smallest: the window does not depend on the cells.
    ends = _least(pair, level, np.stack([pair.rate_high, pair.rate_low], axis=1))
    mean = np.clip(ends, 0.0, 1.0) * pair.rough_of[:, None]
    spread = _SPREAD * np.sqrt(mean.max(axis=1)) + 2 * _SPREAD
    first = np.clip(np.floor(mean.min(axis=1) - spread), 0.0, most)
    last = np.clip(np.ceil(mean.max(axis=1) + spread), first, most)
    width = np.ceil((last - first + 1) / _BLOCKS)
    blocks = int(np.ceil((last - first + 1) / width).max())
    inner = first[:, None] + width[:, None] * np.arange(blocks)
    starts = np.concatenate([np.zeros((len(seen), 1)), np.minimum(inner, most[:, None] + 1)], axis=1)
    room = np.floor(seen[:, None] + slack[:, None] - pair.ratio * starts)
    ends_at = np.concatenate([starts[:, 1:], most[:, None] + 1], axis=1) - 1
    below = _at_most(starts - 1, pair.rough_of, other)
    within = np.maximum(_at_most(ends_at, pair.rough_of, other) - below, 0.0)
    return np.asarray((within * _at_most(np.minimum(room, pair.fine_of[:, None]), pair.fine_of, rate)).sum(axis=2))


def _at_most(count: Floats, of: Floats, rate: Floats) -> Floats:
    """P(Bin(of, rate) <= count), float [T, J, B]; count: [T, B], of: [T], rate: [T, J]."""
    k, n, p = count[:, None, :], of[:, None, None], rate[:, :, None]
    inside = special.betainc(np.maximum(n - k, 1.0), np.maximum(k, 0.0) + 1, 1 - p)  # many times faster than bdtr
    return np.where(k >= n, 1.0, np.where(k < 0, 0.0, inside))


# ---- prediction --------------------------------------------------------------------------------------------------


def stratified_chance(expected: Strata, prior: float, level: float, delta: float) -> Floats:
    """Predicted chance that rules with these expected counts (any numbers >= 0) pass, float [T]; only a forecast.

    Both the critical value at the worst null and the count that is awaited are taken as scaled Poisson.

    >>> bool(stratified_chance(Strata.of(2.0, 900.0, 1000, 0.5, 190.0, 200), 0.5, 0.03, 0.05)[0] > 0.9)
    True
    """
    one, zero = prior / max(expected.positives, 1), (1 - prior) / max(expected.negatives, 1)
    first, second = (expected.wrong1, expected.exits1), (expected.wrong0, expected.exits0)
    sizes = (expected.positives, expected.negatives)
    weight = one * expected.exits1 / np.maximum(one * expected.exits1 + zero * expected.exits0, 1e-300)
    if one > zero:
        one, zero, first, second, sizes, weight = zero, one, second, first, sizes[::-1], 1 - weight
    ratio = zero / one
    (fine, fine_of), (rough, rough_of) = first, second
    tail = special.ndtri(1 - _FOR_WEIGHT * delta / 4)
    spread = sum(
        np.sqrt(np.clip(1 - exits / max(size, 1), 0, 1) / np.maximum(exits, 1))
        for exits, size in ((fine_of, sizes[0]), (rough_of, sizes[1]))
    )
    rate = np.where(
        fine > 0,
        special.betaincinv(np.maximum(fine, 1e-9), np.maximum(fine_of - fine, 0) + 1, _FOR_RATE * delta / 2),
        0.0,
    )
    with np.errstate(divide="ignore"):
        low = special.expit(special.logit(weight) - tail * spread)
    other = np.clip((level - low * rate) / np.maximum(1 - low, 1e-300), 0.0, 1.0)

    def scaled(fine_mean: Floats, rough_mean: Floats) -> tuple[Floats, Floats]:
        """(mean, size of a count) of errors in units of the rough class."""
        mean, variance = fine_mean / ratio + rough_mean, fine_mean / ratio**2 + rough_mean
        return mean, variance / np.maximum(mean, 1e-300)

    mean0, unit0 = scaled(fine_of * rate, rough_of * other)
    mean1, unit1 = scaled(fine, rough)
    left = delta * (1 - _FOR_WEIGHT - _FOR_RATE)
    awaited0, awaited1 = mean0 / np.maximum(unit0, 1e-300), mean1 / np.maximum(unit1, 1e-300)
    possible = (np.exp(-awaited0) <= left) & (fine_of + rough_of > 0)
    critical = special.pdtrik(left, np.where(possible, awaited0, 10.0))
    reached = special.gammaincc(critical * unit0 / np.maximum(unit1, 1e-300) + 1, awaited1)
    return np.asarray(np.where(possible, np.where(mean1 > 0, reached, 1.0), 0.0))
