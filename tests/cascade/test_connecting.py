"""Everything before the first byte is sent has one deadline: a resolver that hangs, addresses that swallow, a
handshake that drips.
"""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest
import yaml

from stage1.cascade import fixed_rules, header, open_cascade, open_log, read_answers, run_cascade
from stage1.cascade.calls import CallFailed
from stage1.cascade.config import HttpConfig
from stage1.cascade.endpoint import Connector, Endpoint
from stage1.inference import Input

from ..limits import ends_within
from .server import misbehave, serving

REAL = socket.getaddrinfo


@pytest.fixture
def hanging(monkeypatch):
    """The system's resolver hangs for names under .hangs until the test ends; the count of lookups that began."""
    released, begun = threading.Event(), []

    def getaddrinfo(host, port, *arguments, **options):
        if str(host).endswith(".hangs"):
            begun.append(host)
            released.wait(30)
        return REAL("127.0.0.1", port, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield begun
    released.set()


def failed(url: str, **options: float) -> CallFailed:
    stage = Endpoint(HttpConfig(url=url, **options))
    with ends_within(15), pytest.raises(CallFailed) as caught:  # what hangs here would hang for longer
        stage.ask(b"image")
    return caught.value


def test_a_lookup_that_hangs_is_a_timeout_at_the_connect_timeout(hanging):
    failure = failed("http://name.hangs:80/answer", connect_timeout_s=0.2)
    assert failure.kind == "timeout"
    assert failure.retry
    assert failure.detail == "no connection within 0.2 s, no address of name.hangs (no answer within 0.2 s)"


def test_every_image_is_answered_once_while_the_resolver_hangs(hanging, tmp_path):
    (tmp_path / "first_of_hanging.py").write_text("def half(data):\n    return 0.5 + len(data) / 1000\n")
    document = {
        "classes": ["none", "roadwork"],
        "stages": [
            {"name": "first", "callable": "first_of_hanging:half", "exit": {"above": 0.9}},
            {
                "name": "second",
                "http": {"url": "http://name.hangs/answer", "connect_timeout_s": 0.1},
                "calls": {"retries": 1, "backoff_s": 0.0, "breaker_failures": 999, "concurrency": 8},
            },
        ],
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(document))
    cascade = open_cascade(tmp_path / "c.yaml")
    images = [Input(f"{index}", b"x" * (index + 1)) for index in range(48)]
    rules, path = fixed_rules(cascade.config), tmp_path / "a.jsonl"
    head = header(cascade.digest, [rule.to_document() for rule in rules], cascade.names)
    # 48 images, 8 at once, two attempts of 0.1 s each: 1.2 s. One lookup that is waited for would take thirty.
    with ends_within(25), open_log(path, head) as (_, sink):
        tally = run_cascade(cascade, images, sink, rules=rules)
    assert (tally.answered, tally.by, tally.fallbacks) == (48, {"first": 48}, 48)
    assert tally.failed == {"second": {"timeout": 48}}
    assert sorted(answer.image for answer in read_answers(path)[1]) == sorted(image.name for image in images)
    assert len(hanging) <= 16  # threads that hang in the resolver: as many as there are slots, not one for each attempt


def test_a_resolver_that_comes_back_is_used_again(hanging):
    with serving(misbehave) as server:
        port = server.server_address[1]
        stage = Endpoint(HttpConfig(url=f"http://name.hangs:{port}/ok", connect_timeout_s=0.1))
        with pytest.raises(CallFailed):
            stage.ask(b"image")
        stage._connector._host = "name.answers"
        assert stage.ask(b"image") == 0.75


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".example"])
def test_a_name_that_is_none_is_unreachable(host):
    failure = failed(f"http://{host}/answer")
    assert failure.kind == "unreachable"
    assert host[:20] in failure.detail


def test_an_address_that_swallows_leaves_time_for_the_next(monkeypatch):
    with serving(misbehave) as server, closing(socket.socket()) as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        # One waits to be accepted, and the queue is full: Linux drops what else asks for a connection.
        waiting = [socket.create_connection(full.getsockname())]
        good, swallowing = server.server_address, full.getsockname()
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (swallowing, good)]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_: found)
        with ends_within(15), closing(Connector("two.addresses", 80, secure=False).connect(2.0)) as opened:
            assert opened.getpeername() == good
        for one in waiting:
            one.close()


@pytest.mark.parametrize("drips", [True, False])
def test_a_handshake_that_drips_or_never_begins_ends_at_the_connect_timeout(drips):
    ended = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def drip() -> None:
            accepted, _ = listening.accept()
            with closing(accepted):
                # The head of a TLS record of 16 KiB, and then a byte now and then.
                for piece in (b"\x16\x03\x03\x40\x00", *([b"\x02"] * 1000)):
                    if ended.wait(0.05):
                        return
                    if drips:
                        accepted.sendall(piece)

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/answer"
        failure = failed(url, connect_timeout_s=0.4, read_timeout_s=30.0)
        ended.set()
        thread.join()
    assert failure.kind == "timeout"


def test_a_server_that_speaks_no_tls_is_unreachable():
    with serving(misbehave) as server:
        failure = failed(server.url("/ok").replace("http:", "https:"))
    assert failure.kind == "unreachable"
    assert "SSL" in failure.detail
