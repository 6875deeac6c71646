"""A share of images with an upper bound where images come in groups of different sizes.

The share of all images is a ratio, sum of hits / sum of sizes over independent groups: large groups weigh more, so that
one image of each group has another share wherever size and hits go together. No bound without assumptions is of use
here (one group may hold any number of images); this one is an approximation, built to err upwards:

1. One group more is added, whose images are all hits: what the next group may be like, which few groups cannot show.
   Its size lies midway between the group of a random image (sum m^2 / sum m) and the largest.
2. Jackknife over groups (Miller 1974) gives the variance, and that the effective number of images (Korn and Graubard
   1998), shrunk by the ratio of the normal to the t quantile at the effective number of groups (Kish: (sum m)^2 /
   sum m^2) - 1 degrees of freedom.
3. The exact binomial bound at that number; without any spread the number of effective groups stands for it.

Under `FEWEST_GROUPS` groups nothing is said: the bound is 1. (A limit on effective groups instead would keep the
samples in which no large group happened to be, whose bounds are the worst.) Measured in
tests/risk/test_cluster_share.py and benchmarks/intervals.md: sizes equal, geometric and Pareto, hits that go with size.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import DataError

FEWEST_GROUPS = 30
"""Groups under which no bound is stated: with 20 the approximation covers .91 in the worst of its cases."""


@dataclass(frozen=True, slots=True)
class ClusterShare:
    """What a bound needs of the groups. share: hits / images; groups: how many; effective: by Kish.

    guarded, error: share and its standard error with the added group; spread: effective groups with it.

    >>> found = ClusterShare.of(np.tile([True, False, False], 40), np.repeat(np.arange(40), 3))
    >>> round(found.share, 3), round(found.groups), round(found.upper(0.05), 3)
    (0.333, 40, 0.428)
    """

    images: int
    share: float
    groups: int
    effective: float
    guarded: float
    error: float
    spread: float

    @classmethod
    def of(cls, hits: ArrayLike, groups: ArrayLike) -> Self:
        """hits: bool [N], groups: names [N]. Raises DataError for no row or unequal lengths."""
        hit, names = np.asarray(hits, dtype=np.bool_), np.asarray(groups)
        if hit.ndim != 1 or not len(hit) or names.shape != hit.shape:
            raise DataError(f"hits {hit.shape}, groups {names.shape}: one value each for every row, at least one row")
        _, inverse = np.unique(names, return_inverse=True)
        sizes = np.bincount(inverse).astype(np.float64)
        counts = np.bincount(inverse, weights=hit)
        size = float((sizes**2).sum() / sizes.sum() + sizes.max()) / 2
        more, with_more = np.append(counts, size), np.append(sizes, size)
        total, images = more.sum(), with_more.sum()
        guarded, g = total / images, len(with_more)
        left_out = (total - more) / (images - with_more)
        return cls(
            len(hit),
            float(hit.mean()),
            len(sizes),
            float(sizes.sum() ** 2 / (sizes**2).sum()),
            float(guarded),
            sqrt((g - 1) / g * float(((left_out - guarded) ** 2).sum())),
            float(images**2 / (with_more**2).sum()),
        )

    @property
    def bounded(self) -> bool:
        """Whether there are groups enough for a bound below 1."""
        return self.groups >= FEWEST_GROUPS

    def upper(self, delta: float) -> float:
        """Upper bound at about 1 - delta; 1.0 for too few groups."""
        from scipy import stats

        if not self.bounded:
            return 1.0
        n = self.spread
        if self.error > 0 and 0 < self.guarded < 1:
            shrunk = float(stats.norm.isf(delta) / stats.t.isf(delta, self.spread - 1.0)) ** 2
            n = min(self.guarded * (1.0 - self.guarded) / self.error**2 * shrunk, float(self.images))
        hits = n * self.guarded
        return 1.0 if hits >= n else float(stats.beta.isf(delta, hits + 1.0, n - hits))
