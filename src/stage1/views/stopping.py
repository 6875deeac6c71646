"""Where to stop evaluating further views: bounds on the log-odds after each view, from val_select.

Three things are read off, none of them searched for, since a few hundred images are soon overfit:

- the last view worth evaluating: that of least NLL, or a later one where coverage asks for it; after it everything
  stops.
- from which view on an image may be answered 0 early. One view can show what makes it a 1; that nothing does is known
  once nearly all that views are worth has been seen. A 1 may be answered from the first view on.
- one bound for each side and all steps: as near as keeps the errors expected of early answers within a share of those
  that a certificate will allow, and never nearer than the threshold itself. A side without a target: of those that the
  thresholds make when all views are evaluated. A side that never exits (miss_rate or false_exit_rate alone): what
  defers can stop as well, and an error is an image that would have exited.

The share, `tolerance`, is the one number of the rule. Early answers are few, far from the thresholds and mostly right;
what costs coverage is a handful of them on the wrong side, since a certificate at a few percent from some hundred
images allows for a handful.

The second half of the file, `expected_exits`, is what the bounds are judged by: thresholds on a score of val_select
that meet the targets as a certificate will, and the share that exits beyond them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.calibration.binary import Beta
from stage1.errors import ConfigError, DataError
from stage1.evaluation.probability import nll_rows
from stage1.late import library
from stage1.risk.risks import RISKS
from stage1.risk.sample_size import delta_of_each
from stage1.risk.testing import max_errors
from stage1.scores import Scores
from stage1.views.pooling import Floats, as_logits

special = library("scipy.special")

# of what the views lower the NLL by, before an image may be answered 0; .9 lost .01 of coverage on the benchmark's
# train images
_RECOVERED = 0.95
_LOST = 0.02  # of expected coverage, as far as one val_select of some hundred images can tell
_STEP = 0.1  # log-odds between the bounds tried
_FAR = 12.0  # log-odds beyond the threshold: nothing to gain further out
_BOUND_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one step; see `Step`."""

    low: float | None = None
    high: float | None = None


_ALL = Bounds(0.0, 0.0)  # all stop


@dataclass(frozen=True, slots=True)
class Plan:
    """Bounds of every step and what val_select expects of them.

    coverage: certified, by the mean of two beliefs in each image, that where it stopped and that with all views: the
    first alone says too much (early answers are sure of themselves), the second too little. coverage_all: where all see
    every view.
    """

    bounds: list[Bounds]
    views: float
    coverage: float
    coverage_all: float

    @property
    def last(self) -> int:
        """Number of views after which every image stops."""
        return self.bounds.index(_ALL) + 1

    @property
    def none_early(self) -> bool:
        """Whether every image gets the same number of views, more than one."""
        return self.last > 1 and all(bound == Bounds() for bound in self.bounds[: self.last - 1])


def plan_stops(score: Floats, labels: NDArray[np.int64], rates: Mapping[str, float], tolerance: float) -> Plan:
    """The bounds. score: log-odds after each view by maps that have not seen the row, float [N, V].

    rates: those a certificate will allow (`expected_rates`). tolerance: share of these errors that early answers may
    use up, each side its own; 0: no early answers. An order that val_select chose makes the first views look better
    there than they are: where coverage is lost by it, the last view is a later one.
    """
    beliefs = np.stack([_belief(column, labels) for column in score.T], axis=1)
    last, first_low = _worth_looking(score, labels)
    best = None
    for views in range(last, score.shape[1] + 1):
        whole = expected_exits(score[:, views - 1], beliefs[:, views - 1], rates)
        allowed = _limited(_errors_allowed(labels, rates), whole, score[:, views - 1], beliefs[:, views - 1])
        bounds = _bounds(score, views, first_low, _sides(whole), [tolerance * errors for errors in allowed])
        plan = _planned(score, beliefs, rates, bounds)
        if plan.coverage >= plan.coverage_all - _LOST:
            return plan
        best = plan if best is None or plan.coverage > best.coverage else best
    assert best is not None
    return best


def _sides(whole: Expected) -> tuple[float, float]:
    """Where bounds may begin, (low, high): the thresholds; for a side that never exits, the other one's."""
    low = whole.lo if np.isfinite(whole.lo) else whole.hi
    return low, whole.hi if np.isfinite(whole.hi) else whole.lo


def _bounds(
    score: Floats, views: int, first_low: int, sides: tuple[float, float], allowed: list[float]
) -> list[Bounds]:
    """Bounds where `views` are evaluated; allowed: errors of those that stop low (of class 1) and high (of class 0)."""
    early = score[:, : views - 1]
    low = _innermost(early[:, first_low - 1 :], sides[0], allowed[0])
    high = _innermost(-early, -sides[1], allowed[1])
    found = [Bounds(low if seen >= first_low else None, None if high is None else -high) for seen in range(1, views)]
    return found + [_ALL] * (score.shape[1] - views + 1)


