"""Images, kept only where asked for: a folder in which each has the name of its digest, and how long they stay."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stage1.errors import DataError, IntegrityError, MissingError, StoreError
from stage1.storage.files import digest_bytes, write_bytes

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What `ImageStore.prune` removed, and what is left."""

    removed: int
    removed_bytes: int
    images: int
    bytes: int


class ImageStore:
    """folder: FOLDER/ab/abcd... for each image, whole or not there. No name of a client's becomes a file name."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StoreError(f"{folder}: cannot keep images ({error.strerror})") from error

    def put(self, image: bytes) -> str:
        """Keep an image; returns its digest. One that is kept already counts as new for `prune`.

        Raises Stage1Error where the disk is full.
        """
        digest = digest_bytes(image)
        path = self._path(digest)
        try:
            os.utime(path)
        except FileNotFoundError:
            write_bytes(path, image)
        return digest

    def get(self, digest: str) -> bytes:
        """The image. Raises MissingError where it is not kept, IntegrityError where its bytes are not those that were
        kept, DataError for what is no digest.
        """
        path = self._path(digest)
        try:
            image = path.read_bytes()
        except FileNotFoundError as error:
            raise MissingError(f"image {digest}: is not kept (any more)") from error
        if digest_bytes(image) != digest:
            raise IntegrityError(f"{path}: is not the image that was kept; restore it, or delete it")
        return image

    def delete(self, digest: str) -> bool:
        """Remove an image; False where it was not there."""
        try:
            self._path(digest).unlink()
            return True
        except FileNotFoundError:
            return False

    def prune(
        self, *, max_age_s: float | None = None, max_bytes: int | None = None, now: float | None = None
    ) -> Pruned:
        """Remove images older than `max_age_s` (since they were last kept), then the oldest until `max_bytes` are left.

        now: seconds since the epoch; a clock that went back makes images younger, never older.
        """
        now = time.time() if now is None else now
        kept = sorted(self._all())
        total = sum(size for _, _, size in kept)
        removed = removed_bytes = 0
        for at, path, size in kept:
            too_old = max_age_s is not None and now - at > max_age_s
            too_much = max_bytes is not None and total - removed_bytes > max_bytes
            if too_old or too_much:
                path.unlink(missing_ok=True)
                removed += 1
                removed_bytes += size
        return Pruned(removed, removed_bytes, len(kept) - removed, total - removed_bytes)

    def _path(self, digest: str) -> Path:
        if not _DIGEST.fullmatch(digest):
            raise DataError(f"image {digest!r:.80}: is no sha256 (64 hexadecimal digits, small letters)")
        return self.folder / digest[:2] / digest

    def _all(self) -> Iterator[tuple[float, Path, int]]:
        for path in self.folder.glob("??/*"):
            if _DIGEST.fullmatch(path.name):
                with suppress(FileNotFoundError):  # another process prunes too
                    status = path.stat()
                    yield status.st_mtime, path, status.st_size
