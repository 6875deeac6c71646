"""Files appear whole or not at all; locks; documents."""

from __future__ import annotations

import errno
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from stage1.config import load_config
from stage1.errors import ConfigError, IntegrityError, MissingError, Stage1Error
from stage1.inference.inputs import iterate_inputs
from stage1.policy.schema import CERTIFICATE_KIND
from stage1.runs.schema import TRAIN_KIND
from stage1.scores import read_scores
from stage1.sources.tables import list_table
from stage1.storage.documents import read_document, schema, schema_kinds, write_document
from stage1.storage.files import (
    atomic_writer,
    digest_bytes,
    digest_file,
    digest_ids,
    locked,
    write_bytes,
    write_through,
)
from stage1.storage.texts import read_yaml


def test_digests(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        digest_file(tmp_path / "a")
        == digest_bytes(b"abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert digest_ids(["b", "a"]) == digest_ids(["a", "b"]) != digest_ids(["a"])


def test_yaml_is_plain_values_and_a_key_stands_once():
    text = "a: &a {b: 1, c: [x, 2026-01-02]}\nd: {<<: *a, b: 2}\n"
    assert read_yaml(text)["d"] | {"c": None} == {"b": 2, "c": None}
    assert read_yaml("") is None
    for bad in ("a: 1\na: 2", "x: [{a: 1, b: 2, a: 3}]", "a: [", "!!python/object/apply:os.getcwd []", "? [1]\n: 2"):
        with pytest.raises(ValueError):
            read_yaml(bad)
    with pytest.raises(ValueError, match="key 'a' stands twice"):
        read_yaml("a: 1\nb: 1\na: 2")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.bin"
    write_bytes(path, b"old")

    def interrupted() -> None:
        with atomic_writer(path) as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path, monkeypatch, where):
    path = tmp_path / "x.bin"
    write_bytes(path, b"old")

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, where, full)
    for write in (
        lambda: write_bytes(path, b"new"),
        lambda: write_through(path, lambda temporary: Path(temporary).write_bytes(b"new")),
    ):
        with pytest.raises(Stage1Error, match="No space left on device") as caught:
            write()
        assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.bin"]


def test_a_folder_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Stage1Error, match="cannot be written"):
        write_bytes(tmp_path / "file" / "below", b"")
    if os.getuid() == 0:
        pytest.skip("root may write anywhere: a read-only folder cannot be made here")
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(Stage1Error, match="Permission denied"):
        write_bytes(tmp_path / "shut" / "x", b"")


# ---- what is no regular file


def reading(path: Path, into: list[bytes]) -> threading.Thread:
    thread = threading.Thread(target=lambda: into.append(path.read_bytes()), daemon=True)
    thread.start()
    return thread


def test_a_fifo_gets_the_content_and_stays_one(tmp_path):
    fifo, found = tmp_path / "fifo", []
    os.mkfifo(fifo)
    for write in (
        lambda: write_bytes(fifo, b"x" * 200_000),
        lambda: write_through(fifo, lambda name: Path(name).write_bytes(b"y")),
    ):
        thread = reading(fifo, found)
        write()
        thread.join(30)
    assert found == [b"x" * 200_000, b"y"]
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert os.listdir(tmp_path) == ["fifo"]


def test_a_fifo_gets_nothing_of_a_run_that_failed(tmp_path):
    os.mkfifo(tmp_path / "fifo")

    def interrupted() -> None:
        with atomic_writer(tmp_path / "fifo") as stream:
            stream.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert os.listdir(tmp_path) == ["fifo"]


def test_a_fifo_without_a_reader_is_one_line_and_not_for_ever(tmp_path, monkeypatch):
    monkeypatch.setattr("stage1.storage.files._READER_S", 0.1)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(Stage1Error, match="nobody reads from it"):
        write_bytes(tmp_path / "fifo", b"x")


