"""The expected reward of labelled scores: per level of the challenge, and for their mixture.

The client draws the level uniformly and does not say which it was, so the mixture's TPR and FPR are the means over the
levels, whatever number of rows each level has here. Labels are balanced there: only TPR and FPR count, not the share of
class 1 in these rows.

**Exits**: what a policy lets exit keeps its side whatever the threshold, as in the detector; the threshold decides the
other rows. So a threshold beyond the band in which the policy defers moves nothing.

**Intervals** are percentiles of a bootstrap over groups within labels, at tails moved outwards as t and n / (n - 1)
move a normal's (Hesterberg 2015: expanded percentiles); that of a gain, whose two sides are alike, is gain +- t x
spread. With fewer than 10 groups (of a gain, 6) there is none. Where a level shows no error of one kind (or nothing but
errors), resampling would call that rate certain; there its replicates are drawn from Jeffreys' Beta(k + 1/2, n - k +
1/2) instead, n the number of groups with rows of that class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.evaluation import resampling
from stage1.evaluation.ranking import FloatArray
from stage1.evaluation.t_interval import Spread, margin, t_interval, too_few
from stage1.streetvision.reward.expected import expected_reward, mcc_of_table

DEFAULT, MIXTURE = 0.5, "mixture"
FEWEST = 10
"""Groups for an interval of the reward: with 6 the widened percentiles cover .84 only (benchmarks/intervals.md)."""
OPEN = -1  # of a row that does not exit: the threshold decides it
Rates = tuple[FloatArray, FloatArray]


@dataclass(frozen=True, slots=True)
class LevelReward:
    """One level (or the mixture) at one threshold. mcc, accuracy and reward are those expected at `prior`."""

    level: str
    positives: int
    negatives: int
    tpr: float
    fpr: float
    mcc: float
    accuracy: float
    reward: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Gain:
    """A difference of the mixture's reward on the same rows, paired interval. verdict: better, worse, not shown."""

    value: float
    low: float
    high: float
    verdict: str


