"""What a policy says of each image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Decision:
    """exit: bool [N], this stage answers. label: int [N], the answer where it exits, else the likelier class.

    probability: float [N], P(class 1) for two classes, else that of `label`.
    """

    exit: NDArray[np.bool_]
    label: NDArray[np.int64]
    probability: NDArray[np.float64]

    @property
    def coverage(self) -> float:
        """Share of images that exit, 0.0 for none."""
        return float(self.exit.mean()) if len(self.exit) else 0.0
