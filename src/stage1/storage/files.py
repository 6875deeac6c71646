"""Files appear whole or not at all; digests; the lock of a run directory."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from stage1.errors import ConfigError, Stage1Error
from stage1.storage.temporaries import temporary_file

_CHUNK = 1 << 20
LOCK_FILE = ".lock"
_READER_S = 60.0  # that a FIFO is waited for to be opened by somebody
_OPEN_ALREADY = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/[^/]+/fd/\d+")


def digest_bytes(data: bytes) -> str:
    """sha256 of `data`, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: str | os.PathLike[str]) -> str:
    """sha256 of the file's bytes, read in pieces of 1 MiB."""
    sha = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(_CHUNK):
            sha.update(piece)
    return sha.hexdigest()


def digest_ids(ids: Iterable[str]) -> str:
    """sha256 of a set of ids: sorted, joined by newlines, so that the order of rows does not matter."""
    return digest_bytes("\n".join(sorted(ids)).encode())


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary stream whose content replaces `path` only when the block ends without an error.

    A link stays, and what it points to is replaced. A device or FIFO gets the content when it is whole, and stays what
    it is.
    Raises Stage1Error (one line, with the path) where the disk is full or the folder cannot be written to, ConfigError
    where the path is a folder, a socket or a disk.
    """
    with _replacing(Path(path)) as temporary, open(temporary, "r+b") as stream:
        yield stream
        stream.flush()


@contextmanager
def _replacing(path: Path) -> Iterator[str]:
    """The name of an empty temporary file; after the block it is synced and renamed over `path`, or written into it
    where that is no regular file.

    On an error it is removed and `path` is unchanged; OSError becomes Stage1Error.
    """
    try:
        if _is_special(path):
            with tempfile.TemporaryDirectory(prefix="stage1-") as folder:
                temporary = os.path.join(folder, "whole")
                open(temporary, "xb").close()
                yield temporary
                _write_into(path, temporary)
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(target) as temporary:
            yield temporary
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
            _sync_folder(target.parent)
    except OSError as error:
        raise write_error(path, error) from error


def _is_special(path: Path) -> bool:
    """Whether `path` is something that is written into, not replaced.

    Raises ConfigError for what cannot be written at all, OSError for links in a circle and the like.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: is a folder; give the name of a file")
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        kind = "socket" if stat.S_ISSOCK(mode) else "disk"
        raise ConfigError(f"{path}: is a {kind}, which is not written to; give the name of a file")
    return not stat.S_ISREG(mode) or _OPEN_ALREADY.fullmatch(os.path.abspath(path)) is not None


def _write_into(path: Path, whole: str) -> None:
    handle = _opened(path)
    try:
        os.set_blocking(handle, True)
        with open(whole, "rb") as reading, open(handle, "wb", closefd=False) as writing:
            shutil.copyfileobj(reading, writing, _CHUNK)
    finally:
        os.close(handle)


def _opened(path: Path) -> int:
    """A handle to write with. A FIFO without a reader is waited for, not for ever. Raises OSError."""
    end = time.monotonic() + _READER_S
    while True:
        try:
            # Append: standard output may be a file that others have written to.
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > end:
                why = "nobody reads from it" if error.errno == errno.ENXIO else error.strerror
                raise OSError(error.errno, why) from error
        time.sleep(0.05)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_writer(path) as stream:
        stream.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write `text` as UTF-8 to `path`, whole or not at all. Bytes of a file name that are no UTF-8 appear as
    \udcXX.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_through(path: str | os.PathLike[str], save: Callable[[str], None]) -> None:
    """For libraries that only write to a path: `save(temporary)`, then sync and rename over `path`."""
    with _replacing(Path(path)) as temporary:
        save(temporary)


def write_error(path: Path, error: OSError) -> Stage1Error:
    """The one-line error for a failed write: which file, why, what to do."""
    why = error.strerror or str(error)
    return Stage1Error(
        f"{path}: cannot be written ({why}); free space or choose another --output. Nothing was replaced."
    )


def _sync_folder(folder: Path) -> None:
    # Without this a crash right after the rename may bring back the old name on some file systems.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Hold the exclusive lock of a folder; wait: until it is free, else a second process gets a one-line error at once.

    The lock is the kernel's (flock), so it is released with the process, however that ends.
    """
    path = Path(folder) / LOCK_FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder}: is no folder, or lies below what is none; choose another --output") from error
    except OSError as error:
        raise write_error(path, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Stage1Error(
                f"{folder}: another process (pid {holder}) works in this run directory; wait for it or use another one"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def leaving_no_trace(folder: Path) -> Iterator[None]:
    """What is refused inside leaves no folder that was not there, unless something was written into it."""
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    lock = folder / LOCK_FILE
    had_lock = lock.exists()
    try:
        yield
    except BaseException:
        if not had_lock and folder.is_dir() and {path.name for path in folder.iterdir()} == {LOCK_FILE}:
            lock.unlink()
        for place in made:  # innermost first
            try:
                place.rmdir()
            except OSError:  # it is not empty: it stays, and so do those above
                break
        raise
