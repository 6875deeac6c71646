"""Splits: stable, by group, near-duplicates joined, old groups never moved, given roles checked."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.config import RunConfig, SplitConfig
from stage1.data.dealing import BY_SIZE, STRATIFIED, unit_interval
from stage1.data.duplicates import dhash
from stage1.data.ingest import Ingest, read_source
from stage1.data.splits import SPLITS_KIND, assign_roles, dealing_of, join_groups, split_table
from stage1.data.table import SampleTable
from stage1.errors import DataError
from stage1.scores import ROLES
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_bytes

NO_PAIRS = np.empty((0, 2), np.int64)


def ingest(
    groups: list[str],
    looks: list[int] | None = None,
    roles: list[str] | None = None,
    names: list[str] | None = None,
    labels: list[int] | None = None,
    links: tuple[tuple[int, str], ...] = (),
) -> Ingest:
    """Images of the given groups; equal `looks` are near-duplicates; names decide the ids."""
    n = len(groups)
    names = names or [f"image {row}" for row in range(n)]
    ids = [digest_bytes(name.encode()) for name in names]
    table = SampleTable(
        ids=ids,
        paths=names,
        labels=np.array(labels if labels else [row % 2 for row in range(n)]),
        groups=[group or ids[row] for row, group in enumerate(groups)],
        sources=[""] * n,
        timestamps=[""] * n,
        roles=roles or [""] * n,
        classes=("none", "roadwork"),
    )
    looks = looks if looks is not None else list(range(n))
    grays = np.stack([np.random.default_rng(look).integers(0, 256, (8, 9)) for look in looks]).astype(np.uint8)
    return Ingest(table, [], dhash(grays), grays, links, "", np.full(len(table), ""))


def config(**split: Any) -> RunConfig:
    return RunConfig.model_validate({"split": split})


def videos(n: int, frames: int = 2) -> list[str]:
    return [f"video {number}" for number in range(n) for _ in range(frames)]


# ---- hash --------------------------------------------------------------------------------------------------------

names = st.lists(st.text(min_size=1, max_size=8), min_size=8, max_size=60, unique=True)


@settings(max_examples=50, deadline=None)
@given(names, names, st.integers(0, 99))
def test_hash_split_is_stable_when_data_are_added(old: list[str], new: list[str], seed: int) -> None:
    split = SplitConfig(seed=seed)
    merged = list(dict.fromkeys(new + old))  # the new ones even come first
    before = assign_roles(np.array(old), np.zeros(len(old), np.int64), None, split)
    after = assign_roles(np.array(merged), np.zeros(len(merged), np.int64), None, split)
    role = dict(zip(merged, after.tolist(), strict=True))
    assert [role[name] for name in old] == before.tolist()


def test_hash_split_is_pinned_and_follows_the_fractions() -> None:
    """A change of this rule would move the groups of every user: the values are fixed here."""
    assert unit_interval(0, "video 1") == pytest.approx(0.9138867651042011, abs=0)
    groups = np.array([f"video {number}" for number in range(20_000)])
    roles = assign_roles(groups, np.zeros(len(groups), np.int64), None, SplitConfig())
    shares = [float((roles == role).mean()) for role in ROLES]
    np.testing.assert_allclose(shares, [0.4, 0.1, 0.35, 0.15], atol=0.01)
    other = assign_roles(groups, np.zeros(len(groups), np.int64), None, SplitConfig(seed=1))
    assert (other != roles).mean() > 0.5


# ---- balanced ----------------------------------------------------------------------------------------------------


def test_balanced_split_meets_the_fractions_of_every_class() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.integers(20, 120, 60)
    groups = np.repeat([f"segment {number}" for number in range(60)], sizes)
    rate = np.repeat(rng.uniform(0.05, 0.5, 60), sizes)
    labels = (rng.random(len(groups)) < rate).astype(np.int64)
    roles = assign_roles(groups, labels, None, SplitConfig(method="balanced"))
    for label in (0, 1):
        shares = [float((roles[labels == label] == role).mean()) for role in ROLES]
        np.testing.assert_allclose(shares, [0.4, 0.1, 0.35, 0.15], atol=0.03)
    again = assign_roles(groups[::-1], labels[::-1], None, SplitConfig(method="balanced"))[::-1]
    assert (again == roles).all()  # the order of rows decides nothing


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=4, max_size=12))
def test_balanced_split_leaves_no_role_empty(sizes: list[int]) -> None:
    groups = np.repeat([f"g{number}" for number in range(len(sizes))], sizes)
    roles = assign_roles(groups, np.zeros(len(groups), np.int64), None, SplitConfig(method="balanced"))
    assert set(roles.tolist()) == set(ROLES)
    assert all(len(set(roles[groups == group].tolist())) == 1 for group in set(groups.tolist()))


def test_balanced_split_keeps_old_groups(tmp_path: Path) -> None:
    first = split_table(ingest(videos(12)), config(method="balanced"))
    write_document(tmp_path / "splits.json", first.document, SPLITS_KIND)
    previous = read_document(tmp_path / "splits.json", SPLITS_KIND)
    more = split_table(ingest([*[f"a{n}" for n in range(30)], *videos(12)]), config(method="balanced"), previous)
    for group, role in previous["groups"].items():
        assert more.document["groups"][group] == role
    assert more.document["n_groups"] == 42
    assert dealing_of(first.document) == dealing_of(more.document) == STRATIFIED


def test_groups_that_were_dealt_by_size_stay_and_leave_their_mark() -> None:
    """A splits.json from before the marker: what it dealt by size is still no fair sample when groups are added."""
    first = split_table(ingest(videos(12)), config(method="balanced")).document
    old = {name: value for name, value in first.items() if name not in ("dealing", "redraws")}
    assert dealing_of(old) == BY_SIZE
    more = split_table(ingest([*[f"a{n}" for n in range(30)], *videos(12)]), config(method="balanced"), old).document
    assert all(more["groups"][group] == role for group, role in old["groups"].items())
    assert dealing_of(more) == BY_SIZE
    # One image a group: dealt by label alone, in hash order, which was fair.
    single = split_table(ingest([""] * 30), config(method="balanced")).document
    assert dealing_of({name: value for name, value in single.items() if name != "dealing"}) == STRATIFIED
    again = {**first, "redraws": 2}
    assert dealing_of(again) == "stratified-redrawn"
    assert dealing_of(split_table(ingest(videos(40)), config()).document) == "hash"


# ---- what both promise -------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 14), st.integers(0, 30)), min_size=30, max_size=60),
    st.sampled_from(["hash", "balanced"]),
    st.integers(0, 5),
)
def test_neither_groups_nor_near_duplicates_straddle_roles(rows: list[tuple[int, int]], method: str, seed: int) -> None:
    source = ingest([f"g{group}" for group, _ in rows], [look for _, look in rows])
    try:
        result = split_table(source, config(method=method, seed=seed))
    except DataError:
        return  # too few groups are left when near-duplicates have joined them
    table = result.table
    assert len(table) == len(rows)
    for a, b in itertools.combinations(range(len(rows)), 2):
        if rows[a][0] == rows[b][0] or rows[a][1] == rows[b][1]:
            assert table.roles[a] == table.roles[b]
            assert table.groups[a] == table.groups[b]


def test_join_groups_names_the_union_by_known_then_smallest_name() -> None:
    groups = np.array(["d", "c", "b", "a", "e"])
    pairs = np.array([[0, 1], [1, 2]])
    assert join_groups(groups, pairs).tolist() == ["b", "b", "b", "a", "e"]
    assert join_groups(groups, pairs, {"d": "train"}).tolist() == ["d", "d", "d", "a", "e"]
    assert join_groups(groups, NO_PAIRS, None, None, [(4, "a")]).tolist() == ["d", "c", "b", "a", "a"]


def test_document_fits_its_schema_and_adds_up(tmp_path: Path) -> None:
    source = ingest(videos(60), [row if row != 7 else 20 for row in range(120)])
    result = split_table(source, config())
    write_document(tmp_path / "splits.json", result.document, SPLITS_KIND)
    document = read_document(tmp_path / "splits.json", SPLITS_KIND)
    assert sum(sum(counts.values()) for counts in document["counts"].values()) == 120
    assert document["n_groups"] == 59 == sum(document["group_counts"].values())
    assert document["near_duplicates"] == {"distance": 3, "pairs": 1, "clusters": 1, "images": 2, "joined_groups": 1}
    assert document["groups"]["video 3"] == document["groups"]["video 10"]  # row 7 and row 20
    assert not result.leakage
    off = RunConfig.model_validate({"data": {"near_duplicates": False}})
    assert split_table(source, off).document["near_duplicates"]["distance"] is None


# ---- growth: old groups never move -------------------------------------------------------------------------------


def two_roles(document: dict[str, Any], a: str, b: str) -> tuple[str, str]:
    """One group of role a, one of role b."""
    first, second = (next(g for g, r in document["groups"].items() if r == role) for role in (a, b))
    return first, second


def grown() -> tuple[dict[str, Any], list[str], list[int]]:
    groups, looks = videos(40), list(range(80))
    return split_table(ingest(groups, looks), config()).document, groups, looks


def test_same_data_again_change_nothing() -> None:
    document, groups, looks = grown()
    again = split_table(ingest(groups, looks), config(), document)
    assert again.document == document
    assert again.quarantine == []


def test_a_new_image_takes_the_role_of_its_old_look_alike() -> None:
    document, groups, looks = grown()
    for role in ROLES:
        old, _ = two_roles(document, role, role)
        look = looks[groups.index(old)]
        result = split_table(ingest(["new", "new", *groups], [look, 999, *looks]), config(), document)
        assert result.table.roles[:2].tolist() == [role, role]
        assert result.table.groups[:2].tolist() == [old, old]
        assert result.document["groups"]["new"] == role


@pytest.mark.parametrize("first", [True, False])
def test_an_image_that_bridges_two_roles_is_quarantined_and_moves_nothing(first: bool) -> None:
    document, groups, looks = grown()
    a, b = two_roles(document, "train", "val_calib")
    look_a, look_b = looks[groups.index(a)], looks[groups.index(b)]
    new = (["x", "x"], [look_a, look_b])
    rows = [*new[0], *groups] if first else [*groups, *new[0]]
    seen = [*new[1], *looks] if first else [*looks, *new[1]]
    names = [f"{group} {look} {row}" for row, (group, look) in enumerate(zip(rows, seen, strict=True))]
    source = ingest(rows, seen, names=names)
    result = split_table(source, config(), document)
    assert [item.reason for item in result.quarantine] == ["bridges two roles"]
    assert result.quarantine[0].path.startswith("x ")
    assert "train" in result.quarantine[0].detail
    assert "val_calib" in result.quarantine[0].detail
    assert len(result.table) == len(rows) - 1
    assert {group: result.document["groups"][group] for group in document["groups"]} == document["groups"]
    again = split_table(source, config(), result.document)
    assert again.document == result.document
    assert again.quarantine[0].path == result.quarantine[0].path


def test_of_two_old_groups_the_train_image_goes() -> None:
    """They became alike only when the distance was raised: nothing moves, no evaluation image is lost."""
    document, groups, looks = grown()
    a, b = two_roles(document, "val_test", "train")
    looks[groups.index(a)] = looks[groups.index(b)]
    result = split_table(ingest(groups, looks), config(), document)
    assert [item.path for item in result.quarantine] == [f"image {groups.index(b)}"]
    assert {g: r for g, r in result.document["groups"].items() if g in document["groups"]} == document["groups"]


def test_same_bytes_in_a_new_group_tie_it_to_the_old_one() -> None:
    document, groups, looks = grown()
    a, b = two_roles(document, "val_test", "train")
    # the first row is the image of group a, now also listed under "new" (kept there), with a link to a
    result = split_table(ingest(["new", *groups[1:]], looks, links=((0, a),)), config(), document)
    assert result.table.roles[0] == "val_test"
    both = split_table(ingest([a, *groups[1:]], looks, links=((0, b),)), config(), document)
    assert [item.reason for item in both.quarantine] == ["bridges two roles"]
    assert "also in group" in both.quarantine[0].detail


# ---- given roles -------------------------------------------------------------------------------------------------


def given_roles(n: int) -> list[str]:
    return [ROLES[(row // 2) % 4] for row in range(n)]


def test_given_roles_are_kept() -> None:
    source = ingest([""] * 16, roles=given_roles(16))
    result = split_table(source, config(), {"groups": {source.table.ids[0]: "val_test"}, "bridges": []})
    assert result.table.roles.tolist() == given_roles(16)
    assert result.document["method"] == "given"


@pytest.mark.parametrize("kind", ["near", "same bytes", "group"])
def test_leakage_across_given_roles_lists_the_pairs_or_marks_the_run(kind: str, tmp_path: Path) -> None:
    roles, looks, names, groups = given_roles(16), list(range(16)), [f"i{row}" for row in range(16)], [""] * 16
    if kind == "near":
        looks[1] = looks[2]
    elif kind == "same bytes":
        names[1] = names[2]
    else:
        groups[1] = groups[2] = "video"
    source = ingest(groups, looks, roles, names)
    with pytest.raises(DataError, match=r"1 pairs: .*\(train\) and .*\(val_select\).*allow_leakage"):
        split_table(source, config())
    result = split_table(source, config(allow_leakage=True))
    assert result.leakage
    assert result.table.roles.tolist() == roles
    write_document(tmp_path / "splits.json", result.document, SPLITS_KIND)
    assert read_document(tmp_path / "splits.json", SPLITS_KIND)["leaks"] == 1


def test_leakage_lists_ten_and_counts_all() -> None:
    looks = [row // 2 for row in range(40)]
    roles = [ROLES[row % 4] for row in range(40)]
    with pytest.raises(DataError, match="20 pairs") as caught:
        split_table(ingest([""] * 40, looks, roles), config())
    assert str(caught.value).count(" and image") == 10
    assert "\n" not in str(caught.value)


def test_near_duplicates_inside_a_given_role_join_groups() -> None:
    roles = given_roles(16)
    result = split_table(ingest([""] * 16, [0, 0, *range(2, 16)], roles), config())
    assert result.table.groups[0] == result.table.groups[1]
    assert result.document["n_groups"] == 15


# ---- too little --------------------------------------------------------------------------------------------------


def test_too_few_groups_are_refused() -> None:
    with pytest.raises(DataError, match=r"3 group\(s\) for 4 roles"):
        split_table(ingest(videos(3, 10)), config())


def test_an_empty_role_is_named() -> None:
    roles = ["train", "train", "val_select", "val_select", "val_calib", "val_calib"]
    with pytest.raises(DataError, match="val_test is empty"):
        split_table(ingest([""] * 6, roles=roles), config())


def test_a_role_without_a_class_is_named() -> None:
    roles = given_roles(16)
    labels = [0 if role == "val_calib" else row % 2 for row, role in enumerate(roles)]
    with pytest.raises(DataError, match="val_calib has no image of class 'roadwork'"):
        split_table(ingest([""] * 16, roles=roles, labels=labels), config())


def test_a_role_of_fraction_zero_stays_empty() -> None:
    fractions = {"train": 0.0, "val_select": 0.3, "val_calib": 0.4, "val_test": 0.3}
    for method in ("hash", "balanced"):
        result = split_table(ingest(videos(40)), config(method=method, fractions=fractions))
        assert (result.table.roles != "train").all()


def test_potholes_stay_apart(potholes: Path) -> None:
    """28 road segments, consecutive frames alike: near-duplicates stay inside their segment."""
    settings_ = RunConfig.model_validate({"data": {"table": str(potholes)}, "split": {"method": "balanced"}})
    result = split_table(read_source(settings_.data), settings_)
    assert result.document["n_groups"] == 28
    assert result.document["near_duplicates"]["joined_groups"] == 0
    assert result.document["near_duplicates"]["pairs"] > 100
