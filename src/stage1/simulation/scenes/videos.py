"""Videos of road scenes as pure functions of (seed, index, size).

A video is one street seen in 1 to 5 neighbouring frames that share a label. How many videos are made, by how many
processes and in which order changes no pixel. The label decides one thing only, whether a roadwork site is added to the
street: street, light, lens, drive and noise have random streams of their own and never see it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import numpy as np

from stage1.errors import ConfigError
from stage1.simulation.scenes.backdrop import backdrop
from stage1.simulation.scenes.canvas import Canvas, Light, Picture, Rng, Thing, View
from stage1.simulation.scenes.lens import Lens, expose
from stage1.simulation.scenes.site import place_site
from stage1.simulation.scenes.street import Street

GENERATOR = 1  # raised whenever the same parameters would give other pixels
CLASSES = ("none", "roadwork")
_FRAME_CHANCES = (0.44, 0.28, 0.15, 0.08, 0.05)  # of 1..5 frames, mean 2.02
_HOURS = {"sun": (9.0, 17.0), "overcast": (8.0, 18.0), "dusk": (18.0, 20.5), "night": (21.0, 28.0)}


@dataclass(frozen=True, slots=True)
class Video:
    """A video before it is drawn; `images` (relative paths) and `timestamps` have one entry per frame."""

    index: int
    label: str
    frames: int
    group: str
    images: tuple[str, ...]
    timestamps: tuple[str, ...]


def _stream(seed: int, index: int, purpose: str) -> Rng:
    digest = hashlib.sha256(f"roadscenes/{seed}/{index}/{purpose}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def describe_video(seed: int, index: int) -> Video:
    """Label, frames, file names and times of video `index`, without drawing it.

    Example: describe_video(seed=0, index=7).label
    """
    rng = _stream(seed, index, "video")
    label, frames = CLASSES[int(rng.random() < 0.5)], 1 + int(rng.choice(5, p=_FRAME_CHANCES))
    group = f"s{seed}-v{index:06d}"
    first, last = _HOURS[Light.sample(_stream(seed, index, "light")).hour]
    start = datetime(2024, 1, 1) + timedelta(days=int(rng.integers(366)), seconds=int(rng.uniform(first, last) * 3600))
    times = tuple(
        (start + timedelta(seconds=0.25 * number)).isoformat(timespec="milliseconds") for number in range(frames)
    )
    return Video(index, label, frames, group, tuple(f"images/{group}-{number}.jpg" for number in range(frames)), times)


def video_frames(
    seed: int, index: int, size: int, *, roadwork: bool | None = None, frames: int | None = None
) -> tuple[str, list[Picture]]:
    """Draw video `index`: its label ("none" or "roadwork") and 1 to 5 frames, each uint8 [size, size, 3].

    size: side in pixels, 64 to 2048; what is seen does not depend on it. roadwork: None draws what the label says; True
    or False draws the same video with or without a site whatever its label (the label returned is what was drawn), so
    that the two pictures differ by the site alone. frames: draw only the first so many.
    Raises ConfigError for a size out of range.

    Example: label, frames = video_frames(seed=0, index=7, size=320)
    """
    if not 64 <= size <= 2048:
        raise ConfigError(f"roadscenes: size {size} is not within 64..2048; set data.roadscenes.size in that range")
    video = describe_video(seed, index)
    label = video.label if roadwork is None else CLASSES[int(roadwork)]
    street, light = Street.sample(_stream(seed, index, "street")), Light.sample(_stream(seed, index, "light"))
    rng = _stream(seed, index, "lens")
    lens, clouds = Lens.sample(rng, light), float(rng.random())
    # Drawn at twice the size and halved, against jagged edges; beyond 1024 px the edges are fine as they are.
    views, worlds = _drive(_stream(seed, index, "drive"), street, video.frames, size * (2 if size <= 1024 else 1))
    site = place_site(_stream(seed, index, "site"), views, worlds, street) if label == CLASSES[1] else []
    drawn = []
    for number, (view, world) in enumerate(zip(views[:frames], worlds[:frames], strict=True)):
        things = sorted([*world, *site], key=lambda thing: -thing.z)
        canvas = Canvas(view, light, backdrop(street, view, light, things, clouds))
        for paint in street.sides:
            paint(canvas)
        for thing in things:
            thing.paint(canvas, thing.z)
        drawn.append(expose(canvas, lens, size, _stream(seed, index, f"frame {number}")))
    return label, drawn


def _drive(rng: Rng, street: Street, frames: int, side: int) -> tuple[list[View], list[list[Thing]]]:
    """Frame by frame, the camera and where everything is: we roll forward, others move at their own speed."""
    focal, height = float(rng.uniform(0.72, 1.15)), float(rng.uniform(1.15, 1.9))
    horizon, centre = float(rng.uniform(0.4, 0.58)), float(rng.normal(0.5, 0.05))
    x, step, pause = (
        street.lane_centre + float(rng.normal(0, 0.25)),
        float(rng.uniform(0.15, 1.6)),
        float(rng.uniform(0.1, 0.35)),
    )
    views, worlds = [], []
    for number in range(frames):
        tilt, turn, sway = rng.normal(0, [0.006, 0.006, 0.05]) * (number > 0)
        views.append(
            View(
                side,
                focal * side,
                (centre + turn) * side,
                (horizon + tilt) * side,
                height,
                x + sway,
                step * number,
                street.bend,
            )
        )
        worlds.append(
            [replace(thing, z=thing.z + (thing.speed * pause + thing.pace * step) * number) for thing in street.things]
        )
    return views, worlds
