"""API keys: the file, the scopes, and what a server says to who has none."""

from __future__ import annotations

import hashlib

import pytest

from stage1.errors import ConfigError, MissingError
from stage1.serving.keys import read_keys
from stage1.serving.settings import Settings


def line(key: str, scopes: str, name: str) -> str:
    return f"{hashlib.sha256(key.encode()).hexdigest()} {scopes} {name}\n"


def test_a_key_opens_its_scopes_and_admin_opens_all(tmp_path):
    path = tmp_path / "keys"
    path.write_text("# ours\n\n" + line("camera", "predict", "camera 7") + line("root", "admin", "me"))
    keys = read_keys(path)
    camera, root = keys.holder("camera"), keys.holder("root")
    assert camera is not None
    assert root is not None
    assert (camera.name, camera.may("predict"), camera.may("feedback")) == ("camera 7", True, False)
    assert root.may("predict")
    assert root.may("feedback")
    assert keys.holder("") is None
    assert keys.holder("Camera") is None
    assert keys.holder("\ud800") is None


WRONG = {
    "no scopes": "00 predict\n",
    "the key itself": "my-secret-key predict me\n",
    "another scope": "0" * 64 + " predict,write me\n",
    "a name twice": line("a", "predict", "me") + line("b", "predict", "me"),
    "nothing": "# nobody\n",
}


@pytest.mark.parametrize("text", WRONG.values(), ids=WRONG)
def test_a_file_that_is_wrong_names_its_line_and_not_the_key(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_keys(path)
    assert str(path) in str(raised.value)
    assert "my-secret-key" not in str(raised.value)


def test_no_file_of_keys_is_a_missing_one(tmp_path):
    with pytest.raises(MissingError, match="no such file of keys"):
        read_keys(tmp_path / "none")


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "example.org", ""])
def test_without_keys_only_loopback_is_served(tmp_path, host):
    with pytest.raises(ConfigError, match="--keys FILE"):
        Settings(bundles=(tmp_path,), host=host)
    assert Settings(bundles=(tmp_path,), host=host, keys=tmp_path / "keys").host == host


@pytest.mark.parametrize(
    "wrong",
    [
        {"workers": -1},
        {"batch_images": 0},
        {"deadline_s": 0.0},
        {"deadline_s": float("nan")},
        {"deadline_s": 100.0},
        {"max_images": 1000},
        {"port": 70_000},
        {"per_minute": 0},
        {"bundles": ()},
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(tmp_path, wrong):
    with pytest.raises(ConfigError):
        Settings(**{"bundles": (tmp_path,), **wrong})


@pytest.fixture(scope="module")
def server(serving, bundle, tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(line("p", "predict", "camera") + line("f", "feedback", "person") + line("a", "admin", "root"))
    with serving(bundle, "--workers", "1", "--keys", path, "--per-minute", "4") as running:
        yield running


ASKED = [
    ({}, 401),
    ({"x-api-key": "wrong"}, 401),
    ({"authorization": "Basic cDpw"}, 401),
    ({"authorization": "Bearer f"}, 403),
    ({"authorization": "Bearer a"}, 200),
    ({"x-api-key": "a"}, 200),
]


@pytest.mark.parametrize("headers, status", ASKED)
def test_who_may_ask(server, red, headers, status):
    answered = server.client.post("/v1/predict", content=red, headers=headers)
    assert answered.status_code == status
    assert "Traceback" not in answered.text


@pytest.mark.parametrize("path", ["/v1/models", "/v1/policy"])
def test_everything_but_the_state_of_the_server_needs_a_key(server, path):
    assert server.client.get(path).status_code == 401
    assert server.client.post("/v1/models/tiny/conditions", json={}, headers={"x-api-key": "p"}).status_code == 403
    assert server.client.get("/livez").status_code == 200


def test_a_key_has_its_images_a_minute(server, red):
    statuses = [
        server.client.post("/v1/predict", content=red, headers={"x-api-key": "p"}).status_code for _ in range(6)
    ]
    assert statuses == [200] * 4 + [429] * 2
    refused = server.client.post("/v1/predict", content=red, headers={"x-api-key": "p"})
    assert 1 <= int(refused.headers["retry-after"]) <= 15
