"""Claims for slices (city, night): the same risks in each part of the data, with the price of asking many times.

The thresholds were chosen on all calibration units, so a slice may not be tested at them alone. Each slice walks the
same path of val_select from its start, at delta / S for S slices, on its own units; where it gets as far as the chosen
place, every pair up to there holds, whichever was chosen. All slice claims are then jointly true with confidence 1 -
delta (Bonferroni).
That is besides the claim for all images, which has its own 1 - delta.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError
from stage1.scores import Scores

Bools = NDArray[np.bool_]
MOST_SLICES = 50
"""More, and each is tested at a delta that no real slice can pay."""


@dataclass(frozen=True, slots=True)
class SliceCounts:
    """One risk in one slice at the chosen thresholds: errors among n, and an upper bound.

    bound: where the slice is claimed, all risks of it together at 1 - delta / S (policy/joint.py), else 1: nothing is
    claimed. alone: of this risk alone at 1 - delta / S; no claim, and not written.
    """

    target: float
    observed: float | None
    bound: float
    n: int
    errors: int
    alone: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class SliceClaim:
    """Whether every risk of the target holds where `attribute` is `value`. n: units; delta: spent on the slice.

    own: it has thresholds of its own (policy/in_slices.py): then lo, hi are they, None: that side never exits; exits:
    units that exit; reason, needed: why it is not certified, and what that takes. Else one pair is for all images.
    """

    attribute: str
    value: str
    n: int
    delta: float
    certified: bool
    risks: Mapping[str, SliceCounts]
    own: bool = False
    lo: float | None = None
    hi: float | None = None
    exits: int | None = None
    reason: str | None = None
    needed: str | None = None

    def to_document(self) -> dict[str, Any]:
        """Plain values of certificate.json; without what only slices with thresholds of their own have, for others."""
        document = {name: getattr(self, name) for name in self.__slots__ if self.own or name not in _OF_OWN}
        plain = [name for name in SliceCounts.__slots__ if name != "alone"]
        risks = {name: {key: getattr(counts, key) for key in plain} for name, counts in self.risks.items()}
        return {**document, "risks": risks}

    @property
    def name(self) -> str:
        return f"{self.attribute}={self.value}"


_OF_OWN = ("own", "lo", "hi", "exits", "reason", "needed")


def listed(names: Sequence[str]) -> str:
    """ "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def slice_rows(scores: Scores, attributes: Sequence[str]) -> list[tuple[str, str, Bools]]:
    """(attribute, value, rows bool [N]) of every value of the attributes, in order of names.

    Raises ConfigError where the scores lack an attribute, or there are more than 50 slices.
    """
    found = []
    for attribute in attributes:
        if attribute not in scores.slices:
            known = ", ".join(scores.slices) or "none"
            raise ConfigError(f"slices: {attribute!r} is not among the columns of these scores ({known})")
        column = scores.slices[attribute]
        found += [(attribute, str(value), column == value) for value in np.unique(column)]
    if len(found) > MOST_SLICES:
        raise ConfigError(
            f"slices: {', '.join(attributes)} have {len(found)} values; at most {MOST_SLICES} (each pays its share of"
            " delta)"
        )
    return found


def slice_claims(
    rows: Sequence[tuple[str, str, Bools]],
    delta: float,
    test: Callable[[Bools, float], bool],
    measure: Callable[[Bools, float, bool], dict[str, SliceCounts]],
) -> tuple[SliceClaim, ...]:
    """A claim for each slice. test(rows, delta): whether its own walk along the path reaches the chosen place.

    measure(rows, delta, held): the counts there, with bounds where the slice is claimed.
    """
    part = delta / max(len(rows), 1)
    claims = []
    for attribute, value, inside in rows:
        held = test(inside, part)
        claims.append(SliceClaim(attribute, value, int(inside.sum()), part, held, measure(inside, part, held)))
    return tuple(claims)


def slices_sentence(claims: Sequence[SliceClaim], confidence: float, percent: Callable[[float], str]) -> str:
    """Which slices hold, and at what price; "" for none."""
    if not claims:
        return ""
    held = [claim.name for claim in claims if claim.certified]
    missed = [claim.name for claim in claims if not claim.certified]
    price = (
        f"jointly with confidence {percent(confidence)} for the {len(claims)} slices asked for (each at "
        f"{percent(1 - claims[0].delta)}), besides the claim above"
    )
    text = (
        f" The same risks hold in each of {', '.join(held)}, {price}."
        if held
        else f" In no slice is this shown, {price}."
    )
    if held and missed:
        text += f" Not shown for {', '.join(missed)}."
    return text
