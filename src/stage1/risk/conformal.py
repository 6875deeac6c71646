"""Conformal risk control, plain and after selection (SCRC): thresholds that bound the loss on the next sample.

| function | promise | over | samples are |
|---|---|---|---|
| crc_threshold | E[loss] <= alpha on the next sample | both | exchangeable |
| inductive_threshold (SCRC-I) | P(selected) >= xi and P(loss given selected) <= alpha | calibration sets | i.i.d. |
| transductive_thresholds (SCRC-T) | P(selected) >= xi and E[loss given selected] <= alpha | both | exchangeable |

"Both" is calibration set and sample together. SCRC-I holds jointly with probability >= 1 - d1 - d2. SCRC selects by
confidence g, then sets a floor on a score of the true class, below which the class is left out of the set (a loss of
1). In the notation of the paper tau = 1 - lambda_1 and floor = 1 - lambda_2, on any increasing scale.

Source: Angelopoulos et al. 2022 (conformal risk control); for SCRC Xu, Guo and Wei 2025 (arXiv 2512.12844), in the
corrected forms of ALGORITHMS 1.5. The SCRC rule as published allows one loss more, ceil((m + 1) alpha) - 1, and its
code takes a percentile for tau: both break the promise (tests/risk/test_scrc.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, inf

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.late import library
from stage1.risk.testing import order_statistic_rank

special = library("scipy.special")

_SLACK = 1e-9


def crc_threshold(losses: ArrayLike, lambdas: ArrayLike, alpha: float, loss_bound: float = 1.0) -> float | None:
    """Smallest lambda with (sum of the n losses + loss_bound) / (n + 1) <= alpha, or None where there is none.

    losses: float [n, L] in [0, loss_bound], column l at lambdas[l], non-increasing along the row. lambdas: float [L],
    rising (larger = more conservative). Then E[loss of sample n + 1 at that lambda] <= alpha, over calibration set and
    sample together, where they are exchangeable: a mean over calibration sets, not a promise about the given one.
    A sum that equals the limit counts as feasible. "None is feasible" and "the first is feasible" are distinct.
    Raises DataError naming the argument: shapes, NaN, a loss outside its range or rising, alpha outside (0,
    loss_bound).
    Source: Angelopoulos et al. 2022 (conformal risk control), theorem 1.

    >>> losses = [[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 0, 0]]
    >>> crc_threshold(losses, lambdas=[0.1, 0.5, 0.9], alpha=0.4)
    0.5
    """
    table = np.asarray(losses, dtype=np.float64)
    grid: NDArray[np.float64] = np.asarray(lambdas, dtype=np.float64)
    if table.ndim != 2 or not table.size or grid.shape != table.shape[1:]:
        raise DataError(f"losses {table.shape}, lambdas {grid.shape}: [n, L] and [L] with n, L >= 1 are expected")
    if not np.isfinite(table).all() or (table < 0).any() or (table > loss_bound).any():
        raise DataError(f"losses: must be finite and in [0, {loss_bound:g}] (loss_bound)")
    if not np.isfinite(grid).all() or (np.diff(grid) <= 0).any():
        raise DataError("lambdas: must be finite and rising")
    if (np.diff(table, axis=1) > _SLACK).any():
        raise DataError("losses: must not rise along a row; order lambdas from the riskiest to the most conservative")
    if not 0 < alpha < loss_bound:
        raise DataError(f"alpha: must lie strictly between 0 and loss_bound={loss_bound:g}, got {alpha}")
    n = len(table)
    # Float sums of exact fractions (0.1 * 10) must not turn "equal" into "above".
    feasible = table.sum(axis=0) + loss_bound <= alpha * (n + 1) * (1 + _SLACK)
    return float(grid[int(np.argmax(feasible))]) if feasible.any() else None


Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Selection:
    """SCRC-I selects g > tau. above: calibration samples selected; given tau they are i.i.d. from P(. | g > tau).

    rank: the coverage rank. tau = -inf: everything is selected. ties: calibration samples whose confidence equals tau.
    """

    tau: float
    above: int
    rank: int
    ties: int
    spare: int

    @property
    def covers(self) -> bool:
        """True where coverage >= xi follows: no tie at tau has taken more than the spare ranks away."""
        return self.tau == -inf or self.above >= self.rank - (self.spare == 0)


@dataclass(frozen=True, slots=True)
class SelectiveThreshold:
    """tau and floor of SCRC-I. selected: members selected; allowed: losses among them that certify (-1: none).

    floor = -inf: not even zero losses certify, so the true class is never left out (the loss is 0 and the set full).
    """

    tau: float
    floor: float
    selected: int
    allowed: int
    covers: bool


def coverage_rank(n: int, coverage: float, delta: float) -> int:
    """r = min{r : P(Bin(n, coverage) >= r) <= delta}, from 1 to n + 1.

    P(g > r-th largest of n confidences) ~ Beta(r, n + 1 - r) for continuous g, so it is below `coverage` with
    probability at most delta. n + 1: only selecting everything has that coverage. Raises DataError for n < 0 or a rate
    outside (0, 1).

    >>> coverage_rank(100, 0.7, 0.05)
    78
    """
    _check_rate(coverage, "coverage")
    _check_rate(delta, "delta")
    if n < 0:
        raise DataError(f"n: must be >= 0, got {n}")
    low, high = 0, n + 1  # P(Bin >= low) > delta >= P(Bin >= high)
    while high - low > 1:
        middle = (low + high) // 2
        if float(special.bdtrc(middle - 1, n, coverage)) <= delta:
            high = middle
        else:
            low = middle
    return high


def allowed_losses(m: int, alpha: float) -> int:
    """0/1 losses among m exchangeable samples with E[loss of the next] <= alpha: floor((m + 1) alpha) - 1, -1 for none.

    The bound that they prove is (allowed + 1) / (m + 1). Raises DataError for m < 0 or alpha outside (0, 1).
    Source: Angelopoulos et al. 2022, theorem 1: losses + 1 <= alpha (m + 1).

    >>> allowed_losses(99, 0.05), allowed_losses(10, 0.05)
    (4, -1)
    """
    _check_rate(alpha, "alpha")
    if m < 0:
        raise DataError(f"m: must be >= 0, got {m}")
    # 1e-12: 20 * 0.05 is 1 and a float's noise
    return min(floor((m + 1) * alpha + 1e-12) - 1, m - 1)


def class_floor(truth: ArrayLike, allowed: int) -> float:
    """Largest floor with at most `allowed` scores below it: the (allowed + 1)-th smallest; -inf for allowed < 0.

    truth: float [m], score of the true class of each sample; 0 <= allowed < m, or negative. Ties at the floor stay in.

    >>> class_floor([0.2, 0.9, 0.5], allowed=1)
    0.5
    """
    values = _finite(truth, "truth")
    if allowed < 0:
        return -inf
    if allowed >= len(values):
        raise DataError(f"allowed: {allowed} losses among {len(values)} samples put no floor anywhere")
    return float(np.partition(values, allowed)[allowed])


def inductive_selection(confidence: ArrayLike, coverage: float, delta: float, spare: int = 0) -> Selection:
    """tau = the (coverage rank + spare)-th largest confidence; select g > tau.

    confidence: float [n]. spare: ranks added so that ties at tau do not cost the coverage. It must be fixed before the
    confidences are seen (a function of n will do): a rank that depends on ties would bias what is above it. With
    spare = 0 the coverage claim needs a continuous g; with spare >= 1 it holds for any g where `covers` is True.

    >>> rows = np.linspace(0, 1, 101)
    >>> round(inductive_selection(rows, coverage=0.7, delta=0.05).tau, 2)
    0.22
    """
    # Why any g: coverage(t) = P(g > t) and the count N(t) above t both fall with t and are right-continuous. If
    # coverage(tau) < xi, tau is at or beyond t* = inf{t : coverage(t) < xi}, so N(t*) >= N(tau) >= r with
    # coverage(t*) <= xi: probability <= delta, whatever rule chose tau.
    values = _finite(confidence, "confidence")
    rank = coverage_rank(len(values), coverage, delta)
    place = rank + spare
    if place > len(values):
        return Selection(-inf, len(values), rank, 0, spare)
    tau = float(np.partition(values, len(values) - place)[len(values) - place])
    return Selection(tau, int((values > tau).sum()), rank, int((values == tau).sum()), spare)


def inductive_threshold(
    confidence: ArrayLike,
    truth: ArrayLike,
    *,
    coverage: float,
    alpha: float,
    delta_coverage: float,
    delta_risk: float,
    members: ArrayLike | None = None,
    spare: int = 0,
) -> SelectiveThreshold:
    """SCRC-I: tau by the coverage rank, then the least conservative floor whose exact binomial tail certifies.

    confidence, truth: float [n], g and the score of the true class. members: bool [n], count only these (say one class:
    the risk is then that among selected members); None: all. The floor is the k-th smallest truth among the m selected
    members, k - 1 the largest number of losses with P(Bin(m, alpha) <= k - 1) <= delta_risk; the loss is monotone in
    the floor, so no multiplicity is paid. Raises DataError naming the argument.
    """
    g, score, counted = _columns(confidence, truth, members)
    selection = inductive_selection(g, coverage, delta_coverage, spare)
    chosen = score[(g > selection.tau) & counted]
    allowed = order_statistic_rank(len(chosen), alpha, delta_risk) - 1
    return SelectiveThreshold(selection.tau, class_floor(chosen, allowed), len(chosen), allowed, selection.covers)


def transductive_cuts(confidence: ArrayLike, coverage: float) -> tuple[float, float]:
    """(lower, upper): all that SCRC-T needs of the n calibration confidences, for every test sample.

    tau of n + 1 points is their M-th largest, M = ceil(coverage (n + 1)), so with the M-th and (M - 1)-th largest of
    the n alone tau = clip(g, lower, upper) for a test confidence g: it is selected iff g >= lower, and beside it the
    calibration samples >= upper are, or those >= lower where g equals lower. -inf and inf where there is no such rank.

    >>> transductive_cuts([0.9, 0.8, 0.7, 0.6], coverage=0.5)
    (0.7, 0.8)
    """
    values = np.sort(_finite(confidence, "confidence"))[::-1]
    _check_rate(coverage, "coverage")
    n = len(values)
    place = ceil(coverage * (n + 1) - 1e-9)
    return float(values[place - 1]) if place <= n else -inf, float(values[place - 2]) if place >= 2 else inf


def transductive_thresholds(
    confidence: ArrayLike,
    truth: ArrayLike,
    test_confidence: ArrayLike,
    *,
    coverage: float,
    alpha: float,
    members: ArrayLike | None = None,
) -> tuple[Bools, Floats]:
    """SCRC-T: (selected bool [T], floor float [T]) of each of T test samples, each treated as the only one.

    confidence, truth: float [n] of the calibration set; test_confidence: float [T]; members as in inductive_threshold.
    floor: with allowed_losses(m, alpha) losses among the m members selected together with that test sample; -inf where
    not even zero are allowed (full set, no loss), NaN where it is not selected. Raises DataError naming the argument.
    """
    g, score, counted = _columns(confidence, truth, members)
    test = _finite(test_confidence, "test_confidence")
    lower, upper = transductive_cuts(g, coverage)

    def floor_from(tau: float) -> float:
        chosen = score[(g >= tau) & counted]
        return class_floor(chosen, allowed_losses(len(chosen), alpha))

    selected = test >= lower
    floors = np.where(test == lower, floor_from(lower), floor_from(upper))
    return selected, np.where(selected, floors, np.nan)


def _columns(confidence: ArrayLike, truth: ArrayLike, members: ArrayLike | None) -> tuple[Floats, Floats, Bools]:
    g, score = _finite(confidence, "confidence"), _finite(truth, "truth")
    counted = np.ones(len(g), dtype=np.bool_) if members is None else np.asarray(members)
    if counted.dtype != np.bool_ or not g.shape == score.shape == counted.shape:
        raise DataError(
            f"confidence {g.shape}, truth {score.shape}, members {counted.dtype} {counted.shape}: "
            "equal lengths are expected, members as booleans"
        )
    return g, score, counted


def _finite(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not np.isfinite(array).all():
        raise DataError(f"{name}: shape {array.shape}; one dimension of finite numbers is expected")
    return array


def _check_rate(value: float, name: str) -> None:
    if not 0 < value < 1:
        raise DataError(f"{name}: must lie strictly between 0 and 1, got {value}")
