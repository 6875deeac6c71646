"""The challenges of the StreetVision client: its four levels of corruption and its JPEG, with its own arithmetic.

A challenge is a function of the image's bytes, the level, the seed and the number of the copy. What the client does to
pixels, as its public source was measured (v2.0.4), and what is done here:

- Area: the crop keeps 20 to 100 % of the whole frame's area, uniform. A square of that area that does not fit into the
  frame is drawn again; after ten times it is the largest centre square. Its place is uniform, in whole pixels.
- The frame is rotated first (nearest), about its centre and at its own size, and cropped afterwards.
- Resizing to 224: bilinear, antialiased. At L0 on bytes; from L1 on in float, and what comes out is cut down to a byte.
- Order: chroma, brightness, resampling, noise, blur; each with a level of its own, drawn evenly.
- Every step ends in bytes: chroma, brightness and noise are cut down to them, resampling and blur round to the nearest
  in the fixed-point arithmetic of OpenCV.
- Chroma: Cr = .713 (R - Y), Cb = .564 (B - Y), in studio range, scaled about its centre.
- Brightness: the pixel values times the factor.
- Resampling: down to side // factor and up again, bilinear at the centres of the pixels, without antialiasing.
- Noise: of the stated variance (pixels in [0, 1]), added to Y, Cb and Cr in studio range, so that it comes back larger:
  3.9 times the variance in R, 2.2 in G and 5.4 in B, correlated over the channels.
- Blur: kernel taps at whole pixels; the edge is mirrored without its last pixel.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.errors import ConfigError
from stage1.runtime.images import MAX_PIXELS, decode
from stage1.storage.files import digest_bytes

Pixels = NDArray[np.uint8]
GENERATOR = 2
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
    longest: int = 1024


CLIENT = Client()


def distort(rgb: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """A frame at `level` 0..3, before JPEG: uint8 [H, W, 3] of any size -> uint8 [224, 224, 3].

    L0: centre square; L1: rotation and random square crop; L2: and each of chroma, brightness, resampling at level 0 or
    1; L3: and each of these, noise and blur at level 0, 1 or 2. The client's flips never fire. Nothing is drawn from
    `rng` at L0.
    Raises ConfigError for another level.
    """
    if level not in range(len(LEVELS)):
        raise ConfigError(f"challenge: level {level} is not there; use 0 to 3")
    height, width = rgb.shape[:2]
    frame = Image.fromarray(rgb)
    if level == 0:
        # Cut first, here and below: resize(box=...) would let pixels from beyond the edge of the crop bleed in.
        box = _centre_box(width, height)
        return np.asarray(frame.crop(box).resize((CLIENT.size, CLIENT.size), Image.Resampling.BILINEAR))
    frame = frame.rotate(rng.uniform(-CLIENT.degrees, CLIENT.degrees), Image.Resampling.NEAREST)
    pixels = resized(np.asarray(frame.crop(_random_box(width, height, rng))), CLIENT.size)
    if level == 1:
        return pixels
    chroma, brightness, resample = rng.integers(0, level, size=3).tolist()
    noise, blur = rng.integers(0, level, size=2).tolist() if level == 3 else (0, 0)
    if chroma:
        pixels = with_chroma(pixels, CLIENT.chroma[chroma])
    if brightness:
        pixels = cut(pixels * np.float32(CLIENT.brightness[brightness]))
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


def squashed(pixels: Pixels) -> Pixels:
    """An image as the client's generator takes it: 1024 x 1024 whatever its shape, where a side is longer."""
    if max(pixels.shape[:2]) <= CLIENT.longest:
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((CLIENT.longest, CLIENT.longest), Image.Resampling.LANCZOS))


# ---- one distortion each -----------------------------------------------------------------------------------------


def resized(pixels: Pixels, side: int) -> Pixels:
    """To side x side, bilinear and antialiased, in float32 of [0, 1]; then times 255 and cut.

    In the client's order of additions: where a sum of weights falls short of 1 by the last bit, a flat area of 255
    becomes 254.
    """
    unit = (pixels.astype(np.float32) / np.float32(255)).astype(np.float64)
    turned = _along(np.ascontiguousarray(unit.transpose(1, 0, 2)), side)  # [side, H, 3]
    found = _along(np.ascontiguousarray(turned.transpose(1, 0, 2)), side)
    return cut(found.astype(np.float32) * np.float32(255))


