"""Over https: asked and answered where the certificate is trusted and of this host, else nothing is sent."""

from __future__ import annotations

import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest

from stage1.cascade.calls import CallFailed
from stage1.cascade.config import HttpConfig
from stage1.cascade.endpoint import Endpoint

from ..limits import ends_within
from .server import Server, misbehave

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl makes the certificates, it is not installed"
)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """(certificate, key) of 127.0.0.1, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    found = folder / "own.pem", folder / "own.key"
    subprocess.run(
        [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "3",
            "-subj",
            "/CN=stage1 test",
            "-addext",
            "subjectAltName=IP:127.0.0.1",
            "-out",
            found[0],
            "-keyout",
            found[1],
        ],
        check=True,
        capture_output=True,
    )
    return found


@pytest.fixture(scope="module")
def server(certificate):
    running = Server(misbehave)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    running.socket = context.wrap_socket(running.socket, server_side=True)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield running
    running.released.set()
    running.shutdown()
    running.server_close()
    thread.join()


def endpoint(server: Server, path: str, host: str = "127.0.0.1", **options: float) -> Endpoint:
    url = server.url(path).replace("http:", "https:").replace("127.0.0.1", host)
    return Endpoint(HttpConfig(url=url, **options))


@pytest.fixture
def trusted(certificate, monkeypatch):
    # As a user would who has a certificate authority of their own.
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))


def test_a_trusted_server_is_asked(trusted, server):
    assert endpoint(server, "/ok").ask(b"image") == 0.75
    assert endpoint(server, "/ok", format="bytes").ask(b"image") == 0.75
    assert server.requests[-1][2] == b"image"


def test_a_key_goes_to_the_server_it_is_for(trusted, server, monkeypatch):
    monkeypatch.setenv("CASCADE_TEST_KEY", "s3cret-token")
    with pytest.raises(CallFailed) as caught:
        endpoint(server, "/404", key_env="CASCADE_TEST_KEY").ask(b"image")
    assert (caught.value.kind, caught.value.retry) == ("http_error", False)
    assert server.requests[-1][1]["Authorization"] == "Bearer s3cret-token"


def test_nothing_is_sent_to_a_server_that_is_not_trusted(server):
    before = len(server.requests)
    with pytest.raises(CallFailed) as caught:
        endpoint(server, "/ok").ask(b"image")
    assert caught.value.kind == "unreachable"
    assert "CERTIFICATE_VERIFY_FAILED" in caught.value.detail
    assert len(server.requests) == before


def test_nothing_is_sent_where_the_certificate_is_of_another_host(trusted, server):
    before = len(server.requests)
    with pytest.raises(CallFailed) as caught:
        endpoint(server, "/ok", host="localhost").ask(b"image")
    assert caught.value.kind == "unreachable"
    assert len(server.requests) == before


@pytest.mark.parametrize("path", ["/hang", "/drip", "/drip-head"])
def test_the_deadline_holds_under_encryption(trusted, server, path):
    with ends_within(15), pytest.raises(CallFailed) as caught:  # the server would hang for longer
        endpoint(server, path, read_timeout_s=0.4).ask(b"image")
    assert caught.value.kind == "timeout"


@pytest.mark.parametrize("path, kind", [("/huge", "too_large"), ("/cut", "invalid"), ("/garbage", "invalid")])
def test_faults_under_encryption(trusted, server, path, kind):
    with pytest.raises(CallFailed) as caught:
        endpoint(server, path).ask(b"image")
    assert caught.value.kind == kind
