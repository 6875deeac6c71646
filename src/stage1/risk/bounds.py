"""Bounds and p-values for the risk of 0/1 losses.

| function | assumes | oracle in the tests |
|---|---|---|
| binomial_pvalue, binomial_upper, binomial_lower | n independent 0/1 losses, n fixed (or conditioned on) | scipy.stats.binomtest, ALGORITHMS 2.2 |
| hoeffding_bentkus_pvalue | n independent losses in [0, 1] | MAPIE, ALGORITHMS 2.2 |
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from stage1.errors import DataError

Floats = NDArray[np.float64]


def binomial_pvalue(errors: ArrayLike, trials: ArrayLike, level: ArrayLike) -> Floats:
    """Exact p-value of H0: risk >= `level`, given `errors` wrong among `trials` independent answers.

    errors, trials: whole numbers that broadcast together, 0 <= errors <= trials. level: in (0, 1).
    Returns P(Bin(trials, level) <= errors), 1.0 where trials == 0 (no evidence is no certificate).
    Raises DataError for a negative or fractional count, errors > trials, or a level outside (0, 1).
    Source: Clopper and Pearson 1934; uniformly most powerful for this H0 (docs/GUARANTEES.md).
    """
    k, n = _checked_counts(errors, trials)
    return np.asarray(special.bdtr(k, np.maximum(n, 1), _checked_rate(level, "level")) * (n > 0) + (n == 0))


def binomial_upper(errors: ArrayLike, trials: ArrayLike, delta: ArrayLike) -> Floats:
    """Exact one-sided upper confidence bound of a risk at confidence 1 - delta.

    The largest level that binomial_pvalue does not reject at `delta`; 1.0 where every answer is wrong or trials == 0.
    Arguments and errors as for binomial_pvalue; delta in (0, 1). Source: Clopper and Pearson 1934.
    """
    k, n = _checked_counts(errors, trials)
    d = _checked_rate(delta, "delta")
    full = k >= n
    return np.asarray(np.where(full, 1.0, special.betaincinv(k + 1.0, np.maximum(n - k, 1.0), 1.0 - d)))


def binomial_lower(errors: ArrayLike, trials: ArrayLike, delta: ArrayLike) -> Floats:
    """Exact one-sided lower confidence bound at confidence 1 - delta; 0.0 where errors == 0. See binomial_upper."""
    k, n = _checked_counts(errors, trials)
    d = _checked_rate(delta, "delta")
    return np.asarray(np.where(k <= 0, 0.0, special.betaincinv(np.maximum(k, 1.0), n - k + 1.0, d)))


def hoeffding_bentkus_pvalue(mean: ArrayLike, trials: ArrayLike, level: ArrayLike) -> Floats:
    """p-value of H0: E loss >= level for the mean of `trials` independent losses in [0, 1].

    mean: in [0, 1]; trials: whole numbers; level in (0, 1). min(Hoeffding, Bentkus); for 0/1 losses it is dominated by
    binomial_pvalue. Raises DataError as binomial_pvalue does. Source: Bates et al. 2021 (RCPS), section 3.1.
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
    try:
        k, n = np.broadcast_arrays(k, n)
    except ValueError as error:
        raise DataError(f"errors {k.shape} and trials {n.shape} do not broadcast together") from error
    if (k > n).any():
        raise DataError(f"errors: {int(k[k > n].flat[0])} exceeds trials {int(n[k > n].flat[0])}")
    return k, n


def _whole(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values)
    if (
        array.dtype.kind not in "iuf"
        or not np.isfinite(array).all()
        or (array < 0).any()
        or (array != np.floor(array)).any()
    ):
        raise DataError(f"{name}: counts must be whole numbers >= 0, got {array.tolist()!r}"[:200])
    return array.astype(np.float64)


def _checked_rate(value: ArrayLike, name: str) -> Any:
    rate = np.asarray(value, dtype=np.float64)
    if not ((rate > 0) & (rate < 1)).all():
        raise DataError(f"{name}: must lie strictly between 0 and 1, got {rate.tolist()!r}"[:200])
    return rate
