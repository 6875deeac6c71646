"""Files appear whole or not at all; locks; documents."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stage1.documents import read_document, schema, schema_kinds, write_document
from stage1.errors import IntegrityError, MissingError, Stage1Error
from stage1.files import (
    atomic_writer,
    digest_bytes,
    digest_file,
    digest_ids,
    locked,
    read_yaml,
    write_bytes,
    write_through,
)


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


def test_a_second_process_gets_one_line_at_once(tmp_path):
    code = f"from stage1.files import locked\nwith locked({str(tmp_path)!r}): print('in')"
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
    write_document(tmp_path / "train.json", TRAIN, "train")
    assert read_document(tmp_path / "train.json", "train") == {"schema_version": 1, **TRAIN}


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
        write_document(tmp_path / "train.json", {**TRAIN, **change}, "train")
    assert not (tmp_path / "train.json").exists()


def test_documents_are_checked_on_read(tmp_path):
    path = tmp_path / "train.json"
    with pytest.raises(MissingError, match="no such file"):
        read_document(path, "train")
    for text, message in (
        ("{", "not valid JSON"),
        ("[]", "schema train"),
        (json.dumps({"schema_version": 2, **TRAIN}), "newer"),
    ):
        path.write_text(text)
        with pytest.raises(IntegrityError, match=message):
            read_document(path, "train")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(IntegrityError, match="damaged"):
        read_document(path, "train")


@pytest.mark.parametrize("kind", schema_kinds())
def test_schemas_are_valid_closed_and_versioned(kind):
    from jsonschema import Draft202012Validator

    found = schema(kind)
    Draft202012Validator.check_schema(found)
    assert found["additionalProperties"] is False
    assert "schema_version" in found["required"]
