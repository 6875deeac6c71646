"""Exit counts of many rules at once, two classes or K, and which of the rules meet every risk and floor of a target.

| counts | rule | family |
|---|---|---|
| Exits | exit as 0 iff s < lo, as 1 iff s > hi | two_thresholds.py |
| ClassExits | exit as the likeliest class iff the confidence passes that class's threshold | class_thresholds.py |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stage1.policy.target import Request
from stage1.risk import binomial_lower, binomial_pvalue, binomial_upper, minimum_samples
from stage1.risk.definition import cells
from stage1.risk.risks import RISKS, risk_of
from stage1.risk.stratified import (
    Strata,
    stated_error,
    stratified_minimum,
    stratified_passes,
    stratified_upper,
    weighted_share_passes,
    weighted_share_upper,
)

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
        errors, trials = (self._sum(chosen) for chosen in cells(RISKS[name]))
        return errors, trials

    def _sum(self, chosen: Bools) -> Ints:
        """Images in the chosen cells (risk/risks.py, two classes), int [T]; chosen: bool [2, 3]."""
        (as_zero, as_one, defers), (missed, right, deferred) = chosen.tolist()
        parts = [
            counts
            for own, counts in (
                (as_zero, self.right_negative),
                (as_one, self.false_exit),
                (missed, self.miss),
                (right, self.right_positive),
            )
            if own
        ]
        if defers:
            parts.append(self.negatives - self.right_negative - self.false_exit)
        if deferred:
            parts.append(self.positives - self.miss - self.right_positive)
        return np.asarray(sum(parts[1:], start=parts[0] if parts else np.zeros_like(self.miss)))

    @property
    def exits(self) -> Ints:
        return self.miss + self.right_positive + self.false_exit + self.right_negative

    @property
    def strata(self) -> Strata:
        """The same counts by class: wrong answers among exits."""
        one, zero = self.miss + self.right_positive, self.false_exit + self.right_negative
        return Strata.of(self.miss, one, self.positives, self.false_exit, zero, self.negatives)

    @property
    def deferrals(self) -> Strata:
        """Images of each class that do not exit, among all of it."""
        one, zero = (np.full(len(self.miss), members) for members in (self.positives, self.negatives))
        exit1, exit0 = self.miss + self.right_positive, self.false_exit + self.right_negative
        return Strata.of(one - exit1, one, self.positives, zero - exit0, zero, self.negatives)

    def take(self, rows: slice) -> Exits:
        """The counts of some of the pairs."""
        return replace(
            self,
            miss=self.miss[rows],
            right_positive=self.right_positive[rows],
            false_exit=self.false_exit[rows],
            right_negative=self.right_negative[rows],
        )


def count_exits(negatives: Floats, positives: Floats, lo: Floats, hi: Floats) -> Exits:
    """Exits of each pair (lo, hi): as 0 iff s < lo, as 1 iff s > hi; -inf and +inf: that side never exits.

    negatives, positives: scores of each class, any order. lo, hi: float [T].

    >>> negatives, positives = np.array([-2.0, 0.0, 2.0]), np.array([-2.0, 1.0, 2.0])
    >>> exits = count_exits(negatives, positives, np.array([-1.0]), np.array([1.5]))
    >>> [int(column[0]) for column in exits.counts("fnr")]
    [1, 2]
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


def risk_upper(exits: Exits, name: str, delta: float, prior: float | None, target: float | None = None) -> Floats:
    """Upper bound of a risk at confidence 1 - delta, float [T]: exact binomial, or for `error` at `prior`.

    exits: T threshold pairs; 1.0 where a risk has no trial. prior: P(y = 1) of the target, None: as in the sample.
    target: the bound is at most this exactly where `certifies` says so.
    """
    if name == "error" and prior is not None:
        return stratified_upper(exits.strata, prior, delta, target)
    return binomial_upper(*exits.counts(name), delta)


def observed_risk(exits: Exits, name: str, prior: float | None) -> list[float | None]:
    """Share of wrong answers of each pair, `error` at `prior` with each class weighed to it; None: no trial."""
    if name == "error" and prior is not None:
        rates = stated_error(exits.strata, prior)
    else:
        errors, trials = exits.counts(name)
        rates = np.divide(errors, trials, out=np.full(len(errors), np.nan), where=trials > 0)
    return [None if np.isnan(rate) else float(rate) for rate in rates]


def needed_exits(exits: Exits, name: str, prior: float | None, target: float, delta: float) -> int:
    """Smallest number of trials that certifies `target` with 0 errors; `error` at `prior`: in the classes' shares here.

    exits: of one pair. Where no number in these shares does, the one of a sample with that balance.
    """
    found = None
    if name == "error" and prior is not None:
        found = stratified_minimum(exits.strata, prior, target, delta)
    return minimum_samples(target, delta) if found is None else found


def coverage_lower(exits: Exits, prior: float | None, delta: float) -> Floats:
    """Lower bound of P(exit), float [T]: exact binomial, or at P(y = 1) = prior (risk/stratified.py)."""
    if prior is None:
        return binomial_lower(exits.exits, exits.positives + exits.negatives, delta)
    return np.asarray(1.0 - weighted_share_upper(exits.deferrals, prior, delta))


def coverage_holds(exits: Exits, floor: float, prior: float | None, delta: float) -> Bools:
    """Where at least `floor` exits at confidence 1 - delta, bool [T]; the same as coverage_lower >= floor."""
    if prior is None:
        return np.asarray(coverage_lower(exits, None, delta) >= floor)
    return weighted_share_passes(exits.deferrals, prior, 1.0 - floor, delta)


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
            passed &= stratified_passes(exits.strata, prior, target, delta)
        else:
            errors, trials = exits.counts(name)
            passed &= binomial_pvalue(errors, trials, target) <= delta
    return passed


