"""Roles that the data bring (folders, columns, splits): read, mapped by data.roles, or refused with the line to
write.
"""

from __future__ import annotations

import csv
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stage1.config import load_config
from stage1.data.given_roles import role_kinds, suggested
from stage1.data.ingest import read_source
from stage1.data.splits import split_table
from stage1.errors import ConfigError, DataError
from stage1.scores import ROLES

from .test_ingest import picture, write

THREE = "data.roles={train: train, val: val_select+val_calib, test: val_test}"


def tree(root: Path, *folders: str, images: int = 2) -> Path:
    """Pictures, all different, in each folder below root."""
    for number, folder in enumerate(folders):
        for image in range(images):
            write(root / folder / f"{image}.jpg", picture(1000 * number + image))
    return root


def under(tops: str, classes: str = "cat dog") -> list[str]:
    return [f"{top}/{name}" for top, name in itertools.product(tops.split(), classes.split())]


def config(table: Path, *overrides: str) -> Any:
    return load_config(overrides=[f"data.table={table}", "data.near_duplicates=false", *overrides], environment={})[0]


def read(table: Path, *overrides: str) -> Any:
    return read_source(config(table, *overrides).data)


# ---- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names, kind",
    [
        ("train Train TRAIN training training_set trainset TrainSet train2017 train-images seg_train Trn", "train"),
        ("val valid Validation validation_set dev valset val2017 VAL_IMAGES eval val_select val_calib", "val"),
        ("test Testing test_set testset test2017 holdout hold-out hold_out val_test seg_test", "test"),
        ("cat trains station set images 2017 contest latest trailer vale best train_test train_cargo", None),
    ],
)
def test_names_of_roles(names: str, kind: str | None) -> None:
    for name in names.split():
        assert role_kinds([name]) == {name: kind}, name


def test_words_that_all_names_share_do_not_count() -> None:
    assert role_kinds(["roads_train", "roads_val"]) == {"roads_train": "train", "roads_val": "val"}
    assert role_kinds(["train_cargo", "train_metro"]) == {"train_cargo": None, "train_metro": None}


@pytest.mark.parametrize(
    "names, line",
    [
        ("train val test", "data.roles={train: train, val: val_select+val_calib, test: val_test}"),
        ("test train", "data.roles={test: val_calib+val_test, train: train+val_select}"),
        ("train val", "data.roles={train: train+val_select, val: val_calib+val_test}"),
        ("train", "data.roles={train: train+val_select+val_calib+val_test}"),
        ("Train validation extra", "data.roles={Train: train+val_select, validation: val_calib+val_test, extra: none}"),
    ],
)
def test_the_line_to_write_is_taken(tmp_path: Path, names: str, line: str) -> None:
    assert suggested(names.split()) == line
    root = tree(tmp_path / "data", *under(names))
    given = read(root, line).given_roles.tolist()
    assert set("+".join(given).split("+")) == set(ROLES)


# ---- folders -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tops",
    [
        "train val",
        "train val test",
        "training_set test_set",
        "Train Validation Test",
        "train2017 val2017",
        "train",
        "train test extra",
    ],
)
def test_folders_named_as_roles_are_no_classes(tmp_path: Path, tops: str) -> None:
    root = tree(tmp_path / "data", *under(tops))
    with pytest.raises(DataError, match=r"data.roles=\{.*; or, if these are the classes, data.classes=\[") as error:
        read(root)
    assert "\n" not in str(error.value)
    assert suggested(sorted(tops.split())) in str(error.value)


@pytest.mark.parametrize("tops", [ROLES, [role.upper() for role in ROLES]])
def test_the_four_folders_are_the_roles(tmp_path: Path, tops: list[str]) -> None:
    table = read(tree(tmp_path / "data", *under(" ".join(tops)))).table
    assert table.classes == ("cat", "dog")
    for role in ROLES:
        assert table.labels[table.rows(role)].tolist() == [0, 0, 1, 1]


def test_a_mapping_says_which_folder_is_which(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", *under("Train val test unlabelled"))
    write(root / "val" / "stray.jpg", picture(99))
    found = read(
        root,
        "data.roles={train: train, val: val_calib+val_select, test: val_test, unlabelled: none}",
        "data.max_quarantine=.1",
    )
    assert found.table.classes == ("cat", "dog")
    of = {"Train": "train", "val": "val_select+val_calib", "test": "val_test"}
    wanted = [of[Path(path).parts[-3]] for path in found.table.paths.tolist()]
    assert found.given_roles.tolist() == wanted
    assert len(found.table) == 12
    assert [(Path(item.path).name, item.reason) for item in found.quarantine] == [("stray.jpg", "no class folder")]


def test_a_folder_between_role_and_class_is_no_class(tmp_path: Path) -> None:
    root = tree(tmp_path / "data", *under("seg_train/seg_train seg_test/images"))
    table = read(root, "data.roles={seg_train: train+val_select, seg_test: val_calib+val_test}").table
    assert table.classes == ("cat", "dog")


@pytest.mark.parametrize(
    "folders, overrides",
    [
        (["bus", "train"], []),  # vehicles
        (["bus/front", "bus/rear", "train/front", "train/rear"], []),
        (["train", "test"], ["data.classes=[train, test]"]),
        (["train/steam", "test/steam"], ["data.classes=[test, train]"]),
    ],
)
def test_classes_may_be_called_so(tmp_path: Path, folders: list[str], overrides: list[str]) -> None:
    found = read(tree(tmp_path / "data", *folders), *overrides)
    assert set(found.table.classes) == {folder.split("/")[0] for folder in folders}
    assert set(found.given_roles.tolist()) == {""}


def test_role_folders_without_class_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"hold no class folders.*data.classes=\[test, train\]"):
        read(tree(tmp_path / "data", "train", "test"))


