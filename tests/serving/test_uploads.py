"""Uploads that somebody damaged: each is answered or refused with a reason, none hangs, and memory stays flat."""

from __future__ import annotations

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="module")
def server(serving, bundle):
    with serving(bundle, "--workers", "1") as running:
        yield running


def originals() -> list[bytes]:
    pixels = np.random.default_rng(1).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    found = []
    for kind, options in (("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("WEBP", {}), ("TIFF", {})):
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, kind, **options)
        found.append(stream.getvalue())
    return found


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Cut, doubled, overwritten, or with bytes put in: a few of these at once."""
    mutant = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, how = rng.randrange(max(1, len(mutant))), rng.randrange(5)
        if how == 0:
            del mutant[at:]
        elif how == 1:
            mutant[at : at + rng.randint(1, 8)] = rng.randbytes(rng.randint(1, 8))
        elif how == 2:
            mutant[at:at] = mutant[: rng.randint(1, 200)]
        elif how == 3:
            # Sizes and lengths stand in the first bytes.
            mutant[rng.randrange(min(64, len(mutant) or 1)) : 1] = rng.randbytes(2)
        elif mutant:
            mutant[at % len(mutant)] ^= 1 << rng.randrange(8)
    return bytes(mutant)


def memory(server) -> float:
    """MB of the server and its workers that are resident."""
    total = 0
    for pid in (server.process.pid, *server.worker_pids()):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    return total / 1024


def upload(server, count: int, seed: int) -> dict[int, int]:
    rng, files = random.Random(seed), originals()
    statuses: dict[int, int] = {}
    for _ in range(count):
        answered = server.client.post("/v1/predict", content=mutated(rng.choice(files), rng))
        statuses[answered.status_code] = statuses.get(answered.status_code, 0) + 1
        if answered.status_code != 200:
            error = answered.json()["error"]
            assert "\n" not in error["message"]
            assert "Traceback" not in answered.text
    assert set(statuses) <= {200, 400, 413, 415, 422}, statuses
    return statuses


def test_damaged_uploads_are_answered_or_refused(server, red):
    statuses = upload(server, 150, seed=2)
    assert len(statuses) >= 3
    assert server.client.post("/v1/predict", content=red).status_code == 200
    assert "stage1_worker_deaths_total 0.0" in server.client.get("/metrics").text.splitlines()


@pytest.mark.slow
def test_ten_thousand_damaged_uploads_leave_memory_flat(server):
    upload(server, 2000, seed=3)
    before = memory(server)
    statuses = upload(server, 8000, seed=4)
    after = memory(server)
    print(f"{statuses}, {before:.0f} MB before, {after:.0f} MB after")
    assert after < before + 30
