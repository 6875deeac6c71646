"""The tables. They are what the migrations make (tests/store/test_migrations.py holds the two together).

Truth values are integers, 0 or 1, and lists are JSON text: what stands in a column is then read back as it stands, and
a value of another type is seen by `verify` instead of being made to fit.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, Float, Index, Integer, MetaData, SmallInteger, String, Table, Text

metadata = MetaData()
SEQ = BigInteger().with_variant(Integer, "sqlite")  # SQLite's own row number
DOUBLE = Float(53)
NAME, LONG = String(200), Text
DIGEST = String(64)

chain = Table(
    "chain",
    metadata,
    Column("seq", SEQ, primary_key=True, autoincrement=False),
    Column("kind", String(16), nullable=False),
    Column("content", DIGEST, nullable=False),
    Column("previous", DIGEST, nullable=False),
    Column("digest", DIGEST, nullable=False),
)

head = Table(
    "head",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("store", String(32), nullable=False),
    Column("seq", SEQ, nullable=False),
    Column("digest", DIGEST, nullable=False),
)
"""One row, id 1: the last entry of the chain. Locked while entries are appended, so that several processes may write.

store: the random name of this store, which its spool knows too.
"""

decisions = Table(
    "decisions",
    metadata,
    Column("seq", SEQ, primary_key=True, autoincrement=False),
    Column("key", DIGEST, nullable=False, unique=True),
    Column("salt", String(32)),
    Column("request_id", NAME),
    Column("index", Integer),
    Column("image_digest", DIGEST),
    Column("image_id", NAME),
    Column("model", NAME),
    Column("version", NAME),
    Column("bundle_digest", NAME),
    Column("policy_id", NAME),
    Column("state", String(16)),
    Column("reason", LONG),
    Column("label", NAME),
    Column("exit", SmallInteger),
    Column("score", DOUBLE),
    Column("probabilities", LONG),
    Column("latency_ms", DOUBLE),
    Column("received_at", DOUBLE),
    Column("audit", SmallInteger),
    Column("propensity", DOUBLE),
    Index("ix_decisions_request_id", "request_id"),
    Index("ix_decisions_image_digest", "image_digest"),
    Index("ix_decisions_image_id", "image_id"),
    Index("ix_decisions_audit", "audit", "seq"),
)

labels = Table(
    "labels",
    metadata,
    Column("seq", SEQ, primary_key=True, autoincrement=False),
    Column("salt", String(32)),
    Column("decision", SEQ),
    Column("request_id", NAME),
    Column("index", Integer),
    Column("image_digest", DIGEST),
    Column("image_id", NAME),
    Column("label", NAME),
    Column("who", NAME),
    Column("at", DOUBLE),
    Column("source", NAME),
    Column("note", LONG),
    Index("ix_labels_image_digest", "image_digest"),
    Index("ix_labels_decision", "decision"),
)
"""decision: seq of the decision that the label was given to."""

conflicts = Table(
    "conflicts",
    metadata,
    Column("seq", SEQ, primary_key=True, autoincrement=False),
    Column("salt", String(32)),
    Column("decision", SEQ),
    Column("refused", LONG),
    Index("ix_conflicts_decision", "decision"),
)
"""A second decision under a key that is taken, with another content. refused: its canonical JSON."""

deletions = Table(
    "deletions",
    metadata,
    Column("seq", SEQ, primary_key=True, autoincrement=False),
    Column("salt", String(32), nullable=False),
    Column("who", NAME, nullable=False),
    Column("at", DOUBLE, nullable=False),
    Column("why", LONG, nullable=False),
    Column("erased", LONG, nullable=False),
)
"""erased: JSON list of the seq of every content that was erased. The id that was asked for is not kept."""

CONTENTS = {"decision": decisions, "label": labels, "conflict": conflicts, "deletion": deletions}
