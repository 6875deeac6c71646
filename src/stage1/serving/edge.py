"""The outermost layer of the server: an id for each request, errors as one line of JSON, counts and the access log.

Plain ASGI, around everything else: no exception gets past it, and no traceback out of it.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stage1.extras import load
from stage1.serving.metrics import Metrics
from stage1.serving.refusal import Refusal
from stage1.serving.service import new_request_id

log = logging.getLogger("stage1.serving")


class Edge:
    """app: what answers. logged: a line of JSON per request on stderr, without content, names or keys. traced: a span
    of OpenTelemetry per request, by its API alone: where spans go is for the process's own SDK and settings.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, *, logged: bool, traced: bool = False) -> None:
        self._app, self._metrics, self._logged = app, metrics, logged
        self._tracer = load("opentelemetry.trace", "--trace").get_tracer("stage1.serving") if traced else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id
        began = time.perf_counter()
        status = 0

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        try:
            if self._tracer is None:
                await self._app(scope, receive, sending)
            else:
                with self._tracer.start_as_current_span("stage1 request") as span:
                    await self._app(scope, receive, sending)
                    span.set_attribute("http.route", getattr(scope.get("route"), "path", "none"))
                    span.set_attribute("http.response.status_code", status)
                    span.set_attribute("stage1.request_id", request_id)
        except Exception as error:  # the last net: what nobody foresaw is logged here, and is one line to the client
            log.exception("request %s failed", request_id)
            if status == 0:
                refusal = Refusal(
                    500, "failed", f"the server failed ({type(error).__name__}); its log has {request_id}"
                )
                await _send(sending, refusal.status, refused_body(scope["path"], refusal, request_id), refusal.headers)
        finally:
            seconds = time.perf_counter() - began
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            if self._logged:
                line = {
                    "at": round(time.time(), 3),
                    "request_id": request_id,
                    "method": scope["method"],
                    "route": route,
                    "status": status,
                    "ms": round(1000 * seconds, 2),
                }
                print(json.dumps(line), file=sys.stderr, flush=True)


def refused_body(path: str, refusal: Refusal, request_id: str) -> bytes:
    """The error of one form; under /v2 it is that protocol's, a text."""
    if path.startswith("/v2"):
        return json.dumps({"error": str(refusal), "code": refusal.code, "request_id": request_id}).encode()
    return refusal.body(request_id)


async def _send(send: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
    head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    head += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})
