"""Where to stop looking at further views: bounds on the log-odds after each view, chosen on val_select.

Five numbers decide all steps, so that a few hundred images are not fitted step by step: for each side how far beyond its threshold an
image must stand, in spreads of what further views change, and from which view on it may be answered at all; and for the hopeless
band the chance of an exit later that is given up. Of all such bounds those of the least mean number of views whose expected
certified coverage is within a tolerance of that with all views.

Expected by whom: for each image by the worse of two, the log-odds where it stopped and those with all its views. Stops that look safe
because no image of val_select happened to turn, or because the first views are sure of themselves, would be chosen otherwise; and
what breaks a certificate is a handful of images that stopped on the wrong side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy import special

from stage1.aggregation.aggregators import Floats, as_logits
from stage1.aggregation.exits import Expected, expected_exits
from stage1.calibration.logistic import Beta
from stage1.errors import DataError
from stage1.scores import Scores

Bools = NDArray[np.bool_]

_DOUBTS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, np.inf)
_FIRST = (1, 2, 3, 4, 5, 6, 8)
_HOPES = (0.0, 0.03, 0.1, 0.2, 0.3)
_REACH = 3.0  # log-odds beyond the thresholds: further out all views are as sure as it gets


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one step; see `Step`."""

    low: float | None = None
    high: float | None = None
    hopeless: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """Bounds of every step and what val_select expects of them.

    coverage_all: certified coverage where every image is seen with every view.
    """

    bounds: list[Bounds]
    views: float
    coverage: float
    coverage_all: float


def plan_stops(score: Floats, labels: NDArray[np.int64], rates: Mapping[str, float], tolerance: float) -> Plan:
    """The bounds of least views. score: log-odds after each view by maps that have not seen the row, float [N, V].

    rates: those a certificate will let pass (`expected_rates`). tolerance: expected coverage that may be lost against all views.
    """
    n, v = score.shape
    beliefs = np.stack([_belief(column, labels) for column in score.T], axis=1)
    whole = expected_exits(score[:, -1], beliefs[:, -1], rates)
    search = _Search.of(score, whole)
    for views, numbers in search.ascending():
        place = search.stops(numbers) - 1
        stopped, own = score[np.arange(n), place], beliefs[np.arange(n), place]
        worse = np.where(stopped < 0, np.maximum(own, beliefs[:, -1]), np.minimum(own, beliefs[:, -1]))
        coverage = expected_exits(stopped, worse, rates).coverage
        if coverage >= whole.coverage - tolerance:
            return Plan(search.bounds(numbers), views, coverage, whole.coverage)
    return Plan([Bounds()] * v, float(v), whole.coverage, whole.coverage)


def _belief(score: Floats, labels: NDArray[np.int64]) -> Floats:
    """P(y = 1) of each image given its views, float [N], by a beta map, which has a slope for each end.

    Not the labels: of the tails that thresholds lie in they are so few that bounds would be fitted to their noise.
    """
    scores = Scores(logits=as_logits(score), labels=labels)
    try:
        return np.asarray(Beta.fit(scores).calibrate(scores).probabilities[:, 1])
    except DataError:  # classes that do not overlap have no finite map; then the log-odds are sure enough as they are
        return np.asarray(special.expit(score))


# ---- candidates --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What one candidate is: doubt and first view of each side, and hope."""

    doubt_low: float
    first_low: int
    doubt_high: float
    first_high: int
    hope: float


