"""Sky, skyline and ground of a street as one camera sees them; the ground is shaded pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from stage1.simulation.scenes.canvas import Floats, Light, Picture, Thing, View, noise_texture
from stage1.simulation.scenes.street import REACH, STEP, Street


def backdrop(street: Street, view: View, light: Light, things: list[Thing], clouds: float) -> Image.Image:
    """Sky, skyline and ground with the shadows of `things`: an RGB image of view.side."""
    image = _sky(light, view, clouds)
    _skyline(image, street, light, view)
    horizon = math.ceil(view.horizon) + 1
    if horizon < view.side:
        rows = _ground(street, view, light, horizon, _shadow_mask(view, light, things))
        image.paste(Image.fromarray(rows), (0, horizon))
    return image


def _sky(light: Light, view: View, offset: float) -> Image.Image:
    side = 128
    height = np.clip(np.linspace(1.0, 0.0, side, dtype=np.float32) - 0.0, 0, 1)[:, None, None]
    top, low = np.array(light.sky_top, np.float32), np.array(light.sky_low, np.float32)
    sky = low + (top - low) * height**0.8
    texture = noise_texture(11, 256, 1.45)
    shift = int(offset * 256)
    rows = (np.arange(side) * (0.6 + 1.4 * np.linspace(0, 1, side)) + shift).astype(
        int
    ) % 256  # clouds flatten low down
    cover = texture[rows][:, (np.arange(side) + 3 * shift) % 256]
    white = np.array([250, 250, 250], np.float32) * np.float32(min(1.0, sum(light.ambient) / 2.8))
    white = 0.6 * white + 0.4 * low if light.hour == "dusk" else white
    share = np.clip(cover * 0.45 + light.clouds - 0.62, 0, 0.85)[..., None]
    shade = white * (1.0 - 0.13 * np.clip(cover, -1, 2))[..., None] if light.hour != "sun" else white
    sky = np.clip(sky + (shade - sky) * share, 0, 255).astype(np.uint8)
    band = max(2, int(view.horizon) + 2)
    image = Image.new("RGB", (view.side, view.side))
    image.paste(Image.fromarray(sky).resize((view.side, band), Image.Resampling.BILINEAR), (0, 0))
    return image


def _skyline(image: Image.Image, street: Street, light: Light, view: View) -> None:
    draw, side = ImageDraw.Draw(image), view.side
    far = math.exp(-light.fog * 160)
    for x, wide, high, dark in street.skyline:
        left, top = (x + view.bend * 60) * side, view.horizon - high * side
        base = (96.0, 104.0, 90.0) if street.place in ("country", "highway") else (120.0, 120.0, 126.0)
        fill = tuple(
            int(b * gain * dark * far + h * (1 - far))
            for b, gain, h in zip(base, light.ambient, light.haze, strict=True)
        )
        if street.place in ("country", "highway"):
            draw.ellipse((left - wide * side, top, left + 2 * wide * side, view.horizon + 3 * high * side), fill)
        else:
            draw.rectangle((left, top, left + wide * side, view.horizon + 3), fill)


def _ground(street: Street, view: View, light: Light, horizon: int, shadows: Image.Image) -> Picture:
    rows = np.arange(horizon, view.side, dtype=np.float32)
    depth = np.minimum(view.focal * view.height / (rows - view.horizon + 0.5), 400.0).astype(np.float32)
    across = (np.arange(view.side, dtype=np.float32) - view.centre) / view.focal
    x = across[None, :] * depth[:, None] + (view.x - view.bend * depth * depth)[:, None]
    z = depth + view.z
    version = (((z + street.dash[2]) % street.dash[0]) < street.dash[1]).astype(np.int32)
    if street.zebra > 0:
        version[np.abs(z - street.zebra) < 1.6] = 2
    width = street.table.shape[1]
    entry = np.clip((x + REACH) * (1 / STEP), 0, width - 1).astype(np.int32) + (version * width)[:, None]
    colour = np.take(street.table.reshape(-1, 3), entry, axis=0)
    grit_amplitude, patch_amplitude, offset = street.texture
    fade = 1.0 / (1.0 + depth / 9.0)

    def sampled(per_metre: float, texture: Floats) -> Floats:
        row = ((z + offset) * per_metre).astype(np.int32) % 256
        column = ((x + 100.0) * per_metre).astype(np.int32) % 256
        picked: Floats = np.take(texture.ravel(), row[:, None] * 256 + column)
        return picked

    grit, patches = sampled(28.0, noise_texture(21, 256, 0.55)), sampled(7.0, noise_texture(22, 256, 1.15))
    shade = 1.0 + grit * (grit_amplitude * fade)[:, None] + patches * (patch_amplitude * (0.4 + 0.6 * fade))[:, None]
    shade *= np.asarray(shadows.crop((0, horizon, view.side, view.side)), dtype=np.float32) * np.float32(1 / 255)
    clear = np.exp(-light.fog * depth)
    shade *= (clear * np.float32(1.0 - 0.3 * light.rain))[:, None]  # wet asphalt is darker
    beam: Floats | None = None
    if light.night > 0:
        beam = light.night * 0.75 * np.exp(-depth / 24.0)[:, None] * np.exp(-((across[None, :] * 2.2) ** 2))
    result = np.empty(colour.shape, dtype=np.uint8)
    for channel in range(3):
        gain = np.float32(light.ambient[channel])
        lit = shade * (gain if beam is None else beam + gain)
        lit *= colour[..., channel]
        lit += (np.float32(light.haze[channel]) * (1 - clear))[:, None]
        result[..., channel] = np.clip(lit, 0, 255, out=lit)
    return result


def _shadow_mask(view: View, light: Light, things: list[Thing]) -> Image.Image:
    """Cast and contact shadows on the ground as "L", 255 = none; drawn small and blurred."""
    factor = 4 if view.side >= 256 else 1
    small = Image.new("L", (view.side // factor, view.side // factor), 255)
    draw = ImageDraw.Draw(small)
    for thing in sorted(things, key=lambda item: -item.z):
        if not thing.shadow or thing.z - view.z < 1.0:
            continue
        # a trestle lets through what a block keeps
        depth, under = int(255 * (1 - 0.6 * light.sun * thing.opaque**0.5)), int(255 * (1 - 0.55 * thing.opaque))
        left, right, far = thing.x - thing.width / 2, thing.x + thing.width / 2, thing.z + max(0.6, thing.width * 0.9)
        if light.sun > 0.25:
            cast = -math.copysign(0.4 + 0.9 * abs(light.sun_side), light.sun_side) * thing.height
            corners = [(left, thing.z), (right, thing.z), (right + cast, far + 0.3), (left + cast, far + 0.3)]
            draw.polygon([_scaled(view.project(x, 0, z), factor) for x, z in corners], fill=depth)
        contact = [(left, thing.z - 0.15), (right, thing.z - 0.15), (right, far), (left, far)]
        draw.polygon([_scaled(view.project(x, 0, z), factor) for x, z in contact], fill=min(depth, under))
    blurred = small.filter(ImageFilter.BoxBlur(small.width / 200))
    return blurred.resize((view.side, view.side), Image.Resampling.BILINEAR)


def _scaled(point: tuple[float, float], factor: int) -> tuple[float, float]:
    return point[0] / factor, point[1] / factor
