"""Coverage, error and pooled metrics at another class balance, from the rates within each class, which do not move."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.evaluation.intervals import SCALES, Interval, Metric, Statistic, check_options, read_interval
from stage1.evaluation.label_shift import checked_shares
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking
from stage1.evaluation.resampling import draws, left_out, units
from stage1.evaluation.t_interval import SMALL_STRATUM, too_few


@dataclass(frozen=True, slots=True)
class ClassRates:
    """What does not move with the balance. exits: P(exit | y = k), errors: P(exit and wrong | y = k); [K] each."""

    exits: tuple[float, ...]
    errors: tuple[float, ...]

    def __post_init__(self) -> None:
        leaves, wrong = np.asarray(self.exits, dtype=np.float64), np.asarray(self.errors, dtype=np.float64)
        fits = leaves.shape == wrong.shape and leaves.ndim == 1 and len(leaves) >= 2
        if not fits or not ((wrong >= 0) & (wrong <= leaves) & (leaves <= 1)).all():
            raise DataError(
                f"rates: exits {self.exits}, errors {self.errors}; 0 <= errors <= exits <= 1 for each class"
            )

    @classmethod
    def binary(cls, *, m: float, c: float, f: float, t: float) -> Self:
        """m, c: P(exit as 0, as 1 | y = 1); f, t: P(exit as 1, as 0 | y = 0)."""
        return cls(exits=(f + t, m + c), errors=(f, m))

    @classmethod
    def measured(
        cls, decision_exit: ArrayLike, decision_label: ArrayLike, labels: ArrayLike, n_classes: int = 2
    ) -> Self:
        """Observed rates. Arrays [N] as in `exit_rates`. Raises DataError where a class has no row."""
        leaves, truth = np.asarray(decision_exit, dtype=np.bool_), np.asarray(labels)
        wrong = leaves & (np.asarray(decision_label) != truth)
        masks = [truth == index for index in range(n_classes)]
        if empty := [index for index, rows in enumerate(masks) if not rows.any()]:
            raise DataError(f"labels: no row of class {empty[0]}; its exits are needed to restate the balance")
        return cls(
            exits=tuple(float(leaves[rows].mean()) for rows in masks),
            errors=tuple(float(wrong[rows].mean()) for rows in masks),
        )


class Restated(NamedTuple):
    """coverage: P(exit); error: P(wrong | exit), None where nothing exits."""

    coverage: float
    error: float | None


def restate(prior: ArrayLike, rates: ClassRates) -> Restated:
    """Coverage and error of an exit rule where the classes have the shares `prior` (P(class 1), or [K]).

    R_sel = (pi m + (1 - pi) f) / (pi (m + c) + (1 - pi) (f + t)) for two classes.

    >>> found = restate(0.5, ClassRates.binary(m=0.01, c=0.6, f=0.02, t=0.7))
    >>> round(found.coverage, 6), round(found.error, 6)
    (0.665, 0.022556)
    """
    shares = checked_shares(prior, "prior", len(rates.exits))
    coverage = float(shares @ np.array(rates.exits))
    return Restated(coverage, float(shares @ np.array(rates.errors)) / coverage if coverage > 0 else None)


def restate_between(low: float, high: float, rates: ClassRates) -> tuple[Restated, Restated]:
    """(least, greatest) coverage and error while P(class 1) is in [low, high]; two classes.

    Both are monotone in P(class 1), so the ends decide. Raises DataError for K > 2 or low > high.

    >>> ends = restate_between(0.1, 0.5, ClassRates.binary(m=0.01, c=0.6, f=0.02, t=0.7))
    >>> [round(end.error, 4) for end in ends]
    [0.0226, 0.0268]
    """
    if len(rates.exits) != 2 or not low <= high:
        raise DataError(f"prior: {low}..{high} for {len(rates.exits)} classes; give low <= high, two classes")
    ends = [restate(low, rates), restate(high, rates)]
    errors = [end.error for end in ends if end.error is not None]
    coverages = [end.coverage for end in ends]
    return (
        Restated(min(coverages), min(errors, default=None)),
        Restated(max(coverages), max(errors, default=None)),
    )


# ---- with intervals ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ClassCounts:
    """Of n rows of each class, those that exit and those that exit wrongly; int [K] each."""

    n: tuple[int, ...]
    exits: tuple[int, ...]
    errors: tuple[int, ...]

    def __post_init__(self) -> None:
        n, exits, errors = np.array(self.n), np.array(self.exits), np.array(self.errors)
        if (
            len({n.shape, exits.shape, errors.shape}) > 1
            or not ((errors >= 0) & (errors <= exits) & (exits <= n)).all()
        ):
            raise DataError(
                f"counts: n {self.n}, exits {self.exits}, errors {self.errors}; errors <= exits <= n needed"
            )
        if (n == 0).any():
            raise DataError(
                f"labels: no row of class {int((n == 0).argmax())}; its exits are needed to restate the balance"
            )

    @classmethod
    def counted(
        cls, decision_exit: ArrayLike, decision_label: ArrayLike, labels: ArrayLike, n_classes: int = 2
    ) -> Self:
        """From decisions, arrays [N] as in `exit_rates`. Raises DataError where a class has no row."""
        leaves, truth = np.asarray(decision_exit, dtype=np.bool_), np.asarray(labels)
        wrong = leaves & (np.asarray(decision_label) != truth)
        columns = (np.bincount(truth[rows], minlength=n_classes) for rows in (slice(None), leaves, wrong))
        return cls(*(tuple(map(int, column)) for column in columns))

    @property
    def rates(self) -> ClassRates:
        """The observed rates."""
        n = np.array(self.n)
        return ClassRates(tuple((np.array(self.exits) / n).tolist()), tuple((np.array(self.errors) / n).tolist()))


def restated_interval(
    priors: ArrayLike, counts: ClassCounts, level: float = 0.95
) -> tuple[tuple[float, float], tuple[float, float]]:
    """Intervals (low, high) of coverage and of error, each at `level`, at a balance that is itself estimated.

    priors: [K] where the balance is stated, or replicates of an estimate, float [R, K]. Each class rate has its exact
    binomial bound, all of them jointly (Bonferroni); an estimated balance takes half of 1 - level, by percentiles of
    the replicates. Coverage rises with every class's exits; error rises with its wrong exits and falls with its right
    ones: the ends are taken there. So it is conservative, for independent rows; error up to 1 where nothing is known
    to exit. Raises DataError for shares that are none.

    >>> covered, wrong = restated_interval([0.5, 0.5], ClassCounts(n=(500, 500), exits=(400, 350), errors=(4, 5)))
    >>> [round(end, 3) for end in covered], [round(end, 3) for end in wrong]
    ([0.704, 0.792], [0.002, 0.036])
    """
    from stage1.risk import binomial_lower, binomial_upper

    check_options(1, level, 0)
    shares: NDArray[np.float64] = np.atleast_2d(np.asarray(priors, dtype=np.float64))
    k = len(counts.n)
    if shares.shape[1] != k or not (shares >= 0).all() or (np.abs(shares.sum(axis=1) - 1.0) > 1e-6).any():
        raise DataError(f"priors: shape {shares.shape} for {k} classes; give shares >= 0 that sum to 1")
    side = (1.0 - level) / 2
    of_prior, of_rates = (0.0, side) if len(shares) == 1 else (side / 2, side / 2)
    n, exits, wrong = np.array(counts.n), np.array(counts.exits), np.array(counts.errors)
    right = exits - wrong

    def ratio(bad: FloatArray, good: FloatArray) -> FloatArray:
        total = shares @ bad + shares @ good
        return np.asarray(np.divide(shares @ bad, total, out=np.ones(len(shares)), where=total > 0))

    part = of_rates / (2 * k)
    covered = (shares @ binomial_lower(exits, n, of_rates / k), shares @ binomial_upper(exits, n, of_rates / k))
    wrongly = (
        ratio(binomial_lower(wrong, n, part), binomial_upper(right, n, part)),
        ratio(binomial_upper(wrong, n, part), binomial_lower(right, n, part)),
    )

    def outwards(low: FloatArray, high: FloatArray) -> tuple[float, float]:
        return (
            float(np.quantile(low, of_prior, method="lower")),
            float(np.quantile(high, 1.0 - of_prior, method="higher")),
        )

    return outwards(*covered), outwards(*wrongly)


def restated_metrics(
    metrics: Mapping[str, Metric | Statistic | str],
    *,
    confidence: FloatArray,
    residuals: ArrayLike,
    labels: NDArray[np.int64],
    groups: ArrayLike | None,
    prior: ArrayLike,
    replicates: FloatArray | None = None,
    n_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Interval]:
    """Metrics of labelled rows, [N], where the classes have the shares `prior`: rows weighed, as in `prior_weights`.

    metrics, confidence, residuals, labels, groups: as in `bootstrap`. replicates: float [R, K], of the estimate of the
    prior; None: it is stated, without uncertainty. A replicate of the rows (groups whole, within labels) meets one of
    the prior, so that their spread holds both uncertainties (rows and prior from different samples); the interval is a
    t interval of it. The classes have just these shares in every replicate. NaN where undefined; no interval where
    fewer than half of the replicates are defined, or there are too few units (`note`).
    Raises DataError (a class of positive share without rows, a prior that is none), ConfigError (options).
    """
    check_options(n_resamples, level, seed)
    k = int(np.asarray(prior).size) if np.ndim(prior) else 2
    shares = checked_shares(prior, "prior", k)
    present = np.bincount(labels, minlength=k)
    if len(present) > k or (shares[present == 0] > 0).any():
        raise DataError(
            f"labels: rows per class {present.tolist()} for shares {shares.tolist()}; each share needs rows"
        )
    wrong = np.asarray(residuals, dtype=np.float64)
    ranking = Ranking(np.asarray(confidence, dtype=np.float64), wrong)
    statistics = {
        name: metric
        if isinstance(metric, Statistic)
        else Statistic(_built_in(ranking, metric), SCALES[metric])
        if isinstance(metric, str)
        else Statistic(metric)
        for name, metric in metrics.items()
    }

    def measured(counts: FloatArray, at: FloatArray) -> dict[str, FloatArray] | None:
        mass = np.bincount(labels, counts, k)
        # A class that a replicate of groups left out cannot be weighed up: its share goes to the others.
        weights = counts * np.divide(at, mass, out=np.zeros(k), where=mass > 0)[labels]
        if not weights.any():
            return None
        weights *= len(labels) / weights.sum()
        return {name: np.asarray(one.measure(confidence, wrong, weights)) for name, one in statistics.items()}

    plan = units(len(labels), labels, groups)
    found: list[dict[str, FloatArray]] = []
    without: dict[int, list[dict[str, FloatArray]]] = {}
    with np.errstate(invalid="ignore"):
        value = measured(np.ones(len(labels)), shares)
        assert value is not None  # a class of positive share has rows
        number = 0
        for batch in draws(plan, len(labels), n_resamples, seed) if len(plan) > 1 else ():
            for row in plan.rows(batch):
                at = shares if replicates is None else replicates[number % len(replicates)]
                number += 1
                if (one := measured(row.astype(np.float64), at)) is not None:
                    found.append(one)
        for index, stratum in enumerate(plan.strata if len(plan) > 1 else ()):
            if len(stratum) <= SMALL_STRATUM:
                rows = plan.rows(left_out(plan, index)).astype(np.float64)
                without[index] = [one for row in rows if (one := measured(row, shares)) is not None]
    short = too_few(tuple(map(len, plan.strata)), "images" if len(plan) == len(labels) else "groups")
    return {
        name: read_interval(
            statistic,
            value[name],
            np.array([one[name] for one in found]).reshape(len(found), *value[name].shape),
            level,
            n_resamples,
            plan,
            {index: np.array([one[name] for one in parts]) for index, parts in without.items() if parts},
            short=short,
        )
        for name, statistic in statistics.items()
    }


def _built_in(ranking: Ranking, name: str) -> Metric:
    return lambda c, r, w: float(STATISTICS[name](ranking.accept(w[None, :]))[0])
