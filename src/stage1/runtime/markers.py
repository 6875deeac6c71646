"""What the bytes of a JPEG or PNG show before decoding: whether the picture ends, and of how many parts it is made."""

from __future__ import annotations

import re
from dataclasses import dataclass

# A marker that has a meaning of its own. FF00 is a data byte, FFFF a fill byte, FF01 and FFD0..D7 stand alone in a
# scan.
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd7\xff])", re.DOTALL)
_START, _END, _SCAN, _FIRST = 0xD8, 0xD9, 0xDA, 0xC0
_PNG_SIGNATURE = 8
# Readers take some ten microseconds for each. No writer makes nearly as many (500 MB in pieces of 8 KB: 64,000).
MAX_PARTS = 100_000


@dataclass(frozen=True, slots=True)
class Parts:
    """ends: the picture's end mark was reached. scans: passes over a JPEG. count: segments or chunks."""

    ends: bool
    scans: int
    count: int


def jpeg_parts(data: bytes) -> Parts:
    """Walk the markers of a JPEG from its start to its end mark (ITU T.81, B.1.1); what follows is ignored.

    Segments are passed by their length, so that the end mark of a thumbnail (in APP1, APP2, APP13, ...) is not taken
    for that of the picture. A second start mark before the end means that the first picture was cut off. Stops after
    MAX_PARTS.
    """
    scans, count, position = 0, 0, 2
    while count <= MAX_PARTS and (marker := _MARKER.search(data, position)):
        code, position = data[marker.start() + 1], marker.end()
        count += 1
        if code in (_START, _END):
            return Parts(code == _END, scans, count)
        if code < _FIRST:  # reserved: damaged data, which the decoder judges
            continue
        scans += code == _SCAN
        position += int.from_bytes(data[position : position + 2])
    return Parts(False, scans, count)


def png_parts(data: bytes) -> Parts:
    """Walk the chunks of a PNG (ISO 15948, 5.3) to IEND; stops after MAX_PARTS and at a chunk past the data."""
    count, position = 0, _PNG_SIGNATURE
    while count <= MAX_PARTS and position + 12 <= len(data):
        length, kind = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        count, position = count + 1, position + 12 + length
        if kind == b"IEND":
            return Parts(position <= len(data), 0, count)
    return Parts(False, 0, count)
