"""Roadwork: what a site is made of and where it stands. A site is added to a finished street; nothing else changes.

Every kind of object comes in the colours and wear of more than one country, at any distance at which a driver would
still know what it is: `place_site` draws sites until enough of one can be seen in every frame of the video.
"""

from __future__ import annotations

import math
import os

import numpy as np

from stage1.data.roadscenes.canvas import Canvas, Colour, Rng, Thing, View, pick, vary
from stage1.data.roadscenes.street import Street

_SIGNAL: list[Colour] = [(240, 96, 22), (250, 120, 30), (226, 78, 24), (214, 104, 52), (190, 88, 48), (238, 140, 40)]
_MACHINE: list[Colour] = [(236, 176, 28), (230, 150, 24), (214, 120, 30), (240, 196, 50), (196, 150, 50)]
LEAST, MOST = float(os.environ.get("RS_LEAST", "0.022")), 0.6  # share of the picture that shows the site, every frame
_WHITE: Colour = (232, 230, 224)


def cone(rng: Rng, x: float, z: float, colour: Colour, tall: float) -> Thing:
    bands, base = int(rng.choice([1, 2, 2])), pick(rng, [(34, 34, 36), colour])
    band = vary(rng, _WHITE, 0.08)
    fallen = rng.random() < 0.05

    def paint(canvas: Canvas, z: float) -> None:
        wide = tall * 0.27
        if fallen:
            canvas.face([(x - wide, 0, z), (x - wide, 2 * wide, z), (x + tall * 0.8, wide * 0.7, z), (x + tall * 0.8, wide * 0.4, z)], colour, 0.85)
            canvas.face([(x - wide - 0.04, 0, z), (x - wide - 0.04, 2 * wide, z), (x - wide, 2 * wide, z), (x - wide, 0, z)], base, 0.7)
            return
        canvas.box(x - wide, x + wide, 0.0, 0.05, z - wide, z + wide, base, 0.95)

        def ring(low: float, high: float, tint: Colour, glow: float) -> None:
            def radius(share: float) -> float:
                return tall * (0.19 - 0.155 * share)

            canvas.column(x, z, tall * low, tall * high, radius(low), radius(high), tint, glow=glow)

        ring(0.05, 1.0, colour, 0.12)
        if bands == 1:
            ring(0.45, 0.75, band, 0.75)
        else:
            ring(0.34, 0.52, band, 0.75)
            ring(0.66, 0.82, band, 0.75)

    return Thing(x, z, tall * 0.5, tall, paint, opaque=0.5)


def drum(rng: Rng, x: float, z: float, colour: Colour) -> Thing:
    tall, wide, band = float(rng.uniform(0.9, 1.1)), float(rng.uniform(0.24, 0.31)), vary(rng, _WHITE, 0.08)

    def paint(canvas: Canvas, z: float) -> None:
        canvas.column(x, z, 0.0, 0.1, wide * 1.35, wide * 1.35, (30, 30, 32))
        for number in range(5):
            low, high = 0.1 + 0.175 * number, 0.1 + 0.175 * (number + 1)
            canvas.column(x, z, tall * low, tall * high, wide * (1 - 0.1 * low), wide * (1 - 0.1 * high), band if number % 2 else colour, glow=0.5 * (number % 2) + 0.1)

    return Thing(x, z, wide * 2, tall, paint, opaque=0.9)


def _stripes(canvas: Canvas, x0: float, x1: float, y0: float, y1: float, z: float, first: Colour, second: Colour, lean: float) -> None:
    """A board of slanted stripes; too small for stripes it is their mixture."""
    high = y1 - y0
    canvas.panel(x0, x1, y0, y1, z, second, 0.95, 0.4)
    pitch = max(high * 1.1, 0.16)
    x = x0 - abs(lean) * high
    while x < x1:
        a, b = x, x + pitch * 0.5
        shift = lean * high
        corners = [(a, y0), (b, y0), (b + shift, y1), (a + shift, y1)]
        inside = [(min(max(px, x0), x1), py, z) for px, py in corners]
        if inside[1][0] - inside[0][0] + inside[2][0] - inside[3][0] > 0.01:
            canvas.face(inside, first, 0.95, 0.4)
        x += pitch


