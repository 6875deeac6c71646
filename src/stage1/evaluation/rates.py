"""Risks and coverage of an exit rule, as counts with exact intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import ConfigError, DataError

Mask = NDArray[np.bool_]


class Share(NamedTuple):
    """A rate as two masks over the rows: `hits` among `base` (hits is a part of base)."""

    hits: Mask
    base: Mask


def clopper_pearson(errors: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval of a binomial rate: (low, high), (0, 1) where trials == 0.

    Each side is missed with probability at most (1 - level) / 2. Valid for independent trials only.
    Raises ConfigError for a level outside (0, 1), DataError for counts that cannot be. Source: Clopper, Pearson 1934.

    >>> [round(end, 4) for end in clopper_pearson(1, 100)]
    [0.0003, 0.0545]
    """
    if not 0.0 < level < 1.0:
        raise ConfigError(f"level: {level}; give a confidence level between 0 and 1, for example 0.95")
    # scipy comes with it, and training needs this room only for its curves
    from stage1.risk import binomial_lower, binomial_upper

    tail = (1.0 - level) / 2
    return float(binomial_lower(errors, trials, tail)), float(binomial_upper(errors, trials, tail))


def clustered_interval(
    errors: int, trials: int, groups: int, deviation: float, freedom: float, level: float = 0.95
) -> tuple[float, float]:
    """Two-sided interval of a rate whose trials lie in groups: Clopper-Pearson with as many trials as they are worth.

    deviation: standard error of the rate over groups; freedom: its degrees of freedom. Worth: rate (1 - rate) /
    deviation^2, times the square of the ratio of the t quantiles, and no more than `trials` (Korn and Graubard 1998).
    Where no trial (or every one) is an error nothing is known of the deviation, and the worth is the number of groups
    that have a trial: for groups of equal size P(no error in any) <= (1 - rate)^groups whatever their images share.
    (0, 1) without groups.

    >>> [round(end, 3) for end in clustered_interval(10, 200, 20, 0.03, 18.0)]
    [0.008, 0.157]
    >>> [round(end, 3) for end in clustered_interval(0, 200, 20, float("nan"), 18.0)]
    [0.0, 0.168]
    """
    if not trials or not groups:
        return 0.0, 1.0
    if errors in (0, trials):
        return clopper_pearson(groups if errors else 0, groups, level)
    from scipy.special import betaincinv, stdtrit

    rate, top = errors / trials, (1.0 + level) / 2
    worth = float(trials)
    if deviation > 0:
        ratio = float(stdtrit(max(trials - 1, 1), top) / stdtrit(max(freedom, 1.0), top))
        worth = min(worth, rate * (1.0 - rate) / deviation**2 * ratio**2)
    hits, misses = rate * worth, (1.0 - rate) * worth
    return float(betaincinv(hits, misses + 1.0, 1.0 - top)), float(betaincinv(hits + 1.0, misses, top))


def exit_shares(
    decision_exit: ArrayLike, decision_label: ArrayLike, labels: ArrayLike, classes: Sequence[str]
) -> tuple[dict[str, Share], Share, dict[str, Share]]:
    """(risks, overall coverage, coverage of each class) of an exit rule as masks; see `exit_rates`.

    >>> risks, overall, _ = exit_shares([True, True, False], [0, 1, 0], [1, 1, 0], ["none", "roadwork"])
    >>> risks["fnr"].hits.tolist(), risks["fnr"].base.tolist()
    ([True, False, False], [True, True, False])
    """
    # scipy comes with the room of risks, and training needs this one only for its curves
    from stage1.risk.risks import risks_for

    leaves, answer, truth = _checked(decision_exit, decision_label, labels, len(classes))
    risks: dict[str, Share] = {}
    for risk in risks_for(len(classes)):
        if risk.side == "class":
            risks |= {
                f"{risk.name}.{of}": Share(*risk.counts(leaves, answer, truth, k)) for k, of in enumerate(classes)
            }
        else:
            risks[risk.name] = Share(*risk.counts(leaves, answer, truth, None))
    per_class = {name: Share(leaves & (truth == index), truth == index) for index, name in enumerate(classes)}
    return risks, Share(leaves, np.ones_like(leaves)), per_class


def exit_rates(
    decision_exit: ArrayLike,
    decision_label: ArrayLike,
    labels: ArrayLike,
    *,
    classes: Sequence[str] | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """The risks of an exit rule and its coverage, with exact two-sided intervals (Clopper-Pearson).

    decision_exit: bool [N]; decision_label: int [N], the answer (ignored where the row defers); labels: int [N].
    classes: names in the order of the labels; None: "0", "1", ... as many as occur, at least two.
    Two classes, 1 = positive: `fnr` P(answer 0 | y=1, exit), `fpr` P(answer 1 | y=0, exit), `miss_rate`
    P(exit as 0 | y=1), `false_exit_rate` P(exit as 1 | y=0), `error` P(wrong | exit). More classes: `fnr.<class>`
    P(wrong | y=class, exit), `wrong.<class>` P(wrong | exit as class), `miss_rate.<class>` P(exit and wrong | y=class),
    `error`. Each {observed (None if n == 0), errors, n, low, high}.
    `coverage`: {"overall": {value, exits, n, low, high}, "per_class": {class: the same}}.
    The intervals hold for independent images; where images share a video or a site they are too short (see
    `clustered_interval`).
    Raises DataError for unequal lengths or a label outside the classes.

    >>> exit_rates([True, True, False], [0, 1, 0], [1, 1, 0])["fnr"]["observed"]
    0.5
    """
    if classes is None:
        top = max((int(np.max(values)) for values in (decision_label, labels) if np.size(values)), default=1)
        classes = [str(index) for index in range(max(2, top + 1))]
    risks, overall, per_class = exit_shares(decision_exit, decision_label, labels, classes)

    def counted(share: Share, rate: str, count: str) -> dict[str, Any]:
        hits, n = int(share.hits.sum()), int(share.base.sum())
        low, high = clopper_pearson(hits, n, level)
        return {rate: hits / n if n else None, count: hits, "n": n, "low": low, "high": high}

    found = {name: counted(share, "observed", "errors") for name, share in risks.items()}
    found["coverage"] = {
        "overall": counted(overall, "value", "exits"),
        "per_class": {name: counted(share, "value", "exits") for name, share in per_class.items()},
    }
    return found


def _checked(
    decision_exit: ArrayLike, decision_label: ArrayLike, labels: ArrayLike, k: int
) -> tuple[Mask, NDArray[np.int64], NDArray[np.int64]]:
    leaves = np.asarray(decision_exit)
    if leaves.ndim != 1 or leaves.dtype.kind != "b" or not len(leaves):
        raise DataError(f"exit: dtype {leaves.dtype}, shape {leaves.shape}; give one boolean per row, at least one row")
    columns = []
    for name, values in (("decision label", decision_label), ("labels", labels)):
        column = np.asarray(values)
        if column.shape != leaves.shape or column.dtype.kind not in "biu":
            raise DataError(
                f"{name}: dtype {column.dtype}, shape {column.shape}; one whole number for each of {len(leaves)} rows"
            )
        column = column.astype(np.int64)
        used = column if name == "labels" else column[leaves]
        if len(used) and (used.min() < 0 or used.max() >= k):
            raise DataError(f"{name}: {used.min()}..{used.max()} is not within 0..{k - 1} (classes)")
        columns.append(column)
    return leaves, columns[0], columns[1]
