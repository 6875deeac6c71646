"""A bundle is byte for byte what was written, or `verify` says which file is not."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stage1.bundle import read_manifest, verify_bundle
from stage1.bundle.schema import BUNDLE_KIND
from stage1.errors import IntegrityError, MissingError
from stage1.policy import Certificate
from stage1.storage.documents import validate
from stage1.storage.files import digest_bytes, digest_file


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path, bit: int) -> bytes:
    """Flip one bit in place; returns the bytes as they were."""
    before = path.read_bytes()
    data = bytearray(before)
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(bytes(data))
    return before


def test_a_fresh_bundle_is_whole(bundle):
    report = verify_bundle(bundle)
    assert report.ok
    report.require()
    assert report.files == len(files(bundle)) - 1
    assert {path.relative_to(bundle).as_posix() for path in files(bundle)} == {
        "bundle.json",
        "model.onnx",
        "thresholds.json",
        "certificate.json",
        "calibration.parquet",
        "README.md",
        "LICENSES/Apache-2.0.txt",
    }


def test_manifest_fits_its_schema_and_names_every_file(bundle):
    document = read_manifest(bundle)
    validate(document, BUNDLE_KIND, "bundle.json")
    for name, listed in document["files"].items():
        assert listed == {"sha256": digest_file(bundle / name), "size": (bundle / name).stat().st_size}
    assert document["positive_class"] == "roadwork"


def test_digest_covers_the_content_and_every_file(bundle):
    text = (bundle / "bundle.json").read_text()
    without = text[: text.rindex(',\n  "digest"')] + "\n}\n"
    assert read_manifest(bundle)["digest"] == digest_bytes(without.encode())


def test_200_random_bit_flips_are_all_found(bundle):
    rng = np.random.default_rng(4)
    everything = files(bundle)
    seen = set()
    for _ in range(200):
        path = everything[rng.integers(len(everything))]
        before = flip(path, int(rng.integers(path.stat().st_size * 8)))
        report = verify_bundle(bundle)
        assert not report.ok, path
        assert any(path.name in problem for problem in report.problems), report.problems
        seen.add(path)
        path.write_bytes(before)
    assert seen == set(everything)
    assert verify_bundle(bundle).ok


@pytest.mark.slow
def test_every_single_bit_of_the_manifest_counts(bundle):
    path = bundle / "bundle.json"
    for bit in range(path.stat().st_size * 8):
        before = flip(path, bit)
        assert not verify_bundle(bundle).ok, bit
        path.write_bytes(before)


@pytest.mark.parametrize(
    "rewrite",
    [
        lambda text: json.dumps(json.loads(text)),
        lambda text: text + "\n",
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace('"roadwork"', '"\\u0072oadwork"', 1),
        lambda text: text.replace('"policy": "softmax",', '"policy": "gate",\n  "policy": "softmax",'),
        lambda text: json.dumps(dict(reversed(json.loads(text).items())), indent=2) + "\n",
        lambda text: "\ufeff" + text,
        lambda text: text.replace("0.5", "0.50", 1),
        lambda text: text.replace("64000000", "NaN", 1),
        lambda text: "",
        lambda text: text[: len(text) // 2],
    ],
    ids=["indent", "newline", "crlf", "escape", "repeated key", "order", "bom", "number form", "nan", "empty", "half"],
)
def test_changes_of_the_manifest_that_json_may_not_see_are_found(bundle, rewrite):
    path = bundle / "bundle.json"
    text = path.read_text()
    changed = rewrite(text)
    assert changed != text
    path.write_bytes(changed.encode())
    report = verify_bundle(bundle)
    assert len(report.problems) == 1
    assert report.problems[0].startswith("bundle.json: ")
    assert report.digest is None


def damage_missing(folder: Path) -> str:
    (folder / "certificate.json").unlink()
    return "certificate.json: missing"


def damage_manifest(folder: Path) -> str:
    (folder / "bundle.json").unlink()
    return "bundle.json: missing"


def damage_extra(folder: Path) -> str:
    (folder / "notes.txt").write_text("x")
    return "notes.txt: not in bundle.json"


def damage_hidden(folder: Path) -> str:
    (folder / "LICENSES" / ".DS_Store").write_bytes(b"")
    return "LICENSES/.DS_Store: not in bundle.json"


def damage_nested(folder: Path) -> str:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "b" / "c").write_text("x")
    return "a/b/c: not in bundle.json"


def damage_second_manifest(folder: Path) -> str:
    shutil.copy(folder / "bundle.json", folder / "LICENSES" / "bundle.json")
    return "LICENSES/bundle.json: not in bundle.json"


def damage_empty_folder(folder: Path) -> str:
    (folder / "cache" / "deep").mkdir(parents=True)
    return "cache/deep: is an empty folder"


def damage_link(folder: Path) -> str:
    # The same bytes, but behind a link: they may change without the bundle being touched.
    shutil.move(folder / "model.onnx", folder.parent / "model.onnx")
    (folder / "model.onnx").symlink_to(folder.parent / "model.onnx")
    return "model.onnx: is a link"


def damage_linked_folder(folder: Path) -> str:
    (folder / "more").symlink_to(folder / "LICENSES")
    return "more: is a link"


def damage_dangling(folder: Path) -> str:
    (folder / "gone").symlink_to("nowhere")
    return "gone: is a link"


def damage_pipe(folder: Path) -> str:
    os.mkfifo(folder / "pipe")  # reading it would hang
    return "pipe: is neither a file nor a folder"


def damage_renamed(folder: Path) -> str:
    os.rename(folder / "README.md", folder / "readme.md")
    return "readme.md: not in bundle.json"


def damage_folder_for_file(folder: Path) -> str:
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    return "README.md: is an empty folder"


def damage_swapped(folder: Path) -> str:
    one, other = folder / "thresholds.json", folder / "certificate.json"
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)
    return "thresholds.json: "


def damage_cut(folder: Path) -> str:
    (folder / "calibration.parquet").write_bytes((folder / "calibration.parquet").read_bytes()[:-1])
    return "bytes, "


def damage_appended(folder: Path) -> str:
    with open(folder / "model.onnx", "ab") as stream:
        stream.write(b"\0")
    return "model.onnx: "


def damage_second_policy(folder: Path) -> str:
    shutil.copy(folder / "thresholds.json", folder / "gateparams.json")
    return "thresholds.json and gateparams.json: a bundle has exactly one exit policy"


def damage_odd_name(folder: Path) -> str:
    (folder / os.fsdecode(b"\xff\xfe.txt")).write_text("x")
    return "\\xff\\xfe.txt: not in bundle.json"


@pytest.mark.parametrize("damage", [value for name, value in sorted(globals().items()) if name.startswith("damage_")])
def test_every_kind_of_damage_is_named(bundle, damage):
    expected = damage(bundle)
    report = verify_bundle(bundle)
    assert any(expected in problem for problem in report.problems), report.problems
    assert all("\n" not in problem for problem in report.problems)
    with pytest.raises(IntegrityError, match=r"^[^\n]+$"):
        report.require()


def test_newer_schema_version_says_so(bundle, reseal):
    reseal(bundle, schema_version=2)
    with pytest.raises(IntegrityError, match="schema_version 2 is newer than this stage1 reads"):
        read_manifest(bundle)
    assert "upgrade stage1-pro" in verify_bundle(bundle).problems[0]


def test_no_folder_and_no_bundle_are_missing(tmp_path):
    with pytest.raises(MissingError, match="no such bundle folder"):
        verify_bundle(tmp_path / "nowhere")
    with pytest.raises(MissingError, match=r"not a bundle \(it has no bundle.json\)"):
        read_manifest(tmp_path)
    with pytest.raises(MissingError, match="no such bundle folder"):
        read_manifest(tmp_path / "nowhere")


def test_a_file_that_cannot_be_read_is_named(bundle, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("stage1.bundle.verify.digest_file", refuse)
    problems = verify_bundle(bundle).problems
    assert len(problems) == 6
    assert all("cannot be read (Permission denied)" in problem for problem in problems)


# ---- whole, but not of one piece: every digest is right, the documents disagree ----------------------------------


def test_classes_in_another_order_are_found(bundle, reseal):
    reseal(bundle, classes=["roadwork", "none"])
    problems = verify_bundle(bundle).problems
    assert any("thresholds.json: classes none, roadwork; bundle.json says roadwork, none" in line for line in problems)


def test_certificate_of_another_calibration_is_found(bundle, reseal, edit):
    edit(bundle / "certificate.json", lambda document: document.update(calib_digest="0" * 64))
    reseal(bundle)
    assert any("calibration.parquet: its 2000 ids are not" in line for line in verify_bundle(bundle).problems)


def test_certified_must_be_said_by_all(bundle, reseal, edit):
    reseal(bundle, certified=False)
    assert any("certified is False, certificate.json says True" in line for line in verify_bundle(bundle).problems)
    edit(bundle / "thresholds.json", lambda document: document.update(certified=False))
    reseal(bundle, certified=True)
    assert any("does not belong to the certificate.json" in line for line in verify_bundle(bundle).problems)


def test_nothing_may_exit_that_is_not_certified(bundle, reseal, edit):
    for name in ("thresholds.json", "certificate.json"):
        edit(bundle / name, lambda document: document.update(certified=False))
    reseal(bundle, certified=False)
    for scores in (True, False):
        problems = verify_bundle(bundle, scores=scores).problems
        assert any("images exit although nothing is certified" in line for line in problems)


def test_manifest_that_lists_two_policies_is_refused(bundle, reseal):
    shutil.copy(bundle / "thresholds.json", bundle / "scrcparams.json")
    reseal(bundle)
    assert any("exactly one exit policy" in line for line in verify_bundle(bundle).problems)


def test_other_preprocessing_is_refused(bundle, reseal):
    document = read_manifest(bundle)
    document["preprocessing"]["decode"]["alpha"] = "over black"
    reseal(bundle, preprocessing=document["preprocessing"])
    assert any("another way of decoding" in line for line in verify_bundle(bundle).problems)


def test_a_path_out_of_the_bundle_is_refused(bundle):
    path = bundle / "bundle.json"
    document = json.loads(path.read_text())
    document["files"]["../outside"] = {"sha256": "0" * 64, "size": 0}
    path.write_text(json.dumps(document, indent=2) + "\n")
    with pytest.raises(IntegrityError, match="outside"):
        read_manifest(bundle)


def test_verify_and_recompute_write_nothing(bundle):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files(bundle)}
    for path in [bundle, *bundle.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    assert verify_bundle(bundle, recompute=True).ok
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files(bundle)} == before
    for path in [bundle, *bundle.rglob("*")]:
        path.chmod(0o755)


def test_a_certificate_that_may_rest_on_groups_dealt_by_size_gets_a_note(make_parts, tmp_path):
    """Groups of several sizes and no word of how they were dealt: as earlier versions wrote it under
    split.method=balanced.
    """

    def notes(name: str, dealing: str | None, **made) -> tuple[str, ...]:
        parts = make_parts(risks={"fnr": 0.05, "false_exit_rate": 0.05}, **made)
        certificate = replace(Certificate.load(parts.run / "certificate.json"), dealing=dealing)
        certificate.save(parts.run / "certificate.json")
        report = verify_bundle(parts.write(tmp_path / name))
        assert report.ok
        # These certificates name no ledger, as those of earlier versions, and that is a note of its own.
        return tuple(note for note in report.notes if "ledger" not in note)

    # 2,000 images in groups of three leave a last group of two
    (note,) = notes("old", None, per_group=3)
    assert "split.method=balanced" in note
    assert "\n" not in note
    assert notes("new", "stratified-random", per_group=3) == ()
    assert notes("even", None, per_group=2) == ()
    assert notes("images", None) == ()
