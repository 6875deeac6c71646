"""Sources: every format that users bring, every row accounted for, broken files named, nothing decoded twice."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import sys
import tarfile
import time
import zlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stage1.config import DataConfig
from stage1.data import ingest
from stage1.data.ingest import Ingest, read_source, source_digest
from stage1.data.table import SampleTable
from stage1.errors import ConfigError, DataError, MissingError
from stage1.sources.quarantine import Quarantined, QuarantineError, check_limit, write_quarantine
from stage1.storage.files import digest_bytes


def picture(seed: int, kind: str = "JPEG", side: int = 16) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def image_folder(root: Path, per_class: int = 5) -> Path:
    for label, name in enumerate(("none", "roadwork")):
        for number in range(per_class):
            write(root / name / f"{number}.jpg", picture(label * 1000 + number))
    return root


def write_rows(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    with open(path, "w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def table_rows(folder: Path, n: int = 6, column: str = "image", labels: Any = ("0", "1")) -> list[dict[str, Any]]:
    return [
        {
            column: os.path.relpath(write(folder / "img" / f"{n}.jpg", picture(n)), folder),
            "label": labels[n % len(labels)],
        }
        for n in range(n)
    ]


def read(table: Path | str, **options: Any) -> Ingest:
    return read_source(DataConfig(table=str(table), **options))


def reasons(result: Ingest) -> dict[str, str]:
    return {Path(item.path).name: item.reason for item in result.quarantine}


# ---- formats -----------------------------------------------------------------------------------------------------


def test_image_folder(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data")
    write(root / "none" / "day 2" / "deep.png", picture(77, "PNG"))
    write(root / "none" / ".DS_Store", b"x")
    write(root / ".cache" / "x.jpg", b"x")
    write(root / "README.md", b"about")
    result = read(root)
    assert result.table.classes == ("none", "roadwork")
    assert len(result.table) == 11
    assert result.quarantine == []
    assert result.table.labels.tolist() == [0] * 6 + [1] * 5
    row = [Path(path).name for path in result.table.paths].index("deep.png")
    assert result.table.ids[row] == digest_bytes(picture(77, "PNG"))
    assert result.table.groups[row] == result.table.ids[row]
    assert result.table.read_bytes(row) == picture(77, "PNG")
    assert all(os.path.isabs(path) for path in result.table.paths)


@pytest.mark.parametrize("column", ["image", "path", "file_name", "filepath", "image_path"])
@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_tables_and_their_aliases(tmp_path: Path, column: str, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table_rows(tmp_path, column=column)
    for number, row in enumerate(rows):
        row |= {"group": f"video {number // 2}", "source": "cam", "timestamp": "2026-10-01T10:00", "extra": "x, y"}
    path = tmp_path / f"labels{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        write_rows(path, rows, "\t" if ending == ".tsv" else ",")
    monkeypatch.chdir(tmp_path.parent)  # relative paths resolve against the table, not against the working directory
    result = read(path)
    assert result.table.classes == ("0", "1")
    assert result.table.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert result.table.groups.tolist() == ["video 0", "video 0", "video 1", "video 1", "video 2", "video 2"]
    assert set(result.table.sources.tolist()) == {"cam"}
    assert set(result.table.timestamps.tolist()) == {"2026-10-01T10:00"}
    assert result.table.read_bytes(3) == picture(3)


@pytest.mark.parametrize("kind", ["struct", "binary", "paths"])
def test_parquet_with_embedded_images(tmp_path: Path, kind: str) -> None:
    files = [write(tmp_path / "img" / f"{n}.jpg", picture(n)) for n in range(6)]
    images: list[Any] = [picture(n) for n in range(6)]
    if kind == "struct":
        images = [{"bytes": data, "path": f"{n}.jpg"} for n, data in enumerate(images)]
        images[4] = {"bytes": None, "path": "img/4.jpg"}  # as `datasets` writes images that stay outside
    elif kind == "paths":
        images = [{"path": str(file.relative_to(tmp_path))} for file in files]
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": images, "label": [0, 1] * 3}), path, row_group_size=2)
    result = read(path)
    assert [result.table.read_bytes(row) for row in range(6)] == [picture(n) for n in range(6)]
    assert result.table.paths[1] == (str(files[1]) if kind == "paths" else f"{path}::1")
    assert result.table.paths[4] == (f"{path}::4" if kind == "binary" else str(files[4]))


def webdataset(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.mark.parametrize("ending", ["cls", "txt", "json"])
def test_webdataset(tmp_path: Path, ending: str) -> None:
    members = []
    for n in range(4):
        label = json.dumps({"label": n % 2, "group": f"g{n}"}) if ending == "json" else f"{n % 2}\n"
        members += [(f"x/{n}.jpg", picture(n)), (f"x/{n}.{ending}", label.encode())]
    members.append(("x/9.cls", b"1"))
    result = read(webdataset(tmp_path / "a.tar", members), max_quarantine=0.5)
    assert result.table.labels.tolist() == [0, 1, 0, 1]
    assert result.table.read_bytes(2) == picture(2)
    assert result.table.groups[1] == ("g1" if ending == "json" else result.table.ids[1])
    assert [item.reason for item in result.quarantine] == ["missing file"]


def test_tar_that_ends_inside_a_member_names_it(tmp_path: Path) -> None:
    members = [(f"{n}.{e}", d) for n in range(4) for e, d in (("cls", b"%d" % (n % 2)), ("jpg", picture(n, side=64)))]
    path = webdataset(tmp_path / "a.tar", members)
    data = path.read_bytes()
    path.write_bytes(data[: data.rindex(picture(3, side=64)[:100]) + 200])
    result = read(path, max_quarantine=0.5)
    assert len(result.table) == 3
    assert reasons(result) == {"a.tar::3.jpg": "unreadable"}


@pytest.mark.parametrize("splits", [(), ("2019", "2020"), ("train",), ("train", "val_test")])
def test_saved_hugging_face_dataset(tmp_path: Path, splits: tuple[str, ...]) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["zebra", "ant"])})

    def made(first: int) -> Any:
        rows = {"image": [{"bytes": picture(first + n), "path": None} for n in range(6)], "label": [0, 1] * 3}
        return datasets.Dataset.from_dict(rows, features=features).select([5, 4, 1, 0])

    data = datasets.DatasetDict({name: made(9 * at) for at, name in enumerate(splits)}) if splits else made(0)
    data.save_to_disk(str(tmp_path / "saved"))
    result = read(tmp_path / "saved")
    assert result.table.classes == ("zebra", "ant")  # the order that the dataset stores, not the alphabet
    assert result.table.labels.tolist() == [1, 0, 1, 0] * max(len(splits), 1)
    assert [result.table.read_bytes(row) for row in range(4)] == [picture(n) for n in (5, 4, 1, 0)]
    assert result.table.paths[0].endswith(".arrow::0")
    named = [name for name in splits for _ in range(4)]
    if splits == ("train", "val_test"):  # names of our roles
        assert result.table.roles.tolist() == named
    elif splits:  # others are no roles: pooled, and split anew by group
        assert result.table.sources.tolist() == named
        assert set(result.table.roles.tolist()) == {""}
    assert source_digest(DataConfig(table=str(tmp_path / "saved")))


def hf_source(
    to: Path, names: list[str], labels: list[Any], other: dict[str, tuple[list[str], list[Any]]] | None = None
) -> Path:
    """Pictures with ClassLabel columns, as `datasets` saves them or writes them to Parquet (by the ending)."""
    datasets = pytest.importorskip("datasets")
    columns = {"label": (names, labels)} | (other or {})
    features = datasets.Features(
        {
            "image": datasets.Image(),
            **{column: datasets.ClassLabel(names=known) for column, (known, _) in columns.items()},
        }
    )
    rows = {"image": [{"bytes": picture(number), "path": None} for number in range(len(labels))]}
    data = datasets.Dataset.from_dict(
        rows | {column: cells for column, (_, cells) in columns.items()}, features=features
    )
    data.to_parquet(str(to)) if to.suffix else data.save_to_disk(str(to))
    return to


@pytest.mark.parametrize("ending", ["", ".parquet"])
@pytest.mark.parametrize(
    "names, classes",
    [
        (["cat", "dog"], ["dog", "cat"]),
        (["1", "0"], None),
        (["1", "0"], ["0", "1"]),
        (["1", "0"], ["1", "0"]),
        (sorted(str(n) for n in range(12)), None),  # class folders 0..11, as `datasets` sorts them
        (sorted(str(n) for n in range(12)), [str(n) for n in range(12)]),
        (["True", "False"], ["false", "true"]),
        (["b", "a", "unused"], ["a", "b"]),
    ],
)
def test_an_integer_of_a_class_label_is_an_index_into_its_own_names(
    tmp_path: Path, ending: str, names: list[str], classes: list[str] | None
) -> None:
    labels = [number % (len(classes) if classes else len(names)) for number in range(24)]
    table = read(hf_source(tmp_path / f"hf{ending}", names, labels), classes=classes).table
    assert table.classes == tuple(classes or names)
    assert [table.classes[label].lower() for label in table.labels] == [names[label].lower() for label in labels]


def test_a_data_set_of_the_hub_is_read_the_same_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    saved = datasets.load_from_disk(str(hf_source(tmp_path / "saved", ["cat", "dog"], [0, 1, 1, 0])))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"train": saved}))
    assert read("hf:someone/pets", classes=["dog", "cat"]).table.labels.tolist() == [1, 0, 0, 1]
    assert read("hf:someone/pets").table.classes == ("cat", "dog")


@pytest.mark.parametrize("ending", ["", ".parquet"])
def test_stored_names_are_never_positions(tmp_path: Path, ending: str) -> None:
    for names in (["1", "0"], ["cat", "dog"]):
        with pytest.raises(DataError, match="row 0: label .* is outside the classes none, roadwork"):
            read(hf_source(tmp_path / f"{names[0]}{ending}", names, [0, 1, 0]), classes=["none", "roadwork"])
    # 0, 1 is what `datasets` fills in where nobody named the classes
    unnamed = read(hf_source(tmp_path / f"plain{ending}", ["0", "1"], [0, 1, 0]), classes=["none", "roadwork"])
    assert unnamed.table.labels.tolist() == [0, 1, 0]


@pytest.mark.parametrize("ending", ["", ".parquet"])
def test_other_columns_of_class_labels_are_their_names_too(tmp_path: Path, ending: str) -> None:
    other = {"split": (["val_test", "train"], [0, 1, 0, 1]), "city": (["Graz", "Linz"], [0, 0, 1, 1])}
    table = read(hf_source(tmp_path / f"hf{ending}", ["a", "b"], [0, 1, 1, 0], other), slices=["city"]).table
    assert table.roles.tolist() == ["val_test", "train"] * 2
    assert table.slices["city"].tolist() == ["Graz", "Graz", "Linz", "Linz"]


def test_class_labels_without_a_name(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    unknown = hf_source(tmp_path / "hidden", ["a", "b"], [0, 1, -1, 0])  # -1: a hidden test label
    with pytest.raises(DataError, match="row 2: no label"):
        read(unknown)
    meta = {b"huggingface": json.dumps({"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}}}})}
    paths = [str(write(tmp_path / f"{n}.jpg", picture(n))) for n in range(3)]
    for cells, named in (
        ([0, 1, 2], "row 2: 2 is no index into the 2 names"),
        ([0, 1, 1.0], ""),
        (["b", "a", None], "row 2: no label"),
    ):
        table = pa.table({"image": paths, "label": cells}).replace_schema_metadata(meta)
        pq.write_table(table, tmp_path / "t.parquet")
        if named:
            with pytest.raises(DataError, match=named):
                read(tmp_path / "t.parquet", classes=["b", "a"])
        else:
            assert read(tmp_path / "t.parquet", classes=["b", "a"]).table.labels.tolist() == [1, 0, 0]


def test_a_list_is_no_label(tmp_path: Path) -> None:
    paths = [str(write(tmp_path / f"{n}.jpg", picture(n))) for n in range(2)]
    pq.write_table(pa.table({"image": paths, "label": [[0], [1]]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match=r"row 0: label is \[0\]; one label for each image"):
        read(tmp_path / "t.parquet")


def test_missing_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # importing it raises ImportError
    write(tmp_path / "saved" / "dataset_info.json", b"{}")
    for table in (tmp_path / "saved", "hf:beans"):
        with pytest.raises(MissingError, match=r"pip install 'stage1-pro\[hf\]'") as caught:
            read(table)
        assert caught.value.exit_code == 3


def test_role_tables_and_role_columns(tmp_path: Path) -> None:
    from stage1.scores import ROLES

    rows = table_rows(tmp_path, 16)
    tables = {}
    for number, role in enumerate(ROLES):
        tables[role] = str(write_rows(tmp_path / f"{role}.csv", rows[number * 4 : number * 4 + 4]))
    result = read_source(DataConfig(role_tables=tables))
    assert result.table.roles.tolist() == [role for role in ROLES for _ in range(4)]
    for column in ("role", "split"):
        given = [{**row, column: ROLES[number // 4]} for number, row in enumerate(rows)]
        again = read(write_rows(tmp_path / "all.csv", given))
        assert again.digest == result.digest
    with pytest.raises(
        DataError, match=r"split column 'test' is no role of a run .*data.roles=\{test: .*rename the column"
    ):
        read(write_rows(tmp_path / "all.csv", [{**row, "split": "test"} for row in rows]))
    given[3]["split"] = ""
    with pytest.raises(DataError, match="1 of 16 rows have no role"):
        read(write_rows(tmp_path / "all.csv", given))
    contradiction = write_rows(tmp_path / "c.csv", [{**row, "role": "val_test"} for row in rows])
    with pytest.raises(DataError, match="given as train, but its role column says 'val_test'"):
        read_source(DataConfig(role_tables={"train": str(contradiction)}))
    with pytest.raises(ConfigError, match="both given"):
        read_source(DataConfig(table="x", role_tables=tables))


def test_relative_table_resolves_against_base(tmp_path: Path) -> None:
    write_rows(tmp_path / "labels.csv", table_rows(tmp_path))
    config = DataConfig(table="labels.csv")
    assert len(read_source(config, base=tmp_path).table) == 6
    assert source_digest(config, base=tmp_path)


# ---- labels ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "labels, classes",
    [
        (("10", "9", "2"), ("2", "9", "10")),
        (("roadwork", "none"), ("none", "roadwork")),
        (("1.0", "0.0"), ("0", "1")),
        (("b", "10", "9"), ("10", "9", "b")),
    ],
)
def test_derived_classes_are_sorted(tmp_path: Path, labels: tuple[str, ...], classes: tuple[str, ...]) -> None:
    result = read(write_rows(tmp_path / "l.csv", table_rows(tmp_path, labels=labels)))
    assert result.table.classes == classes
    given = [label.removesuffix(".0") for label in labels]
    assert [result.table.classes[label] for label in result.table.labels] == [given[n % len(labels)] for n in range(6)]


def test_explicit_order_wins_and_indices_are_understood(tmp_path: Path) -> None:
    names = read(write_rows(tmp_path / "l.csv", table_rows(tmp_path, labels=("a", "b"))), classes=["b", "a"])
    assert names.table.labels.tolist() == [1, 0] * 3
    numbers = read(write_rows(tmp_path / "l.csv", table_rows(tmp_path, labels=("0", "1"))), classes=["b", "a"])
    assert numbers.table.labels.tolist() == [0, 1] * 3
    assert numbers.table.classes == ("b", "a")
    # classes that are numbers are names, never indices
    swapped = read(write_rows(tmp_path / "l.csv", table_rows(tmp_path, labels=("0", "1"))), classes=["1", "0"])
    assert swapped.table.labels.tolist() == [1, 0] * 3


@pytest.mark.parametrize("value", ["bike", ""])
def test_label_outside_the_classes_is_an_error_or_quarantined(tmp_path: Path, value: str) -> None:
    rows = table_rows(tmp_path, labels=("none", "roadwork"))
    rows[3]["label"] = value
    path = write_rows(tmp_path / "l.csv", rows)
    with pytest.raises(DataError, match=rf"line 5: .*{value or 'no label'}.*bad_labels=quarantine"):
        read(path, classes=["none", "roadwork"])
    result = read(path, classes=["none", "roadwork"], bad_labels="quarantine", max_quarantine=0.2)
    assert reasons(result) == {"3.jpg": "bad label"}
    assert len(result.table) == 5


def test_one_class_only(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="one class only"):
        read(write_rows(tmp_path / "l.csv", table_rows(tmp_path, labels=("a",))))


# ---- duplicates --------------------------------------------------------------------------------------------------


def test_exact_duplicates_are_kept_once_and_link_their_groups(tmp_path: Path) -> None:
    rows = [{**row, "group": f"g{n}"} for n, row in enumerate(table_rows(tmp_path))]
    write(tmp_path / "img" / "copy.jpg", picture(0))
    rows += [{"image": "img/copy.jpg", "label": "0", "group": "g9"}, rows[2]]
    result = read(write_rows(tmp_path / "l.csv", rows))
    assert len(result.table) == 6
    assert [(Path(item.path).name, item.reason) for item in result.quarantine] == [
        ("copy.jpg", "exact duplicate"),
        ("2.jpg", "exact duplicate"),
    ]
    assert "0.jpg" in result.quarantine[0].detail
    assert result.links == ((0, "g9"),)


def test_same_bytes_with_two_labels_name_both_paths(tmp_path: Path) -> None:
    rows = table_rows(tmp_path)
    write(tmp_path / "img" / "copy.jpg", picture(0))
    path = write_rows(tmp_path / "l.csv", [*rows, {"image": "img/copy.jpg", "label": "1"}])
    with pytest.raises(DataError, match=r"0\.jpg is 0, .*copy\.jpg is 1"):
        read(path)
    result = read(path, bad_labels="quarantine", max_quarantine=0.5)
    assert reasons(result) == {"0.jpg": "two labels", "copy.jpg": "two labels"}
    assert len(result.table) == 5


def test_same_bytes_in_two_given_roles_stay_for_the_leakage_check(tmp_path: Path) -> None:
    rows = [{**row, "role": "train" if n < 3 else "val_test"} for n, row in enumerate(table_rows(tmp_path))]
    rows.append({**rows[0], "role": "val_test"})
    result = read(write_rows(tmp_path / "l.csv", rows))
    assert len(result.table) == 7
    assert result.quarantine == []


# ---- broken files ------------------------------------------------------------------------------------------------


def png_claiming(width: int, height: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")


def animation(kind: str) -> bytes:
    frames = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 99, 200)]
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def float_tiff() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).random((8, 8)).astype(np.float32)).save(stream, "TIFF")
    return stream.getvalue()


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x55]) + data[middle + 1 :]


BROKEN: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "empty.jpg": (lambda: b"", ("empty",)),
    "one-byte.jpg": (lambda: b"\xff", ("not an image",)),
    "header-only.jpg": (lambda: picture(900)[:20], ("truncated",)),
    "half.jpg": (lambda: (p := picture(901, side=64))[: len(p) // 2], ("truncated",)),
    "last-bytes-missing.jpg": (lambda: picture(902, side=64)[:-3], ("truncated",)),
    "half.png": (lambda: (p := picture(903, "PNG"))[: len(p) // 2], ("truncated",)),
    "no-end.png": (lambda: picture(904, "PNG")[:-12], ("truncated",)),
    "half.webp": (lambda: (p := picture(905, "WEBP"))[: len(p) // 2], ("truncated", "corrupt")),
    "half.bmp": (lambda: (p := picture(906, "BMP"))[: len(p) // 2], ("truncated",)),
    "half.tiff": (lambda: (p := picture(907, "TIFF"))[: len(p) // 2], ("truncated", "corrupt")),
    "flipped.png": (lambda: flipped(picture(908, "PNG")), ("corrupt", "truncated")),
    "zeros.jpg": (lambda: bytes(2000), ("not an image",)),
    "noise.jpg": (lambda: np.random.default_rng(1).bytes(3000), ("not an image",)),
    "text.jpg": (lambda: b"just some text\n" * 20, ("not an image",)),
    "page.jpg": (lambda: b"<!DOCTYPE html><html><body>404 not found</body></html>", ("not an image",)),
    "drawing.jpg": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><rect/></svg>', ("not an image",)),
    "document.png": (lambda: b"%PDF-1.7\n" + bytes(500), ("not an image",)),
    "huge.png": (lambda: png_claiming(30_000, 30_000), ("too large",)),
    "large.png": (lambda: png_claiming(9_000, 9_000), ("too large",)),
    "moving.gif": (lambda: animation("GIF"), ("animated",)),
    "moving.png": (lambda: animation("PNG"), ("animated",)),
    "float.tiff": (float_tiff, ("unsupported mode",)),
    "notes.txt": (lambda: b"forgotten here", ("not an image",)),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_twenty_kinds_of_broken_image_among_two_hundred_good_ones(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", per_class=100)
    for name, (make, _) in BROKEN.items():
        write(root / "none" / name, make())
    os.symlink(tmp_path / "gone.jpg", root / "none" / "dangling.jpg")
    os.mkfifo(root / "none" / "pipe.jpg")  # opening it for reading would wait for ever
    os.symlink(root, root / "none" / "loop")  # a folder that contains itself
    write(root / "loose.jpg", picture(990))
    expected = {name: allowed for name, (_, allowed) in BROKEN.items()}
    expected |= {"dangling.jpg": ("missing file",), "pipe.jpg": ("not a file",), "loose.jpg": ("no class folder",)}
    start = time.process_time()
    result = read(root / "", max_quarantine=0.5)
    assert time.process_time() - start < 20
    found = {Path(item.path).name: item.reason for item in result.quarantine if item.reason != "exact duplicate"}
    assert set(found) == set(expected)
    assert {name: why for name, why in found.items() if why not in expected[name]} == {}
    assert len(result.table) == 200
    assert all("\n" not in item.detail and item.detail for item in result.quarantine)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_much_quarantine_fails_with_the_arithmetic_and_the_list(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", per_class=100)
    for name in ("empty.jpg", "text.jpg", "huge.png", "half.jpg"):
        write(root / "roadwork" / name, BROKEN[name][0]())
    with pytest.raises(QuarantineError, match=r"4 of 204 images \(2\.0%\).* limit is 1\.0%.*empty\.jpg") as caught:
        read(root)
    assert isinstance(caught.value, DataError)
    assert len(caught.value.quarantine) == 4
    assert "quarantine.csv" in str(caught.value)
    assert len(read(root, max_quarantine=0.02).quarantine) == 4
    write_quarantine(tmp_path / "quarantine.csv", caught.value.quarantine)
    with open(tmp_path / "quarantine.csv", newline="") as stream:
        written = list(csv.DictReader(stream))
    assert [row["reason"] for row in written] == [item.reason for item in caught.value.quarantine]
    assert list(written[0]) == ["path", "reason", "detail"]


@pytest.mark.parametrize(
    "lost, total, limit, passes",
    [
        (2, 122, 0.01, True),
        (3, 122, 0.01, True),
        (4, 122, 0.01, False),
        (1, 20, 0.01, True),
        (1, 19, 0.01, False),
        (2, 39, 0.01, False),
        (10, 1000, 0.01, True),
        (11, 1000, 0.01, False),
        (1, 1000, 0.0, False),
        (4, 8, 0.5, True),
    ],
)
def test_a_few_broken_images_of_few_pass(lost: int, total: int, limit: float, passes: bool) -> None:
    items = [Quarantined(f"{row}.jpg", "truncated", "x") for row in range(lost)]
    with nullcontext() if passes else pytest.raises(QuarantineError, match=f"{lost} of {total} images"):
        check_limit(items, total, limit)


def test_file_names_that_are_no_utf8_are_read_stored_and_quarantined(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", per_class=30)
    odd = os.fsdecode(b"caf\xe9.jpg")
    write(root / "none" / odd, picture(990))
    write(root / "none" / os.fsdecode(b"br\xf6ken\\n.jpg"), b"text")
    result = read(root)
    assert len(result.table) == 61
    result.table.write(tmp_path / "samples.parquet")
    again = SampleTable.read(tmp_path / "samples.parquet")
    assert again.paths.tolist() == result.table.paths.tolist()
    row = [Path(path).name for path in again.paths.tolist()].index(odd)
    assert again.read_bytes(row) == picture(990)
    write_quarantine(tmp_path / "quarantine.csv", result.quarantine)
    assert "br\\udcf6ken" in (tmp_path / "quarantine.csv").read_text(encoding="utf-8")
    os.rename(root / "none", root / os.fsdecode(b"n\xe9nt"))
    with pytest.raises(DataError, match=r"class folder 'n\\udce9nt' has a name that is no UTF-8; rename it"):
        read(root)


def test_an_empty_class_folder_is_refused_unless_the_classes_are_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", per_class=3)
    (root / "bird" / "deep").mkdir(parents=True)
    with pytest.raises(DataError, match="no file in the class folder 'bird'; fill it, remove it, or name the classes"):
        read(root)
    assert read(root, classes=["none", "roadwork"]).table.classes == ("none", "roadwork")


@pytest.mark.parametrize("name", ["__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found"])
def test_folders_of_the_system_are_no_classes(tmp_path: Path, name: str) -> None:
    root = image_folder(tmp_path / "photos")
    write(root / name / "cat" / "0.jpg", picture(99))
    found = read(root)
    assert found.table.classes == ("none", "roadwork")


def test_a_link_to_itself_is_quarantined_by_name(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "photos")
    link = next(path for path in root.iterdir() if path.is_dir()) / "again"
    link.symlink_to("again")
    found = read(root, max_quarantine=0.5)
    assert len(found.table.ids) == 10
    assert list(reasons(found)) == ["again"]


def test_white_space_around_the_name_of_a_class_folder(tmp_path: Path) -> None:
    for place, name in enumerate((" cat ", "dog ")):
        write(tmp_path / name / "0.jpg", picture(place))
    assert read(tmp_path).table.classes == (" cat ", "dog ")
    assert read(tmp_path, classes=["dog", "cat"]).table.labels.tolist() == [1, 0]


def test_a_folder_of_folders_of_shards_says_which_to_give(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rows = pa.table({"image": ["a.jpg", "b.jpg"], "label": [0, 1]})
    pq.write_table(rows, tmp_path / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(DataError, match=rf"no images but \.parquet files.*data\.table={tmp_path / 'data'}$"):
        read(tmp_path)


def test_a_parquet_table_without_labels_says_what_it_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.jpg"], "lab": [0]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="no column 'label'; it has image, lab"):
        read(tmp_path / "a.parquet")


@pytest.mark.parametrize("blank", ["nan", "None", "NULL", "<NA>", "NaT", " "])
def test_blank_groups_of_a_table_are_groups_of_their_own(tmp_path: Path, blank: str) -> None:
    rows = [row | {"group": blank if place else "a"} for place, row in enumerate(table_rows(tmp_path))]
    found = read(write_rows(tmp_path / "t.csv", rows))
    assert len(set(found.table.groups.tolist())) == len(rows)


def test_run_directories_and_bundles_in_a_folder_of_images_are_no_classes(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", per_class=3)
    before = source_digest(DataConfig(table=str(root)))
    for place, files in (
        ("runs/one", (".lock", "config.yaml")),
        ("two", ("stages.json",)),
        ("none/three", (".lock",)),
        ("four", ("bundle.json", "model.onnx")),
    ):
        for name in files:
            write(root / place / name, b"")
        if files != (".lock",):
            write(root / place / "figures" / "roc.png", picture(99))
    result = read(root)
    assert result.table.classes == ("none", "roadwork")
    assert (len(result.table), result.quarantine) == (6, [])
    assert source_digest(DataConfig(table=str(root))) == before


def test_quarantine_file_survives_odd_names(tmp_path: Path) -> None:
    items = [Quarantined('a,"b"\n.jpg', "empty", "two\nlines"), Quarantined(os.fsdecode(b"\xff.jpg"), "empty", "x")]
    write_quarantine(tmp_path / "q.csv", items)
    with open(tmp_path / "q.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0] == {"path": 'a,"b"\n.jpg', "reason": "empty", "detail": "two lines"}
    write_quarantine(tmp_path / "q.csv", [])
    assert (tmp_path / "q.csv").read_text() == "path,reason,detail\n"


def test_missing_file_and_empty_path_are_quarantined(tmp_path: Path) -> None:
    rows = table_rows(tmp_path)
    rows += [{"image": "img/none.jpg", "label": "0"}, {"image": "", "label": "1"}, {"image": "img", "label": "1"}]
    result = read(write_rows(tmp_path / "l.csv", rows), max_quarantine=0.5)
    assert [item.reason for item in result.quarantine] == ["missing file", "missing file", "not a file"]


# ---- tables that make no sense -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, error, named",
    [
        ("l.csv", "image\na.jpg\n", DataError, "no column 'label'; it has image"),
        ("l.csv", "img,label\na.jpg,1\n", DataError, "no image column"),
        ("l.csv", "", DataError, "no image column"),
        ("l.csv", "image,label\n", DataError, "holds no images"),
        ("l.csv", "image,label\na,b,c\n", DataError, "line 2 has 3 cells"),
        ("l.csv", "image,label,label\na,b,c\n", DataError, "'label' occurs twice"),
        ("l.parquet", "nonsense", DataError, "cannot be read as Parquet"),
        ("l.tar", "nonsense", DataError, "no readable uncompressed tar"),
        ("l.tar", "", DataError, "l.tar"),
        ("l.xlsx", "x", DataError, "unknown kind of source"),
    ],
)
def test_unusable_tables_are_named(tmp_path: Path, name: str, content: str, error: type, named: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(error, match=named) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no such file or folder"):
        read(tmp_path / "nowhere.csv")
    with pytest.raises(ConfigError, match=r"data\.table is not set"):
        read_source(DataConfig())
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="no class folder"):
        read(tmp_path / "folder")
    write(tmp_path / "folder" / "labels.csv", b"x")
    with pytest.raises(DataError, match=r"give the table: data\.table=.*labels\.csv"):
        read(tmp_path / "folder")
    webdataset(tmp_path / "empty.tar", [])
    with pytest.raises(DataError, match="holds no images"):
        read(tmp_path / "empty.tar")
    (tmp_path / "latin.csv").write_bytes("image,label\ncaf\xe9.jpg,1\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read(tmp_path / "latin.csv")


# ---- digests and work --------------------------------------------------------------------------------------------


def test_each_image_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = ingest.decode
    monkeypatch.setattr(ingest, "decode", lambda data, **options: calls.append(1) or real(data, **options))
    result = read(image_folder(tmp_path / "data"))
    assert len(calls) == 10
    assert result.hashes.shape == (10,)
    assert result.grays.shape == (10, 8, 9)


def test_threads_change_nothing(tmp_path: Path) -> None:
    config = DataConfig(table=str(image_folder(tmp_path / "data", 20)))
    one, many = (read_source(config, workers=workers) for workers in (1, 8))
    assert one.digest == many.digest
    assert one.table.paths.tolist() == many.table.paths.tolist()
    np.testing.assert_array_equal(one.hashes, many.hashes)


def test_digest_is_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    import shutil

    root = image_folder(tmp_path / "a")
    shutil.copytree(root, tmp_path / "b")
    assert read(root).digest == read(tmp_path / "b").digest
    (tmp_path / "b" / "none" / "0.jpg").rename(tmp_path / "b" / "roadwork" / "a0.jpg")
    assert read(root).digest != read(tmp_path / "b").digest


def test_source_digest_notices_every_change_without_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "decode", lambda *a, **k: pytest.fail("decoded"))
    rows = table_rows(tmp_path)
    path = write_rows(tmp_path / "l.csv", rows)
    config = DataConfig(table=str(path))
    seen = [source_digest(config)]
    assert source_digest(config) == seen[0]
    write(tmp_path / "img" / "0.jpg", picture(0) + b"!")
    seen.append(source_digest(config))
    os.utime(tmp_path / "img" / "1.jpg", ns=(1, 1))
    seen.append(source_digest(config))
    (tmp_path / "img" / "2.jpg").unlink()
    seen.append(source_digest(config))
    rows[0]["label"] = "1"
    write_rows(path, rows)
    seen.append(source_digest(config))
    seen.append(source_digest(DataConfig(table=str(path), classes=["1", "0"])))
    assert len(set(seen)) == len(seen)


def test_source_digest_of_ten_thousand_images_in_time(tmp_path: Path) -> None:
    (tmp_path / "img").mkdir()
    for number in range(10_000):
        (tmp_path / "img" / f"{number}.jpg").touch()
    rows = [{"image": f"img/{number}.jpg", "label": number % 2} for number in range(10_000)]
    config = DataConfig(table=str(write_rows(tmp_path / "l.csv", rows)))
    start = time.process_time()
    source_digest(config)
    assert time.process_time() - start < 1.0


def test_potholes(potholes: Path) -> None:
    result = read(potholes)
    assert result.table.classes == ("0", "1")
    assert len(result.table) + len(result.quarantine) == 2235
    assert len(np.unique(result.table.groups)) == 28
