"""`challenge make` on disk: what stands in the folder, going on after a stop, sources of every kind, the balance."""

from __future__ import annotations

import csv
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1.config import DataConfig
from stage1.data.ingest import read_source
from stage1.errors import ConfigError, DataError, Stage1Error
from stage1.runs.progress import Progress
from stage1.stages.challenge import make_challenges
from stage1.storage.files import digest_bytes
from stage1.streetvision.challenge import challenge, write_folder
from stage1.streetvision.challenge.folder import balanced_rows

QUIET = Progress(quiet=True)


def write_table(folder: Path, n: int = 12, side: int = 40, **columns: list[str]) -> Path:
    """n PNGs of coarse noise and labels.csv: every third is roadwork, three images a group."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    rows = [["image", "label", "group", *columns]]
    for i in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8))
        coarse.resize((side + 9, side), Image.Resampling.BICUBIC).save(folder / "images" / f"{i}.png")
        rows.append(
            [f"images/{i}.png", ("roadwork", "none", "none")[i % 3], f"g{i // 3}", *(c[i] for c in columns.values())]
        )
    with open(folder / "labels.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    return folder / "labels.csv"


def rows_of(table: Path | str) -> list[dict[str, str]]:
    with open(table, newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def make(source: Path, output: Path, **options):
    defaults = {
        "level": "mixture",
        "copies": 1,
        "seed": 0,
        "balance": False,
        "filter_rows": False,
        "carry": [],
        "classes": None,
    }
    return make_challenges(str(source), output, **{**defaults, "workers": 1, "progress": QUIET, **options})


def test_rows_name_their_source_and_keep_group_and_role(tmp_path):
    roles = ["train"] * 6 + ["val_calib"] * 6
    source = write_table(tmp_path / "in", split=roles, city=["Bonn"] * 12)
    document = make(source, tmp_path / "out", copies=2, carry=["city"], seed=3)
    rows = rows_of(document["table"])
    assert list(rows[0]) == ["image", "label", "group", "level", "source_image", "role", "city"]
    assert len(rows) == 24
    assert document["sources"] == 12
    for i, row in enumerate(rows):
        original = tmp_path / "in" / row["source_image"]
        assert row["source_image"] == f"images/{i // 2}.png"
        assert (row["group"], row["role"], row["city"]) == (f"g{i // 6}", roles[i // 2], "Bonn")
        made = challenge(original.read_bytes(), row["level"], seed=3, copy=i % 2)
        assert (tmp_path / "out" / row["image"]).read_bytes() == made.jpeg
    # It is a source like any other: groups whole, roles given.
    again = read_source(DataConfig(table=str(document["table"]), slices=["level"])).table
    assert set(again.roles.tolist()) == {"train", "val_calib"}
    assert set(again.slices["level"].tolist()) <= {"L0", "L1", "L2", "L3"}


def test_going_on_after_a_stop_makes_what_is_missing_and_nothing_else(tmp_path):
    source = write_table(tmp_path / "in")
    first = make(source, tmp_path / "out", copies=2)
    files = sorted((tmp_path / "out" / "images").iterdir())
    before = {file.name: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}
    table = Path(first["table"]).read_text()
    Path(first["table"]).unlink()
    for file in files[::5]:
        file.unlink()
    assert make(source, tmp_path / "out", copies=2) == first
    assert Path(first["table"]).read_text() == table
    gone = {file.name for file in files[::5]}
    for file in (tmp_path / "out" / "images").iterdir():
        data, time = before.pop(file.name)
        assert file.read_bytes() == data
        assert (file.stat().st_mtime_ns == time) == (file.name not in gone)
    assert not before
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_processes_make_the_same_files(tmp_path):
    source = write_table(tmp_path / "in", n=15)
    for workers in (1, 2):
        make(source, tmp_path / str(workers), copies=2, workers=workers)
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / name / "images").iterdir()} for name in "12")
    assert len(one) == 30
    assert one == two


def test_a_folder_of_other_challenges_or_other_things_is_refused(tmp_path):
    source = write_table(tmp_path / "in")
    make(source, tmp_path / "out")
    table = (tmp_path / "out" / "labels.csv").read_bytes()
    for options, words in [
        ({"seed": 1}, "seed=0, not 1"),
        ({"level": "L2"}, "level=mixture, not L2"),
        ({"copies": 3}, "copies=1, not 3"),
        ({"balance": True}, "balance=False, not True"),
    ]:
        with pytest.raises(ConfigError, match=words):
            make(source, tmp_path / "out", **options)
    with pytest.raises(ConfigError, match="other images, not these"):
        make(write_table(tmp_path / "more", n=9), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"no challenge\.json"):
        make(source, tmp_path / "in")
    assert (tmp_path / "out" / "labels.csv").read_bytes() == table
    with pytest.raises(ConfigError, match="copies 0"):
        make(source, tmp_path / "new", copies=0)


def test_what_is_no_image_is_named_counted_and_left_out(tmp_path):
    source = write_table(tmp_path / "in")
    broken = tmp_path / "in" / "images" / "4.png"
    broken.write_bytes(broken.read_bytes()[:400])
    (tmp_path / "in" / "images" / "7.png").write_text("no image")
    document = make(source, tmp_path / "out")
    assert document["images"] == 10
    assert sum(document["left_out"].values()) == 2
    named = {Path(row["path"]).name for row in rows_of(tmp_path / "out" / "quarantine.csv")}
    assert named == {"4.png", "7.png"}


def test_archives_are_read_too(tmp_path):
    write_table(tmp_path / "in")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for row in rows_of(tmp_path / "in" / "labels.csv"):
            name = Path(row["image"]).stem
            (tmp_path / f"{name}.cls").write_text(row["label"])
            archive.add(tmp_path / "in" / row["image"], f"{name}.png")
            archive.add(tmp_path / f"{name}.cls", f"{name}.cls")
    rows = rows_of(make(tmp_path / "all.tar", tmp_path / "out")["table"])
    assert sorted(row["source_image"] for row in rows) == sorted(f"all.tar::{i}.png" for i in range(12))
    # The image decides, not where it lies.
    same = rows_of(make(tmp_path / "in" / "labels.csv", tmp_path / "plain")["table"])
    assert {row["image"] for row in rows} == {row["image"] for row in same}


def test_balance_makes_classes_equal_within_each_role(tmp_path):
    source = write_table(tmp_path / "in", n=18, role=["train"] * 12 + ["val_test"] * 6)
    rows = rows_of(make(source, tmp_path / "out", balance=True, copies=2)["table"])
    for role, each in (("train", 8), ("val_test", 4)):
        counts = [sum(row["label"] == label for row in rows if row["role"] == role) for label in ("none", "roadwork")]
        assert counts == [each, each]
    table = read_source(DataConfig(table=str(source))).table
    assert balanced_rows(table, 0).tolist() == balanced_rows(table, 0).tolist()
    assert balanced_rows(table, 0).tolist() != balanced_rows(table, 1).tolist()


def test_the_filter_leaves_rows_that_disagree_out(tmp_path):
    described = ["cones"] * 6 + [""] * 6
    source = write_table(tmp_path / "in", scene_description=described)
    document = make(source, tmp_path / "out", filter_rows=True)
    labels = [row["label"] for row in rows_of(source)]
    kept = [i for i in range(12) if (labels[i] == "roadwork") == bool(described[i])]
    rows = rows_of(document["table"])
    assert [row["source_image"] for row in rows] == [f"images/{i}.png" for i in kept]
    assert document["left_out"] == {"filtered": 12 - len(kept)}
    assert "scene_description" not in rows[0]
    with pytest.raises(DataError, match="no column 'scene_description', by which the client's filter goes"):
        make(write_table(tmp_path / "plain"), tmp_path / "out2", filter_rows=True)
    with pytest.raises(DataError, match="no image of one class is left"):
        make(write_table(tmp_path / "none", scene_description=[""] * 12), tmp_path / "out3", filter_rows=True)


def test_an_image_that_changes_meanwhile_stops_the_work(tmp_path):
    source = write_table(tmp_path / "in")
    table = read_source(DataConfig(table=str(source))).table
    (tmp_path / "in" / "images" / "5.png").write_bytes((tmp_path / "in" / "images" / "6.png").read_bytes())
    with pytest.raises(Stage1Error, match=r"5\.png: its bytes have changed"):
        write_folder(tmp_path / "out", table, level="L1", copies=1, seed=0, workers=1)
    assert not (tmp_path / "out" / "labels.csv").exists()
    os.unlink(tmp_path / "in" / "images" / "5.png")
    with pytest.raises(Stage1Error, match=r"5\.png: could be read before and cannot now"):
        write_folder(tmp_path / "out", table, level="L1", copies=1, seed=0, workers=1)


def test_names_of_files_are_those_of_images_copies_and_levels(tmp_path):
    source = write_table(tmp_path / "in", n=6)
    rows = rows_of(make(source, tmp_path / "out", copies=2)["table"])
    for i, row in enumerate(rows):
        digest = digest_bytes((tmp_path / "in" / "images" / f"{i // 2}.png").read_bytes())
        assert row["image"] == f"images/{digest[:24]}-{i % 2}-{row['level']}.jpg"
