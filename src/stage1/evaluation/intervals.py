"""Bootstrap intervals: resample what is independent (groups, else rows), within labels, by multinomial weights.

A replicate is a vector of weights on the unchanged rows: how often each was drawn (stage1.evaluation.resampling). So
the rows are sorted once, and a replicate of AURC, AUGRC and their variants costs O(N), without a sort and without
copying rows.

Three kinds of interval:
- **t** (the default, and what the product prints): value +- t x spread on a scale that fits the statistic
  (stage1.evaluation.t_interval, which says why), and for calibration errors stage1.evaluation.ece_interval. None where
  there are fewer than 6 units: `note` says so.
- **percentile**: the replicates' own quantiles, outwards to actual replicates. Too short below some hundred units.
- **bca** (Efron 1987, bias corrected and accelerated): quantiles moved by the share of replicates below the value (ties
  half) and by the skewness of the jackknife, outwards to actual replicates. The jackknife leaves out one unit at a time
  where there are at most 1,000 units, else 500 random blocks of units (a sum of influences has the same skewness as
  their blocks' sums; the error of the acceleration is about .001); with strata the terms are added as for independent
  samples (Davison and Hinkley 1997, 5.3). It says "undefined" where all replicates are on one side of the value. Too
  short with few units as well.
For counts use the exact intervals of `exit_rates`.

From 20,000 units on, method "t" draws nothing for a statistic whose influence is known and carried by many units: it
reads the normal distribution that replicates have there (stage1.evaluation.linear). What has to be drawn is drawn 200
times or more, as many as 2 x 10^8 weights allow, and the degrees of freedom account for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import ConfigError
from stage1.evaluation import influence, probability, resampling, selective
from stage1.evaluation.ece_interval import ece_change_interval, ece_interval
from stage1.evaluation.linear import MANY_UNITS, Influence, Linear, linear
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking, Weights, checked_rows, checked_weights
from stage1.evaluation.t_interval import SMALL_STRATUM, UNDEFINED, Scale, Spread, t_interval, too_few
from stage1.storage.documents import finite_or_none

Metric = Callable[[FloatArray, FloatArray, FloatArray], float]
Method = Literal["t", "percentile", "bca"]
Found = TypeVar("Found")
SCALES: dict[str, Scale] = {
    "aurc": "loss",
    "augrc": "loss",
    "e_aurc": "loss",
    "e_augrc": "loss",
    "naurc": "number",
    "aurc_achievable": "loss",
    "auroc_failure": "share",
    "accuracy": "share",
}
"""Of the built-in statistics."""
_JACKKNIFE_UNITS = 1000
_JACKKNIFE_BLOCKS = 500
_MOST_WEIGHTS, _FEWEST_RESAMPLES = 200_000_000, 200


@dataclass(frozen=True, slots=True)
class Interval:
    """A statistic and its interval. NaN where undefined.

    resamples: replicates in which the statistic was defined; the interval is theirs. low and high are NaN where fewer
    than half were, or where there is only one unit to draw. 0: none was drawn, the spread is that of the influence of
    each unit.

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
    note: str | None = None
    """Why there is no interval, in words."""
    deviation: float = float("nan")
    """Standard error: the replicates' standard deviation, inflated as t_interval says; method "t" only."""
    freedom: float = float("nan")
    """Degrees of freedom of the standard error; method "t" only."""


