"""The store: nothing computed twice, nothing mixed up, nothing half-written, whoever dies or writes at the same
time.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stage1.errors import DataError, IntegrityError, MissingError, Stage1Error
from stage1.features import FeatureKey, FeatureStore

KEY = FeatureKey("p" * 64, "b" * 64, "pool", "float32", "onnx:x")
DIM = 5


def image_ids(count: int, start: int = 0) -> list[str]:
    return [hashlib.sha256(str(value).encode()).hexdigest() for value in range(start, start + count)]


def feature(data: bytes) -> np.ndarray:
    return np.frombuffer(hashlib.sha256(data).digest()[: 4 * DIM], dtype=np.uint32).astype(np.float32)


def contents(count: int, start: int = 0) -> list[bytes]:
    return [str(value).encode() for value in range(start, start + count)]


class Compute:
    """Features by hashing; batches of 3 that cross no cut; items named in `broken` fail. Counts what it computed."""

    def __init__(self, broken=(), die_after=None):
        self.broken = set(broken)
        self.die_after = die_after
        self.seen: list[bytes] = []

    def __call__(self, items, cuts):
        cuts = set(cuts)
        rows, failed = [], []
        for row, item in enumerate(items):
            if self.die_after is not None and len(self.seen) >= self.die_after:
                raise KeyboardInterrupt
            self.seen.append(item)
            if item in self.broken:
                failed.append((row, OSError(f"{item!r} is broken")))
            else:
                rows.append(row)
            if rows and (len(rows) == 3 or row + 1 == len(items) or row + 1 in cuts):
                yield np.array(rows), np.stack([feature(items[row]) for row in rows]), failed
                rows, failed = [], []
        if failed:
            yield np.zeros(0, np.int64), np.zeros((0, DIM), np.float32), failed


def expected(count: int, start: int = 0) -> np.ndarray:
    return np.stack([feature(data) for data in contents(count, start)])


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.npy")}


def test_what_is_stored_is_read_in_any_order(tmp_path):
    store = FeatureStore(tmp_path)
    ids = image_ids(23)
    assert store.extract(ids, contents(23), KEY, Compute(), shard_size=8) == []
    rng = np.random.default_rng(0)
    for again in (store, FeatureStore(tmp_path)):
        assert again.has([*ids, "x"], KEY).tolist() == [True] * 23 + [False]
        np.testing.assert_array_equal(again.read(ids, KEY), expected(23))
        some = rng.permutation(23)[:11]
        features = again.read(np.array(ids)[some], KEY)
        assert features.dtype == np.float32
        np.testing.assert_array_equal(features, expected(23)[some])
        np.testing.assert_array_equal(again.read([ids[4], ids[4]], KEY), expected(23)[[4, 4]])
    assert len(shards(tmp_path)) == 3
    index = pq.read_table(tmp_path / "index.parquet")
    assert index.num_rows == 23
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".parquet") == ["index.parquet"]


def test_only_the_rows_asked_for_are_loaded(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path)
    store.extract(image_ids(40), contents(40), KEY, Compute(), shard_size=10)
    opened = []
    real = np.load

    def load(path, **options):
        opened.append((Path(path).name, options.get("mmap_mode")))
        return real(path, **options)

    monkeypatch.setattr(np, "load", load)
    store.read(image_ids(40)[:5], KEY)
    assert len(opened) == 1
    assert opened[0][1] == "r"


def test_nothing_is_computed_twice(tmp_path):
    store = FeatureStore(tmp_path)
    store.extract(image_ids(20), contents(20), KEY, Compute(), shard_size=8)
    second = Compute()
    store.extract(image_ids(25), contents(25), KEY, second, shard_size=8)
    assert second.seen == contents(5, 20)
    third = Compute()
    FeatureStore(tmp_path).extract(image_ids(25), contents(25), KEY, third, shard_size=4)
    assert third.seen == []
    np.testing.assert_array_equal(store.read(image_ids(25), KEY), expected(25))


def test_the_same_image_twice_is_computed_once(tmp_path):
    store = FeatureStore(tmp_path)
    compute = Compute()
    store.extract(image_ids(4) * 2, contents(4) * 2, KEY, compute, shard_size=3)
    assert compute.seen == contents(4)


@pytest.mark.parametrize("name", ["preprocessing", "backbone", "pooling", "dtype", "engine"])
def test_a_changed_key_never_hits(tmp_path, name):
    store = FeatureStore(tmp_path)
    store.extract(image_ids(5), contents(5), KEY, Compute())
    other = replace(KEY, **{name: "changed"})
    assert other.digest != KEY.digest
    assert not store.has(image_ids(5), other).any()
    with pytest.raises(MissingError, match="5 of 5 images"):
        store.read(image_ids(5), other)
    compute = Compute()
    store.extract(image_ids(5), contents(5), other, compute)
    assert len(compute.seen) == 5
    assert store.has(image_ids(5), KEY).all()
    assert len(shards(tmp_path)) == 2


def test_failures_are_reported_by_position_and_tried_again(tmp_path):
    store = FeatureStore(tmp_path)
    broken = [b"2", b"6", b"7", b"8", b"10"]
    failed = store.extract(image_ids(11), contents(11), KEY, Compute(broken), shard_size=3)
    assert [position for position, _ in failed] == [2, 6, 7, 8, 10]
    good = [0, 1, 3, 4, 5, 9]
    assert np.flatnonzero(store.has(image_ids(11), KEY)).tolist() == good
    np.testing.assert_array_equal(store.read([image_ids(11)[row] for row in good], KEY), expected(11)[good])
    second = Compute()
    assert store.extract(image_ids(11), contents(11), KEY, second, shard_size=3) == []
    assert second.seen == broken
    np.testing.assert_array_equal(store.read(image_ids(11), KEY), expected(11))


@pytest.mark.parametrize("die_after", range(0, 24, 3))
def test_resumed_shards_are_bit_equal_and_at_most_one_is_lost(tmp_path, die_after):
    ids, items, broken = image_ids(23), contents(23), [b"1", b"9"]
    whole = FeatureStore(tmp_path / "whole")
    whole.extract(ids, items, KEY, Compute(broken), shard_size=5)
    store = FeatureStore(tmp_path / "cut")
    with pytest.raises(KeyboardInterrupt):
        store.extract(ids, items, KEY, Compute(broken, die_after=die_after), shard_size=5)
    again = FeatureStore(tmp_path / "cut")
    assert die_after - again.has(ids, KEY).sum() <= 5 + len(broken)
    again.extract(ids, items, KEY, Compute(broken), shard_size=5)
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")


def test_a_list_without_its_shard_and_a_shard_without_its_list_do_not_count(tmp_path):
    store = FeatureStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.extract(image_ids(12), contents(12), KEY, Compute(die_after=10), shard_size=4)
    lists = sorted(path for path in tmp_path.glob("*-*.parquet"))
    assert len(lists) == 2  # the kill came before the merge
    lists[0].unlink()
    lists[1].with_suffix(".npy").unlink()
    again = FeatureStore(tmp_path)
    assert not again.has(image_ids(12), KEY).any()
    again.extract(image_ids(12), contents(12), KEY, Compute(), shard_size=4)
    np.testing.assert_array_equal(again.read(image_ids(12), KEY), expected(12))


@pytest.mark.parametrize("damage", ["cut", "gone", "empty"])
def test_a_damaged_shard_is_made_anew(tmp_path, damage, caplog):
    store = FeatureStore(tmp_path)
    store.extract(image_ids(12), contents(12), KEY, Compute(), shard_size=4)
    victim = sorted(tmp_path.glob("*.npy"))[1]
    before = shards(tmp_path)
    if damage == "gone":
        victim.unlink()
    else:
        victim.write_bytes(before[victim.name][: -8 if damage == "cut" else 0])
    with pytest.raises(IntegrityError, match="damaged or gone"):
        store.read(image_ids(12), KEY)
    again = FeatureStore(tmp_path)
    assert "4 features in damaged or missing shards" in caplog.text
    compute = Compute()
    again.extract(image_ids(12), contents(12), KEY, compute, shard_size=4)
    assert len(compute.seen) == 4
    assert shards(tmp_path) == before
    np.testing.assert_array_equal(again.read(image_ids(12), KEY), expected(12))


def test_a_damaged_index_is_named(tmp_path):
    FeatureStore(tmp_path)
    (tmp_path / "index.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(IntegrityError, match=r"index\.parquet"):
        FeatureStore(tmp_path)


def test_progress_and_bad_arguments(tmp_path):
    store = FeatureStore(tmp_path)
    seen = []
    store.extract(image_ids(7), contents(7), KEY, Compute([b"3"]), shard_size=4, progress=lambda *at: seen.append(at))
    assert seen[-1] == (7, 7)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    with pytest.raises(DataError, match="3 ids, 2 items"):
        store.extract(image_ids(3), contents(2), KEY, Compute())
    assert (tmp_path / "index.parquet").is_file()
    assert store.read([], KEY).shape[0] == 0


def test_full_disk_leaves_whole_shards_only(tmp_path, monkeypatch):
    store = FeatureStore(tmp_path)
    real, calls = np.save, []

    def full(stream, values):
        calls.append(1)
        if len(calls) == 2:
            stream.write(b"half")
            raise OSError(28, "No space left on device")
        real(stream, values)

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(Stage1Error, match="No space left"):
        store.extract(image_ids(12), contents(12), KEY, Compute(), shard_size=4)
    assert len(shards(tmp_path)) == 1
    assert not [path for path in tmp_path.iterdir() if path.suffix == ".tmp"]
    assert FeatureStore(tmp_path).has(image_ids(12), KEY).sum() == 4


# ---- several processes -------------------------------------------------------------------------------------------


def slow(items, cuts):
    for batch in Compute()(items, cuts):
        time.sleep(0.004)
        yield batch


def work(folder: str, start: int, count: int) -> None:
    FeatureStore(folder).extract(image_ids(count, start), contents(count, start), KEY, slow, shard_size=5)


def test_processes_share_a_store(tmp_path):
    context = multiprocessing.get_context("fork")
    ranges = [(0, 60), (0, 60), (30, 60), (100, 40)]  # the same work twice, an overlap, other work
    processes = [context.Process(target=work, args=(str(tmp_path), *pair)) for pair in ranges]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    store = FeatureStore(tmp_path)
    np.testing.assert_array_equal(store.read(image_ids(90), KEY), expected(90))
    np.testing.assert_array_equal(store.read(image_ids(40, 100), KEY), expected(40, 100))
    assert pq.read_table(tmp_path / "index.parquet").num_rows == 130


def test_killed_at_any_moment_the_store_goes_on(tmp_path):
    context = multiprocessing.get_context("fork")
    work(str(tmp_path / "whole"), 0, 60)
    rng = np.random.default_rng(11)
    for _ in range(12):
        process = context.Process(target=work, args=(str(tmp_path / "cut"), 0, 60))
        process.start()
        time.sleep(float(rng.uniform(0.0, 0.06)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    work(str(tmp_path / "cut"), 0, 60)
    assert shards(tmp_path / "cut") == shards(tmp_path / "whole")
    np.testing.assert_array_equal(FeatureStore(tmp_path / "cut").read(image_ids(60), KEY), expected(60))
