"""Scores: the hinge between the torch half and the numpy half, and their files."""

from __future__ import annotations

import io
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError, IntegrityError, MissingError
from stage1.extras import load
from stage1.scores.columns import ColumnFile, is_blank, open_columns, words_of
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
from stage1.storage.files import atomic_writer, read_json, require_stored, write_bytes, write_text, write_through

ROLES = ("train", "val_select", "val_calib", "val_test")
Values = Literal["logits", "probabilities"]
_FIELDS = ("scores", "label", "group", "id", "gate", "role")
_SLICE, _EXTRA = "slice_", "extra_"
_INDEX = "label_index"
# In the metadata of a Parquet file of ours: what stands in `label` are column numbers, whatever the classes are called.
_OURS = {b"stage1.label": b"column number"}
# log of the smallest normal double: finite, and below the log of every probability that a model can print
_LOG_FLOOR = float(np.finfo(np.float64).tiny)
# What rounding does to probabilities: bfloat16 moves each by up to 2^-9 of itself, so a sum by .002 (.004 where it
# truncates).
OUTSIDE, SUM_OFF = 1e-3, 5e-3
# The sum of float32 softmax outputs is off by less; nothing is said of it.
_SUM_EXACT = 1e-5


def _silent(text: str) -> None:
    """Nobody to tell."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Outputs of a classifier on N images with K classes.

    logits: float [N, K], raw scores (log-probabilities will do: they are logits up to a constant per row).
    labels: int [N] in 0..K-1, or None. Class 1 is the positive class when K = 2.
    gate:   float [N] raw second score (higher = more likely right), or None.
    groups: str [N] unit of dependence (video, camera, site), or None. A row whose group is blank (empty, white space,
    None,
            NaN) is a group of its own, named by its id.
    ids:    str [N] unique sample ids (sha256 of the image bytes), or None.
    slices: name -> str [N], attributes by which claims are broken down (city, night); empty where there are none.
    extra:  name -> float [N], further signals of whether the answer is right (view spread, kNN distance), for the gate.
    Raises DataError naming the field for a wrong shape, NaN, infinity, a label outside 0..K-1, or a duplicate id.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64] | None = None
    gate: NDArray[np.float64] | None = None
    groups: NDArray[np.str_] | None = None
    ids: NDArray[np.str_] | None = None
    slices: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    extra: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        logits = _floats(self.logits, "logits", 2)
        n, k = logits.shape
        if k < 2:
            raise DataError(f"logits: {k} column(s); give one column per class (2 for a binary problem)")
        put = object.__setattr__
        put(self, "logits", logits)
        if self.labels is not None:
            put(self, "labels", _labels(self.labels, n, k))
        if self.gate is not None:
            gate = _floats(self.gate, "gate", 1)
            _same_length(gate, n, "gate")
            put(self, "gate", gate)
        if self.groups is not None:
            put(self, "groups", _texts(self.groups, n, "groups"))
        if self.ids is not None:
            ids = _texts(self.ids, n, "ids")
            values, counts = np.unique(ids, return_counts=True)
            if (counts > 1).any():
                raise DataError(f"ids: {str(values[counts > 1][0])!r} occurs {counts.max()} times; ids must be unique")
            put(self, "ids", ids)
        if self.groups is not None:
            put(self, "groups", _own_groups(self.groups, self.ids))
        put(self, "slices", {name: _texts(values, n, f"slices.{name}") for name, values in self.slices.items()})
        put(self, "extra", {name: _floats(values, f"extra.{name}", 1) for name, values in self.extra.items()})
        for name, signal in self.extra.items():
            _same_length(signal, n, f"extra.{name}")

    def __len__(self) -> int:
        return int(self.logits.shape[0])

    @property
    def n_classes(self) -> int:
        return int(self.logits.shape[1])

    @property
    def margin(self) -> NDArray[np.float64]:
        """Raw binary score s = logit of class 1 - logit of class 0, float [N]. Raises DataError where K > 2."""
        if self.n_classes != 2:
            raise DataError(f"logits: {self.n_classes} classes have no single margin; this score is for two classes")
        return self.logits[:, 1] - self.logits[:, 0]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits, float [N, K]."""
        shifted = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))

    @property
    def known_labels(self) -> NDArray[np.int64]:
        """The labels. Raises DataError where there are none."""
        if self.labels is None:
            raise DataError("labels: these scores have none; labels are needed here")
        return self.labels

    def take(self, rows: ArrayLike) -> Scores:
        """The rows given by an index or boolean array, in that order."""
        index = np.asarray(rows)
        if index.size == 0 and index.dtype.kind == "f":  # an empty list has no type of its own
            index = index.astype(np.int64)

        def pick(column: NDArray[Any] | None) -> Any:
            return None if column is None else column[index]

        return replace(
            self,
            logits=self.logits[index],
            labels=pick(self.labels),
            gate=pick(self.gate),
            groups=pick(self.groups),
            ids=pick(self.ids),
            slices={name: values[index] for name, values in self.slices.items()},
            extra={name: values[index] for name, values in self.extra.items()},
        )


