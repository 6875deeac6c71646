"""What was acknowledged is read again, whatever a kill or a full disk left of the rest."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.errors import StoreError
from stage1.store.spool import ENDING, Spool, framed, read_lines


def content(number: int) -> bytes:
    return b'{"n":%d}' % number


def left_behind(folder: Path) -> list[bytes]:
    """What the next process reads of a spool that nobody holds."""
    spool = Spool(folder, "id")
    contents = []
    for segment in spool.adopt():
        contents += read_lines(segment).contents
        spool.leave(segment)
    return contents


def segment_of(spool: Spool) -> Path:
    [path] = spool.folder.glob(f"*{ENDING}")
    return path


def test_appended_is_left_behind(tmp_path):
    spool = Spool(tmp_path, "id")
    spool.append([content(1), content(2)])
    spool.append([content(3)])
    assert Spool(tmp_path, "id").adopt() == [], "a segment that a process holds is its own"
    spool.close()
    assert left_behind(tmp_path) == [content(1), content(2), content(3)]


def test_a_last_line_that_was_cut_anywhere_was_never_acknowledged(tmp_path):
    spool = Spool(tmp_path, "id")
    spool.append([content(1), content(2)])
    path = segment_of(spool)
    whole = path.stat().st_size
    spool.append([content(3)])
    spool.close()
    data = path.read_bytes()
    for end in range(whole, len(data)):
        path.write_bytes(data[:end])
        assert left_behind(tmp_path) == [content(1), content(2)], end
        path.write_bytes(data[:end] + b"\0" * (len(data) - end))  # a block that was made and never written
        assert left_behind(tmp_path) == [content(1), content(2)], end
    path.write_bytes(data)
    assert left_behind(tmp_path) == [content(1), content(2), content(3)]


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_damaged_byte_costs_its_line_alone_and_is_told(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("spool")
    spool = Spool(folder, "id")
    spool.append([content(number) for number in range(5)])
    path = segment_of(spool)
    spool.close()
    written = bytearray(path.read_bytes())
    line = len(framed(content(0)))
    place = data.draw(st.integers(0, 4 * line - 1))  # not in the last line, which could be torn
    written[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(written)
    spool = Spool(folder, "id")
    [segment] = spool.adopt()
    lines = read_lines(segment)
    hit = {place // line, (place + 1) // line} if (place + 1) % line == 0 else {place // line}  # a lost line break
    assert set(lines.contents) >= {content(number) for number in set(range(5)) - hit}
    assert set(lines.contents) <= {content(number) for number in range(5)}
    assert lines.damaged >= 1
    spool.drop(segment, keep_damaged=True)
    assert spool.damaged() == 1
    spool.close()


def test_a_damaged_last_line_that_is_whole_is_told(tmp_path):
    spool = Spool(tmp_path, "id")
    spool.append([content(1), content(2)])
    path = segment_of(spool)
    spool.close()
    path.write_bytes(path.read_bytes().replace(b'"n":2', b'"n":3'))
    spool = Spool(tmp_path, "id")
    [segment] = spool.adopt()
    assert (read_lines(segment).contents, read_lines(segment).damaged) == ([content(1)], 1)
    spool.leave(segment)


def test_a_full_disk_keeps_what_was_acknowledged_and_nothing_else(tmp_path):
    spool = Spool(tmp_path, "id")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    kept = []
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # a write beyond it fails in the middle, as on a full disk
    try:
        for number in range(100):
            spool.append([content(number)])
            kept.append(content(number))
    except StoreError as error:
        refused = str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "the spool cannot be written" in refused
    assert 10 < len(kept) < 60
    spool.append([content(1000)])  # there is room again
    assert spool.appended == len(kept) + 1
    spool.close()
    assert sorted(left_behind(tmp_path)) == sorted([*kept, content(1000)])


def test_all_that_wait_for_a_batch_hear_that_it_failed(tmp_path):
    spool = Spool(tmp_path, "id", room=400)
    failed, done = [], []

    def work(number):
        try:
            spool.append([content(number)] * 3)
            done.append(number)
        except StoreError as error:
            failed.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) + len(failed) == 20
    assert failed
    assert all("wait for the database" in line for line in failed)
    spool.close()
    assert len(left_behind(tmp_path)) == 3 * len(done) == spool.appended


def test_large_segments_roll_and_are_taken_in_order(tmp_path, monkeypatch):
    monkeypatch.setattr("stage1.store.spool._ROLL_BYTES", 100)
    spool = Spool(tmp_path, "id")
    for number in range(20):
        spool.append([content(number)])
    contents = []
    while (segment := spool.take()) is not None:
        contents += read_lines(segment).contents
        spool.drop(segment)
    assert contents == [content(number) for number in range(20)]
    spool.close()
    assert list(tmp_path.glob(f"*{ENDING}")) == []


def test_a_folder_that_cannot_be_a_spool(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be used as the spool"):
        Spool(tmp_path / "file", "id")


def test_what_was_killed_before_it_was_a_segment_goes(tmp_path):
    (tmp_path / "1-ab.new").touch()
    spool = Spool(tmp_path, "id")
    assert spool.adopt() == []
    assert not (tmp_path / "1-ab.new").exists()
    assert os.listdir(tmp_path) == ["store"]
    spool.close()
