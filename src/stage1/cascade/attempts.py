"""Looks at the calibration images of a cascade: the ledger of policy/ledger.py, kept beside the recorded answers.

Every attempt on the images shares the answers, wherever its output goes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from stage1.cascade.schema import CASCADE_KIND
from stage1.policy.attempts import ImageSet, Look
from stage1.policy.ledger import Ledger, file_beside, files_beside, folders_beside
from stage1.storage.documents import read_document


def cascade_ledger(answers: Path, output: Path, documents: list[Path], say: Callable[[str], None]) -> Ledger:
    """The looks that are known where `answers` are, in folders beside `output`, and of `documents`.

    documents: cascade.json beside the answers and in the output, which before there was a ledger told of configurations
    that were tried. The ledger is a file beside the answers; where that folder may not be written to, cascade.json in
    the output still tells. Looks that another folder without these answers holds are not known here.
    """
    path = file_beside(answers)
    return Ledger(
        None,
        others=[path, *files_beside(answers), *folders_beside(output)],
        copies=[path],
        earlier=[look for document in documents for look in _told(document)],
        say=say,
    )


def _told(path: Path) -> list[Look]:
    """Configurations that a cascade.json says were tried."""
    if not path.is_file():
        return []
    document = read_document(path, CASCADE_KIND)
    certificate = document["certificate"]
    images = ImageSet(certificate["calib_digest"], np.zeros(0, dtype=np.uint64), 0, "digest")
    return [Look(configuration, images) for configuration in document["history"]]
