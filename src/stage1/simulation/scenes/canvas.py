"""What scenes are drawn with: perspective projection, light and fog on flat-shaded faces, and things placed in a world.

World coordinates in metres: x to the right of the road's axis, y up, z along the road. Pillow draws, numpy shades;
every length in pixels follows from the side of the picture, so one scene can be drawn at any size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Colour = tuple[float, float, float]
Point = tuple[float, float, float]
Picture = NDArray[np.uint8]
Floats = NDArray[np.float32]
Rng = np.random.Generator

NEAR = 1.3  # metres: nothing nearer is drawn, points nearer are moved to this depth


@dataclass(frozen=True, slots=True)
class Light:
    """What the weather and the hour do to colours. Gains are per channel, `fog` is extinction per metre."""

    hour: str  # "sun" | "overcast" | "dusk" | "night"
    ambient: Colour
    sun: float  # 0..1, strength of the directed light
    sun_side: float  # -1 (from the left) .. 1
    fog: float
    haze: Colour  # colour that distance fades to
    sky_top: Colour
    sky_low: Colour
    clouds: float
    night: float  # 0..1: headlights, lit windows
    rain: float  # 0..1: streaks, wet road

    @classmethod
    def sample(cls, rng: Rng) -> Light:
        hour = str(rng.choice(["sun", "overcast", "dusk", "night"], p=[0.39, 0.35, 0.16, 0.10]))
        rain = float(rng.uniform(0.3, 1.0)) if hour != "sun" and rng.random() < 0.28 else 0.0
        fog = float(rng.choice([0.0025, 0.008, 0.02], p=[0.7, 0.2, 0.1]) * rng.uniform(0.7, 1.4))
        gain = float(rng.uniform(0.85, 1.08))
        side, clouds = float(rng.uniform(-1, 1)), float(rng.uniform(0.2, 0.9))
        if hour == "sun":
            warm = float(rng.uniform(0.9, 1.08))
            ambient, sun, night = (gain * 1.03, gain, gain * warm * 0.97), float(rng.uniform(0.5, 1.0)), 0.0
            low = (rng.uniform(185, 225), rng.uniform(205, 232), rng.uniform(225, 245))
            top = (rng.uniform(60, 130), rng.uniform(115, 170), rng.uniform(180, 228))
        elif hour == "overcast":
            ambient, sun, night = (gain * 0.72, gain * 0.74, gain * 0.77), float(rng.uniform(0.0, 0.2)), 0.0
            level = float(rng.uniform(150, 225))
            low, top = (level, level + 2, level + 6), (level * 0.82, level * 0.85, level * 0.9)
            clouds = float(rng.uniform(0.4, 1.0))
        elif hour == "dusk":
            deep = float(rng.uniform(0.0, 1.0))
            ambient = (gain * (0.72 - 0.22 * deep), gain * (0.58 - 0.2 * deep), gain * (0.56 - 0.14 * deep))
            sun, night = float(rng.uniform(0.2, 0.7)), 0.25 + 0.35 * deep
            low = (rng.uniform(205, 250), rng.uniform(130, 180), rng.uniform(85, 150))
            top = (rng.uniform(55, 100), rng.uniform(60, 105), rng.uniform(100, 150))
        else:
            lamp = float(rng.uniform(0.0, 1.0))  # 0: white street lamps, 1: sodium
            level = float(rng.uniform(0.16, 0.32))
            ambient = (level * (1.0 + 0.3 * lamp), level * (1.0 - 0.05 * lamp), level * (1.1 - 0.55 * lamp))
            sun, night, clouds = 0.0, 1.0, clouds * 0.3
            low = (22 + 30 * lamp, 22 + 15 * lamp, 34.0)
            top = (8.0, 9.0, 16.0)
        haze = tuple(0.85 * part + 0.15 * 128 * gains for part, gains in zip(low, ambient, strict=True))
        return cls(hour, ambient, sun, side, fog, haze, top, low, clouds, night, rain)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class View:
    """A camera above the road. `side`, `focal`, `centre`, `horizon` in pixels; `bend` is the road's curve, 1/m."""

    side: int
    focal: float
    centre: float
    horizon: float
    height: float
    x: float
    z: float
    bend: float

    def depth(self, z: float) -> float:
        return max(z - self.z, NEAR)

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """World point (metres) to (column, row) in pixels."""
        depth = max(z - self.z, NEAR)
        scale = self.focal / depth
        return self.centre + scale * (x - self.x + self.bend * depth * depth), self.horizon + scale * (self.height - y)


