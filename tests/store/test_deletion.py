"""Erased is gone from every place, the chain stays true, and what was erased does not come back."""

from __future__ import annotations

import pytest

from stage1.errors import DataError
from stage1.store import open_store

from .made import decision, image, label


def test_a_request_is_erased_with_its_labels_and_refused_doubles(store):
    store.record([decision(index=0), decision(index=1), decision("r2")])
    store.record([decision(label="roadwork")])
    store.label([label(), label(request_id="r2")])
    deleted = store.delete(request_id="r1", who="ana", why="asked for")
    assert (deleted.decisions, deleted.labels, deleted.conflicts) == (2, 1, 1)
    assert deleted.images == (*sorted([image("r1/0"), image("r1/1")]),)
    assert store.find("r1") == []
    assert len(store.find("r2")) == 1
    found = store.verify()
    assert (found.ok, found.erased, found.kinds["deletion"]) == (True, 4, 1)
    assert store.counts()["erased"] == 2


def test_an_image_is_erased_wherever_it_was_sent(store):
    same = image("the same")
    store.record([decision("r1", image_digest=same), decision("r2", image_digest=same), decision("r3")])
    store.record([decision("r3", image_digest=same)])  # refused: r3 is taken, and its double is about the image
    store.label([label(image_digest=same)])
    deleted = store.delete(image_digest=same, who="ana", why="asked for")
    assert (deleted.decisions, deleted.labels, deleted.conflicts, deleted.images) == (2, 1, 1, (same,))
    assert store.find_image(same) == []
    assert store.verify().ok


def test_an_image_that_another_request_has_too_is_not_to_be_removed(store):
    same = image("the same")
    store.record([decision("r1", image_digest=same), decision("r2", image_digest=same)])
    assert store.delete(request_id="r1", who="ana", why="asked for").images == ()


def test_an_erased_decision_does_not_come_back(store):
    store.record([decision()])
    store.delete(request_id="r1", who="ana", why="asked for")
    store.record([decision()])  # as a spool would bring it again that a crash left behind
    assert store.flush(10)
    assert store.find("r1") == []
    assert store.counts()["decisions"] == 0
    assert store.verify().ok


def test_nothing_found_writes_nothing(store):
    assert store.delete(request_id="r1' OR '1'='1", who="ana", why="asked for").decisions == 0
    assert store.verify().entries == 0


@pytest.mark.parametrize("ids", [{}, {"request_id": "r1", "image_digest": image("a")}])
def test_one_id_is_needed(store, ids):
    with pytest.raises(DataError, match="request_id or image_digest, one of them"):
        store.delete(who="ana", why="asked for", **ids)


def test_no_byte_of_what_was_erased_is_left_in_the_files(tmp_path):
    secret = "licence-plate-B-MW-4711"
    with open_store(tmp_path / "a.db") as store:
        store.record([decision("r0"), decision(image_id=secret, reason=secret), decision("r2")])
        store.label([label(note=secret, request_id="r1")])
        assert any(secret.encode() in path.read_bytes() for path in tmp_path.glob("a.db*") if path.is_file())
        store.delete(request_id="r1", who="ana", why="asked for")
        for path in [*tmp_path.glob("a.db*"), *(tmp_path / "a.db.spool").iterdir()]:
            assert path.is_dir() or secret.encode() not in path.read_bytes(), path
        assert store.verify().ok