def _planned(score: Floats, beliefs: Floats, rates: Mapping[str, float], bounds: list[Bounds]) -> Plan:
    stopped = np.arange(len(score)), _stops(score, bounds)
    reached = expected_exits(score[stopped], (beliefs[stopped] + beliefs[:, -1]) / 2, rates).coverage
    everything = expected_exits(score[:, -1], beliefs[:, -1], rates).coverage
    return Plan(bounds, float(stopped[1].mean() + 1), reached, everything)


def _worth_looking(score: Floats, labels: NDArray[np.int64]) -> tuple[int, int]:
    """(number of views of least NLL, number from which an image may be answered 0)."""
    loss = np.array([nll_rows(as_logits(column), labels).mean() for column in score.T])
    last = int(loss.argmin()) + 1
    enough = loss[0] - _RECOVERED * (loss[0] - loss[last - 1]) + _BOUND_ROUNDING
    return last, int((loss <= enough).argmax()) + 1


def _errors_allowed(labels: NDArray[np.int64], rates: Mapping[str, float]) -> tuple[float, float]:
    """(1 answered 0, 0 answered 1): errors on val_select that the rates allow; infinite without a target."""
    ones, zeros = float(labels.sum()), float((1 - labels).sum())
    missed = [rates[name] * ones for name in ("fnr", "miss_rate") if name in rates]
    false = [rates[name] * zeros for name in ("fpr", "false_exit_rate") if name in rates]
    both = [rates["error"] * len(labels) / 2] if "error" in rates else []
    return min([*missed, *both], default=np.inf), min([*false, *both], default=np.inf)


def _limited(allowed: tuple[float, float], whole: Expected, score: Floats, belief: Floats) -> tuple[float, float]:
    """The same; a side without target gets as many as `whole` answers wrongly on score and belief, float [N].

    On a side that never exits: images that would have exited on the other, as many as coverage may be lost.
    """
    missed, false = allowed
    spare = _LOST * len(score)
    if not np.isfinite(missed):
        missed = float(belief[score < whole.lo].sum()) if np.isfinite(whole.lo) else spare
    if not np.isfinite(false):
        false = float((1 - belief)[score > whole.hi].sum()) if np.isfinite(whole.hi) else spare
    return missed, false


def _innermost(score: Floats, threshold: float, allowed: float) -> float | None:
    """The bound next to `threshold` with at most `allowed` errors expected of the rows that stop at or below it.

    score: float [N, S], of the steps at which rows may stop; the sooner they do, the less sure they are. None: nothing
    stops.
    """
    if not np.isfinite(threshold) or allowed <= 0 or not score.shape[1]:
        return None
    for bound in threshold - np.arange(0.0, _FAR, _STEP):
        stop = score <= bound
        rows = stop.any(axis=1)
        if special.expit(score[rows, stop[rows].argmax(axis=1)]).sum() <= allowed:
            return float(bound)
    return None


def _stops(score: Floats, bounds: list[Bounds]) -> NDArray[np.intp]:
    """Index of the step at which each row stops, int [N]."""
    low = np.array([-np.inf if one.low is None else one.low for one in bounds])
    high = np.array([np.inf if one.high is None else one.high for one in bounds])
    return np.asarray(((score <= low) | (score >= high)).argmax(axis=1))


def _belief(score: Floats, labels: NDArray[np.int64]) -> Floats:
    """P(y = 1) of each image given its score, float [N], by a beta map, which has a slope for each end.

    Not the labels: in the tails of the thresholds they are so few that bounds would be fitted to their noise.
    """
    scores = Scores(logits=as_logits(score), labels=labels)
    try:
        return np.asarray(Beta.fit(scores).calibrate(scores).probabilities[:, 1])
    except DataError:  # classes that do not overlap have no finite map; then the log-odds are taken unmapped
        return np.asarray(special.expit(score))


KNOWN = ("fnr", "miss_rate", "fpr", "false_exit_rate", "error")  # those that `expected_exits` has a rule for
_EXIT_RATE = 0.7  # share of a class that exits, for the size of a sample of exits; as `stage1 plan` assumes
_ROUNDING = 1e-9  # sums of beliefs miss a round number by a few ulps


@dataclass(frozen=True, slots=True)
class Expected:
    """lo, hi: exit as 0 below lo, as 1 above hi (-inf, inf: never). coverage: the share of the rows that exit."""

    lo: float
    hi: float
    coverage: float


