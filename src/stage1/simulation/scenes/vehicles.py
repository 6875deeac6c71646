"""Cars, vans, trucks and buses: ahead, oncoming, parked."""

from __future__ import annotations

import math

import numpy as np

from stage1.simulation.scenes.canvas import Canvas, Colour, Rng, Thing
from stage1.simulation.scenes.machines import LOUD, pick

_PAINT: list[Colour] = [
    (225, 226, 228),
    (34, 36, 40),
    (120, 124, 130),
    (168, 172, 178),
    (60, 70, 92),
    (120, 24, 28),
    (30, 60, 120),
    (196, 30, 32),
    (232, 116, 28),
    (240, 184, 36),
    (84, 60, 46),
    (44, 84, 62),
    (210, 196, 170),
]
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
        things.append(
            car(
                rng,
                (mine + 0.5) * lane + float(rng.normal(0, 0.2)),
                float(rng.uniform(8, 45)),
                speed=float(rng.normal(0, 1.5)),
            )
        )
    for number in range(-lanes, lanes):
        if number == mine:
            continue
        for _ in range(int(rng.poisson(0.55))):
            oncoming = number < 0
            x = (number + 0.5) * lane + float(rng.normal(0, 0.15))
            things.append(
                car(
                    rng,
                    x,
                    float(rng.uniform(7, 70)),
                    speed=-10.0 if oncoming else float(rng.normal(0, 2)),
                    front=oncoming,
                )
            )
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
    rng: Rng,
    x: float,
    z: float,
    *,
    speed: float = 0.0,
    front: bool = False,
    parked: bool = False,
    kinds: tuple[str, ...] = ("car", "wagon", "suv", "van", "truck", "bus"),
    colour: Colour | None = None,
) -> Thing:
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
                canvas.face(
                    [(flank, r + 0.5 * (y - r), centre + 0.5 * (w - centre)) for _, y, w in ring], (110, 112, 116), 0.7
                )
        a, b = z + roof0 * length, z + roof1 * length
        slope = min(0.5, (tall - shoulder) * 0.6) if kind in ("car", "suv") else 0.12
        outside = wide / 2 * seen
        side = [
            (x + outside, shoulder, a - slope),
            (x + outside, shoulder, b + 0.9),
            (x + inner * seen, tall, b),
            (x + inner * seen, tall, a),
        ]
        canvas.face(side, cargo, canvas.side_shade(seen) * 0.95)
        if kind != "truck":
            pane = [
                (px, y - 0.06 if y > shoulder else y + 0.05, zz + (0.15 if zz < (a + b) / 2 else -0.25))
                for px, y, zz in side
            ]
            canvas.face(pane, glass, 0.9)
        canvas.face(
            [(x - inner, tall, a), (x + inner, tall, a), (x + inner, tall, b), (x - inner, tall, b)], cargo, 1.05
        )
        back = [
            (x - wide / 2 * 0.96, shoulder, a - slope),
            (x + wide / 2 * 0.96, shoulder, a - slope),
            (x + inner, tall, a),
            (x - inner, tall, a),
        ]
        canvas.face(back, cargo, 0.86)
        if kind != "truck" or front:
            pane = [(x + 0.86 * (px - x), y - 0.07 if y > shoulder else y + 0.06, zz - 0.01) for px, y, zz in back]
            canvas.face(pane, glass if not front else (70, 82, 92), 0.9)
        _ends(canvas, x, z, wide, shoulder, front, parked, dark)

    return Thing(
        x, z, wide, tall * 0.92, paint, speed=speed, pace=0.0 if front or parked or speed == 0.0 else 1.0, opaque=0.97
    )


def _ends(
    canvas: Canvas, x: float, z: float, wide: float, shoulder: float, front: bool, parked: bool, dark: Colour
) -> None:
    """Lights, plate and bumper on the near end of a vehicle."""
    canvas.panel(x - wide / 2, x + wide / 2, 0.26, 0.42, z - 0.02, dark, 0.9)
    canvas.panel(x - 0.26, x + 0.26, 0.45, 0.57, z - 0.02, (220, 220, 210), 0.9)
    for sign in (-1, 1):
        a, b = sorted((x + sign * wide * 0.48, x + sign * wide * 0.33))
        colour: Colour = (240, 240, 225) if front else (190, 24, 26)
        glow = 0.0 if parked else 0.9
        canvas.panel(a, b, shoulder - 0.27, shoulder - 0.1, z - 0.02, colour, 0.95, glow)
        if not parked:
            canvas.lamp(
                (a + b) / 2, shoulder - 0.18, z, 0.55 if front else 0.22, (255, 250, 225) if front else (220, 30, 24)
            )
    if front:
        canvas.panel(x - wide * 0.25, x + wide * 0.25, 0.58, shoulder - 0.1, z - 0.02, (30, 32, 34), 0.9)
