"""SampleTable: one row per image, from the source to the certificate; and the locators that lead back to its bytes."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError, IntegrityError, MissingError, SourceChanged
from stage1.runtime.images import IMAGE_COLUMNS, read_image_file, require_bytes
from stage1.scores import ROLES
from stage1.storage.files import READ_FAILURES, digest_bytes, read_failure, read_json, write_through

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
        """Write samples.parquet, whole or not at all: columns id, path, label, group, source, timestamp, role,
        slice_NAME.
        """
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


def is_utf8(text: str) -> bool:
    """False for the name of a file whose bytes are no UTF-8 (they stand in it as lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


# ---- locators ----------------------------------------------------------------------------------------------------

CONTAINERS = (".tar", ".parquet", ".arrow")


def split_locator(path: str) -> tuple[str, str] | None:
    """("archive.tar", "member") of "archive.tar::member"; None where `path` is a plain file."""
    for suffix in CONTAINERS:
        container, sign, inner = path.partition(f"{suffix}::")
        if sign:
            return container + suffix, inner
    return None


def read_locator(path: str, *, max_pixels: int | None = None) -> bytes:
    """The bytes behind a path or a locator. Thread-safe. Raises OSError with the reason.

    max_pixels: refuses a file or member with more bytes than so many pixels can take, and what is no file: ImageError.
    """
    parts = split_locator(path)
    if parts is None:
        return read_image_file(path, max_pixels=max_pixels)
    container, inner = parts
    changed = os.stat(container).st_mtime_ns
    if container.endswith(".tar"):
        place = tar_members(container, changed).get(inner)
        if place is None:
            raise FileNotFoundError(f"{container} has no member {inner!r}")
        require_bytes(place[1], max_pixels)
        return tar_bytes(container, inner, place)
    try:
        embedded = _embedded(container, changed, int(inner))
    except READ_FAILURES as error:
        raise OSError(f"{container} row {inner} cannot be read ({read_failure(error)})") from error
    if embedded is None:
        raise FileNotFoundError(f"{container} row {inner} holds no image bytes")
    return embedded


def tar_bytes(container: str, name: str, place: tuple[int, int], *, at_most: int | None = None) -> bytes:
    """The bytes (or the first `at_most`) of a member at `place` (offset, size). Raises OSError where the archive
    ends inside it.
    """
    offset, size = place
    with open(container, "rb") as stream:
        # Not asked for blindly: a damaged header may claim any size, and memory would be taken for it.
        if offset + size > os.fstat(stream.fileno()).st_size:
            raise OSError(f"{container} ends inside member {name!r}")
        size = size if at_most is None else min(size, at_most)
        data = os.pread(stream.fileno(), size, offset)
    if len(data) != size:
        raise OSError(f"{container} ends inside member {name!r}")
    return data


@lru_cache(maxsize=1024)
def tar_members(path: str, changed: int) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) of the regular files in an uncompressed tar; `changed` (mtime) keys the cache.

    A tar that ends inside a member keeps the members before it and the cut one, whose bytes then fail to read.
    Raises OSError where it is no tar, or where a header in it is damaged: what comes after it would be lost unseen.
    """
    members: dict[str, tuple[int, int]] = {}
    last = -1
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.offset <= last or member.size < 0:
                    raise ValueError(f"the header at byte {member.offset} leads back")  # and would do so for ever
                last = member.offset
                if member.isfile():
                    members[member.name] = (member.offset_data, member.size)
            end = archive.offset
    except tarfile.ReadError as error:
        # An empty archive is a valid one for tar and "empty header" for tarfile when it has 0 bytes.
        if not members:
            raise OSError(f"{path} is no readable uncompressed tar ({read_failure(error)})") from error
        return members
    except (*READ_FAILURES, tarfile.TarError) as error:
        raise OSError(f"{path} is no readable uncompressed tar ({read_failure(error)})") from error
    if _more_than_zeros(path, end):
        raise OSError(f"{path} is damaged: no header of a member at byte {end}, and more after it")
    return members


def _more_than_zeros(path: str, start: int) -> bool:
    with open(path, "rb") as stream:
        stream.seek(start)
        while piece := stream.read(1 << 20):
            if piece.strip(b"\0"):
                return True
    return False


def _embedded(path: str, changed: int, row: int) -> bytes | None:
    starts = embedded_starts(path, changed)
    piece = int(np.searchsorted(starts, row, side="right")) - 1
    value = _embedded_piece(path, changed, piece)[row - int(starts[piece])].as_py()
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if value is None or isinstance(value, bytes) else None


@lru_cache(maxsize=1024)
def embedded_starts(path: str, changed: int) -> NDArray[np.int64]:
    """First row of each row group (Parquet) or record batch (Arrow), and the number of rows as last entry."""
    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        meta = pq.ParquetFile(path).metadata
        sizes = [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]
    else:
        sizes = [batch.num_rows for batch in _arrow_batches(path, changed)]
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


@lru_cache(maxsize=8)
def _embedded_piece(path: str, changed: int, piece: int) -> Any:
    """The image column of one row group or record batch; a few are kept, as rows are read in order."""
    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        name = image_column(file.schema_arrow.names, path)
        return file.read_row_group(piece, columns=[name])[name].combine_chunks()
    batch = _arrow_batches(path, changed)[piece]
    return batch.column(image_column(batch.schema.names, path))


@lru_cache(maxsize=64)
def _arrow_batches(path: str, changed: int) -> list[Any]:
    """Record batches of an Arrow stream (Hugging Face's format), memory-mapped: nothing is copied before it is read."""
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(pa.memory_map(path)) as reader:
            return list(reader)
    except pa.ArrowException as error:
        raise OSError(f"{path} is no readable Arrow stream ({error})") from error


def image_column(names: Iterable[str], where: str) -> str:
    """The column that holds the image or its path, by the first alias present. Raises DataError naming those there."""
    known = list(names)
    for alias in IMAGE_COLUMNS:
        if alias in known:
            return alias
    raise DataError(
        f"{where}: no image column (one of {', '.join(IMAGE_COLUMNS)}); it has {', '.join(known) or 'none'}"
    )
