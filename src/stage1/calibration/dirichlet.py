"""Dirichlet calibration with off-diagonal and intercept regularisation, ODIR (Kull et al. 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from stage1.calibration.folds import fold_of_rows
from stage1.calibration.maps import (
    CalibrationMap,
    FloatArray,
    capped_log_softmax,
    checked_fit,
    finite,
    log_softmax,
    provenance,
    refuse_separable,
)
from stage1.calibration.solver import minimise
from stage1.errors import ConfigError, DataError
from stage1.scores import Scores

# Strongest first: each fit starts at the one before it. lam and mu weigh means of squares over the parameters.
GRID = tuple(product((10.0, 1.0, 0.1, 0.01), (1.0, 0.01)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dirichlet(CalibrationMap):
    """softmax(W ln p + b): every class's log-probability may speak for every class. K >= 2; for K = 2 it is the beta
    map with a = W11 - W01, b = W00 - W10, c = b1 - b0. ln p is cut at ln 2.2e-16.

    weights: W, K rows of K; shifts: b; lam, mu: the penalties it was fitted with.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 3, 300)
    >>> scores = Scores(rng.normal(size=(300, 3)) + 2 * np.eye(3)[labels], labels=labels)
    >>> Dirichlet.fit(scores).calibrate(scores).probabilities.shape
    (300, 3)
    """

    weights: tuple[tuple[float, ...], ...]
    shifts: tuple[float, ...]
    lam: float
    mu: float

    name: ClassVar[str] = "dirichlet"

    def __post_init__(self) -> None:
        finite(self.weights, "weights", (self.n_classes, self.n_classes))
        finite(self.shifts, "shifts", (self.n_classes,))
        _check_penalties(self.lam, self.mu)

    @classmethod
    def fit(
        cls, scores: Scores, *, lam: float | None = None, mu: float | None = None, folds: int = 3, seed: int = 0
    ) -> Self:
        """Least mean NLL + `odir_penalty`, L-BFGS from the identity.

        lam, mu: >= 0; None for both: the pair of GRID with the least NLL over `folds` folds (groups whole), ties to the
        stronger. Raises DataError without labels, where a class has no row or every row is right, ConfigError where
        only one of lam and mu is given or one is negative.
        """
        labels = checked_fit(scores, cls.name)
        if (lam is None) != (mu is None):
            raise ConfigError(f"dirichlet: lam={lam}, mu={mu}; give both or neither")
        features = capped_log_softmax(scores.logits)
        if lam is None or mu is None:
            lam, mu = _best_penalties(features, labels, fold_of_rows(scores, folds, seed))
        _check_penalties(lam, mu)
        weights, shifts = _fit(features, labels, lam, mu, None)
        fitted = cls(
            weights=tuple(map(tuple, weights.tolist())),
            shifts=tuple(shifts.tolist()),
            lam=lam,
            mu=mu,
            **provenance(scores),
        )
        refuse_separable(fitted._log_probabilities(scores.logits), labels, cls.name)
        return fitted

    def refit(self, scores: Scores) -> Self:
        return type(self).fit(scores, lam=self.lam, mu=self.mu)

    @property
    def monotone(self) -> bool:
        if self.n_classes != 2:
            return False
        (w00, w01), (w10, w11) = self.weights
        a, b = w11 - w01, w00 - w10
        return a >= 0 and b >= 0 and a + b > 0

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            "weights": [list(row) for row in self.weights],
            "shifts": list(self.shifts),
            "lam": self.lam,
            "mu": self.mu,
        }

    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        return log_softmax(capped_log_softmax(logits) @ np.array(self.weights).T + np.array(self.shifts))


def odir_penalty(weights: FloatArray, shifts: FloatArray, lam: float, mu: float) -> float:
    """lam / (K (K - 1)) sum_{i != j} W_ij^2 + mu / K sum b_j^2. weights: [K, K], shifts: [K]. Kull et al. 2019.

    >>> odir_penalty(np.array([[1.0, 0.2], [0.2, 1.0]]), np.array([0.5, -0.5]), lam=0.1, mu=0.1)
    0.029
    """
    k = len(shifts)
    off = weights - np.diag(np.diag(weights))
    return float(lam / (k * (k - 1)) * (off**2).sum() + mu / k * (shifts**2).sum())


def _fit(
    features: FloatArray,
    labels: NDArray[np.int64],
    lam: float,
    mu: float,
    start: FloatArray | None,
    tolerance: float = 1e-8,
) -> tuple[FloatArray, FloatArray]:
    n, k = features.shape
    # Classes along the first axis: sums over few classes are then sums of long rows
    inputs = np.ascontiguousarray(np.column_stack([features, np.ones(n)]).T)
    # d penalty / d theta = 2 * strength * theta
    strength = np.full((k, k + 1), lam / (k * (k - 1)))
    np.fill_diagonal(strength, 0.0)
    strength[:, k] = mu / k
    # sum over rows of the inputs of each true class: the part of the gradient that never changes
    of_truth = np.stack([inputs[:, labels == index].sum(axis=1) for index in range(k)])

    def objective(flat: FloatArray) -> tuple[float, FloatArray]:
        theta = flat.reshape(k, k + 1)
        logits = theta @ inputs
        top = logits.max(axis=0)
        weights = np.exp(logits - top)
        total = weights.sum(axis=0)
        value = float((top + np.log(total)).sum() - (of_truth * theta).sum()) / n
        weights /= total
        gradient = (weights @ inputs.T - of_truth) / n + 2.0 * strength * theta
        return value + float((strength * theta**2).sum()), gradient.reshape(-1)

    if start is None:
        start = np.eye(k, k + 1)
    theta = minimise(objective, start.reshape(-1), tolerance=tolerance).reshape(k, k + 1)
    return theta[:, :k], theta[:, k]


def _best_penalties(features: FloatArray, labels: NDArray[np.int64], fold: NDArray[np.int64]) -> tuple[float, float]:
    loss = np.zeros(len(GRID))
    for held_out in np.unique(fold):
        inside, outside = fold != held_out, fold == held_out
        start = None
        for index, (lam, mu) in enumerate(GRID):
            # Coarser than the final fit (within 1e-5 of its loss here): it only ranks the pairs
            weights, shifts = _fit(features[inside], labels[inside], lam, mu, start, tolerance=1e-4)
            start = np.column_stack([weights, shifts])
            log_p = log_softmax(features[outside] @ weights.T + shifts)
            loss[index] -= log_p[np.arange(int(outside.sum())), labels[outside]].sum()
    return GRID[int(loss.argmin())]


def _check_penalties(lam: float, mu: float) -> None:
    for name, value in (("lam", lam), ("mu", mu)):
        if not np.isfinite(value) or value < 0:
            raise DataError(f"{name}: {value}; a penalty is a number >= 0")
