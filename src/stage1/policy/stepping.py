"""Which pairs of a path to test: stepping stones chosen by simulation from val_select alone (ALGORITHMS 13).

With few labels the number of errors that an exact test forgives jumps: at fnr <= .05 none among 59 to 92 exits, one
from 93 on. One early error stops a walk that asks at 70 exits, and is forgiven at 93. So a walk over all pairs of a
path pays for each place where the test is hard; it may as well leave those out. Calibration samples are drawn from the
maps of val_select, every pair is tested on each, and the sequence of pairs with the greatest mean coverage is found
backwards, from the riskiest pair to the safest.

Valid, because a fixed sequence may leave out any hypotheses and begin anywhere, as long as that is fixed before a
calibration label is seen: let the first truly false pair of the sequence be tested; it is rejected with probability at
most delta, and what comes after it is reached through it only. Samples, maps and places here are functions of
val_select (the random numbers have a fixed seed), of the number of calibration units and of the target.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from stage1.policy.counts import Exits
from stage1.risk.definition import Bools
from stage1.risk.testing import max_errors_each

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_WINDOW = 24  # places that one step may leave out, and one
_TABLE_BITS = 16  # 65,535 trials: half a megabyte
_SAME = 5e-4  # of mean coverage: less than simulation can tell, so the nearer pair is taken


def stepping_stones(passed: Bools, coverage: Floats, weight: Floats) -> tuple[Ints, float, Floats]:
    """(places int [S] rising, mean coverage, coverage reached in each sample [B]) of the best sequence through a path.

    passed: bool [B, T], whether each pair passes in each sample; coverage: float [T] of each pair; weight: float [B],
    sum 1. The sequence ends with the last pair: where samples say little, no pair is left out.

    >>> passed = np.array([[True, True, True], [True, False, True]])
    >>> stepping_stones(passed, np.array([0.1, 0.2, 0.3]), np.array([0.5, 0.5]))[:2]
    (array([0, 2]), 0.3)
    """
    tests, steps = passed.T.astype(np.float64), passed.shape[1]
    reached, value, following = np.zeros(tests.shape), np.zeros(steps), np.full(steps, -1)
    reached[-1] = tests[-1] * coverage[-1]
    value[-1] = reached[-1] @ weight
    for place in range(steps - 2, -1, -1):
        ahead = reached[place + 1 : place + 1 + _WINDOW]
        # What fails ahead keeps this pair, and what fails here never gets there.
        options = np.where(ahead > 0, ahead, coverage[place]) * tests[place]
        means = np.einsum("ob,b->o", options, weight)
        step = int(np.argmax(means >= means.max() - _SAME))
        reached[place], value[place], following[place] = options[step], means[step], place + 1 + step
    first = int(np.argmax(value))
    places = [first]
    while following[places[-1]] >= 0:
        places.append(int(following[places[-1]]))
    return np.array(places), float(value[first]), reached[first]


def simulated_exits(
    below1: tuple[Floats, Floats],
    below0: tuple[Floats, Floats],
    prior: float,
    n: int,
    draws: int,
    rng: np.random.Generator,
    classes: tuple[int, int] | None = None,
) -> Exits:
    """Exit counts of T nested pairs on `draws` samples of n units, [B, T] each (members of a class: [B, 1]).

    below1, below0: mass of each class under lo and under hi, float [T] each; lo never falls, hi never rises.
    classes: (negatives, positives) of every sample; None: by chance.
    """
    positives = rng.binomial(n, prior, size=draws) if classes is None else np.full(draws, classes[1])
    miss, right_positive = _counts(*below1, positives, rng)
    right_negative, false_exit = _counts(*below0, n - positives, rng)
    return Exits(miss, right_positive, false_exit, right_negative, positives[:, None], n - positives[:, None])  # type: ignore[arg-type]


def _counts(under_lo: Floats, under_hi: Floats, members: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """How many of the members lie under each lo, and how many above each hi: int [B, T] each."""
    steps = len(under_lo)
    over_hi = 1 - under_hi
    cells = np.concatenate([under_lo[:1], np.diff(under_lo), over_hi[:1], np.diff(over_hi), [0.0]])
    cells = np.maximum(cells, 0.0)
    cells[-1] = max(1.0 - cells.sum(), 0.0)
    drawn = rng.multinomial(members, cells / cells.sum())
    return drawn[:, :steps].cumsum(axis=1), drawn[:, steps : 2 * steps].cumsum(axis=1)


def simulated_passes(exits: Exits, targets: Mapping[str, float], delta: float) -> Bools:
    """Which pairs pass every exact test in each sample, bool [B, T]; what `certifies` says, from a table."""
    passed = np.ones(exits.miss.shape, dtype=np.bool_)
    for name, target in targets.items():
        errors, trials = exits.counts(name)
        passed &= errors <= errors_allowed(trials, target, delta)
    return passed


def errors_allowed(trials: Ints | Floats, level: float, delta: float) -> Floats:
    """max_errors_each of whole numbers of trials, any shape: from a table where there are few trials.

    >>> errors_allowed(np.array([[100, 300], [1000, 0]]), 0.02, 0.05).tolist()
    [[-1.0, 1.0], [12.0, -1.0]]
    """
    bits = int(trials.max()).bit_length()
    if bits > _TABLE_BITS:
        return max_errors_each(trials, level, delta)
    return np.asarray(_table(bits, level, delta)[trials.astype(np.int64)])


@lru_cache(maxsize=32)
def _table(bits: int, level: float, delta: float) -> Floats:
    """Errors allowed among 0, 1, .. 2^bits - 1 trials, -1: not even none."""
    return max_errors_each(np.arange(2**bits), level, delta)
