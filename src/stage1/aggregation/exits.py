"""How much would exit: thresholds on a score of val_select that meet the targets as a certificate will, and the share beyond them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.aggregation.aggregators import Floats
from stage1.errors import ConfigError
from stage1.risk.planning import SIDES, delta_of_each
from stage1.risk.testing import max_errors

KNOWN = (*SIDES, "error")
_EXIT_RATE = 0.7  # share of a class that exits, for the size of a sample of exits; as `stage1 plan` assumes
_ROUNDING = 1e-9  # sums of beliefs miss a round number by a few ulps


@dataclass(frozen=True, slots=True)
class Expected:
    """lo, hi: exit as 0 below lo, as 1 above hi (-inf, inf: never). coverage: the share of the rows that exit."""

    lo: float
    hi: float
    coverage: float


def expected_rates(risks: Mapping[str, float], confidence: float, units: int, prior: float) -> dict[str, float]:
    """The rate that a certificate on `units` calibration units will let pass for each target: (errors allowed + 1/2) / counted.

    prior: share of class 1. Raises ConfigError for a risk that two classes do not have (miss_rate.<class> ..). A certificate at .02 from 500 units of a class stands on observed rates near .01; stop bounds made
    for .02 would lie inside the thresholds that it gives.
    """
    found = {}
    for name, target in risks.items():
        if name not in KNOWN:
            raise ConfigError(f"risk {name!r}: adaptive views are for two classes, whose risks are {', '.join(KNOWN)}")
        side, of_exits = SIDES.get(name, ("both", True))
        share = {"positive": prior, "negative": 1.0 - prior, "both": 1.0}[side] * (_EXIT_RATE if of_exits else 1.0)
        counted = max(1, round(units * share))
        delta = delta_of_each(risks, confidence) if name in SIDES else 1.0 - confidence
        found[name] = min(target, (max(int(max_errors(counted, target, delta)), 0) + 0.5) / counted)
    return found


def expected_exits(score: Floats, belief: Floats, rates: Mapping[str, float]) -> Expected:
    """The thresholds of most coverage whose rates stay within `rates`, where row i is of class 1 to the share belief[i].

    score, belief: float [N]. rates: of fnr, fpr, miss_rate, false_exit_rate, error. With miss_rate or false_exit_rate alone the other
    side never exits, as in their certificate; with fnr or fpr alone every row does, and the cut lies as far as the rate allows.
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
    # Of equal coverage the fewest errors on the side that no rate limits, as order statistics of the other side have it.
    best = len(cuts) - 1 - int(exits[::-1].argmax()) if set(rates) <= {"fnr", "miss_rate"} else int(exits.argmax())
    return Expected(_cut(ordered, int(cuts[low[best]])), _cut(ordered, int(cuts[best])), float(exits[best] / n))


def _largest_low(
    below1: Floats, below0: Floats, cuts: NDArray[np.intp], rates: Mapping[str, float]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """For each place of hi among the cuts the largest place of lo within the rates, and whether there is one.

    below1, below0: mass of each class below each cut. Every risk but error either limits the misses from above, which lo alone
    makes, or asks for a lo that is large enough; so the largest lo that misses allow decides. error is tried pair by pair.
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
