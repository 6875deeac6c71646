"""A time budget for training on images: what is planned for it, from the measured time of a few steps; when it is over.

The clock counts from the first look at the images, over all attempts of a run that was stopped: a checkpoint holds what
is spent. Plan and clock decide how long is trained and nothing else: a run whose budget does not run out gives the bits
of a run without a budget that has as many epochs.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from stage1.errors import ConfigError

# Of what is left at planning, kept back: the optimizer's own step and the checkpoints are not in the measured times.
RESERVE = 0.05


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured seconds of one optimizer step, images and all, and of one validation on val_select."""

    step: float
    validation: float


@dataclass(frozen=True, slots=True)
class Plan:
    """`epochs` of `steps` optimizer steps each, fewer than visit all images where not one whole epoch fits."""

    epochs: int
    steps: int
    seconds: float


def planned(costs: Costs, *, seconds: float, epochs: int, steps: int) -> Plan | None:
    """The most epochs of `steps` steps, at most `epochs`, that fit into `seconds`; else a share of one; None: no step.

    >>> planned(Costs(step=2.0, validation=10.0), seconds=1000, epochs=10, steps=75)
    Plan(epochs=5, steps=75, seconds=800.0)
    >>> planned(Costs(step=2.0, validation=10.0), seconds=100, epochs=10, steps=75)
    Plan(epochs=1, steps=42, seconds=94.0)
    >>> planned(Costs(step=2.0, validation=10.0), seconds=12, epochs=10, steps=75) is None
    True
    """
    usable = seconds * (1.0 - RESERVE)
    epoch = steps * costs.step + costs.validation
    if usable >= epoch:
        whole = min(int(usable // epoch), epochs)
        return Plan(whole, steps, whole * epoch)
    part = math.floor((usable - costs.validation) / costs.step)
    return Plan(1, part, part * costs.step + costs.validation) if part >= 1 else None


class Budget:
    """`minutes` of wall time, of which earlier attempts have spent `spent` seconds; clock: seconds, for tests.

    validation: seconds that one is expected to take, kept free so that what was trained last is judged in time.
    """

    def __init__(self, minutes: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.minutes, self.validation = minutes, 0.0
        self._clock, self._begun, self._before = clock, clock(), 0.0

    @property
    def spent(self) -> float:
        """Seconds, earlier attempts included."""
        return self._before + self._clock() - self._begun

    @property
    def left(self) -> float:
        return 60.0 * self.minutes - self.spent

    @property
    def over(self) -> bool:
        """Whether no time is left but for a validation."""
        return self.left <= self.validation

    def resume(self, spent: float) -> None:
        """Count the seconds of earlier attempts."""
        self._before = spent

    def plan(self, costs: Costs, *, epochs: int, steps: int, images: int, batch: int) -> tuple[Plan, str]:
        """What fits into the time that is left, and the line that says so. Raises ConfigError where no step does."""
        before, left = self.spent, self.left
        found = planned(costs, seconds=left, epochs=epochs, steps=steps)
        measured = f"{costs.step:.2g} s a step of {batch}"
        if found is None:
            least = (before + (costs.step + costs.validation) / (1.0 - RESERVE)) / 60.0
            raise ConfigError(
                f"images.minutes={self.minutes:g}: not one step fits ({before:.2g} s of preparation, {measured},"
                f" {costs.validation:.2g} s for val_select); set it to {math.ceil(100 * least) / 100:g} or more"
            )
        self.validation = costs.validation
        total = _minutes((before + found.seconds) / 60.0)
        what = f"{found.epochs} epoch{'s' * (found.epochs > 1)}"
        if found.steps < steps:
            what = f"{found.steps} of the {steps} steps of one epoch"
        elif found.epochs == epochs:
            what += " (all of images.epochs)"
        return found, f"{images:,} images, {measured}: {what} in {total} of {self.minutes:g} minutes"


def _minutes(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