def barrier(rng: Rng, x: float, z: float, colour: Colour) -> Thing:
    """One or two striped boards on legs."""
    wide, boards, lean = float(rng.uniform(1.2, 2.6)), int(rng.choice([1, 2, 3], p=[0.45, 0.4, 0.15])), float(rng.choice([-1, 1]))
    tall = float(rng.uniform(0.95, 1.2)) + 0.15 * (boards - 1)
    lamp, white, high = rng.random() < 0.4, vary(rng, _WHITE, 0.08), float(rng.uniform(0.2, 0.3))

    def paint(canvas: Canvas, z: float) -> None:
        for sign in (-1, 1):
            leg = x + sign * wide * 0.42
            canvas.line([(leg, 0, z - 0.25), (leg, tall, z + 0.02)], 0.05, (150, 150, 150))
            canvas.line([(leg, 0, z + 0.35), (leg, tall, z + 0.04)], 0.05, (130, 130, 130))
        for number in range(boards):
            top = tall - number * (high + 0.12)
            _stripes(canvas, x - wide / 2, x + wide / 2, top - high, top, z, colour, white, lean)
        if lamp:
            for sign in (-1, 1):
                canvas.disc(x + sign * wide * 0.42, tall + 0.12, z, 0.1, (250, 176, 40), 1.0, 0.9)
                canvas.lamp(x + sign * wide * 0.42, tall + 0.12, z, 0.3, (250, 160, 40))

    return Thing(x, z, wide, tall, paint, opaque=0.45)


def blocks(rng: Rng, x: float, z: float, colour: Colour) -> Thing:
    """Plastic barrier blocks, alternately coloured and white, across or along the road."""
    count, along = int(rng.integers(2, 6)), rng.random() < 0.5
    tall, white, length = float(rng.uniform(0.75, 1.05)), vary(rng, (226, 224, 218), 0.06), float(rng.uniform(0.9, 1.4))

    def paint(canvas: Canvas, z: float) -> None:
        for number in range(count - 1, -1, -1):
            tint = colour if number % 2 == 0 else white
            if along:
                left, z0 = x, z + number * length
                canvas.box(left - 0.25, left + 0.25, 0, tall * 0.35, z0, z0 + length * 0.97, tint)
                canvas.box(left - 0.14, left + 0.14, tall * 0.35, tall, z0, z0 + length * 0.97, tint)
            else:
                left = x + (number - count / 2) * length
                canvas.box(left, left + length * 0.97, 0, tall * 0.35, z - 0.1, z + 0.4, tint)
                canvas.box(left, left + length * 0.97, tall * 0.35, tall, z, z + 0.28, tint)

    return Thing(x, z, 0.5 if along else count * length, tall, paint, opaque=0.95)


def beacon(rng: Rng, x: float, z: float, colour: Colour) -> Thing:
    """An upright striped panel on a rubber foot."""
    lean, white = float(rng.choice([-1.0, 1.0])), vary(rng, _WHITE, 0.08)

    def paint(canvas: Canvas, z: float) -> None:
        canvas.box(x - 0.2, x + 0.2, 0, 0.12, z - 0.2, z + 0.3, (40, 40, 42))
        canvas.panel(x - 0.14, x + 0.14, 0.12, 1.15, z, white, 0.95, 0.4)
        for number in range(4):
            y = 0.14 + 0.26 * number
            canvas.face([(x - 0.14, y, z), (x + 0.14, y + 0.14 * lean, z), (x + 0.14, y + 0.14 * lean + 0.13, z), (x - 0.14, y + 0.13, z)], colour, 0.95, 0.4)

    return Thing(x, z, 0.3, 1.15, paint, opaque=0.85)


