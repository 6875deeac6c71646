"""Append to the chain: decisions once, conflicts kept, labels with their outcome. Each call is part of one write
transaction, in which the head is locked first.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, select

from stage1.errors import IntegrityError
from stage1.store.chain import Entry, content_digest, decision_key, new_salts, next_entry
from stage1.store.events import LabelEvent, canonical
from stage1.store.rows import row_of
from stage1.store.tables import CONTENTS, chain, conflicts, decisions, head, labels

Outcome = Literal["stored", "known", "unknown image", "ambiguous image"]
_MANY = 500  # values in one IN (..), far below what any database allows


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of decisions. known: there before, with the same content; conflicts: with another one; erased: there
    before, and erased since.
    """

    stored: int = 0
    known: int = 0
    conflicts: int = 0
    erased: int = 0


@dataclass(slots=True)
class Tail:
    """The end of the chain while a transaction appends to it."""

    seq: int
    digest: str
    entries: list[Entry] = field(default_factory=list)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, kind: str, content: Mapping[str, Any], salt: str, *, as_bytes: bytes | None = None) -> int:
        """Append a content; returns its seq. as_bytes: its canonical bytes, where they are at hand."""
        digest = content_digest(salt, canonical(content) if as_bytes is None else as_bytes)
        entry = next_entry(self.seq + 1, kind, digest, self.digest)
        self.seq, self.digest = entry.seq, entry.digest
        self.entries.append(entry)
        self.rows.setdefault(kind, []).append(row_of(kind, entry.seq, salt, content))
        return entry.seq

    def write(self, connection: Connection) -> None:
        """Insert what was added, and move the head."""
        if not self.entries:
            return
        links = [
            {
                "seq": link.seq,
                "kind": link.kind,
                "content": link.content,
                "previous": link.previous,
                "digest": link.digest,
            }
            for link in self.entries
        ]
        connection.execute(chain.insert(), links)
        for kind, rows in self.rows.items():
            connection.execute(CONTENTS[kind].insert(), rows)
        connection.execute(head.update().where(head.c.id == 1).values(seq=self.seq, digest=self.digest))


def locked_tail(connection: Connection) -> Tail:
    """The end of the chain, held until the transaction ends. Raises IntegrityError where the head is missing."""
    row = connection.execute(select(head.c.seq, head.c.digest).where(head.c.id == 1).with_for_update()).first()
    if row is None:
        raise IntegrityError("the head of the chain is missing; `stage1 store verify` says more")
    return Tail(int(row.seq), str(row.digest))


def append_decisions(connection: Connection, contents: Sequence[bytes]) -> Appended:
    """Append decisions, given as canonical bytes, each key once."""
    tail = locked_tail(connection)
    parsed = [json.loads(each) for each in contents]
    keys = [decision_key(each["request_id"], each["index"]) for each in parsed]
    there = dict(_stored(connection, keys))
    refused = _refused(connection, [found.seq for found in there.values()])
    stored = known = erased = clashes = 0
    for content, as_bytes, key, salt in zip(parsed, contents, keys, new_salts(len(keys)), strict=True):
        if (found := there.get(key)) is None:
            seq = tail.add("decision", content, salt, as_bytes=as_bytes)
            there[key] = _Known(seq, salt, tail.entries[-1].content)
            stored += 1
        elif found.salt is None:
            erased += 1
        elif content_digest(found.salt, as_bytes) == found.content:
            known += 1
        else:
            text = as_bytes.decode("ascii")
            if (found.seq, text) not in refused:  # sent again, a refused one is one refused
                refused.add((found.seq, text))
                tail.add("conflict", {"decision": found.seq, "refused": text}, salt)
            clashes += 1
    tail.write(connection)
    return Appended(stored, known, clashes, erased)


def append_labels(connection: Connection, events: Sequence[LabelEvent]) -> list[Outcome]:
    """Append labels; one outcome each.

    known: the last label of this person for this image is the same one, or this very event is there. A change of mind
    and back (a, b, a) is three labels.
    """
    tail = locked_tail(connection)
    outcomes: list[Outcome] = []
    given: dict[tuple[str, str], list[tuple[str, float]]] = {}
    for event, salt in zip(events, new_salts(len(events)), strict=True):
        found = (
            connection.execute(
                select(
                    decisions.c.seq,
                    decisions.c.request_id,
                    decisions.c.index,
                    decisions.c.image_digest,
                    decisions.c.image_id,
                )
                .where(*_meant(event))
                .order_by(decisions.c.seq.desc())
                .limit(1)
            )
            .mappings()
            .first()
        )
        if found is None:
            outcomes.append("unknown image")
            continue
        if not event.request_id and not event.image_digest and _several(connection, event, found["image_digest"]):
            outcomes.append("ambiguous image")
            continue
        person = (event.who, found["image_digest"])
        if person not in given:
            given[person] = _given(connection, *person)
        before = given[person]
        if (before and before[-1][0] == event.label) or (event.label, event.at) in before:
            outcomes.append("known")
            continue
        before.append((event.label, event.at))
        content = {"decision": found["seq"]} | {name: found[name] for name in found if name != "seq"}
        content |= {name: getattr(event, name) for name in ("label", "who", "at", "source", "note")}
        tail.add("label", content, salt)
        outcomes.append("stored")
    tail.write(connection)
    return outcomes


@dataclass(frozen=True, slots=True)
class _Known:
    seq: int
    salt: str | None
    content: str


def _stored(connection: Connection, keys: list[str]) -> Iterator[tuple[str, _Known]]:
    wanted = select(decisions.c.key, decisions.c.seq, decisions.c.salt, chain.c.content).join(
        chain, chain.c.seq == decisions.c.seq
    )
    for start in range(0, len(keys), _MANY):
        for row in connection.execute(wanted.where(decisions.c.key.in_(keys[start : start + _MANY]))):
            yield row.key, _Known(row.seq, row.salt, row.content)


def _refused(connection: Connection, of: list[int]) -> set[tuple[int, str]]:
    found: set[tuple[int, str]] = set()
    for start in range(0, len(of), _MANY):
        wanted = select(conflicts.c.decision, conflicts.c.refused)
        rows = connection.execute(wanted.where(conflicts.c.decision.in_(of[start : start + _MANY])))
        found |= {(row.decision, row.refused) for row in rows}
    return found


def _meant(event: LabelEvent) -> list[ColumnElement[bool]]:
    conditions = []
    if event.request_id:
        conditions += [decisions.c.request_id == event.request_id, decisions.c.index == event.index]
    if event.image_digest:
        conditions.append(decisions.c.image_digest == event.image_digest)
    if event.image_id:
        conditions.append(decisions.c.image_id == event.image_id)
    return conditions


def _several(connection: Connection, event: LabelEvent, digest: str) -> bool:
    """Whether the client's name stands for another image too."""
    wanted = select(decisions.c.seq).where(*_meant(event), decisions.c.image_digest != digest).limit(1)
    return connection.execute(wanted).first() is not None


def _given(connection: Connection, who: str, digest: str) -> list[tuple[str, float]]:
    wanted = select(labels.c.label, labels.c.at).where(labels.c.image_digest == digest, labels.c.who == who)
    return [(row.label, row.at) for row in connection.execute(wanted.order_by(labels.c.seq))]
