"""The server's own protocol: images as they are, decisions as `stage1 predict` has them."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Request, Response
from python_multipart.exceptions import FormParserError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from stage1.errors import ConfigError, Stage1Error
from stage1.monitoring import Condition, State
from stage1.serving import openapi
from stage1.serving.models import Model
from stage1.serving.openapi import responses
from stage1.serving.refusal import Refusal, bad_request
from stage1.serving.service import Answer, Asked, Decided, Service, Wanted, fit_to_load
from stage1.store.events import LONGEST_NAME

router = APIRouter(prefix="/v1")

# Above this many bytes a body is parsed in a thread: the loop has others to serve.
_IN_THREAD = 256 << 10
_QUERY = ("model", "version", "id", "slice", "deadline_ms")


def service_of(request: Request) -> Service:
    found: Service = request.app.state.service
    return found


@router.post("/predict", openapi_extra=openapi.PREDICT, responses=responses(openapi.ANSWER))
async def predict(request: Request) -> Response:
    """Answer or defer, one or many images: the file itself, a multipart form of files, or JSON with base64."""
    service = service_of(request)
    holder = service.holder(request, "predict")
    async with service.intake.body(request) as body:
        images, options = await _read(request, body, service)
        wanted = Wanted(_text(options.get("model")), _text(options.get("version")))
        deadline = service.deadline(_milliseconds(options.get("deadline_ms")))
        answer = await service.decide(request, holder, wanted, images, deadline)
    return json_response(answer_document(answer))


@router.get("/policy", openapi_extra=openapi.WHICH_MODEL, responses=responses(openapi.POLICY))
async def policy(request: Request) -> Response:
    """Under what a model answers: its policy, its certificate whole, and whether that stands."""
    service = service_of(request)
    service.holder(request, "predict")
    model = service.models.find(_text(request.query_params.get("model")), _text(request.query_params.get("version")))
    return json_response(
        {
            **model_document(service, model),
            "policy_document": model.policy_document,
            "certificate": model.certificate,
        }
    )


@router.get("/models", responses=responses(openapi.MODELS))
async def models(request: Request) -> Response:
    """Every model that is served, with the standing of its certificate."""
    service = service_of(request)
    service.holder(request, "predict")
    return json_response({"models": [model_document(service, model) for model in service.models.all()]})


@router.get("/traffic", responses=responses(openapi.TRAFFIC))
async def traffic(request: Request) -> Response:
    """The last hour of this process, minute by minute; the whole history is in the store."""
    service = service_of(request)
    service.holder(request, "predict")
    return json_response(service.traffic.document(time.time()))


@router.post("/models/{name}/load", openapi_extra=openapi.LOAD, responses=responses(openapi.MODEL))
async def load(request: Request, name: str) -> Response:
    """Serve another bundle under this name, without a failed request. Scope admin."""
    service = service_of(request)
    service.holder(request, "admin")
    root = service.settings.load_from
    if root is None:
        raise Refusal(403, "loading_is_off", "start the server with --load-from FOLDER to load bundles while it serves")
    async with service.intake.body(request) as body:
        asked = await parsed_body(body)
    given = asked.get("bundle")
    if not isinstance(given, str) or not given or "\0" in given:
        raise bad_request('give {"bundle": FOLDER}, below the folder of --load-from')
    folder = (root / given).resolve()
    if not folder.is_relative_to(root.resolve()):
        raise Refusal(403, "outside", "this folder is not below that of --load-from")
    service.models.find(name)
    try:
        model = await service.load(name, folder)
    except Stage1Error as error:
        raise fit_to_load(error) from error
    return json_response(model_document(service, model))


@router.post("/models/{name}/conditions", openapi_extra=openapi.CONDITION, responses=responses(openapi.MODEL))
async def raise_condition(request: Request, name: str) -> Response:
    """Degrade or void the certificate, for a reason that every answer then gives. Scope admin."""
    service = service_of(request)
    holder = service.holder(request, "admin")
    async with service.intake.body(request) as body:
        asked = await parsed_body(body)
    model = service.models.find(name, _text(request.query_params.get("version")))
    condition = _condition(asked, holder.name)
    service.models.raise_condition(model, condition)
    return json_response(model_document(service, model))


@router.delete("/models/{name}/conditions/{condition}", responses=responses(openapi.MODEL))
async def clear_condition(request: Request, name: str, condition: str) -> Response:
    """Take a condition back that degrades; one that voids stays until a verified bundle is loaded. Scope admin."""
    service = service_of(request)
    service.holder(request, "admin")
    model = service.models.find(name, _text(request.query_params.get("version")))
    try:
        service.models.clear_condition(model, condition)
    except ConfigError as error:
        raise Refusal(409, "stays", str(error)) from error
    return json_response(model_document(service, model))


# ---- answers -----------------------------------------------------------------------------------------------------


def answer_document(answer: Answer) -> dict[str, Any]:
    return {
        "request_id": answer.request_id,
        "model": answer.model.name,
        "version": answer.model.version,
        "bundle": answer.model.digest,
        "policy": answer.model.policy_id,
        "state": answer.state.value,
        "reason": answer.reason,
        "answers": [_decided_document(one, answer.model) for one in answer.decided],
    }


def _decided_document(one: Decided, model: Model) -> dict[str, Any]:
    row = one.row
    shares = row.get("probabilities")
    found = {
        "index": one.index,
        "id": one.asked.name or None,
        "sha256": one.digest,
        "decision": row["decision"],
        "exit": row["exit"],
        "label": row["label"],
        "probability": row["probability"],
        "confidence": row.get("confidence"),
        "probabilities": None if shares is None else dict(zip(model.classes, shares, strict=True)),
        "score": row.get("score"),
        "reason": row.get("reason"),
        "error": row.get("error"),
    }
    if row.get("views") is not None:
        found |= {name: row[name] for name in ("views", "view", "box", "small")}
    return found


def model_document(service: Service, model: Model) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "latest": service.models.is_latest(model),
        "bundle": model.digest,
        "policy": model.policy_id,
        "classes": list(model.classes),
        "certified": model.certified,
        "slices": model.sliced_by,
        **service.models.standing(model).to_json(),
    }


def json_response(document: Any, status: int = 200) -> Response:
    # A name need not be valid UTF-8 (a lone surrogate, out of JSON): what is sent must be, so all is escaped.
    return Response(json.dumps(document, allow_nan=False), status, media_type="application/json")


# ---- requests ----------------------------------------------------------------------------------------------------


async def _read(request: Request, body: bytes, service: Service) -> tuple[list[Asked], dict[str, Any]]:
    """(images, options) of a body in any of the three forms. Raises Refusal (400, 415)."""
    query = {name: value for name in _QUERY if (value := request.query_params.get(name)) is not None}
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        document = await parsed_body(body)
        return _of_json(document, query)
    if kind == "multipart/form-data":
        return await _of_form(request, body, query, service), query
    if kind.startswith("image/") or kind in ("", "application/octet-stream"):
        if not body:
            raise bad_request("the body is empty; send an image")
        return [Asked(body, clean_name(query.get("id", "")), _slice(query.get("slice", "")))], query
    raise Refusal(415, "unknown_content", "send image/*, application/octet-stream, multipart/form-data or JSON")


def _of_json(document: Mapping[str, Any], query: Mapping[str, Any]) -> tuple[list[Asked], dict[str, Any]]:
    known = {"images", "model", "version", "deadline_ms"}
    if unknown := sorted(set(document) - known):
        raise bad_request(f"unknown key {unknown[0]!r}; there are {', '.join(sorted(known))}")
    images = document.get("images")
    if not isinstance(images, list):
        raise bad_request('give {"images": [{"data": BASE64, "id": NAME}]}')
    asked = []
    for index, one in enumerate(images):
        if not isinstance(one, dict) or not isinstance(one.get("data"), str):
            raise bad_request(f"images[{index}]: an object with `data` (base64) is expected")
        if unknown := sorted(set(one) - {"data", "id", "slice"}):
            raise bad_request(f"images[{index}]: unknown key {unknown[0]!r}; there are data, id, slice")
        asked.append(Asked(_base64(one["data"], index), clean_name(one.get("id")), _slice(one.get("slice"))))
    return asked, {**query, **{name: document[name] for name in known - {"images"} if name in document}}


async def _of_form(request: Request, body: bytes, query: Mapping[str, Any], service: Service) -> list[Asked]:
    async def chunks() -> AsyncIterator[bytes]:
        yield body

    class InMemory(MultiPartParser):
        spool_max_size = service.settings.max_bytes + 1

    try:
        parser = InMemory(request.headers, chunks(), max_files=service.settings.max_images, max_fields=0)  # type: ignore[arg-type]
        form = await parser.parse()
    except (MultiPartException, FormParserError, KeyError, ValueError) as error:
        line = getattr(error, "message", None) or str(error) or "no boundary"
        raise bad_request(f"multipart: {line}; send files") from error
    asked = []
    for _, part in form.multi_items():
        if isinstance(part, UploadFile):
            asked.append(Asked(await part.read(), clean_name(part.filename), _slice(query.get("slice", ""))))
    await form.close()
    return asked


async def parsed_body(body: bytes) -> dict[str, Any]:
    """The object of a JSON body. Raises Refusal (400)."""
    return _object(await asyncio.to_thread(_parsed, body) if len(body) > _IN_THREAD else _parsed(body))


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise bad_request(f"no JSON ({str(error)[:100] or type(error).__name__})") from error


def _object(document: Any) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise bad_request("a JSON object is expected")
    return document


def _base64(text: str, index: int) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise bad_request(f"images[{index}]: data is not base64; no line breaks, no data: address") from error


def clean_name(value: Any) -> str:
    """The client's own name of an image: kept as a value, never a path or a part of a query."""
    if value is None:
        return ""
    if isinstance(value, str):
        text = value.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")
        if len(text) <= LONGEST_NAME:
            return text
    raise bad_request(f"id: a text of at most {LONGEST_NAME} characters is expected")


def _slice(value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        raise bad_request("slice: a text is expected")
    return value


def _text(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise bad_request("model and version: texts are expected")
    return value


def _milliseconds(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise bad_request("deadline_ms: a number is expected")
    try:
        return float(value)
    except (ValueError, OverflowError) as error:
        raise bad_request("deadline_ms: a number is expected") from error


def _condition(asked: Mapping[str, Any], by: str) -> Condition:
    name, state, reason = asked.get("name"), asked.get("state"), asked.get("reason")
    if not isinstance(name, str) or not isinstance(reason, str) or state not in ("DEGRADED", "VOID"):
        raise bad_request('give {"name": .., "state": "DEGRADED" or "VOID", "reason": ..}')
    try:
        return Condition(name[:100], State(state), reason[:300], time.time(), by)
    except ConfigError as error:
        raise bad_request(str(error)) from error
