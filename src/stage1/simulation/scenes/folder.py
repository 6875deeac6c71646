"""Road scenes on disk: images/*.jpg, roadscenes.json (the parameters) and, last of all, labels.csv."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from PIL import Image
from pydantic import Field

from stage1.errors import ConfigError
from stage1.runtime.processes import mapper
from stage1.simulation.scenes.videos import GENERATOR, Video, describe_video, video_frames
from stage1.storage.documents import Document, DocumentKind, read_document, write_document
from stage1.storage.fields import JpegQuality, PositiveInt
from stage1.storage.files import write_bytes, write_text

QUALITY = 88  # of the JPEG files
_COLUMNS = ("image", "label", "group", "source", "timestamp")


class RoadScenesDocument(Document):
    """Parameters of a folder of generated road scenes."""

    generator: PositiveInt
    """Version of the drawing code: other pixels, other number."""
    videos: PositiveInt
    size: Annotated[int, Field(ge=64, le=2048)]
    """Side of the square frames in pixels."""
    seed: int
    quality: JpegQuality


ROADSCENES_KIND = DocumentKind("roadscenes", RoadScenesDocument)


def write_roadscenes(
    folder: str | os.PathLike[str],
    *,
    videos: int,
    size: int,
    seed: int,
    workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Write `videos` videos of size x size frames below `folder` and return the path of labels.csv.

    labels.csv has the columns image (relative), label ("none" or "roadwork"), group (the video), source, timestamp, one
    row per frame, and is written last: where it is, all images are there. A folder that is complete for the same
    parameters is returned at once; after a kill the images that are there are kept, the missing ones are drawn. Every
    file appears whole or not at all.
    workers: processes; 0 takes one per usable core, 1 draws in this process. More than one needs an importable main
    module (a script with an `if __name__ == "__main__"` guard). progress: called with (images done, images in all).
    Raises ConfigError for a parameter out of range or a folder that holds road scenes of other parameters, Stage1Error
    where the disk is full or a process dies.

    Example: table = write_roadscenes("scenes", videos=400, size=320, seed=0)
    """
    folder = Path(folder)
    _check(videos=videos, size=size, workers=workers)
    plan = [describe_video(seed, index) for index in range(videos)]
    table, parameters = (
        folder / "labels.csv",
        {"generator": GENERATOR, "videos": videos, "size": size, "seed": seed, "quality": QUALITY},
    )
    _claim(folder, parameters)
    there = set(os.listdir(folder / "images")) if (folder / "images").is_dir() else set()
    missing = [video for video in plan if not all(os.path.basename(name) in there for name in video.images)]
    if missing:
        table.unlink(missing_ok=True)  # it promises that all images are there
        total = sum(video.frames for video in plan)
        done = total - sum(video.frames for video in missing)
        with mapper(workers, len(missing), "roadscenes: a drawing") as run:
            for count in run(partial(_write_video, str(folder), seed, size), [video.index for video in missing]):
                done += count
                if progress is not None:
                    progress(done, total)
    text = _labels(plan)
    if missing or not table.is_file() or table.read_text(encoding="utf-8") != text:
        write_text(table, text)
    return table


def _check(*, videos: int, size: int, workers: int) -> None:
    if videos < 1:
        raise ConfigError(f"roadscenes: videos {videos} is less than 1; set data.roadscenes.videos")
    if not 64 <= size <= 2048:
        raise ConfigError(f"roadscenes: size {size} is not within 64..2048; set data.roadscenes.size in that range")
    if workers < 0:
        raise ConfigError(f"roadscenes: workers {workers} is negative; use 0 for one per core")


def _claim(folder: Path, parameters: dict[str, Any]) -> None:
    """Note the parameters in a new folder; refuse a folder of other parameters, whose images would be mixed in."""
    note = folder / "roadscenes.json"
    if not note.exists():
        write_document(note, parameters, ROADSCENES_KIND)
        return
    found = read_document(note, ROADSCENES_KIND)
    for key, value in parameters.items():
        if found[key] != value:
            raise ConfigError(
                f"{folder}: holds road scenes with {key}={found[key]}, not {value}; remove it or choose another folder"
            )


def _labels(plan: list[Video]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for video in plan:
        for name, time in zip(video.images, video.timestamps, strict=True):
            writer.writerow((name, video.label, video.group, "roadscenes", time))
    return buffer.getvalue()


def _write_video(folder: str, seed: int, size: int, index: int) -> int:
    """Draw one video and write its missing frames; runs in a worker. Returns its number of frames."""
    video = describe_video(seed, index)
    _, frames = video_frames(seed, index, size)
    for name, frame in zip(video.images, frames, strict=True):
        path = Path(folder, name)
        if not path.exists():
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "JPEG", quality=QUALITY)
            write_bytes(path, buffer.getvalue())
    return len(frames)
