"""One challenge from one image: a function of its bytes, the level, the seed and the number of the copy."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from stage1.data.challenge.distort import LEVELS, Pixels, distort, jpeg, squashed
from stage1.errors import ConfigError
from stage1.files import digest_bytes
from stage1.images import MAX_PIXELS, decode

MIXTURE = "mixture"
Origin = Literal["real", "image_to_image"]
_JPEG = b"\xff\xd8"


@dataclass(frozen=True, slots=True)
class Challenge:
    """jpeg: the bytes that the client would send. level: "L0" to "L3", the one that was drawn or asked for."""

    jpeg: bytes
    level: str


def challenge(
    image: bytes | Pixels, level: str = MIXTURE, *, seed: int = 0, copy: int = 0, key: str | None = None,
    origin: Origin = "real", max_pixels: int = MAX_PIXELS,
) -> Challenge:  # fmt: skip
    """The challenge number `copy` of an image: a 224 px JPEG, quality 75, 4:2:0.

    image: the bytes of a file, or RGB pixels uint8 [H, W, 3]. level: "L0" to "L3", or "mixture": see `level_of`. key: what names
    the image among others, None: sha256 of what is given. origin: "real", as a row of the public set, of which the validator saves
    a JPEG again at quality 75 before it distorts it; or "image_to_image", the shape of what its generator starts from (`squashed`).
    The same (key, level, seed, copy, origin) give the same pixels, and the mixture gives exactly what its level gives when asked
    for by name. Raises ConfigError for another level or origin, ImageError for bytes that are no usable image.

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

    Copies 0 to 3 of an image get the four levels in an order of its own: each copy alone is evenly distributed, and several
    copies never spend two draws on the same centre crop. From copy 4 on the order repeats. Raises ConfigError.
    """
    if level in LEVELS:
        return level
    if level != MIXTURE:
        raise ConfigError(f"level {level!r} is unknown; use {', '.join(LEVELS)} or {MIXTURE}")
    return LEVELS[int(_random(seed, key, "levels").permutation(len(LEVELS))[copy % len(LEVELS)])]


def _random(seed: int, key: str, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"challenge/{seed}/{key}/{purpose}".encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng(int.from_bytes(digest[:16]))
