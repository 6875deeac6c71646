"""Decisions and labels as Parquet files, for whatever reads tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Connection, select

from stage1.errors import ConfigError
from stage1.storage.files import atomic_writer
from stage1.store.events import DECISION_FIELDS
from stage1.store.rows import LABEL_FIELDS, content_of
from stage1.store.tables import CONTENTS

What = Literal["decisions", "labels"]
_ROWS = 5000
_TYPES = {"seq": pa.int64(), "decision": pa.int64(), "index": pa.int32(), "probabilities": pa.list_(pa.float64())}
_TYPES |= dict.fromkeys(("exit", "audit"), pa.bool_())
_TYPES |= dict.fromkeys(("score", "latency_ms", "received_at", "propensity", "at"), pa.float64())
_TABLES = {"decisions": ("decision", DECISION_FIELDS), "labels": ("label", LABEL_FIELDS)}


@dataclass(frozen=True, slots=True)
class Exported:
    """How many rows a file got."""

    rows: int
    path: Path


def export_table(connection: Connection, path: Path, what: What) -> Exported:
    """Write what is stored and not erased, in the order of the chain. Raises ConfigError for another `what`."""
    if what not in _TABLES:
        raise ConfigError(f"--what {what}: is neither decisions nor labels")
    kind, fields = _TABLES[what]
    schema = pa.schema([(name, _TYPES.get(name, pa.string())) for name in ("seq", *fields)])
    rows = 0
    with atomic_writer(path) as stream, pq.ParquetWriter(stream, schema) as writer:
        for batch in _batches(connection, kind):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            rows += len(batch)
    return Exported(rows, path)


def _batches(connection: Connection, kind: str) -> Iterator[list[dict[str, Any]]]:
    table = CONTENTS[kind]
    after = 0
    while True:
        wanted = select(table).where(table.c.seq > after, table.c.salt.is_not(None)).order_by(table.c.seq).limit(_ROWS)
        found = connection.execute(wanted).mappings().all()
        if not found:
            return
        yield [{"seq": row["seq"], **content_of(kind, dict(row))} for row in found]
        after = found[-1]["seq"]
