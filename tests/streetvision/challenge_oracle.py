"""A second implementation of the client's four levels, from the facts about it in STREETVISION.md: nothing of stage1.

By other means than stage1/data/corruptions.py: scipy's rotation, interpolation and blur in exact arithmetic, torch's
resizing (which is the client's), JPEG by a DCT of its own. `earlier=True` is the generator as it was before version 2:
noise in RGB, everything rounded, resampling cut off twice; a control that must be told apart.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import fft, ndimage

SIDE = 224
CHROMA, BRIGHTNESS, RESAMPLE = (1, 0.4, 0.3), (1, 0.85, 0.725), (1, 2, 3)
NOISE, BLUR = (0, 0.001, 0.002), (0, 7, 9)
# ITU-R BT.601, full range, as JFIF has it.
TO_YCC = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
# ITU-T T.81, Annex K.
LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
COLOUR = np.full((8, 8), 99)
COLOUR[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]


def byte(values):
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def drawn(
    rgb, level, rng, *, degrees=20.0, area=(0.2, 1.0), chroma=CHROMA, brightness=BRIGHTNESS, noise=NOISE, earlier=False
):
    """uint8 [H, W, 3] -> uint8 [224, 224, 3], before JPEG. The options are for controls that must be told apart."""
    height, width = rgb.shape[:2]
    if level == 0:
        side = min(height, width)
        return averaged(square(rgb, round((height - side) / 2), round((width - side) / 2), side))
    frame = ndimage.rotate(rgb, rng.uniform(-degrees, degrees), axes=(1, 0), reshape=False, order=0, mode="constant")
    crop = random_square(frame, area, rng)
    pixels = averaged(crop) if earlier else resized(crop)
    if level == 1:
        return pixels
    steps = [int(rng.integers(level)) for _ in range(3)]
    late = [int(rng.integers(level)) for _ in range(2)] if level == 3 else [0, 0]
    if steps[0]:
        pixels = faded(pixels, chroma[steps[0]]) if earlier else coloured(pixels, chroma[steps[0]])
    if steps[1]:
        dim = pixels * float(brightness[steps[1]])
        pixels = byte(dim) if earlier else floored(dim)
    if steps[2]:
        pixels = downed(pixels, RESAMPLE[steps[2]], np.trunc if earlier else None)
    if late[0]:
        pixels = noised(pixels, noise[late[0]], rng, earlier)
    if late[1]:
        pixels = blurred(pixels, BLUR[late[1]], BLUR[late[1]] / 6)
    return pixels


def square(rgb, top, left, side):
    return rgb[top : top + side, left : left + side]


def random_square(rgb, area, rng):
    height, width = rgb.shape[:2]
    for _ in range(10):
        side = round(float(np.sqrt(rng.uniform(*area) * height * width)))
        if side <= min(height, width):
            left, top = rng.integers(width - side + 1), rng.integers(height - side + 1)
            return square(rgb, top, left, side)
    side = min(height, width)
    return square(rgb, (height - side) // 2, (width - side) // 2, side)


def resized(rgb, side=SIDE):
    """To float in [0, 1], bilinear with antialiasing in float, times 255, down to the whole number: with torch, as
    the client.
    """
    torch = pytest.importorskip("torch", reason="the client resizes with torch")
    unit = torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None].float() / 255
    small = torch.nn.functional.interpolate(unit, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return (small[0] * 255).clamp(0, 255).byte().permute(1, 2, 0).numpy()


def averaged(rgb, side=SIDE):
    """The same on bytes, each axis rounded: triangle weights, as wide as the step where pixels are skipped."""
    across = byte(rgb.transpose(2, 0, 1) @ triangle(rgb.shape[1], side).T)
    return byte(triangle(rgb.shape[0], side) @ across.astype(float)).transpose(1, 2, 0)


def triangle(old, new):
    step = old / new
    centre = (np.arange(new) + 0.5) * step - 0.5
    weights = np.clip(1 - np.abs(np.arange(old)[None] - centre[:, None]) / max(step, 1.0), 0, None)
    return weights / weights.sum(axis=1, keepdims=True)


def floored(values):
    return np.clip(np.floor(values + 1e-6), 0, 255).astype(np.uint8)


def studio(rgb):
    """Y, Cb, Cr as [..., 3] in units of 1/255 of studio range."""
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    blue, red = (rgb[..., 2] - luma) * 0.564 + 0.5, (rgb[..., 0] - luma) * 0.713 + 0.5
    return np.stack([luma * 219 + 16, blue * 224 + 16, red * 224 + 16], axis=-1) / 255


def full(ycc):
    luma, blue, red = (ycc * 255 - 16)[..., 0] / 219, *((ycc * 255 - 16)[..., c] / 224 - 0.5 for c in (1, 2))
    return np.stack([luma + 1.403 * red, luma - 0.714 * red - 0.344 * blue, luma + 1.773 * blue], axis=-1)


def coloured(rgb, factor):
    ycc = studio(rgb.astype(float))
    ycc[..., 1:] = 0.5 + (ycc[..., 1:] - 0.5) * factor
    return floored(full(ycc))


def faded(rgb, factor):
    ycc = rgb @ TO_YCC.T
    ycc[..., 1:] *= factor
    return byte(ycc @ np.linalg.inv(TO_YCC).T)


def noised(rgb, variance, rng, earlier=False):
    noise = 255 * np.sqrt(variance) * rng.standard_normal(rgb.shape)
    return byte(rgb + noise) if earlier else floored(full(studio(rgb.astype(float)) + noise))


def downed(rgb, factor, end=None):
    """Down and up by linear interpolation at the centres of pixels, nothing averaged in between; each step ends in
    bytes.
    """
    if factor == 1:
        return rgb
    return sampled(sampled(rgb, SIDE // factor, end), SIDE, end)


def sampled(rgb, side, end=None):
    at = (np.arange(side) + 0.5) * rgb.shape[0] / side - 0.5
    grid = np.meshgrid(at, at, indexing="ij")
    planes = [ndimage.map_coordinates(rgb[..., c].astype(float), grid, order=1, mode="nearest") for c in range(3)]
    return byte((end or np.rint)(np.stack(planes, 2)))


def blurred(rgb, kernel, sigma):
    return byte(ndimage.gaussian_filter(rgb.astype(float), sigma, radius=kernel // 2, mode="mirror", axes=(0, 1)))


# ---- JPEG --------------------------------------------------------------------------------------------------------


def tables(quality):
    """Luma and chroma quantisation of libjpeg's quality >= 50, in natural order."""
    scale = 200 - 2 * quality
    return [np.clip((table * scale + 50) // 100, 1, 255) for table in (LUMA, COLOUR)]


def jpeg(rgb, quality):
    """Baseline JPEG and back, 4:2:0: what the pixels lose."""
    ycc = rgb @ TO_YCC.T + [0, 128, 128]
    luma, colour = tables(quality)
    out = np.empty_like(ycc)
    out[..., 0] = quantised(ycc[..., 0], luma)
    for c in (1, 2):
        half = ycc[..., c].reshape(SIDE // 2, 2, SIDE // 2, 2).mean(axis=(1, 3))
        at = (np.arange(SIDE) + 0.5) / 2 - 0.5
        out[..., c] = ndimage.map_coordinates(
            quantised(half, colour), np.meshgrid(at, at, indexing="ij"), order=1, mode="nearest"
        )
    return byte((out - [0, 128, 128]) @ np.linalg.inv(TO_YCC).T)


def quantised(plane, table):
    h, w = plane.shape
    blocks = plane.reshape(h // 8, 8, w // 8, 8).transpose(0, 2, 1, 3) - 128
    kept = np.rint(fft.dctn(blocks, axes=(2, 3), norm="ortho") / table) * table
    return np.clip(fft.idctn(kept, axes=(2, 3), norm="ortho") + 128, 0, 255).transpose(0, 2, 1, 3).reshape(h, w)


ZIGZAG = sorted(((r, c) for r in range(8) for c in range(8)), key=lambda at: (sum(at), at[0] if sum(at) % 2 else at[1]))


def read_header(data):
    """(quantisation tables in natural order, [(horizontal, vertical) sampling of each component], (height, width))
    of a JPEG.
    """
    found, sampling, size, at = {}, [], None, 2
    while data[at] == 0xFF and data[at + 1] != 0xDA:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        body = data[at + 4 : at + 2 + length]
        if marker == 0xDB:
            while body:
                table = np.empty((8, 8), int)
                for place, value in zip(ZIGZAG, body[1:65], strict=True):
                    table[place] = value
                found[body[0] & 15], body = table, body[65:]
        if marker in (0xC0, 0xC2):
            size = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            sampling = [(body[7 + 3 * i] >> 4, body[7 + 3 * i] & 15) for i in range(body[5])]
        at += 2 + length
    return [found[key] for key in sorted(found)], sampling, size
