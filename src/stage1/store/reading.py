"""What can be asked of a store. Erased contents are not answers; the chain alone knows of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select

from stage1.errors import IntegrityError
from stage1.store.events import DECISION_FIELDS, DecisionEvent, decision_of
from stage1.store.rows import content_of
from stage1.store.tables import chain, conflicts, decisions, deletions, head, labels

_MANY = 500


@dataclass(frozen=True, slots=True)
class StoredLabel:
    """A label as it stands. decision: seq of the decision that it was given to."""

    seq: int
    decision: int
    image_digest: str
    label: str
    who: str
    at: float
    source: str
    note: str


@dataclass(frozen=True, slots=True)
class StoredDecision:
    """A decision as it stands, with the labels of its image, oldest first (also those given to another request)."""

    seq: int
    event: DecisionEvent
    labels: tuple[StoredLabel, ...] = ()


def read_decisions(
    connection: Connection,
    *,
    after: int = 0,
    before: int | None = None,
    limit: int = 1000,
    exit: bool | None = None,
    state: str | None = None,
    audit_open: bool | None = None,
    model: str | None = None,
    newest: bool = False,
) -> list[StoredDecision]:
    """Decisions with after < seq < before, in the order of the chain; newest: the last ones, newest first.

    audit_open: True for those with an audit that is asked for and whose image has no label yet, False for all others.
    """
    conditions: list[ColumnElement[bool]] = [decisions.c.seq > after, decisions.c.salt.is_not(None)]
    if before is not None:
        conditions.append(decisions.c.seq < before)
    if exit is not None:
        conditions.append(decisions.c.exit == int(exit))
    if state is not None:
        conditions.append(decisions.c.state == state)
    if model is not None:
        conditions.append(decisions.c.model == model)
    if audit_open is not None:
        is_open = (decisions.c.audit == 1) & ~_labelled()
        conditions.append(is_open if audit_open else ~is_open)
    order = decisions.c.seq.desc() if newest else decisions.c.seq
    rows = connection.execute(select(decisions).where(*conditions).order_by(order).limit(limit)).mappings().all()
    return _with_labels(connection, rows)


def find_request(connection: Connection, request_id: str) -> list[StoredDecision]:
    """The decisions of a request, by index; [] where there are none."""
    wanted = select(decisions).where(decisions.c.request_id == request_id).order_by(decisions.c.index)
    return _with_labels(connection, connection.execute(wanted).mappings().all())


def find_image(connection: Connection, image_digest: str, limit: int = 1000) -> list[StoredDecision]:
    """The decisions about an image, newest first."""
    wanted = select(decisions).where(decisions.c.image_digest == image_digest).order_by(decisions.c.seq.desc())
    return _with_labels(connection, connection.execute(wanted.limit(limit)).mappings().all())


def read_labels(connection: Connection, *, after: int = 0, limit: int = 1000) -> list[StoredLabel]:
    """Labels with seq > after, in the order of the chain."""
    wanted = select(labels).where(labels.c.seq > after, labels.c.salt.is_not(None)).order_by(labels.c.seq)
    return [_label(row) for row in connection.execute(wanted.limit(limit)).mappings()]


def read_head(connection: Connection) -> str:
    """Digest of the last entry. Raises IntegrityError where the head is missing."""
    found = connection.execute(select(head.c.digest).where(head.c.id == 1)).scalar()
    if found is None:
        raise IntegrityError("the head of the chain is missing; `stage1 store verify` says more")
    return str(found)


def count(connection: Connection) -> dict[str, int]:
    """Numbers of what is stored: decisions, exits, each state, audits, audits_open, labels, conflicts, deletions,
    erased (decisions), entries (of the chain).
    """
    kept = decisions.c.salt.is_not(None)
    states = select(decisions.c.state, func.count()).where(kept).group_by(decisions.c.state)
    by_state = {str(state): int(n) for state, n in connection.execute(states).all()}

    def number(*conditions: Any, of: Any = decisions) -> int:
        return int(connection.execute(select(func.count()).select_from(of).where(*conditions)).scalar_one())

    return {
        "decisions": sum(by_state.values()),
        "exits": number(kept, decisions.c.exit == 1),
        **{state: int(by_state.get(state, 0)) for state in ("VALID", "DEGRADED", "VOID")},
        "audits": number(kept, decisions.c.audit == 1),
        "audits_open": number(kept, decisions.c.audit == 1, ~_labelled()),
        "labels": number(labels.c.salt.is_not(None), of=labels),
        "conflicts": number(conflicts.c.salt.is_not(None), of=conflicts),
        "deletions": number(of=deletions),
        "erased": number(decisions.c.salt.is_(None)),
        "entries": number(of=chain),
    }


def _labelled() -> ColumnElement[bool]:
    return select(labels.c.seq).where(labels.c.image_digest == decisions.c.image_digest).exists()


def _with_labels(connection: Connection, rows: Sequence[Any]) -> list[StoredDecision]:
    given = _labels_of(connection, {row["image_digest"] for row in rows})
    return [
        StoredDecision(
            row["seq"],
            decision_of(content_of("decision", {name: row[name] for name in DECISION_FIELDS})),
            tuple(given[row["image_digest"]]),
        )
        for row in rows
    ]


def _labels_of(connection: Connection, digests: Iterable[str]) -> dict[str, list[StoredLabel]]:
    given: dict[str, list[StoredLabel]] = defaultdict(list)
    wanted = list(digests)
    for start in range(0, len(wanted), _MANY):
        some = select(labels).where(labels.c.image_digest.in_(wanted[start : start + _MANY])).order_by(labels.c.seq)
        for row in connection.execute(some).mappings():
            given[row["image_digest"]].append(_label(row))
    return given


def _label(row: Any) -> StoredLabel:
    return StoredLabel(**{name: row[name] for name in StoredLabel.__dataclass_fields__})
