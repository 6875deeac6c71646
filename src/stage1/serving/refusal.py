"""Why a request is not answered: one status, one code, one line. No traceback ever leaves the server."""

from __future__ import annotations

import json
import math
from typing import Any

from stage1.runtime.images import REASONS

# Reasons of `decode` -> status. What is left is an image that cannot be processed: 422.
_STATUS = {"too large": 413, "not an image": 415, "unread format": 415, "unsupported mode": 415}


class Refusal(Exception):
    """status: HTTP. code: a word for programs. line: one line for people. retry_after: seconds, None: do not retry.

    closes: the rest of what the client sends is not waited for.
    """

    def __init__(
        self, status: int, code: str, line: str, *, retry_after: float | None = None, closes: bool = False
    ) -> None:
        super().__init__(" ".join(line.split()))
        self.status, self.code, self.retry_after, self.closes = status, code, retry_after, closes

    @property
    def headers(self) -> dict[str, str]:
        retry = {} if self.retry_after is None else {"Retry-After": str(max(1, math.ceil(self.retry_after)))}
        return retry | ({"Connection": "close"} if self.closes else {})

    def document(self, request_id: str) -> dict[str, Any]:
        return {"error": {"code": self.code, "message": str(self), "request_id": request_id}}

    def body(self, request_id: str) -> bytes:
        return json.dumps(self.document(request_id)).encode()


def image_status(error: str) -> tuple[int, str]:
    """(HTTP status, code) of a row's error.

    >>> image_status("too large: 9000 x 9000 px"), image_status("truncated: 12 bytes")
    ((413, 'too_large'), (422, 'truncated'))
    """
    reason = error.partition(":")[0]
    code = reason.replace(" ", "_") if reason in REASONS else "no_answer"
    return _STATUS.get(reason, 422), code


def bad_request(line: str) -> Refusal:
    return Refusal(400, "bad_request", line)
