"""The Open Inference Protocol, by a public client (tritonclient) and by hand, against /v1 on the same server."""

from __future__ import annotations

import base64
import json

import numpy as np
import pytest

from stage1.bundle import read_manifest
from stage1.runtime.images import decode
from stage1.runtime.preprocessing import Preprocessing, to_tensor

triton = pytest.importorskip("tritonclient.http", reason="tritonclient is not installed")


@pytest.fixture(scope="module")
def server(serving, bundle):
    with serving(bundle, "--workers", "1", "--max-bytes", "300000") as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    client = triton.InferenceServerClient(server.address.removeprefix("http://"))
    yield client
    client.close()


def images_of(*images: bytes, binary: bool, name: str = "image"):
    data = [image if binary else base64.b64encode(image) for image in images]
    tensor = triton.InferInput(name, [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(data, dtype=np.object_), binary_data=binary)
    return tensor


def tensors_of(bundle, *images: bytes, binary: bool):
    spec = Preprocessing.from_json(read_manifest(bundle)["preprocessing"])
    array = np.stack([to_tensor(decode(image), spec) for image in images])
    tensor = triton.InferInput("tensor", list(array.shape), "FP32")
    tensor.set_data_from_numpy(array, binary_data=binary)
    return tensor


def by_v1(server, *images: bytes) -> list[dict]:
    document = {"images": [{"data": base64.b64encode(image).decode()} for image in images]}
    return server.client.post("/v1/predict", json=document).json()["answers"]


def agree(result, answers: list[dict]) -> None:
    """Bit for bit."""
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label").tolist()]
    assert labels == [answer["label"] for answer in answers]
    assert result.as_numpy("exit").tolist() == [answer["exit"] for answer in answers]
    assert result.as_numpy("score").tolist() == [answer["score"] for answer in answers]
    assert result.as_numpy("probabilities").tolist() == [list(answer["probabilities"].values()) for answer in answers]


def test_health_and_metadata(client, server, bundle):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("tiny")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    metadata = client.get_model_metadata("tiny")
    (version,) = metadata["versions"]
    assert client.is_model_ready("tiny", version)
    assert client.get_model_metadata("tiny", version) == metadata
    assert [one["name"] for one in metadata["inputs"]] == ["image", "tensor"]
    assert metadata["parameters"]["bundle"] == read_manifest(bundle)["digest"]
    assert not client.is_model_ready("none")
    assert not client.is_model_ready("tiny", "0")


@pytest.mark.parametrize("binary_in", [True, False], ids=["binary in", "JSON in"])
@pytest.mark.parametrize("binary_out", [True, False], ids=["binary out", "JSON out"])
def test_images_are_answered_as_by_v1(client, server, red, blue, grey, binary_in, binary_out):
    names = ("label", "exit", "score", "probabilities", "reason")
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in names]
    images = (red, blue, grey)
    result = client.infer("tiny", [images_of(*images, binary=binary_in)], outputs=outputs, request_id="mine")
    agree(result, by_v1(server, *images))
    response = result.get_response()
    assert response["id"] == "mine"
    assert response["parameters"]["state"] == "VALID"
    assert response["parameters"]["policy"].startswith("softmax-")
    assert len(response["parameters"]["bundle"]) == 64
    # What a client asks for when it asks for nothing.
    agree(client.infer("tiny", [images_of(*images, binary=binary_in)]), by_v1(server, *images))


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_of_the_certified_preprocessing_are_answered_as_their_images(client, server, bundle, red, grey, binary):
    digest = client.get_model_metadata("tiny")["parameters"]["preprocessing"]
    inputs = [tensors_of(bundle, red, grey, binary=binary)]
    result = client.infer("tiny", inputs, parameters={"preprocessing": digest})
    agree(result, by_v1(server, red, grey))
    assert result.as_numpy("exit").tolist() == [True, False]


def test_tensors_of_unknown_preprocessing_defer(client, bundle, red):
    result = client.infer("tiny", [tensors_of(bundle, red, binary=True)])
    assert result.as_numpy("exit").tolist() == [False]
    parameters = result.get_response()["parameters"]
    assert parameters["state"] == "VOID"
    assert "preprocessing" in parameters["reason"]


def test_a_broken_image_among_others_is_a_reason_without_numbers(client, red):
    result = client.infer("tiny", [images_of(red, red[:100], binary=True)])
    assert result.as_numpy("exit").tolist() == [True, False]
    assert np.isnan(result.as_numpy("score")[1])
    assert result.as_numpy("reason")[1].startswith(b"truncated")
    as_json = client.infer(
        "tiny",
        [images_of(red, red[:100], binary=True)],
        outputs=[triton.InferRequestedOutput("probabilities", binary_data=False)],
    )
    assert as_json.get_response()["outputs"][0]["data"][2:] == [None, None]


