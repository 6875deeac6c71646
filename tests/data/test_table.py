"""SampleTable: its checks, its file, its way back to the bytes."""

from __future__ import annotations

import io
import os
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stage1.data.table import SampleTable
from stage1.errors import DataError, IntegrityError, MissingError
from stage1.sources import locators
from stage1.sources.locators import read_locator, split_locator
from stage1.storage.files import digest_bytes


def sample(folder: Path, n: int = 6, **changes: Any) -> SampleTable:
    contents = [f"image {row}".encode() for row in range(n)]
    for row, data in enumerate(contents):
        (folder / f"{row}.jpg").write_bytes(data)
    columns: dict[str, Any] = {
        "ids": [digest_bytes(data) for data in contents],
        "paths": [str(folder / f"{row}.jpg") for row in range(n)],
        "labels": np.arange(n) % 2,
        "groups": [f"video {row // 2}" for row in range(n)],
        "sources": [""] * n,
        "timestamps": ["2026-01-01"] * n,
        "roles": (["train", "val_select", "val_calib", "val_test", "train", "train"] * n)[:n],
        "classes": ("none", "roadwork"),
    }
    return SampleTable(**{**columns, **changes})


def test_file_gives_the_same_table_back(tmp_path: Path) -> None:
    table = sample(tmp_path)
    table.write(tmp_path / "samples.parquet")
    again = SampleTable.read(tmp_path / "samples.parquet")
    assert again.classes == table.classes
    for name in ("ids", "paths", "labels", "groups", "sources", "timestamps", "roles"):
        np.testing.assert_array_equal(getattr(again, name), getattr(table, name))
    assert pq.read_table(tmp_path / "samples.parquet").column_names == [
        "id",
        "path",
        "label",
        "group",
        "source",
        "timestamp",
        "role",
    ]


def test_rows_take_and_items(tmp_path: Path) -> None:
    table = sample(tmp_path)
    assert table.rows("train").tolist() == [0, 4, 5]
    assert table.rows("val_test").dtype == np.int64
    with pytest.raises(DataError, match="val_tset"):
        table.rows("val_tset")
    part = table.take([4, 1])
    assert part.ids.tolist() == [table.ids[4], table.ids[1]]
    assert part.labels.tolist() == [0, 1]
    assert len(table.take([])) == 0
    assert [read() for read in table.items([2, 0])] == [b"image 2", b"image 0"]


def test_changed_bytes_are_an_integrity_error_and_a_lost_file_an_os_error(tmp_path: Path) -> None:
    table = sample(tmp_path)
    Path(table.paths[0]).write_bytes(b"something else")
    with pytest.raises(IntegrityError, match=r"0\.jpg: its bytes have changed"):
        table.read_bytes(0)
    Path(table.paths[1]).unlink()
    with pytest.raises(FileNotFoundError):
        table.read_bytes(1)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"labels": np.array([0, 1, 2, 0, 1, 0])}, "row 2 is 2"),
        ({"labels": np.array([0, -1, 1, 0, 1, 0])}, "row 1 is -1"),
        ({"labels": np.zeros(6)}, "float64"),
        ({"groups": ["a"]}, "groups"),
        ({"roles": ["train"] * 5 + ["test"]}, "'test'"),
        ({"ids": ["a"] * 6}, "occurs 3 times"),
        ({"classes": ("x", "x")}, "must differ"),
    ],
)
def test_bad_columns_are_named(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(DataError, match=named):
        sample(tmp_path, **changes)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="stage1 split"):
        SampleTable.read(tmp_path / "samples.parquet")
    table = sample(tmp_path)
    path = tmp_path / "samples.parquet"
    table.write(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(IntegrityError, match=r"samples\.parquet"):
        SampleTable.read(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(IntegrityError, match="not a whole sample table"):
        SampleTable.read(path)
    newer = pa.table({"id": ["a"]}).replace_schema_metadata({"stage1": '{"schema_version": 2, "classes": ["a", "b"]}'})
    pq.write_table(newer, path)
    with pytest.raises(IntegrityError):
        SampleTable.read(path)


# ---- locators ----------------------------------------------------------------------------------------------------


def test_split_locator() -> None:
    assert split_locator("/a/b.tar::c/d.jpg") == ("/a/b.tar", "c/d.jpg")
    assert split_locator("/a/b.parquet::17") == ("/a/b.parquet", "17")
    assert split_locator("/a/b::c.jpg") is None
    assert split_locator("/a/b.tar.jpg") is None


def test_tar_members_are_read_in_place(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, data in (("x/1.jpg", b"one"), ("x/2::odd.jpg", b"two")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    assert read_locator(f"{path}::x/1.jpg") == b"one"
    assert read_locator(f"{path}::x/2::odd.jpg") == b"two"
    with pytest.raises(FileNotFoundError, match="no member"):
        read_locator(f"{path}::x/3.jpg")


@pytest.mark.parametrize("kind", ["struct", "binary"])
def test_embedded_bytes_are_read_from_any_row_group_by_many_threads(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.parquet"
    values = [f"bytes {row}".encode() for row in range(95)]
    images = values if kind == "binary" else [{"bytes": value, "path": None} for value in values]
    pq.write_table(pa.table({"label": [0] * 95, "image": images}), path, row_group_size=10)
    order = np.random.default_rng(0).permutation(95).tolist()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda row: read_locator(f"{path}::{row}"), order))
    assert found == [values[row] for row in order]


def test_a_rewritten_container_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    for turn, value in enumerate((b"old", b"new")):
        pq.write_table(pa.table({"image": [value]}), path)
        os.utime(path, ns=(turn, turn))
        assert read_locator(f"{path}::0") == value


def test_image_column_takes_the_first_alias() -> None:
    assert locators.image_column(["label", "filepath", "path"], "t") == "path"
    with pytest.raises(DataError, match="it has label, img"):
        locators.image_column(["label", "img"], "t")
