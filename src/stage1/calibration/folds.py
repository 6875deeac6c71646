"""Folds for cross-validation: groups stay whole, classes are dealt evenly, the order of rows does not matter."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError
from stage1.scores import Scores


def fold_of_rows(scores: Scores, folds: int, seed: int) -> NDArray[np.int64]:
    """Fold 0..folds-1 of each row, int [N]. Fewer units than folds: as many folds as units.

    Units are groups where there are groups, else rows. Within each class (of a group: that of most of its rows) units
    are shuffled, the largest groups first, and each goes to the fold that has the fewest rows of that class, then the
    fewest rows. Where there are groups or ids, folds follow their names, not the order of rows.
    Raises ConfigError for fewer than 2 folds.

    >>> scores = Scores(np.zeros((6, 2)), labels=[0, 1, 0, 1, 0, 1])
    >>> np.bincount(fold_of_rows(scores, 3, seed=0)).tolist()
    [2, 2, 2]
    """
    if folds < 2:
        raise ConfigError(f"folds: {folds}; cross-validation needs 2 or more")
    labels, k = scores.known_labels, scores.n_classes
    if scores.groups is not None:
        _, unit = np.unique(scores.groups, return_inverse=True)
    elif scores.ids is not None:
        unit = np.argsort(np.argsort(scores.ids))
    else:
        unit = np.arange(len(scores))
    counts = np.zeros((int(unit.max(initial=-1)) + 1, k), dtype=np.int64)
    np.add.at(counts, (unit, labels), 1)
    sizes, majority = counts.sum(axis=1), counts.argmax(axis=1)
    shuffled = np.random.default_rng(_seed(seed)).permutation(len(sizes))
    order = shuffled[np.lexsort((-sizes[shuffled], majority[shuffled]))]
    folds = max(min(folds, len(sizes)), 1)
    if (sizes == 1).all():
        # All units alike: the rule below deals them one by one
        fold_of_unit = np.empty(len(sizes), dtype=np.int64)
        fold_of_unit[order] = np.arange(len(sizes)) % folds
        return fold_of_unit[unit]
    held = np.zeros((folds, k), dtype=np.int64)
    fold_of_unit = np.zeros(len(sizes), dtype=np.int64)
    for item in order:
        chosen = int(np.lexsort((held.sum(axis=1), held[:, majority[item]]))[0])
        fold_of_unit[item] = chosen
        held[chosen] += counts[item]
    return fold_of_unit[unit]


def _seed(seed: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/calibration folds".encode()).digest()[:8], "big")
