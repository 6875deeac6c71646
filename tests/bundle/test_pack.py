"""A bundle appears whole or not at all, and the same inputs give the same bytes."""

from __future__ import annotations

import errno
import fcntl
import os
from dataclasses import replace
from pathlib import Path

import pytest

from stage1.bundle import read_manifest, verify_bundle
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError, Stage1Error


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def beside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.parent.iterdir())


def test_same_inputs_give_the_same_bytes(parts, tmp_path):
    one, other = parts.write(tmp_path / "one"), parts.write(tmp_path / "other")
    assert content(one) == content(other)
    changed = parts.write(tmp_path / "third", facts=parts.facts | {"name": "another"})
    assert read_manifest(changed)["digest"] != read_manifest(one)["digest"]


def test_a_new_bundle_replaces_the_old_one(parts, tmp_path):
    folder = parts.write(tmp_path / "my büñdle")
    before = read_manifest(folder)["digest"]
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)  # somebody protected it
    assert parts.write(folder, facts=parts.facts | {"name": "newer"}) == folder
    assert read_manifest(folder)["name"] == "newer"
    assert read_manifest(folder)["digest"] != before
    assert verify_bundle(folder).ok
    assert beside(folder) == ["my büñdle", "run"]


def test_anyone_may_read_it(bundle):
    assert bundle.stat().st_mode & 0o777 == 0o755
    assert (bundle / "LICENSES").stat().st_mode & 0o055 == 0o055
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in bundle.rglob("*") if path.is_file())


def test_a_link_to_a_bundle_stays_a_link(parts, tmp_path):
    parts.write(tmp_path / "v1")
    (tmp_path / "current").symlink_to(tmp_path / "v1")
    parts.write(tmp_path / "current", facts=parts.facts | {"name": "newer"})
    assert (tmp_path / "current").is_symlink()
    assert read_manifest(tmp_path / "v1")["name"] == "newer"


def test_an_empty_folder_is_filled_and_a_strange_one_is_left_alone(parts, tmp_path):
    (tmp_path / "empty").mkdir()
    assert verify_bundle(parts.write(tmp_path / "empty")).ok
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is not a bundle; it is not overwritten"):
        parts.write(tmp_path / "photos")
    with pytest.raises(ConfigError, match="is not a bundle"):
        parts.write(tmp_path / "photos" / "cat.jpg")
    assert (tmp_path / "photos" / "cat.jpg").read_bytes() == b"x"


FAULTS = {
    "no model": (lambda p: {"model": p.run / "nope.onnx"}, MissingError, "run `stage1 export`"),
    "no policy": (lambda p: {"policy_file": p.run / "scrcparams.json"}, MissingError, "run `stage1 calibrate`"),
    "no certificate": (lambda p: {"certificate_file": p.run / "nope.json"}, MissingError, "run `stage1 calibrate`"),
    "not a policy": (lambda p: {"policy_file": p.run / "certificate.json"}, ConfigError, "not a policy file"),
    "swapped": (lambda p: {"certificate_file": p.run / "thresholds.json"}, IntegrityError, "schema certificate"),
    "no ids": (lambda p: {"calibration": replace(p.calibration, ids=None)}, DataError, "needs the ids and labels"),
    "no labels": (
        lambda p: {"calibration": replace(p.calibration, labels=None)}, DataError, "needs the ids and labels"),
    "other ids": (lambda p: {"calibration": p.calibration.take(range(100))}, IntegrityError, "its 100 ids are not"),
    "class order": (lambda p: {"classes": ("roadwork", "none")}, IntegrityError, "bundle.json says roadwork, none"),
    "no licence": (lambda p: {"licences": {}}, DataError, "licence text"),
    "licence path": (lambda p: {"licences": {"../evil": "x"}}, DataError, "cannot be a file name"),
    "size": (
        lambda p: {"preprocessing": replace(p.arguments()["preprocessing"], size=32)}, IntegrityError, "model.onnx"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_does_not_fit_is_refused_and_the_old_bundle_stands(parts, tmp_path, fault):
    changes, kind, message = FAULTS[fault]
    folder = parts.write(tmp_path / "bundle")
    before = content(folder)
    with pytest.raises(kind, match=message) as caught:
        parts.write(folder, **changes(parts))
    assert "\n" not in str(caught.value)
    assert ".tmp" not in str(caught.value)
    assert content(folder) == before
    assert beside(folder) == ["bundle", "run"]


def test_a_second_policy_file_in_the_run_is_refused(parts, tmp_path):
    (parts.run / "gateparams.json").write_text("{}")
    with pytest.raises(IntegrityError, match="exclude each other"):
        parts.write(tmp_path / "bundle")
    assert beside(tmp_path / "bundle") == ["run"]


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda tiny: tiny(outputs=3), "3 classes|for one image and 2 classes"),
        (lambda tiny: tiny(name="scores"), "no output `logits`"),
        (lambda tiny: b"not a model", "ONNX Runtime cannot load it"),
        (lambda tiny: tiny()[:-30], "ONNX Runtime cannot load it"),
    ],
    ids=["three classes", "other output", "no model", "cut off"],
)
def test_a_model_that_does_not_fit_is_refused(parts, tmp_path, tiny_model, model, message):
    (parts.run / "model.onnx").write_bytes(model(tiny_model))
    with pytest.raises(IntegrityError, match=message):
        parts.write(tmp_path / "bundle")
    assert beside(tmp_path / "bundle") == ["run"]


