"""Score files of others as named columns: npz, Parquet, CSV and TSV. Whatever is wrong with a file is one DataError.

A column is read when it is asked for, and as what it is asked for: numbers, text or labels. What a cell means is the
same in every format, so that the same rows give the same arrays; docs/BRING_YOUR_OWN_SCORES.md has the rules for
readers.
"""

from __future__ import annotations

import csv
import io
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import DataError
from stage1.storage.texts import require_text

if TYPE_CHECKING:
    import pyarrow as pa

Codes = NDArray[np.int32]
ENDINGS = (".npz", ".parquet", ".csv", ".tsv")
_SEPARATORS = (",", ";", "\t", "|")
_NPY_MAGIC = b"\x93NUMPY"
# What a column may take in memory: scores hardly compress, so a file that unfolds to more than this holds something
# else.
_ROOM, _ROOM_PER_BYTE = 256 << 20, 50
# Texts become an array as wide as the longest of them; one cell of a megabyte would be multiplied by the rows.
_TEXT_ROOM = 1 << 30
_MOST_CLASSES = 100_000
_MOST_BLOCK = 64 << 20  # bytes of a CSV that are parsed at once
_BLANK = frozenset({"", "nan", "none", "null", "<na>", "nat"})
_WHOLE = re.compile(r"-?[0-9]+\.0")
_BOOLEANS = ("true", "false")
# Whole numbers up to here are exact, by bytes of the float.
_EXACT = {2: 2**11, 4: 2**24, 8: 2**53}


def is_blank(text: str) -> bool:
    """Whether a text says nothing: empty, white space, or a printed missing value (nan, None, null)."""
    return text.strip().lower() in _BLANK


