"""What cannot be served is refused in one line with its exit code; several models are served by name and version."""

from __future__ import annotations

import shutil
import socket

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from stage1.serving.server import _listening
from stage1.serving.settings import Settings

from ..command_line import stage1


def refused(*arguments, code: int, words: str) -> None:
    result = stage1("serve", *arguments, "--port", "0", "--store", "none")
    assert result.returncode == code, result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    assert words in lines[0]


def test_what_cannot_be_served_ends_with_its_exit_code(bundle, tmp_path):
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / "model.onnx").write_bytes(b"x")
    refused(damaged, code=5, words="model.onnx")
    refused(tmp_path / "none", code=3, words="no such bundle folder")
    refused(tmp_path / "cascade.yaml", code=2, words="the bundle of its first stage")
    refused(bundle, bundle, code=2, words="given twice")
    refused(bundle, "--host", "0.0.0.0", code=2, words="--keys")
    refused(bundle, "--keys", tmp_path / "keys", code=3, words="no such file of keys")
    refused(bundle, "--deadline", "0", code=2, words="--deadline")


def test_a_port_that_is_taken_is_named(bundle):
    with socket.create_server(("127.0.0.1", 0)) as other:
        result = stage1("serve", bundle, "--port", str(other.getsockname()[1]))
    assert result.returncode == 2
    assert "cannot listen there" in result.stderr


@pytest.fixture(scope="module")
def two(serving, bundle, write_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    other, second = write_bundle(folder / "other", name="other"), write_bundle(folder / "second", seed=4)
    with serving(bundle, other, second, "--workers", "1") as running:
        yield running


def test_models_are_asked_by_name_and_version(two, red):
    models = two.client.get("/v1/models").json()["models"]
    assert sorted((model["name"], model["latest"]) for model in models) == [
        ("other", True),
        ("tiny", False),
        ("tiny", True),
    ]
    unnamed = two.client.post("/v1/predict", content=red)
    assert (unnamed.status_code, unnamed.json()["error"]["code"]) == (400, "which_model")
    for model in models:
        which = {"model": model["name"], "version": model["version"]}
        answer = two.client.post("/v1/predict", params=which, content=red).json()
        assert answer["bundle"] == model["bundle"]
    latest = two.client.post("/v1/predict", params={"model": "tiny"}, content=red).json()
    assert latest["version"] == next(
        model["version"] for model in models if model["name"] == "tiny" and model["latest"]
    )


def test_no_answer_waits_for_the_acknowledgement_of_its_head(tmp_path):
    """With Nagle's rule on, the body of each answer came 40 ms after its head."""
    settings = Settings(bundles=(tmp_path,), port=0, store=None)
    with (
        _listening(settings) as listener,
        socket.create_connection(listener.getsockname()) as client,
    ):
        listener.setblocking(True)
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert client.fileno() >= 0
