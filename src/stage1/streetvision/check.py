"""Playing challenges through the detector: how long it takes, what fails, and what the client would pay for it."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from stage1.errors import ConfigError, DataError
from stage1.storage.documents import finite_or_none
from stage1.streetvision.challenge import LEVELS, Challenge, challenge
from stage1.streetvision.detector import Stage1Detector

# The road scenes of the recipes are drawn from small seeds; these are scenes that no model has seen.
SCENE_SEED = 720_072
_SCENE_SIZE, _SCENES = 320, 24


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture to make challenges of. label: 1 for roadwork. group: what is resampled together (the video)."""

    image: bytes | np.ndarray[Any, Any]
    label: int
    group: str


@dataclass(frozen=True, slots=True)
class _Reply:
    level: str
    frame: Frame
    value: float
    milliseconds: float
    error: str | None


def scenes(each: int = _SCENES, seed: int = SCENE_SEED, size: int = _SCENE_SIZE) -> list[Frame]:
    """The first frames of `each` generated videos of either label."""
    from stage1.simulation.scenes.videos import describe_video, video_frames

    found: list[Frame] = []
    for label in (0, 1):
        for index in range(label * each, (label + 1) * each):
            picture = video_frames(seed, index, size, roadwork=bool(label), frames=1)[1][0]
            found.append(Frame(picture, label, describe_video(seed, index).group))
    return found


def frames_of(table: str, classes: tuple[str, ...], each: int = 400, seed: int = 0) -> list[Frame]:
    """Up to `each` images of either class of a source that `data.table` takes, spread over it by their ids.

    Raises as `read_source`, and DataError where a class has no image.
    """
    from stage1.config import DataConfig
    from stage1.data.ingest import read_source
    from stage1.sources.locators import read_locator

    rows = read_source(DataConfig(table=table, classes=list(classes), near_duplicates=False)).table
    order = np.argsort(rows.ids)  # digests of the bytes: as random as a draw
    found: list[Frame] = []
    for label in (0, 1):
        mine = order[rows.labels[order] == label][:each]
        if not len(mine):
            raise DataError(f"{table}: no image of class {classes[label]!r}; both are needed")
        found += [Frame(read_locator(str(rows.paths[row])), label, str(rows.groups[row])) for row in mine]
    return found


def require_count(count: int) -> None:
    """Raises ConfigError for fewer challenges of a level than there are labels."""
    if count < 2:
        raise ConfigError(f"--count {count}: at least 2 for each level, one of either label")


def check(
    detector: Stage1Detector,
    frames: list[Frame],
    *,
    count: int = 200,
    seed: int = 0,
    resamples: int = 1000,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Play `count` challenges of every level, labels in turn, and say how it went: a plain document.

    A failure is an exception or an answer outside [0, 1]; a fallback answer is counted beside them.
    """
    require_count(count)
    pools = [[frame for frame in frames if frame.label == label] for label in (0, 1)]
    # The first call pays for what the runtime puts off; a miner pays it once.
    _ask(detector, "", pools[0][0], challenge(pools[0][0].image, "L0", seed=seed))
    before = detector.counts
    replies = []
    for level in LEVELS:
        for number in range(count):
            pool = pools[number % 2]
            turn, place = divmod(number // 2, len(pool))
            made = challenge(pool[place].image, level, seed=seed, copy=turn)
            replies.append(_ask(detector, level, pool[place], made))
            if advance is not None:
                advance(1)
    after = detector.counts
    return {
        "bundle": detector.bundle,
        "digest": detector.bundle_digest,
        "provider": detector.provider,
        "count": count,
        "images": len(frames),
        "cascade": detector.statement,
        "deadline_ms": 1000 * detector.deadline_s,
        "failures": sum(reply.error is not None for reply in replies),
        "first_failure": next((reply.error for reply in replies if reply.error is not None), None),
        "answered_by": {name: after[name] - before[name] for name in after},
        "latency": [_latency(level, replies) for level in (*LEVELS, "all")],
        "reward": _reward(replies, resamples, seed),
    }


def _ask(detector: Stage1Detector, level: str, frame: Frame, made: Challenge) -> _Reply:
    picture = Image.open(io.BytesIO(made.jpeg))  # lazily, as the client passes it
    start = time.perf_counter()
    try:
        value, error = detector(picture), None
    except Exception as raised:  # the contract says that there is none: this is where it is checked
        value, error = math.nan, f"{type(raised).__name__}: {raised}"
    spent = 1000 * (time.perf_counter() - start)
    if error is None and not (type(value) is float and 0.0 <= value <= 1.0):
        error = f"answered {value!r}"
    return _Reply(level, frame, value if error is None else -1.0, spent, error)


def _latency(level: str, replies: list[_Reply]) -> dict[str, Any]:
    spent = np.array([reply.milliseconds for reply in replies if level in (reply.level, "all")])
    p50, p95, p99 = np.quantile(spent, (0.5, 0.95, 0.99)).tolist()
    return {"level": level, "n": len(spent), "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "max_ms": float(spent.max())}


def _reward(replies: list[_Reply], resamples: int, seed: int) -> list[dict[str, Any]]:
    from stage1.streetvision.reward import LevelRates

    answers = [reply.value for reply in replies if reply.error is None]
    if len(answers) < len(replies):
        return []  # what an answer is worth that does not come is 0, and no rate says so
    rates = LevelRates(
        answers,
        [reply.frame.label for reply in replies],
        [reply.level for reply in replies],
        [reply.frame.group for reply in replies],
        resamples=resamples,
        seed=seed,
    )
    return [
        {**asdict(row), "low": finite_or_none(row.low), "high": finite_or_none(row.high)} for row in rates.table(0.5)
    ]


def check_lines(document: dict[str, Any]) -> list[str]:
    """The document as lines for people."""
    by = ", ".join(f"{name} {n}" for name, n in document["answered_by"].items() if n)
    lines = [
        f"{document['bundle']} (digest {document['digest'][:12]}) on {document['provider']}",
        f"{document['count']} challenges of each level, from {document['images']} images, labels in turn",
        f"failures {document['failures']}; answered by {by}",
        *([] if document["cascade"] is None else [f"the whole cascade: {document['cascade']}"]),
        "",
        f"{'level':<8}{'n':>6}{'p50 ms':>9}{'p95 ms':>9}{'p99 ms':>9}{'max ms':>9}",
    ]
    for row in document["latency"]:
        figures = "".join(f"{row[name]:>9.1f}" for name in ("p50_ms", "p95_ms", "p99_ms", "max_ms"))
        lines.append(f"{row['level']:<8}{row['n']:>6}{figures}")
    lines += ["", f"{'level':<8}{'TPR':>7}{'FPR':>7}{'MCC':>7}  expected reward at balanced labels"]
    for row in document["reward"]:
        lines.append(
            f"{row['level']:<8}{row['tpr']:>7.3f}{row['fpr']:>7.3f}{row['mcc']:>7.3f}  {row['reward']:.3f}"
            + (" (no interval)" if row["low"] is None else f" [{row['low']:.3f}, {row['high']:.3f}]")
        )
    return lines
