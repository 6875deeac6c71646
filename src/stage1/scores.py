"""Scores: the hinge between the torch half and the numpy half, and their files."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError, IntegrityError, MissingError
from stage1.extras import load
from stage1.files import atomic_writer, write_bytes, write_text, write_through
from stage1.labels import (
    are_plain_numbers,
    column_numbers,
    decoded,
    found_classes,
    label_text,
    named_by_digits,
    outside,
    place_labels,
    stored_names,
)  # fmt: skip

ROLES = ("train", "val_select", "val_calib", "val_test")
Values = Literal["logits", "probabilities"]
_FIELDS = ("scores", "label", "group", "id", "gate", "role")
_SLICE, _EXTRA = "slice_", "extra_"
_INDEX = "label_index"
# In the metadata of a Parquet file of ours: what stands in `label` are column numbers, whatever the classes are called.
_OURS = {b"stage1.label": b"column number"}
# log of the smallest normal double: finite, and below the log of every probability that a model can print
_LOG_FLOOR = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True, slots=True)
class Scores:
    """Outputs of a classifier on N images with K classes.

    logits: float [N, K], raw scores (log-probabilities will do: they are logits up to a constant per row).
    labels: int [N] in 0..K-1, or None. Class 1 is the positive class when K = 2.
    gate:   float [N] raw second score (higher = more likely right), or None.
    groups: str [N] unit of dependence (video, camera, site), or None.
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
            self, logits=self.logits[index], labels=pick(self.labels), gate=pick(self.gate),
            groups=pick(self.groups), ids=pick(self.ids),
            slices={name: values[index] for name, values in self.slices.items()},
            extra={name: values[index] for name, values in self.extra.items()},
        )  # fmt: skip


