"""Looks at calibration images, counted: what they cost in confidence, as pure functions of the looks that are known.

A look is a certificate that was asked for: of a target, model, policy, seed, unit, slices, thresholds, views, on a set
of calibration images. Asked again it is the same look; on images that grew it is another. Two looks overlap where any
image is in both. Look i tests at delta_i; whatever its images say, it is false with probability at most delta_i.

| schedule | delta of a look | the headline is 1 minus |
|---|---|---|
| plain | delta | the sum of the deltas of all looks that overlap this one, itself included: j delta for j alike |
| planned: K | delta / K, at most K looks | delta, and the deltas of overlapping looks outside the plan |
| sequential | 6 delta / (pi^2 j^2) for the j-th | delta, and the deltas of overlapping looks outside the schedule |

What a headline c means, where what is asked in look j was not itself made from what the images said in the looks
before (a list of targets or models that was fixed; docs/GUARANTEES.md):

1. This look and the others that it counts are all true with probability at least c. It is the union bound over them;
   how they depend on each other does not matter.
2. For any c fixed beforehand: of the looks at one set of images that ever had a headline of c or more, any is false
   with probability at most 1 - c, whatever made somebody go on or stop, and whichever is shipped. Proof: headlines fall
   from look to look (in a plan they stay, and the plan has one budget), so these are the first m looks, for an m that
   depends on the deltas alone, and their deltas sum to at most 1 - c.
3. Planned and sequential: all looks of the plan, however many will follow, are true together with probability 1 - delta
   (the sum of 6 / (pi^2 j^2) over all j is 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import pi
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError

Keys = NDArray[np.uint64]
Schedule = Literal["plain", "sequential"]
NOTHING_LEFT = (
    "Nothing is left to promise: the looks at these calibration images may be false with probability {} in all."
)


@dataclass(frozen=True, slots=True)
class Plan:
    """How delta is spent on looks. planned: so many share it; schedule: sequential, for labels that arrive over time.

    >>> Plan(planned=5).delta(0.05, 3), round(Plan(schedule="sequential").delta(0.05, 2), 6)
    (0.01, 0.007599)
    """

    planned: int | None = None
    schedule: Schedule = "plain"

    def __post_init__(self) -> None:
        if self.schedule not in ("plain", "sequential"):
            raise ConfigError(f"attempts.schedule: {self.schedule!r} is unknown; use plain or sequential")
        if self.planned is not None and (isinstance(self.planned, bool) or self.planned < 1):
            raise ConfigError(f"attempts.planned: must be at least 1, got {self.planned}")
        if self.planned is not None and self.schedule == "sequential":
            raise ConfigError(
                f"attempts.planned={self.planned} with attempts.schedule=sequential: give one of them (planned: a"
                " number of looks known beforehand; sequential: labels that arrive over time)"
            )

    @property
    def shares(self) -> bool:
        """Whether several looks spend one delta."""
        return self.planned is not None or self.schedule == "sequential"

    def delta(self, delta: float, number: int) -> float:
        """What look `number` of the plan, from 1 on, may spend of `delta`."""
        if self.schedule == "sequential":
            return 6.0 * delta / (pi * number) ** 2
        return delta if self.planned is None else delta / self.planned


@dataclass(frozen=True, slots=True)
class ImageSet:
    """The calibration images of a look. digest: of the set; keys: uint64 [M], one an image, sorted, each once.

    by: what the keys are of (policy/image_keys.py): "id"; "content" where there are no ids; "digest": an earlier
    version kept the digest alone, and keys are empty.

    >>> first = ImageSet("a" * 64, np.array([1, 2], dtype=np.uint64), 2)
    >>> first.shared(ImageSet("b" * 64, np.array([2, 3], dtype=np.uint64), 2))
    1
    """

    digest: str
    keys: Keys = field(compare=False)
    n: int
    by: Literal["id", "content", "digest"] = "id"

    def shared(self, other: ImageSet) -> int:
        """How many images are in both, 0 where the looks at them do not overlap; the digest alone says: all or none.

        By id one image is enough. By content, where other images may have the same scores by chance, a quarter of the
        smaller set.
        """
        if self.digest == other.digest:
            return max(self.n, 1)
        if self.by != other.by:
            return 0
        both = _in_both(self.keys, other.keys)
        return both if self.by == "id" or 4 * both >= min(len(self.keys), len(other.keys)) else 0


def _in_both(one: Keys, other: Keys) -> int:
    """How many keys are in both; each sorted, without repeats. The smaller is looked up in the larger."""
    few, many = sorted((one, other), key=len)
    if not len(few):
        return 0
    places = np.minimum(np.searchsorted(many, few), len(many) - 1)
    return int((many[places] == few).sum())


@dataclass(frozen=True, slots=True)
class Look:
    """One certificate that was asked for. look: digest of what was asked of which model; with the images its identity.

    wish: the confidence that was asked for; confidence: that of its own tests, 1 - delta_i. None: an earlier version
    did not keep them. asked: in words, for people.
    """

    look: str
    images: ImageSet
    wish: float | None = None
    confidence: float | None = None
    plan: Plan = Plan()
    asked: Mapping[str, Any] = field(default_factory=dict, compare=False)

    @property
    def identity(self) -> tuple[str, str]:
        return self.look, self.images.digest


@dataclass(frozen=True, slots=True)
class Attempts:
    """What the headline of a certificate counts. number: looks that overlap it, itself included.

    spent: the probability with which any of them is false, at most; headline_confidence: 1 - spent, what is true.
    asked_confidence: what was wished for. ledger: digest of the looks that were known; look: which of them this is.

    >>> Attempts.of(0.95, 2).headline_confidence
    0.9
    """

    number: int
    spent: float
    headline_confidence: float
    asked_confidence: float
    planned: int | None = None
    schedule: Schedule = "plain"
    ledger: str | None = None
    look: str | None = None

    @classmethod
    def of(cls, confidence: float, number: int) -> Attempts:
        """`number` looks alike, counted by the caller."""
        return cls(number, *_spent(number * (1.0 - confidence)), confidence)

    @property
    def reduced(self) -> bool:
        """Whether the headline is less than what was asked for."""
        return self.headline_confidence < self.asked_confidence - 1e-9

    @property
    def reason(self) -> str | None:
        """Why nothing can be promised any more; None: something can."""
        return None if self.headline_confidence > 0 else NOTHING_LEFT.format(_percent(self.spent))


def standing(known: Sequence[Look], own: Look, wish: float, plan: Plan) -> tuple[Attempts, Look]:
    """What the headline of `own` counts, and the look with the confidence that its tests need.

    known: looks in any order, `own` among them where it was asked before; those that share no image are left out.
    Raises ConfigError where more looks are asked for than were planned.

    >>> images = ImageSet("a" * 64, np.array([1, 2], dtype=np.uint64), 2)
    >>> _, first = standing([], Look("1" * 64, images), 0.95, Plan())
    >>> second, _ = standing([first], Look("2" * 64, images), 0.95, Plan())
    >>> second.number, second.headline_confidence
    (2, 0.9)
    """
    others = [look for look in known if look.identity != own.identity and look.images.shared(own.images)]
    others = list({look.identity: look for look in others}.values())
    inside = [look for look in others if plan.shares and look.plan == plan and look.wish == wish]
    before = next((look for look in known if look.identity == own.identity and look.confidence is not None), None)
    if before is not None and before.confidence is not None:
        confidence = before.confidence
    elif plan.planned is not None and len(inside) >= plan.planned:
        raise ConfigError(
            f"attempts.planned: {plan.planned} looks at these calibration images were planned, and {len(inside)} were"
            " made; leave it out (the confidence then falls with each look), or certify on fresh images"
        )
    else:
        confidence = 1.0 - plan.delta(1.0 - wish, len(inside) + 1) if plan.shares else wish
    own = Look(own.look, own.images, wish, confidence, plan, own.asked)
    spent = sum(_delta(look, wish) for look in others if look not in inside)
    ours = sum(_delta(look, wish) for look in inside) + 1.0 - confidence
    spent += max(1.0 - wish, ours) if plan.shares else ours
    counted = Attempts(len(others) + 1, *_spent(spent), wish, plan.planned, plan.schedule, None, own.look)
    return counted, own


def _delta(look: Look, wish: float) -> float:
    return 1.0 - (wish if look.confidence is None else look.confidence)


def _spent(spent: float) -> tuple[float, float]:
    """(spent, headline): without the last digits of a sum, so that 1 - 2 x 0.05 is 0.9."""
    spent = min(round(spent, 12), 1.0)
    return spent, round(1.0 - spent, 12)


def headline(attempts: Attempts | None, confidence: float) -> float:
    """The confidence that is printed; confidence: of the tests of a certificate whose looks were not counted."""
    return confidence if attempts is None else attempts.headline_confidence


def counted_words(attempts: Attempts | None, confidence: float) -> str:
    """The sentences of a statement on what its confidence counts; "" where there is nothing to say.

    confidence: of the tests of this look alone.
    """
    if attempts is None:
        return ""
    number, said = attempts.number, ""
    this = f" This is look {number} at these calibration images"
    if attempts.planned is not None:
        each = _percent(1.0 - confidence)
        said = f"{this}; {attempts.planned} were planned, each tested at {each}: all of them hold together."
    elif attempts.schedule == "sequential":
        each = _percent(1.0 - confidence)
        said = f"{this}, tested at {each} (sequential schedule): all looks, however many follow, hold together."
    elif number > 1:
        return (
            f"{this}: with probability at most {_percent(attempts.spent)} one of the {number} is false, so the"
            f" confidence is {_percent(attempts.headline_confidence)}, not {_percent(attempts.asked_confidence)}."
        )
    if said and attempts.reduced:
        said += (
            f" Other looks at these images cost confidence as well: it is {_percent(attempts.headline_confidence)}, not"
            f" {_percent(attempts.asked_confidence)}."
        )
    return said


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"
