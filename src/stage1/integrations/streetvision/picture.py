"""What is done to a picture once: the pixels that the bundle was certified on, and the file that stages elsewhere are sent."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import DataError
from stage1.images import picture_pixels


def pixels(image: object, max_pixels: int) -> NDArray[np.uint8]:
    """RGB pixels uint8 [H, W, 3] of a picture of any size and mode, equal to those of `load_bundle(..).predict([image])`.

    Raises DataError (no picture), ImageError (too large, a mode without an agreed range, opened lazily and broken).
    """
    if not isinstance(image, Image.Image):
        raise DataError(f"image: {type(image).__name__}; a PIL image is expected")
    return picture_pixels(image, max_pixels=max_pixels)


def png(rgb: NDArray[np.uint8]) -> bytes:
    """The same pixels as a file, without loss, upright and opaque."""
    stream = io.BytesIO()
    Image.fromarray(rgb).save(stream, "PNG", compress_level=1)
    return stream.getvalue()
