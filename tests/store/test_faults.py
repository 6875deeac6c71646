"""Nothing that was acknowledged is lost or doubled: kills, locks, a database that is gone, a disk that is full."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from stage1.errors import StoreAway, StoreError
from stage1.store import event_store, open_store
from stage1.store.appending import locked_tail
from stage1.store.database import Database

from .made import decision, label


def counted(place: str, spool: Path) -> Counter[tuple[str, int]]:
    """Every decision of the store, after the spool was brought to it; the chain is verified."""
    with open_store(place, spool=spool) as store:
        assert store.flush(60), store.trouble
        found = store.verify()
        assert found.ok, found.faults[:3]
        rows: Counter[tuple[str, int]] = Counter()
        after = 0
        while some := store.decisions(after=after, limit=5000):
            rows.update((each.event.request_id, each.event.index) for each in some)
            after = some[-1].seq
        assert (store.counts()["conflicts"], store.counts()["damaged"]) == (0, 0)
    return rows


def killed_at_random(place: str, spool: Path, kills: int, seed: int) -> tuple[int, int]:
    """(acknowledged, stored) decisions; asserts that none is lost and none doubled."""
    command = [sys.executable, str(Path(__file__).with_name("killing.py")), place, str(spool), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60 + 5 * kills)
    assert done.returncode == 0, done.stderr
    acknowledged = [(request_id, index) for request_id, index in json.loads(done.stdout)]
    rows = counted(place, spool)
    assert len(acknowledged) > 4 * kills, "too few to mean something"
    assert set(acknowledged) <= set(rows), "lost"
    assert set(rows.values()) == {1}, "doubled"
    # What was written and not yet acknowledged may be there: two decisions of three threads for each kill at most.
    assert len(rows) - len(acknowledged) <= 6 * kills
    return len(acknowledged), len(rows)


def test_killed_while_writing(place, tmp_path):
    killed_at_random(place, tmp_path / "spool", kills=8, seed=1)


@pytest.mark.slow
def test_killed_a_hundred_times(place, tmp_path):
    acknowledged, stored = killed_at_random(place, tmp_path / "spool", kills=100, seed=2)
    print(f"\n{place.partition(':')[0]}: 100 kills, {acknowledged} acknowledged, {stored} stored, none lost or doubled")


def test_a_locked_database_is_waited_for(store, place, monkeypatch):
    monkeypatch.setattr(event_store, "_SOON_S", 0.2)
    store.record([decision("r0")])
    assert store.flush(10)
    database = Database(place)
    with database.writing() as connection:
        locked_tail(connection)
        for number in range(1, 6):
            store.record([decision(f"r{number}")])  # returns although the lock is held until the block ends
        assert not store.flush(2.5)
        assert store.pending == 5
        assert store.trouble
        with pytest.raises(StoreAway, match="send the labels again"):
            store.label([label(request_id="r0")])
        assert len(store.find("r0")) == 1, "reading goes on"
    database.close()
    assert store.flush(20)
    assert store.trouble == ""
    assert store.counts()["decisions"] == 6
    assert store.label([label(request_id="r0")]) == ["stored"]
    assert store.verify().ok


def test_a_store_closes_while_the_database_is_locked_and_the_next_one_has_it_all(opened, place, tmp_path):
    store = opened()
    database = Database(place)
    with database.writing() as connection:
        locked_tail(connection)
        store.record([decision(f"r{number}") for number in range(5)])
        assert store.close(0.2) is False
    database.close()
    assert len(counted(place, tmp_path / "spool")) == 5


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_postgresql_goes_and_comes_back_while_decisions_arrive(server, tmp_path, how, monkeypatch):
    monkeypatch.setattr(event_store, "_SOON_S", 0.2)
    place = server.schema()
    store = open_store(place, spool=tmp_path / "spool")
    kept: list[tuple[str, int]] = []
    end = threading.Event()

    def work(thread: int) -> None:
        number = 0
        while not end.is_set():
            store.record([decision(f"{thread}-{number}")])
            kept.append((f"{thread}-{number}", 0))
            number += 1
            time.sleep(0.005)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.3)
        server.stop(how)
        before = len(kept)
        until = time.monotonic() + 20
        while len(kept) == before and time.monotonic() < until:
            time.sleep(0.1)
        assert len(kept) > before, "decisions are kept while the database is away"
        assert store.pending > 0
        with pytest.raises(StoreAway):
            store.label([label(request_id="0-0")])
    finally:
        server.start()
        end.set()
        for thread in threads:
            thread.join()
    assert store.flush(30), store.trouble
    assert store.label([label(request_id="0-0")]) == ["stored"]
    assert store.close()
    assert counted(place, tmp_path / "spool") == Counter(kept)


def test_a_database_that_is_away_at_the_start_is_an_error_that_names_it(server):
    server.stop()
    try:
        with pytest.raises(StoreAway, match=r"^postgresql\+psycopg://stage1@127\.0\.0\.1:\d+/"):
            open_store(server.schema_url("any"), record=False, wait_s=0.1)
    finally:
        server.start()


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_is_full_refuses_and_what_was_kept_arrives(small_disk):
    ballast = small_disk / "ballast"
    kept = []
    with open_store(small_disk / "a.db") as store:
        store.record([decision("r-first")])
        assert store.flush(10)
        free = os.statvfs(small_disk)
        ballast.write_bytes(b"\0" * max(0, free.f_bavail * free.f_frsize - 16384))
        with pytest.raises(StoreError, match="No space left on device"):
            fill(store, kept)
        ballast.unlink()
        store.record([decision("r-last")])
        assert store.flush(20), store.trouble
        assert store.verify().ok
    rows = counted(str(small_disk / "a.db"), small_disk / "a.db.spool")
    assert rows == Counter((request_id, 0) for request_id in ["r-first", *kept, "r-last"])


def fill(store, kept: list[str]) -> None:
    for number in range(5000):
        store.record([decision(f"r{number}")])
        kept.append(f"r{number}")


def test_a_clock_that_goes_back_moves_nothing(opened, place, tmp_path, monkeypatch):
    store = opened()
    now = iter([2e9, 1e9, 1.5e9, 0.0, -5.0])
    times = [next(now) for _ in range(5)]
    for number, at in enumerate(times):
        monkeypatch.setattr(time, "time", lambda at=at: at)
        store.record([decision(f"r{number}", received_at=at)])
        assert store.flush(10)
        assert store.label([label(at=at, request_id=f"r{number}")]) == ["stored"]
    store.delete(request_id="r0", who="ana", why="asked for")
    assert [found.event.received_at for found in store.decisions()] == times[1:]
    assert store.verify().ok
    store.close()
    assert len(counted(place, tmp_path / "spool")) == 4


def test_a_spool_that_another_program_wrote_in_is_kept_aside_and_the_rest_arrives(opened, place, tmp_path):
    from stage1.store.events import canonical, decision_content
    from stage1.store.spool import framed

    opened().close()
    lines = [framed(canonical(decision_content(decision("r1")))), framed(b'{"a":1}')]
    (tmp_path / "spool" / "1-ab.segment").write_bytes(b"".join(lines))
    store = opened()
    assert store.flush(10)
    assert len(store.find("r1")) == 1
    assert store.counts()["damaged"] == 1
    assert (tmp_path / "spool" / "1-ab.damaged").read_bytes() == b"".join(lines)


def test_a_thread_survives_what_nobody_foresaw(store, monkeypatch):
    from stage1.store import writer

    real = writer.append_decisions
    monkeypatch.setattr(writer, "append_decisions", lambda *_: 1 / 0)
    store.record([decision()])
    assert not store.flush(0.3)
    assert store.trouble == "unexpected ZeroDivisionError: division by zero"
    monkeypatch.setattr(writer, "append_decisions", real)
    assert store.flush(10)
    assert len(store.find("r1")) == 1
