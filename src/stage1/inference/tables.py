"""Answers as a stream: a table to read, CSV, Parquet, or one JSON document; no more than a batch is held."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, BinaryIO, Literal, Protocol, TextIO

from stage1.errors import ConfigError
from stage1.inference.inputs import Input
from stage1.inference.predictor import Predictor, Row
from stage1.scores.columns import is_blank
from stage1.storage.cells import text_cell
from stage1.storage.documents import SCHEMA_VERSION
from stage1.storage.files import atomic_writer

Format = Literal["table", "csv", "parquet", "json"]
FORMATS: tuple[Format, ...] = ("table", "csv", "parquet", "json")
# What every row has, and what it has where the bundle evaluates several views of an image.
VIEW_COLUMNS = ("views", "view")
COLUMNS = tuple(
    field.name
    for field in fields(Row)
    if field.name not in (*VIEW_COLUMNS, "box", "small", "probabilities", "reason", "score")
)
# Before the name of a class: no other column begins so, and two classes have two names.
CLASS_PREFIX = "p_"

# Images handed to the stream at once: long enough that filling and draining it costs little, and bounded in memory
# where the images themselves come from a table.
_CHUNK_IMAGES = 512
_CHUNK_BYTES = 64 << 20
# Colours of the terminal: green, yellow, red.
_VIEW_WIDTH = len("tile r0c0")
_COLOURS = {"exit": 32, "defer": 33, "error": 31}


class RowWriter(Protocol):
    """Where rows go."""

    def write(self, rows: Sequence[Row]) -> None:
        """Take the next rows."""
        ...

    def close(self) -> None:
        """Finish the document. Not called where the run failed."""
        ...


def predict_to(
    predictor: Predictor,
    inputs: Iterable[Input],
    writer: RowWriter,
    *,
    on_failure: Callable[[Row], None] | None = None,
    on_small: Callable[[int, int], None] | None = None,
    on_unknown: Callable[[int, int], None] | None = None,
) -> int:
    """Answer every input in order and hand the rows to `writer`. Returns how many images could not be answered.

    on_failure: called with the row of each of those, as it comes (the CLI names it on stderr). on_small: called at the
    end with (how many images were no larger than the model's input, how many were answered), where there were such
    under several views. on_unknown: the same with how many defer because the slice by which thresholds differ was not
    given.
    """
    failures = small = answered = unknown = 0
    by = None if predictor.policy is None else predictor.policy.sliced_by
    for chunk in _chunks(inputs):
        slices = None if by is None else {by: [one.slices.get(by, "") for one in chunk]}
        unknown += 0 if slices is None else sum(map(is_blank, slices[by]))  # type: ignore[index]
        for rows in predictor.stream([one.item for one in chunk], [one.name for one in chunk], slices=slices):
            writer.write(rows)
            for row in rows:
                small, answered = small + row.small, answered + (row.error is None)
                if row.error is not None:
                    failures += 1
                    if on_failure is not None:
                        on_failure(row)
    if small and on_small is not None:
        on_small(small, answered)
    if unknown and on_unknown is not None:
        on_unknown(unknown, answered + failures)
    return failures


@contextmanager
def open_writer(
    kind: Format, target: TextIO | str | os.PathLike[str], about: Mapping[str, Any] | None = None
) -> Iterator[RowWriter]:
    """A writer to a text stream (stdout) or to a file, which appears only when all rows are in it.

    about: what the answers should say of the bundle (`Bundle.about`); it heads the JSON document.
    Raises ConfigError for an unknown kind, and for Parquet on a stream; Stage1Error where the file cannot be written.

    Example: with open_writer("csv", "answers.csv") as writer: predict_to(bundle.predictor, inputs, writer)
    """
    if kind not in FORMATS:
        raise ConfigError(f"format {kind!r} is unknown; use {', '.join(FORMATS)}")
    if isinstance(target, (str, os.PathLike)):
        with atomic_writer(target) as binary:
            if kind == "parquet":
                with _ParquetWriter(binary, _columns(about or {})) as parquet:
                    yield parquet
            else:
                text = io.TextIOWrapper(binary, encoding="utf-8", newline="", write_through=True)
                writer = _text_writer(kind, text, about or {})
                try:
                    yield writer
                    writer.close()
                    text.flush()
                finally:
                    text.detach()  # atomic_writer syncs and closes the file itself
    elif kind == "parquet":
        raise ConfigError("format parquet: a terminal or pipe cannot take it; give --output FILE.parquet")
    else:
        writer = _text_writer(kind, target, about or {})
        yield writer
        writer.close()
        target.flush()


def _text_writer(kind: Format, stream: TextIO, about: Mapping[str, Any]) -> RowWriter:
    if kind == "json":
        return _JsonWriter(stream, about)
    return _CsvWriter(stream, _columns(about)) if kind == "csv" else _TableWriter(stream, about)


def _columns(about: Mapping[str, Any]) -> tuple[str, ...]:
    """Of every row, one for each class of the bundle (where it is known), of the views, and of what has no claim."""
    reported = (f"{CLASS_PREFIX}{valid(name)}" for name in about.get("classes", ()))
    return (
        *COLUMNS,
        *reported,
        *(VIEW_COLUMNS if "views" in about else ()),
        *(("reason",) if "slices" in about or "unclaimed" in about else ()),
    )


def _chunks(inputs: Iterable[Input]) -> Iterator[list[Input]]:
    chunk: list[Input] = []
    size = 0
    for one in inputs:
        chunk.append(one)
        size += len(one.item) if isinstance(one.item, bytes) else 0
        if len(chunk) == _CHUNK_IMAGES or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _plain(row: Row, columns: Sequence[str]) -> dict[str, Any]:
    # A file name need not be valid UTF-8; what is written must be.
    own = [name for name in columns if not name.startswith(CLASS_PREFIX)]
    reported = [name for name in columns if name.startswith(CLASS_PREFIX)]
    values = [(name, getattr(row, name)) for name in own]
    if reported:
        values += zip(reported, row.probabilities or [None] * len(reported), strict=True)
    return {name: valid(value) if isinstance(value, str) else value for name, value in values}


def valid(text: str) -> str:
    r"""The text with bytes that are not UTF-8 as \udc.., so that it can be written anywhere."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


# ---- writers -----------------------------------------------------------------------------------------------------


class _TableWriter:
    """Columns for the eye; in colour on a terminal. Paths come last, as they may be long."""

    def __init__(self, stream: TextIO, about: Mapping[str, Any]) -> None:
        self._stream = stream
        widest = max((len(name) for name in about.get("classes", ())), default=12)
        self._widths = (max(len("exit:") + widest, len("decision")), max(widest, len("label")), len("probability"))
        self._coloured = stream.isatty() and "NO_COLOR" not in os.environ
        self._views = "views" in about
        self._put(("decision", "label", "probability", "path"), views=("views", "view"))

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            kind = "error" if row.error is not None else "exit" if row.exit else "defer"
            decision = row.decision if row.error is None else "error"
            probability = "" if row.probability is None else f"{row.probability:.6f}"
            why = row.error or row.reason
            path = row.path if why is None else f"{row.path}: {why}"
            cells = ("" if row.views is None else str(row.views), row.view or "")
            self._put((decision, row.label or "", probability, path), _COLOURS[kind], views=cells)

    def close(self) -> None:
        self._stream.flush()

    def _put(self, cells: tuple[str, str, str, str], colour: int | None = None, *, views: tuple[str, str]) -> None:
        # A name with a line break or a terminal code in it must not draw rows of its own.
        decision, label, probability, path = (_printable(cell) for cell in cells)
        first = decision.ljust(self._widths[0])
        painted = f"\x1b[{colour}m{first}\x1b[0m" if self._coloured and colour is not None else first
        columns = f"{views[0].rjust(len('views'))}  {views[1].ljust(_VIEW_WIDTH)}  " if self._views else ""
        line = f"{painted}  {label.ljust(self._widths[1])}  {probability.rjust(self._widths[2])}  {columns}{path}"
        self._stream.write(f"{line.rstrip()}\n")


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in valid(text))


