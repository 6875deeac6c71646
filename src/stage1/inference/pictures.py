"""What a predictor is given, as items of the stream: paths, bytes, arrays and PIL images, all by way of the one decoder."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import DataError
from stage1.images import picture_pixels
from stage1.stream import Item

Picture: TypeAlias = Item | Image.Image | NDArray[np.uint8]


def name_of(picture: Picture, row: int) -> str:
    return os.fspath(picture) if isinstance(picture, (str, os.PathLike)) else f"#{row}"


def item_of(picture: Picture, row: int) -> Item:
    if isinstance(picture, (str, Path, bytes)):
        return picture
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise DataError(
                f"images[{row}]: {picture.dtype} of shape {picture.shape}; uint8 [H, W, 3] (RGB) is expected"
            )
        return _png(Image.fromarray(picture))
    if isinstance(picture, Image.Image):
        # In the thread that reads, as for a file: a picture that was opened but not read yet may be broken.
        return lambda: _png(Image.fromarray(picture_pixels(picture)))
    if callable(picture):
        return picture
    raise DataError(
        f"images[{row}]: {type(picture).__name__}; give a path, bytes, a PIL image or a uint8 array [H, W, 3]"
    )


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
