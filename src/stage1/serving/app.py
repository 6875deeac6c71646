"""The routes of the server, and how errors are answered."""

from __future__ import annotations

import html
import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from stage1.serving import assets, kept, v1, v2
from stage1.serving.edge import Edge, refused_body
from stage1.serving.metrics import CONTENT_TYPE
from stage1.serving.openapi import READY, responses
from stage1.serving.refusal import Refusal
from stage1.serving.service import Service
from stage1.version import __version__

_STATUS_CODES = {404: "not_found", 405: "method_not_allowed"}


def make_app(service: Service) -> ASGIApp:
    """Everything that is served at one address."""
    app = FastAPI(
        title="Stage-1 Pro",
        version=__version__,
        description="Answers or defers, image by image, under a certificate whose state is in every answer.",
        docs_url=None,  # their pages load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    app.include_router(v1.router)
    app.include_router(kept.router)
    app.include_router(v2.router)
    app.include_router(assets.router)
    _add_state_of_the_server(app, service)
    for kind in (Refusal, HTTPException, RequestValidationError, ClientDisconnect):
        app.add_exception_handler(kind, _refused)
    return Edge(app, service.metrics, logged=service.settings.log, traced=service.settings.trace)


def _add_state_of_the_server(app: FastAPI, service: Service) -> None:
    @app.get("/livez", response_class=PlainTextResponse, responses=responses(None))
    async def livez() -> Response:
        """The process runs and its loop turns."""
        return Response("ok\n", media_type="text/plain")

    @app.get("/readyz", responses=responses(READY, unready=READY))
    async def readyz() -> Response:
        """Whether workers answer, asked each time; and the state of every certificate. 503: none does."""
        answering = await service.answering()
        models = [v1.model_document(service, model) for model in service.models.all()]
        ready = answering > 0 or (
            bool(models) and all(service.models.unusable(model) for model in service.models.all())
        )
        document = {"ready": ready, "workers": answering, "models": models}
        return Response(json.dumps(document), 200 if ready else 503, media_type="application/json")

    @app.get("/metrics", response_class=PlainTextResponse, responses=responses(None))
    async def metrics() -> Response:
        """For Prometheus."""
        queue = service.queue
        service.metrics.waiting.set(0 if queue is None else queue.waiting)
        service.metrics.pending.set(0 if service.recorder is None else service.recorder.store.pending)
        service.metrics.workers.set(0 if queue is None else queue.workers)
        for model in service.models.all():
            service.metrics.standing(model, service.models.standing(model))
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return Response(docs_page(app.openapi()), media_type="text/html; charset=utf-8")


async def _refused(request: Request, error: Exception) -> Response:
    refusal = _refusal_of(error)
    request_id = request.state.request_id
    request.app.state.service.metrics.refused.labels(refusal.code).inc()
    body = refused_body(request.url.path, refusal, request_id)
    return Response(body, refusal.status, headers=refusal.headers, media_type="application/json")


def _refusal_of(error: Exception) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, HTTPException):
        code = _STATUS_CODES.get(error.status_code, "refused")
        refusal = Refusal(error.status_code, code, f"{error.detail}; /docs lists what there is")
        return refusal
    if isinstance(error, ClientDisconnect):
        return Refusal(499, "client_left", "the client left while it sent")
    first: dict[str, Any] = error.errors()[0] if isinstance(error, RequestValidationError) else {}
    where = ".".join(str(part) for part in first.get("loc", ())[1:])
    return Refusal(400, "bad_request", f"{where or 'request'}: {first.get('msg', 'not understood')}")


def docs_page(document: dict[str, Any]) -> str:
    """The operations of an OpenAPI document as one plain page, which loads nothing."""
    rows = "".join(
        f"<tr><td><code>{method.upper()}</code></td><td><code>{html.escape(path)}</code></td>"
        f"<td>{html.escape(operation.get('description', operation.get('summary', '')))}</td></tr>"
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    info = document["info"]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(info['title'])}: protocol</title>"
        "<style>body{font:1rem/1.5 system-ui;margin:2rem auto;max-width:60rem;padding:0 1rem;color:#111}"
        "td{vertical-align:top;padding:.3rem .8rem .3rem 0;border-top:1px solid #ccc}</style>"
        f"<h1>{html.escape(info['title'])} {html.escape(info['version'])}</h1>"
        f"<p>{html.escape(info['description'])} The whole document: <a href=/openapi.json>/openapi.json</a>.</p>"
        f"<table>{rows}</table></html>"
    )
