"""A real HTTP server on this machine that answers as its path says, or hangs, lies and overflows."""

from __future__ import annotations

import gzip
import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
from PIL import Image

Reply = Callable[["Handler", bytes], None]


class Handler(BaseHTTPRequestHandler):
    """Hands every POST to the server's `reply`; counts them."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
        with suppress(OSError):  # the client hung up, which is what several tests are about
            self.server.reply(self, body)
        self.close_connection = True

    def say(self, text: str | bytes, status: int = 200, **headers: str) -> None:
        data = text.encode() if isinstance(text, str) else text
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.reply, self.lock, self.released = reply, threading.Lock(), threading.Event()
        self.requests: list[tuple[str, dict[str, str], bytes]] = []

    def url(self, path: str = "/answer") -> str:
        return f"http://127.0.0.1:{self.server_address[1]}{path}"

    def handle_error(self, *_: object) -> None:
        """A client that went away is no news."""


@contextmanager
def serving(reply: Reply) -> Iterator[Server]:
    server = Server(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


def misbehave(handler: Handler, body: bytes) -> None:
    """The fault that the path names."""
    what = handler.path.strip("/")
    if what == "hang":
        handler.server.released.wait(20)
    elif what == "drip":
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()
    elif what == "drip-head":
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while not handler.server.released.wait(0.05):
            handler.wfile.write(b"X-A: b\r\n")
            handler.wfile.flush()
    elif what == "huge":
        handler.send_response(200)
        handler.send_header("Content-Length", str(50_000_000))
        handler.end_headers()
        for _ in range(50):
            handler.wfile.write(b"x" * 1_000_000)
    elif what == "huge-chunked":
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(50):
            handler.wfile.write(b"F4240\r\n" + b"x" * 1_000_000 + b"\r\n")
    elif what == "cut":
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b'{"probability": 0.5}')
    elif what == "close":
        handler.connection.close()
    elif what == "half-closed":
        handler.connection.shutdown(socket.SHUT_WR)  # it reads on, and will never answer
        handler.server.released.wait(20)
    elif what == "gzip":
        handler.say(BOMB, Content_Encoding="gzip")
    elif what == "html":
        handler.say(ANSWERS["ok"], Content_Type="text/html")
    elif what == "continue":
        while not handler.server.released.wait(0.01):
            handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    elif what == "heads":
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 5000 + b"\r\n")
    elif what == "long-head":
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-A: " + b"b" * 2_000_000 + b"\r\n\r\n")
    elif what == "no-http":
        handler.wfile.write(b"220 smtp ready\r\n\r\n")
    elif what == "redirect":
        handler.say("", 302, Location=handler.server.url("/ok"))
    elif what == "chunked":
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        handler.wfile.write(b'10\r\n{"probability": \r\n4\r\n.25}\r\n0\r\n\r\n'.replace(b".25}", b"0.2}"))
    elif what.isdecimal():
        handler.say("no", int(what))
    elif what == "echo":
        handler.say(json.dumps({"probability": handler.headers["Authorization"]}))
    else:
        handler.say(ANSWERS[what])


BOMB = gzip.compress(b'{"probability": 0.5}' + b" " * 30_000_000)  # 30 kB of it
ANSWERS = {
    "ok": '{"probability": 0.75}',
    "whole": '{"probability": 1}',
    "extra": '{"probability": 0.75, "model": "x"}',
    "garbage": "\x00\xff<html>",
    "empty": "",
    "nan": '{"probability": NaN}',
    "infinity": '{"probability": 1e999}',
    "large": '{"probability": 1.7}',
    "negative": '{"probability": -0.1}',
    "text": '{"probability": "0.5"}',
    "true": '{"probability": true}',
    "null": '{"probability": null}',
    "digits": '{"probability": ' + "9" * 4000 + "}",
    "list": "[0.5]",
    "missing": '{"score": 0.5}',
    "deep": "[" * 60_000,
    "twice": '{"probability": 0.1, "probability": 0.9}',
    "twice-below": '{"probability": 0.1, "more": [{"a": 1, "a": 1}]}',
    "minus-zero": '{"probability": -0.0}',
}


def green(body: bytes) -> float:
    """What the second stage of the tests knows: the green of the image, which says more than red and blue."""
    pixels = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))
    return float(1 / (1 + np.exp(-(float(pixels[..., 1].mean()) - 128) / 8)))