def from_probabilities(probabilities: ArrayLike, **fields: Any) -> Scores:
    """Scores from probabilities, [N, K] or [N] (binary: P(class 1)); logits are their logs.

    0 and 1 stay finite (log of the smallest normal double), so that saturated values tie with each other and with
    nothing else. Raises DataError for values outside [0, 1] or rows that do not sum to 1 within 1e-3.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim not in (1, 2) or not np.isfinite(values).all() or (values < 0).any() or (values > 1).any():
        raise DataError("probabilities: values must be finite and in [0, 1], shape [N] or [N, K]; for logits say so")
    if values.ndim == 1:
        values = np.stack([1.0 - values, values], axis=1)
    elif values.size and np.abs(values.sum(axis=1) - 1.0).max() > 1e-3:
        row = int(np.abs(values.sum(axis=1) - 1.0).argmax())
        raise DataError(f"probabilities: row {row} sums to {values[row].sum():.4g}, not 1; for logits say so")
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
    array = np.asarray(values).astype(np.str_)
    if array.ndim != 1:
        raise DataError(f"{name}: shape {array.shape}; one per row expected")
    _same_length(array, n, name)
    return array


def _same_length(array: NDArray[Any], n: int, name: str) -> None:
    if len(array) != n:
        raise DataError(f"{name}: {len(array)} values for {n} rows of logits")


# ---- files -------------------------------------------------------------------------------------------------------


def write_scores(path: str | os.PathLike[str], scores: Scores, roles: ArrayLike | None = None) -> None:
    """Write to .npz, .parquet or .csv by the ending.

    Columns: id, label, group, role, gate, slice_NAME, extra_NAME, logit_0 .. logit_{K-1}. Labels are column numbers and say so: in
    a Parquet file by its metadata, elsewhere by their name, label_index; so classes that are called 1, 0 cannot turn them.

    Raises DataError for another ending.
    """
    path = Path(path)
    role_column = None if roles is None else np.asarray(roles).astype(np.str_)
    columns: dict[str, NDArray[Any]] = {}
    for name, values in (("id", scores.ids), ("label", scores.labels), ("group", scores.groups),
                         ("role", role_column), ("gate", scores.gate)):  # fmt: skip
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
    values: Values = "logits",
    columns: Mapping[str, str] | None = None,
    classes: Sequence[str] | None = None,
) -> tuple[Scores, NDArray[np.str_] | None]:
    """Read scores and, where there is one, the role of each row.

    path: .npz, .parquet, .csv or .tsv. values: what the score columns hold; never guessed.
    columns: other names for "scores" (npz: one array [N], [N, K]; tables: one column, or one per class as "a,b,c"), "label", "group", "id", "gate", "role"; and
    slice_NAME, extra_NAME for the columns of Scores.slices and Scores.extra that are called otherwise in the file.
    classes: names in the order of the score columns. A label is then matched as `labels.place_labels` says, without them it is a
    column number (true 1, false 0); a column label_index holds column numbers in any case.
    Table files hold `logit_0..` (or `prob_0..` for probabilities; one column `prob_1` or the one named "scores" is P(class 1)).
    Returns (Scores, roles or None). Raises MissingError, DataError naming file and column.
    """
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such file; give --scores an .npz, .parquet or .csv file")
    names = dict(columns or {})
    unknown = {
        name for name in names if name not in _FIELDS and not (name.startswith((_SLICE, _EXTRA)) and len(name) > 6)
    }
    if unknown:
        raise DataError(
            f"columns: unknown field {sorted(unknown)[0]!r}; use {', '.join(_FIELDS)}, slice_NAME or extra_NAME"
        )
    raw, metadata = (_read_npz(path), {}) if path.suffix == ".npz" else _read_table(path, names)
    matrix = _score_matrix(raw, names, values, path)

    def column(field: str, *aliases: str) -> NDArray[Any] | None:
        if field in names and names[field] not in raw:
            raise DataError(f"{path}: no column {names[field]!r} (given for {field}); it has {', '.join(sorted(raw))}")
        for name in (names.get(field), field, *aliases):
            if name and name in raw:
                return raw[name]
        return None

    def named(prefix: str) -> dict[str, NDArray[Any]]:
        wanted = dict.fromkeys(name for name in (*raw, *names) if name.startswith(prefix))
        found = {name.removeprefix(prefix): column(name) for name in wanted}
        return {name: values for name, values in found.items() if values is not None}

    roles = column("role", "roles", "split")
    role_texts = None if roles is None else roles.astype(np.str_)
    if role_texts is not None and (bad := sorted(set(role_texts.tolist()) - set(ROLES))):
        raise DataError(f"{path}: role {bad[0]!r} is unknown; roles are {', '.join(ROLES)}")
    fields: dict[str, Any] = {
        "labels": _label_numbers(raw, names, column("label", "labels", _INDEX), metadata, classes, path), "gate": column("gate"),
        "groups": column("group", "groups"), "ids": column("id", "ids"),
        "slices": named(_SLICE), "extra": named(_EXTRA),
    }  # fmt: skip
    try:
        if values == "probabilities":
            return from_probabilities(matrix, **fields), role_texts
        if matrix.ndim == 1:
            matrix = np.stack([np.zeros_like(matrix), matrix], axis=1)
        return Scores(logits=matrix, **fields), role_texts
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _label_numbers(
    raw: Mapping[str, Any], names: Mapping[str, str], labels: NDArray[Any] | None, metadata: Mapping[bytes, bytes],
    classes: Sequence[str] | None, path: Path,
) -> NDArray[np.int64] | None:  # fmt: skip
    """Labels as column numbers. Which class comes first is said by `classes`, never guessed."""
    if labels is None:
        return None
    name = next(name for name in (names.get("label", "label"), "label", "labels", _INDEX) if name in raw)
    if "label" not in names and name != _INDEX and _INDEX in raw:
        raise DataError(f"{path}: columns {name!r} and {_INDEX!r}; say which one with --columns label=NAME")
    if labels.ndim != 1:
        raise DataError(f"{path}: column {name!r} has the shape {labels.shape}; one label per row is expected")
    cells = labels.tolist()
    numbered = name == _INDEX or (name == "label" and metadata.items() >= _OURS.items())
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
            f"{path}: row {unknown[0]}: no label in column {name!r}" if not text else
            f"{path}: row {unknown[0]}: labels must be whole numbers 0, 1, .. or names; this one is {text!r}"
            if all(named_by_digits(word) for word in words) else
            f"{path}: labels are names ({shown}); say their order with data.classes=[{shown}] (the last of two is positive), or write 0, 1, .."
        )  # fmt: skip
    return np.array([found[text] for text in texts], dtype=np.int64)


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as .npz ({error})") from error


def _read_table(path: Path, names: Mapping[str, str]) -> tuple[dict[str, NDArray[Any]], Mapping[bytes, bytes]]:
    """The columns, and the metadata of a Parquet file."""
    import pyarrow as pa

    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(path)
        elif path.suffix in (".csv", ".tsv"):
            import pyarrow.csv

            # Labels stay text: what true, 01 and 1.0 mean is said by one rule for all formats, not by what a reader infers.
            texts = dict.fromkeys((names.get("label", "label"), "label", "labels", _INDEX), pa.string())
            table = pyarrow.csv.read_csv(
                path, parse_options=pyarrow.csv.ParseOptions(delimiter="\t" if path.suffix == ".tsv" else ","),
                convert_options=pyarrow.csv.ConvertOptions(column_types=texts),
            )  # fmt: skip
        else:
            raise DataError(f"{path}: unknown ending for scores; use .npz, .parquet, .csv or .tsv")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read as {path.suffix} ({error})") from error
    if len(set(table.column_names)) < len(table.column_names):
        twice = next(name for name in table.column_names if table.column_names.count(name) > 1)
        raise DataError(f"{path}: two columns are called {twice!r}; rename one")
    columns = {name: np.asarray(table[name].to_pylist() if table[name].null_count == 0 else _no_nulls(path, name))
               for name in table.column_names}  # fmt: skip
    return columns, table.schema.metadata or {}


def _no_nulls(path: Path, name: str) -> list[Any]:
    raise DataError(f"{path}: column {name!r} has empty cells (or NaN); fill them or drop these rows")


def _score_matrix(
    raw: Mapping[str, NDArray[Any]], names: Mapping[str, str], values: Values, path: Path
) -> NDArray[np.float64]:
    stem = "logit" if values == "logits" else "prob"
    whole = names.get("scores") or ("logits" if values == "logits" else "probabilities")
    if whole in raw:
        return _column_of_numbers(raw[whole], whole, path)
    if "scores" in names and all(part in raw for part in whole.split(",")):
        return np.stack([_column_of_numbers(raw[part], part, path) for part in whole.split(",")], axis=1)
    if "scores" in names:
        raise DataError(f"{path}: no column {whole!r}; it has {', '.join(sorted(raw))}")
    numbered = sorted((name for name in raw if name.startswith(f"{stem}_") and name[len(stem) + 1 :].isdigit()),
                      key=lambda name: int(name[len(stem) + 1 :]))  # fmt: skip
    if numbered == [f"{stem}_{index}" for index in range(len(numbered))] and len(numbered) >= 2:
        return np.stack([_column_of_numbers(raw[name], name, path) for name in numbered], axis=1)
    if numbered == [f"{stem}_1"]:
        return _column_of_numbers(raw[numbered[0]], numbered[0], path)
    raise DataError(
        f"{path}: no {values} found (looked for {whole!r} or {stem}_0, {stem}_1 ..); it has {', '.join(sorted(raw))}. "
        f"Name the column with --columns scores=NAME and say --values logits|probabilities"
    )


def _column_of_numbers(values: NDArray[Any], name: str, path: Path) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: column {name!r} does not hold numbers ({error})") from error


# ---- the tensors of a run directory ------------------------------------------------------------------------------


def write_role(folder: str | os.PathLike[str], role: str, scores: Scores) -> list[Path]:
    """Write `{role}_logits.pt`, `_labels.pt`, `_ids.json` (with groups, slices and extra signals) and, with a gate, `_gate_logits.pt`.

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
    write_text(path, json.dumps({
        "schema_version": 1, "role": role,
        "ids": None if scores.ids is None else scores.ids.tolist(),
        "groups": None if scores.groups is None else scores.groups.tolist(),
        "slices": {name: values.tolist() for name, values in scores.slices.items()},
        **({"extra": {name: values.tolist() for name, values in scores.extra.items()}} if scores.extra else {}),
    }) + "\n")  # fmt: skip
    return [*written, path]


