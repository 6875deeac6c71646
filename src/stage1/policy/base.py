"""What a policy says of each image, and what every policy can do."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from stage1.policy.certificate import Certificate
from stage1.scores import Scores


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


class Policy(Protocol):
    """A fitted exit policy: softmax, gate or SCRC."""

    @property
    def name(self) -> str: ...

    @property
    def classes(self) -> tuple[str, ...]: ...

    @property
    def certified(self) -> bool: ...

    @property
    def certificate(self) -> Certificate | None: ...

    @property
    def margin_thresholds(self) -> tuple[float | None, float | None]:
        """(lo, hi) on Scores.margin with the same exits, None: that side never exits; both None where there are
        none.
        """
        ...

    def decide(self, scores: Scores) -> Decision:
        """Exit, label and probability of every row."""
        ...

    def to_document(self) -> dict[str, Any]:
        """Plain values of the policy file."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy file, whole or not at all."""
        ...
