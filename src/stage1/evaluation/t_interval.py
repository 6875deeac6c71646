"""From bootstrap replicates to an interval that covers with few units: value +- t x spread, on a scale that fits.

Percentiles of replicates are too short where units (groups, or images) are few: replicates of n units vary by (n - 1) /
n too little, quantiles are those of a known variance, and skewness is moved to the wrong side. So:

- **Scale** (`Scale`): the interval is symmetric in the logit of a share, the logarithm of a loss, Fisher's z of a
  correlation, and the number itself for a difference. It stays in the range of the statistic.
- **Spread**: the larger of the replicates' standard deviation on that scale and of their plain one times the slope of
  the scale, times the root of the inflation: n / (n - 1) per stratum for a difference, whose two sides are alike; that
  squared, which is the jackknife's (HC3), for all else, which is skewed beyond what its scale takes away.
- **t** with the degrees of freedom of Welch and Satterthwaite: how much each small stratum (up to 30 units) adds to the
  variance is measured by leaving out one unit at a time, so that three videos of one class are not hidden by a hundred
  of the other.

It is an approximation: benchmarks/intervals.md says how often it covers. With fewer than MIN_UNITS units (or two of a
class) nothing of the kind covers, and there is no interval.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from stage1.evaluation.ranking import FloatArray
from stage1.evaluation.resampling import Units

Scale = Literal["share", "loss", "correlation", "number", "difference"]
MIN_UNITS = 6
"""Fewest units with an interval: with 5 even a permutation test of all swaps cannot reach .05 (2 / 2^5 = .0625)."""
SMALL_STRATUM = 30
SAME_EVERYWHERE = "no interval: it is the same in every resample"
AT_THE_END = "no interval: the value is at the end of its range"
UNDEFINED = "no interval: undefined in most resamples"


@dataclass(frozen=True, slots=True)
class Spread:
    """How replicates of a plan are read: sizes of the strata, and the small ones' own part of the variance.

    parts: stratum -> plug-in variance that it adds, by leaving out one unit at a time; only of strata up to
    SMALL_STRATUM units, NaN where that leaves the statistic undefined. few: how many replicates there are, where so few
    that their own error counts: their variance has few - 1 degrees of freedom (None: enough of them).
    """

    sizes: tuple[int, ...]
    parts: Mapping[int, float] = field(default_factory=dict)
    few: int | None = None

    @classmethod
    def of(cls, plan: Units, left_out: Mapping[int, FloatArray] | None = None, few: int | None = None) -> Spread:
        """left_out: stratum -> the statistic without each of its units in turn."""
        parts = {
            # sum of squared influences / n^2, as the replicates have it: without n / (n - 1)
            index: float(((values - values.mean()) ** 2).sum() * ((len(values) - 1) / len(values)) ** 2)
            for index, values in (left_out or {}).items()
        }
        return cls(tuple(map(len, plan.strata)), parts, few)

    @property
    def units(self) -> int:
        return sum(self.sizes)

    def inflation(self, variance: float, power: int) -> float:
        """What the replicates' `variance` is multiplied by: the mean of (n / (n - 1))^power over strata, by part."""
        return float(sum(share * factor**power for share, factor, _ in self._shares(variance)))

    def freedom(self, variance: float) -> float:
        """Degrees of freedom of Welch and Satterthwaite, at least 1."""
        drawn = 0.0 if self.few is None else 1.0 / max(self.few - 1, 1)
        return max(1.0, 1.0 / (drawn + sum(share**2 / free for share, _, free in self._shares(variance))))

    def _shares(self, variance: float) -> list[tuple[float, float, float]]:
        """(share of the variance, n / (n - 1), n - 1) of each small stratum, and of all large ones together."""
        large = [n for index, n in enumerate(self.sizes) if index not in self.parts]
        small = sum(self.parts.values())
        rest = max(variance - small, 0.0) if large else 0.0
        if not small + rest > 0.0:  # NaN too: nothing is known of who adds how much
            smallest = max(min(self.sizes), 2)
            return [(1.0, smallest / (smallest - 1), smallest - 1.0)]
        found = [(part / (small + rest), *_factor(self.sizes[index], 1)) for index, part in self.parts.items()]
        return [*found, (rest / (small + rest), *_factor(sum(large), len(large)))] if large else found


