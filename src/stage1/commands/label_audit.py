"""audit-labels: suspects among the labels of train and val_select, for a person; corrections back into a table.

val_calib and val_test are never audited. Which labels are reviewed would depend on what a model believes of them:
corrected only where a model disagrees, they would flatter every model like it, and the certificate counts on labels
that no model chose.
"""

from __future__ import annotations

import csv
import io
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from typing_extensions import TypedDict

from stage1.data.table import SampleTable
from stage1.errors import ConfigError, DataError, MissingError, SourceChanged
from stage1.evaluation.label_errors import FOLDS, NEIGHBOURS, LabelErrors, find_label_errors
from stage1.runs.directory import stored_config
from stage1.runs.schema import FEATURES_KIND
from stage1.runtime.images import thumbnail
from stage1.scores.labels import normal_form, place_labels
from stage1.storage.cells import plain_cell, text_cell
from stage1.storage.documents import Document, DocumentKind, read_document, write_document
from stage1.storage.fields import Count, Digest, PositiveInt, Share, Text
from stage1.storage.files import write_text

AUDITED = ("train", "val_select")
FOLDER = "label_audit"
COLUMNS = ("id", "path", "label", "suggested", "probability", "reason", "new_label")
_THUMBNAIL_SIDE = 240


class SwappedLabels(TypedDict):
    """How many images of class `label` may be of class `suggested`."""

    label: Text
    suggested: Text
    count: Count


class WrongLabels(TypedDict):
    """How many labels may be wrong: confident learning's count, an estimate."""

    total: Count
    pairs: list[SwappedLabels]


class Suspect(TypedDict):
    """One image whose label is doubted."""

    id: Digest
    path: Text
    role: Literal["train", "val_select"]
    label: Text
    suggested: Text
    probability: Share
    """Of the given label, cross-fitted."""
    confident: bool
    """Counted by confident learning."""
    neighbours: dict[str, Count]
    """Labels of the nearest images of other groups."""
    reason: Text


class LabelAuditDocument(Document):
    """Labels of train and val_select that a cross-fitted probe doubts."""

    run: Text
    roles: list[Literal["train", "val_select"]]
    classes: Annotated[list[Text], Field(min_length=2)]
    n: PositiveInt
    n_groups: PositiveInt
    folds: PositiveInt
    neighbours: PositiveInt
    ridge: float
    seed: int
    nll: float
    accuracy: Share
    """Agreement of the cross-fitted probe with the labels as given."""
    estimated: WrongLabels
    suspects: list[Suspect]
    """Most doubtful first."""


LABEL_AUDIT_KIND = DocumentKind("label_audit", LabelAuditDocument)


def audit_labels(run: Path, output: Path | None = None, *, top: int = 100, seed: int = 0) -> dict[str, Any]:
    """Rank the labels of train and val_select by how little a probe that did not see them believes them.

    Writes into `output` (default RUN/label_audit): labels.csv with the `top` suspects and an empty column new_label,
    contact_sheet.html with their pictures, label_audit.json (the document that is returned, of kind "label_audit").
    Raises MissingError (no run, no cached features), ConfigError (top < 1; labels.csv there holds new labels that would
    be lost), DataError (too few groups), SourceChanged (an image that cannot be read any more).
    """
    if top < 1:
        raise ConfigError(f"--top {top}: at least 1")
    _require_run(run)
    folder = output or run / FOLDER
    _keep_new_labels(folder / "labels.csv")
    table = SampleTable.read(run / "samples.parquet")
    rows = np.concatenate([table.rows(role) for role in AUDITED])
    found = find_label_errors(
        _features(run, table, rows), table.labels[rows], table.groups[rows], n_classes=len(table.classes), seed=seed
    )
    suspects = _suspects(table, rows, found, top)
    given, suggested = table.labels[rows][found.confident], found.probabilities.argmax(axis=1)[found.confident]
    document = {
        "run": run.resolve().name,
        "roles": list(AUDITED),
        "classes": list(table.classes),
        "n": len(rows),
        "n_groups": len(np.unique(table.groups[rows])),
        "folds": FOLDS,
        "neighbours": NEIGHBOURS,
        "ridge": found.ridge,
        "seed": seed,
        "nll": found.nll,
        "accuracy": found.accuracy,
        "estimated": {
            "total": int(found.confident.sum()),
            "pairs": [
                {
                    "label": table.classes[a],
                    "suggested": table.classes[b],
                    "count": int(((given == a) & (suggested == b)).sum()),
                }
                for a in range(len(table.classes))
                for b in range(len(table.classes))
                if a != b
            ],
        },
        "suspects": suspects,
    }
    from stage1.report.contact_sheet import contact_sheet

    row_of = {name: row for row, name in zip(rows.tolist(), table.ids[rows].tolist(), strict=True)}
    page = contact_sheet(document, [_picture(table, row_of[item["id"]]) for item in suspects])
    folder.mkdir(parents=True, exist_ok=True)
    write_document(folder / "label_audit.json", document, LABEL_AUDIT_KIND)
    write_text(folder / "contact_sheet.html", page)
    paths = [str(table.paths[row_of[item["id"]]]) for item in suspects]
    write_text(
        folder / "labels.csv",
        _csv(
            COLUMNS,
            [
                [
                    item["id"],
                    *map(text_cell, (path, item["label"], item["suggested"])),
                    f"{item['probability']:.6g}",
                    item["reason"],
                    "",
                ]
                for item, path in zip(suspects, paths, strict=True)
            ],
        ),
    )
    return read_document(folder / "label_audit.json", LABEL_AUDIT_KIND)


