"""The outermost layer alone: whatever the app does, one line of JSON comes out, and it is counted."""

from __future__ import annotations

import asyncio
import json
from unittest import mock

import pytest

from stage1.serving.edge import Edge
from stage1.serving.metrics import Metrics


def through(app, path: str = "/v1/x", **options) -> tuple[list[dict], Metrics]:
    """What is sent for a request."""
    sent: list[dict] = []
    metrics = Metrics()

    async def receive() -> dict:
        return {"type": "http.request", "body": b""}

    async def send(message: dict) -> None:
        sent.append(message)

    scope = {"type": "http", "path": path, "method": "GET"}
    asyncio.run(Edge(app, metrics, logged=False, **options)(scope, receive, send))
    return sent, metrics


async def fails(scope, receive, send) -> None:
    raise KeyError("a secret")


async def fails_late(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise KeyError("a secret")


async def answers(scope, receive, send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("path", ["/v1/x", "/v2/x"])
def test_what_nobody_foresaw_is_one_line_without_its_details(path):
    (head, body), metrics = through(fails, path)
    assert head["status"] == 500
    document = json.loads(body["body"])
    line = document["error"] if path.startswith("/v2") else document["error"]["message"]
    assert "the server failed (KeyError)" in line
    assert "secret" not in body["body"].decode()
    assert b'status="500"' in metrics.text()


def test_an_answer_that_has_begun_is_not_begun_again():
    sent, _ = through(fails_late)
    assert [message["type"] for message in sent] == ["http.response.start"]


def test_a_span_is_opened_by_the_api_alone():
    pytest.importorskip("opentelemetry.trace", reason="the API of OpenTelemetry is not installed")
    with mock.patch("opentelemetry.trace.get_tracer") as tracer:
        sent, _ = through(answers, traced=True)
    assert sent[0]["status"] == 204
    span = tracer.return_value.start_as_current_span.return_value.__enter__.return_value
    assert mock.call("http.response.status_code", 204) in span.set_attribute.call_args_list
    request_id = dict(sent[0]["headers"])[b"x-request-id"].decode()
    assert mock.call("stage1.request_id", request_id) in span.set_attribute.call_args_list
