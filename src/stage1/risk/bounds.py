"""Exact bounds, p-values and tests by betting for the mean of independent losses in [0, 1].

| function | assumes | oracle in the tests |
|---|---|---|
| binomial_pvalue, _upper, _lower | n independent 0/1 losses, n fixed | scipy.stats.binomtest, ALGORITHMS 2.2 |
| hoeffding_bentkus_pvalue | n independent losses in [0, 1] | MAPIE, ALGORITHMS 2.2 |
| betting_pvalue, _upper | values in [0, 1], independent, one mean, in a fixed order | a loop, ALGORITHMS 2.6 |
| eprocess | 0/1 losses, each wrong with probability <= alpha given the past | ALGORITHMS 10 |

Betting serves losses in [0, 1] that are not counts (group means), and a risk that is watched over time: a gambler
stakes a share of a wealth of 1 on "the next value is below `level`". Where the mean is at least `level`, no stake that
depends on past values alone can make the expected wealth grow, so the wealth ever reaches 1 / delta with probability at
most delta (Ville 1939). For 0/1 losses and a fixed n the exact binomial is stronger (ALGORITHMS 2.3), by far where
losses are rare and whole (risk .03 against .05, 2,000 values: power .46 against 1.0): the stake of betting_pvalue
follows mean and variance, and overbets on such skewed losses. It is made for means of frames; choose_group_method
leaves the rest to the binomial.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.late import library

special = library("scipy.special")

Floats = NDArray[np.float64]


def binomial_pvalue(errors: ArrayLike, trials: ArrayLike, level: ArrayLike) -> Floats:
    """Exact p-value of H0: risk >= `level`, given `errors` wrong among `trials` independent answers.

    errors, trials: whole numbers that broadcast together, 0 <= errors <= trials. level: in (0, 1).
    Returns P(Bin(trials, level) <= errors), 1.0 where trials == 0 (no evidence is no certificate).
    Raises DataError for a negative or fractional count, errors > trials, or a level outside (0, 1).
    Source: Clopper and Pearson 1934; uniformly most powerful for this H0 (docs/GUARANTEES.md).

    >>> float(binomial_pvalue(0, 149, 0.02).round(4))
    0.0493
    """
    k, n = _checked_counts(errors, trials)
    return np.asarray(special.bdtr(k, np.maximum(n, 1), _checked_rate(level, "level")) * (n > 0) + (n == 0))


def binomial_upper(errors: ArrayLike, trials: ArrayLike, delta: ArrayLike) -> Floats:
    """Exact one-sided upper confidence bound of a risk at confidence 1 - delta.

    The largest level that binomial_pvalue does not reject at `delta`; 1.0 where every answer is wrong or trials == 0.
    Arguments and errors as for binomial_pvalue; delta in (0, 1). Source: Clopper and Pearson 1934.

    >>> binomial_upper([0, 1], [149, 149], 0.05).round(4).tolist()
    [0.0199, 0.0314]
    """
    k, n = _checked_counts(errors, trials)
    d = _checked_rate(delta, "delta")
    full = k >= n
    return np.asarray(np.where(full, 1.0, special.betaincinv(k + 1.0, np.maximum(n - k, 1.0), 1.0 - d)))


def binomial_lower(errors: ArrayLike, trials: ArrayLike, delta: ArrayLike) -> Floats:
    """Exact one-sided lower confidence bound at confidence 1 - delta; 0.0 where errors == 0. See binomial_upper.

    >>> float(binomial_lower(95, 100, 0.05).round(4))
    0.8977
    """
    k, n = _checked_counts(errors, trials)
    d = _checked_rate(delta, "delta")
    return np.asarray(np.where(k <= 0, 0.0, special.betaincinv(np.maximum(k, 1.0), n - k + 1.0, d)))


def hoeffding_bentkus_pvalue(mean: ArrayLike, trials: ArrayLike, level: ArrayLike) -> Floats:
    """p-value of H0: E loss >= level for the mean of `trials` independent losses in [0, 1].

    mean: in [0, 1]; trials: whole numbers; level in (0, 1). min(Hoeffding, Bentkus); for 0/1 losses it is dominated by
    binomial_pvalue. Raises DataError as binomial_pvalue does. Source: Bates et al. 2021 (RCPS), section 3.1.

    >>> float(hoeffding_bentkus_pvalue(0.01, 200, 0.05).round(3))
    0.006
    """
    m = np.asarray(mean, dtype=np.float64)
    n = _whole(trials, "trials")
    a = np.broadcast_to(_checked_rate(level, "level"), np.broadcast_shapes(m.shape, n.shape))
    if not np.isfinite(m).all() or (m < 0).any() or (m > 1).any():
        raise DataError("mean: must be in [0, 1]")
    low = np.minimum(m, a)
    exponent = special.xlogy(low, low / a) + special.xlogy(1 - low, (1 - low) / (1 - a))
    # The mean times n is a count for 0/1 losses: rounding first keeps float noise (n * (k / n) = k + 1e-12) from
    # turning the ceiling into k + 1.
    total = m * n
    count = np.where(np.abs(total - np.round(total)) < 1e-9 * np.maximum(n, 1), np.round(total), np.ceil(total))
    bentkus = np.e * special.bdtr(count, np.maximum(n, 1), a)
    return np.asarray(np.where(n > 0, np.minimum(1.0, np.minimum(np.exp(-n * exponent), bentkus)), 1.0))


def _checked_counts(errors: ArrayLike, trials: ArrayLike) -> tuple[Floats, Floats]:
    k, n = _whole(errors, "errors"), _whole(trials, "trials")
    if k.shape != n.shape:
        try:
            k, n = np.broadcast_arrays(k, n)
        except ValueError as error:
            raise DataError(f"errors {k.shape} and trials {n.shape} do not broadcast together") from error
    if (k > n).any():
        raise DataError(f"errors: {int(k[k > n].flat[0])} exceeds trials {int(n[k > n].flat[0])}")
    return k, n


def _whole(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values)
    kind = array.dtype.kind
    # Whole by their type, most counts are: one look at the least of them is enough.
    if kind in "iu":
        wrong = bool(array.size) and bool(array.min() < 0)
    else:
        wrong = kind != "f" or not (np.isfinite(array) & (array >= 0) & (array == np.floor(array))).all()
    if wrong:
        raise DataError(f"{name}: counts must be whole numbers >= 0, got {array.tolist()!r}"[:200])
    return array.astype(np.float64)


def _checked_rate(value: ArrayLike, name: str) -> Any:
    rate = np.asarray(value, dtype=np.float64)
    if not ((rate > 0) & (rate < 1)).all():
        raise DataError(f"{name}: must lie strictly between 0 and 1, got {rate.tolist()!r}"[:200])
    return rate


# A stake of at most this share of what a value of 1 would cost keeps the wealth above zero.
_LARGEST_STAKE = 0.9
_CELLS = 2_000_000  # values held at a time: 16 MB in each intermediate array
# 1.8 % apart, fixed before any data: betting_upper answers with one of them.
_LEVELS = np.geomspace(1e-4, 0.9999, 513)


def betting_pvalue(x: ArrayLike, level: float) -> Floats:
    """p-value of H0: E x >= `level`, for independent values with one mean, each in [0, 1].

    x: float [N], or [N, C] for C candidates on the same samples, in the order of testing; that order must not depend on
    the values. level: in (0, 1). Returns a scalar array, or float64 [C]: 1 / (largest wealth over t = 0 .. N), 1.0 for
    N = 0.
    The stake is lambda_t = clip((level - mu) / (v + (level - mu)^2), 0, 0.9 / (1 - level)), with mu and v the running
    mean and variance before t, started at level / 2 and level / 4 with weight 1. Valid for each candidate alone.
    Raises DataError for NaN, a value outside [0, 1], more than two dimensions, or a level outside (0, 1).
    Source: Waudby-Smith and Ramdas 2024 (betting); ALGORITHMS 2.6 (stake); Ville 1939.

    >>> float(betting_pvalue(np.zeros(100), 0.05).round(4))
    0.0098
    """
    values = _checked_values(x)
    if not 0 < level < 1:
        raise DataError(f"level: must lie strictly between 0 and 1, got {level!r}")
    table = values if values.ndim == 2 else values[:, None]
    step = max(1, _CELLS // max(len(values), 1))
    columns = range(0, table.shape[1], step)
    wealth = [_largest_log_wealth(table[:, first : first + step], level) for first in columns]
    return np.exp(-np.concatenate(wealth or [np.zeros(0)])).reshape(values.shape[1:])


def betting_upper(x: ArrayLike, delta: float, *, idle: ArrayLike | None = None, target: float | None = None) -> float:
    """Upper confidence bound at 1 - delta of the mean of independent values in [0, 1]; 1.0 where nothing can be said.

    x: float [N], in an order of testing that does not depend on the values. idle: float [N] with x + idle <= 1, for a
    ratio: the level a is then tested on x + a * idle, which bounds E x / E (1 - idle) (risk/clusters.py); None: zeros.
    Returns the smallest level of a fixed grid (1e-4 .. 0.9999, 1.8 % apart) from which every level up is rejected at
    delta.
    Why a grid is enough: for a true value m let a be the largest level of the grid that is not above m. m is missed
    only if a is rejected, and a <= m makes that a false rejection of one test that was fixed beforehand. The p-value
    need not fall as the level rises (one sample in some hundreds has a gap), so levels are searched from above; no root
    is sought.

    target: a level fixed beforehand, added to the grid, so that the answer is <= target exactly where betting_pvalue at
    target is <= delta: the levels above a rejected target need no test of their own, since the stakes that won against
    it win more against them. Where target is not rejected, the answer is the one of the grid alone, and above target.
    Raises DataError as betting_pvalue does, and for a delta or target outside (0, 1).

    >>> round(betting_upper(np.zeros(100), 0.05), 3)
    0.033
    """
    values = _checked_values(x)
    share = np.zeros_like(values) if idle is None else _checked_values(idle)
    if values.ndim != 1 or share.shape != values.shape:
        raise DataError(f"x {values.shape}, idle {share.shape}: one row of values each is expected")
    if (values + share > 1 + 1e-12).any():
        raise DataError("idle: x + idle must not exceed 1")
    for name, rate in (("delta", delta), ("target", target)):
        if rate is not None and not 0 < rate < 1:
            raise DataError(f"{name}: must lie strictly between 0 and 1, got {rate!r}")
    levels = _LEVELS if target is None else np.union1d(_LEVELS, target)
    rejected = np.concatenate(
        [
            _largest_log_wealth(np.minimum(values[:, None] + part * share[:, None], 1.0), part) >= -np.log(delta)
            for part in np.array_split(levels, 1 + len(values) * len(levels) // _CELLS)
        ]
    )
    if target is not None:
        above = levels > target if rejected[np.searchsorted(levels, target)] else levels == target
        rejected[above] = levels[above] > target
    kept = np.flatnonzero(~rejected)
    first = int(kept[-1]) + 1 if len(kept) else 0
    return float(levels[first]) if first < len(levels) else 1.0


def eprocess(losses: ArrayLike, alpha: float, betas: Sequence[float] = (1.5, 2.0, 3.0, 5.0, 10.0)) -> Floats:
    """Evidence against H0: each loss is 1 with probability at most alpha, whatever came before; one value per step.

    losses: 0/1 [N] in the order of observation. betas: alternatives q = beta * alpha, mixed with equal weight;
    those of 1 or more are left out.
    Returns float64 [N]: E_t = mean over q of (q/alpha)^S ((1-q)/(1-alpha))^(t-S), S = losses so far. Under H0 it ever
    reaches 1 / delta with probability at most delta, so it may be read after every sample; values are capped at
    1e300.
    Raises DataError for losses other than 0 and 1, alpha outside (0, 1), a beta <= 1, or no q below 1.
    Source: ALGORITHMS 10; Ville 1939.

    >>> eprocess([0, 0, 1, 1], alpha=0.1, betas=[5.0]).round(3).tolist()
    [0.556, 0.309, 1.543, 7.716]
    """
    values = np.asarray(losses)
    if values.ndim != 1 or values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise DataError("losses: must be one row of 0 and 1")
    if not 0 < alpha < 1:
        raise DataError(f"alpha: must lie strictly between 0 and 1, got {alpha!r}")
    rates = np.asarray(betas, dtype=np.float64) * alpha
    if rates.ndim != 1 or not (rates > alpha).all() or not (rates < 1).any():
        raise DataError(f"betas: must exceed 1, one with beta * alpha < 1 at least, got {list(betas)} at alpha {alpha}")
    rates = rates[rates < 1]
    wrong = np.cumsum(values.astype(np.float64))[:, None]
    right = np.arange(1, len(values) + 1)[:, None] - wrong
    logs = wrong * np.log(rates / alpha) + right * np.log1p((alpha - rates) / (1 - alpha))
    return np.asarray(np.exp(np.minimum(logs, np.log(1e300))).mean(axis=1))


def _largest_log_wealth(x: Floats, level: float | Floats) -> Floats:
    """Largest log wealth on the way, float64 [C], 0 at the start. x [N, C] or [N, 1], level a number or [C]."""
    if not len(x):
        return np.zeros(np.broadcast_shapes(x.shape[1:], np.shape(level)))
    steps = np.arange(1.0, len(x) + 1)[:, None]
    # Mean and variance before t, then the stake: no line here may use x_t except the payoff.
    mean = (level / 2 + _before(x)) / steps
    variance = (level / 4 + _before((x - mean) ** 2)) / steps
    gap = level - mean
    stake = np.clip(gap / (variance + gap**2), 0.0, _LARGEST_STAKE / (1 - level))
    log_wealth = np.cumsum(np.log1p(-stake * (x - level)), axis=0)
    return np.asarray(np.maximum(log_wealth.max(axis=0), 0.0))


def _before(x: Floats) -> Floats:
    """Sums of the rows above each row."""
    sums = np.zeros_like(x)
    np.cumsum(x[:-1], axis=0, out=sums[1:])
    return sums


def _checked_values(x: ArrayLike) -> Floats:
    values = np.asarray(x)
    if values.dtype.kind not in "biuf" or values.ndim not in (1, 2):
        raise DataError(f"x: numbers of shape [N] or [N, C] are expected, got {values.dtype} {values.shape}")
    values = values.astype(np.float64)
    if not ((values >= 0) & (values <= 1)).all():
        raise DataError(f"x: must be in [0, 1], got {values[~((values >= 0) & (values <= 1))].flat[0]}")
    return values