Labels = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ClassExits:
    """Exit counts of T rules on one sample, float [T, K] each: whole where counted, expectations where modelled.

    as_class: images that exit as each class; right: of them, those whose class it is; of_class: images of each true
    class that exit. members: float [K], images of each true class, exiting or not.
    """

    as_class: Floats
    right: Floats
    of_class: Floats
    members: Floats

    def counts(self, name: str, classes: Sequence[str]) -> tuple[Floats, Floats]:
        """(errors, trials) of a risk, float [T] each."""
        risk, index = risk_of(name, classes)
        errors, trials = cells(risk, of_many=True)
        return self._sum(errors, index), self._sum(trials, index)

    def _sum(self, chosen: Bools, index: int) -> Floats:
        """Exits of the chosen cells (risk/risks.py, three classes), from the sums that are kept: float [T].

        Each cell is a difference of such sums, so most of them cancel; what is left is added first, then subtracted.
        chosen: bool [3, 4]; class 0 is `index`, 1 and 2 are the others, which are alike.
        """
        (own, missed, _, own_defers), (as_own, others, others_wrong, others_defer) = chosen[:2].astype(int).tolist()
        sums: list[tuple[int, Callable[[], Floats]]] = [
            (as_own - others_wrong, lambda: self.as_class[:, index]),
            (missed + others_defer - others_wrong - own_defers, lambda: self.of_class[:, index]),
            (own_defers - others_defer, lambda: np.full_like(self.exits, self.members[index])),
            (others_wrong - others_defer, lambda: self.exits),
            (others_defer, lambda: np.full_like(self.exits, self.total)),
            (own + 2 * others_wrong - as_own - missed - others, lambda: self.right[:, index]),
            (others - others_wrong, lambda: np.asarray(self.right.sum(axis=1))),
        ]
        added = [times * values() for times, values in sums if times > 0]
        taken = [times * values() for times, values in sums if times < 0]
        return np.asarray(sum((*added[1:], *taken), start=added[0]))

    @property
    def exits(self) -> Floats:
        return np.asarray(self.as_class.sum(axis=1))

    @property
    def total(self) -> float:
        return float(self.members.sum())


def count_class_exits(confidence: Floats, answer: Labels, labels: Labels, thresholds: Floats) -> ClassExits:
    """Exits under each row of thresholds: row i exits as answer[i] iff confidence[i] > thresholds[t, answer[i]].

    confidence: float [N]; answer, labels: int [N] in 0..K-1. thresholds: float [T, K], never rising along T, so that
    what exits once exits from there on; +inf: that class never exits.
    """
    steps, k = thresholds.shape
    first = np.full(len(confidence), steps)
    for index in range(k):
        own = answer == index
        first[own] = np.searchsorted(-thresholds[:, index], -confidence[own], side="right")

    def grown(rows: Bools, column: Labels) -> Floats:
        table = np.zeros((steps + 1, k))
        np.add.at(table, (first[rows], column[rows]), 1.0)
        return np.asarray(table[:steps].cumsum(axis=0))

    everyone = np.ones(len(confidence), dtype=np.bool_)
    return ClassExits(
        as_class=grown(everyone, answer),
        right=grown(answer == labels, answer),
        of_class=grown(everyone, labels),
        members=np.bincount(labels, minlength=k).astype(np.float64),
    )


def never_wrong(name: str, classes: Sequence[str], open_classes: Bools) -> Bools:
    """Where the wrong answers of a risk cannot be given, bool [T]; open_classes: bool [T, K], classes that may exit.

    wrong.c: nothing exits as c. fnr.c, miss_rate.c: nothing exits as another class. error: nothing exits.
    """
    risk, index = risk_of(name, classes)
    errors, _ = cells(risk, of_many=True)
    as_own, as_others = errors[:, 0].any(), errors[:, 1:].any()
    given = np.zeros(len(open_classes), dtype=np.bool_)
    if as_own:
        given |= open_classes[:, index]
    if as_others:
        given |= np.delete(open_classes, index, axis=1).any(axis=1)
    return np.asarray(~given)


def risks_hold(
    exits: ClassExits, targets: Mapping[str, float], classes: Sequence[str], delta: float, open_classes: Bools
) -> Bools:
    """Which rules certify every risk at delta, bool [T]: the union null, p = max of the exact tails.

    A risk whose wrong answers cannot be given holds whatever the data, but a rule under which nothing may exit holds
    nothing.
    """
    passed = np.asarray(open_classes.any(axis=1))
    for name, target in targets.items():
        errors, trials = exits.counts(name, classes)
        closed = never_wrong(name, classes, open_classes)
        passed &= (binomial_pvalue(errors, trials, target) <= delta) | (closed & (errors == 0))
    return passed


def class_floors_hold(exits: ClassExits, request: Request, delta: float) -> Bools:
    """Which rules reach every floor on coverage, bool [T] (union null: all floors of a rule at the full delta)."""
    held = np.ones(len(exits.as_class), dtype=np.bool_)
    if request.coverage is not None:
        held &= binomial_lower(exits.exits, exits.total, delta) >= request.coverage
    for name, floor in request.class_coverage.items():
        index = list(request.classes).index(name)
        held &= binomial_lower(exits.of_class[:, index], exits.members[index], delta) >= floor
    return held