@dataclass(frozen=True, slots=True)
class _Search:
    """Which rows stop at which step for each number by itself, bool [N, V - 1]; candidates put these together."""

    lines: list[_Line]
    whole: Expected
    low: dict[float, Bools]
    high: dict[float, Bools]
    hopeless: dict[float, Bools]

    @classmethod
    def of(cls, score: Floats, whole: Expected) -> _Search:
        ends = [value for value in (whole.lo, whole.hi) if np.isfinite(value)] or [0.0]
        clipped = np.clip(score, min(ends) - _REACH, max(ends) + _REACH)
        lines = [_line(column, clipped[:, -1]) for column in clipped.T[:-1]]
        seen = score[:, :-1]
        low = {doubt: seen <= np.array([_or(line.low(whole, doubt), -np.inf) for line in lines]) for doubt in _DOUBTS}
        high = {doubt: seen >= np.array([_or(line.high(whole, doubt), np.inf) for line in lines]) for doubt in _DOUBTS}
        hopeless = {}
        for hope in _HOPES:
            bands = [line.hopeless(whole, hope) or (np.inf, -np.inf) for line in lines]
            hopeless[hope] = (seen >= np.array([band[0] for band in bands])) & (
                seen <= np.array([band[1] for band in bands])
            )
        return cls(lines, whole, low, high, hopeless)

    def ascending(self) -> list[tuple[float, _Numbers]]:
        """(mean views, candidate), the fewest views first."""
        steps = len(self.lines)
        firsts = [first for first in _FIRST if first <= steps]
        found = []
        # A doubt without end is the same from every first view on.
        sides = [(doubt, first) for doubt in _DOUBTS for first in firsts if np.isfinite(doubt) or first == 1]
        for (doubt_low, first_low), (doubt_high, first_high), hope in product(sides, sides, _HOPES):
            numbers = _Numbers(doubt_low, first_low, doubt_high, first_high, hope)
            found.append((float(self.stops(numbers).mean()), numbers))
        return sorted(found, key=lambda item: item[0])

    def stops(self, numbers: _Numbers) -> NDArray[np.int64]:
        """Number of views of each row, int [N]."""
        stop = self.hopeless[numbers.hope].copy()
        stop[:, numbers.first_low - 1 :] |= self.low[numbers.doubt_low][:, numbers.first_low - 1 :]
        stop[:, numbers.first_high - 1 :] |= self.high[numbers.doubt_high][:, numbers.first_high - 1 :]
        return np.asarray(np.where(stop.any(axis=1), stop.argmax(axis=1), stop.shape[1]) + 1, dtype=np.int64)

    def bounds(self, numbers: _Numbers) -> list[Bounds]:
        """Of every step; after the last view all stop."""
        found = [
            Bounds(
                line.low(self.whole, numbers.doubt_low) if seen >= numbers.first_low else None,
                line.high(self.whole, numbers.doubt_high) if seen >= numbers.first_high else None,
                line.hopeless(self.whole, numbers.hope),
            )
            for seen, line in enumerate(self.lines, 1)
        ]
        return [*found, Bounds()]


def _or(value: float | None, other: float) -> float:
    return other if value is None else value


@dataclass(frozen=True, slots=True)
class _Line:
    """The log-odds with all views given those now: normal around slope * now + shift."""

    slope: float
    shift: float
    spread: float

    def low(self, whole: Expected, doubt: float) -> float | None:
        """Answered 0 at or below, None: never."""
        if not np.isfinite(whole.lo) or doubt == np.inf:
            return None
        return min(whole.lo, self.now(whole.lo - self.spread * doubt))

    def high(self, whole: Expected, doubt: float) -> float | None:
        """Answered 1 at or above, None: never."""
        if not np.isfinite(whole.hi) or doubt == np.inf:
            return None
        return max(whole.hi, self.now(whole.hi + self.spread * doubt))

    def hopeless(self, whole: Expected, hope: float) -> tuple[float, float] | None:
        """Where the chance of an exit later is at most `hope`: within the thresholds, so never an answer given up.

        Where one side alone can exit, the band reaches as far as there are log-odds.
        """
        if hope <= 0 or not np.isfinite([whole.lo, whole.hi]).any():
            return None
        far = 1e6
        later = np.linspace(
            whole.lo if np.isfinite(whole.lo) else whole.hi - 20.0,
            whole.hi if np.isfinite(whole.hi) else whole.lo + 20.0,
            801,
        )
        chance = special.ndtr((whole.lo - later) / self.spread) + special.ndtr((later - whole.hi) / self.spread)
        poor = later[chance <= hope]
        if not len(poor):
            return None
        first = max(self.now(float(poor[0])), whole.lo) if np.isfinite(whole.lo) else -far
        last = min(self.now(float(poor[-1])), whole.hi) if np.isfinite(whole.hi) else far
        return (first, last) if first < last else None

    def now(self, later: float) -> float:
        """The log-odds now whose expected value later is `later`."""
        return float((later - self.shift) / self.slope)


def _line(now: Floats, later: Floats) -> _Line:
    spread = float(now.std())
    slope = float(np.cov(now, later, bias=True)[0, 1] / spread**2) if spread > 1e-9 else 1.0
    slope = max(slope, 0.05)  # a prefix that says nothing yet: bounds far out, so that nothing stops on it
    shift = float(later.mean() - slope * now.mean())
    return _Line(slope, shift, max(float((later - slope * now - shift).std()), 1e-6))
