"""What goes wrong around a running server: workers die, clients leave or creep, too much comes, it is told to stop."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import signal
import socket
import threading
import time

import httpx
import pytest


@pytest.fixture(scope="module")
def server(serving, bundle):
    limits = ("--queue", "64", "--max-images", "16", "--body", "1.5", "--deadline", "30")
    with serving(bundle, "--workers", "2", *limits) as running:
        yield running


def raw(server, data: bytes, *, then: float = 10.0) -> bytes:
    """What comes back over a plain connection for these bytes, until the server closes it."""
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=then) as connection:
        connection.sendall(data)
        found = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError):
            while chunk := connection.recv(65536):
                found += chunk
        return found


def metric(server, name: str) -> float:
    for line in server.client.get("/metrics").text.splitlines():
        if line.startswith(name):
            return float(line.rpartition(" ")[2])
    raise AssertionError(name)


def test_workers_that_are_killed_under_load_lose_no_request(server, red, grey):
    kill_workers_in_load(server, red, grey, kills=3)


@pytest.mark.slow
def test_a_hundred_workers_that_are_killed_under_load_lose_no_request(server, red, grey):
    kill_workers_in_load(server, red, grey, kills=100)


def kill_workers_in_load(server, red, grey, kills: int) -> None:
    stop = threading.Event()
    rng = random.Random(5)

    def ask(number: int) -> list[int]:
        statuses = []
        with httpx.Client(base_url=server.address, timeout=60) as client:
            while not stop.is_set():
                files = [("x", ("a", red)), ("x", ("b", grey))][: 1 + number % 2]
                answered = client.post("/v1/predict", files=files)
                statuses.append(answered.status_code)
                if answered.status_code == 200:
                    decisions = [one["decision"] for one in answered.json()["answers"]]
                    assert decisions == ["exit:roadwork", "defer"][: len(files)]
        return statuses

    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(ask, number) for number in range(4)]
        for _ in range(kills):
            # One is left: what it does not take waits for the other one to be back.
            assert until(lambda: server.client.get("/readyz").json()["workers"] == 2, 60)
            time.sleep(rng.random() * 0.2)
            pid = rng.choice(server.worker_pids())
            os.kill(pid, signal.SIGKILL)
            assert until(lambda pid=pid: pid not in server.worker_pids())  # reaped, so that it counts no more
        stop.set()
        statuses = [status for future in asked for status in future.result()]
    assert set(statuses) == {200}
    assert len(statuses) > 20
    assert server.ready()["workers"] >= 1
    assert metric(server, "stage1_worker_deaths_total") >= 1


def test_a_truncated_upload_is_refused_or_dropped(server, red):
    head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(red)}\r\n\r\n"
    answered = raw(server, head.encode() + red[:100])
    assert answered.startswith(b"HTTP/1.1 408")
    assert b"too_slow" in answered


def test_a_slow_client_holds_nothing_up(server, red):
    head = b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/jpeg\r\nContent-Length: 100000\r\n\r\n"
    host, port = server.address.removeprefix("http://").split(":")
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection((host, int(port)), timeout=10)) for _ in range(50)]
        for connection in slow:
            connection.sendall(head + b"x")
        assert server.client.post("/v1/predict", content=red).status_code == 200
        assert all(connection.recv(20).startswith(b"HTTP/1.1 408") for connection in slow)


def test_a_head_that_never_ends_is_not_waited_for(server):
    host, port = server.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(b"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        # Closed by the server: waiting in vain would be a TimeoutError here.
        assert connection.recv(100) == b""


def test_what_is_no_http_is_refused_by_the_server(server):
    assert raw(server, b"\x16\x03\x01\x02\x00 hello\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert server.client.get("/livez").status_code == 200


def test_a_client_that_leaves_frees_its_room(server, red):
    before = metric(server, "stage1_clients_left_total")
    with frozen_workers(server):
        for _ in range(4):
            with httpx.Client(base_url=server.address, timeout=0.3) as client, contextlib.suppress(httpx.ReadTimeout):
                client.post("/v1/predict", files=[("x", ("a", red))] * 16)
        assert until(lambda: metric(server, "stage1_clients_left_total") >= before + 4)
        assert metric(server, "stage1_queue_images") == 0
    assert server.client.post("/v1/predict", content=red).status_code == 200


def test_more_than_fits_is_refused_at_once_and_what_was_taken_is_answered(server, red):
    def ask(_: int) -> tuple[int, str]:
        answered = httpx.post(f"{server.address}/v1/predict", files=[("x", ("a", red))] * 16, timeout=60)
        return answered.status_code, answered.headers.get("retry-after", "")

    with concurrent.futures.ThreadPoolExecutor(12) as threads:
        with frozen_workers(server):
            asked = [threads.submit(ask, number) for number in range(12)]
            # 64 images wait, and some of 16 at most are with the workers: four or five requests of 16 images.
            assert until(lambda: sum(future.done() for future in asked) >= 7)
            time.sleep(0.5)
            refused = [future.result() for future in asked if future.done()]
        found = [future.result() for future in asked]
    assert {status for status, _ in refused} == {503}
    assert all(int(retry) >= 1 for _, retry in refused)
    assert len(refused) in (7, 8)
    assert [status for status, _ in found].count(200) == 12 - len(refused)


@contextlib.contextmanager
def frozen_workers(server):
    """The workers stand still: what comes waits."""
    server.ready()
    pids = server.worker_pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def until(holds, seconds: float = 20.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if holds():
            return True
        time.sleep(0.05)
    return False


def test_a_thousand_tiny_requests_are_answered_or_refused_and_none_hangs(server, red):
    """As many as the machine's ports and the second of a test allow; ten thousand under slow."""
    flood(server, red, 1000)


