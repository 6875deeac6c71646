"""Tables of images: CSV and TSV with paths, Parquet with paths or with the images in it."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stage1.errors import DataError
from stage1.scores.labels import stored_names
from stage1.sources.listing import KNOWN_COLUMNS, Listing, by_name, from_columns, require_labels
from stage1.sources.locators import image_column
from stage1.storage.texts import READ_FAILURES, not_utf8, read_failure, require_text


def list_table(path: Path, slices: Sequence[str] = ()) -> Listing:
    """CSV, TSV (with a header line, UTF-8) or Parquet; columns as in `from_columns`."""
    suffix = path.suffix.lower()
    if not path.is_file():
        raise DataError(f"{path}: not a file; for a folder of images use data.source=folder")
    if suffix in (".csv", ".tsv"):
        return _list_csv(path, "\t" if suffix == ".tsv" else ",", slices)
    if suffix == ".parquet":
        return _list_parquet(path, slices)
    raise DataError(f"{path}: unknown ending for a table; use .csv, .tsv or .parquet")


def _list_csv(path: Path, delimiter: str, slices: Sequence[str]) -> Listing:
    try:
        require_text(path)
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, delimiter=delimiter)
            header = next(reader, [])
            rows, numbers = [], []
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{path}: line {reader.line_num} has {len(row)} cells, the header {len(header)}; "
                        f"quote cells that hold {'a tab' if delimiter != ',' else 'a comma'}"
                    )
                rows.append(row)
                numbers.append(f"line {reader.line_num}")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: {not_utf8(path)}") from error
    except DataError:
        raise
    except (csv.Error, OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix} ({error})") from error
    names = [name.strip() for name in header]
    if len(set(names)) != len(names):
        raise DataError(f"{path}: column {max(names, key=names.count)!r} occurs twice in the header; rename one")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else dict.fromkeys(names, ())
    name = image_column(columns, str(path))
    images = [_beside(path, cell) for cell in columns[name]]
    return from_columns(path, columns, images, numbers, None, slices)


def _list_parquet(path: Path, slices: Sequence[str]) -> Listing:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        schema = pq.read_schema(path)
        name = image_column(schema.names, str(path))
        require_labels(schema.names, path)
        kind = schema.field(name).type
        embedded = pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
        wanted = [column for column in dict.fromkeys((*KNOWN_COLUMNS, *slices)) if column in schema.names]
        # The image bytes stay on disk: only the small columns are read here.
        inner = [f"{name}.path"] if pa.types.is_struct(kind) and "path" in {item.name for item in kind} else []
        table = pq.ParquetFile(path).read(columns=wanted + (inner if embedded else [name]))
        columns = {column: _cells(table, column, path) for column in wanted}
        metadata = schema.metadata or {}
        outer = [None] * table.num_rows
        if not embedded:
            outer = _cells(table, name, path)
        elif inner:
            outer = [None if cell is None else cell.get("path") for cell in _cells(table, name, path)]
        n = table.num_rows
        has_bytes = _has_bytes(path, name, kind) if embedded and any(outer) else [True] * n
        if any(len(cells) != n for cells in (*columns.values(), outer, has_bytes)):
            raise ValueError("its columns have different numbers of rows")
    except DataError:
        raise
    except READ_FAILURES as error:
        raise DataError(f"{path}: cannot be read as Parquet ({read_failure(error)}); write it again") from error
    if embedded:
        images = [
            f"{path}::{row}" if has_bytes[row] or not outer[row] else _beside(path, outer[row]) for row in range(n)
        ]
    else:
        images = [_beside(path, cell) for cell in outer]
    numbers = [f"row {row}" for row in range(n)]
    names = {column: stored_names(metadata, column) for column in wanted}
    return from_columns(path, by_name(columns, names, path, numbers), images, numbers, names.get("label"), slices)


def _cells(table: Any, column: str, path: Path) -> list[Any]:
    """A column as values. Raises DataError naming the first row whose value Python cannot hold (a time, bad UTF-8)."""
    try:
        cells: list[Any] = table[column].to_pylist()
        return cells
    except READ_FAILURES as error:
        for row, cell in enumerate(table[column]):
            try:
                cell.as_py()
            except READ_FAILURES as fault:
                raise DataError(
                    f"{path}: row {row}: column {column!r}: {read_failure(fault)}; correct it or drop the column"
                ) from error
        raise


def _has_bytes(path: Path, name: str, kind: Any) -> list[bool]:
    """Per row, whether the struct holds bytes. Read by row group, so that one group is in memory at a time."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if "bytes" not in {item.name for item in kind}:
        return [False] * pq.read_metadata(path).num_rows
    file = pq.ParquetFile(path)
    found: list[bool] = []
    for group in range(file.num_row_groups):
        column = file.read_row_group(group, columns=[f"{name}.bytes"])[name]
        found += pc.is_valid(pc.struct_field(column, "bytes")).to_pylist()
    return found


def _beside(table: Path, cell: Any) -> str:
    text = str(cell or "").strip()
    return os.path.abspath(os.path.join(table.parent, os.path.expanduser(text))) if text else ""
