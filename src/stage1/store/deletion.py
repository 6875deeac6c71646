"""Erase by id. The contents go, with their salts; the chain keeps their digests, and an entry says who, when, why."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select

from stage1.errors import DataError
from stage1.store.appending import locked_tail
from stage1.store.chain import new_salts
from stage1.store.rows import erased_values
from stage1.store.tables import CONTENTS, conflicts, decisions, labels

_MANY = 500


@dataclass(frozen=True, slots=True)
class Deleted:
    """What was erased. images: digests of the erased decisions that no decision names any more."""

    decisions: int
    labels: int
    conflicts: int
    images: tuple[str, ...]


def erase(connection: Connection, *, request_id: str, image_digest: str, who: str, why: str, at: float) -> Deleted:
    """Erase all decisions of a request, or about an image, with their labels and refused doubles.

    An image's labels go too where they were given to a decision of another request about it (by image_digest), and stay
    there otherwise (by request_id). Nothing found: nothing is written.
    Raises DataError unless one id is given.
    """
    if bool(request_id) == bool(image_digest):
        raise DataError("delete: give request_id or image_digest, one of them")
    tail = locked_tail(connection)
    meant = decisions.c.request_id == request_id if request_id else decisions.c.image_digest == image_digest
    found = connection.execute(select(decisions.c.seq, decisions.c.image_digest).where(meant)).all()
    seqs = [row.seq for row in found]
    of_labels, of_conflicts = set[int](), set[int]()
    for start in range(0, len(seqs), _MANY):
        some = seqs[start : start + _MANY]
        of_labels |= set(connection.execute(select(labels.c.seq).where(labels.c.decision.in_(some))).scalars())
        of_conflicts |= set(connection.execute(select(conflicts.c.seq).where(conflicts.c.decision.in_(some))).scalars())
    if image_digest:
        meant_labels = labels.c.image_digest == image_digest
        of_labels |= set(connection.execute(select(labels.c.seq).where(meant_labels)).scalars())
        # A refused double may be about another image than the decision that holds its key.
        meant_conflicts = conflicts.c.refused.contains(f'"image_digest":"{image_digest}"', autoescape=True)
        of_conflicts |= set(connection.execute(select(conflicts.c.seq).where(meant_conflicts)).scalars())
    erased = {"decision": seqs, "label": sorted(of_labels), "conflict": sorted(of_conflicts)}
    if not any(erased.values()):
        return Deleted(0, 0, 0, ())
    for kind, gone in erased.items():
        table = CONTENTS[kind]
        for start in range(0, len(gone), _MANY):
            meant = table.c.seq.in_(gone[start : start + _MANY])
            connection.execute(table.update().where(meant).values(erased_values(table)))
    content = {"who": who, "at": at, "why": why, "erased": sorted(seq for gone in erased.values() for seq in gone)}
    tail.add("deletion", content, new_salts(1)[0])
    tail.write(connection)
    images = _unnamed(connection, sorted({row.image_digest for row in found}))
    return Deleted(len(seqs), len(of_labels), len(of_conflicts), images)


def _unnamed(connection: Connection, digests: list[str]) -> tuple[str, ...]:
    still: set[str] = set()
    for start in range(0, len(digests), _MANY):
        some = decisions.c.image_digest.in_(digests[start : start + _MANY])
        still |= set(connection.execute(select(decisions.c.image_digest).where(some).distinct()).scalars())
    return tuple(digest for digest in digests if digest not in still)
