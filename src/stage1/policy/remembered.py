"""What was computed of the last rule: a certificate asks the same of one rule several times, over all its units."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

Made = TypeVar("Made")


class Remembered(Generic[Made]):
    """Keeps one value, that of the rule (by identity) that was asked about last.

    >>> kept, rule = Remembered[int](), object()
    >>> kept.of(rule, lambda: 1), kept.of(rule, lambda: 2), kept.of(object(), lambda: 3)
    (1, 1, 3)
    """

    def __init__(self) -> None:
        self._last: tuple[object, Made] | None = None

    def of(self, rule: object, make: Callable[[], Made]) -> Made:
        """The value of `rule`, made where it is another rule than the last."""
        if self._last is None or self._last[0] is not rule:
            self._last = rule, make()
        return self._last[1]