@cache
def noise_texture(seed: int, side: int, slope: float) -> Floats:
    """Tileable noise [side, side] of mean 0, deviation 1, with amplitude ~ 1 / frequency**slope."""
    white = np.random.default_rng(seed).standard_normal((side, side))
    row, column = np.fft.fftfreq(side)[:, None] * side, np.fft.rfftfreq(side)[None, :] * side
    radius = np.hypot(row, column)
    radius[0, 0] = np.inf
    field = np.fft.irfft2(np.fft.rfft2(white) / radius**slope, s=(side, side))
    return np.asarray((field - field.mean()) / field.std(), dtype=np.float32)


@cache
def foliage(kind: int) -> tuple[Image.Image, Image.Image]:
    """One of several crowns of leaves: brightness and coverage, both "L" 160 x 160, lit from above."""
    side = 160
    y, x = np.mgrid[-1:1:160j, -1:1:160j].astype(np.float32)
    rough = noise_texture(900 + kind, side, 1.1)
    leaves = noise_texture(950 + kind, side, 0.5)
    squeeze = 0.85 + 0.1 * (kind % 4)
    inside = 1.0 - np.hypot(x / squeeze, y * (1.0 + 0.12 * (kind % 3))) * 1.12 + 0.16 * rough + 0.05 * leaves
    cover = np.clip(inside * 9.0, 0, 1)
    bright = 0.5 - 0.28 * y + 0.10 * rough + 0.13 * leaves
    return (
        Image.fromarray((np.clip(bright, 0, 1) * 255).astype(np.uint8)),
        Image.fromarray((cover * 255).astype(np.uint8)),
    )


