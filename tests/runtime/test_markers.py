"""stage1.runtime.markers: a picture ends at its own end mark, and the walk is bounded."""

from __future__ import annotations

import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from stage1.runtime.markers import MAX_PARTS, Parts, jpeg_parts, png_parts

COMMENT = b"\xff\xfe\x00\x02"


def jpeg(size: int = 24, **options) -> bytes:
    noise = np.random.default_rng(3).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "JPEG", **options)
    return stream.getvalue()


def segment(code: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, code, len(body) + 2) + body


@pytest.mark.parametrize(
    "options",
    [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_rows": 1}, {"quality": 100}],
    ids=lambda options: next(iter(options), "baseline"),
)
def test_a_jpeg_ends_at_its_end_mark_and_nowhere_before(options) -> None:
    data = jpeg(**options)
    assert jpeg_parts(data).ends
    assert jpeg_parts(data + b"garbage \xff\xd8 \xff\xda").ends
    assert jpeg_parts(data).scans == (1 if "progressive" not in options else data.count(b"\xff\xda"))
    for cut in range(4, len(data) - 1, 7):
        assert not jpeg_parts(data[:cut]).ends


@pytest.mark.parametrize("code", [0xE1, 0xE2, 0xED, 0xFE], ids=["EXIF", "ICC or MPF", "Photoshop", "comment"])
def test_the_end_mark_inside_a_segment_is_not_that_of_the_picture(code: int) -> None:
    whole = jpeg(120)
    data = whole[:2] + segment(code, jpeg(16)) + whole[2:]
    assert jpeg_parts(data).ends
    half = len(data) - len(whole) // 2
    assert not jpeg_parts(data[:half]).ends
    assert not jpeg_parts(data[:half] + bytes(len(data) - half)).ends, "zeros where the rest should be"
    assert not jpeg_parts(data[:half] + whole).ends, "another picture starts before the end of this one"


def test_a_png_ends_at_its_own_last_chunk() -> None:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), "red").save(stream, "PNG")
    data = stream.getvalue()
    inner = struct.pack(">I", len(data)) + b"tEXt" + data + bytes(4)
    nested = data[:33] + inner + data[33:]
    assert png_parts(data) == Parts(True, 0, 3)
    assert png_parts(nested) == Parts(True, 0, 4)
    for cut in range(1, len(data) - 33):
        assert not png_parts(nested[:-cut]).ends
    assert not png_parts(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 2**32 - 1) + b"IDAT" + bytes(99)).ends


@pytest.mark.parametrize(
    "data, expected",
    [
        (b"\xff\xd8" + COMMENT * 3_000_000, Parts(False, 0, MAX_PARTS + 1)),
        (b"\xff\xd8" + b"\xff" * 20_000_000 + b"\0", Parts(False, 0, 0)),
        (b"\xff\xd8" + b"\xff\xd0" * 10_000_000, Parts(False, 0, 0)),
        (b"\xff\xd8" + b"\xff\x10" * 10_000_000, Parts(False, 0, MAX_PARTS + 1)),
    ],
    ids=["segments", "fill bytes", "restarts", "reserved"],
)
def test_the_walk_through_a_jpeg_is_bounded(data: bytes, expected: Parts) -> None:
    start = time.process_time()
    assert jpeg_parts(data) == expected
    assert time.process_time() - start < 5


def test_the_walk_through_a_png_is_bounded() -> None:
    start = time.process_time()
    assert png_parts(b"\x89PNG\r\n\x1a\n" + b"\0\0\0\0teXt\0\0\0\0" * 2_000_000).count == MAX_PARTS + 1
    assert time.process_time() - start < 5
