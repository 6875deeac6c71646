"""Where the bytes of an image are: a file, or a place in a tar, Parquet or Arrow file; and reading them."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import DataError
from stage1.runtime.images import IMAGE_COLUMNS, read_image_file, require_bytes
from stage1.storage.texts import READ_FAILURES, read_failure

CONTAINERS = (".tar", ".parquet", ".arrow")


def split_locator(path: str) -> tuple[str, str] | None:
    """("archive.tar", "member") of "archive.tar::member"; None where `path` is a plain file."""
    for suffix in CONTAINERS:
        container, sign, inner = path.partition(f"{suffix}::")
        if sign:
            return container + suffix, inner
    return None


def read_locator(path: str, *, max_pixels: int | None = None) -> bytes:
    """The bytes behind a path or a locator. Thread-safe. Raises OSError with the reason.

    max_pixels: refuses a file or member with more bytes than so many pixels can take, and what is no file: ImageError.
    """
    parts = split_locator(path)
    if parts is None:
        return read_image_file(path, max_pixels=max_pixels)
    container, inner = parts
    changed = os.stat(container).st_mtime_ns
    if container.endswith(".tar"):
        place = tar_members(container, changed).get(inner)
        if place is None:
            raise FileNotFoundError(f"{container} has no member {inner!r}")
        require_bytes(place[1], max_pixels)
        return tar_bytes(container, inner, place)
    try:
        embedded = _embedded(container, changed, int(inner))
    except READ_FAILURES as error:
        raise OSError(f"{container} row {inner} cannot be read ({read_failure(error)})") from error
    if embedded is None:
        raise FileNotFoundError(f"{container} row {inner} holds no image bytes")
    return embedded


def tar_bytes(container: str, name: str, place: tuple[int, int], *, at_most: int | None = None) -> bytes:
    """The bytes (or first `at_most`) of a member at `place` (offset, size). Raises OSError past the end."""
    offset, size = place
    with open(container, "rb") as stream:
        # Not asked for blindly: a damaged header may claim any size, and memory would be taken for it.
        if offset + size > os.fstat(stream.fileno()).st_size:
            raise OSError(f"{container} ends inside member {name!r}")
        size = size if at_most is None else min(size, at_most)
        data = os.pread(stream.fileno(), size, offset)
    if len(data) != size:
        raise OSError(f"{container} ends inside member {name!r}")
    return data


@lru_cache(maxsize=1024)
def tar_members(path: str, changed: int) -> dict[str, tuple[int, int]]:
    """Name -> (offset, size) of the regular files in an uncompressed tar; `changed` (mtime) keys the cache.

    A tar that ends inside a member keeps the members before it and the cut one, whose bytes then fail to read.
    Raises OSError where it is no tar, or where a header in it is damaged: what comes after it would be lost unseen.
    """
    members: dict[str, tuple[int, int]] = {}
    last = -1
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if member.offset <= last or member.size < 0:
                    raise ValueError(f"the header at byte {member.offset} leads back")  # and would do so for ever
                last = member.offset
                if member.isfile():
                    members[member.name] = (member.offset_data, member.size)
            end = archive.offset
    except tarfile.ReadError as error:
        # An empty archive is a valid one for tar and "empty header" for tarfile when it has 0 bytes.
        if not members:
            raise OSError(f"{path} is no readable uncompressed tar ({read_failure(error)})") from error
        return members
    except (*READ_FAILURES, tarfile.TarError) as error:
        raise OSError(f"{path} is no readable uncompressed tar ({read_failure(error)})") from error
    if _more_than_zeros(path, end):
        raise OSError(f"{path} is damaged: no header of a member at byte {end}, and more after it")
    return members


def _more_than_zeros(path: str, start: int) -> bool:
    with open(path, "rb") as stream:
        stream.seek(start)
        while piece := stream.read(1 << 20):
            if piece.strip(b"\0"):
                return True
    return False


def _embedded(path: str, changed: int, row: int) -> bytes | None:
    starts = embedded_starts(path, changed)
    piece = int(np.searchsorted(starts, row, side="right")) - 1
    value = _embedded_piece(path, changed, piece)[row - int(starts[piece])].as_py()
    if isinstance(value, dict):
        value = value.get("bytes")
    return value if value is None or isinstance(value, bytes) else None


@lru_cache(maxsize=1024)
def embedded_starts(path: str, changed: int) -> NDArray[np.int64]:
    """First row of each row group (Parquet) or record batch (Arrow), and the number of rows as last entry."""
    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        meta = pq.ParquetFile(path).metadata
        sizes = [meta.row_group(index).num_rows for index in range(meta.num_row_groups)]
    else:
        sizes = [batch.num_rows for batch in _arrow_batches(path, changed)]
    return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])


@lru_cache(maxsize=8)
def _embedded_piece(path: str, changed: int, piece: int) -> Any:
    """The image column of one row group or record batch; a few are kept, as rows are read in order."""
    if path.endswith(".parquet"):
        import pyarrow.parquet as pq

        file = pq.ParquetFile(path)
        name = image_column(file.schema_arrow.names, path)
        return file.read_row_group(piece, columns=[name])[name].combine_chunks()
    batch = _arrow_batches(path, changed)[piece]
    return batch.column(image_column(batch.schema.names, path))


@lru_cache(maxsize=64)
def _arrow_batches(path: str, changed: int) -> list[Any]:
    """Record batches of an Arrow stream (Hugging Face's format), memory-mapped: nothing is copied before it is read."""
    import pyarrow as pa

    try:
        with pa.ipc.open_stream(pa.memory_map(path)) as reader:
            return list(reader)
    except pa.ArrowException as error:
        raise OSError(f"{path} is no readable Arrow stream ({error})") from error


def image_column(names: Iterable[str], where: str) -> str:
    """The column that holds the image or its path, by the first alias present. Raises DataError naming those there."""
    known = list(names)
    for alias in IMAGE_COLUMNS:
        if alias in known:
            return alias
    raise DataError(
        f"{where}: no image column (one of {', '.join(IMAGE_COLUMNS)}); it has {', '.join(known) or 'none'}"
    )


def is_utf8(text: str) -> bool:
    """False for the name of a file whose bytes are no UTF-8 (they are in it as lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
