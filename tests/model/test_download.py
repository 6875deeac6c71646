"""Weights of the hub: never fetched unasked, fetched where `backbone.download` says so; the hub here is a local server.

Its answers are those that huggingface_hub needs of the real one: a redirect-free HEAD with ETag and commit, the bytes.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")
pytest.importorskip("huggingface_hub")

from safetensors.torch import save  # noqa: E402

from stage1.config import BackboneConfig  # noqa: E402
from stage1.errors import MissingError  # noqa: E402
from stage1.model.backbone import load_backbone  # noqa: E402
from stage1.model.weights import state_digest  # noqa: E402

NAME = "test_vit.r160_in1k"
COMMIT = "0" * 40


class Hub:
    """A stand-in of huggingface.co that holds one file; `asked` are the requests that it got."""

    def __init__(self, data: bytes) -> None:
        self.asked: list[str] = []
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                hub.asked.append(f"{self.command} {self.path}")
                there = self.path == f"/timm/{NAME}/resolve/main/model.safetensors"
                self.send_response(200 if there else 404)
                if there:
                    self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                    self.send_header("X-Repo-Commit", COMMIT)
                else:
                    self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", str(len(data) if there else 0))
                self.end_headers()
                if there and with_body:
                    self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Iterator[tuple[Hub, str]]:
    """(the server, the digest of the weights it holds); the cache is empty."""
    torch.manual_seed(5)
    model = timm.create_model(NAME, pretrained=False)
    made = Hub(save(model.state_dict()))
    monkeypatch.setenv("HF_ENDPOINT", made.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    thread = threading.Thread(target=made.server.serve_forever, daemon=True)
    thread.start()
    model.reset_classifier(0)
    yield made, state_digest(model.state_dict())
    made.server.shutdown()
    made.server.server_close()
    thread.join()


def test_nothing_is_fetched_unasked(hub):
    made, _ = hub
    with pytest.raises(MissingError, match=f"backbone '{NAME}': no weights"):
        load_backbone(BackboneConfig(name=NAME))
    assert made.asked == []


def test_what_is_asked_for_is_fetched_once(hub):
    made, digest = hub
    backbone = load_backbone(BackboneConfig(name=NAME, download=True))
    assert state_digest(backbone.module.model.state_dict()) == digest
    assert any(line.startswith("GET") and line.endswith("/resolve/main/model.safetensors") for line in made.asked)
    made.asked.clear()
    assert load_backbone(BackboneConfig(name=NAME)).fingerprint == backbone.fingerprint  # from the cache, unasked
    assert made.asked == []


def test_a_hub_that_is_not_there_is_one_line(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)  # its five retries take 90 s
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(MissingError, match=rf"timm/{NAME} cannot be downloaded \(.*\); set backbone.weights"):
        load_backbone(BackboneConfig(name=NAME, download=True))
