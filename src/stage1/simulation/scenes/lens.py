"""From the drawn canvas to the stored picture: lamps, wet road, rain, drops, blur, tone, noise, JPEG."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from stage1.simulation.scenes.canvas import Canvas, Colour, Light, Picture, Rng


@dataclass(frozen=True, slots=True)
class Lens:
    """Optics, sensor and codec of one camera; `blur`, `smear` as shares of the side, `noise` in levels of 255."""

    blur: float
    smear: float
    vignette: float
    balance: Colour
    saturation: float
    contrast: float
    exposure: float
    noise: float
    quality: int | None  # of an earlier JPEG generation
    drops: tuple[tuple[float, float, float], ...]

    @classmethod
    def sample(cls, rng: Rng, light: Light) -> Lens:
        balance = np.exp(rng.normal(0, [0.055, 0.025, 0.065]))
        drops: list[tuple[float, float, float]] = []
        if light.rain > 0 and rng.random() < 0.6:
            drops = [
                (rng.uniform(0.02, 0.98), rng.uniform(0.02, 0.98), rng.uniform(0.006, 0.03))
                for _ in range(rng.integers(4, 22))
            ]
        return cls(
            blur=float(
                rng.choice([0.0, rng.uniform(0.0008, 0.0022), rng.uniform(0.0022, 0.0045)], p=[0.5, 0.37, 0.13])
            ),
            smear=float(rng.uniform(0.004, 0.014)) if rng.random() < 0.1 else 0.0,
            vignette=float(rng.uniform(0.0, 0.4)),
            balance=(float(balance[0]), float(balance[1]), float(balance[2])),
            saturation=float(rng.uniform(0.5, 1.2)),
            contrast=float(rng.uniform(0.82, 1.22)),
            exposure=float(np.exp(rng.normal(0.0, 0.13))),
            noise=float(rng.uniform(1.0, 6.0) + 7.0 * light.night * rng.random()),
            quality=int(rng.integers(28, 75)) if rng.random() < 0.4 else None,
            drops=tuple(drops),
        )


def expose(canvas: Canvas, lens: Lens, side: int, rng: Rng) -> Picture:
    """The drawn canvas as the camera stores it: uint8 [side, side, 3].

    Lamps and wet-road mirror images, rain, drops, blur, tone, noise, and for some cameras an earlier JPEG generation.
    """
    view, light = canvas.view, canvas.light
    factor = view.side // side
    image = canvas.image.reduce(factor) if factor > 1 else canvas.image
    if light.rain > 0:
        image = _wet(image, view.horizon / view.side, light.rain)
        _streaks(image, light, rng)
    for x, y, radius in lens.drops:
        _drop(image, x * side, y * side, radius * side)
    if canvas.lamps:
        image = _halos(image, canvas.lamps, light.night)
    if lens.smear > 0:
        image = image.filter(ImageFilter.BoxBlur((lens.smear * side / 2, 0)))
    if lens.blur > 0:
        image = image.filter(ImageFilter.GaussianBlur(lens.blur * side))
    pixels = np.array(image, dtype=np.float32)
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    pixels *= np.float32(lens.saturation)
    pixels += (grey * np.float32(1.0 - lens.saturation))[..., None]
    ramp = np.linspace(-1, 1, side, dtype=np.float32) ** 2
    fall = 1.0 - np.float32(lens.vignette * 0.5) * (ramp[:, None] + ramp[None, :])
    exposure = lens.exposure * float(np.exp(rng.normal(0, 0.02)))
    gain = np.array(lens.balance, dtype=np.float32) * np.float32(exposure * lens.contrast)
    pixels *= fall[..., None] * gain
    # Shot noise grows with the root of the brightness, read noise does not.
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    noise *= (np.float32(lens.noise) * np.sqrt(0.25 + grey / 255.0))[..., None]
    pixels += noise
    pixels += np.float32(128.5 - 128.0 * lens.contrast)  # contrast about mid grey; half a level rounds
    stored: Picture = np.clip(pixels, 0, 255, out=pixels).astype(np.uint8)
    if lens.quality is not None:
        buffer = io.BytesIO()
        Image.fromarray(stored).save(buffer, "JPEG", quality=lens.quality)
        stored = np.array(Image.open(buffer))
    return stored


def _wet(image: Image.Image, horizon: float, rain: float) -> Image.Image:
    """Mirror what stands above the horizon on the road, weakly and blurred."""
    side = image.width
    row = int(np.clip(horizon * side, 1, side - 2))
    low = side - row
    mirror = ImageOps.flip(image.crop((0, max(0, row - low), side, row))).resize((side, low))
    mirror = mirror.filter(ImageFilter.BoxBlur((side * 0.006, side * 0.02)))
    wet = image.copy()
    wet.paste(Image.blend(image.crop((0, row, side, side)), mirror, 0.34 * rain), (0, row))
    return wet


def _streaks(image: Image.Image, light: Light, rng: Rng) -> None:
    draw, side = ImageDraw.Draw(image, "RGBA"), image.width
    level = int(70 + 130 * sum(light.ambient) / 3)
    starts, lengths = rng.uniform(0, side, (int(140 * light.rain), 2)), rng.uniform(0.01, 0.05, int(140 * light.rain))
    for (x, y), length in zip(starts, lengths * side, strict=True):
        draw.line((x, y, x + 0.12 * length, y + length), (level, level, level + 8, 60), max(1, side // 400))


def _drop(image: Image.Image, x: float, y: float, radius: float) -> None:
    """A drop on the windscreen: the small upside-down picture of what is behind it, smoothed."""
    left, top = int(x - radius), int(y - radius)
    wide, high = int(x + radius) - left, int(y + radius) - top
    if wide < 2 or high < 2:
        return
    side = image.width
    reach = (
        max(0, int(x - 3 * radius)),
        max(0, int(y - 3 * radius)),
        min(side, int(x + 3 * radius)),
        min(side, int(y + 3 * radius)),
    )
    seen = ImageOps.flip(image.crop(reach).resize((wide, high), Image.Resampling.BOX))
    mask = Image.new("L", (wide, high), 0)
    ImageDraw.Draw(mask).ellipse((0, 0, wide - 1, high - 1), fill=190)
    image.paste(seen, (left, top), mask.filter(ImageFilter.BoxBlur(max(1.0, radius / 8))))


def _halos(image: Image.Image, lamps: list[tuple[float, float, float, Colour]], night: float) -> Image.Image:
    side = max(48, image.width // 4)
    glow = Image.new("RGB", (side, side))
    draw = ImageDraw.Draw(glow)
    for x, y, reach, colour in lamps:
        r = min(max(0.6, reach * side), side / 8)
        fill = tuple(int(part * night * 0.8) for part in colour)
        draw.ellipse((x * side - r, y * side - r, x * side + r, y * side + r), fill)
    wide = glow.filter(ImageFilter.GaussianBlur(side * 0.03))
    glow = ImageChops.add(glow.filter(ImageFilter.GaussianBlur(side * 0.008)), wide)
    return ImageChops.add(image, glow.resize(image.size, Image.Resampling.BILINEAR))
