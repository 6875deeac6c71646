"""The unit of independence: images, or groups (one image of each, many draws of one, or the means of all)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError, DataError
from stage1.policy.attempts import Attempts
from stage1.scores import Scores

UNITS = ("auto", "image", "group", "group_draws", "group_mean")
# All images of a group are counted, the group is the unit (policy/group_means.py).
ALL_IMAGES = ("group_draws", "group_mean")
OWN = "own"
SLICE_THRESHOLDS = ("auto", OWN, "one")
_BLOCK = 1 << 16  # names that are Python texts at once


@dataclass(frozen=True, slots=True)
class Counting:
    """How the calibration images are counted, and what is known of them beforehand.

    unit: one of UNITS; assume_iid: images of one group are taken as independent. seed: of the draw of one image of each
    group. attempts: the looks at these images, None: not counted. uncertified_because: a reason known beforehand
    (leakage) for which nothing may be certified. slices: attributes of Scores.slices to claim the risks for as well.
    slice_thresholds: "own" for each value of one attribute, "one" pair for all, or "auto" (policy/in_slices.py).
    """

    unit: str = "auto"
    assume_iid: bool = False
    seed: int = 0
    attempts: Attempts | None = None
    uncertified_because: str | None = None
    slices: Sequence[str] = ()
    slice_thresholds: str = "auto"


def check_samples(calib: Scores, select: Scores | None) -> None:
    """Raises DataError where calib is empty, unlabelled, or shares an id with select."""
    _ = calib.known_labels
    if len(calib) == 0:
        raise DataError("calib: no rows; val_calib needs labelled images")
    if select is not None and select.ids is not None and calib.ids is not None:
        shared = _in_both(select.ids, calib.ids)
        if shared:
            raise DataError(
                f"calib: id {shared[0]} ({len(shared)} in all) was in val_select too; a certificate needs unseen images"
            )


def _in_both(one: NDArray[np.str_], other: NDArray[np.str_]) -> list[str]:
    """Sorted names that stand in both: the fewer as a set, the others block by block, which needs no sorted copy."""
    few, many = sorted((one, other), key=len)
    known, found = set(few.tolist()), set[str]()
    for start in range(0, len(many), _BLOCK):
        found |= known.intersection(many[start : start + _BLOCK].tolist())
    return sorted(found)


def clustered(scores: Scores) -> bool:
    """True where some group has more than one image.

    >>> clustered(Scores(np.zeros((3, 2)), groups=["street", "street", "bridge"]))
    True
    """
    return scores.groups is not None and len(np.unique(scores.groups)) < len(scores)


def choose_unit(scores: Scores, unit: str, assume_iid: bool) -> str:
    """ "image", "group" (one image of each), "group_draws" or "group_mean" (all images, policy/group_means.py).

    unit: auto, or one of these. auto is "group" where groups repeat; certify may then take one of the last two instead,
    by power on val_select. Raises ConfigError where an image-level certificate is asked for although groups repeat and
    assume_iid is not set.

    >>> scores = Scores(np.zeros((3, 2)), groups=["street", "street", "bridge"])
    >>> choose_unit(scores, "auto", assume_iid=False), choose_unit(scores, "auto", assume_iid=True)
    ('group', 'image')
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
    if unit in ALL_IMAGES:
        return unit
    return "image" if assume_iid and unit != "group" else "group"


def one_per_group(scores: Scores, seed: int) -> NDArray[np.int64]:
    """Rows of one image of each group, the one whose hash(seed, id) is smallest; sorted.

    The draw depends on ids alone, never on labels or logits, so that it is a uniform draw within each group. Without
    ids, row numbers are hashed.

    >>> scores = Scores(np.zeros((3, 2)), groups=["street", "street", "bridge"], ids=["a", "b", "c"])
    >>> one_per_group(scores, seed=0).tolist()
    [0, 2]
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
