"""From the answers of all stages to that of the cascade: one pure function, for single images and for certificates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
DEFAULT = -1


@dataclass(frozen=True, slots=True)
class Rule:
    """When one stage exits, and what it says where it has to answer without exiting.

    kind: own (the exits of its bundle's policy), thresholds (below, above; None: that side never exits), or always.
    answer_above: the second class above this probability.
    """

    kind: Literal["own", "thresholds", "always"]
    below: float | None = None
    above: float | None = None
    answer_above: float = 0.5

    def exits(self, probability: Floats, own: Ints) -> tuple[Bools, Bools]:
        """(exits as the first class, as the second), bool [N]; NaN (no answer) never exits. own: -1, 0 or 1 [N]."""
        answered = np.isfinite(probability)
        if self.kind == "own":
            return answered & (own == 0), answered & (own == 1)
        if self.kind == "always":
            second = probability > self.answer_above
            return answered & ~second, answered & second
        never = np.zeros(len(probability), dtype=np.bool_)
        with np.errstate(invalid="ignore"):
            first = never if self.below is None else answered & (probability < self.below)
            second = never if self.above is None else answered & (probability > self.above)
        return first, second & ~first

    def to_document(self) -> dict[str, Any]:
        return {"kind": self.kind, "below": self.below, "above": self.above, "answer_above": self.answer_above}


@dataclass(frozen=True, slots=True)
class Recorded:
    """What S stages said of N images. probability: float [N, S], NaN where there is no answer; own: int [N, S], the
    exit of the bundle's policy, -1 none; outcome: str [N, S], "" where the stage was not asked; attempts, milliseconds:
    [N, S]; waited_ms: [N, S], for a budget of attempts a minute, not in milliseconds."""

    images: NDArray[np.str_]
    probability: Floats
    own: Ints
    outcome: NDArray[np.str_]
    attempts: Ints
    milliseconds: Floats
    waited_ms: Floats

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows: Any) -> Recorded:
        """The rows given by an index or boolean array."""
        return Recorded(*(getattr(self, name)[rows] for name in self.__slots__))


@dataclass(frozen=True, slots=True)
class Final:
    """The answers of the whole. positive: bool [N], the second class; probability: float [N]; stage: int [N], who
    answered, -1 the default; fallback: bool [N], a stage that did not exit had to answer, as those after it failed;
    asked: bool [N, S].
    """

    positive: Bools
    probability: Floats
    stage: Ints
    fallback: Bools
    asked: Bools


def final_answers(recorded: Recorded, rules: tuple[Rule, ...], default_probability: float = 0.5) -> Final:
    """The answer of the first stage that exits; else of the last one that answered at all; else the default."""
    n = len(recorded)
    positive = np.full(n, default_probability > 0.5)
    probability = np.full(n, default_probability)
    stage = np.full(n, DEFAULT, dtype=np.int64)
    fallback = np.ones(n, dtype=np.bool_)
    asked = np.zeros((n, len(rules)), dtype=np.bool_)
    left = np.ones(n, dtype=np.bool_)
    for place, rule in enumerate(rules):
        said = recorded.probability[:, place]
        asked[:, place] = left
        first, second = rule.exits(said, recorded.own[:, place])
        leaves = left & (first | second)
        # Kept until a later stage answers: if all of those fail, this is the answer.
        stands = left & np.isfinite(said)
        positive[stands] = np.where(leaves, second, said > rule.answer_above)[stands]
        probability[stands] = said[stands]
        stage[stands] = place
        fallback[leaves] = False
        left &= ~leaves
    return Final(positive, probability, stage, fallback, asked)
