"""Colours of the street, and how one of them varies from thing to thing."""

from __future__ import annotations

import math

from stage1.data.roadscenes.canvas import Colour, Rng

# what catches the eye in any street: the colours of roadwork, on things that are not
LOUD: list[Colour] = [
    (240, 96, 22), (226, 78, 24), (206, 44, 34), (238, 120, 24), (214, 100, 50), (244, 168, 32), (240, 196, 40), (40, 96, 170),
]  # fmt: skip
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
