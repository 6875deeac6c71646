"""Counts of many threshold pairs at once, and whether they certify a target set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.risk import binomial_lower, binomial_pvalue, binomial_upper

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Exits:
    """Exit counts of T threshold pairs on one labelled sample; int [T] each.

    miss: positives that exit as 0; right_positive: positives that exit as 1; false_exit: negatives that exit as 1;
    right_negative: negatives that exit as 0. positives, negatives: members of each class.
    """

    miss: Ints
    right_positive: Ints
    false_exit: Ints
    right_negative: Ints
    positives: int
    negatives: int

    def counts(self, name: str) -> tuple[Ints, Ints]:
        """(errors, trials) of a risk, int [T] each."""
        wrong = self.miss + self.false_exit
        exits = wrong + self.right_positive + self.right_negative
        everyone = np.full_like(self.miss, self.positives), np.full_like(self.miss, self.negatives)
        return {
            "fnr": (self.miss, self.miss + self.right_positive),
            "fpr": (self.false_exit, self.false_exit + self.right_negative),
            "miss_rate": (self.miss, everyone[0]),
            "false_exit_rate": (self.false_exit, everyone[1]),
            "error": (wrong, exits),
        }[name]

    @property
    def exits(self) -> Ints:
        return self.miss + self.right_positive + self.false_exit + self.right_negative


def count_exits(negatives: Floats, positives: Floats, lo: Floats, hi: Floats) -> Exits:
    """Exits of each pair (lo, hi): as 0 iff s < lo, as 1 iff s > hi; -inf and +inf: that side never exits.

    negatives, positives: scores of each class, any order. lo, hi: float [T].
    """
    neg, pos = np.sort(negatives), np.sort(positives)
    return Exits(
        miss=np.searchsorted(pos, lo, side="left"),
        right_positive=len(pos) - np.searchsorted(pos, hi, side="right"),
        false_exit=len(neg) - np.searchsorted(neg, hi, side="right"),
        right_negative=np.searchsorted(neg, lo, side="left"),
        positives=len(pos),
        negatives=len(neg),
    )


def error_upper(exits: Exits, prior: float, delta: float) -> Floats:
    """Upper bound of P(wrong | exit) at P(y = 1) = prior, at confidence 1 - delta, float [T].

    R = W / (W + V), W = prior m + (1 - prior) f wrong, V = prior c + (1 - prior) t right: rising in m and f, falling in c
    and t. So four exact one-sided bounds at delta / 4 each bound R jointly. 1.0 where nothing is known to exit rightly.
    """
    part = delta / 4
    m = binomial_upper(exits.miss, exits.positives, part)
    f = binomial_upper(exits.false_exit, exits.negatives, part)
    c = binomial_lower(exits.right_positive, exits.positives, part)
    t = binomial_lower(exits.right_negative, exits.negatives, part)
    wrong, right = prior * m + (1 - prior) * f, prior * c + (1 - prior) * t
    return np.asarray(wrong / np.maximum(wrong + right, 1e-300))


def coverage_lower(exits: Exits, prior: float | None, delta: float) -> Floats:
    """Lower bound of P(exit), float [T]: exact binomial, or at P(y = 1) = prior from both classes at delta / 2 each."""
    if prior is None:
        return binomial_lower(exits.exits, exits.positives + exits.negatives, delta)
    positive = binomial_lower(exits.miss + exits.right_positive, exits.positives, delta / 2)
    negative = binomial_lower(exits.false_exit + exits.right_negative, exits.negatives, delta / 2)
    return np.asarray(prior * positive + (1 - prior) * negative)


def class_coverage_lower(exits: Exits, label: int, delta: float) -> Floats:
    """Lower bound of P(exit | y = label), float [T], exact binomial."""
    inside = exits.miss + exits.right_positive if label == 1 else exits.false_exit + exits.right_negative
    return binomial_lower(inside, exits.positives if label == 1 else exits.negatives, delta)


def certifies(exits: Exits, targets: Mapping[str, float], delta: float, prior: float | None) -> Bools:
    """Which pairs certify every risk of the target at delta, bool [T]: the union null, p = max of the exact tails.

    A pair is refused where one risk is; testing all risks of one pair costs nothing (intersection-union test).
    """
    passed = np.ones(len(exits.miss), dtype=np.bool_)
    for name, target in targets.items():
        if name == "error" and prior is not None:
            passed &= error_upper(exits, prior, delta) <= target
        else:
            errors, trials = exits.counts(name)
            passed &= binomial_pvalue(errors, trials, target) <= delta
    return passed
