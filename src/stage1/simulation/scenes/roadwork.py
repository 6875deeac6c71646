"""What a roadwork site is made of, each kind in the colours, stripes and wear of more than one country.

Each object is a Thing(x, z, ...) of its own; `site` decides what goes together and where.
"""

from __future__ import annotations

from stage1.simulation.scenes.canvas import Canvas, Colour, Rng, Thing
from stage1.simulation.scenes.machines import pick, vary

_WHITE: Colour = (232, 230, 224)


def cone(rng: Rng, x: float, z: float, colour: Colour, tall: float) -> Thing:
    bands, base = int(rng.choice([1, 2, 2])), pick(rng, [(34, 34, 36), colour])
    band = vary(rng, _WHITE, 0.08)
    fallen = rng.random() < 0.05

    def paint(canvas: Canvas, z: float) -> None:
        wide = tall * 0.27
        if fallen:
            canvas.face(
                [
                    (x - wide, 0, z),
                    (x - wide, 2 * wide, z),
                    (x + tall * 0.8, wide * 0.7, z),
                    (x + tall * 0.8, wide * 0.4, z),
                ],
                colour,
                0.85,
            )
            canvas.face(
                [(x - wide - 0.04, 0, z), (x - wide - 0.04, 2 * wide, z), (x - wide, 2 * wide, z), (x - wide, 0, z)],
                base,
                0.7,
            )
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
            canvas.column(
                x,
                z,
                tall * low,
                tall * high,
                wide * (1 - 0.1 * low),
                wide * (1 - 0.1 * high),
                band if number % 2 else colour,
                glow=0.5 * (number % 2) + 0.1,
            )

    return Thing(x, z, wide * 2, tall, paint, opaque=0.9)


def _stripes(
    canvas: Canvas, x0: float, x1: float, y0: float, y1: float, z: float, first: Colour, second: Colour, lean: float
) -> None:
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
    wide, boards, lean = (
        float(rng.uniform(1.2, 2.6)),
        int(rng.choice([1, 2, 3], p=[0.45, 0.4, 0.15])),
        float(rng.choice([-1, 1])),
    )
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
            canvas.face(
                [
                    (x - 0.14, y, z),
                    (x + 0.14, y + 0.14 * lean, z),
                    (x + 0.14, y + 0.14 * lean + 0.13, z),
                    (x - 0.14, y + 0.13, z),
                ],
                colour,
                0.95,
                0.4,
            )

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
                    canvas.panel(
                        x - half,
                        x + half,
                        low + size * (0.36 * number - 0.1),
                        low + size * (0.36 * number + 0.1),
                        z,
                        ink,
                    )
            else:
                _digger(canvas, x, low - 0.05, z, size * 1.2)
            if flags:
                for foot in (-1, 1):
                    tip = (x + foot * size * 0.5, low + size * 2.1, z)
                    canvas.line([(x, low + size * 1.2, z), tip], 0.03, (150, 140, 120))
                    canvas.face(
                        [
                            tip,
                            (tip[0] + foot * 0.4, tip[1] + 0.02, z),
                            (tip[0] + foot * 0.36, tip[1] - 0.34, z),
                            (tip[0] - foot * 0.06, tip[1] - 0.3, z),
                        ],
                        colour,
                    )
        elif shape == "board":
            canvas.panel(x - size * 1.5, x + size * 1.5, low - size * 0.7, low + size * 0.8, z, ink)
            canvas.panel(x - size * 1.42, x + size * 1.42, low - size * 0.62, low + size * 0.72, z, colour, 0.95, 0.5)
            for number in (0, 1):
                canvas.panel(
                    x - size * 1.1,
                    x + size * 1.1,
                    low + size * (0.55 * number - 0.4),
                    low + size * (0.55 * number - 0.1),
                    z,
                    ink,
                )
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
    canvas.face(
        [
            (x + 0.1 * size, y - 0.42 * size, z),
            (x + 0.32 * size, y - 0.16 * size, z),
            (x + 0.5 * size, y - 0.42 * size, z),
        ],
        ink,
    )