@dataclass(frozen=True, slots=True)
class ColumnFile:
    """The columns of one file. names: as in its header, without white space around them; `load` reads one of them.

    metadata: of a Parquet file, empty elsewhere.
    """

    path: Path
    names: tuple[str, ...]
    load: Callable[[str], Any]
    metadata: Mapping[bytes, bytes] = field(default_factory=dict)

    def find(self, *wanted: str) -> str | None:
        """The name of the first of the wanted columns that is there, in any case of letters; None where none is.

        Raises DataError where two columns differ in the case of letters alone and neither is spelled as wanted.
        """
        for name in wanted:
            if name in self.names:
                return name
            if len(found := [own for own in self.names if own.lower() == name.lower()]) > 1:
                raise DataError(
                    f"{self.path}: columns {' and '.join(map(repr, found))} could both be {name!r}; rename one"
                )
            if found:
                return found[0]
        return None

    def numbers(self, name: str) -> NDArray[np.float64]:
        """Finite numbers, float [N], or [N, K] where each cell is a list. Raises DataError naming column and row."""
        with self._reading(name):
            column = self.load(name)
            if not isinstance(column, np.ndarray):
                found = np.asarray(self._numbers(column, name), dtype=np.float64)
            elif column.dtype.kind in "biuf":
                found = np.asarray(column, dtype=np.float64)
            else:
                raise self._not_numbers(name, column.dtype)
            if found.ndim > 1 and found.shape[1] > _MOST_CLASSES:
                raise DataError(f"{self.path}: column {name!r} has {found.shape[1]} classes; {_MOST_CLASSES} at most")
            bad = ~np.isfinite(found)
            if bad.any():
                at = tuple(np.argwhere(bad)[0])
                raise self._bad_cell(
                    name,
                    int(at[0]),
                    f"{found[at]}; only finite numbers can be ranked (no NaN, no infinity): fix or drop these rows",
                )
            return found

    def texts(self, name: str) -> list[str]:
        """Text of each cell, "" for a missing one: whole numbers in decimals, floats without ".0" where all are whole.

        White space around a text is not part of it. true and false are True and False where a column holds nothing
        else.
        Raises DataError naming column and row.
        """
        with self._reading(name):
            column = self._one_per_row(name)
            return self._checked_texts(column, name, range(len(column)))

    def repeated_texts(self, name: str) -> tuple[list[str], Codes]:
        """(texts, which of them each row has, int [N]): `texts` for a column whose cells repeat, each form read once.

        Two forms of a cell may be one text.
        """
        with self._reading(name):
            values, codes = _distinct(self._one_per_row(name))
            return self._checked_texts(values, name, _first_rows(codes, len(values)), rows=len(codes)), codes

    def cells(self, name: str) -> tuple[list[Any], Codes, list[int]]:
        """(distinct cells, which of them each row has, int [N], the first row of each).

        A cell is text where the file holds text (a CSV always), None where missing.
        """
        with self._reading(name):
            column = self._one_per_row(name)
            self._refuse_nested(column, name)
            values, codes = _distinct(column)
            return list(values.to_pylist()), codes, _first_rows(codes, len(values))

    # ---- parts -------------------------------------------------------------------------------------------------------

    def _one_per_row(self, name: str) -> pa.ChunkedArray:
        column = self.load(name)
        if isinstance(column, np.ndarray):
            raise DataError(f"{self.path}: column {name!r} has shape {column.shape}; one value per row expected")
        return column

    def _checked_texts(
        self, column: pa.ChunkedArray, name: str, row_of: Sequence[int], rows: int | None = None
    ) -> list[str]:
        """row_of: the row that a cell is named by; rows: of the file, where the cells are its distinct ones."""
        found = [text.strip() for text in self._texts(column, name, row_of)]
        if "\0" in "".join(found):  # numpy and Arrow end a text there, and names would become one
            at = next(index for index, text in enumerate(found) if "\0" in text)
            raise self._bad_cell(name, row_of[at], f"{_shown(found[at])}: a NUL has no place in a name; take it out")
        longest, rows = max(map(len, found), default=0), len(found) if rows is None else rows
        if longest * 4 * rows > _TEXT_ROOM:
            at = next(index for index, text in enumerate(found) if len(text) == longest)
            raise self._bad_cell(name, row_of[at], f"{longest} characters long, too long for a name among {rows} rows")
        return _plain(found)

    def _numbers(self, column: pa.ChunkedArray, name: str) -> NDArray[Any]:
        import pyarrow as pa
        import pyarrow.compute as pc

        kind = column.type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
            return self._rows_of_lists(column, name)
        self._refuse_nested(column, name)
        self._refuse_empty(column, name)
        if _is_text(kind):
            try:
                return np.asarray(pc.cast(column, pa.float64()).to_numpy())
            except pa.ArrowInvalid:
                # Python reads the same decimals; what it refuses as well is what has to be named.
                for row, text in enumerate(column.to_pylist()):
                    if not _is_number(text):
                        hint = "; write a point, not a comma" if _is_number(text.replace(",", ".", 1)) else ""
                        raise self._bad_cell(name, row, f"{_shown(text)}: not a number{hint}") from None
                return np.array([float(text) for text in column.to_pylist()])
        if (
            pa.types.is_integer(kind)
            or pa.types.is_floating(kind)
            or pa.types.is_boolean(kind)
            or pa.types.is_decimal(kind)
        ):
            return np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy())
        raise self._not_numbers(name, kind)

    def _rows_of_lists(self, column: pa.ChunkedArray, name: str) -> NDArray[np.float64]:
        import pyarrow as pa
        import pyarrow.compute as pc

        self._refuse_empty(column, name)
        sizes = pc.list_value_length(column).to_numpy()
        if len(sizes) and (sizes != sizes[0]).any():
            row = int((sizes != sizes[0]).argmax())
            raise self._bad_cell(
                name,
                row,
                f"a list of {sizes[row]} number(s), row 0 one of {sizes[0]}; each row needs one number per class",
            )
        flat = pa.chunked_array([pc.list_flatten(chunk) for chunk in column.chunks], type=column.type.value_type)
        self._refuse_nested(flat, name)
        if flat.null_count:
            at = int(pc.index(pc.is_null(flat), True).as_py())
            raise self._bad_cell(name, at // int(sizes[0]), "a list with an empty place; fill it or drop the row")
        return np.asarray(self._numbers(flat, name), dtype=np.float64).reshape(len(sizes), -1)

    def _texts(self, column: pa.ChunkedArray, name: str, row_of: Sequence[int]) -> list[str]:
        import pyarrow as pa

        kind = column.type
        self._refuse_nested(column, name)
        if pa.types.is_floating(kind):
            return self._texts_of_floats(np.asarray(column.to_numpy()), name, row_of)
        found = column.to_pylist()
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
            found = [None if cell is None else cell.rstrip(b"\0").decode("utf-8") for cell in found]
        return ["" if cell is None else str(cell) for cell in found]

    def _texts_of_floats(self, column: NDArray[Any], name: str, row_of: Sequence[int]) -> list[str]:
        filled = ~np.isnan(column)
        whole = column[filled]
        if not np.isfinite(whole).all() or (whole != np.floor(whole)).any():
            return ["" if missing else str(value) for missing, value in zip(~filled, column, strict=True)]
        limit = _EXACT[column.dtype.itemsize]
        if (np.abs(whole) > limit).any():
            at = int(np.argmax(filled & (np.abs(column) > limit)))
            raise self._bad_cell(
                name,
                row_of[at],
                f"{column[at]:.0f} as a float, where whole numbers are no longer exact; write this column as text",
            )
        return [str(int(value)) if known else "" for known, value in zip(filled, column.tolist(), strict=True)]

    def _refuse_nested(self, column: pa.ChunkedArray, name: str) -> None:
        import pyarrow as pa

        if pa.types.is_nested(column.type):
            raise DataError(
                f"{self.path}: column {name!r} holds {_shown(str(column.type))}, one value per row is needed"
            )

    def _refuse_empty(self, column: pa.ChunkedArray, name: str) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        empty = pc.is_null(column)
        if _is_text(column.type):
            empty = pc.or_(empty, pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True))
        if (row := pc.index(empty, pa.scalar(True)).as_py()) >= 0:
            raise DataError(
                f"{self.path}: column {name!r} has empty cells (the first in row {row}); fill them or drop these rows"
            )

    def _bad_cell(self, name: str, row: int, what: str) -> DataError:
        return DataError(f"{self.path}: column {name!r}: row {row} is {what}")

    def _not_numbers(self, name: str, kind: object) -> DataError:
        return DataError(f"{self.path}: column {name!r} does not hold numbers ({_shown(str(kind))})")

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        with _one_line(self.path, f"column {name!r}: "):
            yield