def from_probabilities(probabilities: ArrayLike, *, say: Callable[[str], None] = _silent, **fields: Any) -> Scores:
    """Scores from probabilities, [N, K] or [N] (binary: P(class 1)); logits are their logs.

    0 and 1 stay finite (log of the smallest normal double), so that saturated values tie with each other and with
    nothing else. Values up to .001 outside [0, 1] are clipped and rows whose sum is up to .005 off count as shares of
    it (rounding: float16, bfloat16, printed digits); `say` hears how many. Raises DataError naming the row beyond that.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim not in (1, 2):
        raise DataError(f"probabilities: shape {values.shape}; [N] or [N, K] expected")
    wrong = ~((values >= -OUTSIDE) & (values <= 1.0 + OUTSIDE))
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        raise DataError(f"probabilities: row {at[0]} is {values[at]:.6g}, not finite and in [0, 1]; for logits say so")
    outside = (values < 0) | (values > 1)
    values = np.clip(values, 0.0, 1.0)
    off = outside
    if values.ndim == 1:
        values = np.stack([1.0 - values, values], axis=1)
    elif values.size:
        gap = np.abs(values.sum(axis=1) - 1.0)
        if gap.max() > SUM_OFF:
            row = int(gap.argmax())
            raise DataError(f"probabilities: row {row} sums to {values[row].sum():.4g}, not 1; for logits say so")
        # Nothing is divided here: logits are equal up to a constant per row, and the softmax divides by the sum.
        off = outside.any(axis=1) | (gap > _SUM_EXACT)
    if count := int(off.sum()):
        say(
            f"{count} of {len(off)} rows of probabilities are off by rounding: clipped to [0, 1] and taken as shares of"
            " their sum"
        )
    return Scores(logits=np.log(np.maximum(values, _LOG_FLOOR)), **fields)


def _floats(values: ArrayLike, name: str, ndim: int) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: not numbers ({error})") from error
    if array.ndim != ndim:
        raise DataError(f"{name}: {array.ndim} dimension(s), shape {array.shape}; {ndim} expected")
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DataError(f"{name}: row {row} is {array[row]}; NaN and infinity cannot be ranked: fix or drop these rows")
    return array


def _labels(values: ArrayLike, n: int, k: int) -> NDArray[np.int64]:
    raw = np.asarray(values)
    if raw.dtype.kind == "b":
        raw = raw.astype(np.int64)
    if raw.ndim != 1 or raw.dtype.kind not in "iuf" or (raw.dtype.kind == "f" and (raw != np.floor(raw)).any()):
        raise DataError(
            f"labels: must be whole numbers 0..{k - 1}, shape [N]; got dtype {raw.dtype}, shape {raw.shape}"
        )
    _same_length(raw, n, "labels")
    array = raw.astype(np.int64)
    outside = (array < 0) | (array >= k)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(f"labels: row {row} is {array[row]}, outside 0..{k - 1} (classes)")
    return array


def _texts(values: ArrayLike, n: int, name: str) -> NDArray[np.str_]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{name}: shape {array.shape}; one per row expected")
    if array.dtype.kind == "O":  # text beside None or NaN, as pandas has it
        array = np.array(["" if cell is None or cell != cell else str(cell) for cell in array.tolist()], dtype=np.str_)
    _same_length(array, n, name)
    return array.astype(np.str_)


def _own_groups(groups: NDArray[np.str_], ids: NDArray[np.str_] | None) -> NDArray[np.str_]:
    """The groups, with each blank one replaced by a name that no other row has: the row's id, else its number."""
    names = groups.tolist()
    if not (blank := [row for row, name in enumerate(names) if is_blank(name)]):
        return groups
    taken = set(names)
    for row in blank:
        own = f"row {row}" if ids is None else str(ids[row])
        while own in taken or is_blank(own):
            own = f"{own} (no group)"
        taken.add(own)
        names[row] = own
    return np.array(names, dtype=np.str_)


def _same_length(array: NDArray[Any], n: int, name: str) -> None:
    if len(array) != n:
        raise DataError(f"{name}: {len(array)} values for {n} rows of logits")


# ---- files -------------------------------------------------------------------------------------------------------


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

    table = pa.table(
        {name: pa.array(values.tolist() if values.dtype.kind == "U" else values) for name, values in columns.items()}
    )
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = table.replace_schema_metadata(_OURS)
        write_through(path, lambda temporary: pq.write_table(table, temporary))
    elif path.suffix == ".csv":
        import pyarrow.csv

        write_through(path, lambda temporary: pyarrow.csv.write_csv(table, temporary))
    else:
        raise DataError(f"{path}: unknown ending for scores; use .npz, .parquet or .csv")


