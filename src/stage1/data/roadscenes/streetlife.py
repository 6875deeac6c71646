"""What moves or stands in any street: vehicles, people, signs, and the things that look like roadwork and are not.

Look-alikes (orange cars, bins, vests, striped poles, warning signs of other kinds) are in every street with the same
chances, whatever the label: neither colour nor a triangle alone tells roadwork.
"""

from __future__ import annotations

import math

import numpy as np

from stage1.data.roadscenes.canvas import Canvas, Colour, Rng, Thing, pick, vary

LOUD: list[Colour] = [(238, 120, 24), (244, 168, 32), (206, 44, 34), (240, 196, 40), (226, 92, 36), (40, 96, 170), (36, 128, 84)]
LEAVES: list[Colour] = [(70, 98, 42), (88, 112, 50), (54, 82, 44), (104, 118, 54), (196, 118, 36), (188, 84, 34), (206, 156, 52), (120, 96, 60)]

# --- traffic -------------------------------------------------------------------------------------------------------

_PAINT: list[Colour] = [
    (225, 226, 228), (34, 36, 40), (120, 124, 130), (168, 172, 178), (60, 70, 92), (120, 24, 28), (30, 60, 120), (196, 30, 32),
    (232, 116, 28), (240, 184, 36), (84, 60, 46), (44, 84, 62), (210, 196, 170),
]  # fmt: skip
_BODIES = {  # width, length, height of the body's shoulder, height, start and end of the roof as shares of the length
    "car": (1.78, 4.3, 0.88, 1.45, 0.12, 0.62),
    "wagon": (1.8, 4.6, 0.92, 1.52, 0.03, 0.66),
    "suv": (1.9, 4.6, 1.05, 1.75, 0.04, 0.68),
    "van": (2.0, 5.4, 1.2, 2.35, 0.0, 0.86),
    "truck": (2.45, 7.5, 1.1, 3.4, 0.0, 0.78),
    "bus": (2.5, 11.0, 1.1, 3.1, 0.0, 1.0),
}


def traffic(rng: Rng, lane: float, lanes: int, mine: int, half: float, parking: float) -> list[Thing]:
    things: list[Thing] = []
    if rng.random() < 0.55:  # someone ahead of us
        things.append(car(rng, (mine + 0.5) * lane + float(rng.normal(0, 0.2)), float(rng.uniform(8, 45)), speed=float(rng.normal(0, 1.5))))
    for number in range(-lanes, lanes):
        if number == mine:
            continue
        for _ in range(int(rng.poisson(0.55))):
            oncoming = number < 0
            x = (number + 0.5) * lane + float(rng.normal(0, 0.15))
            things.append(car(rng, x, float(rng.uniform(7, 70)), speed=-10.0 if oncoming else float(rng.normal(0, 2)), front=oncoming))
    if parking:
        for sign in (-1, 1):
            z, dense = float(rng.uniform(2, 12)), float(rng.uniform(0.0, 0.9))
            while z < 60:
                if rng.random() < dense:
                    x = sign * (half - parking / 2 + float(rng.normal(0, 0.08)))
                    things.append(car(rng, x, z, kinds=("car", "wagon", "suv", "van"), front=sign < 0, parked=True))
                z += float(rng.uniform(5.2, 7.5))
    return things


