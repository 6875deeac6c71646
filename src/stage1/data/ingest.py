"""From a source to a SampleTable: one pass that reads, checks, decodes and fingerprints every image; nothing silent."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage1.config import DataConfig
from stage1.data.duplicates import dhash, thumbnail_gray
from stage1.data.given_roles import is_pool
from stage1.data.listing import list_sources
from stage1.data.table import SampleTable
from stage1.errors import DataError
from stage1.runtime.images import ImageError, decode
from stage1.scores.labels import are_plain_numbers, checked_names, found_classes, outside, place_labels
from stage1.sources.listing import Listing
from stage1.sources.locators import read_locator, split_locator
from stage1.sources.quarantine import EXACT_DUPLICATE, Quarantined, QuarantineError, check_limit
from stage1.storage.files import digest_bytes


@dataclass(frozen=True, slots=True)
class Ingest:
    """A source, read once.

    table:      the usable images; roles are "" unless given.
    quarantine: what was left out, in source order.
    hashes:     uint64 [N], dHash of each row.
    grays:      uint8 [N, 8, 9], the gray thumbnail that it is computed from.
    links:      (row, group): the same bytes were under this other group too; the split joins the two groups.
    digest:     sha256 of the table's content (ids, labels, groups, roles, ...; not of paths): the same images with the
                same annotations give the same digest on any machine.
    pools:      str [N], where the given role is one of several that the split cuts ("val_select+val_calib"; the table's
    role
                is "" there), else "".
    """

    table: SampleTable
    quarantine: list[Quarantined]
    hashes: NDArray[np.uint64]
    grays: NDArray[np.uint8]
    links: tuple[tuple[int, str], ...]
    digest: str
    pools: NDArray[np.str_]

    @property
    def given_roles(self) -> NDArray[np.str_]:
        """Role or pool of each row as the source gave it, str [N]; "" where it gave none."""
        return np.where(self.pools != "", self.pools, self.table.roles)


@dataclass(frozen=True, slots=True)
class _Row:
    path: str
    label: int
    group: str
    source: str
    timestamp: str
    role: str
    slices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the one pass over an image's bytes gives."""

    id: str
    gray: NDArray[np.uint8]


def read_source(config: DataConfig, *, base: Path | None = None, workers: int = 0) -> Ingest:
    """Read the source of `config`: list it, map labels, decode every image once (in threads), drop what cannot be used.

    base: folder that relative paths in the config resolve against (default: working directory). Relative paths in a
    table resolve against the table's file. workers: decoding threads, 0 = one per core.

    Classes: `config.classes`, else the names that the source itself stores, else the labels found
    (`labels.found_classes`).
    What a label means is said by `labels.place_labels`, for one listing as a whole; an integer of a ClassLabel column
    is an index into the names stored with it, always.

    Quarantined, each with its reason: a missing or unreadable file, anything `images.decode` refuses, a label outside
    the classes where `bad_labels` is "quarantine", and the second of two rows with the same bytes and role.

    Raises MissingError, ConfigError and DataError of `listing.list_sources`; DataError for a label outside the classes
    (row, value, classes), for equal bytes under two labels (both paths), for roles given to some rows only, and for
    fewer than two classes; QuarantineError (carries the list) above `config.max_quarantine`.
    """
    listings = list_sources(config, base)
    quarantine = [item for listing in listings for item in listing.quarantine]
    classes = _classes(config, listings)
    rows = [row for listing in listings for row in _rows(listing, classes, config.bad_labels, quarantine)]
    _require_whole_roles(rows, listings)
    total = len(rows) + len(quarantine)
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        looks = list(pool.map(lambda row: _look(row.path, config.max_pixels), rows))
    kept: list[tuple[_Row, _Seen]] = []
    for row, look in zip(rows, looks, strict=True):
        if isinstance(look, Quarantined):
            quarantine.append(look)
        else:
            kept.append((row, look))
    kept, links = _without_duplicates(kept, classes, config.bad_labels, quarantine)
    check_limit(quarantine, total, config.max_quarantine)
    present = sorted({row.label for row, _ in kept})
    if len(present) < 2:
        found = classes[present[0]] if present else "none"
        raise QuarantineError(
            f"{listings[0].where}: images of one class only ({found}, {len(kept)} usable); two are needed", quarantine
        )
    table = _table(kept, classes, config.slices)
    grays = np.stack([seen.gray for _, seen in kept])
    pools = np.array([row.role if is_pool(row.role) else "" for row, _ in kept], dtype=np.str_)
    return Ingest(table, quarantine, dhash(grays), grays, links, _content_digest(table, pools), pools)


