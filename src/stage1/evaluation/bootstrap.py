"""Bootstrap intervals: resample what is independent (groups, else rows), within labels, by multinomial weights.

A replicate is a vector of weights on the unchanged rows: how often each was drawn. So the rows are sorted once, and a
replicate of AURC, AUGRC and their kin costs O(N), without a sort and without copying rows.

What is drawn:
- the **unit** is the group where groups are given (all its rows come or go together), else the row;
- within **strata**: with labels, as many units of each label as there are (the interval is for class shares as they
  are; it leaves out the chance in how many of each class were collected). A group belongs to the label that most of its
  rows have, the lower one at a tie. Units that are alone in their stratum would always be drawn exactly once and seem
  certain: they are pooled, with the smallest other stratum if need be.
- intervals are percentiles, taken outwards to actual replicates (no interpolation). With few units (say under 30
  groups), or for a rate near 0 or 1, they are too short: for counts use the exact intervals of `exit_rates`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import ConfigError, DataError
from stage1.evaluation import probability, selective
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking, checked_rows, checked_weights

Metric = Callable[[FloatArray, FloatArray, FloatArray], float]
# Weights of several replicates at once while they fit the second-level cache: small samples are bound by the overhead
# of each numpy call, large ones by memory traffic.
_CELLS = 1 << 17


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic and its percentile interval. NaN where undefined.

    resamples: replicates in which the statistic was defined; the interval is theirs. low and high are NaN where fewer
    than half were, or where there is only one unit to draw.
    """

    value: float
    low: float
    high: float
    level: float
    resamples: int


