"""What one simulated draw of a population answers, and what many of them amount to.

A topic is a file of this package with `CASES`: a tuple of `Case`. A case draws data of a known population, asks the
product, and returns an `Answer` for each row of the table. To add one: a file with CASES, and its name in TOPICS of
benchmarks/intervals.py. Results are kept by topic (results/TOPIC.json, results/TOPIC.old.json), so a topic is measured
without the others.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one draw. covered: the interval holds the truth; None: no interval was printed.

    false_claim: a verdict ("better", FITS, "disagree") was given and is false; None: this row gives no verdict.
    width: of the interval, None where there is none or it is not asked.
    """

    covered: bool | None
    false_claim: bool | None = None
    width: float | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """name: the population, "10 groups of 20". draw: generator -> row of the table ("compare: AUGRC") -> answer.

    share: how many draws this case gets of those asked for (a slow one less, a close one more), > 0.
    """

    name: str
    draw: Callable[[np.random.Generator], Mapping[str, Answer]]
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Tally:
    """One row of the table. draws; intervals: draws that printed one; claims: draws in which a verdict could be."""

    row: str
    case: str
    draws: int
    intervals: int
    covered: int
    claims: int
    false_claims: int
    width: float | None

    @property
    def coverage(self) -> float | None:
        return self.covered / self.intervals if self.intervals else None

    @property
    def false_rate(self) -> float | None:
        return self.false_claims / self.claims if self.claims else None


def interval_answer(low: float | None, high: float | None, truth: float, false_claim: bool | None = None) -> Answer:
    """The answer of an interval as documents hold it: null where there is none."""
    if low is None or high is None or math.isnan(low) or math.isnan(high):
        return Answer(None, false_claim)
    return Answer(low - 1e-12 <= truth <= high + 1e-12, false_claim, high - low)


def simulate(cases: tuple[Case, ...], draws: int, seed: int, only: str | None = None) -> list[dict[str, Any]]:
    """The tallies of all cases whose name holds `only`, as dictionaries; each case has a generator of its own."""
    found: list[dict[str, Any]] = []
    for case in cases:
        if only is not None and only not in case.name:
            continue
        rng = np.random.default_rng([seed, *case.name.encode()])
        count = max(1, round(draws * case.share))
        start = time.process_time()
        answers = [case.draw(rng) for _ in range(count)]
        # a metric may be undefined in a draw: then that draw has no such row
        for row in dict.fromkeys(name for answer in answers for name in answer):
            found.append(asdict(_tally(row, case.name, [answer[row] for answer in answers if row in answer])))
        print(f"{case.name}: {count} draws, {time.process_time() - start:.0f} s CPU", flush=True)
    return found


def standard_error(rate: float, draws: int) -> float:
    """Of a rate among `draws` independent ones.

    >>> round(standard_error(0.95, 400), 4)
    0.0109
    """
    return math.sqrt(rate * (1.0 - rate) / draws)


def _tally(row: str, case: str, answers: list[Answer]) -> Tally:
    printed = [answer for answer in answers if answer.covered is not None]
    judged = [answer for answer in answers if answer.false_claim is not None]
    widths = [answer.width for answer in printed if answer.width is not None]
    return Tally(
        row,
        case,
        len(answers),
        len(printed),
        sum(bool(answer.covered) for answer in printed),
        len(judged),
        sum(bool(answer.false_claim) for answer in judged),
        float(np.median(widths)) if widths else None,
    )
