"""The first tables: the chain and its head, decisions, labels, conflicts, deletions."""

from __future__ import annotations

import secrets

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_SEQ = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_DIGEST, _NAME, _SALT = sa.String(64), sa.String(200), sa.String(32)


def upgrade() -> None:
    op.create_table(
        "chain",
        sa.Column("seq", _SEQ, primary_key=True, autoincrement=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("content", _DIGEST, nullable=False),
        sa.Column("previous", _DIGEST, nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
    )
    head = op.create_table(
        "head",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("store", sa.String(32), nullable=False),
        sa.Column("seq", _SEQ, nullable=False),
        sa.Column("digest", _DIGEST, nullable=False),
    )
    op.bulk_insert(head, [{"id": 1, "store": secrets.token_hex(16), "seq": 0, "digest": "0" * 64}])
    op.create_table(
        "decisions",
        sa.Column("seq", _SEQ, primary_key=True, autoincrement=False),
        sa.Column("key", _DIGEST, nullable=False, unique=True),
        sa.Column("salt", _SALT),
        sa.Column("request_id", _NAME),
        sa.Column("index", sa.Integer),
        sa.Column("image_digest", _DIGEST),
        sa.Column("image_id", _NAME),
        sa.Column("model", _NAME),
        sa.Column("version", _NAME),
        sa.Column("bundle_digest", _NAME),
        sa.Column("policy_id", _NAME),
        sa.Column("state", sa.String(16)),
        sa.Column("reason", sa.Text),
        sa.Column("label", _NAME),
        sa.Column("exit", sa.SmallInteger),
        sa.Column("score", sa.Float(53)),
        sa.Column("probabilities", sa.Text),
        sa.Column("latency_ms", sa.Float(53)),
        sa.Column("received_at", sa.Float(53)),
        sa.Column("audit", sa.SmallInteger),
        sa.Column("propensity", sa.Float(53)),
    )
    for name in ("request_id", "image_digest", "image_id"):
        op.create_index(f"ix_decisions_{name}", "decisions", [name])
    op.create_index("ix_decisions_audit", "decisions", ["audit", "seq"])
    op.create_table(
        "labels",
        sa.Column("seq", _SEQ, primary_key=True, autoincrement=False),
        sa.Column("salt", _SALT),
        sa.Column("decision", _SEQ),
        sa.Column("request_id", _NAME),
        sa.Column("index", sa.Integer),
        sa.Column("image_digest", _DIGEST),
        sa.Column("image_id", _NAME),
        sa.Column("label", _NAME),
        sa.Column("who", _NAME),
        sa.Column("at", sa.Float(53)),
        sa.Column("source", _NAME),
        sa.Column("note", sa.Text),
    )
    for name in ("image_digest", "decision"):
        op.create_index(f"ix_labels_{name}", "labels", [name])
    op.create_table(
        "conflicts",
        sa.Column("seq", _SEQ, primary_key=True, autoincrement=False),
        sa.Column("salt", _SALT),
        sa.Column("decision", _SEQ),
        sa.Column("refused", sa.Text),
    )
    op.create_index("ix_conflicts_decision", "conflicts", ["decision"])
    op.create_table(
        "deletions",
        sa.Column("seq", _SEQ, primary_key=True, autoincrement=False),
        sa.Column("salt", _SALT, nullable=False),
        sa.Column("who", _NAME, nullable=False),
        sa.Column("at", sa.Float(53), nullable=False),
        sa.Column("why", sa.Text, nullable=False),
        sa.Column("erased", sa.Text, nullable=False),
    )
