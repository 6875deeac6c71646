"""Read the whole chain and compare it with what is stored. What can be found, and what cannot: `chain.py`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, select

from stage1.errors import DataError
from stage1.store.chain import GENESIS, KINDS, Entry, Fault, Verification, content_digest, decision_key, entry_digest
from stage1.store.rows import content_bytes, is_erased
from stage1.store.tables import CONTENTS, chain, deletions, head

_WINDOW = 2000  # entries read at once
_MOST_FAULTS = 100


def verify_chain(connection: Connection, noted_head: str = "") -> Verification:
    """Every entry against the one before it and against its content; the head against the last; content that no entry
    names; erased content that no deletion names.

    noted_head: digest of an entry (GENESIS: of none) that was noted elsewhere, "" for none. It has to be in the chain.
    """
    faults: list[Fault] = []
    deleted = _deleted(connection)
    kinds: Counter[str] = Counter()
    last = Entry(0, "", "", "", GENESIS)
    erased, anchored = 0, noted_head == GENESIS
    for window in _windows(connection):
        contents = {kind: _contents(connection, kind, window[0].seq, window[-1].seq) for kind in KINDS}
        for entry in window:
            kinds[entry.kind] += 1
            anchored |= entry.digest == noted_head
            found = [*_link_faults(entry, last)]
            row = contents.get(entry.kind, {}).pop(entry.seq, None)
            gone = row is not None and is_erased(entry.kind, row)
            erased += gone
            found += _content_faults(entry, row, gone, deleted)
            faults += [Fault(entry.seq, what) for what in found]
            last = entry
        if len(faults) > _MOST_FAULTS:
            break
    else:
        faults += _head_faults(connection, last)
        faults += _unnamed(connection)
        if noted_head and not anchored:
            what = (
                f"no entry has the noted digest {noted_head}: entries were cut off at the end, or the chain is another"
            )
            faults.append(Fault(last.seq, what))
    faults.sort(key=lambda fault: fault.seq)
    return Verification(
        entries=sum(kinds.values()),
        head=last.digest,
        faults=tuple(faults[:_MOST_FAULTS]),
        erased=erased,
        kinds={kind: kinds[kind] for kind in KINDS},
        anchored=anchored if noted_head else None,
    )


def _windows(connection: Connection) -> Iterator[list[Entry]]:
    """The chain in the order of seq, some entries at once."""
    after = None
    while True:
        wanted = select(chain).order_by(chain.c.seq).limit(_WINDOW)
        rows = connection.execute(wanted if after is None else wanted.where(chain.c.seq > after)).all()
        if not rows:
            return
        yield [Entry(row.seq, row.kind, row.content, row.previous, row.digest) for row in rows]
        after = rows[-1].seq


def _contents(connection: Connection, kind: str, first: int, last: int) -> dict[int, Mapping[str, Any]]:
    table = CONTENTS[kind]
    rows = connection.execute(select(table).where(table.c.seq.between(first, last))).mappings()
    return {row["seq"]: dict(row) for row in rows}


def _link_faults(entry: Entry, before: Entry) -> Iterator[str]:
    if entry.seq != before.seq + 1:
        yield f"follows entry {before.seq}: {entry.seq - before.seq - 1} missing before it"
    if entry.previous != before.digest:
        yield "does not follow from the entry before it"
    if entry.digest != entry_digest(entry.seq, entry.kind, entry.content, entry.previous):
        yield "its digest is not that of its values"


def _content_faults(entry: Entry, row: Mapping[str, Any] | None, gone: bool, deleted: set[int]) -> Iterator[str]:
    if entry.kind not in KINDS:
        yield f"is of a kind that there is not: {entry.kind!r:.40}"
    elif row is None:
        yield f"its {entry.kind} is missing"
    elif gone:
        if entry.seq not in deleted:
            yield f"its {entry.kind} is empty, and no deletion names it"
    else:
        if entry.seq in deleted:
            yield f"its {entry.kind} is there, and a deletion says that it was erased"
        try:
            if content_digest(str(row["salt"]), content_bytes(entry.kind, row)) != entry.content:
                yield f"its {entry.kind} was changed"
            if entry.kind == "decision" and row["key"] != decision_key(row["request_id"], row["index"]):
                yield "its decision has the key of another one"
        except DataError as error:
            yield f"its {entry.kind} was changed: {error}"


def _head_faults(connection: Connection, last: Entry) -> Iterator[Fault]:
    rows = connection.execute(select(head.c.id, head.c.seq, head.c.digest)).all()
    if [(row.id, row.seq, row.digest) for row in rows] != [(1, last.seq, last.digest)]:
        there = f"entry {rows[0].seq}" if rows else "nothing"
        yield Fault(last.seq, f"the chain ends here, and its head names {there}: entries were cut off, or added")


def _unnamed(connection: Connection) -> Iterator[Fault]:
    """Contents without an entry of their kind."""
    for kind, table in CONTENTS.items():
        entry = select(chain.c.seq).where(chain.c.seq == table.c.seq, chain.c.kind == kind)
        for seq in connection.execute(select(table.c.seq).where(~entry.exists()).limit(_MOST_FAULTS)).scalars():
            yield Fault(seq, f"a {kind} stands in the store that the chain does not name")


def _deleted(connection: Connection) -> set[int]:
    """What deletions name. A list that cannot be read names nothing; its entry then shows as changed."""
    found: set[int] = set()
    for text in connection.execute(select(deletions.c.erased)).scalars():
        try:
            found.update(seq for seq in json.loads(text) if type(seq) is int)
        except (ValueError, TypeError):
            continue
    return found
