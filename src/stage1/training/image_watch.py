"""What a training run on images tells its caller while it works."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


def _nothing(*_: Any) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Watch:
    """Calls of the first process, in this order; by default nothing.

    begun(what, total, done): a phase begins, of `total` images of which `done` are behind already (after a resume).
    seen(images, note): so many more images of the phase are done. The phases: "statistics", then "images", which all
    epochs go through to train and to validate. said(line): what was planned for a time budget, between the two.
    """

    begun: Callable[[str, int, int], None] = _nothing
    seen: Callable[[int, str], None] = _nothing
    said: Callable[[str], None] = _nothing
