"""An interval for the calibration error, whose estimate is biased upwards: of a calibrated model it begins at 0.

The estimate is |g| = sum over bins of |g_b|, g_b the share of rows in the bin times (mean probability - observed rate).
With g = d + e, d the truth and e noise of mean 0, the truth |d| lies between

    |d| >= |g| - |e|                    (triangle inequality)
    |d| <= |g| - s'e, s_b = sign(d_b)   (|d + e| >= |d| + s'e, since |.| is convex)

So the lower end takes off an upper quantile of |e|: of a calibrated model, where |g| = |e|, it is 0 as often as the
level says. The upper end adds t standard errors of s'e, which has mean 0 whatever d is: no bias there. e is drawn by
the bootstrap, whose bins stay those of the data; s is estimated by the signs of g, and the bins moving all together or
each for itself is taken where that is wider. A percentile interval of the estimate adds the noise once more instead:
for a calibrated model it never holds the truth. A difference of two calibration errors has twice that trouble: its
interval is that of both ends, each at half of what may go wrong (Bonferroni).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from stage1.evaluation.ranking import FloatArray
from stage1.evaluation.resampling import Units
from stage1.evaluation.t_interval import Spread, margin


def ece_interval(
    gaps: FloatArray, drawn: FloatArray, level: float, plan: Units, left_out: Mapping[int, FloatArray]
) -> tuple[float, float]:
    """(low, high) of sum |gaps|, within [0, 1].

    gaps: float [bins]. drawn: float [B, bins], of bootstrap replicates with the same bins. left_out: stratum -> the
    gaps without each of its units, float [units, bins]; see t_interval.
    """
    from scipy.special import ndtri

    estimate = float(np.abs(gaps).sum())
    noise = drawn - gaps
    signs = np.where(gaps < 0, -1.0, 1.0)
    linear = noise @ signs
    variance = float(linear.var(ddof=1))
    spread = Spread.of(plan, {index: values @ signs for index, values in left_out.items()})
    widest = max(variance, float(noise.sum(axis=1).var(ddof=1)), float(noise.var(axis=0, ddof=1).sum()))
    reach = margin(float(np.sqrt(widest)), variance, level, spread, 2)
    if widest <= 0.0:
        return float("nan"), float("nan")
    # as the deviations beyond a normal quantile: few units make the noise look smaller and its tails shorter
    wider = reach / (float(np.sqrt(widest)) * float(ndtri((1.0 + level) / 2)))
    chance = wider * float(np.quantile(np.abs(noise).sum(axis=1), (1.0 + level) / 2, method="higher"))
    return max(0.0, estimate - chance), min(1.0, estimate + reach)


def ece_change_interval(
    gaps: FloatArray, drawn: FloatArray, level: float, plan: Units, left_out: Mapping[int, FloatArray]
) -> tuple[float, float]:
    """(low, high) of the second calibration error minus the first; the gaps of both lie side by side."""
    half = len(gaps) // 2
    each = 1.0 - (1.0 - level) / 2
    first, second = (
        ece_interval(gaps[part], drawn[:, part], each, plan, {index: rows[:, part] for index, rows in left_out.items()})
        for part in (slice(0, half), slice(half, None))
    )
    return second[0] - first[1], second[1] - first[0]