def read_scores(
    path: str | os.PathLike[str],
    *,
    values: Values | None = None,
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
    say: Callable[[str], None] = _silent,
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
    groups = None if group is None else raw.texts(group)
    fields: dict[str, Any] = {
        "labels": None if label is None else _label_numbers(raw, label, classes, given="label" in names),
        "gate": None if gate is None else raw.numbers(gate),
        "groups": groups,
        "ids": None if name is None else _filled(raw, name),
        "slices": {key: raw.texts(where) for key, where in named(_SLICE).items()},
        "extra": {key: raw.numbers(where) for key, where in named(_EXTRA).items()},
    }
    roles = None if role is None else np.array(_filled(raw, role), dtype=np.str_)
    if roles is not None and (bad := sorted(set(roles.tolist()) - set(ROLES))):
        raise DataError(
            f"{path}: role {bad[0]!r} is unknown; roles are {', '.join(ROLES)}: write these, or rename the column to"
            " have the roles dealt by hash (calibrate --shares)"
        )
    if groups is not None and (blank := sum(map(is_blank, groups))):
        say(f"{path}: {blank} of {len(groups)} rows have a blank group; each is a group of its own")
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
            _same_length(roles, len(scores), "roles")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return scores, roles


def _filled(raw: ColumnFile, name: str) -> list[str]:
    texts = raw.texts(name)
    if "" in texts:
        raise DataError(f"{raw.path}: column {name!r} has empty cells (the first in row {texts.index('')}); fill them")
    return texts


def _listed(raw: ColumnFile) -> str:
    shown = [name if len(name) <= 60 else f"{name[:60]}.." for name in sorted(raw.names)]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def _label_numbers(raw: ColumnFile, name: str, classes: Sequence[str] | None, *, given: bool) -> NDArray[np.int64]:
    """Labels as column numbers. Which class comes first is said by `classes`, never guessed. given: the column was
    named.
    """
    path, metadata, index = raw.path, raw.metadata, raw.find(_INDEX)
    if not given and index not in (None, name):
        raise DataError(f"{path}: columns {name!r} and {index!r}; say which one with --columns label=NAME")
    cells = raw.cells(name)
    numbered = name == index or (name == "label" and metadata.items() >= _OURS.items())
    stored = stored_names(metadata, name)
    if stored is not None and classes is not None:
        cells = decoded(cells, stored, f"{path}: column {name!r}", [f"row {row}" for row in range(len(cells))])
    texts = [label_text(cell) for cell in cells]
    try:
        if numbered or classes is None:
            found = column_numbers(texts)
        else:
            found = place_labels(texts, classes, positions=stored is None or are_plain_numbers(stored))
    except DataError as error:
        raise DataError(f"{path}: column {name!r}: {error}") from error
    if unknown := [row for row, text in enumerate(texts) if text not in found]:
        text = texts[unknown[0]]
        if classes is not None:
            raise DataError(f"{path}: column {name!r}: row {unknown[0]}: {outside(text, classes)}")
        words = list(found_classes(texts))
        shown = ", ".join(words[:4]) + (", .." if len(words) > 4 else "")
        raise DataError(
            f"{path}: row {unknown[0]}: no label in column {name!r}"
            if not text
            else (
                f"{path}: row {unknown[0]}: labels must be whole numbers 0, 1, .. or names; this one is {text!r}"
                if all(named_by_digits(word) for word in words)
                else (
                    f"{path}: labels are names ({shown}); say their order with data.classes=[{shown}] (the last of two"
                    " is positive), or write 0, 1, .."
                )
            )
        )
    return np.array([found[text] for text in texts], dtype=np.int64)


_STEMS: dict[Values, str] = {"logits": "logit", "probabilities": "prob"}


def _score_matrix(
    raw: ColumnFile, names: Mapping[str, str], values: Values | None
) -> tuple[Values, NDArray[np.float64]]:
    """(what the scores are, the numbers [N] or [N, K]). Where nobody says what they are, the names of the columns
    must.
    """
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
            looked = " or ".join(f"{kind!r}, {_STEMS[kind]}_0, {_STEMS[kind]}_1 .." for kind in kinds)
            raise DataError(
                f"{raw.path}: no {' or '.join(kinds)} found (looked for {looked}); it has {_listed(raw)}. "
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
    if odd := [name for name in strange if name not in numbered.values()]:
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


def look_like_probabilities(matrix: NDArray[np.float64]) -> bool:
    inside = bool(matrix.size) and bool(((matrix >= -OUTSIDE) & (matrix <= 1 + OUTSIDE)).all())
    return inside and (matrix.ndim != 2 or bool((np.abs(matrix.sum(axis=1) - 1.0) <= SUM_OFF).all()))


def appearance(matrix: NDArray[np.float64]) -> str:
    """Which of the two kinds the numbers look like, and what to say then."""
    if look_like_probabilities(matrix):
        rows = " and rows sum to 1" if matrix.ndim == 2 else ""
        return f"all values lie in [0, 1]{rows}: these look like probabilities; say probabilities if they are"
    if matrix.size and ((matrix >= 0) & (matrix <= 1)).all():
        return "all values lie in [0, 1], but rows do not sum to 1: these look like neither; say logits if they are"
    low, high = (float(matrix.min()), float(matrix.max())) if matrix.size else (0.0, 0.0)
    return f"values lie between {low:.4g} and {high:.4g}: these look like logits; say logits if they are"


# ---- the tensors of a run directory ------------------------------------------------------------------------------


def write_role(folder: str | os.PathLike[str], role: str, scores: Scores) -> list[Path]:
    """Write `{role}_logits.pt`, `_labels.pt`, `_ids.json` (with groups, slices and extra signals) and, with a gate,
    `_gate_logits.pt`.

    Plain tensors that load with `weights_only=True`; needs torch. Returns the paths written.
    """
    import torch

    folder = Path(folder)
    tensors = {"logits": scores.logits, "labels": scores.labels, "gate_logits": scores.gate}
    written = []
    for name, values in tensors.items():
        path = folder / f"{role}_{name}.pt"
        if values is None:
            path.unlink(missing_ok=True)
            continue
        # Through memory: torch writes a file's name into it, and reports a full disk as a RuntimeError.
        stream = io.BytesIO()
        torch.save(torch.from_numpy(np.ascontiguousarray(values)), stream)
        write_bytes(path, stream.getvalue())
        written.append(path)
    path = folder / f"{role}_ids.json"
    write_text(
        path,
        json.dumps(
            {
                "schema_version": 1,
                "role": role,
                "ids": None if scores.ids is None else scores.ids.tolist(),
                "groups": None if scores.groups is None else scores.groups.tolist(),
                "slices": {name: values.tolist() for name, values in scores.slices.items()},
                **({"extra": {name: values.tolist() for name, values in scores.extra.items()}} if scores.extra else {}),
            }
        )
        + "\n",
    )
    return [*written, path]


def read_ids(folder: str | os.PathLike[str], role: str) -> list[str] | None:
    """The ids in `{role}_ids.json`, without the tensors (and without torch). Raises IntegrityError where it is
    damaged.
    """
    path = Path(folder) / f"{role}_ids.json"
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))["ids"]
        return None if ids is None else [str(name) for name in ids]
    except Exception as error:  # JSON of any shape and depth
        raise IntegrityError(f"{path}: cannot be read ({words_of(error)}); run `stage1 score` again") from error


