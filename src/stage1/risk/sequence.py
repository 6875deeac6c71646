"""Fixed-sequence testing: hypotheses in an order fixed beforehand, each at the full delta, until the first that fails."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import DataError


def fixed_sequence(passed: ArrayLike, start: int = 0) -> int | None:
    """Position of the last hypothesis rejected when testing goes from `start` on and stops at the first failure.

    passed: bool [T], p-value <= delta, in the order fixed before the labels were seen; `start` fixed beforehand too.
    Returns None where the first one fails. The chance that any rejected hypothesis is true is at most delta, whatever
    the order and the dependence. Raises DataError for a start outside 0..T-1.
    Source: Angelopoulos et al. 2021 (Learn then Test), section 2.2; ALGORITHMS 2.1.
    """
    flags = np.asarray(passed, dtype=np.bool_)
    if not 0 <= start < len(flags):
        raise DataError(f"start: {start} is outside 0..{len(flags) - 1}")
    failures = np.flatnonzero(~flags[start:])
    end = start + (int(failures[0]) if len(failures) else len(flags) - start)
    return end - 1 if end > start else None