def test_full_disk_leaves_the_old_bundle(parts, tmp_path, monkeypatch):
    folder = parts.write(tmp_path / "bundle")
    before = content(folder)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("stage1.bundle.pack.shutil.copyfileobj", full)
    with pytest.raises(Stage1Error, match="No space left on device"):
        parts.write(folder, facts=parts.facts | {"name": "newer"})
    assert content(folder) == before
    assert beside(folder) == ["bundle", "run"]


def test_a_failed_rename_puts_the_old_bundle_back(parts, tmp_path, monkeypatch):
    folder = parts.write(tmp_path / "bundle")
    before = content(folder)
    rename = os.rename

    def second_fails(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(source, target)

    monkeypatch.setattr("stage1.storage.publishing._exchange", lambda *_: False)
    monkeypatch.setattr("stage1.storage.publishing.os.rename", second_fails)
    with pytest.raises(Stage1Error, match="cannot be written"):
        parts.write(folder, facts=parts.facts | {"name": "newer"})
    assert content(folder) == before
    assert beside(folder) == ["bundle", "run"]


def test_where_nothing_can_be_written_it_says_so(parts, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(Stage1Error, match="cannot be written"):
        parts.write(tmp_path / "file" / "bundle")


def test_leftovers_of_a_killed_process_are_swept_by_the_next(parts, tmp_path):
    old, held, foreign = (tmp_path / name for name in (".bundle.a.tmp", ".bundle.b.tmp", ".bundle2.c.tmp"))
    for folder in (old, held, foreign):
        folder.mkdir()
        (folder / "model.onnx").write_bytes(b"x")
        os.utime(folder, (0, 0))
    handle = os.open(held, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_SH)  # as a process that is writing does
    parts.write(tmp_path / "bundle")
    os.close(handle)
    assert beside(tmp_path / "bundle") == [".bundle.b.tmp", ".bundle2.c.tmp", "bundle", "run"]


def test_a_process_killed_while_it_replaced_a_bundle_leaves_one(parts, tmp_path):
    folder = parts.write(tmp_path / "bundle")
    os.rename(folder, tmp_path / ".bundle.x.old")
    with pytest.raises(IntegrityError):
        parts.write(folder, classes=("a", "b", "c"))
    assert verify_bundle(folder).ok
    assert beside(folder) == ["bundle", "run"]


def test_not_certified_is_a_bundle_too(make_parts, tmp_path):
    folder = make_parts(n=60).write(tmp_path / "bundle")
    assert verify_bundle(folder).ok
    assert read_manifest(folder)["certified"] is False
    assert "not-certified" in (folder / "README.md").read_text()


def test_weights_beside_the_model_travel_with_it(parts, tmp_path):
    (parts.run / "model.onnx.data").write_bytes(b"weights")
    folder = parts.write(tmp_path / "bundle")
    assert "model.onnx.data" in read_manifest(folder)["files"]
    assert verify_bundle(folder).ok
