"""The server's own protocol, against a running server: what goes in, what comes out, what is refused and how."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ..command_line import stage1


@pytest.fixture(scope="module")
def server(serving, bundle):
    with serving(bundle, "--workers", "1", "--max-bytes", "200000", "--max-images", "8") as running:
        yield running


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def by_predict(bundle, folder, images) -> list[dict]:
    """What `stage1 predict` says of these images, as one call with all of them."""
    paths = []
    for index, data in enumerate(images):
        paths.append(folder / f"{index:03d}.bin")
        paths[-1].write_bytes(data)
    result = stage1("predict", bundle, *paths, "--json")
    return json.loads(result.stdout)["rows"]


def same(answer: dict, row: dict) -> bool:
    """Bit for bit: floats are written with all their digits on both sides."""
    shares = {key.removeprefix("p_"): value for key, value in row.items() if key.startswith("p_")}
    names = ("label", "probability", "exit", "decision", "confidence", "error")
    return all(answer[name] == row[name] for name in names) and (
        answer["probabilities"] == (shares if row["label"] is not None else None)
    )


def test_answers_are_those_of_predict_bit_for_bit(server, bundle, tmp_path):
    rng = np.random.default_rng(3)
    images = []
    for index in range(8):
        pixels = rng.integers(0, 256, (20 + index, 31, 3), dtype=np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, ("PNG", "JPEG", "WEBP")[index % 3])
        images.append(stream.getvalue())
    rows = by_predict(bundle, tmp_path, images)
    together = server.client.post("/v1/predict", json={"images": [{"data": encoded(data)} for data in images]})
    assert all(same(one, row) for one, row in zip(together.json()["answers"], rows, strict=True))
    for data, row in zip(images, rows, strict=True):
        alone = server.client.post("/v1/predict", content=data)
        assert same(alone.json()["answers"][0], row)
    assert len({row["probability"] for row in rows}) == 8  # the control: other images have other answers


def test_the_three_forms_give_one_answer(server, red, grey):
    raw = server.client.post("/v1/predict?id=a", content=red, headers={"content-type": "image/jpeg"}).json()
    form = server.client.post("/v1/predict", files=[("x", ("a", red)), ("x", ("b", grey))]).json()
    document = {"images": [{"data": encoded(red), "id": "a"}, {"data": encoded(grey), "id": "b"}]}
    as_json = server.client.post("/v1/predict", json=document).json()
    assert raw["answers"][0] == form["answers"][0] == as_json["answers"][0]
    assert form["answers"] == as_json["answers"]
    assert [one["decision"] for one in form["answers"]] == ["exit:roadwork", "defer"]
    assert [one["id"] for one in form["answers"]] == ["a", "b"]


def test_every_answer_says_under_what_it_is_given(server, red):
    answered = server.client.post("/v1/predict", content=red)
    document = answered.json()
    policy = server.client.get("/v1/policy").json()
    assert document["state"] == "VALID"
    assert document["reason"] is None
    assert document["bundle"] == policy["bundle"]
    assert document["policy"] == policy["policy"]
    assert policy["certificate"]["certified"] is True
    assert document["request_id"] == answered.headers["x-request-id"]
    again = server.client.post("/v1/predict", content=red).json()
    assert again["request_id"] != document["request_id"]
    assert again["answers"] == document["answers"]


def png_of(width: int, height: int) -> bytes:
    """A PNG head that promises so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + body + chunk(b"IEND", b"")


REFUSED = {
    "cut off": (422, "truncated", lambda red: red[:200]),
    "text": (415, "not_an_image", lambda red: b"hello, this is no image at all"),
    "a bomb": (413, "too_large", lambda red: png_of(60_000, 60_000)),
    "a page": (415, "not_an_image", lambda red: b"<!doctype html><html></html>"),
    "too many bytes": (413, "too_large", lambda red: b"\xff\xd8\xff" + bytes(200_000)),
    "nothing": (400, "bad_request", lambda red: b""),
}


@pytest.mark.parametrize("status, code, make", REFUSED.values(), ids=REFUSED)
def test_what_is_no_image_is_refused_in_one_line(server, red, status, code, make):
    answered = server.client.post("/v1/predict", content=make(red), headers={"content-type": "image/jpeg"})
    assert answered.status_code == status, answered.text
    error = answered.json()["error"]
    assert error["code"] == code
    assert "\n" not in error["message"]
    assert "Traceback" not in answered.text
    assert error["request_id"] == answered.headers["x-request-id"]


@pytest.mark.parametrize("announced", [True, False], ids=["announced", "in chunks"])
def test_a_body_that_is_too_large_is_told_so_and_not_cut_off(server, announced):
    """A connection that is closed over bytes nobody read is reset, and the reason is lost on its way."""
    data = b"\xff\xd8\xff" + bytes(3_000_000)
    for _ in range(5):
        content = data if announced else (data[at : at + 60_000] for at in range(0, len(data), 60_000))
        answered = server.client.post("/v1/predict", content=content, headers={"content-type": "image/jpeg"})
        assert (answered.status_code, answered.json()["error"]["code"]) == (413, "too_large")


