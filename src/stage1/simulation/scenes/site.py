"""Where roadwork stands: a site is added to a finished street, and nothing else changes.

`place_site` draws sites until enough of one can be seen in every frame of the video: an object behind a bus is no
label.
"""

from __future__ import annotations

import math

import numpy as np

from stage1.simulation.scenes.canvas import Colour, Rng, Thing, View
from stage1.simulation.scenes.machines import excavator, heap, pick, roller, worker
from stage1.simulation.scenes.roadwork import barrier, beacon, blocks, cone, drum, sign
from stage1.simulation.scenes.street import Street

SIGNAL: list[Colour] = [(240, 96, 22), (250, 120, 30), (226, 78, 24), (214, 104, 52), (190, 88, 48), (238, 140, 40)]
LEAST, MOST = 0.024, 0.6  # share of the picture that shows the site, in every frame: sets how hard the task is


def sample_site(rng: Rng, street: Street) -> list[Thing]:
    """One roadwork site somewhere along the road: a core (taper, closure, dig or machine) and what goes with it."""
    core = str(rng.choice(["taper", "closure", "dig", "machine"], p=[0.34, 0.28, 0.2, 0.18]))
    dust = float(rng.uniform(0.0, 0.4))
    colour = _worn(pick(rng, SIGNAL, 0.1), dust)
    red = _worn(pick(rng, [(204, 34, 32), (190, 50, 44), (214, 60, 40)], 0.1), dust)
    board = red if rng.random() < 0.5 else colour
    z = float(np.exp(rng.uniform(math.log(4.5), math.log(17.0))))
    flank = float(rng.choice([-1, 1]))
    edge, walk = flank * street.half, max(0.4, street.walk)
    # across the road the site lies at the kerb, in a lane, or on the walk
    spots = [
        edge - flank * rng.uniform(0.3, 2.2),
        street.lane_centre + rng.normal(0, 1.0),
        edge + flank * rng.uniform(0.2, walk),
    ]
    x = float(rng.choice(spots, p=[0.5, 0.32, 0.18]))
    inward = -flank
    tall, style = float(rng.uniform(0.5, 1.0)), int(rng.choice(3, p=[0.56, 0.24, 0.2]))
    things: list[Thing] = []

    def guide(px: float, pz: float) -> Thing:
        return (cone(rng, px, pz, colour, tall), drum(rng, px, pz, colour), beacon(rng, px, pz, board))[style]

    def row(count: int, spacing: float, drift: float, start: float = 0.0) -> None:
        for number in range(count):
            px, pz = (
                x + start + drift * number + float(rng.normal(0, 0.08)),
                z + spacing * number + float(rng.normal(0, 0.15)),
            )
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
        row(
            int(rng.integers(3, 8)),
            float(rng.uniform(0.7, 2.0)),
            inward * float(rng.uniform(-0.4, 0.6)),
            inward * float(rng.uniform(0.5, 2.0)),
        )
    if core != "closure" and rng.random() < 0.45:
        things.append(barrier(rng, x + float(rng.uniform(-1.5, 1.5)), z + float(rng.uniform(0, 4)), board))
    if core != "machine" and rng.random() < 0.3:
        made = excavator if rng.random() < 0.6 else roller
        things.append(made(rng, x + float(rng.uniform(-1.0, 1.0)), z + float(rng.uniform(4, 9))))
    if rng.random() < 0.6:
        things.append(
            sign(rng, edge + flank * float(rng.uniform(-0.9, 0.5)), max(3.5, z + float(rng.uniform(-2, 3))), colour)
        )
    for _ in range(int(rng.choice([0, 1, 2], p=[0.5, 0.3, 0.2]))):
        things.append(worker(rng, x + float(rng.uniform(-2, 2)), z + float(rng.uniform(0.5, 4)), colour))
    return things


def _worn(colour: Colour, dust: float) -> Colour:
    """Paint under dust and sun: what colour alone shows is lost."""
    red, green, blue = (
        (1 - dust) * part + dust * grey for part, grey in zip(colour, (158.0, 136.0, 118.0), strict=True)
    )
    return red, green, blue


def visible_share(site: list[Thing], others: list[Thing], view: View) -> float:
    """Share of the picture covered by `site`, not hidden by nearer `others`; by a 6 x 6 grid per object."""
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
