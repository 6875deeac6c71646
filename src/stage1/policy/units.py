"""The unit of independence: images, or groups (one image of each, or the means of all their images)."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError
from stage1.scores import Scores

UNITS = ("auto", "image", "group", "group_mean")


def clustered(scores: Scores) -> bool:
    """True where some group has more than one image."""
    return scores.groups is not None and len(np.unique(scores.groups)) < len(scores)


def choose_unit(scores: Scores, unit: str, assume_iid: bool) -> str:
    """ "image", "group" (one image of each) or "group_mean" (all images, policy/group_means.py) for `unit`.

    unit: auto, or one of the three. auto is "group" where groups repeat; certify may then take "group_mean" instead, by
    power on val_select. Raises ConfigError where an image-level certificate is asked for although groups repeat and
    assume_iid is not set.
    """
    if unit not in UNITS:
        raise ConfigError(f"unit: {unit!r} is unknown; use {', '.join(UNITS)}")
    if not clustered(scores):
        return "image"
    if unit == "image" and not assume_iid:
        raise ConfigError(
            "unit: image: several images share a group, so they are not independent; use unit=group, or assume_iid=true"
            " (the certificate will say so)"
        )
    if unit == "group_mean":
        return unit
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
