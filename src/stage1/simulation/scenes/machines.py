"""People and machines of a roadwork site (worker, excavator, roller, heap), and the colours of the street."""

from __future__ import annotations

import math

from stage1.simulation.scenes.canvas import Canvas, Colour, Rng, Thing

_MACHINE: list[Colour] = [(236, 176, 28), (230, 150, 24), (214, 120, 30), (240, 196, 50), (196, 150, 50)]


def worker(rng: Rng, x: float, z: float, colour: Colour) -> Thing:
    tall, vest = float(rng.uniform(1.6, 1.9)), pick(rng, [colour, (206, 226, 40)])
    helmet, trousers = (
        pick(rng, [(240, 240, 236), (240, 196, 40), colour]),
        pick(rng, [colour, (40, 48, 76), (60, 62, 66)]),
    )
    lean = float(rng.uniform(-0.25, 0.25))

    def paint(canvas: Canvas, z: float) -> None:
        for foot in (-1, 1):
            canvas.line([(x + foot * 0.13, 0.02, z), (x + foot * 0.08, tall * 0.48, z)], 0.15, trousers, 0.85)
        canvas.column(x + lean * 0.3, z, tall * 0.45, tall * 0.83, 0.22, 0.19, vest, glow=0.2)
        canvas.panel(
            x + lean * 0.3 - 0.21, x + lean * 0.3 + 0.21, tall * 0.58, tall * 0.62, z, (226, 226, 220), 0.95, 0.7
        )
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

        def block(
            u0: float, u1: float, y0: float, y1: float, tint: Colour, deep: float = 1.6, shade: float = 1.0
        ) -> None:
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
        canvas.line(
            [at(1.3, 1.3, -0.12), at(1.0 + reach * 0.35, lift * 0.8, -0.12)], 0.12 * scale, (190, 190, 190), 0.9
        )
        u, y = 1.0 + reach, lift * 0.45
        canvas.face(
            [
                at(u + 0.2, y, -0.1),
                at(u - 0.5, y - 0.1, -0.1),
                at(u - 0.6, y - 0.75, -0.1),
                at(u + 0.1, y - 0.65, -0.1),
            ],
            (74, 68, 62),
            0.85,
        )

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
            canvas.panel(
                x + facing * post * scale - 0.04,
                x + facing * post * scale + 0.04,
                1.45 * scale,
                2.6 * scale,
                z,
                (50, 50, 52),
            )
        block(-1.05, 0.4, 2.6, 2.72, colour)

    return Thing(x, z, 3.2 * scale, 2.5 * scale, paint, opaque=0.75, clue=0.3)


def heap(rng: Rng, x: float, z: float) -> Thing:
    wide, tall, kind = float(rng.uniform(1.2, 3.2)), float(rng.uniform(0.4, 1.1)), int(rng.integers(8))
    colour = pick(rng, [(124, 98, 70), (140, 130, 116), (96, 84, 72)])

    def paint(canvas: Canvas, z: float) -> None:
        canvas.face(
            [
                (x - wide * 0.7, 0.01, z - 0.3),
                (x + wide * 0.7, 0.01, z - 0.3),
                (x + wide * 0.6, 0.01, z + 2.2),
                (x - wide * 0.6, 0.01, z + 2.2),
            ],
            (70, 62, 54),
            0.8,
        )
        canvas.leaves(x, tall * 0.36, z + 0.3, wide, tall * 1.3, colour, kind)

    return Thing(x, z, wide, tall, paint, shadow=False, clue=0.0)


# what catches the eye in any street: the colours of roadwork, on things that are not
LOUD: list[Colour] = [
    (240, 96, 22),
    (226, 78, 24),
    (206, 44, 34),
    (238, 120, 24),
    (214, 100, 50),
    (244, 168, 32),
    (240, 196, 40),
    (40, 96, 170),
]
LEAVES: list[Colour] = [
    (70, 98, 42),
    (88, 112, 50),
    (54, 82, 44),
    (104, 118, 54),
    (196, 118, 36),
    (188, 84, 34),
    (206, 156, 52),
    (120, 96, 60),
]


def vary(rng: Rng, colour: Colour, spread: float = 0.1) -> Colour:
    """The same colour, a little lighter or darker and a little off."""
    factor = math.exp(rng.normal(0, spread))
    red, green, blue = (min(255.0, max(0.0, part * factor + rng.normal(0, 6))) for part in colour)
    return red, green, blue


def pick(rng: Rng, colours: list[Colour], spread: float = 0.1) -> Colour:
    return vary(rng, colours[int(rng.integers(len(colours)))], spread)
