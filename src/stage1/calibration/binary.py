"""Platt and beta maps of a binary score: logistic regression on the score, or on ln p and ln(1 - p)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from stage1.calibration.maps import (
    CalibrationMap,
    FloatArray,
    binary_log_probabilities,
    check_slopes,
    checked_fit,
    finite,
    provenance,
    refuse_separable,
)
from stage1.calibration.solver import logistic
from stage1.scores import Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Platt(CalibrationMap):
    """P(class 1) = sigma(slope * s + shift), slope >= 0, s = logit_1 - logit_0 (Platt 1999). K = 2.

    smoothing: fitted against (n1 + 1) / (n1 + 2) and 1 / (n0 + 2) instead of 1 and 0. That keeps the slope finite when
    the classes do not overlap, and is Platt's own form.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 400)
    >>> scores = Scores(np.stack([0 * labels, 3 * rng.normal(2 * labels - 1, 1)], axis=1), labels=labels)
    >>> {name: round(value, 2) for name, value in Platt.fit(scores).parameters.items()}
    {'slope': 0.67, 'shift': 0.27, 'smoothing': 1}
    """

    slope: float
    shift: float
    smoothing: bool = True

    name: ClassVar[str] = "platt"

    def __post_init__(self) -> None:
        check_slopes(slope=self.slope)
        finite(self.shift, "shift", ())

    @classmethod
    def fit(cls, scores: Scores, *, smoothing: bool = True) -> Self:
        """Least cross-entropy with slope >= 0.

        Raises DataError without labels, for K > 2, where a class has no row, or, without smoothing, where the classes
        do not overlap.
        """
        labels = checked_fit(scores, cls.name, binary=True)
        ones = int(labels.sum())
        high, low = ((ones + 1) / (ones + 2), 1 / (len(labels) - ones + 2)) if smoothing else (1.0, 0.0)
        slopes, shift = logistic(scores.margin[:, None], np.where(labels == 1, high, low), [0.0])
        fitted = cls(slope=float(slopes[0]), shift=shift, smoothing=smoothing, **provenance(scores))
        if not smoothing:
            refuse_separable(fitted._log_probabilities(scores.logits), labels, "platt without smoothing")
        return fitted

    def refit(self, scores: Scores) -> Self:
        return type(self).fit(scores, smoothing=self.smoothing)

    @property
    def monotone(self) -> bool:
        return self.slope > 0

    @property
    def constrained(self) -> tuple[str, ...]:
        return () if self.slope > 0 else ("slope",)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"slope": self.slope, "shift": self.shift, "smoothing": self.smoothing}

    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        return binary_log_probabilities(self.slope * (logits[:, 1] - logits[:, 0]) + self.shift)


@dataclass(frozen=True, slots=True, kw_only=True)
class Beta(CalibrationMap):
    """P(class 1) = sigma(a ln p - b ln(1 - p) + c), a, b >= 0, p = sigma(s) (Kull et al. 2017). K = 2.

    a acts on low scores (ln p is nearly s there), b on high ones: a slope for each end. a = b is the Platt map.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 400)
    >>> scores = Scores(np.stack([0 * labels, 3 * rng.normal(2 * labels - 1, 1)], axis=1), labels=labels)
    >>> Beta.fit(scores).monotone
    True
    """

    a: float
    b: float
    c: float

    name: ClassVar[str] = "beta"

    def __post_init__(self) -> None:
        check_slopes(a=self.a, b=self.b)
        finite(self.c, "c", ())

    @classmethod
    def fit(cls, scores: Scores) -> Self:
        """Least NLL with a, b >= 0.

        Raises DataError without labels, for K > 2, where a class has no row, or where the classes do not overlap.
        """
        labels = checked_fit(scores, cls.name, binary=True)
        (a, b), c = logistic(_beta_features(scores.margin), labels.astype(np.float64), [0.0, 0.0])
        fitted = cls(a=float(a), b=float(b), c=c, **provenance(scores))
        refuse_separable(fitted._log_probabilities(scores.logits), labels, cls.name)
        return fitted

    @property
    def monotone(self) -> bool:
        return self.a + self.b > 0

    @property
    def constrained(self) -> tuple[str, ...]:
        return tuple(name for name in ("a", "b") if getattr(self, name) == 0)

    @property
    def parameters(self) -> dict[str, Any]:
        return {"a": self.a, "b": self.b, "c": self.c}

    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        features = _beta_features(logits[:, 1] - logits[:, 0])
        return binary_log_probabilities(features @ np.array([self.a, self.b]) + self.c)


def _beta_features(margin: FloatArray) -> FloatArray:
    """[ln p, -ln(1 - p)] of p = sigma(margin), float [N, 2]: exact where p rounds to 0 or 1."""
    return np.stack([-np.logaddexp(0.0, -margin), np.logaddexp(0.0, margin)], axis=1)
