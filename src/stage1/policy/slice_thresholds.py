"""A rule with thresholds of its own for each value of one attribute: exit as its own value's pair says, or defer.

An image whose value is unknown, or that no certificate speaks of, defers whatever its score.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.policy.closed_form import Thresholds
from stage1.scores import Scores
from stage1.scores.columns import is_blank

Bools = NDArray[np.bool_]
Texts = NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class SliceThresholds:
    """Thresholds by value of `attribute` (a key of Scores.slices); a pair of two None: that slice always defers.

    >>> rule = SliceThresholds("city", {"a": Thresholds(-1.0, 1.0), "b": Thresholds(None, None)})
    >>> scores = Scores(np.array([[0, -3.0], [0, 3.0], [0, 3.0], [0, 3.0]]), slices={"city": ["a", "a", "b", "z"]})
    >>> as_negative, as_positive = rule.exits(scores.margin, rule.column(scores))
    >>> (as_negative | as_positive).tolist(), str(rule.reasons(scores)[3])
    ([True, True, False, False], "city 'z' is none of the calibrated ones")
    """

    attribute: str
    pairs: Mapping[str, Thresholds]

    def column(self, scores: Scores) -> Texts:
        """The value of each row, str [N]; "" where it is not known."""
        known = scores.slices.get(self.attribute)
        return np.full(len(scores), "", dtype=np.str_) if known is None else known

    def exits(self, score: NDArray[np.float64], column: Texts) -> tuple[Bools, Bools]:
        """(exits as 0, exits as 1), bool [N] each, by the pair of each row's own value."""
        places = {value: place for place, value in enumerate(self.pairs)}
        edges = np.array([[edge[0] for edge in pair.columns] for pair in self.pairs.values()] + [[-np.inf, np.inf]])
        unknown = len(places)
        # each row looked up once: a comparison of all rows with each of 50 values takes twice as long
        lo, hi = edges[[places.get(value, unknown) for value in column.tolist()]].T
        return score < lo, score > hi

    def reasons(self, scores: Scores) -> Texts:
        """Why a row defers whatever its score, str [N]; "" where its own thresholds decide."""
        column = self.column(scores)
        found = np.full(len(column), "", dtype=object)
        for value in np.unique(column).tolist():
            pair = self.pairs.get(value)
            if is_blank(value):
                found[column == value] = f"its {self.attribute} is not known"
            elif pair is None:
                found[column == value] = f"{self.attribute} {value!r} is none of the calibrated ones"
            elif pair.lo is None and pair.hi is None:
                found[column == value] = f"nothing is certified for {self.attribute} {value!r}"
        return found.astype(np.str_)

    def answers(self) -> set[int]:
        """The classes that some image may exit as."""
        sides = [(pair.lo, pair.hi) for pair in self.pairs.values()]
        return {side for side in (0, 1) if any(pair[side] is not None for pair in sides)}

    def to_document(self) -> dict[str, Any]:
        """Plain values for a policy file."""
        rows = [{"value": value, "lo": pair.lo, "hi": pair.hi} for value, pair in self.pairs.items()]
        return {"attribute": self.attribute, "values": rows}

    @classmethod
    def from_document(cls, document: Mapping[str, Any] | None) -> SliceThresholds | None:
        """The inverse of to_document; None for None (a policy with one pair for all)."""
        if document is None:
            return None
        rows: Iterable[Mapping[str, Any]] = document["values"]
        return cls(document["attribute"], {row["value"]: Thresholds(row["lo"], row["hi"]) for row in rows})


def decided(
    pair: Thresholds, by_slice: SliceThresholds | None, score: NDArray[np.float64], scores: Scores
) -> tuple[Bools, Bools, Texts | None]:
    """(exits as 0, exits as 1, why not): by the slices' own thresholds where there are any, else by `pair`.

    why not: as `SliceThresholds.reasons`; None without slices.
    """
    if by_slice is None:
        return *pair.exits(score), None
    return *by_slice.exits(score, by_slice.column(scores)), by_slice.reasons(scores)
