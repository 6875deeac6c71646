"""What came in the last hour, minute by minute, at a cost that does not grow with it.

It is of this process alone and begins with it: the store has the whole history, and no page should read millions of
rows every few seconds.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MINUTES = 60
# Latencies are counted in bins whose edges grow by a twentieth: a quantile is right to 2.5 %, from .1 ms to a minute.
_FIRST_MS, _RATIO, _BINS = 0.1, 1.05, 273


@dataclass(slots=True)
class _Minute:
    number: int
    exits: int = 0
    defers: int = 0
    bins: list[int] = field(default_factory=lambda: [0] * _BINS)


class Traffic:
    """began: epoch seconds at which this process began to count.

    >>> traffic = Traffic(began=0.0)
    >>> traffic.count(exits=3, defers=1, latency_ms=10.0, now=70.0)
    >>> found = traffic.document(now=130.0)
    >>> found["images"], found["exits"], [bar["exits"] for bar in found["bars"][-2:]], found["latency_ms"]["p50"]
    (4, 3, [3, 0], 10.0)
    """

    def __init__(self, began: float) -> None:
        self._began = began
        self._minutes: deque[_Minute] = deque(maxlen=MINUTES)
        self._lock = threading.Lock()

    def count(self, exits: int, defers: int, latency_ms: float, now: float) -> None:
        """The images of one request that was answered at `now` (epoch seconds)."""
        with self._lock:
            number = int(now // 60)
            # A clock that was set back counts into the newest minute: the hour on the page never has two of one.
            if not self._minutes or number > self._minutes[-1].number:
                self._minutes.append(_Minute(number))
            minute = self._minutes[-1]
            minute.exits += exits
            minute.defers += defers
            minute.bins[_bin(latency_ms)] += exits + defers

    def document(self, now: float) -> dict[str, Any]:
        """images, exits, bars (the last MINUTES minutes, oldest first: exits and defers), latency_ms (p50 and p99 of an
        image, None without one), since (epoch seconds: the later of the process's start and an hour ago).
        """
        with self._lock:
            last = max(int(now // 60), self._minutes[-1].number if self._minutes else 0)
            kept = {minute.number: minute for minute in self._minutes if minute.number > last - MINUTES}
            bins = [sum(column) for column in zip(*(minute.bins for minute in kept.values()), strict=True)]
            bars = [
                {"exits": minute.exits, "defers": minute.defers} if minute else {"exits": 0, "defers": 0}
                for minute in (kept.get(number) for number in range(last - MINUTES + 1, last + 1))
            ]
        exits = sum(bar["exits"] for bar in bars)
        return {
            "images": exits + sum(bar["defers"] for bar in bars),
            "exits": exits,
            "bars": bars,
            "latency_ms": {"p50": _quantile(bins, 0.5), "p99": _quantile(bins, 0.99)},
            "since": max(self._began, (last - MINUTES + 1) * 60.0),
        }


def _bin(latency_ms: float) -> int:
    if latency_ms <= _FIRST_MS:
        return 0
    return min(_BINS - 1, round(math.log(latency_ms / _FIRST_MS) / math.log(_RATIO)))


def _quantile(bins: Sequence[int], share: float) -> float | None:
    """The middle of the bin in which the smallest value lies that at least `share` of all do not exceed."""
    left = share * sum(bins)
    if left == 0:
        return None
    for index, number in enumerate(bins):
        left -= number
        if left <= 0:
            return float(f"{_FIRST_MS * _RATIO**index:.2g}")
    raise AssertionError("the last bin holds what is left")
