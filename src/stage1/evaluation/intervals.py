"""Bootstrap intervals: resample what is independent (groups, else rows), within labels, by multinomial weights.

A replicate is a vector of weights on the unchanged rows: how often each was drawn (stage1.evaluation.resampling). So
the rows are sorted once, and a replicate of AURC, AUGRC and their variants costs O(N), without a sort and without
copying rows.

Two kinds of interval, both taken outwards to actual replicates (no interpolation):
- **percentile**: the replicates' own quantiles.
- **bca** (Efron 1987, bias corrected and accelerated): quantiles moved by the share of replicates below the value (ties
  half) and by the skewness of the jackknife. The jackknife leaves out one unit at a time where there are at most
  1,000 units, else 500 random blocks of units (a sum of influences has the same skewness as their blocks' sums; the
  error of the acceleration is about .001); with strata the terms are added as for independent samples (Davison and
  Hinkley 1997, 5.3). It says "undefined" where all replicates are on one side of the value.
With few units (say under 30 groups), or for a rate near 0 or 1, both are too short: for counts use the exact intervals
of `exit_rates`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import ConfigError
from stage1.evaluation import probability, resampling, selective
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking, Weights, checked_rows, checked_weights

Metric = Callable[[FloatArray, FloatArray, FloatArray], float]
Method = Literal["percentile", "bca"]
_JACKKNIFE_UNITS = 1000
_JACKKNIFE_BLOCKS = 500


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic and its interval. NaN where undefined.

    resamples: replicates in which the statistic was defined; the interval is theirs. low and high are NaN where fewer
    than half were, or where there is only one unit to draw.

    >>> metrics = {"accuracy": "accuracy"}
    >>> found = bootstrap(metrics, confidence=[3.0, 2.0, 1.0], residuals=[0, 1, 0], n_resamples=100)["accuracy"]
    >>> round(found.value, 3), found.level, found.resamples
    (0.667, 0.95, 100)
    """

    value: float
    low: float
    high: float
    level: float
    resamples: int
    method: Method = "percentile"


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
    method: Method = "percentile",
) -> dict[str, Interval]:
    """Intervals of several statistics from the same replicates.

    metrics: name -> a built-in name ("aurc", "augrc", "e_aurc", "e_augrc", "naurc", "aurc_achievable",
        "auroc_failure", "accuracy"), the function of that name from stage1.evaluation (the same fast path), or any
        callable(confidence, residuals, weights) -> float. A callable gets all N rows **in the order given here** with
        the replicate's weights (0 = not drawn; the product with `weights` where those are given), so it may close over
        any other array of the same rows: `lambda c, r, w: nll(probabilities, labels, w)`. It says "undefined" with NaN.
    confidence, residuals, weights: [N], see stage1.evaluation.selective. labels, groups: [N], any values.
    n_resamples >= 1; level in (0, 1); the same seed gives the same replicates. method: see above.
    Returns name -> Interval, in the order of `metrics`. Raises DataError for bad arrays, ConfigError for bad options.

    >>> found = bootstrap({"augrc": "augrc"}, confidence=[0.9, 0.8, 0.7, 0.6], residuals=[0, 0, 1, 0], n_resamples=200)
    >>> found["augrc"].value, found["augrc"].low <= 0.09375 <= found["augrc"].high
    (0.09375, True)
    """
    conf, res = checked_rows(confidence, residuals)
    base = checked_weights(weights, len(conf))
    check_options(n_resamples, level, seed)
    if method not in ("percentile", "bca"):
        raise ConfigError(f"method: {method!r}; use percentile or bca")
    fast, custom = _sort_out(metrics)
    ranking = Ranking(conf, res)

    def evaluate(batch: Weights) -> dict[str, FloatArray]:
        found: dict[str, FloatArray] = {}
        with np.errstate(invalid="ignore"):  # a replicate may leave a statistic undefined: NaN, counted below
            if fast:
                accepted = ranking.accept(batch)
                found |= {name: np.asarray(STATISTICS[statistic](accepted)) for name, statistic in fast.items()}
            if custom:
                rows = batch.astype(np.float64)
                found |= {
                    name: np.array([metric(conf, res, row) for row in rows], dtype=np.float64)
                    for name, metric in custom.items()
                }
        return found

    value = evaluate(base[None, :])
    plan = resampling.units(len(conf), labels, groups)
    several = len(plan) > 1
    batches = resampling.draws(plan, len(conf), n_resamples, seed) if several else ()
    found = [evaluate(batch) for counts in batches if len(batch := weigh(plan.rows(counts), base))]
    left_out: list[tuple[int, dict[str, FloatArray]]] = []
    if method == "bca" and several:
        blocks = _JACKKNIFE_UNITS if len(plan) <= _JACKKNIFE_UNITS else _JACKKNIFE_BLOCKS
        for stratum, counts in resampling.deletions(plan, len(conf), blocks, seed):
            if len(batch := weigh(plan.rows(counts), base)):
                left_out.append((stratum, evaluate(batch)))

    def interval(name: str) -> Interval:
        drawn = np.concatenate([batch[name] for batch in found]) if found else np.empty(0)
        defined = np.sort(drawn[~np.isnan(drawn)])
        centre = float(value[name][0])
        low = high = float("nan")
        if len(defined) * 2 >= n_resamples and not np.isnan(centre):
            tails = ((1.0 - level) / 2, (1.0 + level) / 2)
            if method == "bca":
                tails = _corrected(tails, centre, defined, _acceleration(left_out, name))
            if not np.isnan(tails).any():
                low = float(np.quantile(defined, tails[0], method="lower"))
                high = float(np.quantile(defined, tails[1], method="higher"))
        return Interval(centre, low, high, level, len(defined), method)

    return {name: interval(name) for name in metrics}


