"""What a person sees while a run works: lines and bars on stderr; stdout stays for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_PLAIN_EVERY_SECONDS = 10.0


class Advance(Protocol):
    """Called with how many more items are done and, optionally, a note such as "212 img/s"."""

    def __call__(self, done: int = 1, note: str = "") -> None: ...


class Progress:
    """Lines on stderr; bars where stderr is a terminal, a line every ten seconds elsewhere. quiet: nothing at all."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet

    def say(self, text: str) -> None:
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, what: str, total: int, done: int = 0) -> Iterator[Advance]:
        """A bar over `total` items, for the length of the block; done: how many are behind before it begins."""
        if self.quiet:
            yield lambda done=1, note="": None
        elif sys.stderr.isatty():
            yield from self._rich(what, total, done)
        else:
            yield self._plain(what, total, done)

    def _rich(self, what: str, total: int, before: int) -> Iterator[Advance]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        # A step of a backbone may take a minute: the time that is left follows from the pace of the last five.
        period = 300.0
        with Bars(*columns, console=Console(stderr=True), transient=True, speed_estimate_period=period) as bars:
            task = bars.add_task(what, total=total, completed=before, note="")

            def advance(done: int = 1, note: str = "") -> None:
                bars.update(task, advance=done, note=note)

            yield advance

    def _plain(self, what: str, total: int, before: int) -> Advance:
        counted, begun = before, time.monotonic()
        last = begun

        def advance(done: int = 1, note: str = "") -> None:
            nonlocal counted, last
            counted += done
            if time.monotonic() - last >= _PLAIN_EVERY_SECONDS:
                last = time.monotonic()
                left = time_left(last - begun, counted - before, total - counted)
                self.say(", ".join(part for part in (f"  {what}: {counted}/{total}", left, note) if part))

        return advance


def time_left(seconds: float, done: int, rest: int) -> str:
    """In words, at the pace at which `done` items took `seconds`; nothing where none is done or none is left.

    >>> time_left(30.0, 10, 25)
    '75 s left'
    >>> time_left(30.0, 10, 250)
    '12 min left'
    """
    if done <= 0 or rest <= 0:
        return ""
    left = seconds * rest / done
    return f"{left:.0f} s left" if left < 100 else f"{left / 60:.0f} min left"