def test_of_several_images_the_broken_one_defers_with_its_error(server, red):
    document = server.client.post("/v1/predict", files=[("x", ("a", red)), ("x", ("b", red[:200]))]).json()
    good, broken = document["answers"]
    assert good["exit"]
    assert (broken["decision"], broken["exit"], broken["label"]) == ("defer", False, None)
    assert broken["error"].startswith("truncated: ")


BAD = {
    "no JSON": (400, {"content": b"{", "headers": {"content-type": "application/json"}}),
    "a list": (400, {"json": []}),
    "no images": (400, {"json": {"images": []}}),
    "no data": (400, {"json": {"images": [{}]}}),
    "no base64": (400, {"json": {"images": [{"data": "§§"}]}}),
    "another key": (400, {"json": {"images": [{"data": "", "path": "/etc/passwd"}]}}),
    "too many": (413, {"json": {"images": [{"data": "AAAA"}] * 9}}),
    "too deep": (400, {"content": b"[" * 50_000, "headers": {"content-type": "application/json"}}),
    "a form without files": (400, {"data": {"a": "b"}, "files": {}}),
    "a broken form": (400, {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data; boundary=y"}}),
    "no boundary": (400, {"content": b"--x\r\n", "headers": {"content-type": "multipart/form-data"}}),
    "an unknown kind": (415, {"content": b"x", "headers": {"content-type": "text/html"}}),
    "no deadline": (400, {"json": {"images": [{"data": "AAAA"}], "deadline_ms": "soon"}}),
    "a deadline of NaN": (400, {"params": {"deadline_ms": "nan"}, "content": b"x"}),
    "no such model": (404, {"params": {"model": "../../etc"}, "content": b"x"}),
    "a model by number": (400, {"json": {"images": [{"data": "AAAA"}], "model": 1}}),
}


@pytest.mark.parametrize("status, given", BAD.values(), ids=BAD)
def test_a_request_that_makes_no_sense_is_refused_in_one_line(server, status, given):
    if given.get("files") == {}:
        given = {"content": b"a=b", "headers": {"content-type": "application/x-www-form-urlencoded"}}
        status = 415
    answered = server.client.post("/v1/predict", **given)
    assert answered.status_code == status, answered.text
    assert "\n" not in answered.json()["error"]["message"]


TRICKS = ["'; DROP TABLE decisions; --", "../../../etc/passwd", "a\u0000b", "\ud800", "%00%2e%2e", "<script>"]


@pytest.mark.parametrize("name", TRICKS)
def test_a_name_is_a_value_and_nothing_else(server, red, name):
    body = json.dumps({"images": [{"data": encoded(red), "id": name}]})
    answered = server.client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    assert answered.status_code == 200
    assert answered.json()["answers"][0]["exit"]


def test_unknown_addresses_and_methods_are_refused_as_json(server):
    assert server.client.get("/nothing").json()["error"]["code"] == "not_found"
    assert server.client.put("/v1/predict").json()["error"]["code"] == "method_not_allowed"
    assert "error" in server.client.get("/v2/nothing").json()


def test_metrics_count_decisions_and_show_the_state(server, red):
    def value(name: str) -> float:
        lines = server.client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    before = value('stage1_images_total{model="tiny",outcome="exit"}')
    server.client.post("/v1/predict", content=red)
    assert value('stage1_images_total{model="tiny",outcome="exit"}') == before + 1
    assert value('stage1_certificate_state{model="tiny",state="VALID"') == 1
    assert value('stage1_certificate_state{model="tiny",state="VOID"') == 0
    assert value("stage1_workers ") == 1


def test_the_pages_of_the_protocol_load_nothing_from_elsewhere(server):
    page = server.client.get("/docs").text
    assert "/v1/predict" in page
    assert "http" not in page.replace("http-equiv", "")
    assert server.client.get("/openapi.json").json()["paths"]["/v1/predict"]


PAGES = {
    "of another site": (403, {"origin": "https://example.org"}),
    "of no site": (403, {"origin": "null"}),
    "of another port": (403, {"origin": "http://127.0.0.1:1"}),
    "by a name that means this machine": (403, {"host": "example.org"}),
    "with a broken name": (403, {"host": "[::1"}),
    "of the server itself": (200, {}),
}


@pytest.mark.parametrize("status, headers", PAGES.values(), ids=PAGES)
def test_without_keys_no_page_of_another_site_may_ask(server, red, status, headers):
    own = {"origin": server.address} if status == 200 else {}
    answered = server.client.post("/v1/predict", content=red, headers={**own, **headers})
    assert answered.status_code == status, answered.text
    assert server.client.get("/v1/models", headers={**own, **headers}).status_code == status


def test_loading_is_off_unless_a_folder_was_given(server):
    answered = server.client.post("/v1/models/tiny/load", json={"bundle": "x"})
    assert (answered.status_code, answered.json()["error"]["code"]) == (403, "loading_is_off")
