"""The dealing that `split.method=balanced` had before: by size. Kept as the control that must fail."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from stage1.data.dealing import unit_interval


def dealt_by_size(
    names: Sequence[str], content: NDArray[np.float64], fractions: Mapping[str, float], seed: int
) -> list[str]:
    """Largest groups first, each to the role that it brings nearest to its share of every class. content: [G, K]."""
    roles = list(fractions)
    shares = content / np.maximum(content.sum(axis=0), 1)
    excess = -np.repeat(np.array(list(fractions.values()))[:, None], content.shape[1], axis=1)
    order = sorted(range(len(names)), key=lambda unit: (-shares[unit].sum(), unit_interval(seed, names[unit])))
    chosen = [""] * len(names)
    for unit in order:
        role = int(np.argmin(((2 * excess + shares[unit]) * shares[unit]).sum(axis=1)))
        chosen[unit] = roles[role]
        excess[role] += shares[unit]
    return chosen