def sign(rng: Rng, x: float, z: float, colour: Colour) -> Thing:
    """A warning sign for roadwork: triangle with a digging man, orange diamond, or an orange board, low on a stand."""
    shape = str(rng.choice(["triangle", "diamond", "board", "arrow"], p=[0.36, 0.36, 0.14, 0.14]))
    size, low = float(rng.uniform(0.45, 0.7)), float(rng.uniform(0.85, 1.5))
    inner: Colour = (240, 200, 50) if rng.random() < 0.35 else (238, 236, 228)
    flags = shape == "diamond" and rng.random() < 0.3

    def paint(canvas: Canvas, z: float) -> None:
        for foot in (-1, 1):
            canvas.line([(x + foot * 0.35, 0, z - 0.1), (x, low, z + 0.02)], 0.05, (120, 122, 124))
        canvas.line([(x, 0, z + 0.3), (x, low, z + 0.02)], 0.05, (100, 102, 104))
        ink: Colour = (24, 24, 26)
        if shape == "triangle":
            corners = [(0.0, 1.15), (-1.05, -0.65), (1.05, -0.65)]
            canvas.face([(x + size * u, low + size * v, z) for u, v in corners], (206, 30, 34), 0.95, 0.5)
            canvas.face([(x + size * 0.7 * u, low + size * 0.7 * v, z) for u, v in corners], inner, 0.95, 0.5)
            _digger(canvas, x, low - 0.05, z, size * 0.85)
        elif shape == "diamond":
            corners = [(0, 1.25), (-1.25, 0), (0, -1.25), (1.25, 0)]
            canvas.face([(x + size * u, low + size * v, z) for u, v in corners], ink, 0.95)
            canvas.face([(x + size * 0.93 * u, low + size * 0.93 * v, z) for u, v in corners], colour, 0.95, 0.5)
            if rng_text:
                for number in (-1, 0, 1):
                    half = size * (0.55 if number else 0.8)
                    canvas.panel(x - half, x + half, low + size * (0.36 * number - 0.1), low + size * (0.36 * number + 0.1), z, ink)
            else:
                _digger(canvas, x, low - 0.05, z, size * 1.2)
            if flags:
                for foot in (-1, 1):
                    tip = (x + foot * size * 0.5, low + size * 2.1, z)
                    canvas.line([(x, low + size * 1.2, z), tip], 0.03, (150, 140, 120))
                    canvas.face([tip, (tip[0] + foot * 0.4, tip[1] + 0.02, z), (tip[0] + foot * 0.36, tip[1] - 0.34, z), (tip[0] - foot * 0.06, tip[1] - 0.3, z)], colour)
        elif shape == "board":
            canvas.panel(x - size * 1.5, x + size * 1.5, low - size * 0.7, low + size * 0.8, z, ink)
            canvas.panel(x - size * 1.42, x + size * 1.42, low - size * 0.62, low + size * 0.72, z, colour, 0.95, 0.5)
            for number in (0, 1):
                canvas.panel(x - size * 1.1, x + size * 1.1, low + size * (0.55 * number - 0.4), low + size * (0.55 * number - 0.1), z, ink)
        else:
            canvas.panel(x - size * 1.6, x + size * 1.6, low - size * 0.6, low + size * 1.0, z, (30, 30, 32))
            lit: Colour = (255, 190, 60)
            for number in range(6):
                u = -1.25 + 0.5 * number
                canvas.disc(x + size * u, low + size * 0.2, z, size * 0.13, lit, 1.1, 0.95)
            for u, v in ((-0.9, 0.5), (-0.9, -0.1), (-0.5, 0.75), (-0.5, -0.35)):
                canvas.disc(x + size * u, low + size * v, z, size * 0.13, lit, 1.1, 0.95)
            canvas.lamp(x, low + size * 0.2, z, size * 0.8, (255, 170, 50))

    rng_text = rng.random() < 0.5
    return Thing(x, z, size * 2, low + size, paint, opaque=0.4)


def _digger(canvas: Canvas, x: float, y: float, z: float, size: float) -> None:
    """The man with the shovel, in a few strokes."""
    ink: Colour = (24, 24, 26)
    canvas.disc(x - 0.05 * size, y + 0.42 * size, z, 0.1 * size, ink)
    canvas.line([(x - 0.08 * size, y + 0.3 * size, z), (x - 0.2 * size, y - 0.02 * size, z)], 0.16 * size, ink)
    canvas.line([(x - 0.2 * size, y, z), (x - 0.05 * size, y - 0.4 * size, z)], 0.1 * size, ink)
    canvas.line([(x - 0.2 * size, y, z), (x - 0.36 * size, y - 0.4 * size, z)], 0.1 * size, ink)
    canvas.line([(x - 0.1 * size, y + 0.25 * size, z), (x + 0.3 * size, y - 0.3 * size, z)], 0.06 * size, ink)
    canvas.face([(x + 0.1 * size, y - 0.42 * size, z), (x + 0.32 * size, y - 0.16 * size, z), (x + 0.5 * size, y - 0.42 * size, z)], ink)


