"""The four levels of the StreetVision client on pixels, and its JPEG (STREETVISION.md, "What it sends").

What that page leaves open, and what is taken here:

- Area: the crop keeps 20 to 100 % of the whole frame's area, uniform. A square of that area that does not fit into the frame is
  drawn again; after ten times it is the largest centre square. Its place is uniform, in whole pixels.
- The frame is rotated first, about its centre and at its own size, and cropped afterwards.
- Resizing to 224: bilinear, antialiased (Pillow's).
- Order: chroma, brightness, resampling, noise, blur, as they stand in the table; each with a level of its own, drawn evenly.
- Chroma: Cb and Cr of BT.601 (full range) times the factor, which is each colour drawn towards its own luma.
- Brightness: the pixel values times the factor.
- Resampling: down to side // factor and up again, bilinear at the centres of the pixels, without antialiasing.
- Noise: independent for each pixel and each of R, G and B.
- Blur: kernel taps at whole pixels, normalised to 1; the edge is mirrored without its last pixel.
- After each step pixels are rounded to 8 bits.
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import ConfigError

Pixels = NDArray[np.uint8]
GENERATOR = 1
"""Version of what is drawn: other pixels from the same seed, other number."""
LEVELS = ("L0", "L1", "L2", "L3")
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Client:
    """The client's distortions. A tuple of levels: index 0 is "off". Levels L0 to L3 come equally often."""

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


def distort(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """A frame at `level` 0..3, before JPEG: uint8 [H, W, 3] of any size -> uint8 [224, 224, 3].

    L0: centre square; L1: rotation and random square crop; L2: and each of chroma, brightness, resampling at level 0 or 1;
    L3: and each of these, noise and blur at level 0, 1 or 2. The client's flips never fire. Nothing is drawn from `rng` at L0.
    Raises ConfigError for another level.
    """
    if level not in range(len(LEVELS)):
        raise ConfigError(f"challenge: level {level} is not there; use 0 to 3")
    height, width = rgb.shape[:2]
    frame = Image.fromarray(rgb)
    if level == 0:
        return np.asarray(_cut(frame, _centre_box(width, height)))
    frame = frame.rotate(rng.uniform(-CLIENT.degrees, CLIENT.degrees), Image.Resampling.NEAREST)
    pixels = np.asarray(_cut(frame, _random_box(width, height, rng)))
    if level == 1:
        return pixels
    chroma, brightness, resample = rng.integers(0, level, size=3).tolist()
    noise, blur = rng.integers(0, level, size=2).tolist() if level == 3 else (0, 0)
    if chroma:
        pixels = with_chroma(pixels, CLIENT.chroma[chroma])
    if brightness:
        pixels = rounded(pixels * np.float32(CLIENT.brightness[brightness]))
    if resample:
        pixels = resampled(pixels, CLIENT.resample[resample])
    if noise:
        pixels = noisy(pixels, CLIENT.noise_variance[noise], rng)
    if blur:
        pixels = blurred(pixels, CLIENT.blur_kernel[blur])
    return pixels


def jpeg(pixels: Pixels, quality: int = CLIENT.quality) -> bytes:
    """JPEG, 4:2:0, without metadata."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=quality, subsampling=2)
    return stream.getvalue()


# ---- one distortion each -----------------------------------------------------------------------------------------


def with_chroma(pixels: Pixels, factor: float) -> Pixels:
    """Cb and Cr times `factor`; luma stays."""
    values = pixels.astype(np.float32)
    luma = values @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return rounded(luma[..., None] * np.float32(1.0 - factor) + values * np.float32(factor))


def resampled(pixels: Pixels, factor: int) -> Pixels:
    """Down by `factor` and up again, bilinear at pixel centres, not antialiased: fine texture aliases instead of fading."""
    height, width = pixels.shape[:2]
    small_w, small_h = max(1, width // factor), max(1, height // factor)
    down = (width / small_w, 0.0, 0.0, 0.0, height / small_h, 0.0)
    up = (small_w / width, 0.0, 0.0, 0.0, small_h / height, 0.0)
    # An affine map reads where it is told to; resize() would average over what it skips.
    small = Image.fromarray(pixels).transform(
        (small_w, small_h), Image.Transform.AFFINE, down, Image.Resampling.BILINEAR
    )
    return np.asarray(small.transform((width, height), Image.Transform.AFFINE, up, Image.Resampling.BILINEAR))


def noisy(pixels: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    """Gaussian noise of this variance, pixels taken in [0, 1]."""
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return rounded(pixels + np.float32(255.0 * np.sqrt(variance)) * noise)


def blurred(pixels: Pixels, kernel: int) -> Pixels:
    """Gaussian blur with `kernel` taps (odd) in each direction, sigma = kernel / 6."""
    reach = kernel // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (kernel / 6.0)) ** 2)
    taps = (taps / taps.sum()).astype(np.float32)
    values = pixels.astype(np.float32)
    for axis in (0, 1):
        edges = [(reach, reach) if place == axis else (0, 0) for place in range(3)]
        padded, n = np.pad(values, edges, mode="reflect"), values.shape[axis]
        values = np.zeros_like(values)
        for start, tap in enumerate(taps):
            values += tap * (padded[start : start + n] if axis == 0 else padded[:, start : start + n])
    return rounded(values)


def rounded(values: NDArray[np.float32]) -> Pixels:
    """The nearest 8-bit values."""
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


# ---- geometry ----------------------------------------------------------------------------------------------------

_Box = tuple[int, int, int, int]


def _centre_box(width: int, height: int) -> _Box:
    side = min(width, height)
    left, top = round((width - side) / 2), round((height - side) / 2)
    return left, top, left + side, top + side


def _random_box(width: int, height: int, rng: np.random.Generator) -> _Box:
    for _ in range(_TRIES):
        side = max(1, round(float(np.sqrt(width * height * rng.uniform(*CLIENT.area)))))
        if side <= min(width, height):
            left, top = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
            return left, top, left + side, top + side
    return _centre_box(width, height)


def _cut(frame: Image.Image, box: _Box) -> Image.Image:
    # Cut first: resize(box=...) would let pixels from beyond the edge of the crop bleed in.
    return frame.crop(box).resize((CLIENT.size, CLIENT.size), Image.Resampling.BILINEAR)