class LevelRates:
    """Labelled scores, sorted out by level: TPR and FPR of each level at any threshold, with bootstrap replicates.

    probability: float [N], P(class 1) as stated by the model. labels: 0/1 [N]. levels: str [N], or None: one level,
    "all".
    groups: [N], what is resampled together, or None: rows. exits: int [N], the class as which a row exits, OPEN where
    the threshold decides; None: it decides all. The same seed draws the same replicates for every threshold, so
    differences between thresholds are paired.
    Raises DataError: unequal lengths, other labels or exits, a level without a row of one class.
    """

    def __init__(
        self,
        probability: ArrayLike,
        labels: ArrayLike,
        levels: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        *,
        exits: ArrayLike | None = None,
        resamples: int = 1000,
        seed: int = 0,
    ) -> None:
        reported, truth, names = checked_rows(probability, labels, levels)
        self._score = beyond_thresholds(reported, exits)
        self.levels = np.unique(names).tolist()
        self._rows = [[(names == level) & (truth == label) for level in self.levels] for label in (1, 0)]
        for label, masks in zip((1, 0), self._rows, strict=True):
            for level, mask in zip(self.levels, masks, strict=True):
                if not mask.any():
                    raise DataError(f"level {level!r}: no row of class {label}; both are needed for TPR and FPR")
        n = len(truth)
        # How many independent units each rate has: what an unseen error is spread over.
        identity = (
            np.arange(n) if groups is None else np.unique(np.asarray(groups).astype(np.str_), return_inverse=True)[1]
        )
        self._units = [[len(np.unique(identity[mask])) for mask in masks] for masks in self._rows]
        plan = resampling.units(n, truth, groups)
        draws = resampling.draws(plan, n, resamples, seed) if len(plan) > 1 else ()
        self._weights = (
            np.concatenate([plan.rows(batch) for batch in draws]) if len(plan) > 1 else np.zeros((0, n), np.uint8)
        )
        self._bases = [self._sums(masks) for masks in self._rows]
        self._seed = seed
        self._spread = Spread(tuple(map(len, plan.strata)))

    def rates(self, threshold: float) -> Rates:
        """TPR and FPR at `threshold` (above it: class 1), float [levels] each."""
        above = self._score > threshold
        first, second = (np.array([above[mask].mean() for mask in masks]) for masks in self._rows)
        return first, second

    def replicates(self, threshold: float) -> Rates:
        """The same in each bootstrap replicate, float [B, levels] each; NaN where one lacks a class of a level."""
        above = self._score > threshold
        found = []
        for label, (masks, bases, units) in enumerate(zip(self._rows, self._bases, self._units, strict=True)):
            hits = self._sums([mask & above for mask in masks])
            drawn = np.divide(hits, bases, out=np.full(hits.shape, np.nan), where=bases > 0)
            for place, (mask, count) in enumerate(zip(masks, units, strict=True)):
                share = above[mask].mean()
                if share in (0.0, 1.0):
                    # A generator for each rate: where two thresholds agree on it, their replicates do too.
                    rng = resampling.generator(self._seed, f"reward/{label}/{place}")
                    drawn[:, place] = rng.beta(share * count + 0.5, (1 - share) * count + 0.5, size=len(drawn))
            found.append(drawn)
        return found[0], found[1]

    def table(self, threshold: float, prior: float = 0.5, level: float = 0.95) -> list[LevelReward]:
        """One row for each level, and the mixture last where there are several."""
        tpr, fpr = self.rates(threshold)
        drawn_tpr, drawn_fpr = self.replicates(threshold)
        rows = [
            self._row(name, [place], tpr, fpr, drawn_tpr, drawn_fpr, prior, level)
            for place, name in enumerate(self.levels)
        ]
        if len(self.levels) > 1:
            rows.append(self._row(MIXTURE, list(range(len(self.levels))), tpr, fpr, drawn_tpr, drawn_fpr, prior, level))
        return rows

    def gain(self, threshold: float, prior: float = 0.5, level: float = 0.95, default: float = DEFAULT) -> Gain:
        """What moving from `default` to `threshold` brings for the mixture, with its paired interval."""
        return self.against(self, threshold, default, prior, level)

    def against(
        self, other: LevelRates, threshold: float, theirs: float, prior: float = 0.5, level: float = 0.95
    ) -> Gain:
        """The mixture's reward here at `threshold` minus that of `other` at `theirs`: another model on the same rows.

        Paired: rows, groups, seed and number of replicates must be those of `other`. Raises DataError where they are
        not.
        """
        if not np.array_equal(self._weights, other._weights):
            raise DataError(
                "rewards: the two are not of the same rows, groups and seed; their difference is not paired"
            )
        value = self._mixed(self.rates(threshold), prior) - other._mixed(other.rates(theirs), prior)
        drawn = self._mixed(self.replicates(threshold), prior) - other._mixed(other.replicates(theirs), prior)
        low = high = float("nan")
        if self is other and threshold == theirs:
            low = high = 0.0
        elif too_few(self._spread.sizes) is None:
            low, high, _ = t_interval(float(value[0]), drawn, level, self._spread, "difference")
        return Gain(float(value[0]), low, high, "better" if low > 0 else "worse" if high < 0 else "not shown")

    def _mixed(self, rates: Rates, prior: float) -> FloatArray:
        tpr, fpr = (np.atleast_2d(values).mean(axis=1) for values in rates)
        return _rewards(tpr, fpr, prior)

    def _row(
        self,
        name: str,
        places: list[int],
        tpr: FloatArray,
        fpr: FloatArray,
        drawn_tpr: FloatArray,
        drawn_fpr: FloatArray,
        prior: float,
        level: float,
    ) -> LevelReward:
        hit, alarm = float(tpr[places].mean()), float(fpr[places].mean())
        low, high = _percentiles(
            _rewards(drawn_tpr[:, places].mean(axis=1), drawn_fpr[:, places].mean(axis=1), prior), level, self._spread
        )
        reward = float(expected_reward(hit, alarm, prior))
        # Rates of 0 or 1 are spread to one side only; there the interval ends at the estimate (Brown, Cai and DasGupta
        # 2001, 4.1.1). NaN stays.
        low, high = np.minimum(low, reward).item(), np.maximum(high, reward).item()
        return LevelReward(
            level=name,
            positives=int(sum(self._rows[0][place].sum() for place in places)),
            negatives=int(sum(self._rows[1][place].sum() for place in places)),
            tpr=hit,
            fpr=alarm,
            mcc=float(mcc_of_table(prior * hit, (1 - prior) * alarm, prior, 1 - prior)),
            accuracy=prior * hit + (1 - prior) * (1 - alarm),
            reward=reward,
            low=low,
            high=high,
        )

    def _sums(self, masks: list[NDArray[np.bool_]]) -> FloatArray:
        return np.stack([self._weights[:, mask].sum(axis=1, dtype=np.float64) for mask in masks], axis=1)