def apply_labels(run: Path, file: Path, output: Path | None = None) -> dict[str, Any]:
    """A table of the run's images with the labels of `file` where its column new_label is filled; the source stays.

    file: labels.csv of `audit_labels`, edited. output: the CSV to write (default RUN/label_audit/corrected.csv),
    readable by data.table: image, label, group, source, timestamp, role and the slices; roles are kept, so that runs
    before and after have the same split. Returns {"table", "changed", "confirmed", "open", "n", "next"}: rows with
    another label, with the same, with none given, images in all, and the command that trains on it.
    Raises DataError naming the line: an unknown id, a label that is no class, a label that is no longer the run's,
    another label for an image given twice, an image of val_calib or val_test. MissingError where there is no run or no
    file.
    """
    config = _require_run(run)
    table = SampleTable.read(run / "samples.parquet")
    wanted, still_open = _new_labels(file, table)
    labels, confirmed, changed = table.labels.copy(), 0, 0
    for row, name in enumerate(table.ids.tolist()):
        new = wanted.get(name)
        if new is None:
            continue
        confirmed += int(new == labels[row])
        changed += int(new != labels[row])
        labels[row] = new
    target = output or run / FOLDER / "corrected.csv"
    if target.suffix.lower() != ".csv":
        raise ConfigError(f"--output {target}: with --apply, the name of a .csv file to write")
    if target.resolve() in (file.resolve(), _source(config)):
        raise ConfigError(
            f"--output {target}: would overwrite what the labels came from; nothing is changed in place, give another"
            " name"
        )
    header = ["image", "label", "group", "source", "timestamp", "role", *table.slices]
    columns: list[Sequence[str]] = [
        table.paths.tolist(),
        [table.classes[label] for label in labels.tolist()],
        table.groups.tolist(),
        table.sources.tolist(),
        table.timestamps.tolist(),
        table.roles.tolist(),
        *(values.tolist() for values in table.slices.values()),
    ]
    write_text(target, _csv(header, list(zip(*columns, strict=True))))
    overrides = ["data.source=table", f"data.table={target}", f"data.classes=[{', '.join(table.classes)}]"]
    overrides += ["data.role_tables={}"] if config.data.role_tables else []
    overrides += ["data.roles={}"] if config.data.roles else []  # the table that is written has the roles themselves
    command = ["stage1", "run", str(run / "config.yaml"), *overrides, "--output", f"{run}-relabelled"]
    return {
        "table": str(target),
        "changed": changed,
        "confirmed": confirmed,
        "open": still_open,
        "n": len(table),
        "next": shlex.join(command),
    }


def audit_lines(document: Mapping[str, Any], folder: Path) -> list[str]:
    """What the command prints."""
    pairs = ", ".join(
        f"{pair['count']} {pair['label']} -> {pair['suggested']}"
        for pair in document["estimated"]["pairs"]
        if pair["count"]
    )
    return [
        (
            f"{document['n']} labels of {' and '.join(document['roles'])} in {document['n_groups']} groups; the probe"
            f" agrees with {document['accuracy']:.1%}"
        ),
        (
            f"about {document['estimated']['total']} may be wrong{f' ({pairs})' if pairs else ''}: an estimate, not a"
            " bound"
        ),
        *(
            f"{place:>4}  {item['label']} -> {item['suggested']}?  {item['path']}  {item['reason']}"
            for place, item in enumerate(document["suspects"][:5], 1)
        ),
        *(["      ..."] if len(document["suspects"]) > 5 else []),
        (
            f"look: {folder / 'contact_sheet.html'}   fill in new_label: {folder / 'labels.csv'}   then: --apply"
            f" {folder / 'labels.csv'}"
        ),
    ]


def applied_lines(found: Mapping[str, Any]) -> list[str]:
    return [
        (
            f"{found['changed']} labels changed, {found['confirmed']} confirmed, {found['open']} left open, of"
            f" {found['n']} images"
        ),
        f"table  {found['table']}",
        f"next   {found['next']}",
    ]


# ---- the suspects ------------------------------------------------------------------------------------------------


def _require_run(run: Path) -> Any:
    config = stored_config(run)
    if config is None:
        raise MissingError(f"{run}: not a run directory; `stage1 run --output {run}` starts one")
    return config


