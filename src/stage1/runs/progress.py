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
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        """A bar over `total` items, for the length of the block."""
        if self.quiet:
            yield lambda done=1, note="": None
        elif sys.stderr.isatty():
            yield from self._rich(what, total)
        else:
            yield self._plain(what, total)

    def _rich(self, what: str, total: int) -> Iterator[Advance]:
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
        with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
            task = bars.add_task(what, total=total, note="")

            def advance(done: int = 1, note: str = "") -> None:
                bars.update(task, advance=done, note=note)

            yield advance

    def _plain(self, what: str, total: int) -> Advance:
        counted, last = 0, time.monotonic()

        def advance(done: int = 1, note: str = "") -> None:
            nonlocal counted, last
            counted += done
            if time.monotonic() - last >= _PLAIN_EVERY_SECONDS:
                last = time.monotonic()
                self.say(f"  {what}: {counted}/{total} {note}".rstrip())

        return advance