def _factor(units: int, strata: int) -> tuple[float, float]:
    free = max(units - strata, 1)
    return max(units, 2) / free, float(free)


def too_few(sizes: tuple[int, ...], unit: str = "units", fewest: int = MIN_UNITS) -> str | None:
    """Why so few units (of each stratum) have no interval; None where they are enough.

    >>> too_few((3, 1), "groups")
    'too few groups (4; 6 are the fewest for an interval)'
    """
    n = sum(sizes)
    if n < fewest:
        return f"too few {unit} ({n}; {fewest} are the fewest for an interval)"
    return None


def t_interval(
    value: float,
    drawn: FloatArray,
    level: float,
    spread: Spread,
    scale: Scale,
    expected: int | None = None,
    extra: tuple[float, float] | None = None,
) -> tuple[float, float, str | None]:
    """(low, high, None), or (NaN, NaN, why there is none).

    value: of the data. drawn: float [B], of its replicates, NaN where undefined; expected: how many were wanted (None:
    B). The interval is undefined where fewer than half are defined. extra: (variance, degrees of freedom) of a second,
    independent cause, such as the seeds of training.

    >>> drawn = np.random.default_rng(0).normal(0.9, 0.01, 1000)
    >>> low, high, _ = t_interval(0.9, drawn, 0.95, Spread((20,)), "share")
    >>> round(low, 3), round(high, 3)
    (0.876, 0.92)
    """
    nothing = float("nan"), float("nan")
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(value) or len(defined) * 2 < (len(drawn) if expected is None else expected) or len(defined) < 2:
        return *nothing, UNDEFINED
    deviation = float(defined.std(ddof=1))
    if deviation <= 1e-12 * max(1.0, abs(value)) and (extra is None or extra[0] == 0.0):
        return *nothing, SAME_EVERYWHERE
    forward, backward, slope = _SCALES[scale]
    with np.errstate(divide="ignore", invalid="ignore"):
        centre, moved = float(forward(np.asarray(value))), forward(defined)
        steepness = float(slope(np.asarray(value)))
    if not np.isfinite(centre) or not np.isfinite(steepness):
        return *nothing, AT_THE_END
    width = deviation * steepness
    moved = moved[np.isfinite(moved)]
    if len(moved) * 2 >= len(drawn):
        width = max(width, float(moved.std(ddof=1)))
    more = None if extra is None else (extra[0] * steepness**2, extra[1])
    reach = margin(width, deviation**2, level, spread, 1 if scale == "difference" else 2, more)
    low, high = backward(np.array([centre - reach, centre + reach])).tolist()
    return float(low), float(high), None


def margin(
    deviation: float,
    variance: float,
    level: float,
    spread: Spread,
    power: int = 1,
    extra: tuple[float, float] | None = None,
) -> float:
    """t x the inflated standard deviation. variance: of the replicates, on the scale on which `spread` was measured."""
    from scipy.special import stdtrit

    parts = [(deviation**2 * spread.inflation(variance, power), spread.freedom(variance))]
    parts += [] if extra is None else [extra]
    total = sum(part for part, _ in parts)
    free = total**2 / sum(part**2 / free for part, free in parts) if total > 0 else 1.0
    return float(stdtrit(max(free, 1.0), (1.0 + level) / 2)) * float(np.sqrt(total))


def _logit(p: FloatArray) -> FloatArray:
    return np.asarray(np.log(p) - np.log1p(-p))


def _expit(x: FloatArray) -> FloatArray:
    from scipy.special import expit

    return np.asarray(expit(x))


def _itself(x: FloatArray) -> FloatArray:
    return x


def _one(x: FloatArray) -> FloatArray:
    return np.ones_like(x)


Function = Callable[[FloatArray], FloatArray]
# There, back, and the slope there.
_SCALES: dict[Scale, tuple[Function, Function, Function]] = {
    "share": (_logit, _expit, lambda p: np.asarray(1.0 / (p * (1.0 - p)))),
    "loss": (lambda x: np.asarray(np.log(x)), lambda x: np.asarray(np.exp(x)), lambda x: np.asarray(1.0 / x)),
    "correlation": (
        lambda r: np.asarray(np.arctanh(r)),
        lambda x: np.asarray(np.tanh(x)),
        lambda r: np.asarray(1.0 / (1.0 - r * r)),
    ),
    "number": (_itself, _itself, _one),
    "difference": (_itself, _itself, _one),
}
