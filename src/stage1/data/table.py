"""SampleTable: one row per image, from the source to the certificate."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError, IntegrityError, MissingError, SourceChanged
from stage1.scores import ROLES
from stage1.sources.locators import is_utf8, read_locator
from stage1.storage.files import digest_bytes, write_through
from stage1.storage.texts import read_json

_SLICE = "slice_"
_TEXTS = ("ids", "paths", "groups", "sources", "timestamps", "roles")


@dataclass(frozen=True, slots=True)
class SampleTable:
    """Parallel columns of N images.

    ids:        str [N], sha256 of the image's bytes; unique within a role.
    paths:      str [N], absolute path, or a locator "archive.tar::member", "file.parquet::row", "file.arrow::row".
    labels:     int64 [N], index into `classes`. Class 1 is the positive class of a binary problem.
    groups:     str [N], unit of dependence (video, camera, site); an image without one is its own group (its id).
    sources:    str [N], where the image came from, "" unknown.
    timestamps: str [N], as given, "" unknown.
    roles:      str [N], one of train, val_select, val_calib, val_test; "" until split.
    classes:    names in order.
    slices:     name -> str [N], further columns for whose values claims are made (data.slices).
    Raises DataError naming the column for a wrong length, a label outside the classes, an unknown role, a duplicate id.
    """

    ids: NDArray[np.str_]
    paths: NDArray[np.str_]
    labels: NDArray[np.int64]
    groups: NDArray[np.str_]
    sources: NDArray[np.str_]
    timestamps: NDArray[np.str_]
    roles: NDArray[np.str_]
    classes: tuple[str, ...]
    slices: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        for name in _TEXTS:
            column = np.asarray(getattr(self, name)).astype(np.str_)
            if column.shape != (n,):
                raise DataError(f"{name}: shape {column.shape}; one value for each of the {n} ids is expected")
            object.__setattr__(self, name, column)
        slices = {name: np.asarray(values).astype(np.str_) for name, values in self.slices.items()}
        for name, column in slices.items():
            if column.shape != (n,):
                raise DataError(f"slices: {name}: shape {column.shape}; one value for each of the {n} ids is expected")
        object.__setattr__(self, "slices", slices)
        labels = np.asarray(self.labels)
        if labels.shape != (n,) or (n and labels.dtype.kind not in "iu"):
            raise DataError(f"labels: {labels.dtype} of shape {labels.shape}; one whole number per id is expected")
        labels = labels.astype(np.int64)
        object.__setattr__(self, "labels", labels)
        classes = tuple(str(name) for name in self.classes)
        object.__setattr__(self, "classes", classes)
        if len(set(classes)) != len(classes):
            raise DataError(f"classes: {', '.join(classes)}; names must differ")
        if n and (labels.min() < 0 or labels.max() >= len(classes)):
            row = int(((labels < 0) | (labels >= len(classes))).argmax())
            raise DataError(f"labels: row {row} is {labels[row]}, outside 0..{len(classes) - 1} (classes)")
        if unknown := sorted(set(np.unique(self.roles).tolist()) - {"", *ROLES}):
            raise DataError(f"roles: {unknown[0]!r} is unknown; roles are {', '.join(ROLES)}")
        pairs, counts = np.unique(np.char.add(np.char.add(self.ids, " "), self.roles), return_counts=True)
        if (counts > 1).any():
            raise DataError(f"ids: {str(pairs[counts > 1][0]).strip()} occurs {counts.max()} times; ids must be unique")

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, role: str) -> NDArray[np.int64]:
        """Rows of a role, int64, in table order. Raises DataError for an unknown role."""
        if role not in ROLES:
            raise DataError(f"role {role!r} is unknown; roles are {', '.join(ROLES)}")
        return np.flatnonzero(self.roles == role).astype(np.int64)

    def take(self, rows: ArrayLike) -> SampleTable:
        """The rows given by an index or boolean array, in that order."""
        index = np.asarray(rows)
        if index.size == 0:
            index = index.astype(np.int64)
        slices = {name: values[index] for name, values in self.slices.items()}
        texts = {name: getattr(self, name)[index] for name in _TEXTS}
        return replace(self, labels=self.labels[index], slices=slices, **texts)

    def read_bytes(self, row: int) -> bytes:
        """The bytes of one image, checked against its id.

        Raises OSError (FileNotFoundError, ...) where they cannot be read, SourceChanged where they are others now.
        """
        path = str(self.paths[row])
        data = read_locator(path)
        if digest_bytes(data) != self.ids[row]:
            raise SourceChanged(f"{path}: its bytes have changed since the split; run `stage1 split` again")
        return data

    def items(self, rows: Iterable[int]) -> list[Callable[[], bytes]]:
        """One reader per row, for `stage1.runtime.stream.stream`."""
        return [partial(self.read_bytes, int(row)) for row in rows]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write samples.parquet, whole or not at all: id, path, label, group, source, timestamp, role, slice_NAME."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        texts = {name: getattr(self, name).tolist() for name in _TEXTS}
        # A file name is bytes: where one is no UTF-8, all paths are stored escaped, so that reading gives the same
        # names.
        about = {"schema_version": 1, "classes": self.classes}
        if not all(map(is_utf8, texts["paths"])):
            texts["paths"] = [path.encode("unicode_escape").decode("ascii") for path in texts["paths"]]
            about["paths"] = "unicode_escape"
        columns = {name.removesuffix("s"): pa.array(texts[name], pa.string()) for name in _TEXTS}
        columns["label"] = pa.array(self.labels)
        slices = {f"{_SLICE}{name}": pa.array(values.tolist(), pa.string()) for name, values in self.slices.items()}
        table = pa.table({**{name: columns[name] for name in _COLUMNS}, **slices})
        table = table.replace_schema_metadata({"stage1": json.dumps(about)})
        write_through(path, lambda temporary: pq.write_table(table, temporary))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> SampleTable:
        """Read what `write` wrote. Raises MissingError (not there), IntegrityError (damaged, or not a sample table)."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        if not Path(path).is_file():
            raise MissingError(f"{path}: no such file; run `stage1 split`")
        try:
            table = pq.read_table(path)
            document = read_json((table.schema.metadata or {})[b"stage1"])
            version, classes = int(document["schema_version"]), tuple(document["classes"])
            columns: dict[str, Any] = {name: table[name].to_pylist() for name in _COLUMNS}
            if document.get("paths") == "unicode_escape":
                columns["path"] = [path.encode("ascii").decode("unicode_escape") for path in columns["path"]]
            slices = {
                name.removeprefix(_SLICE): np.array(table[name].to_pylist(), dtype=np.str_)
                for name in table.column_names
                if name.startswith(_SLICE)
            }
        except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
            raise IntegrityError(f"{path}: not a whole sample table ({error}); run `stage1 split` again") from error
        if version > 1:
            raise IntegrityError(f"{path}: schema_version {version} is newer than this stage1 reads (1); upgrade it")
        texts = {name: np.array(columns[name.removesuffix("s")], dtype=np.str_) for name in _TEXTS}
        try:
            return cls(labels=np.array(columns["label"], dtype=np.int64), classes=classes, slices=slices, **texts)
        except (DataError, TypeError, ValueError) as error:
            raise IntegrityError(f"{path}: {error}; run `stage1 split` again") from error


_COLUMNS = tuple(item.name.removesuffix("s") for item in fields(SampleTable) if item.name not in ("classes", "slices"))
