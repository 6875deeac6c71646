"""What can be promised of the answers of the whole cascade, every image answered: exact bounds on val_calib.

One configuration fixed beforehand is tested once; or, with exit: auto, configurations are tested in the order that
val_select gave them, from where all passes most likely towards fewer deferred, each at the whole delta, until the first
that fails.
All risks of one configuration are tested together (p = max), so each may spend the whole delta. A failed call is part
of the policy: its image is answered by the stage before, and counted as answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.cascade.rules import Recorded, Rule, final_answers
from stage1.policy.group_means import minimum_groups, risk_rows
from stage1.policy.units import choose_unit, clustered, one_per_group
from stage1.risk import binomial_pvalue, binomial_upper, minimum_samples
from stage1.risk.clusters import group_layout, group_order, group_power, group_shares, shares_pvalue, shares_upper
from stage1.risk.stratified import Strata, weighted_share_passes, weighted_share_upper
from stage1.risk.testing import fixed_sequence
from stage1.scores import Scores

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
_MARGIN = 0.1  # as in policy/group_means.py: the costly mistake is to bet where images of a group agree


@dataclass(frozen=True, slots=True)
class Risk:
    """One risk of the whole. target: None where an upper bound was asked for. observed: of counted units, None: none.

    errors among n counted images; bound: upper bound at 1 - delta, in a certificate whose targets hold of all risks
    together (policy/joint.py). needed: units of the class that certify with no error.
    """

    name: str
    target: float | None
    observed: float | None
    bound: float
    errors: int
    n: int
    delta: float
    needed: int | None

    @property
    def holds(self) -> bool:
        return self.target is None or self.bound <= self.target


@dataclass(frozen=True, slots=True)
class Sample:
    """Counted units of val_calib: images, one image of each group, or all images by group means.

    rows: int [N] of the role's rows; labels: int [N]; layout: groups in order of testing, for group means alone.
    """

    unit: str
    rows: Ints
    labels: Ints
    groups: NDArray[np.str_] | None
    seed: int

    def __len__(self) -> int:
        return len(self.rows) if self.groups is None else len(np.unique(self.groups))

    @classmethod
    def of(cls, labelled: Scores, unit: str, seed: int) -> Sample:
        """unit: image, group or group_mean (policy/units.py)."""
        rows = one_per_group(labelled, seed) if unit == "group" else np.arange(len(labelled), dtype=np.int64)
        groups = labelled.groups if unit == "group_mean" else None
        return cls(unit, rows, labelled.known_labels[rows], groups, seed)

    def shares(self, wrong: Bools, trial: Bools | None) -> tuple[Floats, Floats]:
        assert self.groups is not None
        return group_shares(wrong, trial, group_layout(self.groups, group_order(self.groups, self.seed)))


@dataclass(frozen=True, slots=True)
class Tested:
    """place: of the chosen configuration among those tested, None: the first fails. passed: places that passed."""

    place: int | None
    passed: tuple[int, ...]


def walk_in_order(
    sample: Sample, answers: Bools, targets: Mapping[str, float], delta: float, prior: float | None, start: int
) -> Tested:
    """Fixed-sequence testing of C configurations in order from `start`; answers: bool [N, C] of the sample's rows."""
    passed = np.ones(answers.shape[1], dtype=np.bool_)
    for name, target in targets.items():
        passed &= _passes(sample, name, answers, target, delta, prior)
    place = fixed_sequence(passed, start)
    return Tested(place, () if place is None else tuple(range(start, place + 1)))


def measure(
    sample: Sample, answers: Bools, targets: Mapping[str, float | None], delta: float, prior: float | None
) -> dict[str, Risk]:
    """Each risk of one configuration with its upper bound at 1 - delta; answers: bool [N] of the sample's rows."""
    return {name: _measured(sample, name, answers, target, delta, prior) for name, target in targets.items()}


def counted_unit(labelled: Scores, unit: str, assume_iid: bool) -> str:
    """Raises ConfigError where images of one group would be counted as independent."""
    return choose_unit(labelled, unit, assume_iid)


