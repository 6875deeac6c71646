"""Challenges inside a run: after the split, images of named roles become what the StreetVision client sends."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import numpy as np
from numpy.typing import NDArray

from stage1.config import DataConfig
from stage1.errors import ConfigError, DataError
from stage1.scores import ROLES

if TYPE_CHECKING:
    from stage1.data.ingest import Ingest
    from stage1.data.splits import SplitResult
    from stage1.data.table import SampleTable
    from stage1.runs.directory import RunDir
    from stage1.runs.progress import Progress
    from stage1.runs.stage import Context
    from stage1.streetvision.challenge import Made

LEVEL = "level"
UNCHANGED = "as given"
"""The level of images of roles that keep their own."""


def source_config(data: DataConfig) -> DataConfig:
    """What the source is asked for: no slice `level` (made here), but the column that the filter reads."""
    from stage1.streetvision.challenge import DESCRIPTION

    slices = [name for name in data.slices if not (name == LEVEL and data.challenge.roles)]
    if data.challenge.filter and DESCRIPTION not in slices:
        slices.append(DESCRIPTION)
    return data.model_copy(update={"slices": slices})


def ingested(data: DataConfig) -> Ingest:
    """The source, read once; with `data.challenge.filter`, rows that the client would not send go to the quarantine.

    Raises as `read_source`; DataError where the column to filter by is missing or leaves one class only.
    """
    from stage1.data.ingest import read_source
    from stage1.streetvision.challenge import DESCRIPTION

    try:
        ingest = read_source(source_config(data))
    except DataError as error:
        if data.challenge.filter and f"no column {DESCRIPTION!r}" in str(error):
            where = str(error).partition(": no column")[0]
            raise DataError(
                f"{where}: no column {DESCRIPTION!r}, by which the client's filter goes; leave the filter out"
            ) from error
        raise
    return _filtered(ingest, data) if data.challenge.filter else ingest


def _filtered(ingest: Ingest, data: DataConfig) -> Ingest:
    from stage1.sources.quarantine import Quarantined
    from stage1.streetvision.challenge import DESCRIPTION, agreeing

    table = ingest.table
    if len(table.classes) != 2:
        raise ConfigError(f"the client's filter is for two classes, there are {len(table.classes)}; leave it out")
    keep = agreeing(table.labels, table.slices[DESCRIPTION])
    if len(np.unique(table.labels[keep])) < 2:
        raise DataError(
            f"{DESCRIPTION}: after the client's filter no image of one class is left ({int(keep.sum())} of {len(table)}"
            " rows agree); look at the column, or leave the filter out"
        )
    slices = {name: values for name, values in table.slices.items() if name != DESCRIPTION or name in data.slices}
    place = np.cumsum(keep) - 1
    out = [
        Quarantined(
            str(table.paths[row]), "filtered", f"label {table.classes[table.labels[row]]} and {DESCRIPTION} disagree"
        )
        for row in np.flatnonzero(~keep).tolist()
    ]
    return replace(
        ingest,
        table=replace(table, slices=slices).take(keep),
        quarantine=[*ingest.quarantine, *out],
        hashes=ingest.hashes[keep],
        grays=ingest.grays[keep],
        pools=ingest.pools[keep],
        links=tuple((int(place[row]), group) for row, group in ingest.links if keep[row]),
    )


def challenged(result: SplitResult, run: RunDir, context: Context) -> SplitResult:
    """The split with challenges of the named roles instead of their images, and the slice `level` on every row.

    The files go to challenge/ in the run directory, whole or not at all; those that are there stay. A challenge that
    equals another one of its role bit by bit (L0 twice) is left out, and is in the quarantine as an exact
    duplicate.
    """
    from stage1.streetvision.challenge import GENERATOR, tasks_for, write_challenges

    wanted = run.config.data.challenge
    if not wanted.roles:
        return result
    if run.config.pretrain.folder is not None:
        # Its check for leaks compares pixels, and a challenge does not look like the frame that it was made of.
        raise ConfigError(
            "pretrain.folder and data.challenge.roles exclude each other: leaks could not be found; use"
            " pretrain.train_images"
        )
    table = result.table
    if LEVEL in table.slices:
        raise ConfigError(
            "data.slices: the source's column 'level' and data.challenge.roles exclude each other; rename it"
        )
    tasks = [
        task
        for role in ROLES
        if role in wanted.roles
        for task in tasks_for(table, table.rows(role), wanted.roles[role], wanted.copies.get(role, 1), wanted.seed)
    ]
    with context.progress.bar("challenges", len(tasks)) as advance:
        # The folder's name holds what the names of the files do not say.
        made = write_challenges(
            run / "challenge" / f"v{GENERATOR}-seed{wanted.seed}",
            tasks,
            seed=wanted.seed,
            progress=lambda done, total: advance(1),
        )
    changed, quarantine = _with_challenges(table, made, [role for role in ROLES if role in wanted.roles], run)
    counts = {
        role: {
            name: int((changed.labels[changed.rows(role)] == index).sum()) for index, name in enumerate(table.classes)
        }
        for role in ROLES
    }
    document = {**result.document, "counts": counts}
    return replace(result, table=changed, quarantine=[*result.quarantine, *quarantine], document=document)


def _with_challenges(
    table: SampleTable, made: Sequence[Made], roles: Sequence[str], run: RunDir
) -> tuple[SampleTable, list[Any]]:
    from stage1.sources.quarantine import EXACT_DUPLICATE, Quarantined
    from stage1.streetvision.challenge import GENERATOR

    folder = (run / "challenge" / f"v{GENERATOR}-seed{run.config.data.challenge.seed}").absolute()
    first: dict[tuple[str, str], str] = {}
    kept: list[Made] = []
    quarantine: list[Any] = []
    for one in made:
        unit = (one.id, str(table.roles[one.row]))
        path = str(folder / one.task.name)
        if unit in first:
            quarantine.append(Quarantined(path, EXACT_DUPLICATE, f"same bytes as {first[unit]}, which is kept"))
        else:
            first[unit] = path
            kept.append(one)
    own = np.flatnonzero(~np.isin(table.roles, list(roles)))
    rows: NDArray[np.int64] = np.concatenate([own, [one.row for one in kept]]).astype(np.int64)
    # Not take(): an image that is there twice, as two challenges, must get its new ids in the same step.
    changed = replace(
        table,
        ids=np.array([*table.ids[own].tolist(), *(one.id for one in kept)], dtype=np.str_),
        paths=np.array([*table.paths[own].tolist(), *(str(folder / one.task.name) for one in kept)], dtype=np.str_),
        labels=table.labels[rows],
        groups=table.groups[rows],
        sources=table.sources[rows],
        timestamps=table.timestamps[rows],
        roles=table.roles[rows],
        slices={
            **{name: values[rows] for name, values in table.slices.items()},
            LEVEL: np.array([*[UNCHANGED] * len(own), *(one.task.level for one in kept)], dtype=np.str_),
        },
    )
    return changed, quarantine


# ---- a data set of challenges ------------------------------------------------------------------------------------


def make_challenges(
    source: str,
    output: Path,
    *,
    level: str,
    copies: int,
    seed: int,
    balance: bool,
    filter_rows: bool,
    carry: Sequence[str],
    classes: list[str] | None,
    workers: int,
    progress: Progress,
    origin: str = "real",
) -> dict[str, Any]:
    """`stage1 challenge make`: read any source, leave out bad images, write a folder of challenges and quarantine.csv.

    Returns what was written and what was left out, as counts. Raises ConfigError, MissingError, DataError.
    """
    from stage1.config import ChallengeConfig
    from stage1.sources.quarantine import write_quarantine
    from stage1.streetvision.challenge import Origin, write_folder

    if origin not in get_args(Origin):
        raise ConfigError(f"--origin {origin}: use {' or '.join(get_args(Origin))}")

    data = DataConfig(
        table=source,
        classes=classes,
        slices=list(carry),
        bad_labels="quarantine",
        max_quarantine=1.0,
        challenge=ChallengeConfig(filter=filter_rows),
    )
    progress.say(f"reading {source}")
    try:
        ingest = ingested(data)
    except DataError as error:  # here the columns were asked for by another name
        raise DataError(str(error).replace("data.slices", "--carry")) from error
    place = Path(os.path.abspath(Path(source).expanduser()))
    with progress.bar("challenges", len(ingest.table) * copies) as advance:
        table = write_folder(
            output,
            ingest.table,
            level=level,
            copies=copies,
            seed=seed,
            balance=balance,
            origin=cast(Origin, origin),
            base=place if place.is_dir() else place.parent,
            workers=workers,
            progress=lambda done, total: advance(1),
        )
    write_quarantine(output / "quarantine.csv", ingest.quarantine)
    with open(table, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {
        "table": str(table),
        "images": len(rows),
        "sources": len({row["source_image"] for row in rows}),
        "levels": dict(sorted(Counter(row["level"] for row in rows).items())),
        "labels": dict(sorted(Counter(row["label"] for row in rows).items())),
        "left_out": dict(sorted(Counter(item.reason for item in ingest.quarantine).items())),
    }


def made_lines(document: Mapping[str, Any]) -> list[str]:
    """What `stage1 challenge make` prints."""

    def shares(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{name} {count}" for name, count in counts.items())

    lines = [
        f"{document['images']} challenges of {document['sources']} images: {document['table']}",
        f"levels  {shares(document['levels'])}",
        f"labels  {shares(document['labels'])}",
    ]
    if document["left_out"]:
        lines.append(f"left out, see quarantine.csv: {shares(document['left_out'])}")
    return lines
