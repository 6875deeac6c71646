"""Many draws of one image of each group, merged into one test: the verdict hangs less on which image a hash picks.

| step | what |
|---|---|
| draw i = 1..m | of each group one image by a uniform number from hash(seed, group, i); exact binomial p_i |
| merge | rejected at delta iff for some t <= m at least half of p_1..p_t are <= delta / 2 |

Valid: given the data the draws are independent and alike, so X_i = 2 [p_i <= delta / 2] are exchangeable, with E X_i <=
delta where the risk is at least the target. With the mean M_t of X_1..X_t, M_m, M_(m-1), .., M_1 is a martingale (the
mean of t exchangeable values is what one expects of the mean of t - 1 of them), so P(some M_t >= 1) <= E M_1 <= delta,
and M_t >= 1 says "at least half". m is fixed beforehand, the numbers come from names alone. No independence of p_1..p_m
is asked, and none between groups' images.

Against one draw at delta: where images of a group agree all draws are one and delta / 2 is the price; elsewhere the
median of the draws errs less than one of them (benchmarks/units.py).
Source: Ramdas and Manole 2023 (exchangeable Markov inequality), Gasparin, Wang and Ramdas 2024 (exchangeable p-values).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from stage1.risk.bounds import binomial_pvalue, binomial_upper

Floats = NDArray[np.float64]

DRAWS = 21
DRAWS_LEVEL = 0.5  # of the draws must reject, each at this share of delta


def draw_numbers(groups: Iterable[str], seed: int, draws: int = DRAWS) -> Floats:
    """Uniform numbers of each group and draw, float [G, draws], from hash(seed, group) alone.

    >>> numbers = draw_numbers(["bridge", "street"], seed=0)
    >>> numbers.shape, bool((numbers == draw_numbers(["bridge", "street"], seed=0)).all())
    ((2, 21), True)
    """
    keys = (hashlib.shake_256(f"{seed}|group draws|{name}".encode()).digest(8 * draws) for name in groups)
    whole = np.frombuffer(b"".join(keys), dtype="<u8").reshape(-1, draws)
    return np.asarray((whole >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def drawn_counts(wrong: Floats, idle: Floats, numbers: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(errors, trials) of each draw, int [m, C], from shares [G, C] of each group (risk/clusters.py, group_shares).

    The number u of a group draws one of its images: a wrong one where u < wrong, one without a trial where u >= 1 -
    idle, a right one in between.
    """
    share = np.maximum(wrong, 1.0 - idle)
    errors = [(column[:, None] < wrong).sum(axis=0) for column in numbers.T]
    trials = [(column[:, None] < share).sum(axis=0) for column in numbers.T]
    return np.array(errors, dtype=np.int64), np.array(trials, dtype=np.int64)


def merged_pvalue(errors: NDArray[np.int64], trials: NDArray[np.int64], level: float) -> Floats:
    """p-value of H0: risk >= `level` from the counts of m draws, float [C]; errors, trials: int [m, C].

    >>> errors, trials = np.array([[9], [2], [2]]), np.full((3, 1), 300)
    >>> float(merged_pvalue(errors, trials, 0.05)[0].round(6)), float((2 * binomial_pvalue(2, 300, 0.05)).round(6))
    (5.9e-05, 5.9e-05)
    """
    return np.minimum(_merged(binomial_pvalue(errors, trials, level)) / DRAWS_LEVEL, 1.0)


def merged_upper(errors: NDArray[np.int64], trials: NDArray[np.int64], delta: float) -> Floats:
    """Upper bound at 1 - delta, float [C]: the least level that the merged test rejects, with all above it."""
    return _merged(binomial_upper(errors, trials, DRAWS_LEVEL * delta))


def _merged(values: Floats) -> Floats:
    """The least, over t, of the value that half of the first t draws do not exceed; values [m, C]."""
    halves = [np.sort(values[:t], axis=0)[-(-t // 2) - 1] for t in range(1, len(values) + 1)]
    return np.asarray(np.min(np.array(halves), axis=0))