def listed_classes(config: DataConfig, *, base: Path | None = None) -> tuple[str, ...]:
    """The classes that `read_source` would find, by the listing alone. Raises as list_sources, and DataError."""
    return _classes(config, list_sources(config, base))


def source_digest(config: DataConfig, *, base: Path | None = None) -> str:
    """sha256 of the data section and the source: the table's bytes, and path, size and mtime of each image.

    No image is opened; 10,000 images take well under a second. Raises as `listing.list_sources`.
    """
    sha = hashlib.sha256(config.model_dump_json().encode())
    for listing in list_sources(config, base):
        for file in listing.files:
            sha.update(_state(file))
            if file.endswith((".csv", ".tsv")):
                sha.update(Path(file).read_bytes())
        for path, label, role in zip(listing.paths, listing.labels, listing.roles, strict=True):
            # An embedded image changes with its container, which is in `files`.
            sha.update(path.encode() if split_locator(path) else _state(path))
            sha.update(f"\0{label}\0{role}\n".encode("utf-8", "surrogateescape"))
        for item in listing.quarantine:
            sha.update(f"{item.path}\0{item.reason}\n".encode("utf-8", "surrogateescape"))
    return sha.hexdigest()


def _state(path: str) -> bytes:
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return f"{path}\0missing\0".encode("utf-8", "surrogateescape")
    return f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0".encode("utf-8", "surrogateescape")


# ---- labels and roles --------------------------------------------------------------------------------------------


def _classes(config: DataConfig, listings: Sequence[Listing]) -> tuple[str, ...]:
    if config.classes is not None:
        return checked_names(config.classes, "data.classes")
    stored = {listing.class_names for listing in listings}
    if stored == {listings[0].class_names} and listings[0].class_names is not None:
        return checked_names(listings[0].class_names, f"{listings[0].where}: stored class names")
    if any(names is not None for names in stored):
        raise DataError("data.role_tables: the tables store different class names; give data.classes in order")
    texts = [label for listing in listings for label in listing.labels]
    if empty := sorted({name for listing in listings for name in listing.empty} - set(texts)):
        raise DataError(
            f"{listings[0].where}: no file in the class folder {empty[0]!r}; fill it, remove it, or name the classes: "
            "data.classes=[...]"
        )
    return found_classes(texts, as_they_stand=all(listing.named for listing in listings))


def _index(listing: Listing, classes: tuple[str, ...]) -> dict[str, int]:
    """Index of each label of the listing that has one."""
    # Names stored in another order than their numbers, [1, 0], must not be read as positions once they are texts.
    positions = listing.class_names is None or are_plain_numbers(listing.class_names)
    try:
        return place_labels(listing.labels, classes, positions=positions)
    except DataError as error:
        raise DataError(f"{listing.where}: {error}") from error


def _rows(listing: Listing, classes: tuple[str, ...], bad_labels: str, quarantine: list[Quarantined]) -> list[_Row]:
    index = _index(listing, classes)
    rows = []
    for at, text in enumerate(listing.labels):
        path = listing.paths[at]
        if text not in index:
            what = outside(text, classes)
            if bad_labels == "error":
                raise DataError(
                    f"{listing.where}: {listing.numbers[at]}: {what}; correct it, name it in data.classes, "
                    "or set data.bad_labels=quarantine"
                )
            quarantine.append(Quarantined(path or listing.numbers[at], "bad label", f"{listing.numbers[at]}: {what}"))
            continue
        if not path:
            where = f"{listing.where}: {listing.numbers[at]}"
            quarantine.append(Quarantined(where, "missing file", "the row names no image"))
            continue
        rows.append(
            _Row(
                path,
                index[text],
                listing.groups[at],
                listing.sources[at],
                listing.timestamps[at],
                listing.roles[at],
                tuple(column[at] for column in listing.slices.values()),
            )
        )
    return rows


