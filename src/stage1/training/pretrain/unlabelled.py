"""Unlabelled images for pretraining: found in a folder, and refused where they hold what the report is made on."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage1.data.duplicates import clusters, dhash, near_duplicates, thumbnail_gray
from stage1.data.table import SampleTable
from stage1.errors import DataError, MissingError
from stage1.runtime.folders import Walk, image_files
from stage1.runtime.images import MAX_PIXELS, decode
from stage1.runtime.session import cores
from stage1.runtime.stream import Item, read_item
from stage1.storage.files import digest_bytes

log = logging.getLogger("stage1")
# Images on which certificate and report are made: a backbone that has seen them makes scores unlike those of new
# images.
PROTECTED = ("val_calib", "val_test")


@dataclass(frozen=True, slots=True)
class Prints:
    """Of N readable images: names, ids (sha256 of the bytes), gray thumbnails uint8 [N, 8, 9], items to read."""

    names: tuple[str, ...]
    ids: tuple[str, ...]
    grays: NDArray[np.uint8]
    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.ids)


def unlabelled_images(folder: str | os.PathLike[str]) -> list[Path]:
    """Image files below `folder`, at every depth, sorted by path. Raises MissingError, DataError (none)."""
    root = Path(folder)
    if not root.is_dir():
        raise MissingError(f"{root}: no such folder (pretrain.folder)")
    walk = Walk()
    found = sorted(path for path in image_files(root, walk) if path.is_file())
    if not found:
        raise DataError(f"{root}: no images below it{f', but {walk}' if walk.left_out else ''} (pretrain.folder)")
    if walk.left_out:
        log.info("%s: left out %s, no images by name or content", root, walk)
    return found


def printed(items: Sequence[Item], names: Sequence[str], *, workers: int = 0, max_pixels: int = MAX_PIXELS) -> Prints:
    """Read every image once. Unreadable ones: left out, counted in the log, the first named. Copies count once.

    Raises DataError where none can be read.
    """

    def look(item: Item) -> tuple[str, NDArray[np.uint8]] | Exception:
        try:
            data = read_item(item, max_pixels=max_pixels)
            return digest_bytes(data), thumbnail_gray(decode(data, max_pixels=max_pixels))
        except (DataError, OSError) as error:
            return error

    with ThreadPoolExecutor(workers or cores()) as pool:
        seen = list(pool.map(look, items))
    failed = [(name, made) for name, made in zip(names, seen, strict=True) if isinstance(made, Exception)]
    if failed:
        log.warning("%d of %d images cannot be read; the first: %s (%s)", len(failed), len(items), *failed[0])
    kept: dict[str, tuple[str, NDArray[np.uint8], Item]] = {}
    for name, made, item in zip(names, seen, items, strict=True):
        if not isinstance(made, Exception):
            kept.setdefault(made[0], (name, made[1], item))
    if not kept:
        first = f"; the first: {failed[0][0]} ({failed[0][1]})" if failed else ""
        raise DataError(f"pretrain: none of {len(items)} images can be read{first}")
    columns = list(zip(*kept.values(), strict=True))
    return Prints(tuple(columns[0]), tuple(kept), np.stack(columns[1]), tuple(columns[2]))


def protected_images(table: SampleTable, roles: Sequence[str] = PROTECTED, *, workers: int = 0) -> Prints:
    """Prints of the images of these roles."""
    rows = np.concatenate([table.rows(role) for role in roles])
    return printed(table.items(rows.tolist()), table.paths[rows].tolist(), workers=workers)


def overlapping(unlabelled: Prints, protected: Prints, distance: int) -> list[tuple[int, int, str]]:
    """(row of unlabelled, row of protected, "same bytes" or "near-duplicate"), one per unlabelled image that overlaps.

    Near-duplicate as in data/duplicates.py, or joined to a protected image by a chain of near-duplicates (frames of one
    scene).
    """
    places = {name: row for row, name in enumerate(protected.ids)}
    found = {row: (places[name], "same bytes") for row, name in enumerate(unlabelled.ids) if name in places}
    grays = np.concatenate([unlabelled.grays, protected.grays])
    labels = clusters(len(grays), near_duplicates(dhash(grays), grays, distance))
    n = len(unlabelled)
    first = {int(label): row for row, label in reversed(list(enumerate(labels[n:].tolist())))}
    for row, label in enumerate(labels[:n].tolist()):
        if row not in found and label in first:
            found[row] = (first[label], "near-duplicate")
    return [(row, *found[row]) for row in sorted(found)]


def refuse_overlap(unlabelled: Prints, protected: Prints, distance: int) -> None:
    """Raises DataError where an unlabelled image is, or nearly is, a protected one: leakage by pretraining.

    The message names the first pair and the number; nothing is dropped unreported. distance:
    data.near_duplicate_distance.
    """
    found = overlapping(unlabelled, protected, distance)
    if found:
        row, other, how = found[0]
        raise DataError(
            f"pretrain.folder: {len(found)} of {len(unlabelled)} images overlap {' and '.join(PROTECTED)} (leakage"
            f" through pretraining), e.g. {unlabelled.names[row]} and {protected.names[other]} ({how}); take them out"
            " of the folder"
        )