def weigh(rows: resampling.Counts, base: FloatArray) -> Weights:
    """Row weights [B, N] of replicates: the counts where `base` is all 1, else their product with it.

    Replicates that drew nothing but rows of weight 0 are left out: there is nothing to measure.
    """
    if (base == 1.0).all():
        return rows
    batch = rows * base
    return np.asarray(batch[batch.any(axis=1)])


# ---- bca ---------------------------------------------------------------------------------------------------------


def _acceleration(left_out: list[tuple[int, dict[str, FloatArray]]], name: str) -> float:
    """Skewness of the jackknife / 6; left-out units that leave the statistic undefined are passed over."""
    cubes = squares = 0.0
    for stratum in sorted({index for index, _ in left_out}):
        values = np.concatenate([batch[name] for index, batch in left_out if index == stratum])
        values = values[~np.isnan(values)]
        if len(values) < 2:
            continue
        influence = (values.mean() - values) * (len(values) - 1) / len(values)
        cubes += float((influence**3).sum())
        squares += float((influence**2).sum())
    # no spread but rounding: nothing that could be skewed
    return cubes / (6.0 * squares**1.5) if squares > 1e-28 else 0.0


def _corrected(
    tails: tuple[float, float], value: float, ordered: FloatArray, acceleration: float
) -> tuple[float, float]:
    from scipy.special import ndtr, ndtri

    # Sums in another order differ by rounding; such replicates are equal to the value, not below it.
    slack = 1e-12 * max(1.0, abs(value))
    below = np.searchsorted(ordered, value - slack) + np.searchsorted(ordered, value + slack, side="right")
    bias = float(ndtri(below / (2.0 * len(ordered))))
    if not np.isfinite(bias):
        return float("nan"), float("nan")
    shifted = bias + ndtri(np.asarray(tails))
    low, high = ndtr(bias + shifted / (1.0 - acceleration * shifted)).tolist()
    return float(low), float(high)


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


def check_options(n_resamples: int, level: float, seed: int) -> None:
    """Raises ConfigError for an option that makes no sense."""
    if n_resamples < 1:
        raise ConfigError(f"n_resamples: {n_resamples}; give 1 or more (1000 is usual)")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level: {level}; give a confidence level between 0 and 1, for example 0.95")
    if not isinstance(seed, int | np.integer):
        raise ConfigError(f"seed: {seed!r}; give a whole number")
