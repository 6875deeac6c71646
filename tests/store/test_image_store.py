"""Kept images: whole or not there, by digest alone, as long as was said."""

from __future__ import annotations

import os

import pytest

from stage1.errors import DataError, IntegrityError, MissingError
from stage1.storage.files import digest_bytes
from stage1.store import ImageStore


@pytest.fixture
def kept(tmp_path) -> ImageStore:
    return ImageStore(tmp_path / "kept")


def aged(kept: ImageStore, image: bytes, at: float) -> str:
    digest = kept.put(image)
    os.utime(kept.folder / digest[:2] / digest, (at, at))
    return digest


def test_an_image_comes_back(kept):
    digest = kept.put(b"photo")
    assert digest == digest_bytes(b"photo")
    assert kept.get(digest) == b"photo"
    assert kept.put(b"photo") == digest
    assert kept.delete(digest)
    assert not kept.delete(digest)
    with pytest.raises(MissingError, match="not kept"):
        kept.get(digest)


def test_a_changed_image_is_not_given_out(kept):
    digest = kept.put(b"photo")
    (kept.folder / digest[:2] / digest).write_bytes(b"other")
    with pytest.raises(IntegrityError, match="is not the image that was kept"):
        kept.get(digest)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "\n", "0" * 65])
def test_what_is_no_digest_is_no_name(kept, name):
    for use in (kept.get, kept.delete):
        with pytest.raises(DataError, match="is no sha256"):
            use(name)


def test_by_age_then_by_size_oldest_first(kept):
    digests = [aged(kept, bytes([number]) * 10, at=1000.0 + number) for number in range(5)]
    done = kept.prune(max_age_s=100, now=1101.5)
    assert (done.removed, done.removed_bytes, done.images, done.bytes) == (2, 20, 3, 30)
    assert kept.prune(max_bytes=20).removed == 1
    with pytest.raises(MissingError):
        kept.get(digests[2])
    assert kept.get(digests[4]) == bytes([4]) * 10
    assert kept.prune(max_bytes=0).images == 0


def test_kept_again_is_new_and_a_clock_that_goes_back_removes_nothing(kept):
    aged(kept, b"photo", at=1000.0)
    kept.put(b"photo")
    assert kept.prune(max_age_s=3600).removed == 0
    assert kept.prune(max_age_s=3600, now=0.0).removed == 0


def test_other_files_stay(kept):
    (kept.folder / "ab").mkdir()
    (kept.folder / "ab" / "notes.txt").write_text("mine")
    assert kept.prune(max_bytes=0).images == 0
    assert (kept.folder / "ab" / "notes.txt").exists()
