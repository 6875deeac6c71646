"""Decisions per second through the event store into SQLite, beside plain inserts of the same rows; and verify.

    python benchmarks/store.py [--decisions 20000] [--folder DIR]

Ours: `Store.record` (synced to the spool), the thread that brings them to the database, the chain, until the last one
is in the database. Plain: Python's sqlite3, one transaction of 1,000 rows after the other, WAL, synced, one table with
one unique key, no chain, no spool, no digest. Both write to the same folder, in turns. Wall time is what a caller waits
for and moves with the disk and the load of the machine; CPU seconds are user + system of the process. Limit: 2,000 a
second with 16 decisions in a call, and with 16 threads of one each.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import platform
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

from stage1.store import DecisionEvent, open_store

LIMIT = 2000
ROWS = 1000


@dataclass(slots=True)
class Cost:
    wall: float = 0.0
    cpu: float = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    cost = Cost()
    wall, cpu = time.perf_counter(), time.process_time()
    yield cost
    cost.wall, cost.cpu = time.perf_counter() - wall, time.process_time() - cpu


def made(n: int) -> list[DecisionEvent]:
    first = DecisionEvent(
        request_id="0",
        image_digest=hashlib.sha256(b"").hexdigest(),
        image_id="camera-7/2026-12-01T08:15:00.jpg",
        model="roadwork",
        version="3",
        bundle_digest=hashlib.sha256(b"bundle").hexdigest(),
        policy_id="softmax-1",
        state="VALID",
        label="none",
        exit=True,
        score=0.87654321,
        probabilities=(0.93827, 0.06173),
        latency_ms=12.5,
        received_at=1.79e9,
    )
    return [
        replace(first, request_id=f"request-{number:08d}", image_digest=hashlib.sha256(b"%d" % number).hexdigest())
        for number in range(n)
    ]


def plain(folder: Path, events: list[DecisionEvent]) -> Cost:
    values = [[str(each) if isinstance(each, tuple) else each for each in astuple(event)] for event in events]
    rows = [(number, *some) for number, some in enumerate(values)]
    columns = ", ".join(f"c{number}" for number in range(len(rows[0])))
    connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"CREATE TABLE events ({columns}, UNIQUE (c1, c2))")
    marks = ", ".join("?" * len(rows[0]))
    with measured() as cost:
        for start in range(0, len(rows), ROWS):
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany(f"INSERT INTO events VALUES ({marks})", rows[start : start + ROWS])
            connection.execute("COMMIT")
    connection.close()
    return cost


def ours(folder: Path, events: list[DecisionEvent], threads: int, batch: int) -> tuple[Cost, list[float]]:
    waits: list[float] = []
    with open_store(folder / "ours.db") as store:

        def work(some: list[DecisionEvent]) -> None:
            for start in range(0, len(some), batch):
                began = time.perf_counter()
                store.record(some[start : start + batch])
                waits.append(time.perf_counter() - began)

        with measured() as cost:
            workers = [threading.Thread(target=work, args=(events[number::threads],)) for number in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
            assert store.flush(600)
        assert store.counts()["decisions"] == len(events)
    return cost, sorted(waits)


def verified(folder: Path, n: int) -> Cost:
    with open_store(folder / "ours.db", record=False) as store, measured() as cost:
        assert store.verify().entries == n
    return cost


def in_a_folder(place: Path | None, run: Callable[[Path], Any]) -> Any:
    folder = Path(tempfile.mkdtemp(prefix="stage1-bench-", dir=place))
    try:
        return run(folder)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--decisions", type=int, default=20000)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure (default: temporary files)")
    given = parser.parse_args()
    events = made(given.decisions)
    n = len(events)
    print(f"{platform.platform()}, Python {platform.python_version()}, SQLite {sqlite3.sqlite_version},", end=" ")
    print(f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; {n} decisions")
    print(f"{'':<34}{'per s':>9}{'CPU us each':>13}{'p50 ms':>9}{'p99 ms':>9}")
    base = in_a_folder(given.folder, lambda folder: plain(folder, events))
    print(f"{'plain inserts, 1000 at once':<34}{n / base.wall:>9.0f}{base.cpu / n * 1e6:>13.1f}")
    for name, threads, batch, limited in (
        ("16 in a call", 1, 16, True),
        ("16 threads, one in a call", 16, 1, True),
        ("one thread, one in a call", 1, 1, False),
    ):
        some = events if limited else events[: n // 10]

        def run(folder: Path, some=some, threads=threads, batch=batch) -> tuple[Cost, list[float], Cost]:
            return *ours(folder, some, threads, batch), verified(folder, len(some))

        cost, waits, check = in_a_folder(given.folder, run)
        rate = len(some) / cost.wall
        middle, high = (1e3 * waits[int(share * (len(waits) - 1))] for share in (0.5, 0.99))
        verdict = "" if not limited else "  ok" if rate >= LIMIT else f"  BELOW {LIMIT}"
        print(f"{name:<34}{rate:>9.0f}{cost.cpu / len(some) * 1e6:>13.1f}{middle:>9.2f}{high:>9.2f}{verdict}")
        if limited:
            print(
                f"{'  / plain':<34}{rate / (n / base.wall):>9.2f}{(cost.cpu / len(some)) / (base.cpu / n):>13.1f}"
                f"   verify: {len(some) / check.wall:.0f} entries a second"
            )


if __name__ == "__main__":
    main()
