"""How many labelled images a target takes, before any is labelled."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import ceil, sqrt

from stage1.errors import ConfigError
from stage1.risk.testing import minimum_samples


@dataclass(frozen=True, slots=True)
class ClassNeed:
    """What one risk asks of one class in val_calib.

    counted: independent images that must be counted by the test with `errors` wrong; in_class: images of the class for
    that, at the expected exit rate; in_total: images of any class for that, at the prior.
    """

    risk: str
    target: float
    side: str  # "positive" or "negative": the class whose images are counted
    errors: int
    counted: int
    in_class: int
    in_total: int


# The class whose images are counted, and whether only those that exit count.
SIDES: dict[str, tuple[str, bool]] = {
    "fnr": ("positive", True),
    "miss_rate": ("positive", False),
    "fpr": ("negative", True),
    "false_exit_rate": ("negative", False),
}


def shared_delta(confidence: float, risks: int) -> float:
    """delta of each of `risks` tests on independent classes so that all hold jointly at `confidence` (Sidak)."""
    return 1.0 - confidence if risks == 1 else 1.0 - sqrt(confidence)


def delta_of_each(risks: Collection[str], confidence: float) -> float:
    """What each risk's own test may spend: shared where each class has one risk and a rule of its own, else all of it.

    Two ratios, or two risks of one class, are tested together along a path: a pair is refused where one test fails (union
    null), and every test has the whole delta.
    """
    sides = {SIDES[name][0] for name in risks if name in SIDES}
    by_class = len(risks) == len(sides) == 2 and set(risks) != {"fnr", "fpr"}
    return shared_delta(confidence, len(risks)) if by_class else 1.0 - confidence


def plan(
    risks: Mapping[str, float],
    *,
    confidence: float = 0.95,
    prior: float = 0.5,
    exit_rates: tuple[float, float] = (0.7, 0.7),
    errors: tuple[int, ...] = (0, 1, 2, 5),
) -> list[ClassNeed]:
    """Images per class that each risk needs, for several numbers of errors to be survived.

    risks: name -> target. prior: P(y = 1) where the images come from. exit_rates: expected share of (negatives,
    positives) that exit on their right side. The n is of independent units: images, or groups where they cluster.
    Raises ConfigError for an unknown risk or a rate outside (0, 1]. Source: exact binomial, ALGORITHMS 2.1.
    """
    if not 0 < prior < 1:
        raise ConfigError(f"prior: must lie strictly between 0 and 1, got {prior}")
    delta = delta_of_each(risks, confidence)
    needs = []
    for name, target in risks.items():
        if name not in SIDES:
            raise ConfigError(
                f"risk {name!r}: has no closed form; use {', '.join(SIDES)}, or pilot scores (stage1 plan --scores FILE)"
            )
        side, only_exits = SIDES[name]
        rate = exit_rates[1 if side == "positive" else 0] if only_exits else 1.0
        if not 0 < rate <= 1:
            raise ConfigError(f"exit rate of the {side} class: must lie in (0, 1], got {rate}")
        share = prior if side == "positive" else 1 - prior
        for allowed in errors:
            counted = minimum_samples(target, delta, allowed)
            # - 1e-9: 72 / (1 - 0.8) is 360 and a float's noise
            in_class = ceil(counted / rate - 1e-9)
            needs.append(ClassNeed(name, target, side, allowed, counted, in_class, ceil(in_class / share - 1e-9)))
    return needs