def _rewards(tpr: FloatArray, fpr: FloatArray, prior: float) -> FloatArray:
    """Expected rewards, NaN where a rate is."""
    there = ~(np.isnan(tpr) | np.isnan(fpr))
    found = np.full(tpr.shape, np.nan)
    if there.any():
        found[there] = expected_reward(tpr[there], fpr[there], prior)
    return found


def _percentiles(drawn: FloatArray, level: float, spread: Spread) -> tuple[float, float]:
    """Outwards to actual replicates; NaN where fewer than half are defined, or with too few units."""
    from scipy.special import ndtr

    defined = drawn[~np.isnan(drawn)]
    if len(defined) * 2 < max(len(drawn), 1) or too_few(spread.sizes, fewest=FEWEST) is not None:
        return float("nan"), float("nan")
    low = float(ndtr(-margin(1.0, 1.0, level, spread, 2)))
    high = 1.0 - low
    return float(np.quantile(defined, low, method="lower")), float(np.quantile(defined, high, method="higher"))


# ---- rows ---------------------------------------------------------------------------------------------------------


def beyond_thresholds(score: FloatArray, exits: ArrayLike | None) -> FloatArray:
    """The score, [N], with the rows that exit moved beyond every threshold, to the side that they keep."""
    if exits is None:
        return score
    sides = np.asarray(exits)
    if sides.shape != score.shape or not np.isin(sides, (0, 1, OPEN)).all():
        raise DataError(f"exits: one for each of {len(score)} rows: 0, 1, or {OPEN} where the threshold decides")
    return np.asarray(np.select([sides == 1, sides == 0], [np.inf, -np.inf], score))


def checked_rows(
    probability: ArrayLike, labels: ArrayLike, levels: ArrayLike | None
) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.str_]]:
    """(P(class 1) float [N], label int [N], level str [N]) of the rows. Raises DataError as `LevelRates` says."""
    reported, truth = np.asarray(probability, dtype=np.float64), np.asarray(labels)
    if reported.ndim != 1 or not len(reported) or truth.shape != reported.shape:
        raise DataError(
            f"probabilities: shape {reported.shape} for labels {truth.shape}; one of each per row, at least one"
        )
    if not ((reported >= 0) & (reported <= 1)).all():
        raise DataError(f"probabilities: row {int(np.argmin((reported >= 0) & (reported <= 1)))} is not in [0, 1]")
    if not np.isin(truth, (0, 1)).all():
        raise DataError("labels: 0 and 1 only; the reward is for two classes")
    names = np.full(len(reported), "all") if levels is None else np.asarray(levels).astype(np.str_)
    if names.shape != reported.shape:
        raise DataError(f"levels: {len(names)} for {len(reported)} rows")
    return reported, truth.astype(np.int64), names
