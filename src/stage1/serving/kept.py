"""What was decided, asked of the store: decisions, open audits, images; and labels that come back to it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request, Response

from stage1.errors import DataError, IntegrityError, MissingError, Stage1Error, StoreError
from stage1.serving import openapi
from stage1.serving.keys import Holder
from stage1.serving.openapi import responses
from stage1.serving.recording import Recorder
from stage1.serving.refusal import Refusal, bad_request
from stage1.serving.service import Service
from stage1.serving.v1 import json_response, parsed_body, service_of
from stage1.store import LabelEvent, StoredDecision

router = APIRouter(prefix="/v1")

Found = TypeVar("Found")

_MOST = 1000
_LABEL_KEYS = ("request_id", "index", "image_digest", "image_id", "label", "who", "note")


@router.post("/feedback", openapi_extra=openapi.FEEDBACK, responses=responses(openapi.OUTCOMES))
async def feedback(request: Request) -> Response:
    """Labels of images that were decided about: by request and index, by the image's sha256, or by your name of it.

    Each has an outcome: stored, known (the same label by the same person before), unknown image, ambiguous image (a
    name of several), unknown class. Scope feedback.
    """
    service = service_of(request)
    holder = service.holder(request, "feedback")
    recorder = _recorder(service)
    async with service.intake.body(request) as body:
        given = (await parsed_body(body)).get("labels")
    if not isinstance(given, list) or not given:
        raise bad_request('give {"labels": [{"request_id": .., "index": 0, "label": ..}]}')
    if len(given) > _MOST:
        raise Refusal(413, "too_many_labels", f"{len(given)} labels; at most {_MOST} a request")
    events = [_label(one, index, holder) for index, one in enumerate(given)]
    outcomes = await _asked(lambda: _outcomes(service, recorder, events))
    return json_response({"outcomes": outcomes, "counts": dict(Counter(outcomes))})


@router.get("/decisions", openapi_extra=openapi.WHICH_DECISIONS, responses=responses(openapi.DECISIONS))
async def decisions(request: Request) -> Response:
    """Stored decisions in the order of their chain, with their labels; `newest`: from the end. Scope feedback."""
    service = service_of(request)
    service.holder(request, "feedback")
    store = _recorder(service).store
    query = request.query_params
    wanted: dict[str, Any] = {
        "after": _number(query.get("after"), "after", 0, 2**62),
        "before": _number(query.get("before"), "before", 2**62, 2**62),
        "limit": _number(query.get("limit"), "limit", 100, _MOST) or 1,
        "exit": _truth(query.get("exit"), "exit"),
        "newest": _truth(query.get("newest"), "newest") or False,
        "state": _one_of(query.get("state"), ("VALID", "DEGRADED", "VOID"), "state"),
        "model": _storable(query.get("model")),
    }
    found = await _asked(lambda: store.decisions(**wanted))
    return json_response({"decisions": [decision_document(one) for one in found]})


@router.get("/decisions/{request_id}", responses=responses(openapi.DECISIONS))
async def decision(request: Request, request_id: str) -> Response:
    """The decisions of one request. Scope feedback."""
    service = service_of(request)
    service.holder(request, "feedback")
    store = _recorder(service).store
    found = await _asked(lambda: store.find(request_id))
    if not found:
        raise Refusal(404, "no_such_request", "no decision of this request is kept")
    return json_response({"decisions": [decision_document(one) for one in found]})


@router.get("/audits", openapi_extra=openapi.WHICH_AUDITS, responses=responses(openapi.DECISIONS))
async def audits(request: Request) -> Response:
    """Decisions whose label is asked for and not there yet, oldest first. Scope feedback."""
    service = service_of(request)
    service.holder(request, "feedback")
    store = _recorder(service).store
    query = request.query_params
    after = _number(query.get("after"), "after", 0, 2**62)
    limit = _number(query.get("limit"), "limit", 20, _MOST) or 1
    found = await _asked(lambda: store.decisions(after=after, limit=limit, audit_open=True))
    return json_response({"decisions": [decision_document(one) for one in found]})


@router.get("/images/{sha256}", response_class=Response, responses=responses(None))
async def image(request: Request, sha256: str) -> Response:
    """The file of an image, where the server keeps them (--images). Scope feedback."""
    service = service_of(request)
    service.holder(request, "feedback")
    images = _recorder(service).images
    if images is None:
        raise Refusal(404, "not_kept", "this server keeps no images (--images FOLDER)")
    try:
        data = await asyncio.to_thread(images.get, sha256)
    except (MissingError, DataError, IntegrityError) as error:
        raise Refusal(404, "not_kept", "this image is not kept") from error
    # What a stranger sent is shown as an image or not at all, and runs nothing.
    safe = {"content-security-policy": "default-src 'none'", "x-content-type-options": "nosniff"}
    return Response(data, media_type=_media(data), headers=safe)


@router.get("/store", responses=responses(openapi.COUNTS))
async def counts(request: Request) -> Response:
    """Numbers of what is stored. Scope feedback."""
    service = service_of(request)
    service.holder(request, "feedback")
    store = _recorder(service).store
    return json_response({"counts": await _asked(store.counts), "trouble": bool(store.trouble)})


def decision_document(one: StoredDecision) -> dict[str, Any]:
    event = one.event
    return {
        "seq": one.seq,
        "request_id": event.request_id,
        "index": event.index,
        "image_digest": event.image_digest,
        "image_id": event.image_id,
        "model": event.model,
        "version": event.version,
        "bundle": event.bundle_digest,
        "policy": event.policy_id,
        "state": event.state,
        "reason": event.reason,
        "label": event.label,
        "exit": event.exit,
        "score": event.score,
        "probabilities": list(event.probabilities),
        "latency_ms": event.latency_ms,
        "received_at": event.received_at,
        "audit": event.audit,
        "propensity": event.propensity,
        "labels": [
            {"label": label.label, "who": label.who, "at": label.at, "source": label.source, "note": label.note}
            for label in one.labels
        ],
    }


def _recorder(service: Service) -> Recorder:
    if service.recorder is None:
        if service.settings.store is not None:
            raise Refusal(503, "not_ready", "the server is starting; try again", retry_after=1)
        raise Refusal(404, "no_store", "this server keeps no decisions (--store none)")
    return service.recorder


async def _asked(question: Callable[[], Found]) -> Found:
    """What the store says, in a thread. Raises Refusal (503) where it does not answer, 400 for what no store takes."""
    try:
        return await asyncio.to_thread(question)
    except StoreError as error:
        raise Refusal(503, "store_unavailable", "the store does not answer; try again", retry_after=5) from error
    except DataError as error:
        raise bad_request(str(error)) from error
    except Stage1Error as error:
        raise Refusal(503, "store_unavailable", "the store cannot be read; its log says why") from error


def _label(given: Any, index: int, holder: Holder) -> LabelEvent:
    if not isinstance(given, dict):
        raise bad_request(f"labels[{index}]: an object is expected")
    if unknown := sorted(set(given) - set(_LABEL_KEYS)):
        raise bad_request(f"labels[{index}]: unknown key {str(unknown[0])[:60]!r}; there are {', '.join(_LABEL_KEYS)}")
    who = given.get("who", "")
    if not isinstance(who, str):
        raise bad_request(f"labels[{index}]: who: a text is expected")
    values = {name: value for name, value in given.items() if name != "who"}
    try:
        # The key's holder is who says it; several people may share one key.
        return LabelEvent(
            **{"label": "", **values},
            who=f"{holder.name}/{who}" if who else holder.name,
            at=time.time(),
            source="feedback",
        )
    except DataError as error:
        raise bad_request(f"labels[{index}]: {error}") from error


def _outcomes(service: Service, recorder: Recorder, events: Sequence[LabelEvent]) -> list[str]:
    """One outcome for each label; those of no class of a model that is served are not stored."""
    classes = {name for model in service.models.all() for name in model.classes}
    known = [event for event in events if event.label in classes]
    stored = iter(recorder.store.label(known))
    return [next(stored) if event.label in classes else "unknown class" for event in events]


def _number(given: str | None, name: str, default: int, most: int) -> int:
    if given is None:
        return default
    if not given.isascii() or not given.isdecimal() or len(given) > 20 or int(given) > most:
        raise bad_request(f"{name}: a whole number from 0 to {most} is expected")
    return int(given)


def _truth(given: str | None, name: str) -> bool | None:
    found: Mapping[str | None, bool | None] = {None: None, "true": True, "false": False}
    if given not in found:
        raise bad_request(f"{name}: true or false is expected")
    return found[given]


def _one_of(given: str | None, known: Sequence[str], name: str) -> str | None:
    if given is not None and given not in known:
        raise bad_request(f"{name}: one of {', '.join(known)} is expected")
    return given


def _storable(given: str | None) -> str | None:
    if given is not None and ("\0" in given or len(given) > 200):
        raise bad_request("model: no model has such a name")
    return given


def _media(data: bytes) -> str:
    starts = {b"\xff\xd8\xff": "image/jpeg", b"\x89PNG": "image/png", b"GIF8": "image/gif", b"RIFF": "image/webp"}
    return next((kind for start, kind in starts.items() if data.startswith(start)), "application/octet-stream")
