"""Things that look like roadwork at a glance and are not, and the signs and people of any street.

Look-alikes (orange cars, bins, vests, striped poles, warning signs of other kinds) are in every street with the same
chances, whatever the label: neither colour nor a triangle alone gives roadwork away.
"""

from __future__ import annotations

import math

import numpy as np

from stage1.simulation.scenes.canvas import Canvas, Rng, Thing
from stage1.simulation.scenes.machines import LEAVES, LOUD, pick, vary
from stage1.simulation.scenes.vehicles import car


def look_alikes(rng: Rng, half: float, walk: float) -> list[Thing]:
    """Orange, yellow and red-white things, signs and people that are not roadwork, mostly at the kerb."""
    makers = (_bin, _striped_pole, _plain_sign, _person, _parasol, _box, _hydrant, _stall)
    things = []
    for _ in range(int(rng.poisson(4.0))):
        sign = int(rng.choice([-1, 1]))
        x = sign * (half + float(rng.uniform(0.15, max(0.8, walk * 0.8))))
        z = float(np.exp(rng.uniform(math.log(4.5), math.log(30.0))))
        things.append(
            makers[int(rng.choice(len(makers), p=[0.15, 0.16, 0.22, 0.17, 0.06, 0.09, 0.05, 0.1]))](rng, x, z)
        )
    if rng.random() < 0.3:
        things.append(
            car(
                rng,
                float(rng.uniform(-0.7, 0.9)) * half,
                float(rng.uniform(7, 32)),
                front=rng.random() < 0.3,
                colour=pick(rng, LOUD[:5]),
            )
        )
    return things


def _bin(rng: Rng, x: float, z: float) -> Thing:
    colour, tall, wide = (
        pick(rng, [*LOUD, (70, 74, 70), (60, 84, 60)]),
        float(rng.uniform(0.8, 1.25)),
        float(rng.uniform(0.45, 0.7)),
    )

    def paint(canvas: Canvas, z: float) -> None:
        canvas.box(x - wide / 2, x + wide / 2, 0.08, tall, z, z + wide, colour)
        canvas.box(x - wide / 2 - 0.03, x + wide / 2 + 0.03, tall, tall + 0.1, z - 0.03, z + wide, colour, 0.7)

    return Thing(x, z, wide, tall, paint)


def _striped_pole(rng: Rng, x: float, z: float) -> Thing:
    """A bollard or a gate post in two colours, sometimes a row of them."""
    tall, thin = float(rng.uniform(0.8, 2.4)), float(rng.uniform(0.05, 0.11))
    first = pick(rng, [(206, 40, 36), (206, 40, 36), (40, 40, 42), (236, 190, 40), (232, 112, 30)])
    bands, row = int(rng.integers(3, 8)), int(rng.choice([1, 1, 2, 4]))

    def paint(canvas: Canvas, z: float) -> None:
        for number in range(row - 1, -1, -1):
            for band in range(bands):
                y0, y1 = tall * band / bands, tall * (band + 1) / bands
                canvas.column(
                    x, z + 1.6 * number, y0, y1, thin, thin, first if band % 2 == 0 else (228, 226, 222), glow=0.3
                )

    return Thing(x, z, 0.2, tall, paint, opaque=0.6)


