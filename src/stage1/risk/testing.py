"""Exact tests as counts: samples that a claim needs, errors that it allows, ranks, and tests in a fixed sequence.

`order_statistic_rank` and `walk_length` choose thresholds from one class; `fixed_sequence` tests hypotheses in an order
fixed beforehand, each at the full delta, until the first that fails (ALGORITHMS 2.1, 2.4).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.late import library
from stage1.risk.bounds import binomial_pvalue

special = library("scipy.special")


def minimum_samples(level: float, delta: float, errors: int = 0) -> int:
    """Smallest n for which `errors` wrong answers among n certify risk <= level at confidence 1 - delta.

    level, delta in (0, 1); errors >= 0. Example: minimum_samples(0.02, 0.05) == 149.
    Raises DataError (through binomial_pvalue) for values out of range.

    >>> minimum_samples(0.02, 0.05), minimum_samples(0.02, 0.05, errors=1)
    (149, 236)
    """
    if errors < 0:
        raise DataError(f"errors: must be >= 0, got {errors}")
    low, high = errors, max(2 * errors, 8)
    binomial_pvalue(errors, high, level)  # checks what is given, once
    while special.bdtr(errors, high, level) > delta:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if special.bdtr(errors, middle, level) <= delta:
            high = middle
        else:
            low = middle
    return high


def max_errors(trials: int, level: float, delta: float) -> int:
    """Most errors among `trials` that still certify risk <= level at 1 - delta; -1 where even 0 does not.

    >>> max_errors(300, 0.02, 0.05)
    1
    """
    return order_statistic_rank(trials, level, delta) - 1


def max_errors_each(n: ArrayLike, level: float, delta: float) -> NDArray[np.float64]:
    """max_errors of each n, float [T] of whole numbers; -1 where even no error is too many. n: whole, >= 0.

    >>> max_errors_each([100, 300, 1000], 0.02, 0.05).tolist()
    [-1.0, 1.0, 12.0]
    """
    wanted: NDArray[np.float64] = np.asarray(n, dtype=np.float64)
    size = np.maximum(wanted, 1)
    # The quantile by its normal expansion is off by one at most; exact tails around it decide.
    z = special.ndtri(delta)
    guess = size * level + z * np.sqrt(size * level * (1 - level)) + (z * z - 1) * (1 - 2 * level) / 6 - 0.5
    count = np.clip(np.floor(guess), 0, size - 1)

    def passes(at: NDArray[np.intp], errors: NDArray[np.float64]) -> NDArray[np.bool_]:
        tail = special.bdtr(np.maximum(errors, 0), size[at], level)
        return np.asarray((errors < 0) | (tail <= delta))

    # Only where the last step changed something is there anything left to decide.
    shape, size, count = size.shape, size.ravel(), count.ravel()
    at = np.arange(len(count))
    while len(at := at[~passes(at, count[at])]):
        count[at] -= 1
    at = np.flatnonzero(count + 1 < size)
    while len(at := at[(count[at] + 1 < size[at]) & passes(at, count[at] + 1)]):
        count[at] += 1
    return np.where(wanted > 0, count.reshape(shape), -1.0)


def order_statistic_rank(n: int, level: float, delta: float) -> int:
    """k = max{k : P(Bin(n, level) <= k - 1) <= delta}, 0 where there is none.

    Threshold at the k-th most extreme score of one class with n members: the share of that class beyond it exceeds
    `level` with probability at most delta, exactly P(Bin(n, level) <= k - 1) for continuous scores.
    Source: Tong, Feng and Li 2018 (Neyman-Pearson umbrella); ALGORITHMS 2.4.

    >>> order_statistic_rank(300, 0.02, 0.05)
    2
    """
    low, high = 0, n + 1  # F(low - 1) <= delta < F(high - 1); F(n) = 1
    if n > 0:
        binomial_pvalue(0, n, level)  # checks what is given, once
    while high - low > 1:
        middle = (low + high) // 2
        if special.bdtr(middle - 1, n, level) <= delta:
            low = middle
        else:
            high = middle
    return low


def walk_length(right: int, available: int, level: float, delta: float) -> int:
    """j of the walk: one more than the misses allowed among `right` answers known to be right plus these misses.

    j = 0; while j <= available and P(Bin(j + right, level) <= j) <= delta: j += 1. `available`: members of the class
    that do not exit on the right side. j = 0 means that not even zero misses certify; else j - 1 misses are allowed.
    Source: ALGORITHMS 2.4 (two-sided walk, step b).

    >>> walk_length(right=290, available=10, level=0.02, delta=0.05)
    2
    """
    # P(Bin(j + right, level) <= j) rises with j, so the first failure can be found by halving.
    low, high = 0, available + 1 if right > 0 else 0
    while low < high:
        middle = (low + high) // 2
        if float(binomial_pvalue(middle, middle + right, level)) <= delta:
            low = middle + 1
        else:
            high = middle
    return low


def fixed_sequence(passed: ArrayLike, start: int = 0) -> int | None:
    """Position of the last hypothesis rejected when testing goes from `start` on and stops at the first failure.

    passed: bool [T], p-value <= delta, in the order fixed before the labels were seen; `start` fixed beforehand too.
    Returns None where the first one fails. The chance that any rejected hypothesis is true is at most delta, whatever
    the order and the dependence. Raises DataError for a start outside 0..T-1.
    Source: Angelopoulos et al. 2021 (Learn then Test), section 2.2; ALGORITHMS 2.1.

    >>> fixed_sequence([True, True, False, True])
    1
    """
    flags = np.asarray(passed, dtype=np.bool_)
    if not 0 <= start < len(flags):
        raise DataError(f"start: {start} is outside 0..{len(flags) - 1}")
    failures = np.flatnonzero(~flags[start:])
    end = start + (int(failures[0]) if len(failures) else len(flags) - start)
    return end - 1 if end > start else None


def fixed_sequence_of(passed: Callable[[slice], ArrayLike], length: int, start: int = 0) -> int | None:
    """`fixed_sequence` where each test takes time: the flags of a slice at a time, none far beyond the first failure.

    passed: bool for each hypothesis of a slice of 0..length-1. Raises as fixed_sequence does.

    >>> fixed_sequence_of(lambda rows: np.array([True, True, False, True])[rows], 4)
    1
    """
    if not 0 <= start < length:
        raise DataError(f"start: {start} is outside 0..{length - 1}")
    found, first, step = None, start, 1
    while first < length:
        last = fixed_sequence(passed(slice(first, min(first + step, length))))
        found = found if last is None else first + last
        if found != min(first + step, length) - 1:
            break
        first, step = first + step, 2 * step
    return found
