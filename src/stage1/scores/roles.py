"""Which role a row plays where no file says so: by hash, so that adding rows never moves an old one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stage1.scores import Scores

_PIECE = 1 << 16
_WORDS = 4  # of 64 bits, in a digest


def hashed_roles(scores: Scores, roles: Sequence[str], shares: Sequence[float], seed: int) -> NDArray[np.str_]:
    """A role of `roles` for each row, str [N]: where hash(seed, unit) falls on [0, 1).

    The unit is the group where there are groups (they stay whole), else the id, else the row number.
    shares: of each role, summing to 1. The same rows get the same roles on every machine.
    """
    units = scores.ids if scores.groups is None else scores.groups
    prefix, codes = f"{seed}|", np.empty(len(scores), dtype=np.uint8)
    bounds = np.cumsum(shares)[:-1]
    for start in range(0, len(scores), _PIECE):
        rows = slice(start, min(start + _PIECE, len(scores)))
        named = map(str, range(rows.start, rows.stop)) if units is None else units[rows].tolist()
        digests = b"".join([hashlib.sha256((prefix + unit).encode()).digest() for unit in named])
        places = np.frombuffer(digests, dtype=">u8")[::_WORDS] / 2.0**64
        codes[rows] = np.searchsorted(bounds, places, side="right")
    return np.array(roles)[codes]
