"""Challenges on disk: images/*.jpg, challenge.json (the parameters) and, last of all, labels.csv.

Of rows with the client's scene_description, those are taken where label and description agree, as the client does.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, NotRequired

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.data.corruptions import CLIENT, GENERATOR, Origin, challenge, level_of
from stage1.data.table import SampleTable
from stage1.errors import ConfigError, DataError, Stage1Error
from stage1.runtime.processes import mapper
from stage1.sources.locators import read_locator, split_locator
from stage1.storage.documents import Document, DocumentKind, read_document, write_document
from stage1.storage.fields import Digest, JpegQuality, PositiveInt
from stage1.storage.files import digest_bytes, write_bytes, write_text

DESCRIPTION = "scene_description"


def agreeing(labels: ArrayLike, descriptions: Sequence[str | None] | NDArray[np.str_]) -> NDArray[np.bool_]:
    """bool [N]: rows that the client would send: label 1 has a description, label 0 has none.

    labels: 0 or 1, [N]. descriptions: text, [N]; None and white space alone are no description.
    Raises DataError for another number of descriptions, or a label that is neither 0 nor 1.

    Example: agreeing([1, 1, 0, 0], ["cones", "", None, "barrier"]) -> [True, False, True, False]
    """
    given = np.asarray(labels)
    if given.shape != (len(descriptions),):
        raise DataError(
            f"{DESCRIPTION}: {len(descriptions)} values for labels of shape {given.shape}; one each is needed"
        )
    if len(given) and not np.isin(given, (0, 1)).all():
        bad = given[~np.isin(given, (0, 1))][0]
        raise DataError(f"labels: {bad} is neither 0 nor 1; the client's filter is for two classes")
    described = np.array([bool(text and str(text).strip()) for text in descriptions], dtype=np.bool_)
    return described == (given == 1)


NOTE = "challenge.json"


class ChallengeDocument(Document):
    """Parameters of a folder of challenges, as `stage1 challenge make` writes it."""

    generator: PositiveInt
    """Version of the generator: other pixels, other number."""
    level: Literal["L0", "L1", "L2", "L3", "mixture"]
    copies: PositiveInt
    """Challenges per image."""
    seed: int
    balance: bool
    """true: classes made equally frequent."""
    quality: JpegQuality
    size: PositiveInt
    """Side of the images in pixels."""
    origin: NotRequired[Literal["real", "image_to_image"]]
    """How the validator prepares the frame; not in folders of generator 1."""
    images: Digest
    """sha256 of the ids of the source images, in order."""


CHALLENGE_KIND = DocumentKind("challenge", ChallengeDocument)


@dataclass(frozen=True, slots=True)
class Task:
    """One challenge to make: of the image `id` (sha256) at `path`, a path or a locator."""

    path: str
    id: str
    copy: int
    level: str

    @property
    def name(self) -> str:
        """File name: the same image, copy and level in one folder are the same file."""
        return f"{self.id[:24]}-{self.copy}-{self.level}.jpg"


@dataclass(frozen=True, slots=True)
class Made:
    """A challenge that is there. row: of the table that its tasks came from; id: sha256 of the JPEG."""

    row: int
    task: Task
    id: str


def tasks_for(
    table: SampleTable, rows: Sequence[int] | NDArray[np.int64], level: str, copies: int, seed: int
) -> list[tuple[int, Task]]:
    """(row, task) of every copy of the rows of `table`, in order. Raises ConfigError: unknown level, no copy."""
    if copies < 1:
        raise ConfigError(f"challenge: copies {copies} is less than 1")
    found = []
    for row in map(int, rows):
        key = str(table.ids[row])
        for copy in range(copies):
            chosen = level_of(level, seed=seed, key=key, copy=copy)
            found.append((row, Task(str(table.paths[row]), key, copy, chosen)))
    return found


def write_challenges(
    folder: str | os.PathLike[str],
    tasks: Sequence[tuple[int, Task]],
    *,
    seed: int,
    origin: Origin = "real",
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Made]:
    """Make what is missing of `tasks` as folder/NAME; each file appears whole or not at all, those that are there stay.

    workers: processes, 0: one per usable core; more than one needs an importable main module. progress: (done, in all).
    Raises Stage1Error where an image cannot be read any more or has changed, or the disk is full.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    made: list[Made] = []
    there = set(os.listdir(folder))
    missing = sum(task.name not in there for _, task in tasks)  # what is there is only read
    with mapper(workers, missing, "challenge: a working", pieces=16) as run:
        for (row, task), name in zip(
            tasks, run(partial(_write, str(folder), seed, origin), [task for _, task in tasks]), strict=True
        ):
            made.append(Made(row, task, name))
            if progress is not None:
                progress(len(made), len(tasks))
    return made