def _features(run: Path, table: SampleTable, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    from stage1.features.store import FeatureKey, FeatureStore

    document = read_document(run / "features.json", FEATURES_KIND)
    folder = Path(document["store"] or run / "features")
    if not folder.is_dir():
        raise MissingError(f"{folder}: no cached features; run `stage1 extract {run}`")
    return FeatureStore(folder).read(table.ids[rows], FeatureKey(**document["key"]))


def _suspects(table: SampleTable, rows: NDArray[np.int64], found: LabelErrors, top: int) -> list[dict[str, Any]]:
    labels = table.labels[rows]
    root = os.path.commonpath([os.path.dirname(path) for path in table.paths.tolist()])
    suspects = []
    for place in found.ranked[:top].tolist():
        given, suggested = int(labels[place]), int(found.suggested[place])
        near = found.neighbours[place][found.neighbours[place] >= 0]
        votes = {name: int((labels[near] == index).sum()) for index, name in enumerate(table.classes)}
        suspects.append(
            {
                "id": str(table.ids[rows[place]]),
                # Below the folder that all images share: their place on this machine is not published.
                "path": os.path.relpath(table.paths[rows[place]], root),
                "role": str(table.roles[rows[place]]),
                "label": table.classes[given],
                "suggested": table.classes[suggested],
                "probability": float(found.score[place]),
                "confident": bool(found.confident[place]),
                "neighbours": votes,
                "reason": _reason(table.classes[given], float(found.score[place]), votes, len(near)),
            }
        )
    return suspects


def _reason(label: str, probability: float, votes: Mapping[str, int], near: int) -> str:
    share = f"{100 * probability:.2g} %"
    text = f"p({label}) {share} by a probe that did not see it"
    if near:
        others = max((name for name in votes if name != label), key=lambda name: votes[name])
        text += f"; of the {near} nearest images of other groups {votes[label]} are {label}, {votes[others]} {others}"
    return text


def _picture(table: SampleTable, row: int) -> bytes:
    try:
        return thumbnail(table.read_bytes(row), _THUMBNAIL_SIDE)
    except OSError as error:
        raise SourceChanged(
            f"{table.paths[row]}: could be read at the split and cannot now ({error.strerror or error}); restore it, or"
            " run `stage1 split` again"
        ) from error


# ---- and back ----------------------------------------------------------------------------------------------------


def _keep_new_labels(path: Path) -> None:
    if not path.is_file():
        return
    filled = sum(bool((row.get("new_label") or "").strip()) for _, row in _rows(path))
    if filled:
        raise ConfigError(
            f"{path}: holds {filled} new labels that would be lost; use them with --apply {path}, or give another"
            " --output"
        )


def _rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """(line number, row) of a CSV file with a header."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            found = [
                (
                    reader.line_num,
                    {key: plain_cell(cell) if isinstance(cell, str) else cell for key, cell in row.items()},
                )
                for row in reader
            ]
            names = reader.fieldnames or []
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file; `stage1 audit-labels RUN` writes one") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as CSV in UTF-8 ({error})") from error
    if absent := [name for name in ("id", "label", "new_label") if name not in names]:
        raise DataError(f"{path}: no column {absent[0]!r}; it has {', '.join(names) or 'none'}")
    return found


def _new_labels(file: Path, table: SampleTable) -> tuple[dict[str, int], int]:
    """id -> new class, and how many rows have none."""
    rows = _rows(file)
    classes = place_labels(
        [(cells.get("new_label") or "").strip() for _, cells in rows], table.classes, positions=False
    )
    places: dict[str, list[int]] = {}
    for row, name in enumerate(table.ids.tolist()):
        places.setdefault(name, []).append(row)
    wanted: dict[str, int] = {}
    still_open = 0
    for line, cells in rows:
        name, old, new = ((cells.get(key) or "").strip() for key in ("id", "label", "new_label"))
        if not new:
            still_open += 1
            continue
        where = f"{file}: line {line}"
        if name not in places:
            raise DataError(f"{where}: no image {name[:16]!r} in this run; labels.csv must be of the same run")
        if new not in classes:
            raise DataError(
                f"{where}: new_label {new!r} is no class; use {', '.join(table.classes)}, or leave it empty"
            )
        for row in places[name]:
            if table.roles[row] not in AUDITED:
                raise DataError(
                    f"{where}: this image is in {table.roles[row]}, whose labels no model may pick for a second look;"
                    " correct such labels in the source, all or a random sample of them, and split anew"
                )
            if normal_form(table.classes[table.labels[row]]) != normal_form(old):
                raise DataError(
                    f"{where}: label was {old!r}, in this run it is {table.classes[table.labels[row]]!r}; audit the run"
                    " again"
                )
        if wanted.setdefault(name, classes[new]) != classes[new]:
            raise DataError(f"{where}: image {name[:16]} has two different new labels; keep one")
    return wanted, still_open


def _source(config: Any) -> Path | None:
    return None if config.data.table is None else Path(config.data.table).expanduser().resolve()


def _csv(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()
