"""A decision is found again, once; labels have outcomes; the store says what waits."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from stage1.errors import ConfigError, DataError, MissingError, StoreError
from stage1.store import open_store

from .made import decision, image, label


def test_what_is_recorded_is_found(store):
    events = [decision(index=0), decision(index=1, exit=False, score=None, state="VOID", reason="the model changed")]
    store.record(events)
    assert [found.event for found in store.find("r1")] == events
    assert store.pending == 0
    assert [found.event for found in store.find_image(image("r1/1"))] == events[1:]
    assert store.find("r2") == []


def test_the_same_decision_twice_is_one(store):
    store.record([decision(), decision()])
    store.record([decision()])
    assert store.flush(10)
    assert (store.counts()["decisions"], store.counts()["known"], store.counts()["conflicts"]) == (1, 2, 0)


def test_another_content_under_a_known_key_is_refused_and_kept(store):
    store.record([decision()])
    store.record([decision(label="roadwork"), decision(label="roadwork")])
    [found] = store.find("r1")
    assert found.event.label == "none"
    assert (store.counts()["decisions"], store.counts()["conflicts"]) == (1, 1)
    assert store.verify().ok


def test_a_float_comes_back_as_it_was(store):
    odd = (0.1 + 0.2, 5e-324, -0.0, 1.7976931348623157e308, 1e-17)
    store.record([decision(score=-0.0, probabilities=odd)])
    [found] = store.find("r1")
    assert found.event.probabilities == odd
    assert store.verify().ok


def test_labels_have_outcomes(store):
    store.record([decision(), decision("r2", image_digest=image("other"), image_id="photo-r1-0")])
    asked = [
        label(),
        label(at=1.77e9),
        label("none", who="ben", image_digest=image("r1/0")),
        label(request_id="r9"),
        label(image_id="photo-r1-0"),
        label(image_id="photo-r1-0", request_id="r1"),
        label(request_id="r1", image_digest=image("other")),
    ]
    outcomes = ["stored", "known", "stored", "unknown image", "ambiguous image", "known", "unknown image"]
    assert store.label(asked) == outcomes
    assert [(each.label, each.who) for each in store.find("r1")[0].labels] == [("roadwork", "ana"), ("none", "ben")]


def test_a_change_of_mind_and_back_is_three_labels_and_a_resent_one_is_none(store):
    store.record([decision()])
    events = [label("a", at=1.0), label("b", at=2.0), label("a", at=3.0)]
    assert store.label(events) == ["stored"] * 3
    assert store.label(events) == ["known"] * 3


def test_decisions_by_state_exit_and_open_audit(store):
    store.record(
        [
            decision("r1", audit=True, propensity=0.5),
            decision("r2", exit=False, state="DEGRADED"),
            decision("r3", audit=True, propensity=0.5),
        ]
    )
    assert store.label([label(request_id="r1")]) == ["stored"]

    def ids(**wanted):
        return [found.event.request_id for found in store.decisions(**wanted)]

    assert ids() == ["r1", "r2", "r3"]
    assert ids(exit=False) == ids(state="DEGRADED") == ["r2"]
    assert ids(audit_open=True) == ["r3"]
    assert ids(audit_open=False) == ["r1", "r2"]
    assert ids(after=1, limit=1) == ["r2"]
    assert ids(newest=True, limit=2) == ["r3", "r2"]
    assert ids(model="another") == []
    assert store.counts()["audits_open"] == 1


def test_many_threads_record_at_once(store):
    def work(thread):
        for number in range(20):
            store.record([decision(f"t{thread}-{number}", index) for index in range(2)])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.flush(20)
    assert store.counts()["decisions"] == 240
    assert store.verify().ok


def test_two_stores_write_to_one_database(opened, place, tmp_path):
    stores = [opened(), open_store(place, spool=tmp_path / "other")]
    for number in range(10):
        for name, each in zip("ab", stores, strict=True):
            each.record([decision(f"{name}{number}")])
    assert all(each.close() for each in stores)
    with open_store(place, record=False) as reader:
        assert reader.counts()["decisions"] == 20
        assert reader.verify().ok


def test_a_closed_store_says_so_and_a_reader_does_not_record(store, place):
    store.record([decision()])
    assert store.close()
    with pytest.raises(StoreError, match="the store is closed"):
        store.record([decision("r2")])
    with open_store(place, record=False) as reader:
        assert len(reader.find("r1")) == 1
        with pytest.raises(ConfigError, match="without a spool"):
            reader.record([decision("r2")])


@pytest.mark.parametrize(
    "place, error, words",
    [
        (":memory:", ConfigError, "needs a file"),
        ("sqlite://", ConfigError, "a file of SQLite"),
        ("mysql://root:secret@host/x", ConfigError, r"mysql://root:\*\*\*@host/x"),
        ("postgresql://a@host/x", ConfigError, "give spool=FOLDER"),
        ("://", ConfigError, "cannot be read"),
    ],
)
def test_a_place_that_can_hold_no_store(place, error, words):
    with pytest.raises(error, match=words):
        open_store(place)


def test_a_store_to_look_at_has_to_be_there(tmp_path):
    with pytest.raises(MissingError, match=r"none\.db: is not there"):
        open_store(tmp_path / "none.db", record=False)
    (tmp_path / "empty.db").touch()
    with pytest.raises(MissingError, match="holds no store"):
        open_store(tmp_path / "empty.db", record=False)


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8" * 5000)
    with pytest.raises(Exception, match="is no SQLite database") as raised:
        open_store(tmp_path / "photo.jpg", record=False)
    assert raised.value.exit_code == 5


def test_the_spool_of_another_store_is_refused(tmp_path):
    open_store(tmp_path / "a.db", spool=tmp_path / "spool").close()
    with pytest.raises(ConfigError, match="is the spool of another store"):
        open_store(tmp_path / "b.db", spool=tmp_path / "spool")


def test_a_name_with_odd_characters_is_a_name(tmp_path):
    odd = tmp_path / "a?mode=memory&b#c;'\".db"
    with open_store(odd) as store:
        store.record([decision()])
    assert odd.stat().st_size > 0
    assert odd.stat().st_mode & 0o077 == 0


def test_the_face_of_the_room_loads_no_database():
    code = "import stage1.store, stage1.cli, sys; from stage1.store import DecisionEvent, LabelEvent, ImageStore;"
    code += "print([name for name in ('sqlalchemy', 'alembic', 'psycopg') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_an_empty_deletion_reason_is_refused(store):
    with pytest.raises(DataError, match="a deletion says why"):
        store.delete(request_id="r1", who="ana", why=" ")