def _plain_sign(rng: Rng, x: float, z: float) -> Thing:
    """A traffic sign or an advertisement that has nothing to do with roadwork."""
    shape = str(
        rng.choice(
            ["round", "square", "triangle", "diamond", "octagon", "poster"], p=[0.27, 0.16, 0.17, 0.17, 0.08, 0.15]
        )
    )
    tall, size, symbol = float(rng.uniform(1.9, 2.8)), float(rng.uniform(0.3, 0.46)), int(rng.integers(3))
    rim = (198, 30, 34) if rng.random() < 0.7 else (30, 80, 170)
    poster, ink = pick(rng, LOUD), pick(rng, [(240, 240, 236), (30, 30, 34), *LOUD])
    yellow = vary(rng, (240, 190, 30))

    def paint(canvas: Canvas, z: float) -> None:
        canvas.column(x, z + 0.05, 0, tall, 0.035, 0.035, (128, 130, 130))
        if shape == "round":
            canvas.disc(x, tall, z, size, rim, 0.95, 0.5)
            canvas.disc(x, tall, z, size * 0.74, (236, 236, 232) if rim[0] > 100 else rim, 0.95, 0.5)
            canvas.panel(
                x - size * 0.4,
                x + size * 0.4,
                tall - 0.12,
                tall + 0.12,
                z,
                (24, 24, 26) if rim[0] > 100 else (236, 236, 236),
            )
        elif shape == "square":
            canvas.panel(x - size, x + size, tall - size, tall + size, z, (32, 84, 170), 0.95, 0.5)
            canvas.panel(
                x - size * 0.4, x + size * 0.4, tall - size * 0.6, tall + size * 0.6, z, (236, 236, 236), 0.95, 0.5
            )
        elif shape == "poster":
            canvas.panel(x - 0.7, x + 0.7, tall - 1.6, tall + 0.3, z, (60, 62, 64))
            canvas.panel(x - 0.62, x + 0.62, tall - 1.5, tall + 0.22, z, poster, 0.95, 0.6)
            canvas.panel(x - 0.4, x + 0.3, tall - 0.6, tall - 0.2, z, ink, 0.95, 0.6)
        elif shape == "octagon":
            ring = [(x + size * math.cos(t), tall + size * math.sin(t), z) for t in np.linspace(0.393, 6.676, 9)[:-1]]
            canvas.face(ring, (196, 28, 32), 0.95, 0.5)
            canvas.panel(x - size * 0.6, x + size * 0.6, tall - 0.09, tall + 0.09, z, (238, 236, 232), 0.95, 0.5)
        else:
            corners = (
                [(0.0, 1.15), (-1.05, -0.65), (1.05, -0.65)]
                if shape == "triangle"
                else [(0, 1.2), (-1.2, 0), (0, -1.2), (1.2, 0)]
            )
            canvas.face(
                [(x + size * u, tall + size * v, z) for u, v in corners],
                rim if shape == "triangle" else (40, 40, 40),
                0.95,
                0.5,
            )
            shrink = 0.7 if shape == "triangle" else 0.9
            canvas.face(
                [(x + size * shrink * u, tall + size * shrink * v, z) for u, v in corners],
                (236, 234, 226) if shape == "triangle" else yellow,
                0.95,
                0.5,
            )
            # a bend, a crossing, a bump: upright or lying strokes, not a person who digs
            strokes = (
                [(0.0, -0.4), (0.0, 0.4)],
                [(-0.25, -0.4), (0.0, 0.0), (-0.1, 0.4)],
                [(-0.35, -0.2), (0.0, 0.15), (0.35, -0.2)],
            )
            canvas.line([(x + size * u, tall + size * v, z) for u, v in strokes[symbol]], 0.09, (26, 26, 28))

    return Thing(x, z, size * 2 if shape != "poster" else 1.4, tall + 0.4, paint, opaque=0.25)


def _person(rng: Rng, x: float, z: float) -> Thing:
    tall, top = (
        float(rng.uniform(1.55, 1.9)),
        pick(rng, [*LOUD[:5], (60, 62, 70), (30, 44, 80), (150, 150, 150), (90, 40, 50)]),
    )
    trousers, skin = (
        pick(rng, [(36, 38, 46), (60, 66, 90), (90, 84, 70)]),
        pick(rng, [(214, 170, 140), (150, 104, 78), (96, 66, 50)]),
    )
    stride, walk = float(rng.uniform(0.02, 0.16)), float(rng.normal(0, 1.0))

    def paint(canvas: Canvas, z: float) -> None:
        for sign in (-1, 1):
            canvas.line([(x + sign * stride, 0.02, z), (x + sign * 0.07, tall * 0.48, z)], 0.14, trousers, 0.85)
        canvas.column(x, z, tall * 0.45, tall * 0.83, 0.2, 0.17, top)
        for sign in (-1, 1):
            canvas.line([(x + sign * 0.2, tall * 0.8, z), (x + sign * 0.27, tall * 0.47, z)], 0.1, top, 0.8)
        canvas.disc(x, tall * 0.92, z, 0.115, skin, 0.95)

    return Thing(x, z, 0.45, tall, paint, speed=walk, opaque=0.6)


