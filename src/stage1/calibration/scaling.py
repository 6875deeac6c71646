"""Temperature and vector scaling: one slope for all classes, or a slope and a shift for each (Guo et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from stage1.calibration.maps import (
    CalibrationMap,
    FloatArray,
    capped_log_softmax,
    check_slopes,
    checked_fit,
    finite,
    log_softmax,
    provenance,
    refuse_separable,
)
from stage1.calibration.solver import minimise
from stage1.errors import DataError
from stage1.scores import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Temperature(CalibrationMap):
    """softmax(slope * z), slope = 1 / T >= 0. K >= 2. Never changes the largest class of a row while slope > 0.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 400)
    >>> scores = Scores(np.stack([0 * labels, 3 * rng.normal(2 * labels - 1, 1)], axis=1), labels=labels)
    >>> {name: round(value, 2) for name, value in Temperature.fit(scores).parameters.items()}
    {'slope': 0.69}
    """

    slope: float

    name: ClassVar[str] = "temperature"

    def __post_init__(self) -> None:
        check_slopes(slope=self.slope)

    @classmethod
    def fit(cls, scores: Scores) -> Self:
        """The slope of least NLL; convex, so a root of its derivative. 0 where the scores point the wrong way.

        Raises DataError without labels, where a class has no row, or where every row is right (T = 0 is best then).
        """
        labels = checked_fit(scores, cls.name)
        return cls(slope=_best_slope(scores.logits, labels), **provenance(scores))

    @property
    def temperature(self) -> float:
        """T; infinity where the slope is 0."""
        return 1.0 / self.slope if self.slope > 0 else float("inf")

    @property
    def monotone(self) -> bool:
        return self.n_classes == 2 and self.slope > 0

    @property
    def keeps_order(self) -> bool:
        return self.slope > 0

    @property
    def constrained(self) -> tuple[str, ...]:
        return () if self.slope > 0 else ("slope",)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"slope": self.slope}

    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        return log_softmax(self.slope * (logits - logits.max(axis=1, keepdims=True)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Vector(CalibrationMap):
    """softmax(slopes * ln p + shifts), one slope >= 0 and one shift per class; K > 2.

    On log-probabilities, not on raw logits: those are known only up to a constant per row, which unequal slopes would
    turn into evidence. For logits that are log-probabilities this is vector scaling as published. The first shift is 0.
    ln p is cut at ln 2.2e-16.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 3, 300)
    >>> scores = Scores(rng.normal(size=(300, 3)) + 2 * np.eye(3)[labels], labels=labels)
    >>> Vector.fit(scores).keeps_order
    False
    """

    slopes: tuple[float, ...]
    shifts: tuple[float, ...]

    name: ClassVar[str] = "vector"

    def __post_init__(self) -> None:
        finite(self.slopes, "slopes", (self.n_classes,))
        finite(self.shifts, "shifts", (self.n_classes,))
        check_slopes(**{f"slopes.{index}": value for index, value in enumerate(self.slopes)})

    @classmethod
    def fit(cls, scores: Scores) -> Self:
        """Least NLL with slopes >= 0, L-BFGS-B from the identity.

        Raises DataError without labels, where a class has no row, for K = 2 (use beta), or where every row is right.
        """
        labels = checked_fit(scores, cls.name)
        k = scores.n_classes
        if k == 2:
            raise DataError("vector: two classes; a slope per class is the beta map then, use beta")
        features = capped_log_softmax(scores.logits)
        truth = np.eye(k)[labels]

        def objective(theta: FloatArray) -> tuple[float, FloatArray]:
            log_p = log_softmax(features * theta[:k] + np.append(0.0, theta[k:]))
            gap = (np.exp(log_p) - truth) / len(truth)
            return -float((truth * log_p).sum()) / len(truth), np.append((gap * features).sum(0), gap.sum(0)[1:])

        start = np.append(np.ones(k), np.zeros(k - 1))
        theta = minimise(objective, start, np.append(np.zeros(k), np.full(k - 1, -np.inf)))
        fitted = cls(slopes=tuple(theta[:k].tolist()), shifts=(0.0, *theta[k:].tolist()), **provenance(scores))
        refuse_separable(fitted._log_probabilities(scores.logits), labels, cls.name)
        return fitted

    @property
    def monotone(self) -> bool:
        return False

    @property
    def constrained(self) -> tuple[str, ...]:
        return tuple(f"slopes.{index}" for index, value in enumerate(self.slopes) if value == 0)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"slopes": list(self.slopes), "shifts": list(self.shifts)}

    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        return log_softmax(capped_log_softmax(logits) * np.array(self.slopes) + np.array(self.shifts))


def _best_slope(logits: FloatArray, labels: NDArray[np.int64]) -> float:
    """argmin over a >= 0 of mean(logsumexp(a z) - a z_y)."""
    from scipy.optimize import brentq

    # 0 is the largest of each row, so that exp never overflows
    relative = logits - logits.max(axis=1, keepdims=True)
    own = relative[np.arange(len(labels)), labels]
    if (own == 0.0).all():
        raise DataError(
            f"temperature: no row of {len(labels)} is wrong, so its slope has no finite best value; use platt (two "
            "classes) or more rows"
        )

    def derivative(slope: float) -> float:
        weights = np.exp(slope * relative)
        return float(((weights * relative).sum(axis=1) / weights.sum(axis=1) - own).mean())

    if derivative(0.0) >= 0.0:
        return 0.0
    high = 1.0
    while derivative(high) <= 0.0:
        high *= 2.0
    low = high / 2.0 if high > 1.0 else 0.0
    return float(brentq(derivative, low, high, xtol=1e-14, rtol=1e-14))
