"""What a predictor is given, as one stream of named images, all by way of the one decoder.

From the command line: files, folders, tables, lists and stdin. From Python: paths, bytes, arrays and PIL images.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import DataError, MissingError
from stage1.runtime.folders import Walk, image_files
from stage1.runtime.images import IMAGE_COLUMNS, picture_pixels
from stage1.runtime.stream import Item
from stage1.sources.listing import cell_text
from stage1.storage.texts import READ_FAILURES, not_utf8, read_failure, require_text

TABLES = (".csv", ".tsv", ".parquet")
# Rows of a Parquet file with embedded bytes that are in memory at once, before the stream takes them.
_PARQUET_ROWS = 64


@dataclass(frozen=True, slots=True)
class Input:
    """One image to answer: the name it is reported under, and a path, bytes, or a function that gives the bytes.

    slices: attribute -> its value for this image, where it is known.
    """

    name: str
    item: Item
    slices: Mapping[str, str] = field(default_factory=dict)


def iterate_inputs(
    sources: Sequence[str | os.PathLike[str]],
    stdin: BinaryIO | None = None,
    *,
    on_left_out: Callable[[str], None] | None = None,
    slices: Sequence[str] = (),
) -> Iterator[Input]:
    """Every image that `sources` name, in order, lazily.

    slices: columns of a table that each of its inputs carries, where the table has them.

    A source is
    - a folder: its images (by ending, those of formats that are not read among them, else by content), recursively,
      sorted; hidden files are passed over, and what else is left out is reported to `on_left_out` in one line;
    - a .csv, .tsv or .parquet table with a column `image` (or path, file_name, filepath, image_path); its paths are
      relative to the table. Parquet may hold the images themselves: bytes, or structs {bytes, path};
    - a .txt list, one path a line, relative to the list;
    - "-": such a list on `stdin`, relative to the working directory;
    - any other path: one image.
    A path that is not there is an input all the same: it fails when it is read, and is reported with the others.
    Raises MissingError (no such table), DataError (a folder without images, a table without such a column or damaged).
    """
    for source in sources:
        path = Path(source)
        if os.fspath(source) == "-":
            if stdin is None:
                raise DataError("-: there is no stdin to read paths from")
            yield from _lines(stdin, Path())
        elif path.is_dir():
            yield from _folder(path, on_left_out)
        elif path.suffix.lower() in (*TABLES, ".txt"):
            if not path.is_file():
                raise MissingError(f"{path}: no such table or list; give a file that is there")
            yield from _file(path, slices)
        else:
            yield Input(os.fspath(source), path)


def _file(path: Path, slices: Sequence[str]) -> Iterator[Input]:
    kind = path.suffix.lower()
    try:
        if kind != ".parquet":
            require_text(path)
        if kind == ".txt":
            with open(path, "rb") as stream:
                yield from _lines(stream, path.parent)
        elif kind == ".parquet":
            yield from _parquet(path, slices)
        else:
            yield from _csv(path, "\t" if kind == ".tsv" else ",", slices)
    except DataError:
        raise
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); check the file") from error


def _lines(stream: BinaryIO, base: Path) -> Iterator[Input]:
    for line in stream:
        # File names are bytes: they need not be valid UTF-8.
        name = os.fsdecode(line.rstrip(b"\r\n"))
        if name:
            yield Input(os.fspath(base / name), base / name)


def _folder(folder: Path, on_left_out: Callable[[str], None] | None) -> Iterator[Input]:
    walk, found = Walk(), False
    for path in image_files(folder, walk):
        found = True
        yield Input(os.fspath(path), path)
    for error in walk.unreadable:
        yield Input(os.fsdecode(error.filename), _raising(error))
    if not found and not walk.unreadable:
        raise DataError(f"{folder}: no image in this folder{f', but {walk}' if walk.left_out else ''}")
    if walk.left_out and on_left_out is not None:
        on_left_out(f"note: {folder}: left out {walk}, no images by name or content")


def _csv(path: Path, delimiter: str, slices: Sequence[str]) -> Iterator[Input]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        try:
            reader = csv.reader(stream, delimiter=delimiter)
            head = next(reader, [])
            column = head.index(_image_column(path, head))
            places = {name: _place(name, head) for name in slices}
            for cells in reader:
                if cells:
                    one = _cell(path, cells[column].strip() if column < len(cells) else "", f"line {reader.line_num}")
                    known = {name: cells[at] for name, at in places.items() if at is not None and at < len(cells)}
                    yield _with_slices(one, known)
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: {not_utf8(path)}") from error
        except csv.Error as error:
            raise DataError(f"{path}: not a table in UTF-8 ({error}); save it again") from error


def _place(name: str, head: Sequence[str]) -> int | None:
    """Where a column stands; white space around names does not count. None: it is not there."""
    return next((at for at, other in enumerate(head) if other.strip() == name), None)


def _with_slices(one: Input, known: Mapping[str, Any]) -> Input:
    return replace(one, slices={name: cell_text(value) for name, value in known.items()}) if known else one


def read_slices(path: str | os.PathLike[str], attribute: str) -> dict[str, str]:
    """Value of `attribute` by absolute path of the image, from a table with an image column and this one.

    Raises MissingError (no such table), DataError (no such column, damaged).
    """
    if Path(path).suffix.lower() not in TABLES:
        raise DataError(f"{path}: a table ({', '.join(TABLES)}) with the columns image and {attribute} is expected")
    found = list(iterate_inputs([path], slices=[attribute]))
    if found and not any(attribute in one.slices for one in found):
        raise DataError(f"{path}: no column {attribute!r}; give a table with the columns image and {attribute}")
    return {os.path.abspath(one.name): one.slices.get(attribute, "") for one in found}


def with_slices(inputs: Iterable[Input], attribute: str, given: Mapping[str, str]) -> Iterator[Input]:
    """The inputs with the value of `attribute` that `given` has for their path; what a table says itself stays."""
    for one in inputs:
        value = given.get(os.path.abspath(one.name))
        yield one if value is None or one.slices.get(attribute) else replace(one, slices={attribute: value})


def _parquet(path: Path, slices: Sequence[str]) -> Iterator[Input]:
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            column = _image_column(path, file.schema_arrow.names)
            carried = [name for name in slices if name in file.schema_arrow.names]
            row = 0
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column, *carried]):
                known = {name: batch.column(name).to_pylist() for name in carried}
                for at, cell in enumerate(batch.column(column)):
                    one = _cell(path, cell.as_py(), f"row {row}", f"{path}::{row}")
                    yield _with_slices(one, {name: values[at] for name, values in known.items()})
                    row += 1
            if row != file.metadata.num_rows:
                raise DataError(
                    f"{path}: {row} of its {file.metadata.num_rows} rows can be read; it is damaged, write it again"
                )
    except DataError:
        raise
    except READ_FAILURES as error:
        raise DataError(f"{path}: cannot be read as Parquet ({read_failure(error)})") from error


def _image_column(path: Path, columns: Sequence[str]) -> str:
    for alias in IMAGE_COLUMNS:
        for name in columns:
            if name.strip().lower() == alias:
                return name
    raise DataError(
        f"{path}: no image column ({', '.join(IMAGE_COLUMNS)}); it has {', '.join(columns) or 'no columns'}"
    )


def _cell(path: Path, value: Any, where: str, locator: str | None = None) -> Input:
    if isinstance(value, dict):  # {bytes, path}, as Hugging Face writes images
        value = value.get("bytes") or value.get("path")
    name = locator or f"{path}::{where}"
    if isinstance(value, bytes):
        return Input(name, value)
    if isinstance(value, str) and value.strip():
        return Input(os.fspath(path.parent / value), path.parent / value)
    return Input(name, _raising(DataError(f"{where}: no image in this cell; fill it or drop the row")))


def _raising(error: Exception) -> Callable[[], bytes]:
    def read() -> bytes:
        raise error

    return read


Picture: TypeAlias = Item | Image.Image | NDArray[np.uint8]


def name_of(picture: Picture, row: int) -> str:
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else f"#{row}"


def item_of(picture: Picture, row: int) -> Item:
    if isinstance(picture, (str, Path, bytes)):
        return picture
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise DataError(
                f"images[{row}]: {picture.dtype} of shape {picture.shape}; uint8 [H, W, 3] (RGB) is expected"
            )
        return _png(Image.fromarray(picture))
    if isinstance(picture, Image.Image):
        # In the thread that reads, as for a file: a picture that was opened but not read yet may be broken.
        return lambda: _png(Image.fromarray(picture_pixels(picture)))
    if callable(picture):
        return picture
    raise DataError(
        f"images[{row}]: {type(picture).__name__}; give a path, bytes, a PIL image or a uint8 array [H, W, 3]"
    )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