def _parasol(rng: Rng, x: float, z: float) -> Thing:
    colour = pick(rng, [*LOUD, (226, 220, 206)])

    def paint(canvas: Canvas, z: float) -> None:
        canvas.column(x, z, 0, 2.3, 0.03, 0.03, (110, 100, 90))
        canvas.column(x, z, 1.95, 2.55, 1.2, 0.05, colour)
        canvas.column(x, z, 0.0, 0.75, 0.35, 0.35, (120, 96, 74), 0.8)

    return Thing(x, z, 1.2, 2.5, paint, opaque=0.5)


def _box(rng: Rng, x: float, z: float) -> Thing:
    """A planter, a letter box, a cabinet, a crate."""
    wide, tall, deep = float(rng.uniform(0.4, 1.5)), float(rng.uniform(0.4, 1.3)), float(rng.uniform(0.4, 1.0))
    colour, plant = pick(rng, [*LOUD, (112, 116, 112), (150, 120, 92)]), rng.random() < 0.5
    leaf, kind = pick(rng, LEAVES), int(rng.integers(8))

    def paint(canvas: Canvas, z: float) -> None:
        canvas.box(x - wide / 2, x + wide / 2, 0, tall, z, z + deep, colour)
        if plant:
            canvas.leaves(x, tall + 0.25, z, wide * 1.1, 0.7, leaf, kind)

    return Thing(x, z, wide, tall, paint)


def _hydrant(rng: Rng, x: float, z: float) -> Thing:
    colour = pick(rng, [(200, 40, 34), (238, 190, 40), (230, 110, 30)])

    def paint(canvas: Canvas, z: float) -> None:
        canvas.column(x, z, 0, 0.62, 0.13, 0.11, colour)
        canvas.column(x, z, 0.38, 0.5, 0.22, 0.22, colour, 0.9)
        canvas.disc(x, 0.66, z, 0.12, colour)

    return Thing(x, z, 0.4, 0.75, paint)


def _stall(rng: Rng, x: float, z: float) -> Thing:
    """A market stall or a cafe front under a striped cloth."""
    wide, first = float(rng.uniform(1.6, 3.2)), pick(rng, LOUD)
    second, front = (
        pick(rng, [(232, 230, 222), (232, 230, 222), (240, 196, 40)]),
        pick(rng, [*LOUD, (150, 120, 92), (120, 116, 112)]),
    )
    stripes = int(rng.integers(5, 12))

    def paint(canvas: Canvas, z: float) -> None:
        left, step = x - wide / 2, wide / stripes
        for post in (left, left + wide):
            canvas.panel(post - 0.03, post + 0.03, 0, 2.1, z, (120, 112, 104))
        canvas.box(left + 0.1, left + wide - 0.1, 0, 0.85, z + 0.2, z + 0.9, front, 0.8)
        for number in range(stripes):
            a, b = left + number * step, left + (number + 1) * step
            cloth = first if number % 2 == 0 else second
            canvas.face([(a, 2.0, z - 0.3), (b, 2.0, z - 0.3), (b, 2.55, z + 0.9), (a, 2.55, z + 0.9)], cloth, 1.0)
            canvas.panel(a, b, 1.78, 2.0, z - 0.3, cloth, 0.85)

    return Thing(x, z, wide, 2.5, paint, opaque=0.4)
