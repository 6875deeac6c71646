"""P(certified) against the number of units, by simulation: draws from a sample that stands for the population.

One simulator for two questions. `stage1 plan` takes a pilot for the population and draws val_select and val_calib from
it (select_share of the units); a refusal keeps val_select and the rule that it fixed, and asks how many calibration
units would do (select_share 0). What is drawn and tested is the caller's: an `Attempt`.
A number of either kind is advice. It decides nothing about a certificate, which counts its own units alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import ConfigError
from stage1.risk import binomial_lower, binomial_upper

Ints = NDArray[np.int64]
Attempt = Callable[[int, int, np.random.Generator], "float | None"]
"""(units of val_select, of val_calib, generator) -> coverage of a draw; None: it certifies not the whole target."""

ENOUGH = 0.8
"""Share of samples of the size that a refusal names which certify, over what is not known of the population."""
IN_WORDS = "in four of five"
SURE = 0.95
"""What is asked of the draws for it: they know the population from a sample in which some errors have not been seen."""
MOST_ROWS = 400_000
"""Of one draw: no refusal waits for more."""
_DRAWS = 40
_FURTHEST = 64  # times the present number of units: what lies beyond is no advice
_BLOCK = 20
_FUTILE = 1e-6
_LEVEL = 0.95
_LUCK = 0.2
"""A size whose true chance is the wanted one passes for enough with this probability at most: the search stops at the
first that passes, which favours those that were lucky."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The sample that is drawn from. rows: how many; members: rows of each group, None: a row is a unit.

    weights: float [rows], chances of each row, None: equal (or groups). guess: the sample is not the population but a
    draw of it, so each draw is of another population, as likely as the sample itself (n of n with replacement).

    >>> rows, sizes = Pool(3, (np.array([0, 1]), np.array([2]))).draw(2, np.random.default_rng(0))
    >>> rows.tolist(), None if sizes is None else sizes.tolist()
    ([2, 2], [1, 1])
    """

    rows: int
    members: tuple[Ints, ...] | None = None
    weights: NDArray[np.float64] | None = None
    guess: bool = False

    @classmethod
    def of_groups(cls, groups: ArrayLike, *, guess: bool = False) -> Pool:
        """Units are groups; groups: names [N]."""
        names = np.asarray(groups)
        _, index = np.unique(names, return_inverse=True)
        members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
        return cls(len(names), tuple(members), guess=guess)

    @property
    def units(self) -> int:
        return self.rows if self.members is None else len(self.members)

    def draw(self, n: int, rng: np.random.Generator) -> tuple[Ints, Ints | None]:
        """Row numbers of n units, and rows of each unit (None: one each); a unit that is drawn twice is two."""
        if self.members is None and self.weights is not None:
            return rng.choice(self.rows, n, p=self.weights), None
        picked = rng.integers(0, self.units, n)
        if self.guess:
            picked = rng.integers(0, self.units, self.units)[picked]
        if self.members is None:
            return picked, None
        parts = [self.members[index] for index in picked.tolist()]
        return np.concatenate(parts), np.array([len(part) for part in parts])


@dataclass(frozen=True, slots=True)
class Trial:
    """One size: of `draws` draws of n units, `certified` certified the whole target. low, high: simulation error.

    They are the exact 95 % interval of P(certified) if the sample were the population.

    n = n_select + n_calib units (images, or groups). coverage: mean over all draws of the share that exits (0 where
    nothing is certified), and its standard error.
    """

    n: int
    n_select: int
    n_calib: int
    draws: int
    certified: int
    success: float
    low: float
    high: float
    coverage: float
    coverage_error: float


def at_size(
    n: int,
    attempt: Attempt,
    *,
    draws: int,
    select_share: float,
    seed: int,
    wanted: float | None = None,
    spare: int | None = None,
) -> Trial:
    """P(certified) with n units, of which select_share go to val_select (0: none, it stays as it is).

    wanted: give up where it is out of reach after a block of draws; None: never. spare: give up where more draws than
    that failed. A size has draws of its own (seed, n), so that where another one stopped is not seen in it.

    >>> at_size(10, lambda select, calib, rng: 0.5 if calib > 8 else None, draws=4, select_share=0.0, seed=0).certified
    4
    """
    n_select = max(round(n * select_share), 1) if select_share else 0
    rng = np.random.default_rng((seed, n))
    covered: list[float] = []
    certified = 0
    for done in range(1, draws + 1):
        coverage = attempt(n_select, n - n_select, rng)
        certified += coverage is not None
        covered.append(coverage or 0.0)
        futile = wanted is not None and done % _BLOCK == 0 and float(binomial_upper(certified, done, _FUTILE)) < wanted
        if futile or (spare is not None and done - certified > spare):
            break
    done = len(covered)
    tail = (1.0 - _LEVEL) / 2
    return Trial(
        n=n,
        n_select=n_select,
        n_calib=n - n_select,
        draws=done,
        certified=certified,
        success=certified / done,
        low=float(binomial_lower(certified, done, tail)),
        high=float(binomial_upper(certified, done, tail)),
        coverage=float(np.mean(covered)),
        coverage_error=float(np.std(covered, ddof=1) / np.sqrt(done)) if done > 1 else 0.0,
    )


def search(
    enough: Callable[[int], bool],
    low: int,
    high: int,
    most: int,
    precision: float,
    beyond: Sequence[float] = (),
) -> int | None:
    """The smallest n tried that is enough: doubling from `high`, then bisection in log n to `precision` (relative).

    low: known, or taken, not to be enough. most: no larger size is tried; None where not even that is enough. beyond:
    multiples of the answer that are asked as well, for whoever keeps what was asked.

    >>> search(lambda n: n >= 300, 50, 100, 10_000, 0.05) in range(300, 316)
    True
    """
    while high <= most and not enough(high):
        low, high = high, 2 * high
    if high > most:
        return None
    while high > low * (1.0 + precision) and high - low > 1:
        middle = round(float(np.sqrt(low * high)))
        if middle in (low, high):
            return high
        low, high = (low, middle) if enough(middle) else (middle, high)
    for factor in beyond:
        enough(round(high * factor))
    return high


def needed_units(
    present: int,
    attempt: Attempt,
    *,
    success: float,
    most: int,
    seed: int,
    draws: int = _DRAWS,
    select_share: float = 0.0,
    precision: float = 0.5,
) -> int | None:
    """Units in all, more than `present`, of which `success` of all draws certify.

    None where `most` or 64 times the present ones are not enough. A size passes where its draws show `success` although
    _LUCK of them could be luck. Raises ConfigError (success, draws).

    >>> needed_units(10, lambda select, calib, rng: 1.0 if calib > 70 else None, success=0.8, most=99, seed=0)
    80
    """
    if not 0 < success < 1:
        raise ConfigError(f"success={success}: must lie strictly between 0 and 1")

    shown = binomial_lower(np.arange(draws + 1), np.full(draws + 1, draws), _LUCK) >= success
    if not shown.any():
        raise ConfigError(f"draws={draws}: too few to show success={success}")
    spare = draws - int(shown.argmax())

    def enough(n: int) -> bool:
        found = at_size(n, attempt, draws=draws, select_share=select_share, seed=seed, spare=spare)
        return found.draws - found.certified <= spare

    present = max(present, 1)
    return search(enough, present, 2 * present, min(most, _FURTHEST * present), precision)
