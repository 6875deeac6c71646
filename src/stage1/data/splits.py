"""Four roles by group: hash, balanced (dealing.py) or given; near-duplicates join groups; old groups stay put."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from stage1.config import FractionsConfig, RunConfig, SplitConfig
from stage1.data.dealing import BY_SIZE, REDRAWN, STRATIFIED, deal, unit_interval
from stage1.data.duplicates import Pairs, clusters, near_duplicates
from stage1.data.given_roles import is_pool
from stage1.data.ingest import Ingest
from stage1.data.table import SampleTable
from stage1.errors import DataError
from stage1.scores import ROLES
from stage1.sources.quarantine import Quarantined
from stage1.storage.documents import Document, DocumentKind
from stage1.storage.fields import Count, Distinct, Share

Texts = NDArray[np.str_]
BRIDGE = "bridges two roles"


class RoleShares(TypedDict):
    """A share of the images for each role."""

    train: Share
    val_select: Share
    val_calib: Share
    val_test: Share


class RoleCounts(TypedDict):
    """A count for each role."""

    train: Count
    val_select: Count
    val_calib: Count
    val_test: Count


class RoleClassCounts(TypedDict):
    """Images of each class name, for each role."""

    train: dict[str, Count]
    val_select: dict[str, Count]
    val_calib: dict[str, Count]
    val_test: dict[str, Count]


class NearDuplicates(TypedDict):
    """What the search for near-duplicates found."""

    distance: Annotated[int, Field(ge=0, le=7)] | None
    """null: not searched."""
    pairs: Count
    clusters: Count
    images: Count
    """Images in a cluster of two or more."""
    joined_groups: Count
    """Groups that went into another one."""


class SplitsDocument(Document):
    """Which group is in which role, and how that came about."""

    method: Literal["hash", "balanced", "given"]
    dealing: NotRequired[Literal["stratified-random", "by-size"]]
    """Of balanced: stratified, every group with the same chance of each role; by-size (also where it is absent and a
    group has several images): some groups were dealt by size, val_calib is no fair sample.
    """
    redraws: NotRequired[Count]
    """Of balanced: deals thrown away as a role lacked a class; groups that hold the same classes still have equal
    chances.
    """
    seed: int
    fractions: RoleShares
    """Target share of the images per role."""
    classes: Annotated[Distinct[str], Field(min_length=2)]
    counts: RoleClassCounts
    group_counts: RoleCounts
    """Groups per role, near-duplicate clusters joined."""
    n_groups: Count
    groups: dict[str, Literal["train", "val_select", "val_calib", "val_test"]]
    """Role of every group name ever seen, also of those that were joined to another one."""
    near_duplicates: NearDuplicates
    bridges: list[str]
    """Ids of images left out because they would join groups of different roles."""
    leakage: bool
    """true: the same or a near-identical image, or one group, stands in two given roles. Nothing may be certified."""
    leaks: Count
    """Pairs across given roles, where leakage was allowed."""


SPLITS_KIND = DocumentKind("splits", SplitsDocument)


@dataclass(frozen=True, slots=True)
class SplitResult:
    """table: every row with its role, groups joined. quarantine: what the split left out, to be added to the list of
    the ingest. document: splits.json (kind "splits"). leakage: given roles share images and that was allowed: nothing
    may be certified."""

    table: SampleTable
    quarantine: list[Quarantined]
    document: dict[str, Any]
    leakage: bool


def split_table(ingest: Ingest, config: RunConfig, previous: Mapping[str, Any] | None = None) -> SplitResult:
    """Give every image of `ingest` a role.

    previous: the splits.json of an earlier split of this run, or None. Groups it knows keep their role whatever was
    added since; an image that would join two of them with different roles is quarantined.

    Given roles are checked and kept; where several were given for an image (a pool, data.roles), they are cut within it
    by group, by the method and in the ratio of `split`. Across roles and pools the same image (bytes or near-duplicate)
    or the same group in two roles is a DataError that lists the pairs, unless `split.allow_leakage`, which marks the
    result.
    Raises DataError also for fewer groups than roles, an empty role, or a role without one of the classes.
    """
    table = ingest.table
    distance = config.data.near_duplicate_distance if config.data.near_duplicates else None
    pairs = (
        near_duplicates(ingest.hashes, ingest.grays, distance) if distance is not None else np.empty((0, 2), np.int64)
    )
    pools = ingest.given_roles
    given = bool((pools != "").all()) and len(table) > 0
    known: dict[str, str] = {} if given or previous is None else dict(previous["groups"])
    all_links = list(ingest.links)
    # An image that once was its own group and now is under a named one takes its old role there with it.
    ids, named = table.ids.tolist(), table.groups.tolist()
    all_links += [(row, name) for row, name in enumerate(ids) if name in known and name != named[row]]
    out = np.zeros(len(table), dtype=np.bool_)
    bridges: list[str] = []
    quarantine: list[Quarantined] = []
    leaks = 0
    if given:
        leaks = _check_given(table, pools, pairs, config.split)
        pairs = pairs[pools[pairs[:, 0]] == pools[pairs[:, 1]]]
    elif known:
        assert previous is not None
        out, quarantine = _bridging(table, pairs, all_links, known, frozenset(previous["bridges"]))
        bridges = sorted({*previous["bridges"], *table.ids[out].tolist()})
    keep = np.flatnonzero(~out)
    position = np.cumsum(~out) - 1
    pairs = position[pairs[~(out[pairs[:, 0]] | out[pairs[:, 1]])]]
    links = [(int(position[row]), group) for row, group in all_links if not out[row]]
    table, pools = table.take(keep), pools[keep]
    groups = join_groups(table.groups, pairs, known, pools if given else None, links)
    fixed = {
        group: known[name] for name, group in zip(table.groups.tolist(), groups.tolist(), strict=True) if name in known
    }
    roles, redraws = _assigned(groups, table.labels, pools if given else None, config.split, fixed)
    roles = _cut_pools(groups, table.labels, roles, config.split)
    _require_classes(table, roles, config.split, given and not (ingest.pools != "").any())
    # Joined names stay known too: a later image of the group that was absorbed must find its role.
    mapping = {**known, **_mapping(table.groups, roles), **_mapping(groups, roles)}
    document = {
        "method": "given" if given else config.split.method,
        **({} if given or config.split.method == "hash" else _dealing(previous, fixed, redraws)),
        "seed": config.split.seed,
        "fractions": config.split.fractions.model_dump(),
        "classes": list(table.classes),
        "counts": {role: _counts(table, roles == role) for role in ROLES},
        "group_counts": {role: len(np.unique(groups[roles == role])) for role in ROLES},
        "n_groups": len(np.unique(groups)),
        "groups": dict(sorted(mapping.items())),
        "near_duplicates": {
            "distance": distance,
            "pairs": len(pairs),
            **_cluster_counts(len(table), pairs),
            "joined_groups": len(np.unique(table.groups)) - len(np.unique(groups)) if not given else 0,
        },
        "bridges": bridges,
        "leakage": leaks > 0,
        "leaks": leaks,
    }
    return SplitResult(replace(table, groups=groups, roles=roles), quarantine, document, leaks > 0)


def dealing_of(document: Mapping[str, Any]) -> str:
    """How the groups of a splits.json came to their roles, a word of policy/group_dealing.py.

    Balanced files from before the marker were dealt by size. Where every group has one image that was by label alone,
    in hash order: fair.
    """
    if document["method"] != "balanced":
        return str(document["method"])
    images = sum(sum(counts.values()) for counts in document["counts"].values())
    dealing = document.get("dealing", STRATIFIED if images == document["n_groups"] else BY_SIZE)
    return REDRAWN if dealing == STRATIFIED and document.get("redraws", 0) else str(dealing)


def _dealing(previous: Mapping[str, Any] | None, fixed: Mapping[str, str], redraws: int) -> dict[str, Any]:
    """The marker of a balanced split: groups that were dealt by size stay, and so does the mark of it."""
    old = previous is not None and bool(fixed) and dealing_of(previous) == BY_SIZE
    earlier = 0 if previous is None else int(previous.get("redraws", 0))
    return {"dealing": BY_SIZE if old else STRATIFIED, "redraws": redraws + earlier}


def _mapping(groups: Texts, roles: Texts) -> dict[str, str]:
    return dict(zip(groups.tolist(), roles.tolist(), strict=True))


def _counts(table: SampleTable, rows: NDArray[np.bool_]) -> dict[str, int]:
    counts = np.bincount(table.labels[rows], minlength=len(table.classes))
    return {name: int(count) for name, count in zip(table.classes, counts, strict=True)}


def _cluster_counts(n: int, pairs: Pairs) -> dict[str, int]:
    _, sizes = np.unique(clusters(n, pairs), return_counts=True)
    return {"clusters": int((sizes > 1).sum()), "images": int(sizes[sizes > 1].sum())}


# ---- groups ------------------------------------------------------------------------------------------------------


def join_groups(
    groups: Texts,
    pairs: Pairs,
    known: Mapping[str, str] | None = None,
    roles: Texts | None = None,
    links: Sequence[tuple[int, str]] = (),
) -> Texts:
    """Groups that share a near-duplicate, or (links: row, other group) the same bytes, become one, str [N].

    The joined group carries the smallest name that `known` (old groups) holds, else the smallest name of all; so a name
    stays while the data grow. With `roles` (given ones) groups of the same name in two roles are kept apart.
    """
    units: list[tuple[str, str]] = list(
        zip(roles.tolist() if roles is not None else [""] * len(groups), groups.tolist(), strict=True)
    )
    others = [(units[row][0], group) for row, group in links]
    names = sorted({*units, *others})
    number = {unit: position for position, unit in enumerate(names)}
    index = np.array([number[unit] for unit in units], dtype=np.int64)
    edges = [
        index[pairs],
        np.array(
            [(index[row], number[other]) for (row, _), other in zip(links, others, strict=True)], dtype=np.int64
        ).reshape(-1, 2),
    ]
    component = clusters(len(names), np.concatenate(edges))
    best: dict[int, tuple[bool, str]] = {}
    for part, (_, name) in zip(component.tolist(), names, strict=True):
        rank = (name not in (known or {}), name)
        best[part] = min(best.get(part, rank), rank)
    return np.array([best[part][1] for part in component[index].tolist()], dtype=np.str_)


def _bridging(
    table: SampleTable,
    pairs: Pairs,
    links: Sequence[tuple[int, str]],
    known: Mapping[str, str],
    before: frozenset[str],
) -> tuple[NDArray[np.bool_], list[Quarantined]]:
    """Images to leave out so that no joined group holds two old roles: bool [N], and their quarantine rows.

    Links (the same bytes in two groups) come first, then pairs in row order. Where one would join two roles, the image
    of a new group goes (of two, the later row); of two old groups the one in train goes, else the later row: no
    evaluation image is lost for it, and none moves. An image linked to groups of two roles goes itself.
    """
    names = sorted({*table.groups.tolist(), *(group for _, group in links)})
    number = {name: position for position, name in enumerate(names)}
    index = [number[name] for name in table.groups.tolist()]
    edges = [(row, row, index[row], number[group]) for row, group in links]
    edges += [(a, b, index[a], index[b]) for a, b in pairs.tolist()]
    roles = [known.get(name, "") for name in names]
    out = np.isin(table.ids, list(before)) if before else np.zeros(len(table), dtype=np.bool_)
    reasons = {int(row): "left out before: it joins groups of two roles" for row in np.flatnonzero(out)}
    while True:
        parent = list(range(len(names)))
        role = list(roles)

        def root(unit: int, parent: list[int] = parent) -> int:
            while parent[unit] != unit:
                parent[unit] = parent[parent[unit]]
                unit = parent[unit]
            return unit

        stuck = False
        for a, b, unit_a, unit_b in edges:
            if out[a] or out[b]:
                continue
            left, right = root(unit_a), root(unit_b)
            if left == right:
                continue
            if role[left] and role[right] and role[left] != role[right]:
                gone, stays = _leaves(a, b, roles[unit_a], roles[unit_b])
                out[gone] = stuck = True
                cause = f"nearly the same as {table.paths[stays]}" if a != b else f"also in group {names[unit_b]}"
                reasons[gone] = f"{cause}; its groups are in {role[left]} and {role[right]}"
                continue
            parent[right] = left
            role[left] = role[left] or role[right]
        if not stuck:
            break
    return out, [Quarantined(str(table.paths[row]), BRIDGE, reasons[row]) for row in np.flatnonzero(out).tolist()]


def _leaves(a: int, b: int, role_a: str, role_b: str) -> tuple[int, int]:
    """(the row that goes, the row that stays)"""
    rank_a, rank_b = (({"": 2, "train": 1}.get(role, 0), row) for role, row in ((role_a, a), (role_b, b)))
    return (a, b) if rank_a > rank_b else (b, a)


# ---- given roles -------------------------------------------------------------------------------------------------


def _check_given(table: SampleTable, given: Texts, pairs: Pairs, config: SplitConfig) -> int:
    """Number of pairs across given roles or pools. Raises DataError with the first ten, unless leakage is allowed."""
    near = pairs[given[pairs[:, 0]] != given[pairs[:, 1]]]
    found = [("same bytes", a, b) for a, b in _first_across(table.ids, given)]
    for what, more in (("near-duplicates", near.tolist()), ("same group", _first_across(table.groups, given))):
        listed_before = {(a, b) for _, a, b in found}
        found += [(what, a, b) for a, b in more if (a, b) not in listed_before]
    if found and not config.allow_leakage:
        listed = "; ".join(
            f"{what}: {table.paths[a]} ({given[a]}) and {table.paths[b]} ({given[b]})" for what, a, b in found[:10]
        )
        raise DataError(
            f"given roles share images: {len(found)} pairs: {listed}{'; ...' if len(found) > 10 else ''}. Move or drop "
            "one of each, or set split.allow_leakage=true, which leaves the run uncertified"
        )
    return len(found)


def _cut_pools(groups: Texts, labels: NDArray[np.int64], roles: Texts, config: SplitConfig) -> Texts:
    """The roles with every pool ("val_select+val_calib") cut among its roles, by group, each pool for itself."""
    cut = roles.astype(np.dtype("U16"))
    for pool in sorted({role for role in roles.tolist() if is_pool(role)}):
        rows, parts = np.flatnonzero(roles == pool), pool.split("+")
        shares = {role: getattr(config.fractions, role) if role in parts else 0.0 for role in ROLES}
        if (total := sum(shares.values())) <= 0:
            raise DataError(f"data.roles: {pool}: the fractions of all of them are 0; set split.fractions")
        fractions = FractionsConfig(**{role: share / total for role, share in shares.items()})
        within = config.model_copy(update={"fractions": fractions})
        cut[rows] = assign_roles(groups[rows], labels[rows], None, within)
    return cut


def _first_across(keys: Texts, roles: Texts) -> list[tuple[int, int]]:
    """For each key in several roles: its first row, paired with its first row in each other role."""
    first: dict[str, dict[str, int]] = {}
    for row, (key, role) in enumerate(zip(keys.tolist(), roles.tolist(), strict=True)):
        first.setdefault(key, {}).setdefault(role, row)
    return [(rows[0], other) for rows in (list(found.values()) for found in first.values()) for other in rows[1:]]


# ---- roles -------------------------------------------------------------------------------------------------------


def assign_roles(
    groups: Texts,
    labels: NDArray[np.int64],
    given: Texts | None,
    config: SplitConfig,
    previous: Mapping[str, str] | None = None,
) -> Texts:
    """Role of each image, str [N]; a group is never in two roles.

    groups: str [N]. labels: int64 [N]. given: str [N] roles that are returned unchanged, or None.
    previous: role of old groups; they stay.
    hash: the role where sha256("seed|group"), as a number in [0, 1), falls among the cumulated fractions; it depends on
    the group alone, so adding data moves nothing. balanced: stratified by label mix and size, at random inside
    (dealing.py).
    By both, every group that is not an old one has the chance `fractions` of each role, whatever it holds.
    Raises DataError for fewer groups than roles (of a fraction above 0), and where no balanced deal serves every role.
    """
    return _assigned(groups, labels, given, config, previous)[0]


def _assigned(
    groups: Texts,
    labels: NDArray[np.int64],
    given: Texts | None,
    config: SplitConfig,
    previous: Mapping[str, str] | None,
) -> tuple[Texts, int]:
    """assign_roles, and the deals that were thrown away for it."""
    if given is not None:
        return given, 0
    names, index = np.unique(groups, return_inverse=True)
    index = index.reshape(len(groups))
    fractions = np.array([getattr(config.fractions, role) for role in ROLES])
    needed = int((fractions > 0).sum())
    if len(names) < needed:
        raise DataError(
            f"{len(names)} group(s) for {needed} roles: a group stays in one role; add groups, give a finer group"
            " column, or set a fraction to 0"
        )
    known = {name: previous[name] for name in names.tolist() if name in previous} if previous else {}
    redraws = 0
    if config.method == "hash":
        edges = np.cumsum(fractions)
        edges[-1] = 1.0
        dealt = [ROLES[int(np.searchsorted(edges, unit_interval(config.seed, name), side="right"))] for name in names]
    else:
        content = np.zeros((len(names), int(labels.max()) + 1))
        np.add.at(content, (index, labels), 1)
        dealt, redraws = _balanced(names.tolist(), content, config, known)
    chosen = [known.get(name, role) for name, role in zip(names.tolist(), dealt, strict=True)]
    return np.array(chosen, dtype=np.str_)[index], redraws


def _balanced(
    names: list[str], content: NDArray[np.float64], config: SplitConfig, known: Mapping[str, str]
) -> tuple[list[str], int]:
    """Role of each group ("" for old ones), and the redraws. content: images per group and class [G, K].

    New groups are dealt among themselves: what the old ones lack or have too much of would make the chances unequal.
    """
    new = [unit for unit, name in enumerate(names) if name not in known]
    if not new:
        return [""] * len(names), 0
    role_of = np.array([known.get(name, "") for name in names])
    covered = {role: np.asarray((content[role_of == role] > 0).any(axis=0)) for role in ROLES}
    found = deal([names[unit] for unit in new], content[new], config.fractions.model_dump(), config.seed, covered)
    if found is None:
        holders = (content > 0).sum(axis=0)
        raise DataError(
            f"split: {len(names)} groups, the rarest class in {int(holders[holders > 0].min())} of them: no fair deal"
            f" gives each of {sum(share > 0 for share in config.fractions.model_dump().values())} roles every class;"
            " add groups of that class, set a fraction of split.fractions to 0, or give the roles in the table"
        )
    roles = [""] * len(names)
    for unit, role in zip(new, found.roles, strict=True):
        roles[unit] = role
    return roles, found.redraws


def _require_classes(table: SampleTable, roles: Texts, config: SplitConfig, given: bool) -> None:
    way_out = (
        "give it rows"
        if given
        else "add groups, change split.seed or split.fractions"
        + ("" if config.method == "balanced" else ", or set split.method=balanced")
    )
    for role in ROLES:
        if not given and getattr(config.fractions, role) == 0:
            continue
        counts = _counts(table, roles == role)
        if sum(counts.values()) == 0:
            raise DataError(f"role {role} is empty ({len(np.unique(table.groups))} groups in all); {way_out}")
        if empty := [name for name, count in counts.items() if count == 0]:
            raise DataError(
                f"role {role} has no image of class {empty[0]!r} ({sum(counts.values())} in all); {way_out}"
            )
