"""Between a content, which is digested, and its row, which is stored: the same values, truth values as 0 and 1, lists
as JSON text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Table

from stage1.errors import DataError
from stage1.store.chain import decision_key
from stage1.store.events import DECISION_FIELDS, canonical
from stage1.store.tables import conflicts, decisions, deletions, labels

LABEL_FIELDS = tuple(column.name for column in labels.columns if column.name not in ("seq", "salt"))
CONFLICT_FIELDS = ("decision", "refused")
DELETION_FIELDS = ("who", "at", "why", "erased")
_TRUTHS = ("exit", "audit")
_LISTS = {"decision": "probabilities", "deletion": "erased"}
_FIELDS = {
    "decision": DECISION_FIELDS,
    "label": LABEL_FIELDS,
    "conflict": CONFLICT_FIELDS,
    "deletion": DELETION_FIELDS,
}
_WHOLE = ("index", "decision", *_TRUTHS)
_REAL = ("score", "latency_ms", "received_at", "propensity", "at")
_MAY_BE_NULL = ("score",)


def row_of(kind: str, seq: int, salt: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a content as it is inserted."""
    row = {"seq": seq, "salt": salt, **content}
    if kind == "decision":
        row["key"] = decision_key(content["request_id"], content["index"])
        for name in _TRUTHS:
            row[name] = int(content[name])
    if kind in _LISTS:
        row[_LISTS[kind]] = json.dumps(content[_LISTS[kind]], separators=(",", ":"))
    return row


def content_of(kind: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a row. Raises DataError naming the column whose value is of no type that was ever stored there."""
    content = {name: _checked(name, row[name]) for name in _FIELDS[kind]}
    if kind == "decision":
        for name in _TRUTHS:
            if content[name] not in (0, 1):
                raise DataError(f"{name} is {content[name]!r:.80}")
            content[name] = bool(content[name])
    if kind in _LISTS:
        name = _LISTS[kind]
        try:
            content[name] = json.loads(content[name])
        except ValueError as error:
            raise DataError(f"{name} is {content[name]!r:.80}") from error
        if json.dumps(content[name], separators=(",", ":")) != row[name]:  # else two texts would have one digest
            raise DataError(f"{name} is {row[name]!r:.80}")
    return content


def content_bytes(kind: str, row: Mapping[str, Any]) -> bytes:
    """The canonical bytes of a row's content. Raises DataError as `content_of` does."""
    try:
        return canonical(content_of(kind, row))
    except ValueError as error:  # DataError is one; so are numbers that JSON does not have
        raise DataError(f"a value that was never stored: {error}") from error


def erased_values(table: Table) -> dict[str, None]:
    """What an erasure sets: every column but the place in the chain and, of a decision, its key."""
    return {column.name: None for column in table.columns if column.name not in ("seq", "key")}


def is_erased(kind: str, row: Mapping[str, Any]) -> bool:
    """Whether a row holds nothing any more. The record of a deletion is never erased."""
    return kind != "deletion" and all(row[name] is None for name in ("salt", *_FIELDS[kind]))


def _checked(name: str, value: Any) -> Any:
    kind = int if name in _WHOLE else float if name in _REAL else str
    if type(value) is not kind and not (value is None and name in _MAY_BE_NULL):
        raise DataError(f"{name} is {value!r:.80}")
    return value


assert {column.name for column in decisions.columns} == {"seq", "key", "salt", *DECISION_FIELDS}
assert {column.name for column in conflicts.columns} == {"seq", "salt", *CONFLICT_FIELDS}
assert {column.name for column in deletions.columns} == {"seq", "salt", *DELETION_FIELDS}