def read_role(folder: str | os.PathLike[str], role: str) -> Scores:
    """Read what `write_role` wrote. Raises MissingError, or IntegrityError where the files do not agree."""
    torch = load("torch", "scores of a run (.pt)")

    folder = Path(folder)

    def tensor(name: str) -> NDArray[Any] | None:
        path = folder / f"{role}_{name}.pt"
        if not path.exists():
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch says of a damaged file is said below
                require_stored(path)
                loaded = torch.load(path, weights_only=True, map_location="cpu")
            if not isinstance(loaded, torch.Tensor) or loaded.dtype.is_complex:
                raise TypeError(f"a {type(loaded).__name__}, not a tensor of real numbers")
            # An expanded view claims any number of rows from one.
            if loaded.numel() * loaded.element_size() > loaded.untyped_storage().nbytes():
                raise ValueError(f"shape {tuple(loaded.shape)} is more than it holds")
            return np.asarray(loaded.numpy())
        except Exception as error:  # torch raises a handful of unrelated types for a damaged file
            raise IntegrityError(f"{path}: cannot be read ({words_of(error)}); run `stage1 score` again") from error

    logits = tensor("logits")
    names = folder / f"{role}_ids.json"
    if logits is None or not names.exists():
        raise MissingError(f"{folder / f'{role}_logits.pt'}: no scores of {role}; run `stage1 score {folder}`")
    try:
        keys = read_json(names.read_bytes())
        return Scores(
            logits=logits,
            labels=tensor("labels"),
            gate=tensor("gate_logits"),
            groups=keys["groups"],
            ids=keys["ids"],
            slices=keys.get("slices", {}),
            extra=keys.get("extra", {}),
        )
    except IntegrityError:
        raise
    except Exception as error:  # JSON of any shape and depth, and arrays that do not fit each other
        raise IntegrityError(
            f"{names}: does not agree with its tensors ({words_of(error)}); run `stage1 score` again"
        ) from error
