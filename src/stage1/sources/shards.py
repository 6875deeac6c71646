"""One source in several files: {000..012} and * in its name, or a folder of .tar or .parquet shards."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

from stage1.errors import ConfigError, DataError, MissingError

KINDS = (".tar", ".parquet")
_BRACE = re.compile(r"\{(\d+\.\.\d+|[^{}]*,[^{}]*)\}")
_MOST = 100_000


def shards(given: str, path: Path) -> list[Path] | None:
    """The files that the pattern `given` names, sorted; None where it is one file or a folder of class folders.

    path: `given` as an absolute path. Raises MissingError for a file of {..} that is not there and for a * that nothing
    fits, ConfigError for too many files, DataError for files of two kinds.
    """
    if path.is_dir():
        return _together(_folder_of_shards(path), given)
    if path.exists():
        return None
    names = _braces(str(path))
    if names == [str(path)] and not glob.has_magic(given):
        return None
    files = []
    for name in names:
        found = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not found or not os.path.isfile(found[0]):
            raise MissingError(f"{given}: no such file {name}; set data.table")
        files += [Path(one) for one in found if os.path.isfile(one)]
    return _together(files, given)


def part_name(path: Path) -> str:
    """What a shard is a part of: "train" of train-00000-of-00002.parquet and of train.tar."""
    return re.sub(r"[-_.]?\d+([-_]of[-_]\d+)?$", "", path.stem)


def _folder_of_shards(folder: Path) -> list[Path]:
    """The shards in a folder that holds no folders; none where it holds none."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                return []
            if entry.name.lower().endswith(KINDS):
                found.append(Path(entry.path))
    return sorted(found)


def _together(files: list[Path], given: str) -> list[Path] | None:
    kinds = sorted({path.suffix.lower() for path in files})
    if len(kinds) > 1:
        raise DataError(
            f"{given}: holds files of several kinds ({', '.join(kinds)}); give those of one, e.g. *{kinds[0]}"
        )
    return files or None


def _braces(pattern: str) -> list[str]:
    """ "a-{08..10}.tar" -> a-08.tar, a-09.tar, a-10.tar; "{x,y}" likewise; several are combined."""
    pieces = _BRACE.split(pattern)
    choices: list[Iterable[str]] = []
    total = 1
    for index, piece in enumerate(pieces):
        inside: list[str] = [piece] if index % 2 == 0 else _inside(piece)
        total *= len(inside)
        choices.append(inside)
        if total > _MOST:
            raise ConfigError(f"data.table: {pattern} stands for more than {_MOST} files; give fewer")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _inside(body: str) -> list[str]:
    low, sign, high = body.partition("..")
    if not sign or not (low + high).isdecimal():
        return body.split(",")
    first, last = int(low), int(high)
    if last - first >= _MOST:
        raise ConfigError(f"data.table: {{{body}}} stands for more than {_MOST} files; give fewer")
    return [str(number).zfill(len(low)) for number in range(first, last + 1)]