def worker(rng: Rng, x: float, z: float, colour: Colour) -> Thing:
    tall, vest = float(rng.uniform(1.6, 1.9)), pick(rng, [colour, (206, 226, 40)])
    helmet, trousers = pick(rng, [(240, 240, 236), (240, 196, 40), colour]), pick(rng, [colour, (40, 48, 76), (60, 62, 66)])
    lean = float(rng.uniform(-0.25, 0.25))

    def paint(canvas: Canvas, z: float) -> None:
        for foot in (-1, 1):
            canvas.line([(x + foot * 0.13, 0.02, z), (x + foot * 0.08, tall * 0.48, z)], 0.15, trousers, 0.85)
        canvas.column(x + lean * 0.3, z, tall * 0.45, tall * 0.83, 0.22, 0.19, vest, glow=0.2)
        canvas.panel(x + lean * 0.3 - 0.21, x + lean * 0.3 + 0.21, tall * 0.58, tall * 0.62, z, (226, 226, 220), 0.95, 0.7)
        canvas.line([(x + lean * 0.3 - 0.2, tall * 0.8, z), (x + lean + 0.25, tall * 0.5, z)], 0.11, vest, 0.85)
        canvas.line([(x + lean + 0.3, tall * 0.62, z), (x + lean + 0.55, 0.03, z)], 0.05, (112, 90, 66))
        canvas.disc(x + lean * 0.4, tall * 0.91, z, 0.115, (196, 150, 118), 0.95)
        canvas.column(x + lean * 0.4, z, tall * 0.92, tall, 0.14, 0.08, helmet)

    return Thing(x, z, 0.5, tall, paint, opaque=0.6, clue=0.3)


def excavator(rng: Rng, x: float, z: float) -> Thing:
    colour, facing, scale = pick(rng, _MACHINE), float(rng.choice([-1, 1])), float(rng.uniform(0.65, 1.15))
    reach, lift = float(rng.uniform(2.2, 3.4)), float(rng.uniform(2.2, 3.6))

    def paint(canvas: Canvas, z: float) -> None:
        def at(u: float, y: float, near: float = 0.0) -> tuple[float, float, float]:
            return x + facing * u * scale, y * scale, z + near

        def block(u0: float, u1: float, y0: float, y1: float, tint: Colour, deep: float = 1.6, shade: float = 1.0) -> None:
            a, b = sorted((x + facing * u0 * scale, x + facing * u1 * scale))
            canvas.box(a, b, y0 * scale, y1 * scale, z, z + deep * scale, tint, shade)

        block(-1.6, 1.6, 0.0, 0.75, (44, 42, 42), 2.2)
        for wheel in (-1.2, -0.6, 0.0, 0.6, 1.2):
            canvas.disc(x + facing * wheel * scale, 0.36 * scale, z - 0.02, 0.27 * scale, (86, 82, 78), 0.8)
        block(-1.7, 1.0, 0.85, 1.7, colour, 2.0)
        block(-1.75, -0.9, 0.95, 1.6, (70, 68, 66), 2.0, 0.9)
        block(-0.2, 1.0, 1.7, 2.75, colour, 1.1)
        block(-0.08, 0.88, 1.85, 2.6, (52, 62, 70), 0.01, 0.9)
        elbow, wrist = at(1.0 + reach * 0.55, lift, -0.1), at(1.0 + reach, lift * 0.45, -0.1)
        canvas.line([at(0.8, 1.3, -0.1), elbow], 0.42 * scale, colour, 0.92)
        canvas.line([elbow, wrist], 0.32 * scale, colour, 0.85)
        canvas.line([at(1.3, 1.3, -0.12), at(1.0 + reach * 0.35, lift * 0.8, -0.12)], 0.12 * scale, (190, 190, 190), 0.9)
        u, y = 1.0 + reach, lift * 0.45
        canvas.face([at(u + 0.2, y, -0.1), at(u - 0.5, y - 0.1, -0.1), at(u - 0.6, y - 0.75, -0.1), at(u + 0.1, y - 0.65, -0.1)], (74, 68, 62), 0.85)

    return Thing(x, z, 4.0 * scale, 2.7 * scale, paint, opaque=0.7, clue=0.3)


