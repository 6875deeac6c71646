"""What a request may cost before anything of it is decoded: bytes, time to send them, memory, images a minute."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from starlette.requests import ClientDisconnect, Request

from stage1.serving.refusal import Refusal

_LEAST_BUDGET = 256 << 20
# Of a body that is refused, what is still read and thrown away. Closing over bytes that nobody read resets the
# connection, and the client, which is still sending, never sees why it was refused.
_DISCARDED_BYTES, _DISCARDED_S = 4 << 20, 2.0


class Intake:
    """Bodies in memory, of all requests together: slow clients with large bodies cannot fill it.

    max_bytes: of one body. seconds: in which it must be there.
    """

    def __init__(self, max_bytes: int, seconds: float) -> None:
        self._max_bytes, self._seconds = max_bytes, seconds
        self._budget = max(4 * max_bytes, _LEAST_BUDGET)
        self.held = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body, while its memory is counted. Raises Refusal (400, 408, 413, 503)."""
        held, more = 0, True
        chunks: list[bytes] = []
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(415, "compressed", "compressed bodies are not taken; images are compressed already")
        try:
            announced = _announced(request)
            if announced is not None and announced > self._max_bytes:
                raise self._too_large(announced)
            async with asyncio.timeout(self._seconds):
                while more:
                    chunk, more = await _next(request)
                    held += len(chunk)
                    self.held += len(chunk)
                    if held > self._max_bytes:
                        raise self._too_large(held)
                    if self.held > self._budget:
                        raise Refusal(
                            503, "no_memory", "bodies of other requests fill the memory", retry_after=1, closes=True
                        )
                    chunks.append(chunk)
            if announced is not None and held != announced:
                raise Refusal(400, "truncated", f"{held} of {announced} bytes came; send the body again")
            yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except Refusal as refusal:
            if refusal.closes and more:
                await _discard(request)
            raise
        except TimeoutError:
            raise Refusal(408, "too_slow", f"the body was not there after {self._seconds:g} s", closes=True) from None
        except ClientDisconnect:
            raise Refusal(499, "client_left", "the client left while it sent") from None
        finally:
            self.held -= held

    def _too_large(self, size: int) -> Refusal:
        return Refusal(413, "too_large", f"{size} bytes or more; at most {self._max_bytes} are taken", closes=True)


async def _next(request: Request) -> tuple[bytes, bool]:
    """(the next bytes of the body, whether more come). Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return message.get("body", b""), message.get("more_body", False)


async def _discard(request: Request) -> None:
    """Read on for a while, and keep nothing."""
    left, more = _DISCARDED_BYTES, True
    with suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(_DISCARDED_S):
            while more and left > 0:
                chunk, more = await _next(request)
                left -= len(chunk)


def _announced(request: Request) -> int | None:
    length = request.headers.get("content-length")
    return int(length) if length is not None and length.isdecimal() else None


class Rate:
    """Images a minute of each key's holder, as a bucket that fills steadily. per_minute: None: no limit."""

    def __init__(self, per_minute: int | None) -> None:
        self._per_minute = per_minute
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}

    def take(self, holder: str, images: int) -> None:
        """Raises Refusal (429) where the holder has had its images; (413) for more at once than a minute's."""
        if self._per_minute is None:
            return
        if images > self._per_minute:
            raise Refusal(413, "too_many_images", f"{images} images; this key has {self._per_minute} a minute")
        now, each = time.monotonic(), self._per_minute / 60.0
        with self._lock:
            left, at = self._buckets.get(holder, (float(self._per_minute), now))
            left = min(float(self._per_minute), left + (now - at) * each)
            if left < images:
                self._buckets[holder] = (left, now)
                raise Refusal(
                    429,
                    "too_many_requests",
                    f"this key has {self._per_minute} images a minute; wait",
                    retry_after=(images - left) / each,
                )
            self._buckets[holder] = (left - images, now)
