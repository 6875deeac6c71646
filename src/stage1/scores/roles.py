"""Which role a row plays where no file says so: by hash, so that adding rows never moves an old one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stage1.scores import Scores


def hashed_roles(scores: Scores, roles: Sequence[str], shares: Sequence[float], seed: int) -> NDArray[np.str_]:
    """A role of `roles` for each row, str [N]: where hash(seed, unit) falls on [0, 1).

    The unit is the group where there are groups (they stay whole), else the id, else the row number.
    shares: of each role, summing to 1. The same rows get the same roles on every machine.
    """
    if scores.groups is not None:
        units = scores.groups
    elif scores.ids is not None:
        units = scores.ids
    else:
        units = np.arange(len(scores)).astype(np.str_)
    prefix = f"{seed}|"
    digests = b"".join(hashlib.sha256((prefix + unit).encode()).digest()[:8] for unit in units.tolist())
    places = np.frombuffer(digests, dtype=">u8") / 2.0**64
    return np.array(roles)[np.searchsorted(np.cumsum(shares)[:-1], places, side="right")]
