"""Files of scores: .npz, .parquet, .csv and .tsv, with the labels, groups, ids and roles of the rows."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError, MissingError
from stage1.scores.columns import Codes, ColumnFile, is_blank, open_columns
from stage1.scores.labels import (
    are_plain_numbers,
    column_numbers,
    decoded,
    found_classes,
    label_text,
    named_by_digits,
    outside,
    place_labels,
    stored_names,
)
from stage1.scores.scores import (
    ROLES,
    Scores,
    Values,
    appearance,
    from_probabilities,
    look_like_probabilities,
    same_length,
    silent,
)
from stage1.storage.files import atomic_writer, write_through

if TYPE_CHECKING:
    import pyarrow as pa

_FIELDS = ("scores", "label", "group", "id", "gate", "role")
_SLICE, _EXTRA = "slice_", "extra_"
_INDEX = "label_index"
_ROWS_AT_ONCE = 1 << 17
"""Written at once: a million rows are not held twice."""
# In the metadata of our own Parquet files: the values of `label` are column numbers, whatever the classes are called.
_OURS = {b"stage1.label": b"column number"}


def write_scores(path: str | os.PathLike[str], scores: Scores, roles: ArrayLike | None = None) -> None:
    """Write to .npz, .parquet or .csv by the ending.

    Columns: id, label, group, role, gate, slice_NAME, extra_NAME, logit_0 .. logit_{K-1}. Labels are column numbers and
    say so: in a Parquet file by its metadata, elsewhere by their name, label_index; so classes that are called 1, 0
    cannot turn them.

    Raises DataError for another ending.
    """
    path = Path(path)
    role_column = None if roles is None else np.asarray(roles).astype(np.str_)
    columns: dict[str, NDArray[Any]] = {}
    for name, values in (
        ("id", scores.ids),
        ("label", scores.labels),
        ("group", scores.groups),
        ("role", role_column),
        ("gate", scores.gate),
    ):
        if values is not None:
            columns[name] = values
    columns |= {f"{_SLICE}{name}": values for name, values in scores.slices.items()}
    columns |= {f"{_EXTRA}{name}": values for name, values in scores.extra.items()}
    if "label" in columns and path.suffix != ".parquet":
        columns = {_INDEX if name == "label" else name: column for name, column in columns.items()}
    if path.suffix == ".npz":
        with atomic_writer(path) as stream:
            np.savez(stream, logits=scores.logits, **columns)  # type: ignore[arg-type]
        return
    columns |= {f"logit_{index}": scores.logits[:, index] for index in range(scores.n_classes)}
    import pyarrow as pa

    def rows(start: int) -> pa.Table:
        piece = slice(start, start + _ROWS_AT_ONCE)
        return pa.table({name: _arrow(values[piece]) for name, values in columns.items()})

    first = rows(0)
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        writer, first = pq.ParquetWriter, first.replace_schema_metadata(_OURS)
    elif path.suffix == ".csv":
        import pyarrow.csv

        writer = pyarrow.csv.CSVWriter
    else:
        raise DataError(f"{path}: unknown ending for scores; use .npz, .parquet or .csv")

    def write(temporary: str) -> None:
        with writer(temporary, first.schema) as file:
            file.write_table(first)
            for start in range(_ROWS_AT_ONCE, len(scores), _ROWS_AT_ONCE):
                file.write_table(rows(start).cast(first.schema))

    write_through(path, write)


def _arrow(values: NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    if values.dtype.kind != "U" or not values.dtype.itemsize:
        return pa.array(values if values.dtype.kind != "U" else values.tolist())
    letters = np.ascontiguousarray(values).view(np.uint32).reshape(len(values), -1)
    # Arrow ends a text of numpy at its first NUL; a list of texts takes three times as long.
    cut = (letters[:, :-1] == 0) & (letters[:, 1:] != 0)
    return pa.array(values.tolist() if cut.any() else values)


def read_scores(
    path: str | os.PathLike[str],
    *,
    values: Values | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    slices: Sequence[str] = (),
    say: Callable[[str], None] = silent,
) -> tuple[Scores, NDArray[np.str_] | None]:
    """Read scores and, where there is one, the role of each row.

    path: .npz, .parquet, .csv or .tsv (how cells are read: stage1.scores.columns). values: what the score columns hold;
    None where their own names say it (`logits`, `logit_0`.. or `probabilities`, `prob_0`..). It is never guessed from
    the numbers.
    columns: other names for "scores" (npz: one array [N], [N, K]; tables: one column, or one per class as "a,b,c"),
    "label", "group", "id", "gate", "role"; and slice_NAME, extra_NAME for the columns of Scores.slices and Scores.extra
    that are called otherwise in the file.
    classes: names in the order of the score columns. A label is then matched as `labels.place_labels` says, without
    them it is a column number (true 1, false 0); a column label_index holds column numbers in any case.
    slices: attributes that are asked for: NAME is then taken from a column of that name where none is called
    slice_NAME.
    Table files hold `logit_0..` (or `prob_0..` for probabilities; one column `prob_1` or the one named "scores" is
    P(class 1)).
    say: hears, a line each, of blank groups, of probabilities off by rounding, and of logits that look like
    probabilities.
    Returns (Scores, roles or None). Raises MissingError, DataError naming file and column.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such file; give --scores an .npz, .parquet or .csv file")
    names = {field: name.strip() for field, name in (columns or {}).items()}
    unknown = {
        name for name in names if name not in _FIELDS and not (name.startswith((_SLICE, _EXTRA)) and len(name) > 6)
    }
    if unknown:
        raise DataError(
            f"columns: unknown field {sorted(unknown)[0]!r}; use {', '.join(_FIELDS)}, slice_NAME or extra_NAME"
        )
    raw = open_columns(path)
    names = {**_asked_slices(raw, slices), **names}
    kind, matrix = _score_matrix(raw, names, values)
    if matrix.shape[:1] == (0,):
        raise DataError(f"{path}: no rows; a score file has one for each image")

    def column(field: str, *aliases: str) -> str | None:
        if field not in names:
            return raw.find(field, *aliases)
        if names[field] not in raw.names:
            raise DataError(f"{path}: no column {names[field]!r} (given for {field}); it has {_listed(raw)}")
        return names[field]

    def named(prefix: str) -> dict[str, str]:
        wanted = dict.fromkeys(name for name in (*raw.names, *names) if name.startswith(prefix))
        found = {name.removeprefix(prefix): column(name) for name in wanted}
        return {name: where for name, where in found.items() if where is not None}

    label, gate, group, name, role = (
        column("label", "labels", _INDEX),
        column("gate"),
        column("group", "groups"),
        column("id", "ids"),
        column("role", "roles", "split"),
    )
    groups = None if group is None else _Texts(*raw.repeated_texts(group))
    fields: dict[str, Any] = {
        "labels": None if label is None else _label_numbers(raw, label, classes, given="label" in names),
        "gate": None if gate is None else raw.numbers(gate),
        "groups": None if groups is None else groups.rows,
        "ids": None if name is None else _filled(raw, name),
        "slices": {key: _Texts(*raw.repeated_texts(where)).rows for key, where in named(_SLICE).items()},
        "extra": {key: raw.numbers(where) for key, where in named(_EXTRA).items()},
    }
    roles = None if role is None else _roles(raw, role)
    if groups is not None and (blank := groups.count(is_blank)):
        say(f"{path}: {blank} of {len(groups.codes)} rows have a blank group; each is a group of its own")
    try:
        if kind == "probabilities":
            scores = from_probabilities(matrix, say=lambda text: say(f"{path}: {text}"), **fields)
        else:
            if look_like_probabilities(matrix):
                say(f"{path}: read as logits, but {appearance(matrix)}")
            if matrix.ndim == 1:
                matrix = np.stack([np.zeros_like(matrix), matrix], axis=1)
            scores = Scores(logits=matrix, **fields)
        if roles is not None:
            same_length(roles, len(scores), "roles")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return scores, roles


