"""SCRC with more than two classes: which classes keep their claim, and which have too few labels and are shut.

A class whose risk not even calibration images without an error could certify has no floor. In every set, it would let
no image exit as another class. Instead it is shut: no image exits as it (an image of which it is the likeliest class
defers), it is in no other set, and nothing is claimed of its own images. Every other class keeps its own risk, counted
among its own images: whether class a is in the set of an image of class a does not depend on class b.

Why shutting costs nothing (variant I). tau depends on the confidences alone. Given tau, the calibration images above it
are independent draws of P(. | selected); given their labels too, so are the scores of each class. Which classes are
kept, how many they are and what each may spend is decided by tau and the number of selected images of each class, not
by a score. Given these, each floor is an order statistic of the scores of its own class, false with probability at most
d = 1 - (1 - r)^(1 / kept), and the floors are independent: all hold with probability >= 1 - r, whatever was kept, so
also on average; with coverage, a fact of tau, (1 - delta_coverage) (1 - r) = 1 - delta.

Variant T promises a mean over calibration sets and image, for the sets in which the class is kept. Let B be the n + 1
images, tau their cut, S_a the selected ones of class a, s of them above tau. Each of S_a is as likely the new one, i.
Kept means: enough images of class a above `lower`, the cut of the n others. If no image but those selected is at the
cut, `lower` lies below all of S: every i sees the same |S_a| - 1, and conformal risk control bounds the sum of the
losses. Else `lower` = tau for each i: one above it sees s - 1, one at it sees s. Either all of S_a see enough, which is
the same sum; or only those at tau do: these defer (`ScrcPolicy.exits`), their loss is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log1p

from stage1.risk.conformal import allowed_losses
from stage1.risk.testing import minimum_samples, order_statistic_rank

FEWEST = 2
"""Classes that must be kept: of one answer alone, nothing that is claimed could be false."""


@dataclass(frozen=True, slots=True)
class Claims:
    """classes: indices that keep their claim; delta: of each of their risks; delta_of_all: if every class had one."""

    classes: tuple[int, ...]
    delta: float
    delta_of_all: float


def each_of(delta: float, count: int) -> float:
    """What each of `count` independent claims may spend, so that all hold with probability >= 1 - delta.

    >>> round(each_of(0.05, 2), 5)
    0.02532
    """
    return float(1.0 - (1.0 - delta) ** (1.0 / count))


def kept_inductive(members: Sequence[int], targets: Sequence[float], delta: float) -> Claims:
    """The most classes that can all be certified together with `delta`; none where not even two can.

    members: selected calibration images of each class. A class that is left out would not pass beside those that are
    kept: with one risk more, each has less to spend.

    >>> kept_inductive([300, 300, 40, 5], [0.05] * 4, delta=0.05).classes
    (0, 1)
    """
    count = len(members)
    of_all = each_of(delta, count)
    # (1 - target)^members is the p-value without errors: the least of them stay longest, whatever each may spend.
    order = sorted(range(count), key=lambda k: members[k] * log1p(-targets[k]))
    for size in range(count, FEWEST - 1, -1):
        each = each_of(delta, size)
        if all(order_statistic_rank(members[k], targets[k], each) > 0 for k in order[:size]):
            return Claims(tuple(sorted(order[:size])), each, of_all)
    return Claims((), of_all, of_all)


def kept_transductive(members: Sequence[int], targets: Sequence[float], delta: float) -> Claims:
    """Classes of which conformal risk control allows a floor; none where these are fewer than two. delta: not spent.

    >>> kept_transductive([300, 19, 18], [0.05] * 3, delta=0.05).classes
    (0, 1)
    """
    found = tuple(
        k for k, (m, target) in enumerate(zip(members, targets, strict=True)) if allowed_losses(m, target) >= 0
    )
    return Claims(found if len(found) >= FEWEST else (), delta, delta)


def needed_without_error(target: float, delta: float, variant: str) -> int:
    """Selected images of a class that certify `target` where none of them is lost.

    >>> needed_without_error(0.05, 0.05, "I"), needed_without_error(0.05, 0.05, "T")
    (59, 19)
    """
    if variant == "I":
        return minimum_samples(target, delta)
    least = max(int(1 / target) - 2, 0)
    while allowed_losses(least, target) < 0:
        least += 1
    return least


def reached(n: int, delta: float, variant: str) -> float:
    """The least target that n selected images of a class certify without an error, 1.0 for none.

    >>> round(reached(59, 0.05, "I"), 4), reached(19, 0.05, "T")
    (0.0495, 0.05)
    """
    if not n:
        return 1.0
    return float(1.0 - delta ** (1.0 / n)) if variant == "I" else 1.0 / (n + 1)
