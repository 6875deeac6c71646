"""Claims about grouped data, where the frames of a group are not independent: all frames count, the group is the unit.

Three valid methods for one risk, "a random frame of a random group" (ALGORITHMS 2.6):

| method | counts | strong where |
|---|---|---|
| one_per_group (policy/units.py) | one frame of each group, exact binomial, n = groups | frames of a group agree |
| group_draws (risk/group_draws.py) | 21 such draws, half of which must show it | frames agree in part |
| betting | X_g, a mean over the group's frames, betting_pvalue | frames of a group hardly agree |

**Which risk.** The rows that are passed say which frames a random frame represents; both methods must be given the same
rows.

| rows | trials | the risk is that of |
|---|---|---|
| all | None, exits | a random frame (that exits) of a random group: `error` |
| one class | None | a random frame of that class of a random group that has one: miss_rate, false_exit_rate |
| one class | exits | the same, given that it exits: fnr, fpr |
| all | class, class and exits | a random frame of a random group, given that it is of that class (and exits) |

The last two differ only where a group holds both classes: rows of one class give each group that has the class the same
weight, all rows give a group weight by its share of the class. With rows of one class, groups without such a frame do
not count, and the rest are still independent and alike. But a group with both classes then speaks for both: the tests
of the two classes are dependent, and their joint level takes p = max or a divided delta (Bonferroni), never 1 - sqrt(1
- delta).

**Ratios.** X_g = mean(err) + target * mean(not trial), which is mean(err) - target * mean(trial) + target. E X_g >=
target says E mean(err) >= target * E mean(trial): the ratio P(err) / P(trial) of a random frame is at least the target.
An error is a trial, so 0 <= mean(err) <= mean(trial), and 0 <= X_g <= mean(trial) + mean(not trial) = 1.

**Groups without a trial** have X_g = target whatever their answers: they say nothing, but they would pull the running
mean towards the target and shrink the stakes. They are put last: the groups with a trial are themselves independent and
alike, and their E X_g is at least the target exactly where that of all groups is.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.risk.bounds import betting_pvalue, betting_upper, binomial_pvalue
from stage1.risk.group_draws import DRAWS, drawn_counts, merged_pvalue

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Texts = NDArray[np.str_]
GroupMethod = Literal["one_per_group", "betting"]

_RISK_SHARES = (0.2, 0.4, 0.6)
_DRAWS, _FEWEST_DRAWS = 200, 20
_CELLS = 2_000_000


def group_order(groups: ArrayLike, seed: int) -> Texts:
    """The distinct groups, str [G], in the order of hash(seed, group).

    groups: names [N], text or whole numbers. The order depends on names alone, so it does not depend on labels or
    scores, and taking groups away leaves the order of the others. Raises DataError for anything but one row of names.

    >>> group_order(["bridge", "street", "street"], seed=0).tolist()
    ['street', 'bridge']
    """
    names = np.unique(_checked_groups(groups))
    keys = [hashlib.sha256(f"{seed}|group order|{name}".encode()).digest() for name in names.tolist()]
    return names[sorted(range(len(keys)), key=keys.__getitem__)]


def group_means(
    errors: ArrayLike, trials: ArrayLike | None, groups: ArrayLike, target: float, order: ArrayLike
) -> Floats:
    """X_g of each group that has a row, in the order given: float64 [G'] or [G', C], in [0, 1].

    errors: bool [N], or [N, C] for C candidates; trials: bool of the same shape, or None where every row is a trial
    (shares); groups: names [N]; target: in (0, 1), used by ratios only; order: every group once (group_order), more
    than occur are allowed. The rows say which risk is meant: see the top of this file.
    Raises DataError: shapes, values other than 0 and 1, an error that is no trial, a group that `order` lacks or
    repeats.
    """
    wrong, idle = group_shares(errors, trials, group_layout(groups, order))
    if not 0 < target < 1:
        raise DataError(f"target: must lie strictly between 0 and 1, got {target!r}")
    means = wrong + target * idle
    assert means.size == 0 or (means.min() >= 0 and means.max() <= 1 + 1e-12), "X_g outside [0, 1]"
    return np.minimum(means, 1.0)


def group_pvalue(errors: ArrayLike, trials: ArrayLike | None, groups: ArrayLike, target: float, *, seed: int) -> Floats:
    """p-value of H0: risk >= target, from all frames by betting on X_g; scalar array, or float64 [C] for candidates.

    Arguments and errors as for group_means; seed fixes the order of the groups. 1.0 where nothing is tried.

    >>> groups = np.repeat(np.arange(120), 5)
    >>> float(group_pvalue(np.zeros(600, dtype=bool), None, groups, 0.05, seed=0).round(4))
    0.0039
    """
    wrong, idle = group_shares(errors, trials, group_layout(groups, group_order(groups, seed)))
    return shares_pvalue(wrong, idle, target)


def shares_pvalue(wrong: Floats, idle: Floats, target: float) -> Floats:
    """group_pvalue from shares of wrong rows and of rows without trial (group_shares), in order of testing."""
    if not 0 < target < 1:
        raise DataError(f"target: must lie strictly between 0 and 1, got {target!r}")
    wrong, idle = _tried_first(wrong, idle)
    return betting_pvalue(np.minimum(wrong + target * idle, 1.0), target)


def group_upper(
    errors: ArrayLike,
    trials: ArrayLike | None,
    groups: ArrayLike,
    delta: float,
    *,
    seed: int,
    target: float | None = None,
) -> float:
    """Upper bound at 1 - delta of the risk of one candidate: <= target iff group_pvalue at target is <= delta.

    errors, trials: bool [N]; the rest as for group_means. Raises DataError as group_means and betting_upper do.

    >>> groups = np.repeat(np.arange(120), 5)
    >>> round(group_upper(np.zeros(600, dtype=bool), None, groups, 0.05, seed=0), 3)
    0.027
    """
    shares = group_shares(errors, trials, group_layout(groups, group_order(groups, seed)))
    return shares_upper(*shares, delta, target=target)


def shares_upper(wrong: Floats, idle: Floats, delta: float, *, target: float | None = None) -> float:
    """group_upper from group_shares [G]."""
    wrong, idle = _tried_first(wrong, idle)
    return betting_upper(wrong, delta, idle=idle, target=target)


@dataclass(frozen=True, slots=True)
class GroupPower:
    """Chance of each method to certify the target, as seen from val_select (group_power)."""

    one_per_group: float
    betting: float
    draws: float

    @property
    def better(self) -> GroupMethod:
        """The more powerful of one_per_group and betting; one_per_group where they tie."""
        return "betting" if self.betting > self.one_per_group else "one_per_group"


def group_power(
    errors: ArrayLike,
    trials: ArrayLike | None,
    groups: ArrayLike,
    target: float,
    delta: float,
    *,
    n_groups_calib: int,
    seed: int,
) -> GroupPower:
    """Chance of each method to certify risk <= target at delta from n_groups_calib groups like those of val_select.

    errors, trials: bool [N] of one candidate on val_select; groups: names [N]. Groups are drawn with replacement, the
    same for both methods. How frames agree within a group shows in few groups; the level of the risk does not, and a
    level that seems futile or easy makes both methods look alike. So the chance is the mean over risks of .2, .4 and
    .6 of the target: the groups with an error are drawn as often as brings them there (weights exp(c err) would favour
    groups with few errors, and so make frames look less alike than they are); without an error, as they are.
    Deterministic by seed. Raises DataError as group_means does, for no row, and for n_groups_calib < 1.
    Measured in tests/risk/test_clusters.py and tests/policy/test_group_means.py.
    """
    if n_groups_calib < 1:
        raise DataError(f"n_groups_calib: must be >= 1, got {n_groups_calib}")
    for name, rate in (("target", target), ("delta", delta)):
        if not 0 < rate < 1:
            raise DataError(f"{name}: must lie strictly between 0 and 1, got {rate!r}")
    wrong, idle = group_shares(errors, trials, group_layout(groups, group_order(groups, seed)))
    if wrong.ndim != 1 or not len(wrong):
        raise DataError(f"errors: one candidate with at least one row is expected, got {np.shape(errors)}")
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"{seed}|group power".encode()).digest()[:8], "big"))
    levels = [_at_risk(wrong, 1 - idle, share * target) for share in _RISK_SHARES]
    reached: list[Floats | None] = [weights for weights in levels if weights is not None]
    draws = int(np.clip(_CELLS // n_groups_calib, _FEWEST_DRAWS, _DRAWS))
    passed = []
    for weights in reached or [None]:
        drawn = rng.choice(len(wrong), (n_groups_calib, draws), p=weights)
        err, rest = wrong[drawn], idle[drawn]
        betting = shares_pvalue(err, rest, target)
        # One frame of each group: wrong below its share of errors, no trial above its share of trials, right in
        # between.
        frame = rng.random(drawn.shape)
        single = binomial_pvalue((frame < err).sum(axis=0), (frame < np.maximum(err, 1 - rest)).sum(axis=0), target)
        many = _merged_draws(err, rest, target, rng)
        passed.append(((single <= delta).mean(), (betting <= delta).mean(), (many <= delta).mean()))
    chance = np.mean(passed, axis=0)
    return GroupPower(one_per_group=float(chance[0]), betting=float(chance[1]), draws=float(chance[2]))


def _merged_draws(wrong: Floats, idle: Floats, target: float, rng: np.random.Generator) -> Floats:
    """merged_pvalue of simulated sets of groups, [G, sets]: each set has numbers of its own."""
    counts = [drawn_counts(wrong, idle, rng.random((len(wrong), 1))) for _ in range(DRAWS)]
    errors, trials = (np.concatenate(column) for column in zip(*counts, strict=True))
    return merged_pvalue(errors, trials, target)


def choose_group_method(
    errors: ArrayLike,
    trials: ArrayLike | None,
    groups: ArrayLike,
    target: float,
    delta: float,
    *,
    n_groups_calib: int,
    seed: int,
) -> GroupMethod:
    """The method likelier to certify, by val_select alone; one_per_group at a tie. See group_power."""
    return group_power(errors, trials, groups, target, delta, n_groups_calib=n_groups_calib, seed=seed).better


def _at_risk(wrong: Floats, trial: Floats, risk: float) -> Floats | None:
    """Weights of the groups, summing to 1, at which P(wrong) / P(tried) is `risk`; None where none do that.

    Groups with a wrong row get one weight, the others another: how far rows of one group agree does not change.
    """
    some = wrong > 0
    if not some.any() or some.all():
        return None
    excess = wrong - risk * trial
    above, below = float(excess[some].mean()), float(excess[~some].mean())
    if not above > 0 > below:
        return None
    share = -below / (above - below)
    return np.asarray(np.where(some, share / some.sum(), (1 - share) / (~some).sum()))


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Where the rows of each group are, in order of testing: made once, used for many candidates.

    rows: int [N], row numbers, group by group; starts: int [G], where each group begins in it; n_rows of each: sizes
    [G].
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts)


def group_layout(groups: ArrayLike, order: ArrayLike) -> GroupLayout:
    """The layout of groups (names [N]) in `order` (group_order). Raises DataError: group missing or repeated."""
    names, ordered = _checked_groups(groups), _checked_groups(order)
    place = {name: index for index, name in enumerate(ordered.tolist())}
    if len(place) < len(ordered):
        raise DataError(f"order: {len(ordered) - len(place)} group(s) stand in it more than once")
    present, inverse = np.unique(names, return_inverse=True)
    missing = [name for name in present.tolist() if name not in place]
    if missing:
        raise DataError(f"order: lacks group {missing[0]!r} ({len(missing)} in all); take it from group_order")
    rank = np.array([place[name] for name in present.tolist()], dtype=np.int64)[inverse.reshape(len(names))]
    rows = np.argsort(rank, kind="stable")
    starts = np.flatnonzero(np.diff(rank[rows], prepend=-1))
    return GroupLayout(rows, starts, np.diff(starts, append=len(rows)))


def group_shares(errors: ArrayLike, trials: ArrayLike | None, layout: GroupLayout) -> tuple[Floats, Floats]:
    """Share of rows that are wrong, and of those that are no trial, of each group: float64 [G] or [G, C] each.

    errors, trials: as for group_means. Raises DataError: shapes, values other than 0 and 1, an error that is no trial.
    """
    wrong = _checked_mask(errors, "errors")
    if wrong.ndim not in (1, 2) or len(wrong) != len(layout.rows):
        raise DataError(f"errors {wrong.shape}: [N] or [N, C] is expected, with N = {len(layout.rows)} groups")
    idle = np.zeros_like(wrong) if trials is None else ~_checked_mask(trials, "trials")
    if idle.shape != wrong.shape:
        raise DataError(f"trials {idle.shape}: must have the shape of errors {wrong.shape}")
    if (wrong & idle).any():
        raise DataError(f"errors: row {int(np.argwhere(wrong & idle)[0, 0])} is an error but no trial")
    if not len(wrong):
        return wrong.astype(np.float64), idle.astype(np.float64)
    sizes = layout.sizes.reshape((-1,) + (1,) * (wrong.ndim - 1))

    def share(mask: Bools) -> Floats:
        return np.asarray(np.add.reduceat(mask[layout.rows], layout.starts, axis=0, dtype=np.int64) / sizes)

    return share(wrong), share(idle)


def _tried_first(wrong: Floats, idle: Floats) -> tuple[Floats, Floats]:
    """Groups without a trial last, the others in their order; per candidate."""
    last = np.argsort(idle >= 1.0, axis=0, kind="stable")
    return np.take_along_axis(wrong, last, axis=0), np.take_along_axis(idle, last, axis=0)


def _checked_mask(values: ArrayLike, name: str) -> Bools:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf" or (array.dtype.kind != "b" and not np.isin(array, (0, 1)).all()):
        raise DataError(f"{name}: must be true or false (1 or 0) in every row")
    return array.astype(np.bool_)


def _checked_groups(groups: ArrayLike) -> Texts:
    names = np.asarray(groups)
    if names.ndim != 1 or (names.size and names.dtype.kind not in "USiuO"):
        raise DataError(f"groups: one row of names is expected, got {names.dtype} {names.shape}")
    return names.astype(np.str_)
