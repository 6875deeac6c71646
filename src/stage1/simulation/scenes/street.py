"""A street that has nothing to do with roadwork: road, sky, houses, trees, traffic, and things that look like roadwork.

`Street.sample` fixes the world once; `backdrop` and `Thing.paint` draw it from any view, so that the frames of one
video show the same place. Look-alikes (orange cars, awnings, bins, vests, striped poles, other signs) stand in every
street with the same chances, whatever the label: colour alone must not tell roadwork.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from stage1.simulation.scenes.canvas import Canvas, Colour, Floats, Rng, Thing
from stage1.simulation.scenes.lookalikes import look_alikes
from stage1.simulation.scenes.machines import pick
from stage1.simulation.scenes.roadside import frontage, furniture, trees
from stage1.simulation.scenes.vehicles import traffic

STEP, REACH = 0.02, 45.0  # metres: resolution and half width of the table across the road


@dataclass(frozen=True, slots=True)
class Street:
    """The ground plan in metres across and along the road, and everything that stands on it."""

    place: str  # "city" | "suburb" | "country" | "highway"
    half: float  # from the axis to the kerb
    lane_centre: float  # x of the lane that the camera drives in
    walk: float  # width of the pavement, 0 without one
    table: Floats  # [3, n, 3] ground colour across the road: plain, with dashes, zebra crossing
    dash: tuple[float, float, float]  # period, length, phase in metres
    zebra: float  # depth of a crossing, or -1
    bend: float
    texture: tuple[float, float, float]  # grit amplitude, patch amplitude, offset
    skyline: tuple[tuple[float, float, float, float], ...]
    sides: tuple[Callable[[Canvas], None], ...]
    things: tuple[Thing, ...]

    @classmethod
    def sample(cls, rng: Rng) -> Street:
        place = str(rng.choice(["city", "suburb", "country", "highway"], p=[0.4, 0.3, 0.17, 0.13]))
        lanes = int(rng.integers(2, 4)) if place == "highway" else int(rng.choice([1, 2], p=[0.65, 0.35]))
        lane = float(rng.uniform(2.9, 3.6))
        parking = float(rng.uniform(1.9, 2.4)) if place in ("city", "suburb") and rng.random() < 0.6 else 0.0
        half = lanes * lane + parking + 0.3
        walk = {"city": rng.uniform(2, 4.5), "suburb": rng.uniform(1.2, 2.5)}.get(place, 0.0)
        mine = int(rng.integers(0, lanes))
        bend = float(rng.normal(0, 0.0016)) if place != "city" else float(rng.normal(0, 0.0005))
        table = _ground_table(rng, place, half, lane, lanes, parking, float(walk))
        period = float(rng.uniform(6, 12))
        skyline = tuple(
            (float(x), float(rng.uniform(0.02, 0.1)), float(rng.uniform(0.004, 0.05)), float(rng.uniform(0.4, 0.8)))
            for x in rng.uniform(-0.1, 1.1, int(rng.integers(6, 26)))
        )
        sides = [*frontage(rng, place, -1, half + walk), *frontage(rng, place, 1, half + walk)]
        sides.sort(key=lambda item: -item[0])
        things = [*trees(rng, place, half, float(walk)), *furniture(rng, half, float(walk))]
        things += [*traffic(rng, lane, lanes, mine, half, parking), *look_alikes(rng, half, float(walk))]
        return cls(
            place,
            half,
            (mine + 0.5) * lane,
            float(walk),
            table,
            (period, period * float(rng.uniform(0.3, 0.55)), 0.0),
            float(rng.uniform(8, 45)) if place in ("city", "suburb") and rng.random() < 0.3 else -1.0,
            bend,
            (float(rng.uniform(0.02, 0.07)), float(rng.uniform(0.02, 0.08)), float(rng.uniform(0, 400))),
            skyline,
            tuple(paint for _, paint in sides),
            tuple(things),
        )


_GRASS: list[Colour] = [(86, 104, 52), (110, 112, 60), (128, 116, 76), (72, 92, 48), (142, 124, 84)]
_PAVING: list[Colour] = [(150, 146, 140), (168, 162, 152), (132, 130, 128), (160, 138, 122), (142, 136, 120)]


def _ground_table(rng: Rng, place: str, half: float, lane: float, lanes: int, parking: float, walk: float) -> Floats:
    """Colour of the ground as a function of x, in three versions: between dashes, on a dash, on a zebra crossing."""
    x = np.arange(-REACH, REACH, STEP, dtype=np.float32)
    grey = float(rng.uniform(62, 128))
    asphalt = np.array([grey, grey + rng.normal(0, 2), grey + rng.normal(1, 4)], dtype=np.float32)
    verge = np.array(pick(rng, _GRASS if place != "city" else _PAVING), dtype=np.float32)
    plain = np.broadcast_to(asphalt, (len(x), 3)).copy()
    # Tyres polish two tracks in each lane.
    wear = float(rng.uniform(0.0, 0.12))
    plain *= (1 + wear * np.cos(2 * np.pi * (np.abs(x) % lane) / (lane / 2)))[:, None]
    if parking:
        plain[np.abs(x) > half - parking] *= float(rng.uniform(0.8, 1.1))
    paint = float(rng.uniform(0.45, 1.0))
    white = paint * np.array([228, 228, 222], np.float32) + (1 - paint) * asphalt
    middle = (
        paint * np.array(rng.choice([[228, 228, 222], [226, 178, 60]], p=[0.6, 0.4]), np.float32)
        + (1 - paint) * asphalt
    )
    dashed = plain.copy()
    wide = float(rng.uniform(0.1, 0.17))
    if rng.random() < 0.5:
        plain[np.abs(np.abs(x) - 0.14) < wide / 2] = middle  # double solid
        dashed[np.abs(np.abs(x) - 0.14) < wide / 2] = middle
    else:
        dashed[np.abs(x) < wide / 2] = middle
    for number in range(1, lanes):
        dashed[np.abs(np.abs(x) - number * lane) < wide / 2] = white
    if rng.random() < 0.6:
        for version in (plain, dashed):
            version[np.abs(np.abs(x) - lanes * lane) < wide / 2] = white
    zebra = np.where(((x % 1.0) < 0.5)[:, None], white, asphalt).astype(np.float32)
    paving = np.array(pick(rng, _PAVING), dtype=np.float32)
    for version in (plain, dashed, zebra):
        away = np.abs(x) - half
        version[away > 0] = paving if walk else 0.6 * verge + 0.4 * asphalt
        version[(away > 0) & (away < 0.16)] *= 1.15 if walk else 0.9  # kerb or worn edge
        version[(away > 0.16) & (away < 0.2)] *= 0.75
        version[away > (walk or 0.8)] = verge
    return np.clip(np.stack([plain, dashed, zebra]), 0, 255)