def roller(rng: Rng, x: float, z: float) -> Thing:
    colour, facing, scale = pick(rng, _MACHINE), float(rng.choice([-1, 1])), float(rng.uniform(0.75, 1.1))

    def paint(canvas: Canvas, z: float) -> None:
        def block(u0: float, u1: float, y0: float, y1: float, tint: Colour, shade: float = 1.0) -> None:
            a, b = sorted((x + facing * u0 * scale, x + facing * u1 * scale))
            canvas.box(a, b, y0 * scale, y1 * scale, z, z + 1.5 * scale, tint, shade)

        for centre in (-1.1, 1.1):
            canvas.disc(x + facing * centre * scale, 0.62 * scale, z + 0.05, 0.62 * scale, (66, 64, 62), 0.9)
            canvas.disc(x + facing * centre * scale, 0.62 * scale, z, 0.5 * scale, (138, 136, 132), 0.9)
            canvas.disc(x + facing * centre * scale, 0.62 * scale, z - 0.01, 0.14 * scale, colour, 0.9)
        block(-0.95, 1.0, 0.8, 1.45, colour)
        block(0.2, 1.0, 1.45, 1.75, colour, 0.95)
        block(-0.75, 0.1, 1.45, 1.6, (36, 36, 38))
        for post in (-0.85, 0.2):
            canvas.panel(x + facing * post * scale - 0.04, x + facing * post * scale + 0.04, 1.45 * scale, 2.6 * scale, z, (50, 50, 52))
        block(-1.05, 0.4, 2.6, 2.72, colour)

    return Thing(x, z, 3.2 * scale, 2.5 * scale, paint, opaque=0.75, clue=0.3)


def heap(rng: Rng, x: float, z: float) -> Thing:
    wide, tall, kind = float(rng.uniform(1.2, 3.2)), float(rng.uniform(0.4, 1.1)), int(rng.integers(8))
    colour = pick(rng, [(124, 98, 70), (140, 130, 116), (96, 84, 72)])

    def paint(canvas: Canvas, z: float) -> None:
        canvas.face([(x - wide * 0.7, 0.01, z - 0.3), (x + wide * 0.7, 0.01, z - 0.3), (x + wide * 0.6, 0.01, z + 2.2), (x - wide * 0.6, 0.01, z + 2.2)], (70, 62, 54), 0.8)
        canvas.leaves(x, tall * 0.36, z + 0.3, wide, tall * 1.3, colour, kind)

    return Thing(x, z, wide, tall, paint, shadow=False, clue=0.0)


