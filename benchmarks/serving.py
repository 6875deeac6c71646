"""`stage1 serve` against the bare loop of decode and session on the same images, and under three times what it takes.

    python benchmarks/serving.py [--bundle BUNDLE] [--images 400] [--seconds 60] [--rounds 3]

The bare loop: a process per core, each decodes and runs batches of eight through the same model with the same options,
and nothing else. Served: the same images over loopback from another process, one a request and eight a request.
CPU seconds are those of the server and its workers, without the load's: on a machine that does other things they are
what can be compared. Wall seconds stand beside them, and hold the load's own work too.
Overload: requests of one image arrive at three times the measured rate, whether answers come or not.
Without --bundle a small run makes one at 224 px on the embedded backbone.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import multiprocessing
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

DEADLINE_MS = 1000
CONNECTIONS = 16


def small_bundle(folder: Path) -> Path:
    run = [sys.executable, "-m", "stage1.cli", "run", "--recipe", "smoke", "backbone.input_size=224", "--quiet"]
    subprocess.run([*run, "--output", str(folder / "run")], check=True, stdout=subprocess.DEVNULL)
    return folder / "run" / "bundle"


def photos(count: int, width: int = 640, height: int = 480) -> list[bytes]:
    """JPEGs of smooth noise: about as large and as slow to decode as photos of this size."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((width, height), 3)
        pixels = np.clip(np.asarray(coarse) + rng.normal(0, 6, (height, width, 3)), 0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "JPEG", quality=88)
        found.append(stream.getvalue())
    return found


# ---- the bare loop -----------------------------------------------------------------------------------------------


def bare(folder: Path, files: list[bytes], batch: int, ready: Any, go: Any, told: Any) -> None:
    """Decode and run; tells (seconds of wall, of CPU, of each batch)."""
    import onnxruntime as ort

    from stage1.bundle import read_manifest
    from stage1.runtime.images import decode
    from stage1.runtime.preprocessing import Preprocessing, to_tensor

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.use_deterministic_compute = True
    session = ort.InferenceSession(str(folder / "model.onnx"), options, providers=["CPUExecutionProvider"])
    spec = Preprocessing.from_json(read_manifest(folder)["preprocessing"])
    name = session.get_inputs()[0].name
    session.run(None, {name: to_tensor(decode(files[0]), spec)[None]})
    ready.release()
    go.wait()
    each, began, cpu = [], time.perf_counter(), time.process_time()
    for start in range(0, len(files), batch):
        at = time.perf_counter()
        tensors = np.stack([to_tensor(decode(data), spec) for data in files[start : start + batch]])
        for part in range(0, len(tensors), 4):
            session.run(None, {name: tensors[part : part + 4]})
        each.append(time.perf_counter() - at)
    told.put((time.perf_counter() - began, time.process_time() - cpu, each))


@dataclass(frozen=True, slots=True)
class Cost:
    """Of a number of images: wall and CPU seconds, and seconds of each call."""

    images: int
    wall: float
    cpu: float
    calls: list[float]

    @property
    def cpu_ms(self) -> float:
        return 1000 * self.cpu / self.images


def bare_cost(folder: Path, files: list[bytes], *, batch: int, processes: int) -> Cost:
    context = multiprocessing.get_context("spawn")
    ready, go, told = context.Semaphore(0), context.Event(), context.SimpleQueue()
    parts = [files[start::processes] for start in range(processes)]
    workers = [context.Process(target=bare, args=(folder, part, batch, ready, go, told)) for part in parts]
    for worker in workers:
        worker.start()
    for _ in workers:
        ready.acquire()
    began = time.perf_counter()
    go.set()
    found = [told.get() for _ in workers]
    wall = time.perf_counter() - began
    for worker in workers:
        worker.join()
    return Cost(len(files), wall, sum(cpu for _, cpu, _ in found), [one for _, _, each in found for one in each])


# ---- the server and its load -------------------------------------------------------------------------------------