def device(path: Path, minor: int) -> Path:
    """A node of its own like /dev/null (3) or /dev/full (7): those of the machine are not put at risk by a test."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, minor))
        path.write_bytes(b"")
    except OSError as error:
        pytest.skip(f"device nodes cannot be made or opened here ({error.strerror})")
    return path


def test_a_device_is_written_into_and_stays_one(tmp_path):
    null, full = device(tmp_path / "null", 3), device(tmp_path / "full", 7)
    write_bytes(null, b"x")
    with atomic_writer(null) as stream:
        stream.write(b"x")
    with pytest.raises(Stage1Error, match="full: cannot be written .No space left on device"):
        write_bytes(full, b"x")
    for path in (null, full):
        assert stat.S_ISCHR(path.stat().st_mode)
    assert sorted(os.listdir(tmp_path)) == ["full", "null"]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1", "/proc/123/fd/7"])
def test_names_of_open_files_are_written_into(name):
    from stage1.storage import files

    assert files._OPEN_ALREADY.fullmatch(name)
    assert not files._OPEN_ALREADY.fullmatch(f"/tmp{name}")


def test_dev_null_takes_what_is_written_and_stays_a_device():
    before = os.stat("/dev/null")
    if os.getuid() == 0:
        pytest.skip("root: on code that is wrong this test would replace the machine's /dev/null")
    write_bytes("/dev/null", b"x")
    assert os.stat("/dev/null").st_rdev == before.st_rdev


def test_a_socket_and_a_folder_are_refused(tmp_path, monkeypatch):
    with socket.socket(socket.AF_UNIX) as listening:
        monkeypatch.chdir(tmp_path)  # names of sockets are short
        listening.bind("s")
        with pytest.raises(ConfigError, match="is a socket"):
            write_bytes(tmp_path / "s", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        write_bytes(tmp_path / "folder", b"x")
    assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real").write_bytes(b"old")
    for name, target in (("link", "there/real"), ("dangling", "there/new"), ("twice", "link")):
        (tmp_path / name).symlink_to(target)
    write_bytes(tmp_path / "link", b"1")
    assert (tmp_path / "there" / "real").read_bytes() == b"1"
    write_bytes(tmp_path / "twice", b"2")
    write_bytes(tmp_path / "dangling", b"3")
    assert [(tmp_path / "there" / name).read_bytes() for name in ("real", "new")] == [b"2", b"3"]
    assert all((tmp_path / name).is_symlink() for name in ("link", "dangling", "twice"))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "to fifo").symlink_to("fifo")
    found: list[bytes] = []
    thread = reading(tmp_path / "fifo", found)
    write_bytes(tmp_path / "to fifo", b"4")
    thread.join(30)
    assert found == [b"4"]
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(Stage1Error, match="cannot be written"):
        write_bytes(tmp_path / "loop", b"5")


@pytest.mark.parametrize("to", ["file", "pipe"])
def test_standard_output_by_its_name(tmp_path, to):
    """Not by /dev/stdout: as root, on code that is wrong, this test would replace the machine's own."""
    code = (
        "from stage1.storage.files import write_bytes\nimport sys\nprint('before',"
        " flush=True)\nwrite_bytes('/proc/self/fd/1', b'in\\n')\nprint('after')"
    )
    if to == "pipe":
        said = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
        ).stdout
    else:
        with open(tmp_path / "out", "a") as stream:
            subprocess.run([sys.executable, "-c", code], stdout=stream, timeout=60, check=True)
        said = (tmp_path / "out").read_text()
    assert said == "before\nin\nafter\n"


def test_a_second_process_gets_one_line_at_once(tmp_path):
    code = f"from stage1.storage.files import locked\nwith locked({str(tmp_path)!r}): print('in')"
    with locked(tmp_path):
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
        assert second.returncode != 0
        assert f"another process (pid {os.getpid()})" in second.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60).stdout == "in\n"


# ---- documents

TRAIN = {
    "best_epoch": 1,
    "best_metric": 0.5,
    "select_by": "nll",
    "used_ema": False,
    "epochs_run": 2,
    "metrics": {"nll": 0.5},
}


def test_documents_round_trip(tmp_path):
    write_document(tmp_path / "train.json", TRAIN, TRAIN_KIND)
    assert read_document(tmp_path / "train.json", TRAIN_KIND) == {"schema_version": 1, **TRAIN}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"best_epoch": -1}, "best_epoch"),
        ({"extra": 1}, "extra"),
        ({"select_by": "x"}, "select_by"),
        ({"best_metric": float("nan")}, "NaN|nan"),
    ],
)
def test_documents_are_checked_on_write(tmp_path, change, message):
    with pytest.raises(IntegrityError, match=message):
        write_document(tmp_path / "train.json", {**TRAIN, **change}, TRAIN_KIND)
    assert not (tmp_path / "train.json").exists()


def test_documents_are_checked_on_read(tmp_path):
    path = tmp_path / "train.json"
    with pytest.raises(MissingError, match="no such file"):
        read_document(path, TRAIN_KIND)
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "schema train"),
        (json.dumps({"schema_version": 2, **TRAIN}), "newer"),
    ):
        path.write_text(text)
        with pytest.raises(IntegrityError, match=message):
            read_document(path, TRAIN_KIND)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(IntegrityError, match="damaged"):
        read_document(path, TRAIN_KIND)


@pytest.mark.parametrize("kind", schema_kinds())
def test_schemas_are_valid_closed_and_versioned(kind):
    from jsonschema import Draft202012Validator

    found = schema(kind)
    Draft202012Validator.check_schema(found)
    # A kind of several forms is a union of them.
    forms = [found["$defs"][form["$ref"].split("/")[-1]] for form in found["oneOf"]] if "oneOf" in found else [found]
    for form in forms:
        assert form["additionalProperties"] is False
        assert "schema_version" in form["required"]


@pytest.mark.parametrize("size, head", [(8 << 30, b""), (8 << 30, b"id,label,logit_1,image\n"), (1 << 20, b"")])
def test_a_hole_is_no_text(size, head, tmp_path):
    """Read whole, 8 GiB of nothing took 16 GB of memory."""
    for name, read in {
        "a.csv": read_scores,
        "b.csv": list_table,
        "c.csv": lambda path: list(iterate_inputs([str(path)])),
        "d.txt": lambda path: list(iterate_inputs([str(path)])),
        "e.yaml": lambda path: load_config(path),
        "certificate.json": lambda path: read_document(path, CERTIFICATE_KIND),
    }.items():
        path = tmp_path / name
        path.write_bytes(head)
        os.truncate(path, size)
        with pytest.raises(Stage1Error, match="bytes; a text of this kind|begins with zeros") as raised:
            read(path)
        assert name in str(raised.value)


@pytest.mark.parametrize("below", ["", "run"])
def test_a_folder_that_is_a_file_is_said_to_be_none(tmp_path, below):
    file = tmp_path / "file"
    file.write_text("kept")
    with pytest.raises(ConfigError, match="is no folder, or lies below what is none"), locked(file / below):
        pass
    assert file.read_text() == "kept"
