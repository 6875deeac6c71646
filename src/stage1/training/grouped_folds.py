"""Folds of labelled images for cross-validation: groups whole, classes even, so many that each class is in two."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stage1.calibration.folds import fold_of_rows
from stage1.errors import DataError
from stage1.scores import Scores


def fewest_groups(labels: NDArray[np.int64], groups: NDArray[np.str_] | None, n_classes: int) -> tuple[int, int]:
    """(class, groups that hold it) of the class that the fewest groups hold; groups None: each image is one.

    >>> fewest_groups(np.array([0, 0, 1, 1]), np.array(["a", "b", "c", "c"]), 2)
    (1, 1)
    """
    pairs = np.arange(len(labels)) if groups is None else np.unique(groups, return_inverse=True)[1]
    held = [len(np.unique(pairs[labels == index])) for index in range(n_classes)]
    return int(np.argmin(held)), min(held)


def grouped_folds(
    labels: NDArray[np.int64], groups: NDArray[np.str_] | None, k: int, seed: int, n_classes: int | None = None
) -> NDArray[np.int64]:
    """Fold 0..k-1 of each row, int [N]; whole groups, each class dealt evenly (`calibration.folds.fold_of_rows`).

    labels: int [N] in 0..n_classes-1 (None: the largest + 1); groups: str [N] or None, each row by itself. Fewer folds
    where a class is in fewer than k groups.
    Raises DataError where a class is in fewer than two groups: some fold would have nothing to learn it from.

    >>> fold = grouped_folds(np.array([0, 1] * 6), None, 5, seed=0)
    >>> np.bincount(fold).tolist()
    [4, 2, 2, 2, 2]
    """
    classes = int(labels.max(initial=0)) + 1 if n_classes is None else n_classes
    worst, held = fewest_groups(labels, groups, classes)
    if held < 2:
        unit = "images" if groups is None else "groups"
        raise DataError(f"folds: class {worst} is in {held} {unit}; cross-validation needs it in two or more")
    scores = Scores(np.zeros((len(labels), max(classes, 2))), labels=labels, groups=groups)
    return fold_of_rows(scores, min(k, held), seed)