@dataclass(frozen=True, slots=True)
class _Texts:
    """A column of texts that repeat. values: str [M]; codes: int [N], which of them each row has."""

    values: list[str]
    codes: Codes

    @property
    def rows(self) -> NDArray[np.str_]:
        return np.array(self.values, dtype=np.str_)[self.codes]

    def count(self, holds: Callable[[str], bool]) -> int:
        """Rows whose text has a property."""
        return int(np.array([holds(text) for text in self.values], dtype=np.bool_)[self.codes].sum())


def _roles(raw: ColumnFile, name: str) -> NDArray[np.str_]:
    found = _Texts(*raw.repeated_texts(name))
    if "" in found.values:
        raise _empty_cells(raw, name, int(np.isin(found.codes, _places_of("", found.values)).argmax()))
    if bad := sorted(set(found.values) - set(ROLES)):
        raise DataError(
            f"{raw.path}: role {bad[0]!r} is unknown; roles are {', '.join(ROLES)}: write these, or rename the column"
            " to have the roles dealt by hash (calibrate --shares)"
        )
    return found.rows


def _places_of(text: str, texts: Sequence[str]) -> list[int]:
    return [place for place, other in enumerate(texts) if other == text]


def _asked_slices(raw: ColumnFile, slices: Sequence[str]) -> dict[str, str]:
    """{slice_NAME: NAME} for attributes that the file has under their own name only."""
    return {f"{_SLICE}{name}": name for name in slices if f"{_SLICE}{name}" not in raw.names and name in raw.names}


