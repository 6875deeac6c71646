"""What every calibration map is: from raw scores to probabilities, frozen, the same everywhere it is applied.

The identity is defined here too: the map that needs no fit, for where no map lowered the loss or none was asked for. It
is written all the same, so that a missing file never means "none".
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.calibration.schema import CALIBRATION_KIND
from stage1.errors import DataError
from stage1.scores import Scores
from stage1.storage.documents import write_document
from stage1.storage.files import digest_ids

FloatArray = NDArray[np.float64]
_LARGEST = 1e100


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationMap(ABC):
    """A fitted map. Its class says the formula, its fields the parameters.

    n: rows it was fitted on; n_classes: K of the logits it takes; fitted_on: sha256 of the ids of those rows, or None.
    Every map is a function of the softmax probabilities alone: a constant added to a row of logits changes nothing.

    >>> from stage1.calibration import fit_map
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 400)
    >>> scores = Scores(np.stack([0 * labels, 3 * rng.normal(2 * labels - 1, 1)], axis=1), labels=labels)
    >>> found = fit_map("temperature", scores)
    >>> found.name, found.monotone, found.calibrate(scores).n_classes
    ('temperature', True, 2)
    """

    n: int
    n_classes: int
    fitted_on: str | None = None

    name: ClassVar[str]

    @property
    @abstractmethod
    def monotone(self) -> bool:
        """True only where K = 2 and P(class 1) rises strictly with the raw score logit_1 - logit_0.

        Then a threshold on the raw score is a threshold on the probability. For K > 2 no map promises it: even a
        temperature reorders the top probabilities of different rows.
        """

    @property
    def keeps_order(self) -> bool:
        """Whether thresholds on the raw scores are valid with the mapped probability: K = 2: `monotone`.

        K > 2: the map never exchanges two classes of a row, so that the raw answer is the mapped answer too; how sure
        one row is beside another may still change. Else decisions and probability would contradict each other, and
        thresholds belong on the mapped score.
        """
        return self.monotone

    @property
    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """The parameters as plain JSON values."""

    @abstractmethod
    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        """float [N, K] -> float [N, K], arguments checked."""

    @classmethod
    @abstractmethod
    def fit(cls, scores: Scores) -> Self:
        """The map of this kind that fits labelled scores best. Each class says how, with which options and errors."""

    @classmethod
    def from_parameters(
        cls, parameters: Mapping[str, Any], *, n: int, n_classes: int, fitted_on: str | None
    ) -> CalibrationMap:
        """The inverse of `parameters`. Raises TypeError or DataError for values that are no parameters of this map."""
        values = {name: _tuples(value) for name, value in parameters.items()}
        return cls(**values, n=n, n_classes=n_classes, fitted_on=fitted_on)

    def refit(self, scores: Scores) -> Self:
        """The same kind of map with the same options, fitted on other scores (bootstrap)."""
        return type(self).fit(scores)

    @property
    def constrained(self) -> tuple[str, ...]:
        """Slopes that the fit held at 0, because the data asked for a map that falls where the score rises."""
        return ()

    def log_probabilities(self, logits: ArrayLike) -> FloatArray:
        """Natural logs of `apply`, float [N, K]; finite also where the probability itself rounds to 0.

        Raises DataError for another number of classes, NaN or infinity.
        """
        return self._log_probabilities(_checked_logits(logits, self.n_classes))

    def apply(self, logits: ArrayLike) -> FloatArray:
        """Calibrated probabilities, float [N, K], rows sum to 1. logits: float [N, K]. Errors: `log_probabilities`."""
        return np.asarray(np.exp(self.log_probabilities(logits)))

    def calibrate(self, scores: Scores) -> Scores:
        """The same rows with calibrated logits (log-probabilities): what a policy on the mapped score works on."""
        from dataclasses import replace

        return replace(scores, logits=self.log_probabilities(scores.logits))

    def to_document(self) -> dict[str, Any]:
        """Plain values for calibration.json: name, parameters, n, n_classes, fitted_on, monotone, constrained."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "n": self.n,
            "n_classes": self.n_classes,
            "fitted_on": self.fitted_on,
            "monotone": self.monotone,
            "constrained": list(self.constrained),
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write calibration.json, whole or not at all."""
        write_document(path, self.to_document(), CALIBRATION_KIND)


# ---- what the maps share -----------------------------------------------------------------------------------------


def provenance(scores: Scores) -> dict[str, Any]:
    """n, n_classes and fitted_on of a map fitted on these scores."""
    ids = None if scores.ids is None else digest_ids(scores.ids.tolist())
    return {"n": len(scores), "n_classes": scores.n_classes, "fitted_on": ids}


def checked_fit(scores: Scores, name: str, *, binary: bool = False) -> NDArray[np.int64]:
    """The labels. Raises DataError without labels, where a class has no row, for K > 2 where binary is True, or for
    logits that cannot be squared."""
    labels = scores.known_labels
    if len(scores) and (largest := np.abs(scores.logits).max()) > _LARGEST:
        raise DataError(
            f"{name}: a logit of size {largest:.3g}; no map can be fitted beyond {_LARGEST:.0e}, drop these rows"
        )
    if binary and scores.n_classes != 2:
        raise DataError(
            f"{name}: {scores.n_classes} classes; this map is for two, use temperature, vector or dirichlet"
        )
    missing = np.flatnonzero(np.bincount(labels, minlength=scores.n_classes) == 0)
    if len(missing):
        raise DataError(f"{name}: no row of class {missing[0]} among {len(labels)}; a map needs rows of every class")
    return labels


def finite(values: Any, name: str, shape: tuple[int, ...]) -> FloatArray:
    """Parameters as an array of this shape. Raises DataError for another shape, NaN or infinity."""
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: not numbers of shape {shape} ({error})") from error
    if array.shape != shape or not np.isfinite(array).all():
        raise DataError(f"{name}: shape {array.shape}; finite numbers of shape {shape} expected")
    return array


def check_slopes(**slopes: float) -> None:
    """Raises DataError for a negative slope: such a map would answer the opposite of the model."""
    for name, value in slopes.items():
        finite(value, name, ())
        if value < 0:
            raise DataError(f"{name}: {value} is negative; the map would fall where the score rises, fit it again")


def log_softmax(logits: FloatArray) -> FloatArray:
    """Log-probabilities, float [N, K]."""
    shifted = logits - logits.max(axis=1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))


def capped_log_softmax(logits: FloatArray) -> FloatArray:
    """Log-probabilities cut at ln 2.2e-16 (-36.04), float [N, K]: the features of maps that weigh them by class.

    Below that a model prints rounding, and a zero would be an outlier that decides the whole fit.
    """
    return np.maximum(log_softmax(logits), np.log(np.finfo(np.float64).eps))


def binary_log_probabilities(logit: FloatArray) -> FloatArray:
    """[log P(class 0), log P(class 1)] of a logit [N], without rounding to log 0."""
    return np.stack([-np.logaddexp(0.0, logit), -np.logaddexp(0.0, -logit)], axis=1)


def refuse_separable(log_probabilities: FloatArray, labels: NDArray[np.int64], name: str) -> None:
    """Raises DataError where the fitted map is right on every row: a steeper one is then always better.

    Holds exactly for maps that are linear in their parameters: a finite best fit leaves at least one row on the wrong
    side, or on the border (Albert and Anderson 1984).
    """
    others = log_probabilities.copy()
    rows = np.arange(len(labels))
    others[rows, labels] = -np.inf
    if (log_probabilities[rows, labels] > others.max(axis=1)).all():
        raise DataError(
            f"{name}: no row of {len(labels)} is wrong after the map, so its slope has no finite best value; use platt "
            "(two classes) or more rows"
        )


def _tuples(value: Any) -> Any:
    """Lists of JSON as tuples, at every depth: parameters do not change."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _checked_logits(values: ArrayLike, k: int) -> FloatArray:
    try:
        logits = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"logits: not numbers ({error})") from error
    if logits.ndim != 2 or logits.shape[1] != k:
        raise DataError(f"logits: shape {logits.shape}; this calibration map takes [N, {k}]")
    if not np.isfinite(logits).all():
        raise DataError(f"logits: row {int(np.argwhere(~np.isfinite(logits))[0][0])} is not finite; fix or drop it")
    return logits


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(CalibrationMap):
    """The softmax of the unchanged logits; any K. n may be 0: it needs no row.

    >>> scores = Scores(np.array([[0.0, 2.0]]), labels=[1])
    >>> Identity.fit(scores).calibrate(scores) is scores
    True
    """

    name: ClassVar[str] = "identity"

    @classmethod
    def fit(cls, scores: Scores) -> Self:
        """Nothing is fitted; n and fitted_on say on which rows other maps did not do better."""
        return cls(**provenance(scores))

    @property
    def monotone(self) -> bool:
        return self.n_classes == 2

    @property
    def keeps_order(self) -> bool:
        return True

    @property
    def parameters(self) -> dict[str, Any]:
        return {}

    def calibrate(self, scores: Scores) -> Scores:
        """The scores themselves: not a bit of them may change by a map that does nothing."""
        return scores

    def _log_probabilities(self, logits: FloatArray) -> FloatArray:
        return log_softmax(logits)