def _along(values: NDArray[np.float64], side: int) -> NDArray[np.float64]:
    """The first axis at another length. values and result: float32 numbers, held as float64."""
    old, one = values.shape[0], np.float32(1)
    scale = np.float32(old) / np.float32(side)
    support, inverse = max(scale, one), one / max(scale, one)
    half = np.float32(0.5)
    centre = scale * (np.arange(side, dtype=np.float32) + half)
    first = np.maximum((centre - support + half).astype(np.int64), 0)
    taps = np.minimum((centre + support + half).astype(np.int64), old) - first
    place = np.arange(int(taps.max()))
    away = np.abs(((place + first[:, None]).astype(np.float32) - centre[:, None] + half) * inverse)
    weights = np.where(place < taps[:, None], np.maximum(one - away, 0), 0).astype(np.float32)
    total = np.zeros(side, dtype=np.float32)
    for tap in place:
        total += weights[:, tap]
    weights /= total[:, None]
    found = np.zeros((side, *values.shape[1:]))
    for tap in place:
        part = values[np.minimum(first + tap, old - 1)]
        part *= weights[:, tap].astype(np.float64)[:, None, None]
        found += part  # product and sum with one rounding, which is a fused multiply-add
        found = found.astype(np.float32).astype(np.float64)
    return found


def with_chroma(pixels: Pixels, factor: float) -> Pixels:
    """Cb and Cr times `factor` about the centre of studio range; luma stays."""
    luma, blue, red = to_studio(pixels)
    half = np.float32(0.5)
    return cut(from_studio(luma, half + (blue - half) * np.float32(factor), half + (red - half) * np.float32(factor)))


