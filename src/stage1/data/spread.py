"""A sample of images that says as much as so many can: of every group a few, rather than all of a few groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stage1.data.dealing import unit_interval


def spread_sample(
    labels: NDArray[np.int64], groups: NDArray[np.str_], ids: NDArray[np.str_], most: int, seed: int
) -> NDArray[np.int64]:
    """Rows of at most `most` images, int64 ascending; all of them where there are no more.

    labels: int [N]; groups, ids: str [N]. Each class gets its share, and a rare one up to half of an even share. Within
    a class the first image of every group is taken before a second one of any, in an order by hash of seed, group and
    id: the order of rows decides nothing.

    >>> groups = np.array(["a"] * 6 + ["b"] * 2)
    >>> rows = spread_sample(np.zeros(8, dtype=np.int64), groups, np.arange(8).astype(str), 4, seed=0)
    >>> (len(rows), int((groups[rows] == "b").sum()))
    (4, 2)
    """
    n = len(labels)
    if n <= most:
        return np.arange(n)
    classes, counts = np.unique(labels, return_counts=True)
    floor = np.minimum(counts, most // (2 * len(classes)))
    spare = np.maximum(counts * most / n - floor, 0.0)
    taken = floor + np.floor(spare * (most - floor.sum()) / max(spare.sum(), 1e-12)).astype(np.int64)
    order_of_group = {name: unit_interval(seed, f"spread|group|{name}") for name in np.unique(groups).tolist()}
    by_group = np.array([order_of_group[name] for name in groups.tolist()])
    by_image = np.array([unit_interval(seed, f"spread|image|{name}") for name in ids.tolist()])
    rows = []
    for label, count in zip(classes, np.minimum(taken, counts), strict=True):
        members = np.flatnonzero(labels == label)
        members = members[np.lexsort((by_image[members], by_group[members]))]
        starts = np.flatnonzero(np.r_[True, np.diff(by_group[members]) != 0])
        place = np.arange(len(members)) - np.repeat(starts, np.diff(np.r_[starts, len(members)]))
        rows.append(members[np.lexsort((by_group[members], place))][:count])
    return np.sort(np.concatenate(rows))
