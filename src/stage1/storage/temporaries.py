"""Unfinished files and folders: their names, who holds them, and the removal of what a killed process left.

Each is held with flock while a process works on it, and the kernel releases the lock with the process, however it ends.
What no process holds is stale, and the next run that writes there removes it.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_MARK = "stage1-"
_OURS = re.compile(r"\..+\.stage1-[a-z0-9_]{8}\.tmp")
# Between the making of a file and the taking of its lock; clocks of a network drive may be off a little too.
_YOUNG_S = 2.0
_swept: set[str] = (
    set()
)  # folders are looked through once: the shards of a store would be looked through for each of them


@contextmanager
def temporary_file(path: Path) -> Iterator[str]:
    """The name of an empty file beside `path`, held; removed after the block if left. Raises OSError."""
    folder = path.parent
    if str(folder) not in _swept:
        _swept.add(str(folder))
        sweep_files(folder)
    handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".tmp", dir=folder)
    with _held(handle):
        try:
            yield name
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A new empty folder beside `path`, held; removed after the block where it is still there. Raises OSError.

    Those that a killed process left beside `path` are removed first.
    """
    sweep_folders(path)
    name = Path(tempfile.mkdtemp(prefix=_prefix(path), suffix=".tmp", dir=path.parent))
    with _held(os.open(name, os.O_RDONLY)):
        try:
            yield name
        finally:
            remove_folder(name)


def sweep_files(folder: Path) -> None:
    """Remove the temporary files of ours in `folder` that no process holds."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _OURS.fullmatch(entry.name) and entry.is_file(follow_symlinks=False) and _left(entry.path):
                os.unlink(entry.path)


def sweep_folders(path: Path) -> None:
    """Remove the temporary folders beside `path` that no process holds."""
    for entry in sorted(path.parent.iterdir()):
        if entry.name.startswith(f".{path.name}.") and entry.suffix == ".tmp" and entry.is_dir() and _left(str(entry)):
            remove_folder(entry)


def remove_folder(folder: Path) -> None:
    """Remove a folder, read-only ones inside it too; what cannot be removed stays for the next sweep."""
    with suppress(OSError):
        for inside, _, _ in os.walk(folder):
            os.chmod(inside, 0o755)
    shutil.rmtree(folder, ignore_errors=True)


def _prefix(path: Path) -> str:
    return f".{path.name[:150]}.{_MARK}"  # with its ends it has to stay below 255 bytes


def _left(path: str) -> bool:
    """Whether no process holds it, and it is old enough that none is about to."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return time.time() - os.fstat(handle).st_mtime > _YOUNG_S
    except OSError:
        return False
    finally:
        os.close(handle)


@contextmanager
def _held(handle: int) -> Iterator[None]:
    try:
        with suppress(OSError):  # a file system without locks: its leftovers are swept by hand
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)
