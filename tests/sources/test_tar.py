"""data.webdataset and data.shards: keys with dots, files of one sample, sources of several files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stage1.config import DataConfig
from stage1.data.ingest import Ingest, read_source, source_digest
from stage1.errors import ConfigError, DataError, MissingError
from stage1.sources.quarantine import QuarantineError
from stage1.sources.shards import part_name, shards
from stage1.sources.tar import Samples, samples


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()


def grouped(*names: str) -> Samples:
    return samples(names, lambda name: "image" in name, "x.tar")


def packed(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def read(table: Path | str, **options: object) -> Ingest:
    return read_source(DataConfig(table=str(table), near_duplicates=False, **options))


# ---- keys --------------------------------------------------------------------------------------------------------


def test_a_key_goes_to_the_last_dot_where_a_label_is_called_so() -> None:
    found = grouped(
        "cam0.png", "cam0.cls", "cam.3.png", "cam.3.cls", "d/cam.4.PNG", "d/cam.4.cls", "v1.5/a.jpg", "v1.5/a.txt"
    )
    assert found.images == {"cam0": "cam0.png", "cam.3": "cam.3.png", "d/cam.4": "d/cam.4.PNG", "v1.5/a": "v1.5/a.jpg"}
    assert [key for key, _ in found.notes] == ["cam0", "cam.3", "d/cam.4", "v1.5/a"]
    assert not found.further
    assert not found.alone


def test_further_files_of_a_sample_are_named_and_not_taken_for_images_of_their_own() -> None:
    found = grouped("x.jpg", "x.seg.png", "x.cls", "x.caption.txt", "x.npy", "y.seg.png", "y.jpg", "y.json")
    assert found.images == {"x": "x.jpg", "y": "y.jpg"}
    assert found.notes == [("x", "x.cls"), ("y", "y.json")]
    assert [name for name, _ in found.further] == ["x.seg.png", "y.seg.png"]


def test_an_image_under_a_longer_name_is_that_of_the_sample_where_it_is_the_only_one() -> None:
    assert grouped("a.rgb.jpg", "a.cls").images == {"a": "a.rgb.jpg"}
    with pytest.raises(DataError, match=r"x\.tar: 'a\.left\.jpg' and 'a\.right\.jpg' share the key 'a'"):
        grouped("a.left.jpg", "a.right.jpg", "a.cls")
    with pytest.raises(DataError, match="share the key"):
        grouped("a.jpg", "a.png", "a.cls")


def test_nothing_is_lost_without_a_word() -> None:
    found = grouped("a.heic", "a.cls", "b.cls", "image7", "image7.cls", "c.png", ".d.png", "e.1.cls")
    assert found.images == {"a": "a.heic", "image7": "image7", "c": "c.png"}
    assert found.alone == ["b", "e.1"]


def test_a_tar_with_dotted_names_gives_all_its_images(tmp_path: Path) -> None:
    members: dict[str, bytes] = {}
    for row, stem in enumerate(("cam0", "cam1", "cam2", "cam.3", "cam.4", "cam.5")):
        members |= {f"{stem}.png": picture(row), f"{stem}.cls": str(row % 2).encode()}
    result = read(packed(tmp_path / "a.tar", members))
    assert len(result.table) == 6
    assert result.table.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert result.quarantine == []
    members |= {"cam0.mask.png": picture(90), "phone.heic": b"\0\0\0\x18ftypheic" + bytes(90), "phone.cls": b"1"}
    result = read(packed(tmp_path / "b.tar", members), max_quarantine=0.2)
    assert len(result.table) == 6
    assert [(item.path.rpartition("::")[2], item.reason) for item in result.quarantine] == [
        ("cam0.mask.png", "further file"),
        ("phone.heic", "unread format"),
    ]
    with pytest.raises(QuarantineError, match="1 of 8 images"):
        read(tmp_path / "b.tar")


def test_members_whose_names_are_no_utf8_are_read_again_from_the_table(tmp_path: Path) -> None:
    members = {
        name: picture(row) if name.endswith("png") else str(row % 4 // 2).encode()
        for row, name in enumerate(("a.png", "a.cls", "caf\udce9.png", "caf\udce9.cls"))
    }
    table = read(packed(tmp_path / "a.tar", members)).table
    table.write(tmp_path / "samples.parquet")
    again = type(table).read(tmp_path / "samples.parquet")
    assert again.paths.tolist() == table.paths.tolist()
    assert again.read_bytes(1) == members["caf\udce9.png"]


# ---- several files -----------------------------------------------------------------------------------------------


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(3):
        members = {f"{shard}-{row}.png": picture(10 * shard + row) for row in range(4)}
        members |= {f"{shard}-{row}.cls": str(row % 2).encode() for row in range(4)}
        packed(folder / f"part-{shard:03}.tar", members)
    return folder


@pytest.mark.parametrize(
    "given", ["", "part-*.tar", "part-{000..002}.tar", "part-00{0,2,1}.tar", "{part}-0{00..02}.tar"]
)
def test_shards_are_one_source(tars: Path, given: str) -> None:
    if given.startswith("{part}"):  # no range and no list: the braces are part of the name
        (tars / "x").mkdir()
        for path in tars.glob("*.tar"):
            path.rename(tars / "x" / f"{{part}}{path.name[4:]}")
        tars = tars / "x"
    result = read(tars / given if given else tars)
    assert len(result.table) == 12
    assert result.table.labels.tolist() == [0, 1] * 6
    first = 4 if "2,1" in given else 0
    assert [path.rpartition("/")[2] for path in result.table.paths[4:6].tolist()] == (
        [f"part-00{2 if first else 1}.tar::{2 if first else 1}-{row}.png" for row in range(2)]
        if "{part}" not in given
        else [f"{{part}}-001.tar::1-{row}.png" for row in range(2)]
    )


def test_a_change_in_any_shard_changes_the_light_digest(tars: Path) -> None:
    config = DataConfig(table=str(tars))
    before = source_digest(config)
    packed(tars / "part-002.tar", {"2-0.png": picture(77), "2-0.cls": b"1"})
    assert source_digest(config) != before


def test_a_shard_that_is_not_there_and_a_star_that_nothing_fits_are_named(tars: Path) -> None:
    with pytest.raises(MissingError, match=r"no such file .*part-003\.tar"):
        read(tars / "part-{000..003}.tar")
    with pytest.raises(MissingError, match="no such file"):
        read(tars / "other-*.tar")
    with pytest.raises(ConfigError, match="more than 100000 files"):
        read(tars / "part-{0..999999999}.tar")
    (tars / "table.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"several kinds \(\.parquet, \.tar\); give those of one"):
        read(tars)


def test_a_folder_of_parquet_shards_is_one_source(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for shard in range(2):
        cells = [{"bytes": picture(10 * shard + row), "path": None} for row in range(4)]
        table = pa.table({"image": cells, "label": ["cat", "dog"] * 2, "city": [f"c{shard}"] * 4})
        pq.write_table(table, folder / f"train-0000{shard}-of-00002.parquet")
    (folder / "README.md").write_text("a card")
    result = read(folder, slices=["city"])
    assert result.table.classes == ("cat", "dog")
    assert result.table.slices["city"].tolist() == ["c0"] * 4 + ["c1"] * 4
    assert len(read(folder / "*.parquet").table) == 8
    pq.write_table(pa.table({"image": cells, "other": [1] * 4}), folder / "train-00002-of-00002.parquet")
    with pytest.raises(DataError, match=r"train-00002-of-00002\.parquet: no column 'label'"):
        read(folder)


def test_shards_called_train_and_test_are_splits_as_those_of_a_data_set(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for place, name in enumerate(("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001")):
        cells = [{"bytes": picture(10 * place + row), "path": None} for row in range(4)]
        pq.write_table(pa.table({"image": cells, "label": ["cat", "dog"] * 2}), folder / f"{name}.parquet")
    with pytest.raises(DataError, match=r"data\.roles"):
        read(folder)
    result = read(folder, roles={"train": "train+val_select+val_calib", "test": "val_test"})
    assert result.table.roles.tolist()[:4] == ["val_test"] * 4
    assert "val_test" not in result.table.roles.tolist()[4:]
    assert [part_name(Path(name)) for name in ("a-{1}.tar", "part-003.tar", "x_val_12.parquet")] == [
        "a-{1}",
        "part",
        "x_val",
    ]


def test_a_file_called_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    path = tmp_path / "a[1]{0..2}.tar"
    path.write_bytes(b"")
    assert shards(str(path), path) is None
