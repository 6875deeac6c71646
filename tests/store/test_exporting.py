"""A Parquet file holds what the store holds."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from stage1.errors import ConfigError

from .made import decision, image, label


def test_decisions_as_parquet(store, tmp_path):
    events = [decision(), decision("r2", score=None, probabilities=(), image_id="żółw.jpg", exit=False)]
    store.record([*events, decision("r3")])
    store.flush(10)
    store.delete(request_id="r3", who="ana", why="asked for")
    done = store.export(tmp_path / "decisions.parquet")
    assert done.rows == 2
    rows = pq.read_table(tmp_path / "decisions.parquet").to_pylist()
    assert [row["seq"] for row in rows] == [1, 2]
    for row, event in zip(rows, events, strict=True):
        assert {name: row[name] for name in ("request_id", "index", "image_id", "exit", "score", "received_at")} == {
            name: getattr(event, name) for name in ("request_id", "index", "image_id", "exit", "score", "received_at")
        }
        assert tuple(row["probabilities"]) == event.probabilities


def test_labels_as_parquet(store, tmp_path):
    store.record([decision()])
    store.label([label(note="clear", request_id="r1")])
    assert store.export(tmp_path / "labels.parquet", "labels").rows == 1
    [row] = pq.read_table(tmp_path / "labels.parquet").to_pylist()
    assert (row["decision"], row["image_digest"], row["label"], row["who"], row["note"]) == (
        1,
        image("r1/0"),
        "roadwork",
        "ana",
        "clear",
    )


def test_an_empty_store_gives_an_empty_table(store, tmp_path):
    assert store.export(tmp_path / "none.parquet").rows == 0
    assert pq.read_table(tmp_path / "none.parquet").num_rows == 0


def test_another_table_is_refused(store, tmp_path):
    with pytest.raises(ConfigError, match="neither decisions nor labels"):
        store.export(tmp_path / "x.parquet", "heads")
    assert not (tmp_path / "x.parquet").exists()
