"""What a bootstrap draws: units (groups, else rows) within strata, as how often each was drawn.

- The **unit** is the group where groups are given (all its rows come or go together), else the row.
- **Strata**: with labels, as many units of each label are drawn as there are (the interval is for class shares as they
  are; it leaves out the chance in how many of each class were collected). A group belongs to the label that most of its
  rows have, the lower one at a tie. Units that are alone in their stratum would always be drawn exactly once and seem
  certain: they are pooled, with the smallest other stratum if need be.

A replicate is a row of small integers on units that never move, so the rows are sorted once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError

Counts = NDArray[np.uint8]
# Cells of several replicates at once while they fit the second-level cache: small samples are bound by the overhead of
# each numpy call, large ones by memory traffic.
_CELLS = 1 << 17


@dataclass(frozen=True, eq=False)
class Units:
    """unit_of_row: int [N], None = each row is its own unit. strata: the units of each stratum, int arrays."""

    unit_of_row: NDArray[np.intp] | None
    strata: list[NDArray[np.intp]]

    def __len__(self) -> int:
        return sum(map(len, self.strata))

    @cached_property
    def _column_of_row(self) -> NDArray[np.intp] | None:
        """Where a row finds its count: strata lie side by side. None = row i finds it at i."""
        column = np.empty(len(self), dtype=np.intp)
        column[np.concatenate(self.strata)] = np.arange(len(self))
        if self.unit_of_row is not None:
            return column[self.unit_of_row]
        return None if len(self.strata) == 1 and (np.diff(self.strata[0]) == 1).all() else column

    def rows(self, counts: Counts) -> Counts:
        """[B, units] as `draws` and `deletions` give them -> [B, N] in the order of the input rows."""
        return counts if self._column_of_row is None else counts.take(self._column_of_row, axis=-1)


def units(n: int, labels: ArrayLike | None, groups: ArrayLike | None) -> Units:
    """The units of n rows. labels, groups: [n], any values. Raises DataError: wrong shape, NaN."""
    unit_of_row, label_of_unit, n_units = None, None, n
    if groups is not None:
        _, inverse = np.unique(_rows(groups, n, "groups"), return_inverse=True)
        unit_of_row, n_units = inverse.reshape(-1), int(inverse.max()) + 1
    if labels is not None:
        _, codes = np.unique(_rows(labels, n, "labels"), return_inverse=True)
        codes = codes.reshape(-1)
        if unit_of_row is None:
            label_of_unit = codes
        else:
            k = int(codes.max()) + 1
            counts = np.bincount(unit_of_row * k + codes, minlength=n_units * k)
            label_of_unit = counts.reshape(n_units, k).argmax(axis=1)
    if label_of_unit is None:
        return Units(unit_of_row, [np.arange(n_units)])
    strata = [np.flatnonzero(label_of_unit == label) for label in np.unique(label_of_unit)]
    return Units(unit_of_row, _pool_singles(strata))


def _pool_singles(strata: list[NDArray[np.intp]]) -> list[NDArray[np.intp]]:
    singles = [stratum for stratum in strata if len(stratum) == 1]
    rest = sorted((stratum for stratum in strata if len(stratum) > 1), key=len)
    if len(singles) == 1 and rest:
        singles.append(rest.pop(0))
    return rest + ([np.concatenate(singles)] if singles else [])


def draws(plan: Units, n_rows: int, n_resamples: int, seed: int) -> Iterator[Counts]:
    """How often each unit was drawn, uint8 [B, units] at a time, n_resamples in all; `plan.rows` spreads them.

    The same plan and seed give the same draws, whatever is computed of them.
    """
    rng = generator(seed, "bootstrap")
    size = batch_rows(n_rows)
    for start in range(0, n_resamples, size):
        batch = min(size, n_resamples - start)
        yield np.concatenate([multinomial(rng, batch, len(stratum)) for stratum in plan.strata], axis=1)


def deletions(plan: Units, n_rows: int, blocks: int, seed: int) -> Iterator[tuple[int, Counts]]:
    """The jackknife: (stratum, uint8 [B, units]), 0 for the units left out in each row and 1 for the others.

    One unit at a time where there are at most `blocks` units in all, else that many random blocks of units, shared
    among the strata by size (at least 2 each).
    """
    rng = generator(seed, "jackknife")
    n_units = len(plan)
    size = batch_rows(n_rows)
    start = 0
    for index, stratum in enumerate(plan.strata):
        members = len(stratum)
        parts = members if n_units <= blocks else min(members, max(2, round(blocks * members / n_units)))
        order = rng.permutation(members) + start
        for first in range(0, parts, size):
            rows = np.arange(first, min(first + size, parts))
            counts = np.ones((len(rows), n_units), dtype=np.uint8)
            for row, part in enumerate(rows):
                counts[row, order[part::parts]] = 0
            yield index, counts
        start += members


def left_out(plan: Units, index: int) -> Counts:
    """One row for each unit of stratum `index`: 0 for that unit, 1 for all others; uint8 [members, units]."""
    start, members = sum(map(len, plan.strata[:index])), len(plan.strata[index])
    counts = np.ones((members, len(plan)), dtype=np.uint8)
    counts[np.arange(members), start + np.arange(members)] = 0
    return counts


def batch_rows(n_rows: int) -> int:
    """Replicates to make at once."""
    return max(1, _CELLS // n_rows)


def generator(seed: int, purpose: str) -> np.random.Generator:
    """A random generator of its own for each purpose."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/{purpose}".encode()).digest()[:8], "big"))


