"""The Open Inference Protocol V2 (REST) beside /v1: images as BYTES tensors, or preprocessed FP32 tensors.

Inputs: `image` BYTES [N] (or [N, 1]), image files; or `tensor` FP32 [N, 3, S, S], preprocessed by the client, which
says with which preprocessing in `parameters.preprocessing` (the digest in the model's metadata): without it nothing is
known of the pixels and the certificate does not cover them. Beside them `id` and `slice`, BYTES [N].
Outputs: `label`, `exit`, `score`, `probabilities`, `reason` (why it defers, or what is wrong with the file). State,
policy and bundle are in `parameters`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response

from stage1.serving import openapi
from stage1.serving.openapi import responses
from stage1.serving.refusal import bad_request
from stage1.serving.service import Answer, Asked, Wanted
from stage1.serving.tensors import HEADER, Json, Tensor, read_inputs, split_body, wanted_outputs, write_outputs
from stage1.serving.v1 import clean_name, json_response, parsed_body, service_of
from stage1.version import __version__

router = APIRouter(prefix="/v2")

OUTPUTS = ("label", "exit", "score", "probabilities", "reason")
_READY = responses(openapi.V2_READY, error=openapi.V2_ERROR, unready=openapi.V2_READY)
_TEXT_INPUTS = ("id", "slice")


@router.get("", responses=responses(openapi.V2_SERVER, error=openapi.V2_ERROR))
async def server() -> Response:
    """Name, version and extensions."""
    return json_response({"name": "stage1-pro", "version": __version__, "extensions": ["binary_tensor_data"]})


@router.get("/health/live", responses=responses(openapi.V2_LIVE, error=openapi.V2_ERROR))
async def live() -> Response:
    """The process runs."""
    return json_response({"live": True})


@router.get("/health/ready", responses=_READY)
async def ready(request: Request) -> Response:
    """Whether workers answer."""
    answering = await service_of(request).answering()
    return json_response({"ready": answering > 0}, 200 if answering > 0 else 503)


@router.get("/models/{name}", responses=responses(openapi.V2_MODEL, error=openapi.V2_ERROR))
@router.get("/models/{name}/versions/{version}", responses=responses(openapi.V2_MODEL, error=openapi.V2_ERROR))
async def model(request: Request, name: str, version: str | None = None) -> Response:
    """What goes into a model and comes out of it."""
    service = service_of(request)
    service.holder(request, "predict")
    found = service.models.find(name, version)
    inputs: list[Json] = [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    if found.whole:
        inputs.append({"name": "tensor", "datatype": "FP32", "shape": [-1, 3, found.size, found.size]})
    return json_response(
        {
            "name": found.name,
            "versions": [other.version for other in service.models.all() if other.name == name],
            "platform": "stage1_onnxruntime",
            "inputs": inputs,
            "outputs": [
                {"name": "label", "datatype": "BYTES", "shape": [-1]},
                {"name": "exit", "datatype": "BOOL", "shape": [-1]},
                {"name": "score", "datatype": "FP64", "shape": [-1]},
                {"name": "probabilities", "datatype": "FP64", "shape": [-1, len(found.classes)]},
                {"name": "reason", "datatype": "BYTES", "shape": [-1]},
            ],
            "parameters": {
                "classes": ", ".join(found.classes),
                "preprocessing": found.preprocessing,
                "bundle": found.digest,
                "policy": found.policy_id,
                "state": service.models.standing(found).state.value,
            },
        }
    )


@router.get("/models/{name}/ready", responses=_READY)
@router.get("/models/{name}/versions/{version}/ready", responses=_READY)
async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
    """Whether workers answer for this model."""
    service = service_of(request)
    service.holder(request, "predict")
    service.models.find(name, version)
    answering = await service.answering()
    return json_response({"name": name, "ready": answering > 0}, 200 if answering > 0 else 503)


@router.post(
    "/models/{name}/infer",
    openapi_extra=openapi.V2_REQUEST,
    responses=responses(openapi.V2_ANSWER, error=openapi.V2_ERROR),
)
@router.post(
    "/models/{name}/versions/{version}/infer",
    openapi_extra=openapi.V2_REQUEST,
    responses=responses(openapi.V2_ANSWER, error=openapi.V2_ERROR),
)
async def infer(request: Request, name: str, version: str | None = None) -> Response:
    """Answer or defer."""
    service = service_of(request)
    holder = service.holder(request, "predict")
    async with service.intake.body(request) as body:
        text, binary = split_body(body, request.headers.get(HEADER.lower()))
        document = await parsed_body(text)
        names, in_binary = wanted_outputs(document, OUTPUTS)
        inputs = read_inputs(document.get("inputs"), binary, texts=_TEXT_INPUTS)
        model = service.models.find(name, version)
        parameters = document.get("parameters", {})
        if not isinstance(parameters, dict):
            raise bad_request("parameters: an object is expected")
        images, kind = _asked(inputs, model.size, whole=model.whole)
        doubt = None
        if kind == "tensors" and parameters.get("preprocessing") != model.preprocessing:
            doubt = "the preprocessing of these tensors is not known to be the certified one (parameters.preprocessing)"
        deadline = service.deadline(_milliseconds(parameters.get("timeout")))
        answer = await service.decide(request, holder, Wanted(name, version), images, deadline, kind=kind, doubt=doubt)
    head = _head(answer, document.get("id"))
    outputs = _outputs(answer)
    content, length = write_outputs(head, {one: outputs[one] for one in names}, in_binary)
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER: str(length)}, media_type="application/octet-stream")


def _asked(inputs: dict[str, Tensor], size: int, *, whole: bool) -> tuple[list[Asked], str]:
    """(images, their kind). Raises Refusal (400)."""
    main = [inputs[name] for name in ("image", "tensor") if name in inputs]
    if len(main) != 1 or (unknown := set(inputs) - {"image", "tensor", *_TEXT_INPUTS}):
        extra = f", not {sorted(unknown)[0]!r}" if len(main) == 1 else ""
        raise bad_request(f"inputs: one of `image` (BYTES) and `tensor` (FP32), beside it `id` and `slice`{extra}")
    first, kind = main[0], "images" if main[0].name == "image" else "tensors"
    if kind == "images":
        if first.datatype != "BYTES" or (len(first.shape) > 1 and first.shape[1:] != (1,)):
            raise bad_request(
                f"input 'image': BYTES of shape [N] is expected, not {first.datatype} {list(first.shape)}"
            )
        assert isinstance(first.elements, list)
        data = first.elements
    else:
        if not whole:
            raise bad_request("input 'tensor': this bundle answers from several views of an image; send `image`")
        if first.datatype != "FP32" or first.shape[1:] != (3, size, size):
            raise bad_request(f"input 'tensor': FP32 of shape [N, 3, {size}, {size}] is expected")
        assert isinstance(first.elements, np.ndarray)
        data = [np.ascontiguousarray(one, dtype="<f4").tobytes() for one in first.elements]
    names, slices = ([""] * len(data) if one not in inputs else inputs[one].texts for one in _TEXT_INPUTS)
    if not len(names) == len(slices) == len(data):
        raise bad_request(f"inputs: {len(data)} images, {len(names)} ids, {len(slices)} slices")
    asked = [Asked(*one) for one in zip(data, map(clean_name, names), map(clean_name, slices), strict=True)]
    return asked, kind


def _milliseconds(timeout: Any) -> float | None:
    """Of `parameters.timeout`, in microseconds as Triton has it."""
    if timeout is None:
        return None
    if isinstance(timeout, bool) or not isinstance(timeout, int) or timeout < 0:
        raise bad_request("parameters.timeout: microseconds are expected")
    return timeout / 1000.0 if timeout else None


def _head(answer: Answer, given: Any) -> Json:
    head: Json = {
        "model_name": answer.model.name,
        "model_version": answer.model.version,
        "parameters": {
            "state": answer.state.value,
            "reason": answer.reason or "",
            "policy": answer.model.policy_id,
            "bundle": answer.model.digest,
            "request_id": answer.request_id,
        },
    }
    return head if not isinstance(given, str) else {**head, "id": given}


def _outputs(answer: Answer) -> dict[str, tuple[str, list[int], list[Any]]]:
    rows = [one.row for one in answer.decided]
    n, k = len(rows), len(answer.model.classes)
    return {
        "label": ("BYTES", [n], [row["label"] or "" for row in rows]),
        "exit": ("BOOL", [n], [row["exit"] for row in rows]),
        "score": ("FP64", [n], [row.get("score") for row in rows]),
        "probabilities": (
            "FP64",
            [n, k],
            [share for row in rows for share in (row.get("probabilities") or [None] * k)],
        ),
        "reason": ("BYTES", [n], [row.get("error") or row.get("reason") or "" for row in rows]),
    }