@pytest.mark.slow
def test_ten_thousand_tiny_requests_are_answered_or_refused_and_none_hangs(server, red):
    flood(server, red, 10_000)


def flood(server, red: bytes, requests: int) -> None:
    body = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: {len(red)}\r\n\r\n"
    data = body.encode() + red
    host, port = server.address.removeprefix("http://").split(":")
    statuses: list[bytes] = []
    for _ in range(requests // 500):
        with contextlib.ExitStack() as stack:
            opened = [stack.enter_context(socket.create_connection((host, int(port)), timeout=60)) for _ in range(500)]
            for connection in opened:
                connection.sendall(data)
            for connection in opened:
                found = b""
                while chunk := connection.recv(65536):
                    found += chunk
                statuses.append(found[9:12])
    assert len(statuses) == requests
    assert set(statuses) <= {b"200", b"503"}
    assert statuses.count(b"200") > 0
    assert server.client.post("/v1/predict", content=red).status_code == 200


def test_a_server_that_is_told_to_stop_answers_what_it_took_and_ends_with_0(serving, bundle, red):
    with serving(bundle, "--workers", "1") as own:
        statuses: list[int] = []

        def ask() -> None:
            with httpx.Client(base_url=own.address, timeout=60) as client:
                while True:
                    try:
                        answered = client.post("/v1/predict", files=[("x", ("a", red))] * 8)
                    except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
                        return  # it takes nothing more
                    statuses.append(answered.status_code)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        assert until(lambda: len(statuses) >= 8)
        with frozen_workers(own):
            time.sleep(0.3)  # now each has a request that was taken
            own.process.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            assert own.process.poll() is None
            taken = len(statuses)
        assert own.stop() == 0
        for thread in threads:
            thread.join(30)
        assert len(statuses) - taken == 4
        assert set(statuses) == {200}
        assert not any("Traceback" in line for line in own.errors), own.errors


def test_a_server_that_is_killed_leaves_no_worker(serving, bundle):
    with serving(bundle, "--workers", "2") as own:
        pids = own.worker_pids()
        assert len(pids) == 2
        own.stop(signal.SIGKILL)
        assert until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids))
