"""What the numbers of each class in val_calib say, and a path that needs no density (ALGORITHMS 2.4, 13).

fnr, fpr, miss_rate and false_exit_rate each count images of one class. Their path may know how many images of each
class val_calib has: `may_be_known`.

Proof. Given the class of every unit, the scores of val_calib are independent draws, each from the distribution of its
class, whatever the classes are. The path, its start and the numbers of trials to wait for are functions of val_select
and of (n0, n1), so they are fixed given the classes. Every proof about such a path (policy/stepping.py,
policy/counted_start.py, the fixed sequence) takes the draws of each class given their number, so it holds for each
(n0, n1) and hence on average. `error`, coverage and all else that counts both classes together does not: given
(n0, n1) its errors are not binomial, so these keep a path of val_select alone.

What is gained where val_select is small. It says little about the share of positives (60 labels: +- .06), and the
share moves the point at which a score speaks for neither class; val_calib knows it three times better.

| from the counts | how |
|---|---|
| the share, a map that is fitted | its scores of each class stay, which no share of positives has a part in |
| the share, a map that is not (`own`) | scores are weighed until its mean P(y = 1) is the share of all labels |
| trials | samples of val_calib are drawn with just these members of each class |
| neither class | `even_evidence`: the posterior at which odds are those of the share, a likelihood ratio of 1 |
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray

from stage1.late import library

special = library("scipy.special")

Floats = NDArray[np.float64]
Cuts = NDArray[np.intp]

BY_CLASS = frozenset({"fnr", "fpr", "miss_rate", "false_exit_rate"})
"""Risks that count images of one class each."""
_SAME_SHARE = 3.0  # standard errors between both shares, from which on they are two populations
_MOST_TILT = 0.9  # every weight stays above a tenth
_PLACES = 300
_CERTAIN = 1e-15


def may_be_known(targets: Collection[str], has_floor: bool) -> bool:
    """Whether the path for these risks may know how many units of each class val_calib has.

    >>> may_be_known(["fnr", "fpr"], has_floor=False), may_be_known(["error"], has_floor=False)
    (True, False)
    """
    return BY_CLASS.issuperset(targets) and not has_floor


def common_share(select: tuple[int, int], calib: tuple[int, int]) -> float | None:
    """P(y = 1) from (negatives, positives) of both roles; None where their balance differs by more than chance.

    >>> common_share((30, 30), (300, 240))
    0.45
    >>> common_share((30, 30), (500, 40)) is None
    True
    """
    n, m = sum(select), sum(calib)
    share = (select[1] + calib[1]) / (n + m)
    if m == 0 or abs(select[1] / n - calib[1] / m) > _SAME_SHARE * np.sqrt(share * (1 - share) * (1 / n + 1 / m)):
        return None
    return float(share)


def weighed(weight: Floats, p: Floats, share: float) -> Floats:
    """`weight` of each score, moved in proportion to p = P(y = 1), float [G] each, until the mean of p is `share`.

    No weight falls below a tenth of what it was: p that hardly varies cannot explain another share.

    >>> found = weighed(np.ones(4), np.array([0.1, 0.2, 0.8, 0.9]), 0.6)
    >>> round(float(found @ [0.1, 0.2, 0.8, 0.9] / found.sum()), 6)
    0.6
    """
    mean = float(weight @ p / weight.sum())
    variance = float(weight @ (p - mean) ** 2 / weight.sum())
    tilt = (share - mean) / max(variance, _CERTAIN)
    return np.asarray(weight * (1 + np.clip(tilt, -_MOST_TILT, _MOST_TILT) * (p - mean)))


def even_evidence(p: Floats, weight: Floats, ends: tuple[int, int]) -> tuple[Cuts, Cuts]:
    """Cuts (low, high), int [T] each: both answers ask for the same likelihood ratio, from the most to none.

    p: P(y = 1) at each score of a sorted grid, float [G]; weight: float [G] of its density. ends: the largest low and
    the smallest high. Where both classes are normal with one spread, both ratios are equal along this path, whatever
    their density, so few scores do not spoil it. Meant for the map `own`; where scores are skewed both ratios come
    apart.
    """
    evidence = special.logit(np.clip(p, _CERTAIN, 1 - _CERTAIN)) - special.logit(float(weight @ p / weight.sum()))
    size = np.abs(evidence)
    order = np.argsort(size)
    bar = np.interp(np.linspace(1, 0, _PLACES), np.cumsum(weight[order]) / weight.sum(), size[order])
    # First score from either side that says too little, in any order of scores.
    low = np.minimum(np.searchsorted(np.maximum.accumulate(evidence), -bar, side="left"), ends[0])
    right = np.searchsorted(np.maximum.accumulate(-evidence[::-1]), -bar, side="left")
    high = np.maximum(len(evidence) - right, ends[1])
    middle = (low + high) // 2
    return np.where(low <= high, low, middle), np.where(low <= high, high, middle)