def car(
    rng: Rng, x: float, z: float, *, speed: float = 0.0, front: bool = False, parked: bool = False,
    kinds: tuple[str, ...] = ("car", "wagon", "suv", "van", "truck", "bus"), colour: Colour | None = None,
) -> Thing:  # fmt: skip
    """A vehicle seen from behind, or from the front if it comes towards us."""
    chances = np.array([0.34, 0.2, 0.22, 0.12, 0.08, 0.04])[: len(kinds)]
    kind = str(rng.choice(kinds, p=chances / chances.sum()))
    wide, length, shoulder, tall, roof0, roof1 = _BODIES[kind]
    body = colour or pick(rng, _PAINT)
    cargo = pick(rng, [(225, 226, 226), (180, 184, 188), *LOUD]) if kind == "truck" else body
    inner, dark = wide / 2 * (0.8 if kind in ("car", "wagon", "suv") else 0.97), (26.0, 27.0, 29.0)
    glass: Colour = (52, 60, 68)
    if front:
        roof0, roof1 = 1 - roof1, 1 - roof0

    def paint(canvas: Canvas, z: float) -> None:
        left, right, end = x - wide / 2, x + wide / 2, z + length
        canvas.box(left + 0.06, right - 0.06, 0.1, 0.3, z + 0.15, end - 0.1, dark, 0.7)
        canvas.box(left, right, 0.26, shoulder, z, end, body)
        seen = -1 if canvas.view.project(left, 1, end)[0] < canvas.view.project(left, 1, z)[0] else 1
        flank = left if seen < 0 else right
        for share in (0.18, 0.8):  # wheels on the side that is seen
            centre, r = z + share * length, 0.32 if tall < 2 else 0.45
            if canvas.view.depth(centre) < 40 and centre - canvas.view.z > 1.5:
                ring = [(flank, r + r * math.sin(t), centre + r * math.cos(t)) for t in np.linspace(0, 6.283, 11)]
                canvas.face(ring, dark, 0.7)
                canvas.face([(flank, r + 0.5 * (y - r), centre + 0.5 * (w - centre)) for _, y, w in ring], (110, 112, 116), 0.7)
        a, b = z + roof0 * length, z + roof1 * length
        slope = min(0.5, (tall - shoulder) * 0.6) if kind in ("car", "suv") else 0.12
        outside = wide / 2 * seen
        side = [(x + outside, shoulder, a - slope), (x + outside, shoulder, b + 0.9), (x + inner * seen, tall, b), (x + inner * seen, tall, a)]
        canvas.face(side, cargo, canvas.side_shade(seen) * 0.95)
        if kind != "truck":
            pane = [(px, y - 0.06 if y > shoulder else y + 0.05, zz + (0.15 if zz < (a + b) / 2 else -0.25)) for px, y, zz in side]
            canvas.face(pane, glass, 0.9)
        canvas.face([(x - inner, tall, a), (x + inner, tall, a), (x + inner, tall, b), (x - inner, tall, b)], cargo, 1.05)
        back = [(x - wide / 2 * 0.96, shoulder, a - slope), (x + wide / 2 * 0.96, shoulder, a - slope), (x + inner, tall, a), (x - inner, tall, a)]
        canvas.face(back, cargo, 0.86)
        if kind != "truck" or front:
            pane = [(x + 0.86 * (px - x), y - 0.07 if y > shoulder else y + 0.06, zz - 0.01) for px, y, zz in back]
            canvas.face(pane, glass if not front else (70, 82, 92), 0.9)
        _ends(canvas, x, z, wide, shoulder, front, parked, dark)

    return Thing(x, z, wide, tall * 0.92, paint, speed=speed, pace=0.0 if front or parked or speed == 0.0 else 1.0, opaque=0.97)


def _ends(canvas: Canvas, x: float, z: float, wide: float, shoulder: float, front: bool, parked: bool, dark: Colour) -> None:
    """Lights, plate and bumper on the near end of a vehicle."""
    canvas.panel(x - wide / 2, x + wide / 2, 0.26, 0.42, z - 0.02, dark, 0.9)
    canvas.panel(x - 0.26, x + 0.26, 0.45, 0.57, z - 0.02, (220, 220, 210), 0.9)
    for sign in (-1, 1):
        a, b = sorted((x + sign * wide * 0.48, x + sign * wide * 0.33))
        colour: Colour = (240, 240, 225) if front else (190, 24, 26)
        glow = 0.0 if parked else 0.9
        canvas.panel(a, b, shoulder - 0.27, shoulder - 0.1, z - 0.02, colour, 0.95, glow)
        if not parked:
            canvas.lamp((a + b) / 2, shoulder - 0.18, z, 0.55 if front else 0.22, (255, 250, 225) if front else (220, 30, 24))
    if front:
        canvas.panel(x - wide * 0.25, x + wide * 0.25, 0.58, shoulder - 0.1, z - 0.02, (30, 32, 34), 0.9)


# --- look-alikes ---------------------------------------------------------------------------------------------------


def look_alikes(rng: Rng, half: float, walk: float) -> list[Thing]:
    """Orange, yellow and red-white things, signs and people that are not roadwork, mostly at the kerb."""
    makers = (_bin, _striped_pole, _plain_sign, _person, _parasol, _box, _hydrant)
    things = []
    for _ in range(int(rng.poisson(3.6))):
        sign = int(rng.choice([-1, 1]))
        x = sign * (half + float(rng.uniform(0.15, max(0.8, walk * 0.8))))
        z = float(np.exp(rng.uniform(math.log(4.5), math.log(30.0))))
        things.append(makers[int(rng.choice(len(makers), p=[0.16, 0.18, 0.25, 0.18, 0.08, 0.1, 0.05]))](rng, x, z))
    if rng.random() < 0.3:
        things.append(car(rng, float(rng.uniform(-0.7, 0.9)) * half, float(rng.uniform(7, 32)), front=rng.random() < 0.3, colour=pick(rng, LOUD[:5])))
    return things