def resampled(pixels: Pixels, factor: int) -> Pixels:
    """Down by `factor` and up again, bilinear at pixel centres, not antialiased: fine texture aliases."""
    side = pixels.shape[0]
    return _interpolated(_interpolated(pixels, max(1, side // factor)), side)


def noisy(pixels: Pixels, variance: float, rng: np.random.Generator) -> Pixels:
    """Gaussian noise of this variance, pixels in [0, 1], on Y, Cb and Cr in studio range."""
    noise = np.float32(255.0 * np.sqrt(variance)) * rng.standard_normal(pixels.shape, dtype=np.float32)
    return cut(from_studio(*(plane + noise[..., place] for place, plane in enumerate(to_studio(pixels)))))


def blurred(pixels: Pixels, kernel: int) -> Pixels:
    """Gaussian blur, `kernel` taps (odd) in each direction, sigma = kernel / 6, in 256ths as in OpenCV."""
    reach = kernel // 2
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / (kernel / 6.0)) ** 2)
    whole = np.rint(256 * taps / taps.sum()).astype(np.int64)
    whole[reach] += 256 - whole.sum()
    values = pixels.astype(np.int64)
    for axis in (0, 1):
        edges = [(reach, reach) if place == axis else (0, 0) for place in range(3)]
        padded, n = np.pad(values, edges, mode="reflect"), values.shape[axis]
        values = np.zeros_like(values)
        for start, tap in enumerate(whole.tolist()):
            values += tap * (padded[start : start + n] if axis == 0 else padded[:, start : start + n])
    return ((values + (1 << 15)) >> 16).astype(np.uint8)


def cut(values: NDArray[np.float32]) -> Pixels:
    """8-bit values, the fraction cut off, as a cast does it."""
    return np.clip(values, 0, 255).astype(np.uint8)


# ---- colour ------------------------------------------------------------------------------------------------------

_Plane = NDArray[np.float32]


def to_studio(pixels: Pixels) -> tuple[_Plane, _Plane, _Plane]:
    """Y, Cb, Cr float32 of RGB in 0..255, as the client has them: (219 Y + 16) / 255, (224 C + 16) / 255, C near .5"""
    red, green, blue = (pixels[..., channel].astype(np.float32) for channel in range(3))
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    half = np.float32(0.5)
    return (
        (luma * 219 + 16) / np.float32(255),
        ((blue - luma) * np.float32(0.564) + half) * np.float32(224 / 255) + np.float32(16 / 255),
        ((red - luma) * np.float32(0.713) + half) * np.float32(224 / 255) + np.float32(16 / 255),
    )


def from_studio(luma: _Plane, blue: _Plane, red: _Plane) -> NDArray[np.float32]:
    """RGB in 0..255, float32 [H, W, 3], not cut to bytes."""
    half = np.float32(0.5)
    y = (luma * 255 - 16) / np.float32(219)
    cb, cr = ((plane * 255 - 16) / np.float32(224) - half for plane in (blue, red))
    return np.stack(
        [y + np.float32(1.403) * cr, y - np.float32(0.714) * cr - np.float32(0.344) * cb, y + np.float32(1.773) * cb],
        axis=2,
    )


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
    # Not quite L0's square: half pixels are cut here, and rounded to even there.
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _interpolated(pixels: Pixels, side: int) -> Pixels:
    """Square pixels at another side, linear between pixel centres, in OpenCV's fixed point (11 bits, two shifts)."""
    old = pixels.shape[0]
    at = (np.arange(side) + 0.5) * (old / side) - 0.5
    first = np.clip(np.floor(at).astype(np.int64), 0, old - 1)
    share = np.where((at < 0) | (first >= old - 1), 0.0, at - first).astype(np.float32)
    second = np.minimum(first + 1, old - 1)
    near, far = np.rint((1 - share) * 2048).astype(np.int64), np.rint(share * 2048).astype(np.int64)
    values = pixels.astype(np.int64)
    rows = values[:, first] * near[:, None] + values[:, second] * far[:, None]
    above = (near[:, None, None] * (rows[first] >> 4)) >> 16
    below = (far[:, None, None] * (rows[second] >> 4)) >> 16
    return ((above + below + 2) >> 2).astype(np.uint8)


MIXTURE = "mixture"
Origin = Literal["real", "image_to_image"]
_JPEG = b"\xff\xd8"


@dataclass(frozen=True, slots=True)
class Challenge:
    """jpeg: the bytes that the client would send. level: "L0" to "L3", the one that was drawn or asked for."""

    jpeg: bytes
    level: str


def challenge(
    image: bytes | Pixels,
    level: str = MIXTURE,
    *,
    seed: int = 0,
    copy: int = 0,
    key: str | None = None,
    origin: Origin = "real",
    max_pixels: int = MAX_PIXELS,
) -> Challenge:
    """The challenge number `copy` of an image: a 224 px JPEG, quality 75, 4:2:0.

    image: the bytes of a file, or RGB pixels uint8 [H, W, 3]. level: "L0" to "L3", or "mixture": see `level_of`. key:
    what names the image among others, None: sha256 of what is given. origin: "real", as a row of the public set, of
    which the validator saves a JPEG again at quality 75 before it distorts it; or "image_to_image", the shape of what
    its generator starts from (`squashed`).
    The same (key, level, seed, copy, origin) give the same pixels, and the mixture gives exactly what its level gives
    when asked for by name. Raises ConfigError for another level or origin, ImageError for bytes that are no usable
    image.

    Example: challenge(Path("street.jpg").read_bytes(), "L3", seed=1).jpeg
    """
    if origin not in get_args(Origin):
        raise ConfigError(f"origin {origin!r} is unknown; use {' or '.join(get_args(Origin))}")
    if isinstance(image, bytes):
        key, rgb = key or digest_bytes(image), decode(image, max_pixels=max_pixels)
    else:
        rgb = np.ascontiguousarray(image)
        key = key or digest_bytes(repr(rgb.shape).encode() + rgb.tobytes())
    if origin == "image_to_image":
        rgb = squashed(rgb)
    elif isinstance(image, bytes) and image.startswith(_JPEG):
        rgb = decode(jpeg(rgb), max_pixels=max_pixels)
    chosen = level_of(level, seed=seed, key=key, copy=copy)
    return Challenge(jpeg(distort(rgb, LEVELS.index(chosen), _random(seed, key, f"copy {copy}"))), chosen)


def level_of(level: str, *, seed: int, key: str, copy: int = 0) -> str:
    """The level that a copy of an image gets: `level` itself, or one of the mixture's four, each with chance 1/4.

    Copies 0 to 3 of an image get the four levels in an order of its own: each copy alone is evenly distributed, and
    several copies never spend two draws on the same centre crop. From copy 4 on the order repeats. Raises ConfigError.
    """
    if level in LEVELS:
        return level
    if level != MIXTURE:
        raise ConfigError(f"level {level!r} is unknown; use {', '.join(LEVELS)} or {MIXTURE}")
    return LEVELS[int(_random(seed, key, "levels").permutation(len(LEVELS))[copy % len(LEVELS)])]


def _random(seed: int, key: str, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"challenge/{seed}/{key}/{purpose}".encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))
