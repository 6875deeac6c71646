"""What was left out and why: the quarantine table, and the limit on how much of it a run accepts."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

from stage1.errors import DataError
from stage1.files import write_text

EXACT_DUPLICATE = "exact duplicate"
# Nothing is lost with these: the same bytes stay in the table once. They are listed, but do not count to the limit.
_HARMLESS = (EXACT_DUPLICATE,)


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One image that takes no part. reason: a short fixed phrase; detail: one line for this image."""

    path: str
    reason: str
    detail: str


class QuarantineError(DataError):
    """More was quarantined than `data.max_quarantine` allows. `.quarantine` holds the rows for quarantine.csv."""

    def __init__(self, message: str, quarantine: Sequence[Quarantined]) -> None:
        super().__init__(message)
        self.quarantine = list(quarantine)


def write_quarantine(path: str | os.PathLike[str], quarantine: Sequence[Quarantined]) -> None:
    """Write quarantine.csv (path, reason, detail; header only where nothing was left out), whole or not at all."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["path", "reason", "detail"])
    writer.writerows([item.path, item.reason, " ".join(item.detail.split())] for item in quarantine)
    # A file name on disk may hold bytes that are no UTF-8: they appear as \\udcXX instead of stopping the table.
    write_text(path, stream.getvalue().encode("utf-8", "backslashreplace").decode())


def check_limit(quarantine: Sequence[Quarantined], total: int, limit: float) -> None:
    """Raise QuarantineError where more than `limit` (a share) of `total` images cannot be used.

    Exact duplicates do not count: the image is there once.
    """
    lost = [item for item in quarantine if item.reason not in _HARMLESS]
    if not lost or len(lost) <= limit * total:
        return
    first = "; ".join(f"{item.path} ({item.reason})" for item in lost[:3])
    raise QuarantineError(
        f"{len(lost)} of {total} images ({len(lost) / total:.1%}) cannot be used, the limit is {limit:.1%}: {first}"
        f"{'; ...' if len(lost) > 3 else ''}. quarantine.csv lists all; repair them or set data.max_quarantine",
        quarantine,
    )
