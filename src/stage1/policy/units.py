"""The unit of independence: images, or one image of each group."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError
from stage1.scores import Scores


def clustered(scores: Scores) -> bool:
    """True where some group has more than one image."""
    return scores.groups is not None and len(np.unique(scores.groups)) < len(scores)


def choose_unit(scores: Scores, unit: str, assume_iid: bool) -> str:
    """ "image" or "group" for `unit` = auto, image or group.

    Raises ConfigError where an image-level certificate is asked for although groups repeat and assume_iid is not set.
    """
    if unit not in ("auto", "image", "group"):
        raise ConfigError(f"unit: {unit!r} is unknown; use auto, image or group")
    if not clustered(scores):
        return "image"
    if unit == "image" and not assume_iid:
        raise ConfigError(
            "unit: image: several images share a group, so they are not independent; use unit=group, or assume_iid=true "
            "(the certificate will say so)"
        )
    return "image" if assume_iid and unit != "group" else "group"


def one_per_group(scores: Scores, seed: int) -> NDArray[np.int64]:
    """Rows of one image of each group, the one whose hash(seed, id) is smallest; sorted.

    The draw looks at ids alone, never at labels or logits, so that it is a uniform draw within each group. Without ids
    the row number stands in.
    """
    if scores.groups is None:
        return np.arange(len(scores), dtype=np.int64)
    names = scores.ids if scores.ids is not None else np.arange(len(scores)).astype(np.str_)
    best: dict[str, tuple[bytes, int]] = {}
    for row, (group, name) in enumerate(zip(scores.groups.tolist(), names.tolist(), strict=True)):
        key = (hashlib.sha256(f"{seed}|one per group|{name}".encode()).digest(), row)
        if group not in best or key < best[group]:
            best[group] = key
    return np.sort(np.array([row for _, row in best.values()], dtype=np.int64))
