"""Named distortions of training images: pixels in, pixels out, a function of (seed, epoch, index) alone.

Each name stands for one frozen Recipe, whose values are stored with the run; `client` is what the StreetVision validator sends
(STREETVISION.md, "What it sends"). Nothing here is ever applied to evaluation roles.
"""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from stage1.errors import ConfigError
from stage1.images import Preprocessing, to_tensor

Pixels = NDArray[np.uint8]
Name = Literal["none", "moderate", "aggressive", "client"]
_KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is drawn for one image, in this order. (low, high): uniform in between; a probability: per image.

    area: share of the frame that the crop keeps; aspect: its ratio of sides, against that of the whole frame (log-uniform).
    flip: left-right. brightness, contrast, saturation: factors. gray: made gray. blur: Gaussian, `sigma` in pixels of the
    resized image. noise: largest standard deviation of Gaussian noise, pixels in [0, 1]. erase: a box of 2 to 20 % of the
    area set to the mean colour. jpeg: quality, none where (0, 0).
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
        area=(0.25, 1.0), aspect=(0.75, 1.33), brightness=(0.6, 1.4), contrast=(0.6, 1.4), saturation=(0.3, 1.6),
        gray=0.1, blur=0.3, noise=0.04, erase=0.25, jpeg=(40, 95),
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Client:
    """The validator's distortions. A tuple of levels: index 0 is "off". Levels L0 to L3 come equally often."""

    size: int = 224
    degrees: float = 20.0
    area: tuple[float, float] = (0.2, 1.0)
    chroma: tuple[float, ...] = (1.0, 0.4, 0.3)
    brightness: tuple[float, ...] = (1.0, 0.85, 0.725)
    resample: tuple[int, ...] = (1, 2, 3)
    noise_variance: tuple[float, ...] = (0.0, 0.001, 0.002)
    blur_kernel: tuple[int, ...] = (0, 7, 9)
    quality: int = 75


CLIENT = Client()


def describe(name: str) -> dict[str, Any]:
    """Name and values of an augmentation as plain JSON, to be stored with what was trained on it. Raises ConfigError."""
    if name == "none":
        return {"name": name}
    if name == "client":
        return {"name": name, **_plain(asdict(CLIENT))}
    return {"name": name, **_plain(asdict(_recipe(name)))}


def training_tensor(
    rgb: Pixels, name: str, spec: Preprocessing, *, seed: int, epoch: int, index: int, view: int = 0
) -> NDArray[np.float32]:
    """RGB uint8 [H, W, 3] -> float32 [3, size, size], distorted, then normalised by `spec`.

    The same (seed, epoch, index, view) give the same bits; `none` is exactly what evaluation does. Raises ConfigError.
    """
    if name == "none":
        return to_tensor(rgb, spec)
    return to_tensor(augment(rgb, name, spec, np.random.default_rng([seed, epoch, index, view])), spec)


def augment(rgb: Pixels, name: str, spec: Preprocessing, rng: np.random.Generator) -> Pixels:
    """One distorted version, uint8 [size, size, 3]; for `client` at the client's 224 px. Raises ConfigError."""
    if name == "client":
        return client(rgb, rng)
    recipe = _recipe(name)
    image = _crop(rgb, recipe, spec, rng)
    # Every number is drawn whether it is used or not: what one image gets does not depend on the chances of another part.
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
    return _jpeg(pixels, int(rng.integers(low, high + 1))) if high else pixels


def client(rgb: Pixels, rng: np.random.Generator, level: int | None = None) -> Pixels:
    """What the StreetVision validator makes of a frame: uint8 [224, 224, 3]; `level` 0..3, None: drawn.

    L0: centre square; L1: rotation and random square crop; L2: and each of chroma, brightness, resampling at level 0 or 1;
    L3: and each of these, noise and blur at level 0, 1 or 2. JPEG quality 75, 4:2:0, at the end. Its flips never fire.
    The kernels of its resizing are not published: bilinear here.
    """
    level = int(rng.integers(4)) if level is None else level
    side = CLIENT.size
    if level == 0:
        return _jpeg(np.asarray(_square(Image.fromarray(rgb), 0.5, 0.5, 1.0, side)), CLIENT.quality)
    image = Image.fromarray(rgb).rotate(rng.uniform(-CLIENT.degrees, CLIENT.degrees), Image.Resampling.NEAREST)
    image = _square(image, rng.random(), rng.random(), rng.uniform(*CLIENT.area), side)
    levels = rng.integers(0, level, size=5) if level > 1 else np.zeros(5, np.int64)
    chroma, brightness, resample, noise, blur = levels.tolist()
    if level == 2:
        noise = blur = 0
    pixels = np.asarray(image)
    if chroma:
        pixels = _chroma(pixels, CLIENT.chroma[chroma])
    if brightness:
        pixels = _scaled(pixels.astype(np.float32) * CLIENT.brightness[brightness])
    if resample:
        small = side // CLIENT.resample[resample]
        image = Image.fromarray(pixels).resize((small, small), Image.Resampling.BILINEAR)
        pixels = np.asarray(image.resize((side, side), Image.Resampling.BILINEAR))
    if noise:
        pixels = _noisy(pixels, float(np.sqrt(CLIENT.noise_variance[noise])), rng)
    if blur:
        pixels = _blurred(pixels, CLIENT.blur_kernel[blur])
    return _jpeg(pixels, CLIENT.quality)


