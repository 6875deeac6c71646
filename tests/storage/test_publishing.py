"""A folder takes the place of another in one step, and what a killed process left in between is put right."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from stage1.storage import publishing
from stage1.storage.publishing import publish, recover


def folder(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "bundle.json").write_text(text)
    return path


def exchangeable(tmp_path: Path) -> bool:
    one, other = folder(tmp_path / "one", "1"), folder(tmp_path / "other", "2")
    found = publishing._exchange(one, other)
    assert not found or (other / "bundle.json").read_text() == "1"
    return found


def test_whoever_looks_sees_the_old_or_the_new_folder_and_never_neither(tmp_path):
    if not exchangeable(tmp_path):
        pytest.skip("this file system cannot exchange two names in one step")
    target, over, missing, seen = folder(tmp_path / "bundle", "0"), threading.Event(), [], set()

    def look() -> None:
        while not over.is_set():
            try:
                seen.add(os.stat(target / "bundle.json").st_size)
            except OSError as error:
                missing.append(error.errno)

    looking = threading.Thread(target=look)
    looking.start()
    for turn in range(1, 300):
        publish(folder(tmp_path / f".bundle.{turn}.tmp", "x" * (turn % 7 + 1)), target)
    over.set()
    looking.join()
    assert not missing
    assert len(seen) > 1
    assert sorted(os.listdir(tmp_path)) == ["bundle", "one", "other"]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, None])
def test_without_the_exchange_the_old_one_goes_aside_first(tmp_path, monkeypatch, number):
    class Library:
        def __init__(self, *_: object, **__: object) -> None:
            if number is not None:
                self.renameat2 = lambda *_: -1

    monkeypatch.setattr(publishing.ctypes, "CDLL", Library)
    monkeypatch.setattr(publishing.ctypes, "get_errno", lambda: number)
    target = folder(tmp_path / "bundle", "old")
    os.chmod(target, 0o555)
    publish(folder(tmp_path / ".bundle.x.tmp", "new"), target)
    assert (target / "bundle.json").read_text() == "new"
    assert os.listdir(tmp_path) == ["bundle"]
    rename = os.rename

    def fails(source, to):
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, "broken")
        rename(source, to)

    monkeypatch.setattr(publishing.os, "rename", fails)
    with pytest.raises(OSError, match="broken"):
        publish(folder(tmp_path / ".bundle.y.tmp", "newer"), target)
    assert (target / "bundle.json").read_text() == "new"


def test_killed_between_the_two_steps_the_old_folder_stands_again(tmp_path):
    folder(tmp_path / ".bundle.a.old", "old")
    recover(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "bundle.json").read_text() == "old"
    folder(tmp_path / ".bundle.b.old", "older")
    (tmp_path / ".bundle.c.old").mkdir()
    recover(tmp_path / "bundle")
    assert (tmp_path / "bundle" / "bundle.json").read_text() == "old"
    assert os.listdir(tmp_path) == ["bundle"]
