"""How many labelled images a target takes, before any is labelled: by exact tails, and for a wanted chance of success.

`plan` counts what an exact test needs at given numbers of errors. `plan_success` finds the number of units at which the
tests pass with the wanted probability, with class counts and exits at random.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, sqrt

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError
from stage1.risk.bounds import binomial_pvalue
from stage1.risk.risks import RISKS, closed_forms
from stage1.risk.testing import minimum_samples


@dataclass(frozen=True, slots=True)
class ClassNeed:
    """What one risk asks of one class in val_calib.

    counted: independent images that must be counted by the test with `errors` wrong; in_class: images of the class for
    that, at the expected exit rate; in_total: images of any class for that, at the prior.

    >>> need = plan({"fnr": 0.02}, exit_rates=(0.7, 0.8), errors=(0,))[0]
    >>> need.side, need.counted, need.in_class, need.in_total
    ('positive', 149, 187, 374)
    """

    risk: str
    target: float
    side: str  # "positive" or "negative": the class whose images are counted
    errors: int
    counted: int
    in_class: int
    in_total: int


def shared_delta(confidence: float, risks: int) -> float:
    """delta of each of `risks` tests on independent classes so that all hold jointly at `confidence` (Sidak).

    >>> round(shared_delta(0.95, 1), 4), round(shared_delta(0.95, 2), 4)
    (0.05, 0.0253)
    """
    return 1.0 - confidence if risks == 1 else 1.0 - sqrt(confidence)


def delta_of_each(risks: Collection[str], confidence: float) -> float:
    """What each risk's own test may spend: shared where each class has one risk and a rule of its own, else all of it.

    Two ratios, or two risks of one class, are tested together along a path: a pair is refused where one test fails
    (union null), and every test has the whole delta.

    >>> [round(delta_of_each(risks, 0.95), 4) for risks in ({"fnr"}, {"fnr", "false_exit_rate"}, {"fnr", "fpr"})]
    [0.05, 0.0253, 0.05]
    """
    forms = closed_forms()
    sides = {forms[name].side for name in risks if name in forms}
    by_class = len(risks) == len(sides) == 2 and set(risks) != {"fnr", "fpr"}
    return shared_delta(confidence, len(risks)) if by_class else 1.0 - confidence


def plan(
    risks: Mapping[str, float],
    *,
    confidence: float = 0.95,
    prior: float = 0.5,
    exit_rates: tuple[float, float] = (0.7, 0.7),
    errors: tuple[int, ...] = (0, 1, 2, 5),
) -> list[ClassNeed]:
    """Images per class that each risk needs, for several numbers of errors to be survived.

    risks: name -> target. prior: P(y = 1) where the images come from. exit_rates: expected share of (negatives,
    positives) that exit on their right side. The n is of independent units: images, or groups where they cluster.
    Raises ConfigError for an unknown risk or a rate outside (0, 1]. Source: exact binomial, ALGORITHMS 2.1.

    >>> needs = plan({"fnr": 0.02, "false_exit_rate": 0.05}, errors=(0,))
    >>> [(need.risk, need.counted, need.in_class) for need in needs]
    [('fnr', 182, 260), ('false_exit_rate', 72, 72)]
    """
    if not 0 < prior < 1:
        raise ConfigError(f"prior: must lie strictly between 0 and 1, got {prior}")
    delta, forms = delta_of_each(risks, confidence), closed_forms()
    needs = []
    for name, target in risks.items():
        if name not in forms:
            raise ConfigError(
                f"risk {name!r}: has no closed form; use {', '.join(forms)}, or pilot scores (stage1 plan --scores"
                " FILE)"
            )
        side, only_exits = forms[name].side, forms[name].among == "exits"
        rate = exit_rates[1 if side == "positive" else 0] if only_exits else 1.0
        if not 0 < rate <= 1:
            raise ConfigError(f"exit rate of the {side} class: must lie in (0, 1], got {rate}")
        share = prior if side == "positive" else 1 - prior
        for allowed in errors:
            counted = minimum_samples(target, delta, allowed)
            # - 1e-9: 72 / (1 - 0.8) is 360 and a float's noise
            in_class = ceil(counted / rate - 1e-9)
            needs.append(ClassNeed(name, target, side, allowed, counted, in_class, ceil(in_class / share - 1e-9)))
    return needs


Floats = NDArray[np.float64]
_MOST = 10**8


@dataclass(frozen=True, slots=True)
class SuccessNeed:
    """What one risk, truly `expected`, takes to pass its test with the wanted probability.

    counted: smallest number of counted units that does it, and every larger one too (the exact tail is a saw: one unit
    more can make a test fail that just passed). in_class, in_total: smallest number of units of the class, of any
    class, where only how many of them are counted is left to chance (exit rate; prior). success: what in_total reaches.
    """

    risk: str
    target: float
    expected: float
    side: str
    counted: int
    in_class: int
    in_total: int
    success: float


@dataclass(frozen=True, slots=True)
class SuccessPlan:
    """in_total: smallest number of units for which the certificate passes as a whole with probability `wanted`.

    success: what it reaches; per_class: expected (negatives, positives) among them; needs: each risk alone.
    """

    wanted: float
    in_total: int
    success: float
    per_class: tuple[int, int]
    needs: tuple[SuccessNeed, ...]


@dataclass(frozen=True, slots=True)
class _Trial:
    """One risk's test: errors ~ Bin(counted, expected), passed iff the exact tail at `target` is at most delta."""

    risk: str
    target: float
    expected: float
    side: str
    rate: float
    delta: float

    def passes(self, counted: NDArray[np.int64]) -> Floats:
        """P(the test passes) for each number of counted units, float like counted."""
        if not len(counted):
            return np.empty(0)
        steps = _steps(self.target, self.delta, 1 << int(counted.max()).bit_length())
        allowed = np.searchsorted(steps, counted, side="right") - 1
        errors = np.clip(np.minimum(allowed, counted), 0, None)
        return np.asarray(np.where(allowed >= 0, binomial_pvalue(errors, counted, self.expected), 0.0))

    def passes_in_class(self, members: NDArray[np.int64]) -> Floats:
        """The same for each number of units of the class, of which Bin(members, rate) are counted."""
        if self.rate == 1.0 or not len(members):
            return self.passes(members)
        first = _window(int(members.min()), self.rate)[0]
        passed = self.passes(np.arange(first, _window(int(members.max()), self.rate)[1] + 1))
        chances = []
        for size in members.tolist():
            low, high = _window(size, self.rate)
            chances.append(
                float(_mass(size, self.rate, np.arange(low, high + 1)) @ passed[low - first : high + 1 - first])
            )
        return np.array(chances)