@dataclass(frozen=True, slots=True)
class Statistic:
    """A callable, and how its interval is read; a bare callable is a number.

    calibration: `measure` gives the signed gaps of bins (`Calibration.gaps`), [bins], and the value is the sum of their
    absolute values ("error"), or those of two maps side by side, and the value is second minus first ("change").
    """

    measure: Callable[[FloatArray, FloatArray, FloatArray], float | FloatArray]
    scale: Scale = "number"
    calibration: Literal["error", "change"] | None = None
    influence: Influence | None = None
    """What each row moves it by, at weight 1 (stage1.evaluation.influence); of a calibration error its bins."""

    def value(self, measured: FloatArray) -> FloatArray:
        """What `measure` gave, [...] or [..., bins], as numbers [...]."""
        if self.calibration is None:
            return measured
        if self.calibration == "error":
            return np.asarray(np.abs(measured).sum(axis=-1))
        half = measured.shape[-1] // 2
        return np.asarray(np.abs(measured[..., half:]).sum(axis=-1) - np.abs(measured[..., :half]).sum(axis=-1))


def bootstrap(
    metrics: Mapping[str, Metric | Statistic | str],
    *,
    confidence: ArrayLike,
    residuals: ArrayLike,
    labels: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    method: Method = "t",
) -> dict[str, Interval]:
    """Intervals of several statistics from the same replicates.

    metrics: name -> a built-in name ("aurc", "augrc", "e_aurc", "e_augrc", "naurc", "aurc_achievable",
        "auroc_failure", "accuracy"), the function of that name from stage1.evaluation (the same fast path), or any
        callable(confidence, residuals, weights) -> float. A callable gets all N rows **in the order given here** with
        the replicate's weights (0 = not drawn; the product with `weights` where those are given), so it may close over
        any other array of the same rows: `lambda c, r, w: nll(probabilities, labels, w)`. It says "undefined" with NaN.
        A `Statistic` is a callable with the scale on which its interval is symmetric.
    confidence, residuals, weights: [N], see stage1.evaluation.selective. labels, groups: [N], any values.
    n_resamples >= 1; level in (0, 1); the same seed gives the same replicates. method: see above.
    Returns name -> Interval, in the order of `metrics`. Raises DataError for bad arrays, ConfigError for bad options.

    >>> rows = {"confidence": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4], "residuals": [0, 0, 1, 0, 0, 1]}
    >>> found = bootstrap({"augrc": "augrc"}, **rows, n_resamples=200)["augrc"]
    >>> round(found.value, 3), found.low < found.value < found.high
    (0.111, True)
    >>> bootstrap({"augrc": "augrc"}, **{name: column[:4] for name, column in rows.items()})["augrc"].note
    'too few images (4; 6 are the fewest for an interval)'
    """
    conf, res = checked_rows(confidence, residuals)
    base = checked_weights(weights, len(conf))
    check_options(n_resamples, level, seed)
    if method not in ("t", "percentile", "bca"):
        raise ConfigError(f"method: {method!r}; use t, percentile or bca")
    fast, custom = _sort_out(metrics)
    ranking = Ranking(conf, res)
    to_draw = set(metrics)

    def measure(batch: Weights) -> dict[str, FloatArray]:
        """What each statistic that is to be drawn measures for each row of weights: [B], or [B, bins]."""
        found: dict[str, FloatArray] = {}
        drawn = {name: statistic for name, statistic in custom.items() if name in to_draw}
        with np.errstate(invalid="ignore"):  # a replicate may leave a statistic undefined: NaN, counted below
            if to_draw & fast.keys():
                accepted = ranking.accept(batch)
                found |= {
                    name: np.asarray(STATISTICS[statistic](accepted))
                    for name, statistic in fast.items()
                    if name in to_draw
                }
            if drawn:
                rows = batch.astype(np.float64)
                found |= {
                    name: np.array([statistic.measure(conf, res, row) for row in rows], dtype=np.float64)
                    for name, statistic in drawn.items()
                }
        return found

    observed = measure(base[None, :])
    plan = resampling.units(len(conf), labels, groups)
    several = len(plan) > 1
    known: dict[str, Linear] = {}
    if method == "t" and len(plan) >= MANY_UNITS and (base == 1.0).all():
        for name in metrics:
            of_rows = custom[name].influence if name in custom else _of_ranking(fast[name], ranking)
            value = observed[name][0]
            if of_rows is not None and not np.isnan(value).any():
                with np.errstate(divide="ignore", invalid="ignore"):  # no influence, said below
                    replicates = linear(of_rows(), value, plan, seed)
                if replicates is not None:
                    known[name] = replicates
    to_draw -= known.keys()
    wanted = min(n_resamples, max(_FEWEST_RESAMPLES, _MOST_WEIGHTS // len(conf)))
    batches = resampling.draws(plan, len(conf), wanted, seed) if several and to_draw else ()
    found = [measure(batch) for counts in batches if len(batch := weigh(plan.rows(counts), base))]
    left_out = _left_out(plan, base, measure, method, seed) if several and to_draw else {}
    short = too_few(tuple(map(len, plan.strata)), "images" if len(plan) == len(conf) else "groups")

    def interval(name: str) -> Interval:
        statistic = custom.get(name) or Statistic(_never, SCALES[fast[name]])
        first = observed[name][0]
        if name in known:
            all_of = known[name].replicates
            without = known[name].left_out
            return replace(read_interval(statistic, first, all_of, level, len(all_of), plan, without), resamples=0)
        measured = np.concatenate([batch[name] for batch in found]) if found else np.empty((0, *first.shape))
        without = {index: values[name] for index, values in left_out.items()}
        few = wanted if wanted < n_resamples else None
        return read_interval(statistic, first, measured, level, wanted, plan, without, method, short, few)

    return {name: interval(name) for name in metrics}


def read_interval(
    statistic: Statistic,
    observed: FloatArray,
    measured: FloatArray,
    level: float,
    wanted: int,
    plan: resampling.Units,
    left_out: Mapping[int, FloatArray],
    method: Method = "t",
    short: str | None = None,
    few: int | None = None,
) -> Interval:
    """The interval of one statistic.

    observed, measured: what its `measure` gave for the data, [] or [bins], and for each replicate, [B] or [B, bins], of
    `wanted` ones. left_out: stratum -> the same without parts of it (method "t": without each unit of a small stratum,
    "bca": the jackknife). short: why there are too few units for method "t". few: how many replicates there are, where
    so few that the error of their own spread is counted.
    """
    value, drawn = float(statistic.value(observed)), statistic.value(measured)
    defined = np.sort(drawn[~np.isnan(drawn)])
    nothing = float("nan"), float("nan")
    if method == "t":
        enough = len(defined) * 2 >= wanted and not np.isnan(value) and len(defined) > 1
        if short is not None or not enough:
            note = None if np.isnan(value) else short or UNDEFINED
            return Interval(value, *nothing, level, len(defined), method, note)
        without = {index: statistic.value(values) for index, values in left_out.items()}
        spread = Spread.of(plan, without, few)
        variance = float(defined.var(ddof=1))
        note = None
        if statistic.calibration is not None:
            read = ece_interval if statistic.calibration == "error" else ece_change_interval
            low, high = read(observed, measured[~np.isnan(drawn)], level, plan, left_out)
        else:
            low, high, note = t_interval(value, drawn, level, spread, statistic.scale, wanted)
        deviation = float(np.sqrt(variance * spread.inflation(variance, 2)))
        return Interval(value, low, high, level, len(defined), method, note, deviation, spread.freedom(variance))
    low, high = nothing
    if len(defined) * 2 >= wanted and not np.isnan(value):
        tails = ((1.0 - level) / 2, (1.0 + level) / 2)
        if method == "bca":
            jackknife = {index: statistic.value(values) for index, values in left_out.items()}
            tails = _corrected(tails, value, defined, _acceleration(jackknife))
        if not np.isnan(tails).any():
            low = float(np.quantile(defined, tails[0], method="lower"))
            high = float(np.quantile(defined, tails[1], method="higher"))
    return Interval(value, low, high, level, len(defined), method)


def measured(interval: Interval) -> dict[str, Any]:
    """value, low, high as JSON has them, and `note` where there is no interval."""
    found: dict[str, Any] = {name: finite_or_none(getattr(interval, name)) for name in ("value", "low", "high")}
    return found if interval.note is None else found | {"note": interval.note}


def without_each_unit(
    plan: resampling.Units, base: FloatArray, measure: Callable[[Weights], Found]
) -> dict[int, Found]:
    """Small stratum -> what is measured without each of its units, as `read_interval` takes it for method "t"."""
    return {
        index: measure(batch)
        for index, stratum in enumerate(plan.strata)
        if len(stratum) <= SMALL_STRATUM and len(batch := weigh(plan.rows(resampling.left_out(plan, index)), base))
    }


def _left_out(
    plan: resampling.Units,
    base: FloatArray,
    measure: Callable[[Weights], dict[str, FloatArray]],
    method: Method,
    seed: int,
) -> dict[int, dict[str, FloatArray]]:
    if method == "t":
        return without_each_unit(plan, base, measure)
    parts: dict[int, list[dict[str, FloatArray]]] = {}
    if method == "bca":
        blocks = _JACKKNIFE_UNITS if len(plan) <= _JACKKNIFE_UNITS else _JACKKNIFE_BLOCKS
        for stratum, counts in resampling.deletions(plan, len(base), blocks, seed):
            if len(batch := weigh(plan.rows(counts), base)):
                parts.setdefault(stratum, []).append(measure(batch))
    return {
        index: {name: np.concatenate([part[name] for part in found]) for name in found[0]}
        for index, found in parts.items()
    }


def _of_ranking(statistic: str, ranking: Ranking) -> Influence:
    return lambda: influence.of_ranking(statistic, ranking)


def _never(confidence: FloatArray, residuals: FloatArray, weights: FloatArray) -> float:
    raise AssertionError("a built-in statistic is measured by its ranking")


def weigh(rows: resampling.Counts, base: FloatArray) -> Weights:
    """Row weights [B, N] of replicates: the counts where `base` is all 1, else their product with it.

    Replicates that drew nothing but rows of weight 0 are left out: there is nothing to measure.
    """
    if (base == 1.0).all():
        return rows
    batch = rows * base
    return np.asarray(batch[batch.any(axis=1)])


# ---- bca ---------------------------------------------------------------------------------------------------------


def _acceleration(left_out: Mapping[int, FloatArray]) -> float:
    """Skewness of the jackknife / 6; left-out units that leave the statistic undefined are passed over."""
    cubes = squares = 0.0
    for values in left_out.values():
        defined = values[~np.isnan(values)]
        if len(defined) < 2:
            continue
        influence = (defined.mean() - defined) * (len(defined) - 1) / len(defined)
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


def _sort_out(metrics: Mapping[str, Metric | Statistic | str]) -> tuple[dict[str, str], dict[str, Statistic]]:
    """Statistics that share the sorted rows (name -> built-in), and callables."""
    known = {getattr(selective, name): name for name in STATISTICS if hasattr(selective, name)}
    need_arrays = (probability.nll, probability.brier, probability.ece, probability.mcc, probability.accuracy)
    fast: dict[str, str] = {}
    custom: dict[str, Statistic] = {}
    for name, metric in metrics.items():
        if isinstance(metric, Statistic):
            custom[name] = metric
        elif isinstance(metric, str):
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
            custom[name] = Statistic(metric)
    return fast, custom


def check_options(n_resamples: int, level: float, seed: int) -> None:
    """Raises ConfigError for an option that makes no sense."""
    if n_resamples < 1:
        raise ConfigError(f"n_resamples: {n_resamples}; give 1 or more (1000 is usual)")
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level: {level}; give a confidence level between 0 and 1, for example 0.95")
    if not isinstance(seed, int | np.integer):
        raise ConfigError(f"seed: {seed!r}; give a whole number")