def open_columns(path: Path) -> ColumnFile:
    """The columns of .npz, .parquet, .csv or .tsv (in any letter case). Raises DataError in one line for others.

    A CSV may use semicolons, tabs or bars and start with a byte order mark; names may be padded and quoted.
    """
    openers = {".npz": _open_npz, ".parquet": _open_parquet, ".csv": _open_csv, ".tsv": _open_csv}
    opener = openers.get(path.suffix.lower())
    if opener is None:
        raise DataError(f"{path}: unknown ending for scores; use {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    with _one_line(path):
        if path.stat().st_size == 0:
            raise _unreadable(path, "the file is empty")
        found = opener(path)
    if len(set(found.names)) < len(found.names):
        twice = next(name for name in found.names if found.names.count(name) > 1)
        raise DataError(f"{path}: two columns are called {twice!r}; rename one")
    return found


@contextmanager
def _one_line(path: Path, where: str = "") -> Iterator[None]:
    """Whatever a reader of others says about a damaged file, as one DataError."""
    try:
        with warnings.catch_warnings():
            # A damaged header is parsed as Python, which warns of what it finds there.
            warnings.simplefilter("ignore")
            yield
    except DataError:
        raise
    except (
        Exception
    ) as error:  # zip, zlib, numpy, Arrow: each raises kinds of its own, and damage may reach any of them
        raise _unreadable(path, f"{where}{words_of(error)}") from error


def _unreadable(path: Path, why: str) -> DataError:
    return DataError(f"{path}: cannot be read as {path.suffix.lower()} ({why})")


def words_of(error: Exception) -> str:
    """What an error says, on one line and not at length; its kind where it says nothing."""
    said = " ".join(str(error).split())
    return _shown(said, quoted=False) if said else type(error).__name__


def _shown(text: str, *, quoted: bool = True) -> str:
    short = text if len(text) <= 160 else f"{text[:160]}.."
    return repr(short) if quoted else "".join(char if char.isprintable() else "?" for char in short)


def _distinct(column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, Codes]:
    """(distinct cells, the missing one last, which of them each row has)."""
    import pyarrow as pa

    encoded = column.dictionary_encode().combine_chunks()  # Arrow 26 cannot join dictionaries that hold a null
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.chunk(0)
    values = [encoded.dictionary]
    if encoded.null_count:
        values.append(pa.nulls(1, encoded.dictionary.type))
    codes = encoded.indices.fill_null(len(encoded.dictionary))
    return pa.chunked_array(values), np.asarray(codes, dtype=np.int32)


def _first_rows(codes: Codes, n_codes: int) -> list[int]:
    """The first row of each code."""
    first = np.zeros(n_codes, dtype=np.intp)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    return list(first.tolist())


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return "_" not in text


def _plain(texts: list[str]) -> list[str]:
    """One spelling where formats have several: 7.0 of floats (pandas, beside empty cells), true of booleans.

    Only where every filled cell has that form, so that no two names become one.
    """
    # One that has neither form ends it: a million ids are not looked at.
    first = next((text for text in texts if not is_blank(text)), "")
    if not (_WHOLE.fullmatch(first) or first.lower() in _BOOLEANS):
        return texts
    filled = [text for text in texts if not is_blank(text)]
    if all(_WHOLE.fullmatch(text) for text in filled):
        return [text if is_blank(text) else text[:-2] for text in texts]
    if all(text.lower() in _BOOLEANS for text in filled):
        return [text if is_blank(text) else text.capitalize() for text in texts]
    return texts


def _room(path: Path) -> int:
    return max(_ROOM, _ROOM_PER_BYTE * path.stat().st_size)


# ---- formats -----------------------------------------------------------------------------------------------------


def _open_npz(path: Path) -> ColumnFile:
    import pyarrow as pa

    with open(path, "rb") as stream:
        if stream.read(len(_NPY_MAGIC)) == _NPY_MAGIC:
            raise _unreadable(path, "one .npy array; save named arrays with np.savez(path, logits=..., labels=...)")
    with zipfile.ZipFile(path) as archive:
        names = tuple(item.filename.removesuffix(".npy") for item in archive.infolist())

    def load(name: str) -> Any:
        with zipfile.ZipFile(path) as archive:
            member = next(item for item in archive.infolist() if item.filename.removesuffix(".npy") == name)
            if member.file_size > _room(path):
                raise _unreadable(path, f"{name!r} unfolds to {member.file_size >> 20} MiB")
            with archive.open(member) as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
                while stream.read(1 << 20):  # to the end: there the checksum is compared
                    pass
        if array.dtype.kind not in "biufUSM" or array.dtype.itemsize == 0 < array.size:
            raise DataError(f"{path}: column {name!r} does not hold numbers or text (dtype {array.dtype})")
        if array.ndim != 1:
            return array
        if array.dtype.kind in "iufM":
            array = array.astype(np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("="))
        # Text cell by cell: Arrow ends a text of numpy at its first NUL.
        return pa.chunked_array([pa.array(array.tolist() if array.dtype.kind in "US" else array)])

    return ColumnFile(path, names, load)


def _open_parquet(path: Path) -> ColumnFile:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
    if rows * 8 > _room(path):
        raise _unreadable(path, f"{rows} rows are said to stand in {path.stat().st_size} bytes")

    def load(name: str) -> Any:
        import pyarrow as pa

        # ParquetFile, not read_table: that one takes directories called name=value for further columns.
        with pq.ParquetFile(path) as file:
            column = file.read(columns=[name], use_threads=False)[name]
        column.validate(full=True)
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        return _trimmed(column)

    return ColumnFile(path, tuple(schema.names), load, schema.metadata or {})


def _open_csv(path: Path) -> ColumnFile:
    import pyarrow as pa
    import pyarrow.csv

    require_text(path)
    data = path.read_bytes()
    try:
        names, separator, end = _header(data, "\t" if path.suffix.lower() == ".tsv" else ",")
        padded = [name.strip() for name in names]
        if len(set(padded)) < len(padded) or end == len(data):
            return ColumnFile(path, tuple(padded), lambda name: pa.chunked_array([], type=pa.string()))
        table = pyarrow.csv.read_csv(
            pa.BufferReader(pa.py_buffer(data).slice(end)),
            # A row has to fit into a block, and one of 100,000 classes does not fit into the usual one.
            read_options=pyarrow.csv.ReadOptions(
                column_names=padded, use_threads=False, block_size=min(max(len(data), 1 << 20), _MOST_BLOCK)
            ),
            parse_options=pyarrow.csv.ParseOptions(delimiter=separator, newlines_in_values=True),
            # Text, all of it: a column of ids must not become numbers on its way in.
            convert_options=pyarrow.csv.ConvertOptions(column_types={name: pa.string() for name in padded}),
        )
    except (UnicodeDecodeError, pa.ArrowInvalid) as error:
        raise _not_utf8(path, data) or error from None
    return ColumnFile(path, tuple(padded), lambda name: _trimmed(table[name]))


def _trimmed(column: pa.ChunkedArray) -> pa.ChunkedArray:
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(column) if _is_text(column.type) else column


def _header(data: bytes, separator: str) -> tuple[list[str], str, int]:
    """(names, separator, start of the rows). Another separator than usual where that gives one column only."""
    start = len(b"\xef\xbb\xbf") if data.startswith(b"\xef\xbb\xbf") else 0
    line, start = _record(data, start)
    if said := re.fullmatch(r"sep=(.)", line, re.IGNORECASE):  # the line by which Excel says its separator
        separator = said[1]
        line, start = _record(data, start)
    if len(names := _names(line, separator)) < 2:
        separator, names = max(
            ((mark, _names(line, mark)) for mark in (separator, *_SEPARATORS)), key=lambda it: len(it[1])
        )
    return names, separator, start


def _names(line: str, separator: str) -> list[str]:
    """The names in a header. Python's reader takes fields of 131,072 characters at most: a longer one is no name."""
    if separator not in line:
        line = line[: csv.field_size_limit()]
    return next(csv.reader(io.StringIO(line, newline=""), delimiter=separator), [])


def _record(data: bytes, start: int) -> tuple[str, int]:
    """The next line that is not empty, and where the one after it begins; a line break inside quotes ends no line."""
    while start < len(data) and data[start] in b"\r\n":
        start += 1
    end, quoted = start, False
    while end < len(data) and (quoted or data[end] not in b"\r\n"):
        quoted ^= data[end] == ord('"')
        end += 1
    line = data[start:end].decode("utf-8")
    if quoted:
        raise ValueError("a quote in its header never closes")
    return line, end + (2 if data[end : end + 2] == b"\r\n" else 1 if end < len(data) else 0)


def _not_utf8(path: Path, data: bytes) -> DataError | None:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return DataError(f"{path}: UTF-16 text; save it as UTF-8")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError as error:
        return DataError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8")
    return None
