"""The one way from pixels to the tensor of a model: the preprocessing spec, and resizing and normalising by it."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import DataError
from stage1.runtime.images import DECODE, MAX_PIXELS, decode

_INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Everything between image bytes and the model's input tensor; travels in the bundle.

    size: side of the square input, pixels, 1..4096.
    fit: "squash" resizes the whole image to size x size; "center_crop" resizes the shorter side to size, then cuts
        the centre square (what lies outside is never seen).
    interpolation: Pillow's kernel, antialiased; other libraries' kernels differ by up to 116 levels.
    mean, std: per channel, for pixels in [0, 1]: (v / 255 - mean) / std.
    max_pixels: images above this are refused unread.
    Raises DataError naming the field.
    """

    size: int = 224
    fit: Literal["squash", "center_crop"] = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        for name, high in (("size", 4096), ("max_pixels", 2**40)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
                raise DataError(f"preprocessing: {name} is {value!r}; a whole number 1..{high} is needed")
        for name, allowed in (("fit", ("squash", "center_crop")), ("interpolation", tuple(_INTERPOLATIONS))):
            if getattr(self, name) not in allowed:
                raise DataError(f"preprocessing: {name} is {getattr(self, name)!r}; use {' or '.join(allowed)}")
        for name in ("mean", "std"):
            try:
                values = tuple(float(value) for value in getattr(self, name))
            except (TypeError, ValueError) as error:
                raise DataError(
                    f"preprocessing: {name} is {getattr(self, name)!r}; three numbers are needed"
                ) from error
            if len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
                raise DataError(f"preprocessing: {name} is {values}; three finite numbers are needed, std above 0")
            object.__setattr__(self, name, values)

    def to_json(self) -> dict[str, Any]:
        """The spec as plain JSON values, with what `decode` does under "decode"."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std), "decode": dict(DECODE)}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Preprocessing:
        """The inverse of `to_json`. Raises DataError for an unknown field, a bad value, or another way of decoding."""
        if not isinstance(document, dict):
            raise DataError(f"preprocessing: {type(document).__name__}; a mapping is expected")
        values = dict(document)
        if values.pop("decode", DECODE) != DECODE:
            raise DataError("preprocessing: made for another way of decoding images; use the stage1-pro that made it")
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(values) - set(known)):
            raise DataError(f"preprocessing: unknown field {unknown[0]!r}; known are {', '.join(known)}")
        return cls(**values)

    @property
    def digest(self) -> str:
        """sha256 of the spec: equal exactly where every image gives the same tensor or the same refusal."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def to_tensor(rgb: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """RGB pixels uint8 [H, W, 3] -> float32 [3, size, size], resized and normalised by `spec`.

    No picture in between is larger than `spec.max_pixels`: of a strip so long that resizing its shorter side would make
    one, only the part that "center_crop" keeps is resized (the same picture, rounded differently between the two passes
    of the kernel).
    Raises DataError for another shape or dtype.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise DataError(f"image: {rgb.dtype} of shape {rgb.shape}; uint8 [H, W, 3] is expected")
    image = Image.fromarray(rgb)
    kernel, size = _INTERPOLATIONS[spec.interpolation], spec.size
    if spec.fit == "center_crop":
        short = min(image.size)
        # As torchvision's Resize(size) and CenterCrop(size): the longer side rounds down, the offset rounds to even.
        width, height = (size if side == short else int(size * side / short) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        if width * height > max(spec.max_pixels, size * size):
            across, down = image.width / width, image.height / height
            seen = (left * across, top * down, (left + size) * across, (top + size) * down)
            image = image.resize((size, size), kernel, box=_inside(seen, image.size))
        else:
            image = _resized(image, (width, height), kernel).crop((left, top, left + size, top + size))
    elif max(image.size) * size > max(spec.max_pixels, size * size):
        # Resized along its length first: the other way round a strip would become as long a picture of the model's
        # width.
        first = (size, image.height) if image.width > image.height else (image.width, size)
        image = _resized(_resized(image, first, kernel), (size, size), kernel)
    else:
        image = _resized(image, (size, size), kernel)
    tensor = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), dtype=np.float32)
    mean, std = (np.asarray(values, dtype=np.float64)[:, None, None] for values in (spec.mean, spec.std))
    tensor *= (1.0 / (255.0 * std)).astype(np.float32)
    tensor -= (mean / std).astype(np.float32)
    return tensor


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(size[0])), min(box[3], float(size[1]))


def _resized(image: Image.Image, size: tuple[int, int], kernel: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, kernel)


def load_tensor(data: bytes, spec: Preprocessing) -> NDArray[np.float32]:
    """Image bytes -> float32 [3, size, size]: `decode`, then `to_tensor`. Raises ImageError."""
    return to_tensor(decode(data, max_pixels=spec.max_pixels), spec)