@pytest.mark.parametrize(
    "line, words",
    [
        ("data.roles={train: train, val: val_select+val_calib}", "folder 'test' is not in data.roles"),
        ("data.roles={train: train, val: val_calib, test: val_test}", "leaves val_select without images"),
        (THREE[:-1] + ", extra: none}", "data.roles names 'extra'"),
    ],
)
def test_mappings_that_do_not_fit_are_named(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(tree(tmp_path / "data", *under("train val test")), line)


@pytest.mark.parametrize("value", ["valid", "train+train", "", "none+train"])
def test_values_that_are_no_roles_are_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"data.roles: val: .*give roles of train"):
        load_config(overrides=[f'data.roles={{val: "{value}"}}'])


# ---- columns, splits, tars ---------------------------------------------------------------------------------------


def rows_of(folder: Path, splits: list[str]) -> list[dict[str, Any]]:
    return [
        {"image": str(write(folder / f"{n}.jpg", picture(n))), "label": ["cat", "dog"][n % 2], "split": splits[n // 4]}
        for n in range(4 * len(splits))
    ]


def written(folder: Path, ending: str, splits: list[str]) -> Path:
    rows, to = rows_of(folder / "img", splits), folder / f"table{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), to)
    elif ending:
        with open(to, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if ending == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    else:
        datasets = pytest.importorskip("datasets")
        cells = {name: [row for row in rows if row["split"] == name] for name in splits}
        datasets.DatasetDict(
            {
                name: datasets.Dataset.from_list(
                    [
                        {"image": {"bytes": Path(row["image"]).read_bytes(), "path": None}, "label": row["label"]}
                        for row in of_split
                    ]
                )
                for name, of_split in cells.items()
            }
        ).save_to_disk(str(to))
    return to


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ""])
def test_columns_and_splits_follow_the_same_rule(tmp_path: Path, ending: str) -> None:
    table = written(tmp_path, ending, ["train", "val", "test"])
    with pytest.raises(DataError, match="split.* 'val' is no role of a run") as error:
        read(table)
    assert THREE in str(error.value)
    assert read(table, THREE).given_roles.tolist() == ["train"] * 4 + ["val_select+val_calib"] * 4 + ["val_test"] * 4
    # a name that is a role already need not be mapped
    assert read(table, THREE.replace("train: train, ", "")).given_roles.tolist()[0] == "train"
    assert set(
        read(table, THREE.replace("train: train", "train: none").replace("val_test", "train+val_test")).given_roles
    ) == {
        "val_select+val_calib",
        "train+val_test",
    }


def test_splits_that_are_no_roles_are_pooled(tmp_path: Path) -> None:
    found = read(written(tmp_path, "", ["2019", "2020"])).table
    assert found.sources.tolist() == ["2019"] * 4 + ["2020"] * 4
    assert set(found.roles.tolist()) == {""}


# ---- the cut -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["hash", "balanced"])
def test_a_pool_is_cut_by_group_and_nothing_leaves_it(tmp_path: Path, method: str) -> None:
    root = tree(tmp_path / "data", *under("train val test"), images=40)
    options = (
        THREE,
        f"split.method={method}",
        "split.fractions={train: .4, val_select: .15, val_calib: .3, val_test: .15}",
    )
    wanted = config(root, *options)
    result = split_table(read(root, *options), wanted)
    tops = np.array([Path(path).parts[-3] for path in result.table.paths.tolist()])
    roles = result.table.roles
    assert set(roles[tops == "train"]) == {"train"}
    assert set(roles[tops == "test"]) == {"val_test"}
    assert set(roles[tops == "val"]) == {"val_select", "val_calib"}
    assert 12 <= (roles == "val_select").sum() <= 42  # a third of 80, not .15 of all
    assert result.document["method"] == "given"


def test_groups_of_a_pool_stay_whole_and_leaks_across_pools_are_found(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "img", ["train", "val", "val", "val", "val", "test"])
    for number, row in enumerate(rows):
        row["group"] = f"g{number // 2}"

    def table(name: str) -> Path:
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
        return tmp_path / name

    whole = table("whole.parquet")
    result = split_table(read(whole, THREE), config(whole, THREE)).table
    assert all(len(set(result.roles[result.groups == group])) == 1 for group in set(result.groups.tolist()))
    rows[-1]["group"] = "g3"  # a group of val
    torn = table("torn.parquet")
    with pytest.raises(DataError, match=r"same group: .*\(val_select\+val_calib\) and .*\(val_test\)"):
        split_table(read(torn, THREE), config(torn, THREE))
    rows[-1] = {**rows[0], "split": "test", "group": "other"}  # the same bytes in train
    copied = table("copied.parquet")
    with pytest.raises(DataError, match=r"same bytes: .*\(train\) and .*\(val_test\)"):
        split_table(read(copied, THREE), config(copied, THREE))


def test_a_mapping_is_taken_back_for_a_table_with_roles_of_its_own() -> None:
    mapped = load_config(overrides=[THREE])[0]
    assert load_config(values=mapped.model_dump(mode="json"), overrides=["data.roles={}"])[0].data.roles == {}
    assert load_config(overrides=[THREE, "data.roles.val=val_calib+val_select"])[0].data.roles == mapped.data.roles
    with pytest.raises(ConfigError, match="data.roles and data.role_tables are both given"):
        read_source(load_config(overrides=[THREE, "data.role_tables={train: a.csv}"])[0].data)


def test_roles_of_ours_are_known_however_they_are_spelled(tmp_path: Path) -> None:
    found = read(tree(tmp_path, *under("TRAIN Val-Select ValCalib val__test")))
    assert sorted(set(found.given_roles.tolist())) == sorted(ROLES)