# ---- multinomial counts ------------------------------------------------------------------------------------------


def multinomial(rng: np.random.Generator, rows: int, size: int) -> Counts:
    """`rows` independent draws of `size` balls into `size` boxes: the counts, uint8 [rows, size].

    Poisson counts of a mean slightly below 1, then the balls that are missing, one by one. That is exactly multinomial:
    given their sum, Poisson counts are, and so are those with further balls; rows that came out with too many balls
    (one in thirty thousand) are drawn again, which depends on the sum only. A few random bytes for each box, instead of
    a random box for each ball, is what makes a replicate cheap. (A box of 256 balls is too improbable to occur.)
    """
    rate = max(0.0, 1.0 - 4.0 / np.sqrt(size))
    counts = _poisson(rng, rate, (rows, size))
    missing = size - counts.sum(axis=1, dtype=np.int64)
    while (over := np.flatnonzero(missing < 0)).size:
        counts[over] = _poisson(rng, rate, (len(over), size))
        missing[over] = size - counts[over].sum(axis=1, dtype=np.int64)
    boxes = rng.integers(size, size=int(missing.sum()))
    boxes += np.repeat(np.arange(rows) * size, missing)
    np.add.at(counts.reshape(-1), boxes, np.uint8(1))
    return counts


_UNSURE = 255


def _poisson(rng: np.random.Generator, rate: float, shape: tuple[int, int]) -> Counts:
    """Poisson counts by inverting the distribution function: 16 random bits each, more where those leave it open."""
    if rate <= 0.0:
        return np.zeros(shape, dtype=np.uint8)
    table, cdf = _poisson_table(rate)
    cells = shape[0] * shape[1]
    bits = np.asarray(rng.bit_generator.random_raw(-(-cells // 4))).view(np.uint16)[:cells]  # 64 bits a word
    counts = table.take(bits)
    unsure = np.flatnonzero(counts == _UNSURE)
    counts[unsure] = np.searchsorted(cdf, (bits[unsure] + rng.random(len(unsure))) / 65536, side="right")
    return counts.reshape(shape)


@lru_cache(maxsize=64)
def _poisson_table(rate: float) -> tuple[Counts, NDArray[np.float64]]:
    """For each value of 16 random bits the count, _UNSURE where a step of the distribution function lies within it."""
    mass = np.exp(-rate) * np.cumprod(np.append(1.0, rate / np.arange(1, 40)))
    cdf = np.minimum(np.cumsum(mass), 1.0)
    cdf[-1] = 1.0
    edges = np.arange(65537) / 65536
    low = np.searchsorted(cdf, edges[:-1], side="right")
    high = np.searchsorted(cdf, edges[1:], side="left")
    return np.where(low == high, low, _UNSURE).astype(np.uint8), cdf


# ---- input -------------------------------------------------------------------------------------------------------


def _rows(values: ArrayLike, n: int, name: str) -> NDArray[np.generic]:
    array = np.asarray(values)
    if array.ndim != 1 or len(array) != n:
        raise DataError(f"{name}: shape {array.shape}; one value for each of the {n} rows")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{name}: row {int((~np.isfinite(array)).argmax())} is not a number; fix or drop these rows")
    if array.dtype.kind == "O":
        return array.astype(np.str_)
    return array
