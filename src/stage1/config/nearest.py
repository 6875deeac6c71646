"""The known name that a wrong one was meant to be, for messages."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def nearest(name: str, known: Sequence[str]) -> str:
    """The question "; did you mean 'NAME'?" with the known name that comes nearest, or nothing where none does."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        tail = name.rsplit(".", 1)[-1]
        close = [key for key in known if key.rsplit(".", 1)[-1] == tail][:1] or [
            key for key in known if difflib.get_close_matches(tail, [key.rsplit(".", 1)[-1]], n=1, cutoff=0.7)
        ][:1]
    return f"; did you mean {close[0]!r}?" if close else ""
