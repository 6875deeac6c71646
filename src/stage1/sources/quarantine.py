"""What was left out and why: the quarantine table, and the limit on how much of it a run accepts."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass

from stage1.errors import DataError
from stage1.storage.cells import text_cell
from stage1.storage.files import write_text

EXACT_DUPLICATE = "exact duplicate"
FURTHER_FILE = "further file"
# Nothing is lost with these: the same bytes stay in the table once, a sample has its image. They are listed, but do not
# count.
_HARMLESS = (EXACT_DUPLICATE, FURTHER_FILE)
# Of few images the limit would be less than one. So many may always be left out, if they are no more than this share of
# all.
_FEW, _FEW_SHARE = 3, 0.05


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
    writer.writerows(
        [text_cell(item.path), item.reason, text_cell(" ".join(item.detail.split()))] for item in quarantine
    )
    write_text(path, stream.getvalue())


def check_limit(quarantine: Sequence[Quarantined], total: int, limit: float) -> None:
    """Raise QuarantineError where more than `limit` (a share) of `total` images cannot be used.

    Up to 3 images pass at any limit above 0 where they are no more than 5 % of all. Exact duplicates do not count: the
    image is there once; neither do further images of a sample.
    """
    lost = [item for item in quarantine if item.reason not in _HARMLESS]
    few = min(_FEW, _FEW_SHARE * total) if limit > 0 else 0
    if not lost or len(lost) <= max(limit * total, few):
        return
    first = "; ".join(f"{item.path} ({item.reason})" for item in lost[:3])
    raise QuarantineError(
        f"{len(lost)} of {total} images ({len(lost) / total:.1%}) cannot be used, the limit is {limit:.1%}: {first}"
        f"{'; ...' if len(lost) > 3 else ''}. quarantine.csv lists all; repair them or set data.max_quarantine",
        quarantine,
    )