def _filled(raw: ColumnFile, name: str) -> list[str]:
    texts = raw.texts(name)
    if "" in texts:
        raise _empty_cells(raw, name, texts.index(""))
    return texts


def _empty_cells(raw: ColumnFile, name: str, row: int) -> DataError:
    return DataError(f"{raw.path}: column {name!r} has empty cells (the first in row {row}); fill them")


def _listed(raw: ColumnFile) -> str:
    shown = [name if len(name) <= 60 else f"{name[:60]}.." for name in sorted(raw.names)]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def _label_numbers(raw: ColumnFile, name: str, classes: Sequence[str] | None, *, given: bool) -> NDArray[np.int64]:
    """Labels as column numbers. `classes` says which class is first, never guessed. given: column was named."""
    path, metadata, index = raw.path, raw.metadata, raw.find(_INDEX)
    if not given and index not in (None, name):
        raise DataError(f"{path}: columns {name!r} and {index!r}; say which one with --columns label=NAME")
    cells, codes, first = raw.cells(name)
    numbered = name == index or (name == "label" and metadata.items() >= _OURS.items())
    stored = stored_names(metadata, name)
    if stored is not None and classes is not None:
        cells = decoded(cells, stored, f"{path}: column {name!r}", [f"row {row}" for row in first])
    texts = [label_text(cell) for cell in cells]
    try:
        if numbered or classes is None:
            found = column_numbers(texts)
        else:
            found = place_labels(texts, classes, positions=stored is None or are_plain_numbers(stored))
    except DataError as error:
        raise DataError(f"{path}: column {name!r}: {error}") from error
    if set(texts) - found.keys():
        row, text = min((row, text) for row, text in zip(first, texts, strict=True) if text not in found)
        if classes is not None:
            raise DataError(f"{path}: column {name!r}: row {row}: {outside(text, classes)}")
        words = list(found_classes(texts))
        shown = ", ".join(words[:4]) + (", .." if len(words) > 4 else "")
        raise DataError(
            f"{path}: row {row}: no label in column {name!r}"
            if not text
            else (
                f"{path}: row {row}: labels must be whole numbers 0, 1, .. or names; this one is {text!r}"
                if all(named_by_digits(word) for word in words)
                else (
                    f"{path}: labels are names ({shown}); say their order with data.classes=[{shown}] (the last of two"
                    " is positive), or write 0, 1, .."
                )
            )
        )
    return np.array([found[text] for text in texts], dtype=np.int64)[codes]