def _require_whole_roles(rows: Sequence[_Row], listings: Sequence[Listing]) -> None:
    without = [row for row in rows if not row.role]
    if without and len(without) < len(rows):
        raise DataError(
            f"{listings[0].where}: {len(without)} of {len(rows)} rows have no role ({without[0].path}); "
            "give every row one, or drop the column"
        )


# ---- one pass over each image ------------------------------------------------------------------------------------


def _look(path: str, max_pixels: int) -> _Seen | Quarantined:
    """Read, check, decode, fingerprint. Any failure becomes a quarantine row, and the pass continues."""
    try:
        data = read_locator(path, max_pixels=max_pixels)
        gray = thumbnail_gray(decode(data, max_pixels=max_pixels))
    except ImageError as error:
        return Quarantined(path, error.reason, str(error).removeprefix(f"{error.reason}: "))
    except FileNotFoundError as error:
        return Quarantined(path, "missing file", error.strerror or str(error))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        return Quarantined(path, "unreadable", getattr(error, "strerror", None) or str(error))
    return _Seen(digest_bytes(data), gray)


def _without_duplicates(
    kept: list[tuple[_Row, _Seen]], classes: tuple[str, ...], bad_labels: str, quarantine: list[Quarantined]
) -> tuple[list[tuple[_Row, _Seen]], tuple[tuple[int, str], ...]]:
    """One row per (bytes, role), and the links to the groups of the copies left out.

    Across given roles both stay: that is leakage, and judged with the split.
    """
    first: dict[str, _Row] = {}
    conflicting: dict[str, _Row] = {}
    for row, seen in kept:
        other = first.setdefault(seen.id, row)
        if other.label != row.label:
            if bad_labels == "error":
                raise DataError(
                    f"same image, two labels: {other.path} is {classes[other.label]}, {row.path} is "
                    f"{classes[row.label]}; correct one, or set data.bad_labels=quarantine"
                )
            conflicting[seen.id] = row
    unique: dict[tuple[str, str], int] = {}
    result: list[tuple[_Row, _Seen]] = []
    links: dict[tuple[int, str], None] = {}
    for row, seen in kept:
        if seen.id in conflicting:
            # Nobody knows which label is right, so none of the copies is used.
            pair = f"{first[seen.id].path} and {conflicting[seen.id].path} have the same bytes and different labels"
            quarantine.append(Quarantined(row.path, "two labels", pair))
        elif (seen.id, row.role) in unique:
            at = unique[seen.id, row.role]
            same = result[at][0]
            quarantine.append(Quarantined(row.path, EXACT_DUPLICATE, f"same bytes as {same.path}, which is kept"))
            if (row.group or seen.id) != (same.group or seen.id):
                links[at, row.group or seen.id] = None
        else:
            unique[seen.id, row.role] = len(result)
            result.append((row, seen))
    return result, tuple(links)


# ---- the table ---------------------------------------------------------------------------------------------------


def _table(kept: Sequence[tuple[_Row, _Seen]], classes: tuple[str, ...], slices: Sequence[str]) -> SampleTable:
    def texts(values: list[str]) -> NDArray[np.str_]:
        return np.array(values, dtype=np.str_)

    return SampleTable(
        ids=texts([seen.id for _, seen in kept]),
        paths=texts([row.path for row, _ in kept]),
        labels=np.array([row.label for row, _ in kept], dtype=np.int64),
        groups=texts([row.group or seen.id for row, seen in kept]),
        sources=texts([row.source for row, _ in kept]),
        timestamps=texts([row.timestamp for row, _ in kept]),
        roles=texts(["" if is_pool(row.role) else row.role for row, _ in kept]),
        classes=classes,
        slices={name: texts([row.slices[at] for row, _ in kept]) for at, name in enumerate(slices)},
    )


def _content_digest(table: SampleTable, pools: NDArray[np.str_]) -> str:
    columns = (
        table.ids,
        table.labels,
        table.groups,
        table.sources,
        table.timestamps,
        table.roles,
        *table.slices.values(),
        *([pools] if (pools != "").any() else []),
    )
    lines = ("\0".join(map(str, row)) for row in zip(*(column.tolist() for column in columns), strict=True))
    return digest_bytes("\n".join([*table.classes, "", *lines]).encode("utf-8", "surrogateescape"))
