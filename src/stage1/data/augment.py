"""Named distortions of training images: pixels in, pixels out, a function of (seed, epoch, index) alone.

Each name is that of one frozen Recipe, whose values are stored with the run; `client` is what the StreetVision
validator sends (data/corruptions.py). Nothing here is ever applied to evaluation roles.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from stage1.data.corruptions import CLIENT, GENERATOR, LEVELS, Pixels, distort, jpeg
from stage1.errors import ConfigError
from stage1.runtime.preprocessing import Preprocessing, letterbox_size, padded, to_tensor

Name = Literal["none", "moderate", "aggressive", "client"]
_KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is drawn for one image, in this order. (low, high): uniform in between; a probability: per image.

    area: share of the frame that the crop keeps; aspect: its ratio of sides, against that of the whole frame
    (log-uniform).
    flip: left-right. brightness, contrast, saturation: factors. gray: made gray. blur: Gaussian, `sigma` in pixels of
    the resized image. noise: largest standard deviation of Gaussian noise, pixels in [0, 1]. erase: a box of 2 to 20 %
    of the area set to the mean colour. jpeg: quality, none where (0, 0).
    """

    area: tuple[float, float] = (1.0, 1.0)
    aspect: tuple[float, float] = (1.0, 1.0)
    flip: float = 0.5
    brightness: tuple[float, float] = (1.0, 1.0)
    contrast: tuple[float, float] = (1.0, 1.0)
    saturation: tuple[float, float] = (1.0, 1.0)
    gray: float = 0.0
    blur: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    noise: float = 0.0
    erase: float = 0.0
    jpeg: tuple[int, int] = (0, 0)


RECIPES = {
    "moderate": Recipe(
        area=(0.6, 1.0), aspect=(0.85, 1.18), brightness=(0.8, 1.2), contrast=(0.8, 1.2), saturation=(0.7, 1.3)
    ),
    "aggressive": Recipe(
        area=(0.25, 1.0),
        aspect=(0.75, 1.33),
        brightness=(0.6, 1.4),
        contrast=(0.6, 1.4),
        saturation=(0.3, 1.6),
        gray=0.1,
        blur=0.3,
        noise=0.04,
        erase=0.25,
        jpeg=(40, 95),
    ),
}


def describe(name: str) -> dict[str, Any]:
    """Name and values of an augmentation as plain JSON, stored with what was trained on it. Raises ConfigError."""
    if name == "none":
        return {"name": name}
    if name == "client":
        return {"name": name, "generator": GENERATOR, **_plain(asdict(CLIENT))}
    return {"name": name, **_plain(asdict(_recipe(name)))}


def training_tensor(
    rgb: Pixels, name: str, spec: Preprocessing, *, seed: int, epoch: int, index: int, view: int = 0
) -> NDArray[np.float32]:
    """RGB uint8 [H, W, 3] -> float32 [3, size, size], distorted, then normalised by `spec`.

    The same (seed, epoch, index, view) give the same bits; `none` is exactly what evaluation does. Raises ConfigError.
    """
    if name == "none":
        return to_tensor(rgb, spec)
    made = augment(rgb, name, spec, np.random.default_rng([seed, epoch, index, view]))
    # The client sends what evaluation then fits; all else has been fitted already.
    return to_tensor(made, spec if name == "client" else spec.squashed)


def augment(rgb: Pixels, name: str, spec: Preprocessing, rng: np.random.Generator) -> Pixels:
    """One distorted version, uint8 [size, size, 3]; for `client` at the client's 224 px. Raises ConfigError."""
    if name == "client":
        return client(rgb, rng)
    recipe = _recipe(name)
    image = _crop(rgb, recipe, spec, rng)
    # Every number is drawn whether it is used or not: what one image gets does not depend on the chances of another
    # part.
    flip, gray, blur, erase = rng.random(4)
    brightness, contrast, saturation = (
        rng.uniform(*bounds) for bounds in (recipe.brightness, recipe.contrast, recipe.saturation)
    )
    sigma, level = rng.uniform(*recipe.sigma), rng.uniform(0.0, recipe.noise)
    if flip < recipe.flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = ImageEnhance.Brightness(image).enhance(brightness)
    image = ImageEnhance.Contrast(image).enhance(contrast)
    image = ImageEnhance.Color(image).enhance(0.0 if gray < recipe.gray else saturation)
    if blur < recipe.blur:
        image = image.filter(ImageFilter.GaussianBlur(sigma))
    pixels = np.asarray(image)
    if recipe.noise:
        pixels = _noisy(pixels, level, rng)
    if erase < recipe.erase:
        pixels = _erased(pixels, rng)
    low, high = recipe.jpeg
    return _decoded(jpeg(pixels, int(rng.integers(low, high + 1)))) if high else pixels


def client(rgb: Pixels, rng: np.random.Generator, level: int | None = None) -> Pixels:
    """What the client makes of a frame (data/corruptions.py): uint8 [224, 224, 3]; `level` 0..3, None: drawn."""
    level = int(rng.integers(len(LEVELS))) if level is None else level
    return _decoded(jpeg(distort(rgb, level, rng)))


# ---- parts -------------------------------------------------------------------------------------------------------


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ConfigError(f"augment: {name!r} is unknown; use none, {', '.join(RECIPES)} or client")
    return RECIPES[name]


def _noisy(pixels: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    """Gaussian noise of this standard deviation (pixels in [0, 1]), independent by pixel and channel."""
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.rint(pixels + np.float32(255.0 * deviation) * noise), 0, 255).astype(np.uint8)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _crop(rgb: Pixels, recipe: Recipe, spec: Preprocessing, rng: np.random.Generator) -> Image.Image:
    """A random box resized to the model's size. Its shape is jittered around the one that evaluation sees."""
    height, width = rgb.shape[:2]
    # Evaluation sees the whole frame or a square of it: a crop of the same shape is distorted in the same way.
    square = min(width, height) * spec.size / spec.resized_side
    base_w, base_h = (square, square) if spec.fit == "center_crop" else (width, height)
    area = rng.uniform(*recipe.area)
    ratio = float(np.exp(rng.uniform(*np.log(recipe.aspect))))
    box_w = min(base_w * np.sqrt(area * ratio), width)
    box_h = min(base_h * np.sqrt(area / ratio), height)
    left, top = rng.random() * (width - box_w), rng.random() * (height - box_h)
    box = (left, top, left + box_w, top + box_h)
    letterbox = spec.fit == "letterbox"
    size = letterbox_size((width, height), spec.size) if letterbox else (spec.size, spec.size)
    image = Image.fromarray(rgb).resize(size, _KERNELS[spec.interpolation], box=box)
    return padded(image, spec) if letterbox else image


def _erased(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    side = pixels.shape[0]
    area, ratio = rng.uniform(0.02, 0.2), float(np.exp(rng.uniform(-1.0, 1.0)))
    height, width = (max(1, min(side, round(side * float(np.sqrt(area * r))))) for r in (ratio, 1 / ratio))
    top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    out = pixels.copy()
    out[top : top + height, left : left + width] = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
    return out


def _decoded(data: bytes) -> Pixels:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
