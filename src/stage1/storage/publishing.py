"""A finished folder replaces another in one step: a reader sees the old one or the new one, never neither."""

from __future__ import annotations

import ctypes
import errno
import os
import tempfile
from pathlib import Path

from stage1.storage.temporaries import remove_folder

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
# What a kernel, a C library or a file system says that has no such call.
_UNKNOWN = (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)


def publish(fresh: Path, folder: Path) -> None:
    """Rename `fresh` to `folder`; an existing folder is exchanged with it and removed. Raises OSError.

    Linux exchanges two names in one step (renameat2). Where that is not available the old folder is renamed aside
    first, to a name that `recover` finds, and back if the second step fails.
    """
    os.chmod(fresh, 0o755)  # mkdtemp makes folders that only the owner may enter
    if not folder.exists():
        os.rename(fresh, folder)
        return
    if _exchange(fresh, folder):
        remove_folder(fresh)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".old", dir=folder.parent))
    os.rename(folder, aside)  # an empty folder may be renamed over, a full one may not
    try:
        os.rename(fresh, folder)
    except BaseException:
        os.rename(aside, folder)
        raise
    remove_folder(aside)


def recover(folder: Path) -> None:
    """Finish a `publish` whose process was killed: the old folder is back, or removed. Raises OSError."""
    left = [
        entry
        for entry in sorted(folder.parent.iterdir())
        if entry.name.startswith(f".{folder.name}.") and entry.suffix == ".old" and entry.is_dir()
    ]
    for entry in sorted(left, key=lambda entry: entry.stat().st_mtime, reverse=True):
        if not folder.exists() and any(entry.iterdir()):
            os.rename(entry, folder)
        else:
            remove_folder(entry)


def _exchange(one: Path, other: Path) -> bool:
    """Whether the two names were exchanged; False where this machine cannot. Raises OSError for any other reason."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNKNOWN:
        return False
    raise OSError(number, os.strerror(number), str(other))