def better_unit(
    select: Scores, answers: Bools, targets: Mapping[str, float], delta: float, n_groups: int, seed: int
) -> str:
    """ "group" or "group_mean": likelier to certify, by val_select alone; answers: bool [N] of the first candidate."""
    if select.groups is None or not clustered(select) or not len(select):
        return "group"
    single = means = 1.0
    for name, target in targets.items():
        wrong, trial = _rows(name, select.known_labels, answers)
        power = group_power(wrong, trial, select.groups, target, delta, n_groups_calib=n_groups, seed=seed)
        single, means = single * power.one_per_group, means * power.betting
    return "group_mean" if means > single + _MARGIN else "group"


def answers_of(recorded: Recorded, configurations: Sequence[tuple[Rule, ...]], default_probability: float) -> Bools:
    """Answers of the whole under each configuration, bool [N, C]: the second class."""
    columns = [final_answers(recorded, rules, default_probability).positive for rules in configurations]
    return np.stack(columns, axis=1) if columns else np.zeros((len(recorded), 0), dtype=np.bool_)


# ---- one risk ----------------------------------------------------------------------------------------------------

_PARTS = ("miss_rate", "false_exit_rate")


def _rows(name: str, labels: Ints, positive: Bools) -> tuple[Bools, Bools | None]:
    wide = labels if positive.ndim == 1 else labels[:, None]
    wrong, trial = risk_rows(name, wide, ~positive, positive)
    return np.asarray(wrong), None if trial is None else np.broadcast_to(trial, positive.shape)


def _strata(labels: Ints, answers: Bools) -> Strata:
    """Wrong answers among all images of each class, under C configurations; answers: bool [N, C]."""
    positives = int((labels == 1).sum())
    wrong1, wrong0 = (~answers[labels == 1]).sum(axis=0), answers[labels == 0].sum(axis=0)
    one, zero = np.full(len(wrong1), positives), np.full(len(wrong0), len(labels) - positives)
    return Strata.of(wrong1, one, positives, wrong0, zero, len(labels) - positives)


def _passes(sample: Sample, name: str, answers: Bools, target: float, delta: float, prior: float | None) -> Bools:
    if name == "error" and sample.groups is None:
        assert prior is not None, "error is stated at a prior (config)"
        return weighted_share_passes(_strata(sample.labels, answers), prior, target, delta)
    if name == "error":
        bounds = [
            _measured(sample, name, answers[:, column], target, delta, prior).bound
            for column in range(answers.shape[1])
        ]
        return np.array(bounds) <= target
    wrong, trial = _rows(name, sample.labels, answers)
    if sample.groups is not None:
        return np.asarray(shares_pvalue(*sample.shares(wrong, trial), target) <= delta)
    assert trial is not None, "every image is answered, so the trials are the members of the class"
    return np.asarray(binomial_pvalue(wrong.sum(axis=0), trial.sum(axis=0), target) <= delta)


def _measured(
    sample: Sample, name: str, positive: Bools, target: float | None, delta: float, prior: float | None
) -> Risk:
    wrong, trial = _rows(name, sample.labels, positive)
    errors, n = int(wrong.sum()), len(positive) if trial is None else int(trial.sum())
    if name == "error":
        assert prior is not None, "error is stated at a prior (config)"
        # Every image is answered, so the error is a fixed mixture of the two rates. By group means each has half of
        # delta; else it is tested as one (risk/stratified.py).
        miss, false = (_measured(sample, part, positive, None, delta / 2, None) for part in _PARTS)
        bound = prior * miss.bound + (1 - prior) * false.bound
        if sample.groups is None:
            strata = _strata(sample.labels, positive[:, None])
            bound = float(weighted_share_upper(strata, prior, delta)[0])
            if target is not None and weighted_share_passes(strata, prior, target, delta)[0]:
                bound = min(bound, target)  # found by bisection, from above
        seen = None
        if miss.observed is not None and false.observed is not None:
            seen = prior * miss.observed + (1 - prior) * false.observed
        return Risk(name, target, seen, bound, errors, n, delta, None)
    if sample.groups is None:
        bound = float(binomial_upper(errors, n, delta))
        needed = None if target is None else minimum_samples(target, delta)
        return Risk(name, target, errors / n if n else None, bound, errors, n, delta, needed)
    shares, idle = sample.shares(wrong, trial)
    bound = shares_upper(shares, idle, delta, target=target)
    counted = float((1 - idle).sum())
    needed = None if target is None else minimum_groups(target, delta)
    return Risk(name, target, float(shares.sum()) / counted if counted else None, bound, errors, n, delta, needed)
