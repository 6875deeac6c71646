"""Scores of val_select by views that were not fitted on them: each image by a fit on the other folds, groups whole.

An aggregator or a sequence that learned from val_select has its labels in its scores there. A map fitted on those is too sure of
itself, and so is whatever else looks at val_select afterwards.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.aggregation.frozen import FrozenViews
from stage1.calibration.choose import UNITS_PER_CLASS
from stage1.calibration.folds import fold_of_rows
from stage1.errors import DataError
from stage1.scores import Scores

Ints = NDArray[np.int64]

FOLDS = 10  # five leave a fifth out, and what is fitted on the rest is less like what ships (CHANGELOG, docs/VIEWS.md)


@dataclass(frozen=True, slots=True)
class Refit:
    """views: fitted on all images but these rows, int [n]."""

    rows: Ints
    views: FrozenViews


def cross_fitted(
    labels: ArrayLike, groups: ArrayLike | None, fit: Callable[[Ints], FrozenViews], *, folds: int = FOLDS, seed: int
) -> tuple[tuple[Refit, ...], str]:
    """(one refit for each fold, "") or ((), why there is none), one sentence.

    labels: int [N] of two classes. fit: the whole fit, on these rows alone. Fewer than 10 units of a class: no folds, and no map is
    fitted on so few either. Neither are there where a fit on the other folds cannot be had.
    """
    truth = np.asarray(labels, dtype=np.int64)
    keys = Scores(logits=np.zeros((len(truth), 2)), labels=truth, groups=groups)  # type: ignore[arg-type]
    for index in (0, 1):
        rows = np.flatnonzero(truth == index)
        units = len(rows) if keys.groups is None else len(np.unique(keys.groups[rows]))
        if units < UNITS_PER_CLASS:
            unit = "images" if keys.groups is None else "groups"
            return (), f"class {index} has {units} {unit} in val_select, folds need {UNITS_PER_CLASS}"
    fold = fold_of_rows(keys, folds, seed)
    parts = [fold == part for part in range(int(fold.max()) + 1)]
    try:
        return tuple(Refit(np.flatnonzero(part), fit(np.flatnonzero(~part))) for part in parts), ""
    except DataError as error:
        return (), f"views cannot be fitted on part of val_select ({error})"