def read_role(folder: str | os.PathLike[str], role: str) -> Scores:
    """Read what `write_role` wrote. Raises MissingError, or IntegrityError where the files do not agree."""
    torch = load("torch", "scores of a run (.pt)")

    folder = Path(folder)

    def tensor(name: str) -> NDArray[Any] | None:
        path = folder / f"{role}_{name}.pt"
        if not path.exists():
            return None
        try:
            return np.asarray(torch.load(path, weights_only=True, map_location="cpu").numpy())
        except Exception as error:  # torch raises a handful of unrelated types for a damaged file
            raise IntegrityError(
                f"{path}: cannot be read ({str(error).splitlines()[0]}); run `stage1 score` again"
            ) from error

    logits = tensor("logits")
    names = folder / f"{role}_ids.json"
    if logits is None or not names.exists():
        raise MissingError(f"{folder / f'{role}_logits.pt'}: no scores of {role}; run `stage1 score {folder}`")
    try:
        keys = json.loads(names.read_text(encoding="utf-8"))
        return Scores(logits=logits, labels=tensor("labels"), gate=tensor("gate_logits"),
                      groups=keys["groups"], ids=keys["ids"], slices=keys.get("slices", {}), extra=keys.get("extra", {}))  # fmt: skip
    except (ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{names}: does not agree with its tensors ({error}); run `stage1 score` again") from error
