"""What a predictor is given, as items of the stream: paths, bytes, arrays and PIL images, all by way of the one decoder."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import DataError
from stage1.stream import Item

Picture: TypeAlias = Item | Image.Image | NDArray[np.uint8]

# What PNG can hold without loss; the rest of what `decode` accepts goes to RGB by the conversion that `decode` uses.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
_RGB_MODES = ("CMYK", "YCbCr", "RGBX", "RGBa", "La", "PA")


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
        return _png(picture)
    if callable(picture):
        return picture
    raise DataError(
        f"images[{row}]: {type(picture).__name__}; give a path, bytes, a PIL image or a uint8 array [H, W, 3]"
    )


def _png(image: Image.Image) -> Callable[[], bytes]:
    def encoded() -> bytes:
        if image.mode not in _PNG_MODES + _RGB_MODES:
            raise DataError(f"unsupported mode: pixels of mode {image.mode} have no agreed range; convert it to RGB")
        try:
            exif = image.getexif()
            whole = image if image.mode in _PNG_MODES else image.convert("RGBA" if "a" in image.mode.lower() else "RGB")
            buffer = io.BytesIO()
            whole.save(buffer, "PNG", compress_level=0, exif=exif)
        except (OSError, SyntaxError, ValueError) as error:  # a picture that was opened but not read yet may be broken
            raise DataError(f"corrupt: {' '.join(str(error).split())}") from error
        return buffer.getvalue()

    return encoded