class _CsvWriter:
    """Rows as they come; text that a spreadsheet would take for a formula has a ' before it (stage1/cells.py)."""

    def __init__(self, stream: TextIO, columns: Sequence[str]) -> None:
        self._columns = columns
        self._csv = csv.writer(stream, lineterminator="\n")
        self._csv.writerow(columns)

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            values = _plain(row, self._columns) | {"exit": str(row.exit).lower()}
            self._csv.writerow([_cell(values[name]) for name in self._columns])

    def close(self) -> None:
        """Nothing follows the last row."""


def _cell(value: Any) -> Any:
    return "" if value is None else text_cell(value) if isinstance(value, str) else value


class _JsonWriter:
    """One document (schemas/predictions.schema.json): the bundle, rows as they come, counts of exits and failures."""

    def __init__(self, stream: TextIO, about: Mapping[str, Any]) -> None:
        self._stream = stream
        self._views = "views" in about
        self._columns = (*_columns(about), "box", "small") if self._views else _columns(about)
        self._images = self._exits = self._failures = self._small = 0
        head = json.dumps({"schema_version": SCHEMA_VERSION, "bundle": dict(about)}, ensure_ascii=True)
        self._stream.write(head[:-1] + ', "rows": [')

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self._stream.write("\n" if self._images == 0 else ",\n")
            self._stream.write(json.dumps(_plain(row, self._columns), ensure_ascii=True, allow_nan=False))
            self._images += 1
            self._exits += row.exit
            self._failures += row.error is not None
            self._small += row.small

    def close(self) -> None:
        counts = {"images": self._images, "exits": self._exits, "failures": self._failures}
        if self._views:
            counts["small"] = self._small
        self._stream.write("\n], " + json.dumps(counts)[1:] + "\n")


class _ParquetWriter:
    def __init__(self, stream: BinaryIO, columns: Sequence[str]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        text, number = pa.string(), pa.float64()
        kinds = {
            "path": text,
            "label": text,
            "probability": number,
            "exit": pa.bool_(),
            "decision": text,
            "error": text,
            "views": pa.int32(),
            "view": text,
            "reason": text,
            "confidence": number,
        }
        self._columns = columns
        self._schema = pa.schema([(name, kinds.get(name, number)) for name in columns])
        self._writer = pq.ParquetWriter(stream, self._schema)

    def __enter__(self) -> _ParquetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa

        if rows:
            self._writer.write_table(
                pa.Table.from_pylist([_plain(row, self._columns) for row in rows], schema=self._schema)
            )

    def close(self) -> None:
        self._writer.close()