def expected_rates(risks: Mapping[str, float], confidence: float, units: int, prior: float) -> dict[str, float]:
    """The rate that a certificate on `units` units will allow for each target: (errors allowed + 1/2) / counted.

    prior: share of class 1. Raises ConfigError for a risk that two classes do not have (miss_rate.<class> ..). A
    certificate at .02 from 500 units of a class has observed rates near .01; stop bounds made for .02 would lie
    inside the thresholds that it gives.
    """
    found = {}
    for name, target in risks.items():
        if name not in KNOWN:
            raise ConfigError(f"risk {name!r}: adaptive views are for two classes, whose risks are {', '.join(KNOWN)}")
        risk = RISKS[name]
        share = {"positive": prior, "negative": 1.0 - prior}.get(risk.side, 1.0)
        share *= _EXIT_RATE if risk.among == "exits" else 1.0
        counted = max(1, round(units * share))
        delta = delta_of_each(risks, confidence) if risk.of_one_class else 1.0 - confidence
        found[name] = min(target, (max(int(max_errors(counted, target, delta)), 0) + 0.5) / counted)
    return found


def expected_exits(score: Floats, belief: Floats, rates: Mapping[str, float]) -> Expected:
    """The thresholds of most coverage whose rates stay within `rates`, where row i is of class 1 by belief[i].

    score, belief: float [N]. rates: of fnr, fpr, miss_rate, false_exit_rate, error. With miss_rate or false_exit_rate
    alone the other side never exits, as in their certificate; with fnr or fpr alone every row does, and the cut lies as
    far as the rate allows.
    """
    order = np.argsort(score, kind="stable")
    ordered, ones = score[order], belief[order]
    n = len(score)
    # A cut between equal scores does not exist.
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(ordered)) + 1, [n]])
    below1 = np.concatenate([[0.0], np.cumsum(ones)])[cuts]
    below0 = np.concatenate([[0.0], np.cumsum(1.0 - ones)])[cuts]
    high = np.arange(len(cuts))
    low, allowed = _largest_low(below1, below0, cuts, rates)
    if set(rates) == {"false_exit_rate"}:
        low = np.zeros_like(low)
    if set(rates) == {"miss_rate"}:
        allowed &= high == len(cuts) - 1
    if not allowed.any():
        return Expected(-np.inf, np.inf, 0.0)
    exits = np.where(allowed, cuts[low] + n - cuts, -1)
    # Of equal coverage the fewest errors on the side that no rate limits, as order statistics of the other side have
    # it.
    best = len(cuts) - 1 - int(exits[::-1].argmax()) if set(rates) <= {"fnr", "miss_rate"} else int(exits.argmax())
    return Expected(_cut(ordered, int(cuts[low[best]])), _cut(ordered, int(cuts[best])), float(exits[best] / n))


def _largest_low(
    below1: Floats, below0: Floats, cuts: NDArray[np.intp], rates: Mapping[str, float]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For each place of hi among the cuts the largest place of lo within the rates, and whether there is one.

    below1, below0: mass of each class below each cut. Every risk but error either limits the misses from above, which
    lo alone makes, or asks for a lo that is large enough; so the largest lo that misses allow decides. error is tried
    pair by pair.
    """
    total1, total0, n = below1[-1], below0[-1], cuts[-1]
    false = total0 - below0
    most_missed = np.full(len(cuts), np.inf)
    if "fnr" in rates:
        most_missed = np.minimum(most_missed, rates["fnr"] / (1 - rates["fnr"]) * (total1 - below1))
    if "miss_rate" in rates:
        most_missed = np.minimum(most_missed, rates["miss_rate"] * total1)
    low = np.minimum(np.searchsorted(below1, most_missed + _ROUNDING, side="right") - 1, np.arange(len(cuts)))
    allowed = np.ones(len(cuts), dtype=np.bool_)
    if "false_exit_rate" in rates:
        allowed &= false <= rates["false_exit_rate"] * total0 + _ROUNDING
    if "error" in rates:
        wrong = below1[:, None] + false[None, :] <= rates["error"] * (cuts[:, None] + n - cuts[None, :]) + _ROUNDING
        wrong &= np.arange(len(cuts))[:, None] <= low[None, :]
        allowed &= wrong.any(axis=0)
        low = np.where(allowed, len(cuts) - 1 - wrong[::-1].argmax(axis=0), low)
    if "fpr" in rates:
        allowed &= false <= rates["fpr"] * (false + below0[low]) + _ROUNDING
    return low, allowed


def _cut(ordered: Floats, place: int) -> float:
    """Between the rows before `place` and those from it on; beyond all rows at the ends."""
    if place == 0:
        return -np.inf
    return np.inf if place == len(ordered) else float((ordered[place - 1] + ordered[place]) / 2)