class Canvas:
    """The picture being drawn: a Pillow image, the view, the light, and the lamps to be lit at the end."""

    def __init__(self, view: View, light: Light, image: Image.Image) -> None:
        self.view, self.light, self.image = view, light, image
        self.draw = ImageDraw.Draw(image)
        self.lamps: list[tuple[float, float, float, Colour]] = []

    def tone(self, colour: Colour, z: float, shade: float = 1.0, glow: float = 0.0) -> tuple[int, int, int]:
        """A surface colour as the camera sees it at `z`; `glow` is light of its own or thrown back (0..1)."""
        light, depth = self.light, self.view.depth(z)
        clear = math.exp(-light.fog * depth)
        beam = light.night * 0.75 * math.exp(-depth / 24.0)
        throw = glow * max(light.night, 0.15)
        (r, g, b), (gain_r, gain_g, gain_b), (haze_r, haze_g, haze_b) = colour, light.ambient, light.haze
        # written out: this runs for every polygon
        shade *= clear * (1.0 - throw)
        throw *= clear
        veil = 1.0 - clear
        return (
            int(min(255.0, r * ((gain_r + beam) * shade + throw) + haze_r * veil)),
            int(min(255.0, g * ((gain_g + beam) * shade + throw) + haze_g * veil)),
            int(min(255.0, b * ((gain_b + beam) * shade + throw) + haze_b * veil)),
        )

    def side_shade(self, normal: float) -> float:
        """Brightness of a wall that looks to +x (normal 1) or -x (normal -1)."""
        return 0.8 + 0.32 * self.light.sun * self.light.sun_side * normal

    def face(self, points: list[Point], colour: Colour, shade: float = 1.0, glow: float = 0.0) -> None:
        """A flat polygon given by its corners in the world."""
        deepest = max(point[2] for point in points)
        if deepest - self.view.z < NEAR:
            return
        middle = sum(self.view.depth(point[2]) for point in points) / len(points)
        project = self.view.project
        self.draw.polygon([project(*point) for point in points], self.tone(colour, self.view.z + middle, shade, glow))

    def panel(
        self,
        x0: float,
        x1: float,
        y0: float,
        y1: float,
        z: float,
        colour: Colour,
        shade: float = 1.0,
        glow: float = 0.0,
    ) -> None:
        """An upright rectangle that faces the camera."""
        if z - self.view.z < NEAR:
            return
        left, top = self.view.project(x0, y1, z)
        right, bottom = self.view.project(x1, y0, z)
        self.draw.rectangle((left, top, max(left, right), max(top, bottom)), self.tone(colour, z, shade, glow))

    def box(
        self, x0: float, x1: float, y0: float, y1: float, z0: float, z1: float, colour: Colour, shade: float = 1.0
    ) -> None:
        """A block: the side that can be seen, the top if it is below the camera, the near face."""
        if z0 - self.view.z < NEAR:
            return
        left, _ = self.view.project(x0, y0, z0)
        right, _ = self.view.project(x1, y0, z0)
        if self.view.project(x0, y0, z1)[0] < left:
            self.face([(x0, y0, z0), (x0, y0, z1), (x0, y1, z1), (x0, y1, z0)], colour, shade * self.side_shade(-1))
        if self.view.project(x1, y0, z1)[0] > right:
            self.face([(x1, y0, z0), (x1, y0, z1), (x1, y1, z1), (x1, y1, z0)], colour, shade * self.side_shade(1))
        if y1 < self.view.height:
            self.face([(x0, y1, z0), (x1, y1, z0), (x1, y1, z1), (x0, y1, z1)], colour, shade * 1.08)
        self.panel(x0, x1, y0, y1, z0, colour, shade * 0.88)

    def column(
        self,
        x: float,
        z: float,
        y0: float,
        y1: float,
        r0: float,
        r1: float,
        colour: Colour,
        shade: float = 1.0,
        glow: float = 0.0,
    ) -> None:
        """A round body (radius r0 below, r1 above) in upright strips, brighter towards the light."""
        if z - self.view.z < NEAR:
            return
        base, bottom = self.view.project(x, y0, z)
        _, top = self.view.project(x, y1, z)
        scale = self.view.focal / self.view.depth(z)
        wide, narrow = r0 * scale, r1 * scale
        strips = 1 if max(wide, narrow) < 2.5 else 3 if max(wide, narrow) < 9 else 7
        lean = self.light.sun * self.light.sun_side
        for strip in range(strips):
            u0, u1 = 2 * strip / strips - 1, 2 * (strip + 1) / strips - 1
            middle = 0.5 * (u0 + u1)
            lit = shade * (0.72 + 0.26 * math.sqrt(1 - middle * middle) + 0.22 * lean * middle)
            corners = [
                (base + wide * u0, bottom),
                (base + wide * u1, bottom),
                (base + narrow * u1, top),
                (base + narrow * u0, top),
            ]
            self.draw.polygon(corners, self.tone(colour, z, lit, glow))

    def disc(
        self, x: float, y: float, z: float, radius: float, colour: Colour, shade: float = 1.0, glow: float = 0.0
    ) -> None:
        if z - self.view.z < NEAR:
            return
        column, row = self.view.project(x, y, z)
        r = max(0.5, radius * self.view.focal / self.view.depth(z))
        self.draw.ellipse((column - r, row - r, column + r, row + r), self.tone(colour, z, shade, glow))

    def line(self, points: list[Point], width: float, colour: Colour, shade: float = 1.0) -> None:
        """A bar of `width` metres along a path, at least one pixel wide."""
        z = sum(point[2] for point in points) / len(points)
        if min(point[2] for point in points) - self.view.z < NEAR:
            return
        thick = max(1, round(width * self.view.focal / self.view.depth(z)))
        self.draw.line([self.view.project(*point) for point in points], self.tone(colour, z, shade), thick)

    def leaves(self, x: float, y: float, z: float, width: float, height: float, colour: Colour, kind: int) -> None:
        """A crown of leaves centred on (x, y)."""
        scale = self.view.focal / self.view.depth(z)
        wide, high = int(width * scale), int(height * scale)
        if z - self.view.z < NEAR + 1 or min(wide, high) < 2 or max(wide, high) > 2 * self.view.side:
            return
        bright, cover = foliage(kind)
        column, row = self.view.project(x, y, z)
        if column + wide < 0 or column - wide > self.view.side:
            return
        size, filtering = (wide, high), Image.Resampling.BILINEAR
        tinted = Image.composite(
            Image.new("RGB", size, self.tone(colour, z, 1.35)),
            Image.new("RGB", size, self.tone(colour, z, 0.25)),
            bright.resize(size, filtering),
        )
        self.image.paste(tinted, (int(column - wide / 2), int(row - high / 2)), cover.resize(size, filtering))

    def lamp(self, x: float, y: float, z: float, radius: float, colour: Colour) -> None:
        """A light source: a halo of `radius` metres, shown by the night share of the light."""
        if self.light.night > 0.0 and z - self.view.z > NEAR:
            column, row = self.view.project(x, y, z)
            reach = radius * self.view.focal / self.view.depth(z) / self.view.side
            self.lamps.append((column / self.view.side, row / self.view.side, reach, colour))


@dataclass(frozen=True, slots=True)
class Thing:
    """Something that stands on the ground: near face at depth `z`, `speed` in metres per second along the road.

    `pace` 1: it also keeps up with the camera (traffic in our direction), 0: it does not.
    """

    x: float
    z: float
    width: float
    height: float
    paint: Callable[[Canvas, float], None]
    speed: float = 0.0
    pace: float = 0.0
    opaque: float = 1.0  # share of its outline that hides what is behind
    shadow: bool = True
    clue: float = 1.0  # for roadwork: how much its visible area counts, 0 where it could be anything
