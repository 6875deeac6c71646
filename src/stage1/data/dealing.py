"""Dealing groups to roles at random, stratified: roles are alike, and every group has the same chance of each role.

A role that certifies must be a fair sample. Dealing by size (largest groups first, to where they are missed most) is
not: it makes val_calib a sample of large groups, and where small groups are harder its certificate is false far more
often than delta.
So the content of a group decides its stratum and its place in it, and never its role:

| step | what | effect |
|---|---|---|
| strata | the rarest class that a group holds | every role gets its share of each class |
| bands | within a stratum in order of label mix and size, neighbours | every role gets large and small groups |
| quotas | groups of a band x roles, n f rounded at random | E quota = n f; band, joins, stratum, whole within 1 of it |
| roles | inside a band in an order fixed by hash(seed, name) | P(role) = f for every group |

Rounding all sums at once while every expectation stays is a flow through a tree, rounded along cycles (Gandhi, Khuller,
Parthasarathy, Srinivasan 2006, "Dependent rounding"). Counts of a stratified sample vary less than those of an
independent one with the same mean, so the exact binomial tests stay valid (Hoeffding 1956).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]

STRATIFIED = "stratified-random"
REDRAWN = "stratified-redrawn"
BY_SIZE = "by-size"

# Inside a band those that certify come first; in the hash order this makes no difference.
_FIRST = ("val_calib", "val_test", "val_select", "train")
_BAND = 4  # groups: fewer hardly differ in size, and each costs a node
_MOST_BANDS = 128  # of a stratum: beyond, sizes of neighbours are alike anyway
_MOST_DRAWS = 1000
_RAISED_DRAWS = 200
_WHOLE = 1e-7  # sums of fractions are whole up to this


@dataclass(frozen=True, slots=True)
class Deal:
    """roles: the role of each group, in the order given. redraws: draws rejected as a role lacked a class."""

    roles: list[str]
    redraws: int


def deal(
    names: Sequence[str],
    content: Floats,
    fractions: Mapping[str, float],
    seed: int,
    covered: Mapping[str, Bools] | None = None,
) -> Deal | None:
    """Deal groups to the roles of `fractions`, P(role r) = fractions[r] for each group; None: no draw serves all roles.

    names: distinct, [G]. content: images of each group and class, [G, K]. fractions: role -> share, sum 1; a role of
    share 0 gets nothing. covered: role -> bool [K], classes that the role has already (of old groups, which are not
    dealt again).

    A class held by at least 1 / f groups of its stratum reaches every role of share f by the quotas. A rarer one may
    miss a role: then the whole deal is drawn again (next sub-seed), up to 1,000 times, until every role has every
    class. Where that ends without success, strata of few groups are dealt by shares that give every role at least one
    of theirs. Both depend on which classes a group holds and on nothing else, so groups that hold the same classes
    still have equal chances.
    The order of names decides nothing. The same seed, names and content give the same deal.
    """
    roles = [role for role in (*_FIRST, *fractions) if fractions.get(role, 0.0) > 0]
    roles = list(dict.fromkeys(roles))
    shares = np.array([fractions[role] for role in roles])
    assert abs(shares.sum() - 1) < 1e-6, f"the shares of {', '.join(roles)} sum to {shares.sum():g}"
    shares = shares / shares.sum()
    order = sorted(range(len(names)), key=lambda unit: names[unit])
    ordered = [names[unit] for unit in order]
    holds = content[order] > 0
    before = np.array([(covered or {}).get(role, np.zeros(content.shape[1], dtype=np.bool_)) for role in roles])
    wanted = holds.any(axis=0) | before.any(axis=0)
    strata = _strata(ordered, content[order], seed, float(shares.min()))
    everyone = hashlib.sha256("\0".join(ordered).encode("utf-8", "surrogateescape")).hexdigest()
    plain = [shares] * len(strata)
    raised = [_raised(shares, sum(map(len, bands))) for bands in strata]
    for draw in range(_MOST_DRAWS + _RAISED_DRAWS):
        rng = np.random.default_rng(_number(f"{seed}|quotas|{draw}|{everyone}"))
        by_stratum = plain if draw < _MOST_DRAWS else raised
        chosen = _drawn(ordered, strata, by_stratum, rng, f"{seed}|deal|{draw}")
        has = before | np.array([holds[chosen == role].any(axis=0) for role in range(len(roles))])
        served = np.array([(chosen == role).any() for role in range(len(roles))]) | before.any(axis=1)
        if served.all() and has[:, wanted].all():
            found = [""] * len(names)
            for unit, role in zip(order, chosen.tolist(), strict=True):
                found[unit] = roles[role]
            return Deal(found, draw)
    return None


def unit_interval(seed: int, group: str) -> float:
    """sha256("seed|group"), first 52 bits, as a number in [0, 1): exact in a double, the same on every machine."""
    return int(_number(f"{seed}|{group}") >> 12) / float(1 << 52)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()[:8])


# ---- strata and bands --------------------------------------------------------------------------------------------


def _strata(names: Sequence[str], content: Floats, seed: int, least: float) -> list[list[list[int]]]:
    """Groups by stratum and band; a stratum too small to reach a role of share `least` for certain is a single band."""
    sizes = content.sum(axis=1)
    holders = (content > 0).sum(axis=0)
    # The rarest class of each group, by the number of groups that hold it.
    rank = np.where(content > 0, holders, np.inf)
    stratum = rank.argmin(axis=1)
    strata = []
    for label in np.unique(stratum).tolist():
        members = np.flatnonzero(stratum == label).tolist()
        mix = {unit: floor(4 * content[unit, label] / sizes[unit]) if sizes[unit] else 0 for unit in members}
        # Ties are broken by a hash of their own: by that of the deal, a band would hold the tail of its order.
        members.sort(
            key=lambda unit: (
                mix[unit],
                -sizes[unit] if mix[unit] % 2 else sizes[unit],  # neighbours across two mixes are alike in size
                unit_interval(seed, f"band|{names[unit]}"),
            )
        )
        count = 1 if len(members) * least < 1 else min(max(len(members) // _BAND, 1), _MOST_BANDS)
        strata.append([part.tolist() for part in np.array_split(np.array(members), count)])
    return strata


def _drawn(
    names: Sequence[str],
    strata: Sequence[Sequence[list[int]]],
    shares: Sequence[Floats],
    rng: np.random.Generator,
    key: str,
) -> Ints:
    """The role of each group, int [G]: quotas of the bands, filled in hash order. shares: of roles by stratum."""
    quotas = _quotas([[len(band) for band in bands] for bands in strata], shares, rng)
    chosen = np.empty(len(names), dtype=np.int64)
    for bands, rows in zip(strata, quotas, strict=True):
        for band, row in zip(bands, rows, strict=True):
            ranked = sorted(band, key=lambda unit: _number(f"{key}|{names[unit]}"))
            chosen[ranked] = np.repeat(np.arange(len(row)), row)
    return chosen


# ---- quotas ------------------------------------------------------------------------------------------------------


def _raised(shares: Floats, groups: int) -> Floats:
    """Shares [R] of at least 1 / groups each, the others scaled down alike; as given where groups are too few."""
    if groups < len(shares):
        return shares
    low = np.zeros(len(shares), dtype=np.bool_)
    while True:
        left = 1 - low.sum() / groups
        found = np.where(low, 1 / groups, shares * (left / max(shares[~low].sum(), 1e-12)))
        below = found < 1 / groups - _WHOLE
        if not below.any():
            return found
        low |= below


def _quotas(sizes: Sequence[Sequence[int]], shares: Sequence[Floats], rng: np.random.Generator) -> list[list[Ints]]:
    """Whole numbers of groups per stratum, band and role: each, and every sum of them, n f rounded; mean n f."""
    ends: list[tuple[Any, Any]] = []
    flow: list[float] = []

    def pipe(source: Any, target: Any, amount: float) -> None:
        ends.append((source, target))
        flow.append(amount)

    def join(name: tuple[Any, ...], below: Sequence[int], own: Floats) -> None:
        """The tree under a node: halves of the bands, down to single ones; what flows into it is what it passes on."""
        if len(below) == 1:
            return
        middle = len(below) // 2
        for side, part in enumerate((below[:middle], below[middle:])):
            child = (*name, side)
            join(child, part, own)
            for role, share in enumerate(own):
                pipe(
                    (child, role) if len(part) > 1 else (child, "band"),
                    (name, role),
                    float(share) * sum(part),
                )

    for number, bands in enumerate(sizes):
        join((number,), bands, shares[number])
        for role, share in enumerate(shares[number]):
            top = ((number,), role) if len(bands) > 1 else ((number,), "band")
            pipe(top, ("role", role), float(share) * sum(bands))
    for role in range(len(shares[0])):
        pipe(
            ("role", role), "all", sum(float(own[role]) * sum(bands) for own, bands in zip(shares, sizes, strict=True))
        )
    whole = _rounded(ends, flow, rng)
    leaving: dict[Any, list[int]] = {}
    for (source, _), amount in zip(ends, whole, strict=True):
        if source[1] == "band":
            leaving.setdefault(source[0], []).append(amount)

    def leaves(name: tuple[Any, ...], below: Sequence[int]) -> list[Ints]:
        if len(below) == 1:
            return [np.array(leaving[name], dtype=np.int64)]
        middle = len(below) // 2
        return leaves((*name, 0), below[:middle]) + leaves((*name, 1), below[middle:])

    return [leaves((number,), bands) for number, bands in enumerate(sizes)]


def _rounded(ends: Sequence[tuple[Any, Any]], flow: Sequence[float], rng: np.random.Generator) -> list[int]:
    """A flow whose nodes all keep what they get (ends: whole sums), each pipe rounded up or down, means kept.

    Along a cycle of pipes that are not whole, shifting keeps every node's balance. It is shifted one way or the other
    until a pipe is whole, with the probabilities that leave every expectation unchanged; and again, until no pipe is
    left.
    """
    value = list(flow)
    open_at: dict[Any, dict[int, None]] = {}

    def settle(pipe: int) -> bool:
        if abs(value[pipe] - round(value[pipe])) > _WHOLE:
            return False
        value[pipe] = float(round(value[pipe]))
        for end in ends[pipe]:
            open_at.get(end, {}).pop(pipe, None)
        return True

    left = {pipe: None for pipe in range(len(value)) if not settle(pipe)}
    for pipe in left:
        for end in ends[pipe]:
            open_at.setdefault(end, {})[pipe] = None
    while left:
        cycle = _cycle(ends, open_at, ends[next(iter(left))][0])
        up = min(ceil(value[p]) - value[p] if sign > 0 else value[p] - floor(value[p]) for p, sign in cycle)
        down = min(value[p] - floor(value[p]) if sign > 0 else ceil(value[p]) - value[p] for p, sign in cycle)
        step = up if rng.random() * (up + down) < down else -down
        for pipe, sign in cycle:
            value[pipe] += sign * step
            if settle(pipe):
                del left[pipe]
    return [int(amount) for amount in value]


def _cycle(
    ends: Sequence[tuple[Any, Any]], open_at: Mapping[Any, Mapping[int, None]], node: Any
) -> list[tuple[int, int]]:
    """A cycle of open pipes: (pipe, +1 from source to target, else -1). No node has a single open pipe."""
    walked: list[tuple[int, int]] = []
    seen = {node: 0}
    last = -1
    while True:
        last = next(pipe for pipe in open_at[node] if pipe != last)
        source, target = ends[last]
        walked.append((last, 1 if source == node else -1))
        node = target if source == node else source
        if node in seen:
            return walked[seen[node] :]
        seen[node] = len(walked)
