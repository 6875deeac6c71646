"""A WebDataset tar: which members are one sample, by names alone, and what their labels say; nothing is lost unseen."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from stage1.errors import DataError
from stage1.runtime.folders import named_as_image, starts_as_image
from stage1.sources.listing import KNOWN_COLUMNS, Listing, cell_text, label_cell
from stage1.sources.locators import tar_bytes, tar_members
from stage1.sources.quarantine import FURTHER_FILE, Quarantined
from stage1.storage.texts import read_json

LABEL_ENDINGS = (".cls", ".txt", ".json")


@dataclass(frozen=True, slots=True)
class Samples:
    """images: key -> member. notes: (key, member), labels and annotations of these images, in order. further: (image,
    why it is not the image of its sample). alone: keys of labels without an image."""

    images: dict[str, str] = field(default_factory=dict)
    notes: list[tuple[str, str]] = field(default_factory=list)
    further: list[tuple[str, str]] = field(default_factory=list)
    alone: list[str] = field(default_factory=list)


def samples(members: Iterable[str], starts_as_image: Callable[[str], bool], where: str) -> Samples:
    """The samples of an archive.

    An image is what is named as one, and a member without ending that starts as one. Its key is the name up to the last
    dot:
    "cam.3.png" and "cam.3.cls" are one sample. WebDataset cuts at the first dot, so that one sample has several files
    ("x.jpg", "x.seg.png", "x.cls"): where only the name up to the first dot has a label, that is the key, and an image
    beside the one called by the key alone is a further file of its sample. Hidden members and files of other kinds are
    passed over.
    Raises DataError where two images are left under one key.
    """
    found: list[tuple[str, str, str]] = []
    labels: list[tuple[str, str, str]] = []
    for name in members:
        inner = PurePosixPath(name)
        if inner.name.startswith("."):
            continue
        long, short = str(inner.with_suffix("")), str(inner.parent / inner.name.partition(".")[0])
        if named_as_image(inner.name) or (not inner.suffix and starts_as_image(name)):
            found.append((name, long, short))
        elif inner.suffix.lower() in LABEL_ENDINGS:
            labels.append((name, long, short))
    made = Samples()
    labelled = {long for _, long, _ in labels}
    plain = {long for _, long, short in found if long == short}
    for name, long, short in found:
        key = short if long not in labelled and short in labelled else long
        if key != long and short in plain:
            made.further.append((name, f"a further file of sample {short!r}"))
        elif key in made.images:
            raise DataError(f"{where}: {made.images[key]!r} and {name!r} share the key {key!r}; one image per key")
        else:
            made.images[key] = name
    for name, long, short in labels:
        if long in made.images:
            made.notes.append((long, name))
        elif short not in made.images:
            made.alone.append(long)
    return made


# A label is a few bytes; what claims more is not read to its end.
_NOTE_BYTES = 1 << 20


def list_tar(path: Path, slices: Sequence[str] = ()) -> Listing:
    """key.jpg + key.cls | key.txt | key.json, in the order of the archive; keys as in `webdataset.samples`.

    A .json may hold label, group, source, timestamp, role or split. Two images under one key: DataError.
    """
    if path.suffix.lower() != ".tar":
        raise DataError(f"{path}: an uncompressed .tar is expected; unpack or re-pack it")
    try:
        members = tar_members(str(path), os.stat(path).st_mtime_ns)
    except OSError as error:
        raise DataError(f"{error}; pack it again with tar -cf") from error
    listing = Listing(str(path), files=[str(path)], role_name="role")
    notes: dict[str, dict[str, Any]] = {}
    with open(path, "rb") as stream:

        def starts(name: str) -> bool:
            return starts_as_image(os.pread(stream.fileno(), 16, members[name][0]))

        found = samples(members, starts, str(path))
        for key, name in found.notes:
            offset, size = members[name]
            try:
                data = tar_bytes(str(path), name, (offset, size), at_most=_NOTE_BYTES)
            except OSError as error:
                raise DataError(f"{error}; pack it again with tar -cf") from error
            notes.setdefault(key, {}).update(_tar_note(path, name, PurePosixPath(name).suffix.lower(), data, slices))
    for key, name in found.images.items():
        note = {
            column: label_cell(value, path, name) if column == "label" else cell_text(value)
            for column, value in notes.get(key, {}).items()
        }
        role = note.get("role") or note.get("split") or ""
        listing.add(
            f"{path}::{name}",
            note.get("label", ""),
            name,
            group=note.get("group", ""),
            source=note.get("source", ""),
            timestamp=note.get("timestamp", ""),
            role=role,
        )
        for column in slices:
            listing.slices.setdefault(column, []).append(note.get(column, ""))
    for key in found.alone:
        listing.quarantine.append(Quarantined(f"{path}::{key}", "missing file", "a label without an image"))
    for name, why in found.further:
        listing.quarantine.append(Quarantined(f"{path}::{name}", FURTHER_FILE, why))
    return listing


def _tar_note(path: Path, name: str, ending: str, data: bytes, slices: Sequence[str]) -> dict[str, Any]:
    try:
        text = data.decode("utf-8").strip()
        if ending != ".json":
            return {"label": text}
        note = read_json(text)
    except ValueError as error:
        raise DataError(f"{path}: {name} is no readable {ending} ({error}); pack it again") from error
    if not isinstance(note, dict):
        return {"label": note}
    return {key: value for key, value in note.items() if key in KNOWN_COLUMNS or key in slices}
