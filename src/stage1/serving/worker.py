"""A worker process: `python -m stage1.serving.worker FD` opens bundles and answers batches from its pipe, to the end.

It decodes what strangers send, so it may die: the server sees that, gives its batch to another one, and starts it anew.
It ends by itself where the server is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from dataclasses import asdict
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from stage1.errors import IntegrityError, Stage1Error
from stage1.inference.predictor import Bundle, Row, load_bundle, one_line
from stage1.serving.wire import Message, receive, send


class Opened:
    """A bundle that has answered once. with_company: see `Predictor.answer_batch`."""

    def __init__(self, folder: str, digest: str, *, batch_images: int, device: str | None) -> None:
        # No deadline of the session's own, which costs a thread for each run: the server ends a worker that takes long.
        self.bundle: Bundle = load_bundle(
            folder, batch_size=max(4, batch_images), threads=1, workers=1, deadline_s=None, device=device
        )
        if self.bundle.digest != digest:
            raise IntegrityError(
                f"{folder}: is bundle {self.bundle.digest[:12]} now, {digest[:12]} was loaded; restore it, or load it"
            )
        self.with_company = self._needs_company()
        self.seconds = self._warm()

    def rows(self, message: Message, blobs: list[bytes]) -> list[Row]:
        predictor, by = self.bundle.predictor, self.bundle.policy.sliced_by
        slices = None if by is None else {by: message["slices"]}
        if message["kind"] == "tensors":
            size = predictor.preprocessing.size
            tensors = np.stack([np.frombuffer(blob, dtype="<f4").reshape(3, size, size) for blob in blobs])
            return predictor.answer_tensors(tensors, slices=slices, with_company=self.with_company)
        return predictor.answer_batch(blobs, slices=slices, with_company=self.with_company)

    def _needs_company(self) -> bool:
        """Whether one image alone has other bits than beside another one, on noise: a sum in another order shows."""
        predictor = self.bundle.predictor
        if predictor.views is not None and predictor.views.sequence is not None:
            return True
        size = predictor.preprocessing.size
        noise = np.random.default_rng(0).normal(size=(3, size, size)).astype(np.float32)
        if predictor.engine.views is not None:
            noise = np.repeat(noise[None], predictor.engine.views, axis=0)
        alone = predictor.engine.run(noise[None])
        together = predictor.engine.run(np.stack([noise, noise]))
        return not all(np.array_equal(one[0], two[0], equal_nan=True) for one, two in zip(alone, together, strict=True))

    def _warm(self) -> float:
        """Seconds for an image, after a first answer from image bytes: the whole way works."""
        from stage1.inference.inputs import item_of

        side = self.bundle.predictor.preprocessing.size
        grey: Any = item_of(np.full((side, side, 3), 127, dtype=np.uint8), 0)
        slices = None if self.bundle.policy.sliced_by is None else {self.bundle.policy.sliced_by: [""]}
        began = 0.0
        for _ in range(2):
            began = time.perf_counter()
            (row,) = self.bundle.predictor.answer_batch([grey], slices=slices, with_company=self.with_company)
        if row.error is not None:
            raise IntegrityError(f"{self.bundle.folder}: no answer for a grey image ({row.error}); export it anew")
        return time.perf_counter() - began


def serve(connection: Connection) -> None:
    """Open what the first message names, say so, then answer to the end of the pipe."""
    wanted, _ = receive(connection)
    opened: dict[str, Opened] = {}
    failed: dict[str, str] = {}
    for digest, folder in wanted["bundles"].items():
        try:
            opened[digest] = Opened(folder, digest, batch_images=wanted["batch_images"], device=wanted["device"])
        except Stage1Error as error:
            failed[digest] = one_line(error)
    send(connection, {"failed": failed, "seconds": {digest: one.seconds for digest, one in opened.items()}})
    while True:
        message, blobs = receive(connection)
        if message["kind"] == "ping":
            send(connection, {"pong": True})
        else:
            send(connection, _answer(opened, message, blobs))


def _answer(opened: dict[str, Opened], message: Message, blobs: list[bytes]) -> Message:
    one = opened.get(message["bundle"])
    if one is None:
        return {"gone": True}
    began = time.perf_counter()
    try:
        rows = one.rows(message, blobs)
    except (Stage1Error, MemoryError) as error:
        return {"error": one_line(error) or type(error).__name__}
    except Exception as error:  # a bug, or a model that no check foresaw: the request fails, the worker goes on
        return {"error": f"{type(error).__name__}: {one_line(error)}"[:300]}
    return {"rows": [asdict(row) for row in rows], "seconds": time.perf_counter() - began}


def main() -> None:
    # Ctrl-C in a terminal goes to all processes of the group; the server ends its workers itself, after their batches.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    try:
        serve(connection)
    except (EOFError, OSError):
        # The server is gone, or has closed the pipe: there is nobody to answer. No clean-up of libraries either: a
        # session may sit in a thread.
        os._exit(0)


if __name__ == "__main__":
    main()
