"""Images ahead of training: decoded and distorted in threads; order and numbers do not depend on the threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1.data.augment import training_tensor
from stage1.errors import DataError, SourceChanged
from stage1.runtime.images import decode
from stage1.runtime.preprocessing import Preprocessing
from stage1.runtime.session import cores
from stage1.runtime.stream import Item, read_item
from stage1.storage.files import digest_bytes
from stage1.training.selection import checked_features

# Steps whose images are in the making while one is computed.
_AHEAD = 2


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images of one role: ids str [N], items [N] to read, labels int64 [N] in 0..K-1. See `checked_images`."""

    ids: tuple[str, ...]
    items: Sequence[Item]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def digests(self, workers: int, max_pixels: int) -> list[str]:
        """sha256 of the bytes of each image. Raises SourceChanged naming an image that cannot be read."""
        with ThreadPoolExecutor(workers or cores(), thread_name_prefix="stage1-digest") as pool:
            return list(pool.map(lambda name, item: digest_bytes(_bytes(name, item, max_pixels)), self.ids, self.items))


def checked_images(ids: Sequence[str], items: Sequence[Item], labels: Any, n_classes: int, role: str) -> LabelledImages:
    """Lengths and label range of one role. Raises DataError naming `role`."""
    if len(ids) != len(items):
        raise DataError(f"{role}: {len(ids)} ids and {len(items)} images; one id for each image is expected")
    checked = checked_features(np.zeros((len(ids), 1), np.float32), labels, n_classes, role)
    return LabelledImages(tuple(str(name) for name in ids), items, checked.labels)


class Loader:
    """Tensors of images for given rows; a context manager that ends its threads.

    augment: a name of data/augment.py; "none" gives what evaluation sees. waiting: seconds in which `batches` had
    nothing to give, since the start; working: seconds between, in which the caller computed.
    """

    def __init__(
        self, items: Sequence[Item], names: Sequence[str], spec: Preprocessing, augment: str, seed: int, workers: int
    ) -> None:
        self._items, self._names, self._spec, self._augment, self._seed = items, names, spec, augment, seed
        self._pool = ThreadPoolExecutor(workers or cores(), thread_name_prefix="stage1-augment")
        self.waiting = 0.0
        self.working = 0.0

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    @property
    def waiting_share(self) -> float:
        """Share of the time in which training waited for images."""
        return self.waiting / max(self.waiting + self.working, 1e-9)

    def batches(self, plan: Sequence[NDArray[np.int64]], epoch: int, view: int = 0) -> Iterator[Tensor]:
        """float32 [len(rows), 3, S, S] on the CPU for each `rows` of the plan, in order; no rows, empty tensor.

        Row r of epoch e is a function of (seed, e, r, view) alone. Raises SourceChanged naming an image that cannot be
        read.
        """
        steps = iter(plan)
        running: deque[tuple[NDArray[np.int64], list[Future[NDArray[np.float32]]]]] = deque()

        def start(rows: NDArray[np.int64]) -> None:
            running.append((rows, [self._pool.submit(self._load, int(row), epoch, view) for row in rows]))

        for rows in islice(steps, _AHEAD):
            start(rows)
        try:
            while running:
                rows, futures = running.popleft()
                began = time.perf_counter()
                batch = torch.empty((len(rows), 3, self._spec.size, self._spec.size), dtype=torch.float32)
                for place, future in enumerate(futures):
                    batch[place] = torch.from_numpy(future.result())
                for following in islice(steps, 1):
                    start(following)
                given = time.perf_counter()
                self.waiting += given - began
                yield batch
                self.working += time.perf_counter() - given
        finally:
            for _, futures in running:
                for future in futures:
                    future.cancel()

    def _load(self, row: int, epoch: int, view: int) -> NDArray[np.float32]:
        name = self._names[row]
        data = _bytes(name, self._items[row], self._spec.max_pixels)
        try:
            rgb = decode(data, max_pixels=self._spec.max_pixels)
        except DataError as error:
            raise _unreadable(name, error) from error
        return training_tensor(rgb, self._augment, self._spec, seed=self._seed, epoch=epoch, index=row, view=view)


def _bytes(name: str, item: Item, max_pixels: int) -> bytes:
    try:
        return read_item(item, max_pixels=max_pixels)
    except (DataError, OSError) as error:
        raise _unreadable(name, error) from error


def _unreadable(name: str, error: Exception) -> SourceChanged:
    return SourceChanged(
        f"{name}: could be read at the split and cannot now ({error}); restore it, or run `stage1 split` again"
    )
