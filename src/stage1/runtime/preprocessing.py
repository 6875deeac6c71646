"""The one way from pixels to the tensor of a model: the preprocessing spec, and resizing and normalising by it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import DataError
from stage1.runtime.images import DECODE, MAX_PIXELS, decode

Fit = Literal["squash", "center_crop", "letterbox"]
_FITS: tuple[str, ...] = get_args(Fit)
_INTERPOLATIONS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
_LEAST_CROP = 0.1
# Written only where it is not the default: specs from before it keep their JSON and their digest.
_LATER = {"crop_pct": 1.0}


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """Everything between image bytes and the model's input tensor; travels in the bundle.

    size: side of the square input, pixels, 1..4096.
    fit: "squash" resizes the whole image to size x size; "center_crop" resizes the shorter side to size / crop_pct,
        then cuts the centre square (what lies outside is never seen); "letterbox" resizes the longer side to size and
        pads the shorter one on both sides with the mean colour. The last two are timm's evaluation transforms of crop
        modes "center" and "border", pixel by pixel.
    interpolation: Pillow's kernel, antialiased; other libraries' kernels differ by up to 116 levels.
    mean, std: per channel, for pixels in [0, 1]: (v / 255 - mean) / std.
    max_pixels: images above this are refused unread.
    crop_pct: for center_crop only, the share of the shorter side that is kept, .1..1.
    Raises DataError naming the field.
    """

    size: int = 224
    fit: Fit = "squash"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    max_pixels: int = MAX_PIXELS
    crop_pct: float = 1.0

    def __post_init__(self) -> None:
        for name, high in (("size", 4096), ("max_pixels", 2**40)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= high:
                raise DataError(f"preprocessing: {name} is {value!r}; a whole number 1..{high} is needed")
        for name, allowed in (("fit", _FITS), ("interpolation", tuple(_INTERPOLATIONS))):
            if getattr(self, name) not in allowed:
                raise DataError(f"preprocessing: {name} is {getattr(self, name)!r}; use {' or '.join(allowed)}")
        share = self.crop_pct
        if isinstance(share, bool) or not isinstance(share, (int, float)) or not _LEAST_CROP <= share <= 1.0:
            raise DataError(f"preprocessing: crop_pct is {share!r}; a number {_LEAST_CROP:g}..1 is needed")
        if share != 1.0 and self.fit != "center_crop":
            raise DataError(f"preprocessing: crop_pct is {share!r} with fit {self.fit!r}; it is for center_crop alone")
        object.__setattr__(self, "crop_pct", float(share))
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
        """The spec as plain JSON values, with what `decode` does under "decode"; crop_pct only where it is not 1."""
        values = {name: value for name, value in asdict(self).items() if (name, value) not in _LATER.items()}
        return {**values, "mean": list(self.mean), "std": list(self.std), "decode": dict(DECODE)}

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

    @property
    def squashed(self) -> Preprocessing:
        """The same for a picture that is to be seen whole and stretched, as a tile is."""
        return self if self.fit == "squash" else replace(self, fit="squash", crop_pct=1.0)

    @property
    def resized_side(self) -> int:
        """Pixels that center_crop resizes the shorter side to, rounded down as timm does."""
        return math.floor(self.size / self.crop_pct)

    def sees_all(self, height: int, width: int) -> bool:
        """Whether no part of an image of this shape lies outside of what the model gets."""
        return self.fit != "center_crop" or (height == width and self.resized_side == self.size)

    @property
    def in_words(self) -> str:
        """What is done to the shape of an image, e.g. "center_crop of .875 at 224 px"."""
        share = f" of {self.crop_pct:.3g}" if self.fit == "center_crop" else ""
        return f"{self.fit}{share} at {self.size} px"


def to_tensor(rgb: NDArray[np.uint8], spec: Preprocessing) -> NDArray[np.float32]:
    """RGB pixels uint8 [H, W, 3] -> float32 [3, size, size], resized and normalised by `spec`.

    No picture in between is larger than `spec.max_pixels`: of a strip so long that resizing its shorter side would make
    one, only the part that "center_crop" keeps is resized (the same picture, rounded differently between the two passes
    of the kernel).
    Raises DataError for another shape or dtype.
    """
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8 or 0 in rgb.shape:
        raise DataError(f"image: {rgb.dtype} of shape {rgb.shape}; uint8 [H, W, 3] is expected")
    image = _FITTED[spec.fit](Image.fromarray(rgb), spec, _INTERPOLATIONS[spec.interpolation])
    tensor = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1), dtype=np.float32)
    mean, std = (np.asarray(values, dtype=np.float64)[:, None, None] for values in (spec.mean, spec.std))
    tensor *= (1.0 / (255.0 * std)).astype(np.float32)
    tensor -= (mean / std).astype(np.float32)
    return tensor


def _squash(image: Image.Image, spec: Preprocessing, kernel: Image.Resampling) -> Image.Image:
    size = spec.size
    if max(image.size) * size > max(spec.max_pixels, size * size):
        # Resized along its length first: the other way round a strip would become as long a picture of the model's
        # width.
        first = (size, image.height) if image.width > image.height else (image.width, size)
        image = _resized(image, first, kernel)
    return _resized(image, (size, size), kernel)


def _center_crop(image: Image.Image, spec: Preprocessing, kernel: Image.Resampling) -> Image.Image:
    size, short, target = spec.size, min(image.size), spec.resized_side
    # As torchvision's Resize(target) and CenterCrop(size): the longer side rounds down, the offset rounds to even.
    width, height = (target if side == short else int(target * side / short) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    if width * height > max(spec.max_pixels, target * target):
        across, down = image.width / width, image.height / height
        seen = (left * across, top * down, (left + size) * across, (top + size) * down)
        return image.resize((size, size), kernel, box=_inside(seen, image.size))
    return _resized(image, (width, height), kernel).crop((left, top, left + size, top + size))


def _letterbox(image: Image.Image, spec: Preprocessing, kernel: Image.Resampling) -> Image.Image:
    return padded(_resized(image, letterbox_size(image.size, spec.size), kernel), spec)


def letterbox_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(width, height) of an image of this size whose longer side became `side`; never less than a pixel."""
    ratio = max(size) / side
    width, height = (max(1, round(length / ratio)) for length in size)
    return width, height


def padded(image: Image.Image, spec: Preprocessing) -> Image.Image:
    """The picture (no side above spec.size) in the middle of a square of the mean colour; an odd pixel to the end."""
    if image.size == (spec.size, spec.size):
        return image
    colour = tuple(min(max(round(255 * value), 0), 255) for value in spec.mean)
    square = Image.new("RGB", (spec.size, spec.size), colour)
    square.paste(image, ((spec.size - image.width) // 2, (spec.size - image.height) // 2))
    return square


_FITTED: dict[str, Callable[[Image.Image, Preprocessing, Image.Resampling], Image.Image]] = {
    "squash": _squash,
    "center_crop": _center_crop,
    "letterbox": _letterbox,
}


def _inside(box: tuple[float, float, float, float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    return max(box[0], 0.0), max(box[1], 0.0), min(box[2], float(size[0])), min(box[3], float(size[1]))


def _resized(image: Image.Image, size: tuple[int, int], kernel: Image.Resampling) -> Image.Image:
    return image if image.size == size else image.resize(size, kernel)


def load_tensor(data: bytes, spec: Preprocessing) -> NDArray[np.float32]:
    """Image bytes -> float32 [3, size, size]: `decode`, then `to_tensor`. Raises ImageError."""
    return to_tensor(decode(data, max_pixels=spec.max_pixels), spec)