def _bin(rng: Rng, x: float, z: float) -> Thing:
    colour, tall, wide = pick(rng, [*LOUD, (70, 74, 70), (60, 84, 60)]), float(rng.uniform(0.8, 1.25)), float(rng.uniform(0.45, 0.7))

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
                canvas.column(x, z + 1.6 * number, y0, y1, thin, thin, first if band % 2 == 0 else (228, 226, 222), glow=0.3)

    return Thing(x, z, 0.2, tall, paint, opaque=0.6)


def _plain_sign(rng: Rng, x: float, z: float) -> Thing:
    """A traffic sign or an advertisement that has nothing to do with roadwork."""
    shape = str(rng.choice(["round", "square", "triangle", "diamond", "octagon", "poster"], p=[0.27, 0.16, 0.17, 0.17, 0.08, 0.15]))
    tall, size, symbol = float(rng.uniform(1.9, 2.8)), float(rng.uniform(0.3, 0.46)), int(rng.integers(3))
    rim = (198, 30, 34) if rng.random() < 0.7 else (30, 80, 170)
    poster, ink = pick(rng, LOUD), pick(rng, [(240, 240, 236), (30, 30, 34), *LOUD])
    yellow = vary(rng, (240, 190, 30))

    def paint(canvas: Canvas, z: float) -> None:
        canvas.column(x, z + 0.05, 0, tall, 0.035, 0.035, (128, 130, 130))
        if shape == "round":
            canvas.disc(x, tall, z, size, rim, 0.95, 0.5)
            canvas.disc(x, tall, z, size * 0.74, (236, 236, 232) if rim[0] > 100 else rim, 0.95, 0.5)
            canvas.panel(x - size * 0.4, x + size * 0.4, tall - 0.12, tall + 0.12, z, (24, 24, 26) if rim[0] > 100 else (236, 236, 236))
        elif shape == "square":
            canvas.panel(x - size, x + size, tall - size, tall + size, z, (32, 84, 170), 0.95, 0.5)
            canvas.panel(x - size * 0.4, x + size * 0.4, tall - size * 0.6, tall + size * 0.6, z, (236, 236, 236), 0.95, 0.5)
        elif shape == "poster":
            canvas.panel(x - 0.7, x + 0.7, tall - 1.6, tall + 0.3, z, (60, 62, 64))
            canvas.panel(x - 0.62, x + 0.62, tall - 1.5, tall + 0.22, z, poster, 0.95, 0.6)
            canvas.panel(x - 0.4, x + 0.3, tall - 0.6, tall - 0.2, z, ink, 0.95, 0.6)
        elif shape == "octagon":
            ring = [(x + size * math.cos(t), tall + size * math.sin(t), z) for t in np.linspace(0.393, 6.676, 9)[:-1]]
            canvas.face(ring, (196, 28, 32), 0.95, 0.5)
            canvas.panel(x - size * 0.6, x + size * 0.6, tall - 0.09, tall + 0.09, z, (238, 236, 232), 0.95, 0.5)
        else:
            corners = [(0.0, 1.15), (-1.05, -0.65), (1.05, -0.65)] if shape == "triangle" else [(0, 1.2), (-1.2, 0), (0, -1.2), (1.2, 0)]
            canvas.face([(x + size * u, tall + size * v, z) for u, v in corners], rim if shape == "triangle" else (40, 40, 40), 0.95, 0.5)
            shrink = 0.7 if shape == "triangle" else 0.9
            canvas.face([(x + size * shrink * u, tall + size * shrink * v, z) for u, v in corners], (236, 234, 226) if shape == "triangle" else yellow, 0.95, 0.5)
            # a bend, a crossing, a bump: upright or lying strokes, not a person who digs
            strokes = ([(0.0, -0.4), (0.0, 0.4)], [(-0.25, -0.4), (0.0, 0.0), (-0.1, 0.4)], [(-0.35, -0.2), (0.0, 0.15), (0.35, -0.2)])
            canvas.line([(x + size * u, tall + size * v, z) for u, v in strokes[symbol]], 0.09, (26, 26, 28))

    return Thing(x, z, size * 2 if shape != "poster" else 1.4, tall + 0.4, paint, opaque=0.25)


def _person(rng: Rng, x: float, z: float) -> Thing:
    tall, top = float(rng.uniform(1.55, 1.9)), pick(rng, [*LOUD[:5], (60, 62, 70), (30, 44, 80), (150, 150, 150), (90, 40, 50)])
    trousers, skin = pick(rng, [(36, 38, 46), (60, 66, 90), (90, 84, 70)]), pick(rng, [(214, 170, 140), (150, 104, 78), (96, 66, 50)])
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
