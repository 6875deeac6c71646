"""A folder of class folders: root/class/**/image."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stage1.errors import DataError
from stage1.runtime.folders import SYSTEM_FILES, is_ours, named_as_image
from stage1.sources.listing import Listing
from stage1.sources.locators import is_utf8
from stage1.sources.quarantine import Quarantined
from stage1.sources.shards import KINDS as SHARD_ENDINGS


def list_folder(root: Path, slices: Sequence[str] = ()) -> Listing:
    """root/class/**/image. Every visible file below a class counts as an image; what is none is quarantined later.

    Hidden files and folders are skipped, and so are run directories and bundles: their pictures were made from these
    images.
    An image directly in the root has no class: quarantined. `Listing.empty` names class folders without a file.
    Raises DataError for a class whose name is no UTF-8.
    """
    if not root.is_dir():
        raise DataError(f"{root}: not a folder; for a table use data.source=table")
    listing = Listing(str(root), named=True)
    entries = _visible(root)
    for entry in entries:
        if _is_folder(entry):
            ours: list[str] = []
            before = len(listing)
            for path in _walk(entry.path, {_identity(root)}, ours):
                listing.add(path, entry.name, os.path.relpath(path, root))
            if len(listing) == before and not ours:
                listing.empty.append(entry.name)
            if len(listing) > before and not is_utf8(entry.name):
                raise DataError(f"{root}: the class folder {entry.name!r} has a name that is no UTF-8; rename it")
        elif named_as_image(entry.name):
            listing.quarantine.append(Quarantined(entry.path, "no class folder", "it lies beside the class folders"))
    if listing.paths and all(path.lower().endswith(SHARD_ENDINGS) for path in listing.paths):
        raise DataError(
            f"{root}: its folders hold no images but {Path(listing.paths[0]).suffix} files; give the folder of these: "
            f"data.table={Path(listing.paths[0]).parent}"
        )
    if not listing.paths:
        tables = [entry.name for entry in entries if entry.name.lower().endswith((".csv", ".tsv", ".parquet"))]
        hint = f"give the table: data.table={root / tables[0]}" if tables else "root/class/image is expected"
        raise DataError(f"{root}: no class folder with images in it; {hint}")
    return listing


def _visible(folder: str | Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            visible = [e for e in entries if not e.name.startswith(".") and e.name.lower() not in SYSTEM_FILES]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror}); check its permissions") from error
    return sorted(visible, key=lambda entry: entry.name)


def _walk(folder: str, above: set[tuple[int, int]], ours: list[str]) -> Iterator[str]:
    """Files below, in order; run directories and bundles are not entered but added to `ours`."""
    here = _identity(folder)
    if here in above:  # a link back to a folder above: following it would never end
        return
    if is_ours(folder):
        ours.append(folder)
        return
    for entry in _visible(folder):
        if _is_folder(entry):
            yield from _walk(entry.path, {*above, here}, ours)
        else:
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads back to itself is none: it is read as a file and quarantined by its name."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _identity(folder: str | Path) -> tuple[int, int]:
    state = os.stat(folder)
    return state.st_dev, state.st_ino
