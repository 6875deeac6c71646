"""Writes decisions and is killed (SIGKILL) at random, again and again: `python killing.py PLACE SPOOL KILLS SEED`.

A child is forked for each kill; it opens the store, and three threads record and acknowledge on a pipe. Prints a JSON
list of all that was acknowledged, as [request_id, index].
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import signal
import sys
import threading
import time

import psycopg  # noqa: F401 (imported before the fork, as all of these)
from alembic import runtime  # noqa: F401

from stage1.store import DecisionEvent, open_store
from stage1.store.migration import upgrade  # noqa: F401


def write(place: str, spool: str, life: int, pipe: int) -> None:
    store = open_store(place, spool=spool)

    def work(thread: int) -> None:
        for number in range(100_000):
            request_id = f"{life}-{thread}-{number}"
            store.record(
                [
                    DecisionEvent(
                        request_id=request_id,
                        index=index,
                        image_digest="0" * 64,
                        model="m",
                        bundle_digest="b",
                        policy_id="p",
                        state="VALID",
                        label="none",
                        exit=True,
                        score=0.5,
                        received_at=time.time(),
                    )
                    for index in range(2)
                ]
            )
            os.write(pipe, f"{request_id} 0\n{request_id} 1\n".encode())

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(place: str, spool: str, kills: int, seed: int) -> None:
    rng = random.Random(seed)
    acknowledged: list[tuple[str, int]] = []
    for life in range(kills):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            with contextlib.suppress(BaseException):
                write(place, spool, life, writing)
            os._exit(1)
        os.close(writing)
        if rng.random() < 0.75:  # else also while it opens the store
            select.select([reading], [], [], 60)
        timer = threading.Timer(rng.uniform(0.0, 0.3), os.kill, (child, signal.SIGKILL))
        timer.start()
        with open(reading, "rb") as stream:
            text = stream.read().decode()
        _, status = os.waitpid(child, 0)
        timer.join()
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        for line in text.split("\n")[:-1]:
            request_id, index = line.split(" ")
            acknowledged.append((request_id, int(index)))
    print(json.dumps(acknowledged))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