def bootstrap(
    metrics: Mapping[str, Metric | str],
    *,
    confidence: ArrayLike,
    residuals: ArrayLike,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Percentile intervals of several statistics from the same replicates.

    metrics: name -> a built-in name ("aurc", "augrc", "e_aurc", "e_augrc", "auroc_failure", "accuracy"), the function
        of that name from stage1.evaluation (the same fast path), or any callable(confidence, residuals, weights) ->
        float. A callable gets all N rows **in the order given here** with the replicate's weights (0 = not drawn; the
        product with `weights` where those are given), so it may close over any other array of the same rows:
        `lambda c, r, w: nll(probabilities, labels, w)`. It says "undefined" with NaN.
    confidence, residuals, weights: [N], see stage1.evaluation.selective. labels, groups: [N], any values.
    n_resamples >= 1; level in (0, 1); the same seed gives the same replicates.
    Returns name -> Interval, in the order of `metrics`. Raises DataError for bad arrays, ConfigError for bad options.

    >>> found = bootstrap({"augrc": "augrc"}, confidence=[0.9, 0.8, 0.7, 0.6], residuals=[0, 0, 1, 0], n_resamples=200)
    >>> found["augrc"].value, found["augrc"].low <= 0.09375 <= found["augrc"].high
    (0.09375, True)
    """
    conf, res = checked_rows(confidence, residuals)
    base = checked_weights(weights, len(conf))
    _check_options(n_resamples, level, seed)
    fast, custom = _sort_out(metrics)
    ranking = Ranking(conf, res)

    def evaluate(batch: FloatArray) -> dict[str, FloatArray]:
        found: dict[str, FloatArray] = {}
        with np.errstate(invalid="ignore"):  # a replicate may leave a statistic undefined: NaN, counted below
            if fast:
                accepted = ranking.accept(batch)
                found |= {name: np.asarray(STATISTICS[statistic](accepted)) for name, statistic in fast.items()}
            for name, metric in custom.items():
                found[name] = np.array([metric(conf, res, row) for row in batch], dtype=np.float64)
        return found

    value = evaluate(base[None, :])
    plan = _units(len(conf), labels, groups)
    draws: dict[str, list[FloatArray]] = {name: [] for name in metrics}
    if sum(map(len, plan.strata)) > 1:
        for batch in _replicates(plan, base, n_resamples, seed):
            for name, values in evaluate(batch).items():
                draws[name].append(values)
    return {name: _interval(float(value[name][0]), draws[name], level, n_resamples) for name in metrics}


def _interval(value: float, draws: list[FloatArray], level: float, n_resamples: int) -> Interval:
    drawn = np.concatenate(draws) if draws else np.empty(0)
    defined = np.sort(drawn[~np.isnan(drawn)])
    low = high = float("nan")
    if len(defined) * 2 >= n_resamples and not np.isnan(value):
        tail = (1.0 - level) / 2
        low = float(np.quantile(defined, tail, method="lower"))
        high = float(np.quantile(defined, 1.0 - tail, method="higher"))
    return Interval(value, low, high, level, len(defined))


# ---- what is drawn -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Units:
    """unit_of_row: int [N], None = each row is its own unit. strata: the units of each stratum, int arrays."""

    unit_of_row: NDArray[np.intp] | None
    strata: list[NDArray[np.intp]]


def _units(n: int, labels: ArrayLike | None, groups: ArrayLike | None) -> _Units:
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
        return _Units(unit_of_row, [np.arange(n_units)])
    strata = [np.flatnonzero(label_of_unit == label) for label in np.unique(label_of_unit)]
    return _Units(unit_of_row, _pool_singles(strata))


def _pool_singles(strata: list[NDArray[np.intp]]) -> list[NDArray[np.intp]]:
    singles = [stratum for stratum in strata if len(stratum) == 1]
    rest = sorted((stratum for stratum in strata if len(stratum) > 1), key=len)
    if len(singles) == 1 and rest:
        singles.append(rest.pop(0))
    return rest + ([np.concatenate(singles)] if singles else [])


def _replicates(plan: _Units, base: FloatArray, n_resamples: int, seed: int) -> Iterator[FloatArray]:
    """Row weights of the replicates, float [B, N] at a time, in input order."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}/bootstrap".encode()).digest()[:8], "big"))
    n_units = sum(map(len, plan.strata))
    size = max(1, _CELLS // len(base))
    plain = bool((base == 1.0).all())
    for start in range(0, n_resamples, size):
        rows = min(size, n_resamples - start)
        drawn = np.concatenate(
            [stratum[rng.integers(len(stratum), size=(rows, len(stratum)))] for stratum in plan.strata], axis=1
        )
        drawn += np.arange(rows)[:, None] * n_units
        counts = np.bincount(drawn.reshape(-1), minlength=rows * n_units).reshape(rows, n_units)
        batch = (counts if plan.unit_of_row is None else counts[:, plan.unit_of_row]).astype(np.float64)
        if not plain:
            batch *= base
            batch = batch[batch.any(axis=1)]  # drew only rows of weight 0: there is nothing to measure
        yield batch


# ---- input -------------------------------------------------------------------------------------------------------


def _sort_out(metrics: Mapping[str, Metric | str]) -> tuple[dict[str, str], dict[str, Metric]]:
    """Statistics that share the sorted rows (name -> built-in), and callables."""
    known = {getattr(selective, name): name for name in STATISTICS if hasattr(selective, name)}
    need_arrays = (probability.nll, probability.brier, probability.ece, probability.mcc, probability.accuracy)
    fast: dict[str, str] = {}
    custom: dict[str, Metric] = {}
    for name, metric in metrics.items():
        if isinstance(metric, str):
            if metric not in STATISTICS:
                raise ConfigError(
                    f"metrics: {name}={metric!r} is not built in; use {', '.join(STATISTICS)} or a callable"
                )
            fast[name] = metric
        elif not callable(metric):
            raise ConfigError(f"metrics: {name}={metric!r}; give a built-in name or a callable")
        elif metric in known:
            fast[name] = known[metric]
        elif metric in need_arrays:
            raise ConfigError(
                f"metrics: {name} needs arrays that are not confidence and residuals; "
                f"give lambda c, r, w: {metric.__name__}(values, labels, weights=w)"
            )
        else:
            custom[name] = metric
    return fast, custom


def _check_options(n_resamples: int, level: float, seed: int) -> None:
    if n_resamples < 1:
        raise ConfigError(f"n_resamples: {n_resamples}; give 1 or more (1000 is usual)")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level: {level}; give a confidence level between 0 and 1, for example 0.95")
    if not isinstance(seed, int | np.integer):
        raise ConfigError(f"seed: {seed!r}; give a whole number")


def _rows(values: ArrayLike, n: int, name: str) -> NDArray[np.generic]:
    array = np.asarray(values)
    if array.ndim != 1 or len(array) != n:
        raise DataError(f"{name}: shape {array.shape}; one value for each of the {n} rows")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise DataError(f"{name}: row {int((~np.isfinite(array)).argmax())} is not a number; fix or drop these rows")
    if array.dtype.kind == "O":
        return array.astype(np.str_)
    return array