def success_probability(
    n: int,
    risks: Mapping[str, float],
    expected: Mapping[str, float],
    *,
    confidence: float = 0.95,
    prior: float = 0.5,
    exit_rates: tuple[float, float] = (0.7, 0.7),
) -> float:
    """P(every risk passes its exact test) with n units, of which Bin(n, prior) are positive.

    risks: name -> target. expected: name -> true risk at the thresholds. exit_rates: share of (negatives, positives)
    that is counted by a ratio. Given the class counts the classes are independent; two risks of one class are not,
    there the probability is bounded from below (Bonferroni). The thresholds are taken as fixed: a rule that chooses
    them on the same units gives way where errors are many, and passes more often with less coverage; for that, plan
    from pilot scores.
    Raises ConfigError as plan does, and for an expected risk outside (0, 1).

    >>> risks, expected = {"fnr": 0.02, "false_exit_rate": 0.05}, {"fnr": 0.005, "false_exit_rate": 0.01}
    >>> round(success_probability(2000, risks, expected), 3)
    0.944
    """
    return _joint(n, _trials(risks, expected, confidence, prior, exit_rates), prior)


def plan_success(
    risks: Mapping[str, float],
    expected: Mapping[str, float],
    *,
    success: float = 0.9,
    confidence: float = 0.95,
    prior: float = 0.5,
    exit_rates: tuple[float, float] = (0.7, 0.7),
) -> SuccessPlan:
    """Units that the certificate takes to pass with probability `success`; arguments as success_probability.

    Raises ConfigError where an expected risk is not below its target: then no number of units is enough.

    >>> found = plan_success({"miss_rate": 0.05}, {"miss_rate": 0.01}, success=0.9)
    >>> round(success_probability(found.in_total, {"miss_rate": 0.05}, {"miss_rate": 0.01}), 2)
    0.9
    """
    if not 0 < success < 1:
        raise ConfigError(f"success: must lie strictly between 0 and 1, got {success}")
    trials = _trials(risks, expected, confidence, prior, exit_rates)
    for trial in trials:
        if trial.expected >= trial.target:
            raise ConfigError(
                f"expected {trial.risk}: {trial.expected:g} is not below its target {trial.target:g}; no number of"
                " units certifies that"
            )
    needs = []
    for trial in trials:
        counted = _always(trial, success)
        in_class = counted
        if trial.rate < 1.0:
            in_class = _smallest(lambda n, trial=trial: float(trial.passes_in_class(np.array([n]))[0]), success)  # type: ignore[misc]
        in_total = _smallest(lambda n, trial=trial: _joint(n, [trial], prior), success)  # type: ignore[misc]
        needs.append(
            SuccessNeed(
                trial.risk,
                trial.target,
                trial.expected,
                trial.side,
                counted,
                in_class,
                in_total,
                _joint(in_total, [trial], prior),
            )
        )
    total = max(need.in_total for need in needs)
    if len(trials) > 1:
        total = _smallest(lambda n: _joint(n, trials, prior), success, total)
    positives = round(total * prior)
    return SuccessPlan(success, total, _joint(total, trials, prior), (total - positives, positives), tuple(needs))


