"""What lines a road: houses and shops, guard rails, trees, lamp posts, traffic lights."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np

from stage1.simulation.scenes.canvas import Canvas, Colour, Rng, Thing
from stage1.simulation.scenes.machines import LEAVES, LOUD, pick, vary

_WALLS: list[Colour] = [
    (188, 172, 148),
    (168, 92, 68),
    (148, 104, 80),
    (204, 198, 188),
    (120, 116, 116),
    (176, 140, 100),
    (140, 146, 152),
    (196, 152, 110),
    (98, 78, 68),
    (214, 190, 150),
    (170, 164, 150),
]


def frontage(rng: Rng, place: str, sign: int, edge: float) -> list[tuple[float, Callable[[Canvas], None]]]:
    """What stands along one side of the road, as (depth, painter)."""
    found: list[tuple[float, Callable[[Canvas], None]]] = []
    depth = float(rng.uniform(-6, 6))
    if place == "highway" or (place == "country" and rng.random() < 0.5):
        rail = edge + float(rng.uniform(0.6, 1.5))
        found.append(
            (200.0, partial(_rail, x=sign * rail, tall=float(rng.choice([0.75, 0.85, 2.8], p=[0.5, 0.3, 0.2]))))
        )
    if place == "highway":
        return found
    while depth < 110:
        gap = float({"city": rng.exponential(1.2), "suburb": rng.uniform(3, 12), "country": rng.uniform(20, 90)}[place])
        length = float(rng.uniform(7, 22) if place == "city" else rng.uniform(7, 13))
        back = float({"city": rng.uniform(0, 0.6), "suburb": rng.uniform(2.5, 8), "country": rng.uniform(6, 25)}[place])
        floors = int(rng.integers(2, 8) if place == "city" else rng.integers(1, 3))
        shop = place == "city" and rng.random() < 0.55
        paint = partial(
            _house,
            x=sign * (edge + back),
            sign=sign,
            z=depth,
            length=length,
            floors=floors,
            storey=float(rng.uniform(2.7, 3.5)),
            wall=pick(rng, _WALLS),
            glass=float(rng.uniform(0.25, 0.7)),
            shop=pick(rng, LOUD) if shop else None,
            awning=pick(rng, LOUD) if shop and rng.random() < 0.5 else None,
            roof=pick(rng, [(120, 66, 50), (72, 70, 74), (98, 84, 74)]),
            gable=place != "city",
            lit=int(rng.integers(1 << 30)),
        )
        found.append((depth, paint))
        depth += length + gap
    return found


def _rail(canvas: Canvas, *, x: float, tall: float) -> None:
    start = canvas.view.z + 2.0
    if tall > 2:  # noise wall
        for z in np.arange(90, -6, -6.0) + start - start % 6:
            if z + 6 > start:
                z0 = max(z, start)
                points = [(x, 0.0, z0), (x, 0.0, z + 6), (x, tall, z + 6), (x, tall, z0)]
                canvas.face(
                    points, (132, 134, 128), canvas.side_shade(-math.copysign(1, x)) * (0.95 if int(z / 6) % 2 else 1.0)
                )
        return
    for z in np.arange(80, 0, -4.0) + start - start % 4:
        canvas.panel(x - 0.05, x + 0.05, 0, tall, z, (120, 120, 122), 0.8)
    for z in np.arange(96, -8, -8.0) + start - start % 8:
        if z + 8 > start:
            z0 = max(z, start)
            points = [(x, tall - 0.33, z0), (x, tall - 0.33, z + 8), (x, tall, z + 8), (x, tall, z0)]
            canvas.face(points, (176, 178, 180), canvas.side_shade(-math.copysign(1, x)))


def _house(
    canvas: Canvas,
    *,
    x: float,
    sign: int,
    z: float,
    length: float,
    floors: int,
    storey: float,
    wall: Colour,
    glass: float,
    shop: Colour | None,
    awning: Colour | None,
    roof: Colour,
    gable: bool,
    lit: int,
) -> None:
    """A building whose wall at `x` runs along the road from z to z + length."""
    view, top = canvas.view, floors * storey + 0.5
    near, far = max(z, view.z + 2.0), z + length
    if far < view.z + 3.0:
        return
    outer = x + sign * 12.0
    shade = canvas.side_shade(-sign)
    if z > view.z + 2.0:
        canvas.panel(min(x, outer), max(x, outer), 0, top, z, wall, 0.8)
        if gable:
            canvas.face([(x, top, z), (outer, top, z), (0.5 * (x + outer), top + 3.2, z)], wall, 0.78)
        for floor in range(floors):  # windows of the near wall
            for place in (2.0, 4.6, 7.2):
                left = x + sign * place
                y = floor * storey + 1.0
                canvas.panel(
                    min(left, left + sign * 1.2), max(left, left + sign * 1.2), y, y + 1.4, z, (58, 66, 78), 0.9
                )
    canvas.face([(x, 0, near), (x, 0, far), (x, top, far), (x, top, near)], wall, shade)
    if gable:
        ridge = x + sign * 6.0
        canvas.face(
            [
                (x - sign * 0.4, top - 0.1, near),
                (x - sign * 0.4, top - 0.1, far),
                (ridge, top + 3.2, far),
                (ridge, top + 3.2, near),
            ],
            roof,
            shade,
        )
    else:
        canvas.face(
            [(x - sign * 0.25, top - 0.5, near), (x - sign * 0.25, top - 0.5, far), (x, top, far), (x, top, near)],
            wall,
            shade * 1.12,
        )
    if view.depth(near) > 70:
        return
    columns = max(2, int(length / 2.8))
    bits = lit
    for floor in range(floors):
        if floor == 0 and shop is not None:
            _shop(canvas, x, sign, near, far, shade, shop, awning)
            continue
        y0, y1 = floor * storey + 0.95, floor * storey + 0.95 + storey * 0.5
        for number in range(columns):
            z0 = z + length * (number + 0.5 - 0.5 * glass) / columns
            z1 = z + length * (number + 0.5 + 0.5 * glass) / columns
            bits = (bits * 1103515245 + 12345) & 0x7FFFFFFF
            if z0 < view.z + 2.2 or view.depth(z0) > 55:
                continue
            bright = canvas.light.night > 0.2 and bits >> 16 & 3 == 0
            colour = (244.0, 206.0, 128.0) if bright else (62.0, 72.0, 86.0) if bits >> 18 & 1 else (84.0, 94.0, 104.0)
            canvas.face([(x, y0, z0), (x, y0, z1), (x, y1, z1), (x, y1, z0)], colour, shade, 0.9 if bright else 0.0)
            if view.depth(z0) < 18:
                canvas.face([(x, y0 - 0.14, z0), (x, y0 - 0.14, z1), (x, y0, z1), (x, y0, z0)], (206, 202, 194), shade)


def _shop(
    canvas: Canvas, x: float, sign: int, near: float, far: float, shade: float, front: Colour, awning: Colour | None
) -> None:
    def strip(y0: float, y1: float, colour: Colour, glow: float = 0.0, out: float = 0.0) -> None:
        a = x - sign * out
        canvas.face([(a, y0, near), (a, y0, far), (x, y1, far), (x, y1, near)], colour, shade, glow)

    strip(0.3, 2.5, (74, 82, 90) if canvas.light.night < 0.3 else (228, 206, 160), 0.7)
    strip(2.5, 3.2, front, 0.5)
    if awning is not None:
        strip(2.2, 2.9, awning, 0.0, out=1.2)
    pillars = np.arange(near, far, 3.0)
    for z in pillars:
        canvas.face([(x, 0, z), (x, 0, z + 0.35), (x, 2.5, z + 0.35), (x, 2.5, z)], (120, 112, 104), shade)
    if canvas.light.night > 0.3:
        canvas.lamp(x, 1.6, near + 2.0, 1.2, (150, 120, 70))


def trees(rng: Rng, place: str, half: float, walk: float) -> list[Thing]:
    things = []
    autumn = rng.random() < 0.3
    palette = LEAVES[4:] if autumn else LEAVES[:4]
    count = int(rng.integers(0, {"city": 7, "suburb": 14, "country": 22, "highway": 16}[place]))
    for _ in range(count):
        sign = int(rng.choice([-1, 1]))
        edge = half + (
            float(rng.uniform(0.5, max(0.6, walk))) if place == "city" else walk + float(rng.uniform(0.8, 12))
        )
        height = float(rng.uniform(3.5, 10))
        things.append(_tree(rng, sign * edge, float(rng.uniform(4, 90)), height, pick(rng, palette)))
    for _ in range(int(rng.integers(0, 6)) if place != "city" else 0):  # hedges and bushes
        sign, height = int(rng.choice([-1, 1])), float(rng.uniform(0.7, 1.8))
        colour, kind = pick(rng, palette if rng.random() < 0.5 else LEAVES[:4]), int(rng.integers(8))
        x, wide = sign * (half + walk + float(rng.uniform(0.8, 5))), height * float(rng.uniform(1.2, 2.6))

        def paint(
            canvas: Canvas,
            z: float,
            x: float = x,
            wide: float = wide,
            height: float = height,
            colour: Colour = colour,
            kind: int = kind,
        ) -> None:
            canvas.leaves(x, height * 0.45, z, wide, height * 1.1, colour, kind)

        things.append(Thing(x, float(rng.uniform(4, 50)), wide, height, paint))
    return things


def _tree(rng: Rng, x: float, z: float, height: float, leaf: Colour) -> Thing:
    crowns = [
        (
            float(rng.normal(0, 0.1)) * height,
            height * float(rng.uniform(0.55, 0.85)),
            float(rng.uniform(0.4, 0.65)) * height,
            int(rng.integers(8)),
        )
        for _ in range(int(rng.integers(2, 4)))
    ]
    bark = vary(rng, (84, 70, 58))

    def paint(canvas: Canvas, z: float) -> None:
        canvas.column(x, z, 0.0, height * 0.6, height * 0.03, height * 0.018, bark, 0.85)
        for shift, y, wide, kind in crowns:
            canvas.leaves(x + shift, y, z, wide, wide * 0.85, leaf, kind)

    return Thing(x, z, height * 0.08, height * 0.6, paint, opaque=0.9)


def furniture(rng: Rng, half: float, walk: float) -> list[Thing]:
    """Lamp posts at a regular distance, power poles, traffic lights."""
    things: list[Thing] = []
    sign, spacing, first = int(rng.choice([-1, 1])), float(rng.uniform(18, 35)), float(rng.uniform(3, 20))
    x, tall, steel = sign * (half + 0.45), float(rng.uniform(5.5, 9)), vary(rng, (110, 112, 114))
    warm: Colour = (255, 190, 110) if rng.random() < 0.5 else (240, 240, 255)

    def post(canvas: Canvas, z: float) -> None:
        canvas.column(x, z, 0, tall, 0.09, 0.06, steel)
        canvas.line([(x, tall, z), (x - sign * 1.8, tall + 0.25, z)], 0.1, steel)
        canvas.panel(x - sign * 1.8 - 0.3, x - sign * 1.8 + 0.3, tall + 0.15, tall + 0.3, z, warm, 0.9, 1.0)
        canvas.lamp(x - sign * 1.8, tall + 0.2, z, 0.9, warm)

    if rng.random() < 0.75:
        things += [Thing(x, first + spacing * number, 0.18, tall, post) for number in range(4)]
    if rng.random() < 0.22:
        where, state = int(rng.choice([-1, 1])) * (half + 0.5), int(rng.integers(3))

        def signal(canvas: Canvas, z: float) -> None:
            canvas.column(where, z, 0, 3.0, 0.06, 0.06, (90, 92, 92))
            canvas.panel(where - 0.17, where + 0.17, 2.3, 3.3, z, (32, 34, 34))
            for number, colour in enumerate(((230, 40, 30), (245, 180, 40), (50, 210, 110))):
                canvas.disc(
                    where,
                    3.1 - 0.3 * number,
                    z,
                    0.11,
                    colour,
                    1.0 if number == state else 0.25,
                    0.9 * (number == state),
                )
            canvas.lamp(where, 3.1 - 0.3 * state, z, 0.4, ((230, 40, 30), (245, 180, 40), (50, 210, 110))[state])

        things.append(Thing(where, float(rng.uniform(7, 30)), 0.35, 3.3, signal))
    return things