_STEMS: dict[Values, str] = {"logits": "logit", "probabilities": "prob"}


def _score_matrix(
    raw: ColumnFile, names: Mapping[str, str], values: Values | None
) -> tuple[Values, NDArray[np.float64]]:
    """(what the scores are, the numbers [N] or [N, K]). Unless stated, the column names must say it."""
    if "scores" in names:
        wanted = names["scores"]
        parts = [wanted] if wanted in raw.names else [part.strip() for part in wanted.split(",")]
        if any(part not in raw.names for part in parts):
            raise DataError(f"{raw.path}: no column {wanted!r}; it has {_listed(raw)}")
    else:
        kinds: tuple[Values, ...] = ("logits", "probabilities") if values is None else (values,)
        found = {kind: parts for kind in kinds if (parts := _standard_columns(raw, kind))}
        if len(found) > 1:
            raise DataError(
                f"{raw.path}: holds logits and probabilities; say which to take with --values logits|probabilities"
            )
        if not found:
            searched = " or ".join(f"{kind!r}, {_STEMS[kind]}_0, {_STEMS[kind]}_1 .." for kind in kinds)
            raise DataError(
                f"{raw.path}: no {' or '.join(kinds)} found (looked for {searched}); it has {_listed(raw)}. "
                "Name the column with --columns scores=NAME and say --values logits|probabilities"
            )
        parts = next(iter(found.values()))
    matrix = raw.numbers(parts[0]) if len(parts) == 1 else np.stack([raw.numbers(part) for part in parts], axis=1)
    kind = values or _kind_by_name(parts)
    if kind is None:
        shown = ", ".join(parts[:4]) + (", .." if len(parts) > 4 else "")
        raise DataError(
            f"{raw.path}: logits or probabilities? Their column ({shown}) does not tell, and it is never guessed; say"
            f" --values logits or --values probabilities: {appearance(matrix)}"
        )
    return kind, matrix


def _standard_columns(raw: ColumnFile, kind: Values) -> list[str]:
    """The score columns that go by our names, in the order of the classes; empty where there are none."""
    if whole := raw.find(kind):
        return [whole]
    numbered = {int(found[1]): name for name in raw.names if (found := re.fullmatch(_numbered(kind), name, re.ASCII))}
    stem = f"{_STEMS[kind]}_"
    strange = (name for name in raw.names if name.lower().startswith(stem) and name[len(stem) :].isdigit())
    ours = set(numbered.values())
    if odd := [name for name in strange if name not in ours]:
        raise DataError(f"{raw.path}: column {odd[0][:80]!r}: number the classes {stem}0, {stem}1, .. in plain digits")
    if len(numbered) >= 2 and (gap := set(range(max(numbered) + 1)) - set(numbered)):
        raise DataError(
            f"{raw.path}: no column '{_STEMS[kind]}_{min(gap)}', but '{numbered[max(numbered)]}'; one per class is"
            " needed"
        )
    return [numbered[index] for index in sorted(numbered)] if len(numbered) >= 2 or 1 in numbered else []


def _numbered(kind: Values) -> str:
    # Digits of ASCII, and few: a superscript two is a digit as well, and no number has 4,300 of them.
    return rf"(?i:{_STEMS[kind]})_(0|[1-9]\d{{0,5}})"


def _kind_by_name(parts: Sequence[str]) -> Values | None:
    for kind in _STEMS:
        if all(part.lower() == kind or re.fullmatch(_numbered(kind), part, re.ASCII) for part in parts):
            return kind
    return None