# ---- parts -------------------------------------------------------------------------------------------------------


def _recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ConfigError(f"augment: {name!r} is unknown; use none, {', '.join(RECIPES)} or client")
    return RECIPES[name]


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}


def _crop(rgb: Pixels, recipe: Recipe, spec: Preprocessing, rng: np.random.Generator) -> Image.Image:
    """A random box resized to the model's size. Its shape is jittered around the one that evaluation sees."""
    height, width = rgb.shape[:2]
    # Evaluation squashes the whole frame or cuts a square: a crop of the same shape is distorted in the same way.
    base_w, base_h = (width, height) if spec.fit == "squash" else (min(width, height),) * 2
    area = rng.uniform(*recipe.area)
    ratio = float(np.exp(rng.uniform(*np.log(recipe.aspect))))
    box_w = min(base_w * np.sqrt(area * ratio), width)
    box_h = min(base_h * np.sqrt(area / ratio), height)
    left, top = rng.random() * (width - box_w), rng.random() * (height - box_h)
    box = (left, top, left + box_w, top + box_h)
    return Image.fromarray(rgb).resize((spec.size, spec.size), _KERNELS[spec.interpolation], box=box)


def _square(image: Image.Image, x: float, y: float, area: float, side: int) -> Image.Image:
    """The square with `area` of the largest possible one, at share x, y of the room left, resized."""
    edge = min(image.size) * np.sqrt(area)
    left, top = x * (image.width - edge), y * (image.height - edge)
    return image.resize((side, side), Image.Resampling.BILINEAR, box=(left, top, left + edge, top + edge))


def _scaled(values: NDArray[np.float32]) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _noisy(pixels: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return _scaled(pixels.astype(np.float32) + np.float32(255.0 * deviation) * noise)


def _erased(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    side = pixels.shape[0]
    area, ratio = rng.uniform(0.02, 0.2), float(np.exp(rng.uniform(-1.0, 1.0)))
    height, width = (max(1, min(side, round(side * float(np.sqrt(area * r))))) for r in (ratio, 1 / ratio))
    top, left = int(rng.integers(side - height + 1)), int(rng.integers(side - width + 1))
    out = pixels.copy()
    out[top : top + height, left : left + width] = np.rint(pixels.mean(axis=(0, 1))).astype(np.uint8)
    return out


def _chroma(pixels: Pixels, factor: float) -> Pixels:
    """Cb and Cr drawn towards grey by `factor`, in YCbCr of BT.601."""
    values = np.asarray(Image.fromarray(pixels).convert("YCbCr")).astype(np.float32)
    values[..., 1:] = 128.0 + factor * (values[..., 1:] - 128.0)
    return np.asarray(Image.fromarray(_scaled(values), mode="YCbCr").convert("RGB"))


def _blurred(pixels: Pixels, kernel: int) -> Pixels:
    """Gaussian blur with a kernel of `kernel` taps, sigma = kernel / 6; mirrored at the edge."""
    reach = kernel // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (kernel / 6.0)) ** 2).astype(np.float32)
    taps /= taps.sum()
    values = pixels.astype(np.float32)
    for axis in (0, 1):
        width = [(reach, reach) if place == axis else (0, 0) for place in range(3)]
        padded, n = np.pad(values, width, mode="reflect"), values.shape[axis]
        values = sum(t * np.take(padded, range(i, i + n), axis=axis) for i, t in enumerate(taps))
    return _scaled(values)


def _jpeg(pixels: Pixels, quality: int) -> Pixels:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=2)
    return np.asarray(Image.open(stream).convert("RGB"))
