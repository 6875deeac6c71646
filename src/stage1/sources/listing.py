"""What a source says about its images before one is opened: a listing, made of columns or row by row."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress
from pathlib import Path
from typing import Any

from stage1.errors import DataError
from stage1.scores.labels import decoded, label_text
from stage1.sources.quarantine import Quarantined
from stage1.sources.shards import part_name

ROLE_COLUMNS = ("role", "split")
KNOWN_COLUMNS = ("label", "group", "source", "timestamp", *ROLE_COLUMNS)


COLUMNS = ("paths", "labels", "groups", "sources", "timestamps", "roles", "numbers")


@dataclass(slots=True)
class Listing:
    """Columns of one source, row by row, as given. `where` and `numbers` name a row in messages."""

    where: str
    paths: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    timestamps: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    slices: dict[str, list[str]] = field(default_factory=dict)
    """Further columns that were asked for (data.slices), by name."""
    class_names: tuple[str, ...] | None = None
    """Names in the order in which the source stores them (ClassLabel); the labels are these names."""
    role_name: str = "role"
    """What the roles are called in messages: the column, or the splits of a data set."""
    named: bool = False
    """The labels are names as they stand (class folders), not cells of a table."""
    empty: list[str] = field(default_factory=list)
    """Class folders without a file."""
    quarantine: list[Quarantined] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    """Files whose bytes or state decide the listing (the table itself, the tar, the shards), for the light digest."""

    def add(
        self,
        path: str,
        label: str,
        number: str,
        *,
        group: str = "",
        source: str = "",
        timestamp: str = "",
        role: str = "",
    ) -> None:
        self.paths.append(path)
        self.labels.append(label)
        self.numbers.append(number)
        self.groups.append(group)
        self.sources.append(source)
        self.timestamps.append(timestamp)
        self.roles.append(role)

    def __len__(self) -> int:
        return len(self.paths)

    def only(self, kept: Sequence[bool]) -> Listing:
        """The rows that are kept."""
        if all(kept):
            return self
        columns: dict[str, Any] = {name: list(compress(getattr(self, name), kept)) for name in COLUMNS}
        return replace(
            self, slices={name: list(compress(cells, kept)) for name, cells in self.slices.items()}, **columns
        )


def joined(given: str, listings: Sequence[Listing]) -> Listing:
    """Several files of one source as one listing, row after row."""
    total = replace(listings[0], where=given)
    for name in ("paths", "labels", "groups", "sources", "timestamps", "roles", "quarantine", "files"):
        setattr(total, name, [item for one in listings for item in getattr(one, name)])
    total.numbers = [f"{Path(one.where).name}: {number}" for one in listings for number in one.numbers]
    if odd := [one.where for one in listings if one.class_names != total.class_names]:
        raise DataError(f"{odd[0]}: stores other class names than {listings[0].where}; read them one by one")
    # train-00000-of-00002.parquet beside test-00000-of-00001.parquet are splits, as a data set has them.
    parts = [part_name(Path(one.where)) for one in listings]
    if len(set(parts)) > 1 and not any(total.roles):
        total.role_name = "split"
        total.roles = [name for name, one in zip(parts, listings, strict=True) for _ in one.paths]
    # A file without rows has no columns either.
    filled = [one for one in listings if len(one)]
    total.slices = {
        name: [cell for one in filled for cell in one.slices[name]]
        for name in (filled[0].slices if filled else {})
        if all(name in one.slices for one in filled)
    }
    return total


def from_columns(
    where: Path | str,
    columns: Any,
    images: list[str],
    numbers: list[str],
    classes: tuple[str, ...] | None,
    slices: Sequence[str] = (),
) -> Listing:
    """Columns label (needed), group, source, timestamp, role or split -> a listing; others are possible slices."""
    require_labels(columns, where)
    listing = Listing(str(where), paths=images, numbers=numbers, class_names=classes, files=[str(where)])
    n = len(images)
    listing.labels = [label_cell(value, where, numbers[row]) for row, value in enumerate(columns["label"])]
    for name, target in (("group", "groups"), ("source", "sources"), ("timestamp", "timestamps")):
        setattr(listing, target, [cell_text(value) for value in columns[name]] if name in columns else [""] * n)
    listing.slices = {name: [cell_text(value) for value in columns[name]] for name in slices if name in columns}
    given = [name for name in ROLE_COLUMNS if name in columns]
    listing.roles = [cell_text(value) for value in columns[given[0]]] if given else [""] * n
    listing.role_name = f"{given[0]} column" if given else "role column"
    return listing


def require_labels(names: Collection[str], where: Path | str) -> None:
    if "label" not in names:
        have = ", ".join(names) or "none"
        raise DataError(f"{where}: no column 'label'; it has {have}. Rename the column that holds the class")


def label_cell(value: Any, where: Path | str, number: str) -> str:
    if isinstance(value, (list, dict)):
        raise DataError(f"{where}: {number}: label is {str(value)[:40]}; one label for each image is expected")
    return label_text(value)


def cell_text(value: Any) -> str:
    """A cell other than the label as text: None and NaN "", whole numbers without ".0", booleans 1 and 0."""
    if value is None or value != value:  # NaN is the one value that differs from itself
        return ""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value.decode("utf-8", "replace").strip() if isinstance(value, bytes) else str(value).strip()


def by_name(
    columns: dict[str, list[Any]], names: Mapping[str, Sequence[str] | None], where: Path | str, numbers: Sequence[str]
) -> dict[str, list[Any]]:
    """The columns with the integers of each ClassLabel one as the names that are stored for them.

    Always: such an integer is an index into its own names, whatever order `data.classes` gives, and whatever they look
    like.
    """
    return {
        column: values if (known := names.get(column)) is None else decoded(values, known, str(where), numbers)
        for column, values in columns.items()
    }