@contextlib.contextmanager
def server(folder: Path, place: Path) -> Iterator[tuple[str, int]]:
    """(address, pid)"""
    command = [sys.executable, "-m", "stage1.cli", "serve", str(folder), "--port", "0", "--accept-runtime"]
    command += ["--store", str(place / f"{time.time_ns()}.sqlite")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("listening on http://").strip()
            process.stdout.readline()
            yield address, process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def cpu_of(pid: int) -> float:
    """CPU seconds of a process and of those below it that run."""
    total, ticks = 0.0, os.sysconf("SC_CLK_TCK")
    children = {
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    }
    for one in {pid, *children}:
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def request_of(files: list[bytes], deadline_ms: int) -> bytes:
    """One request as bytes: of one image the file itself, of several a form."""
    if len(files) == 1:
        kind, body = "image/jpeg", files[0]
    else:
        part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
        kind = "multipart/form-data; boundary=x"
        body = b"".join(part + data + b"\r\n" for data in files) + b"--x--\r\n"
    head = f"POST /v1/predict?deadline_ms={deadline_ms} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {kind}\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    """A connection that is kept. Nothing is parsed but status and length, so that the load costs little."""

    def __init__(self, address: str) -> None:
        self._host, _, self._port = address.partition(":")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, request: bytes) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, int(self._port))
        reader, writer = self._streams
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        return int(head[9:12])


async def closed_load(address: str, requests: list[bytes], connections: int) -> list[tuple[int, float]]:
    """Each connection asks, waits, asks: (status, seconds) of every request."""
    left, found = iter(requests), []

    async def work() -> None:
        connection = Connection(address)
        for request in left:
            began = time.perf_counter()
            status = await connection.ask(request)
            found.append((status, time.perf_counter() - began))

    await asyncio.gather(*(work() for _ in range(connections)))
    return found


async def open_load(address: str, requests: list[bytes], rate: float, seconds: float) -> list[tuple[int, float]]:
    """Requests at this rate, whether answers come or not."""
    idle: list[Connection] = []
    found: list[tuple[int, float]] = []

    async def one(request: bytes) -> None:
        connection = idle.pop() if idle else Connection(address)
        began = time.perf_counter()
        try:
            status = await connection.ask(request)
            idle.append(connection)
        except (OSError, asyncio.IncompleteReadError):
            status = 0
        found.append((status, time.perf_counter() - began))

    began, tasks = time.perf_counter(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(one(requests[number % len(requests)])))
    await asyncio.gather(*tasks)
    return found


def load(address: str, files: list[bytes], how: dict[str, Any], told: Any) -> None:
    """In a process of its own."""
    size = how.get("size", 1)
    deadline_ms = DEADLINE_MS if "rate" in how else 60_000
    requests = [request_of(files[start : start + size], deadline_ms) for start in range(0, len(files), size)]
    if "rate" in how:
        told.put(asyncio.run(open_load(address, requests, how["rate"], how["seconds"])))
    else:
        told.put(asyncio.run(closed_load(address, requests, how["connections"])))


def loaded(address: str, pid: int, files: list[bytes], **how: Any) -> tuple[Cost, list[tuple[int, float]]]:
    context = multiprocessing.get_context("spawn")
    told = context.SimpleQueue()
    process = context.Process(target=load, args=(address, files, how, told))
    cpu = cpu_of(pid)
    process.start()
    found = told.get()
    wall = sum(seconds for _, seconds in found) / how.get("connections", 1) if "rate" not in how else how["seconds"]
    process.join()
    if "rate" not in how and any(status != 200 for status, _ in found):
        raise SystemExit(f"not every request was answered: {sorted({status for status, _ in found})}")
    return Cost(len(files), wall, cpu_of(pid) - cpu, [seconds for _, seconds in found]), found


# ---- the table ---------------------------------------------------------------------------------------------------


def percentile(values: list[float], share: float) -> float:
    return float(np.quantile(values, share)) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=60.0, help="of the overload")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    files = photos(options.images)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.bundle or small_bundle(Path(temporary))
        rows: dict[str, list[Cost]] = {"bare": [], "one": [], "eight": [], "alone bare": [], "alone": []}
        with server(folder, Path(temporary)) as (address, pid):
            loaded(address, pid, files[:64], size=1, connections=CONNECTIONS)
            for _ in range(options.rounds):
                rows["bare"].append(bare_cost(folder, files, batch=8, processes=cores))
                rows["one"].append(loaded(address, pid, files, size=1, connections=CONNECTIONS)[0])
                rows["eight"].append(loaded(address, pid, files, size=8, connections=4)[0])
                rows["alone bare"].append(bare_cost(folder, files[:100], batch=1, processes=1))
                rows["alone"].append(loaded(address, pid, files[:100], size=1, connections=1)[0])
            rate = 3 * options.images / statistics.median(cost.wall for cost in rows["one"])
            _, over = loaded(address, pid, files, rate=rate, seconds=options.seconds)
    print(f"{platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f}, Python {platform.python_version()}")
    least = {name: min(cost.cpu_ms for cost in costs) for name, costs in rows.items()}
    speed = {name: max(cost.images / cost.wall for cost in costs) for name, costs in rows.items()}
    print(f"{'':<34}{'CPU ms/image':>14}{'images/s':>10}{'CPU: bare /':>13}{'wall: / bare':>14}")
    for name, words in (("bare", "bare loop, batches of 8"), ("one", "served, one a request"), ("eight", "eight")):
        ratio, wall = least["bare"] / least[name], speed[name] / speed["bare"]
        print(f"{words:<34}{least[name]:>14.2f}{speed[name]:>10.1f}{ratio:>13.3f}{wall:>14.3f}")
    medians = {name: [1000 * statistics.median(cost.calls) for cost in rows[name]] for name in ("alone bare", "alone")}
    added = [served - loop for served, loop in zip(medians["alone"], medians["alone bare"], strict=True)]
    print(f"one at a time, p50: bare {min(medians['alone bare']):.2f} ms, served {min(medians['alone']):.2f} ms,")
    print(f"  added, of each round: {', '.join(f'{one:.2f}' for one in added)} ms (limit 5)")
    accepted = [seconds for status, seconds in over if status == 200]
    refused = [seconds for status, seconds in over if status == 503]
    other = sorted({status for status, _ in over} - {200, 503})
    print(f"overload: {rate:.0f} requests/s for {options.seconds:g} s, deadline {DEADLINE_MS} ms: {len(over)} asked")
    for words, seconds in (("answered", accepted), ("refused (limit 50 ms)", refused)):
        middle, late = (1000 * percentile(seconds, share) for share in (0.5, 0.99))
        print(f"  {len(seconds)} {words}, p50 {middle:.1f}, p99 {late:.1f} ms")
    print(f"  anything else: {other or 'none'}")
    print(json.dumps({"cpu_ms": least, "images_per_s": speed, "added_ms": added}))


if __name__ == "__main__":
    main()
