"""From the client's picture to the pixels that the bundle was certified on: the decoder and kernel of `stage1.images`."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.images import ImageError, decode

_ORIENTATION_TAG = 0x0112
# What PNG holds without loss; what is converted as `images.decode` would.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")
_RGB_MODES = ("CMYK", "YCbCr", "RGBX", "RGBa", "La", "PA")


def pixels(image: Image.Image, max_pixels: int) -> NDArray[np.uint8]:
    """RGB pixels uint8 [H, W, 3] of a picture of any size and mode, equal to those of `load_bundle(..).predict([image])`.

    What the client sends (RGB, gray, upright, opaque) is taken as it lies in memory; all else goes by way of a lossless
    PNG through `decode`, which has the rules for orientation, transparency, palettes and 16 bits.
    Raises ImageError (too large, a mode without an agreed range, a picture that was opened lazily and is broken).
    """
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError("too large", f"{width} x {height} px, more than max_pixels={max_pixels}; shrink it")
    if image.mode not in _PNG_MODES + _RGB_MODES:
        raise ImageError("unsupported mode", f"pixels of mode {image.mode} have no agreed range; convert it to RGB")
    try:
        image.load()
        if image.mode in ("RGB", "L") and "transparency" not in image.info and _upright(image):
            return np.asarray(image.convert("RGB"))
        return decode(_png(image), max_pixels=max_pixels)
    except ImageError:
        raise
    except Exception as error:  # a reader fed with arbitrary bytes may raise anything; all of it means: broken picture
        raise ImageError("corrupt", " ".join(str(error).split())[:160] or type(error).__name__) from error


def _upright(image: Image.Image) -> bool:
    try:
        return bool(image.getexif().get(_ORIENTATION_TAG, 1) == 1)
    except Exception:  # a damaged EXIF block: the pixels are whole, and `images.decode` takes them as stored
        return True


def _png(image: Image.Image) -> bytes:
    whole = image if image.mode in _PNG_MODES else image.convert("RGBA" if "a" in image.mode.lower() else "RGB")
    stream = io.BytesIO()
    whole.save(stream, "PNG", compress_level=0, exif=image.getexif())
    return stream.getvalue()