def _trials(
    risks: Mapping[str, float],
    expected: Mapping[str, float],
    confidence: float,
    prior: float,
    exit_rates: tuple[float, float],
) -> list[_Trial]:
    delta = delta_of_each(risks, confidence)
    trials = []
    for need in plan(risks, confidence=confidence, prior=prior, exit_rates=exit_rates, errors=(0,)):
        true = expected.get(need.risk)
        if true is None or not 0 < true < 1:
            raise ConfigError(f"expected {need.risk}: must lie strictly between 0 and 1, got {true}")
        only_exits = RISKS[need.risk].among == "exits"
        rate = exit_rates[1 if need.side == "positive" else 0] if only_exits else 1.0
        trials.append(_Trial(need.risk, need.target, true, need.side, rate, delta))
    return trials


def _joint(n: int, trials: list[_Trial], prior: float) -> float:
    if len(trials) == 1:  # chance twice over is chance once: Bin(Bin(n, share), rate) = Bin(n, share * rate)
        kept = trials[0].rate * (prior if trials[0].side == "positive" else 1.0 - prior)
        low, high = _window(n, kept)
        return float(_mass(n, kept, np.arange(low, high + 1)) @ trials[0].passes(np.arange(low, high + 1)))
    low, high = _window(n, prior)
    positives = np.arange(low, high + 1)
    passed = np.ones(len(positives))
    for side, members in (("positive", positives), ("negative", n - positives)):
        own = [trial.passes_in_class(members) for trial in trials if trial.side == side]
        if own:  # one risk: its chance; several of a class: at least this (Bonferroni)
            passed *= np.maximum(1.0 - sum(1.0 - chance for chance in own), 0.0)
    return float(_mass(n, prior, positives) @ passed)


def _always(trial: _Trial, success: float) -> int:
    """Smallest n from which on the test passes with probability >= success."""
    high = minimum_samples(trial.target, trial.delta)
    while True:
        counted = np.arange(1, 4 * high + 1)
        failing = np.flatnonzero(trial.passes(counted) < success)
        # The saw's lower edge rises: where it stayed above for three quarters of the range, it stays.
        if len(failing) == 0 or counted[failing[-1]] < high:
            return int(counted[failing[-1]]) + 1 if len(failing) else 1
        high *= 2
        if high > _MOST:
            raise ConfigError(
                f"expected {trial.risk}: {trial.expected:g} is too near to its target {trial.target:g}; {_MOST:,} units"
                " are not enough"
            )


def _smallest(chance: Callable[[int], float], success: float, low: int = 1) -> int:
    """Smallest n >= low with chance(n) >= success: doubling, bisection, then upwards past the saw."""
    if chance(low) >= success:
        return low
    high = max(2 * low, 16)
    while chance(high) < success:
        low, high = high, 2 * high
        if high > _MOST:
            raise ConfigError(
                f"success {success:g}: more than {_MOST:,} units are needed; expect less risk, or allow more"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if chance(middle) >= success else (middle, high)
    return high


@lru_cache(maxsize=64)
def _steps(target: float, delta: float, most: int) -> NDArray[np.int64]:
    """minimum_samples(target, delta, k) for k = 0, 1, ... up to `most`, int [K]."""
    steps: list[int] = []
    while not steps or steps[-1] <= most:
        steps.append(minimum_samples(target, delta, len(steps)))
    return np.array(steps)


def _window(n: int, share: float) -> tuple[int, int]:
    """Where Bin(n, share) lies but for 1e-11 or so."""
    spread = 7.0 * sqrt(n * share * (1.0 - share)) + 8.0
    return max(0, int(n * share - spread)), min(n, ceil(n * share + spread))


def _mass(n: int, share: float, values: NDArray[np.int64]) -> Floats:
    """P(Bin(n, share) = v) for each v, 0 outside 0..n."""
    from scipy import special

    inside = np.clip(values, 0, n)
    log = (
        special.gammaln(n + 1)
        - special.gammaln(inside + 1)
        - special.gammaln(n - inside + 1)
        + special.xlogy(inside, share)
        + special.xlog1py(n - inside, -share)
    )
    return np.where((values >= 0) & (values <= n), np.exp(log), 0.0)
