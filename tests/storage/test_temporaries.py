"""What a killed process left is removed by the next one; what somebody works at is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stage1.storage import temporaries
from stage1.storage.files import write_bytes
from stage1.storage.temporaries import sweep_files, sweep_folders, temporary_file, temporary_folder

HALF = """
import sys, time
from pathlib import Path
from stage1.storage.files import atomic_writer
from stage1.storage.temporaries import temporary_folder
with temporary_folder(Path(sys.argv[1]) / "bundle"), atomic_writer(Path(sys.argv[1]) / "x.csv") as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def at_once(monkeypatch):
    """Nothing is too young to be swept, and no folder has been looked through yet."""
    monkeypatch.setattr(temporaries, "_YOUNG_S", 0.0)
    monkeypatch.setattr(temporaries, "_swept", set())


def test_a_killed_run_is_swept_by_the_next_and_a_living_one_is_not(tmp_path, at_once):
    process = subprocess.Popen([sys.executable, "-c", HALF, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        time.sleep(0.05)
        assert len(os.listdir(tmp_path)) == 2
        write_bytes(tmp_path / "other", b"")
        sweep_folders(tmp_path / "bundle")
        assert len(os.listdir(tmp_path)) == 3  # somebody is at it
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    temporaries._swept.clear()
    write_bytes(tmp_path / "other", b"")
    with temporary_folder(tmp_path / "bundle"):
        pass
    assert os.listdir(tmp_path) == ["other"]


def test_young_ones_and_those_of_others_stay(tmp_path, monkeypatch):
    foreign = [".x.csv.abcdefgh.tmp", "x.stage1-abcdefgh.tmp", ".x.stage1-abc.tmp", ".rsync.Ab12Cd"]
    for name in (*foreign, ".x.stage1-abcdefgh.tmp"):
        (tmp_path / name).write_text("")
    sweep_files(tmp_path)
    assert len(os.listdir(tmp_path)) == 5
    os.utime(tmp_path / ".x.stage1-abcdefgh.tmp", (0, 0))
    sweep_files(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(foreign)


def test_a_folder_is_looked_through_once_in_a_process(tmp_path, at_once):
    write_bytes(tmp_path / "a", b"")
    (tmp_path / ".x.stage1-abcdefgh.tmp").write_text("")
    write_bytes(tmp_path / "b", b"")
    assert (tmp_path / ".x.stage1-abcdefgh.tmp").exists()


def test_long_names_fit(tmp_path):
    name = tmp_path / ("n" * 251 + ".csv")
    write_bytes(name, b"x")
    assert name.read_bytes() == b"x"
    with temporary_file(name) as temporary:
        assert len(Path(temporary).name) < 255
    assert os.listdir(tmp_path) == [name.name]