def test_refusals_reach_the_client_in_its_own_form(client, red):
    for name, inputs, words in (
        ("none", [images_of(red, binary=True)], "no model of this name"),
        ("tiny", [images_of(red[:100], binary=True)], "truncated"),
        ("tiny", [images_of(red, binary=True, name="picture")], "one of `image`"),
    ):
        with pytest.raises(triton.InferenceServerException, match=words):
            client.infer(name, inputs)


def body(inputs, binary: bytes = b"", **more) -> tuple[bytes, dict[str, str]]:
    text = json.dumps({"inputs": inputs, **more}).encode()
    return text + binary, {"Inference-Header-Content-Length": str(len(text))}


IMAGE = {"name": "image", "datatype": "BYTES", "shape": [1]}
TENSOR = {"name": "tensor", "datatype": "FP32", "shape": [1, 3, 1, 1]}
WRONG = {
    "no inputs": body(None),
    "no data": body([IMAGE]),
    "a size that is not there": body([{**IMAGE, "parameters": {"binary_data_size": 10}}]),
    "a negative size": body([{**IMAGE, "parameters": {"binary_data_size": -1}}], b"x"),
    "an element longer than the rest": body([{**IMAGE, "parameters": {"binary_data_size": 6}}], b"\xff\0\0\0ab"),
    "bytes left over": body([{**IMAGE, "data": ["AAAA"]}], b"left"),
    "another count": body([{**IMAGE, "shape": [2], "data": ["AAAA"]}]),
    "a shape of nothing": body([{**IMAGE, "shape": [], "data": ["AAAA"]}]),
    "a huge shape": body([{**IMAGE, "shape": [1 << 40, 1 << 40], "data": ["AAAA"]}]),
    "a shape of texts": body([{**IMAGE, "shape": ["1"], "data": ["AAAA"]}]),
    "another type": body([{**IMAGE, "datatype": "INT64", "data": [1]}]),
    "no base64": body([{**IMAGE, "data": ["§"]}]),
    "a number": body([{**IMAGE, "data": [1]}]),
    "nested too deep": body([{**IMAGE, "data": [[[[[[[[[["AAAA"]]]]]]]]]]}]),
    "twice": body([{**IMAGE, "data": ["AAAA"]}] * 2),
    "an output that is not there": body([{**IMAGE, "data": ["AAAA"]}], outputs=[{"name": "logits"}]),
    "outputs of texts": body([{**IMAGE, "data": ["AAAA"]}], outputs=["label"]),
    "a tensor of another size": body(
        [{"name": "tensor", "datatype": "FP32", "shape": [1, 3, 1, 1], "data": [1, 2, 3]}]
    ),
    "a tensor of huge numbers": body(
        [{"name": "tensor", "datatype": "FP32", "shape": [1, 3, 1, 1], "data": [10**400, 0, 0]}]
    ),
    "parameters of text": body([{**IMAGE, "data": ["AAAA"]}], parameters="x"),
    "a timeout of text": body([{**IMAGE, "data": ["AAAA"]}], parameters={"timeout": "soon"}),
    "a header that lies": (b"{}", {"Inference-Header-Content-Length": "99"}),
    "a header of text": (b"{}", {"Inference-Header-Content-Length": "-1"}),
    "compressed": (b"{}", {"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("content, headers", WRONG.values(), ids=WRONG)
def test_what_is_no_request_is_refused_in_one_line(server, content, headers):
    answered = server.client.post("/v2/models/tiny/infer", content=content, headers=headers)
    assert answered.status_code in (400, 415), answered.text
    assert isinstance(answered.json()["error"], str)
    assert "\n" not in answered.json()["error"]


def test_tensors_of_nan_defer(client, server, bundle, red):
    spec = Preprocessing.from_json(read_manifest(bundle)["preprocessing"])
    good = to_tensor(decode(red), spec)
    tensor = triton.InferInput("tensor", [2, *good.shape], "FP32")
    tensor.set_data_from_numpy(np.stack([good, np.full_like(good, np.nan)]))
    digest = client.get_model_metadata("tiny")["parameters"]["preprocessing"]
    result = client.infer("tiny", [tensor], parameters={"preprocessing": digest})
    assert result.as_numpy("exit").tolist() == [True, False]
    assert b"NaN" in result.as_numpy("reason")[1]