def sample_site(rng: Rng, street: Street) -> list[Thing]:
    """One roadwork site somewhere along the road: a core (taper, closure, dig or machine) and what goes with it."""
    core = str(rng.choice(["taper", "closure", "dig", "machine"], p=[0.34, 0.28, 0.2, 0.18]))
    colour, red = pick(rng, _SIGNAL, 0.08), pick(rng, [(204, 34, 32), (190, 50, 44), (214, 60, 40)], 0.08)
    board = red if rng.random() < 0.5 else colour
    z = float(np.exp(rng.uniform(math.log(4.5), math.log(17.0))))
    flank = float(rng.choice([-1, 1]))
    edge, walk = flank * street.half, max(0.4, street.walk)
    # across the road the site lies at the kerb, in a lane, or on the walk
    spots = [edge - flank * rng.uniform(0.3, 2.2), street.lane_centre + rng.normal(0, 1.0), edge + flank * rng.uniform(0.2, walk)]
    x = float(rng.choice(spots, p=[0.5, 0.32, 0.18]))
    inward = -flank
    tall, style = float(rng.uniform(0.5, 1.0)), int(rng.choice(3, p=[0.56, 0.24, 0.2]))
    things: list[Thing] = []

    def guide(px: float, pz: float) -> Thing:
        return (cone(rng, px, pz, colour, tall), drum(rng, px, pz, colour), beacon(rng, px, pz, board))[style]

    def row(count: int, spacing: float, drift: float, start: float = 0.0) -> None:
        for number in range(count):
            px, pz = x + start + drift * number + float(rng.normal(0, 0.08)), z + spacing * number + float(rng.normal(0, 0.15))
            things.append(guide(px, max(pz, 3.0)))

    if core == "taper":
        row(int(rng.integers(5, 12)), float(rng.uniform(0.7, 2.2)), inward * float(rng.uniform(-0.5, 0.9)))
    elif core == "closure":
        for number in range(int(rng.integers(2, 5))):
            px, pz = x + 2.3 * number * inward, z + float(rng.uniform(-0.4, 0.6)) * number
            things.append(barrier(rng, px, pz, board) if rng.random() < 0.62 else blocks(rng, px, pz, board))
    elif core == "dig":
        things += [heap(rng, x, z + 1.6), barrier(rng, x, z, board), barrier(rng, x + 2.0 * inward, z + 0.6, board)]
    else:
        things.append(excavator(rng, x, z + 3.0) if rng.random() < 0.6 else roller(rng, x, z + 3.0))
    if core == "machine" or (core != "taper" and rng.random() < 0.7):
        row(int(rng.integers(3, 8)), float(rng.uniform(0.7, 2.0)), inward * float(rng.uniform(-0.4, 0.6)), inward * float(rng.uniform(0.5, 2.0)))
    if core != "closure" and rng.random() < 0.45:
        things.append(barrier(rng, x + float(rng.uniform(-1.5, 1.5)), z + float(rng.uniform(0, 4)), board))
    if core != "machine" and rng.random() < 0.3:
        made = excavator if rng.random() < 0.6 else roller
        things.append(made(rng, x + float(rng.uniform(-1.0, 1.0)), z + float(rng.uniform(4, 9))))
    if rng.random() < 0.6:
        things.append(sign(rng, edge + flank * float(rng.uniform(-0.9, 0.5)), max(3.5, z + float(rng.uniform(-2, 3))), colour))
    for _ in range(int(rng.choice([0, 1, 2], p=[0.5, 0.3, 0.2]))):
        things.append(worker(rng, x + float(rng.uniform(-2, 2)), z + float(rng.uniform(0.5, 4)), colour))
    return things


def visible_share(site: list[Thing], others: list[Thing], view: View) -> float:
    """Share of the picture covered by `site` and not hidden by nearer `others`, estimated on a 6 x 6 grid per object."""
    total = 0.0
    hiding = [(other.z, _outline(other, view), other.opaque) for other in others if other.z > view.z + 1.4]
    for thing in site:
        if thing.z < view.z + 1.6:
            continue
        left, top, right, bottom = _outline(thing, view)
        columns, rows = np.linspace(left, right, 8)[1:-1], np.linspace(top, bottom, 8)[1:-1]
        seen = np.ones((6, 6)) * ((columns > 0) & (columns < 1))[None, :] * ((rows > 0) & (rows < 0.97))[:, None]
        for z, (x0, y0, x1, y1), opaque in hiding:
            if z < thing.z:
                seen *= 1 - opaque * ((rows > y0) & (rows < y1))[:, None] * ((columns > x0) & (columns < x1))[None, :]
        total += (right - left) * (bottom - top) * float(seen.mean()) * thing.opaque * thing.clue
    return total


def _outline(thing: Thing, view: View) -> tuple[float, float, float, float]:
    left, top = view.project(thing.x - thing.width / 2, thing.height, thing.z)
    right, bottom = view.project(thing.x + thing.width / 2, 0.0, thing.z)
    return left / view.side, top / view.side, right / view.side, bottom / view.side


def place_site(rng: Rng, views: list[View], worlds: list[list[Thing]], street: Street) -> list[Thing]:
    """Draw sites until enough of one is seen in every frame; after 40 draws the one that is seen best.

    views, worlds: per frame, the camera and everything else that stands in the street.
    """
    best: list[Thing] = []
    score = -1.0
    for _ in range(40):
        site = sample_site(rng, street)
        shares = [visible_share(site, world, view) for view, world in zip(views, worlds, strict=True)]
        if min(shares) >= LEAST and max(shares) <= MOST:
            return site
        if min(shares) > score:
            best, score = site, min(shares)
    return best
