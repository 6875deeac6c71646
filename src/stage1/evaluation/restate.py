"""Coverage and error of an exit rule at a stated class balance, from the rates within each class, which do not move."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import DataError
from stage1.evaluation.label_shift import checked_shares


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
    def measured(cls, decision_exit: ArrayLike, decision_label: ArrayLike, labels: ArrayLike, n_classes: int = 2) -> Self:  # fmt: skip
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
