"""The table of sources, by the name that `data.source` takes: and the listing of what a config names."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stage1.errors import DataError, MissingError
from stage1.scores.columns import is_blank
from stage1.sources.dataset import is_saved, list_hub, list_saved
from stage1.sources.folder import list_folder
from stage1.sources.listing import Listing, joined
from stage1.sources.shards import shards
from stage1.sources.tables import list_table
from stage1.sources.tar import list_tar


@dataclass(frozen=True, slots=True)
class Source:
    """A row of SOURCES.

    read: the listing of one file or folder, with the further columns asked for; no image is opened. recognises: whether
    a path is such a source, for data.source=auto. sharded: several files ({000..012}, *, a folder of shards) are one
    source. prefix: what is no path but a name, "hf:"; remote: the listing of such a name.
    """

    name: str
    read: Callable[[Path, Sequence[str]], Listing]
    recognises: Callable[[Path], bool]
    sharded: bool = True
    prefix: str = ""
    remote: Callable[[str, Sequence[str]], Listing] | None = None


def _ends(*endings: str) -> Callable[[Path], bool]:
    return lambda path: not path.is_dir() and path.suffix.lower() in endings


SOURCES: dict[str, Source] = {
    source.name: source
    for source in (
        Source("folder", list_folder, lambda path: path.is_dir() and not is_saved(path), sharded=False),
        Source("table", list_table, _ends(".csv", ".tsv", ".parquet")),
        Source(
            "hf",
            list_saved,
            lambda path: path.is_dir() and is_saved(path),
            sharded=False,
            prefix="hf:",
            remote=list_hub,
        ),
        Source("webdataset", list_tar, _ends(".tar")),
    )
}
"""Every source that can be read. A further one is its file and its row here."""
GENERATED = "roadscenes"
"""The embedded generator: it writes a table, and that is read."""


def config_names() -> tuple[str, ...]:
    """What `data.source` may be."""
    return ("auto", GENERATED, *SOURCES)


def list_source(given: str, kind: str, slices: Sequence[str], base: Path | None = None) -> Listing:
    """The listing of `given`: a path, a pattern of paths, or a name with the prefix of its source. kind: `data.source`.

    base: the folder that a relative path resolves against. Raises as `data.listing.list_sources`.
    """
    listing = _remote(given, kind, slices)
    if listing is None:
        path = Path(os.path.abspath((base or Path()) / Path(given).expanduser()))
        files = shards(given, path) if kind not in SOURCES or SOURCES[kind].sharded else None
        if files is None and not path.exists():
            raise MissingError(f"{given}: no such file or folder (looked for {path}); set data.table")
        read = [
            (SOURCES[kind] if kind in SOURCES else _recognised(file)).read(file, slices) for file in files or [path]
        ]
        listing = read[0] if files is None else joined(given, read)
    # As in score files: what says that nothing is known (nan, None, null) is no group that images share.
    listing.groups = ["" if is_blank(group) else group for group in listing.groups]
    if not listing.paths and not listing.quarantine:
        raise DataError(f"{given}: holds no images; is it the right file or folder?")
    if missing := [name for name in slices if name not in listing.slices]:
        raise DataError(f"{given}: no column {missing[0]!r} (data.slices); add it or leave it out of data.slices")
    return listing


def _remote(given: str, kind: str, slices: Sequence[str]) -> Listing | None:
    """The listing of a name with a prefix; None for a path."""
    for source in SOURCES.values():
        if source.remote is not None and kind in ("auto", source.name) and given.startswith(source.prefix):
            return source.remote(given.removeprefix(source.prefix), slices)
    return None


def _recognised(path: Path) -> Source:
    for source in SOURCES.values():
        if source.recognises(path):
            return source
    raise DataError(f"{path}: unknown kind of source; use a folder, .csv, .tsv, .parquet, .tar, or set data.source")