def _write(folder: str, seed: int, origin: Origin, task: Task) -> str:
    """Runs in a worker. Returns the sha256 of the JPEG."""
    path = Path(folder, task.name)
    if path.exists():
        return digest_bytes(path.read_bytes())
    try:
        data = read_locator(task.path)
        if digest_bytes(data) != task.id:
            raise Stage1Error(f"{task.path}: its bytes have changed since they were first read; run the same again")
        made = challenge(data, task.level, seed=seed, copy=task.copy, key=task.id, origin=origin)
    except (DataError, OSError) as error:
        raise Stage1Error(f"{task.path}: could be read before and cannot now ({error}); restore it") from error
    write_bytes(path, made.jpeg)
    return digest_bytes(made.jpeg)


def write_folder(
    folder: str | os.PathLike[str],
    table: SampleTable,
    *,
    level: str,
    copies: int,
    seed: int,
    balance: bool = False,
    origin: Origin = "real",
    base: Path | None = None,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """A data set of challenges of `table`; the path of its labels.csv, written last: where it is, all images are.

    Columns: image (relative), label (the class's name), group, level, source_image (relative to `base` where it lies
    below it), source, timestamp and role where the table has them, and its slices. Copies keep the group of their
    image, so a split by group never parts them. balance: as many images of every class, the others left out by hash of
    their id, within each role; the client draws labels evenly. A folder of the same parameters is completed; every file
    appears whole or not at all.
    Raises ConfigError for a folder that holds other challenges, and as `write_challenges`.
    """
    folder = Path(folder)
    rows = balanced_rows(table, seed) if balance else np.arange(len(table))
    tasks = tasks_for(table, rows, level, copies, seed)
    _claim(
        folder,
        {
            "generator": GENERATOR,
            "level": level,
            "copies": copies,
            "seed": seed,
            "balance": balance,
            "quality": CLIENT.quality,
            "size": CLIENT.size,
            "origin": origin,
            "images": digest_bytes("\n".join(table.ids[rows].tolist()).encode()),
        },
    )
    made = write_challenges(folder / "images", tasks, seed=seed, origin=origin, workers=workers, progress=progress)
    write_text(folder / "labels.csv", _labels(table, made, base))
    return folder / "labels.csv"


def balanced_rows(table: SampleTable, seed: int) -> NDArray[np.int64]:
    """Rows of `table`, ascending, equally many of each class in each role: larger classes lose by hash."""
    ranks = [hashlib.sha256(f"balance/{seed}/{name}".encode()).digest() for name in table.ids.tolist()]
    kept: list[int] = []
    for role in np.unique(table.roles).tolist():
        members = [
            np.flatnonzero((table.roles == role) & (table.labels == index)) for index in range(len(table.classes))
        ]
        least = min(len(rows) for rows in members)
        for rows in members:
            kept += sorted(rows.tolist(), key=lambda row: ranks[row])[:least]
    return np.array(sorted(kept), dtype=np.int64)


def _claim(folder: Path, parameters: dict[str, Any]) -> None:
    """Note the parameters in a new folder; refuse a folder of other parameters, whose images would be mixed in."""
    note = folder / NOTE
    if not note.exists():
        if (folder / "labels.csv").exists() or (folder / "images").exists():
            raise ConfigError(f"{folder}: holds images of something else (no {NOTE}); choose another folder")
        write_document(note, parameters, CHALLENGE_KIND)
        return
    found = read_document(note, CHALLENGE_KIND)
    for key, value in parameters.items():
        if found[key] != value:
            shown = ("other images", "these") if key == "images" else (f"{key}={found[key]}", f"{value}")
            raise ConfigError(
                f"{folder}: holds challenges of {shown[0]}, not {shown[1]}; remove it or choose another folder"
            )


def _labels(table: SampleTable, made: Sequence[Made], base: Path | None) -> str:
    optional = {"source": table.sources, "timestamp": table.timestamps, "role": table.roles}
    carried = {name: values for name, values in optional.items() if (values != "").any()}
    carried |= {name: values for name, values in table.slices.items() if name not in carried}
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("image", "label", "group", "level", "source_image", *carried))
    for one in made:
        row = one.row
        writer.writerow(
            (
                f"images/{one.task.name}",
                table.classes[table.labels[row]],
                table.groups[row],
                one.task.level,
                _below(one.task.path, base),
                *(values[row] for values in carried.values()),
            )
        )
    return buffer.getvalue()


def _below(path: str, base: Path | None) -> str:
    """`path` relative to `base` where it lies below it: a data set that moves with its source stays true."""
    container, inner = split_locator(path) or (path, "")
    if base is not None and Path(container).is_relative_to(base):
        container = os.path.relpath(container, base)
    return f"{container}::{inner}" if inner else container
