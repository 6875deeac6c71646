"""Messages between the server and a worker: a line of JSON, then the bytes of the images, as one frame of a pipe.

Nothing is pickled: a worker decodes what strangers send, and what it says back is read as data.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

Message = dict[str, Any]


def send(connection: Connection, message: Message, blobs: Sequence[bytes] = ()) -> None:
    """Raises OSError where nobody reads any more."""
    head = json.dumps({**message, "sizes": [len(blob) for blob in blobs]}, ensure_ascii=False).encode()
    connection.send_bytes(b"".join((len(head).to_bytes(4, "big"), head, *blobs)))


def receive(connection: Connection) -> tuple[Message, list[bytes]]:
    """Raises EOFError, OSError where nobody writes any more."""
    frame = memoryview(connection.recv_bytes())
    start = 4 + int.from_bytes(frame[:4], "big")
    message: Message = json.loads(bytes(frame[4:start]))
    blobs = []
    for size in message.pop("sizes"):
        blobs.append(bytes(frame[start : start + size]))
        start += size
    return message, blobs
