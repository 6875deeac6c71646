"""How often calibration images were tested: kept beside the recorded answers, which every attempt on them shares."""

from __future__ import annotations

from pathlib import Path

from typing_extensions import TypedDict

from stage1.cascade.schema import CASCADE_KIND
from stage1.errors import Stage1Error
from stage1.storage.documents import Document, DocumentKind, read_document, write_document
from stage1.storage.fields import Digest


class CascadeAttempt(TypedDict):
    """One configuration, tried on the calibration images of this digest."""

    calib_digest: Digest
    configuration: Digest


class CascadeAttemptsDocument(Document):
    """Every configuration of a cascade that the calibration images among these answers were used for."""

    attempts: list[CascadeAttempt]


CASCADE_ATTEMPTS_KIND = DocumentKind("cascade_attempts", CascadeAttemptsDocument)


def earlier_attempts(answers: Path, documents: list[Path], calib_digest: str) -> list[str]:
    """Configurations that these calibration images were used for, in order, each once.

    answers: their record; documents: cascade.json beside it and in the folder of the output, where they are there.
    Attempts that another folder without these answers holds are not known here.
    """
    found: list[str] = []
    if (path := attempts_path(answers)).is_file():
        noted = read_document(path, CASCADE_ATTEMPTS_KIND)["attempts"]
        found += [one["configuration"] for one in noted if one["calib_digest"] == calib_digest]
    for path in documents:
        if path.is_file():
            document = read_document(path, CASCADE_KIND)
            if document["certificate"]["calib_digest"] == calib_digest:
                found += document["history"]
    return list(dict.fromkeys(found))


def note_attempts(answers: Path, calib_digest: str, history: list[str]) -> str | None:
    """Keep `history` beside the answers; what to say where that folder cannot be written, None where it could."""
    path = attempts_path(answers)
    noted = read_document(path, CASCADE_ATTEMPTS_KIND)["attempts"] if path.is_file() else []
    own = [{"calib_digest": calib_digest, "configuration": configuration} for configuration in history]
    new = [one for one in own if one not in noted]
    if not new:
        return None
    try:
        write_document(path, {"attempts": [*noted, *new]}, CASCADE_ATTEMPTS_KIND)
    except Stage1Error as error:
        # Answers may be in a read-only folder; the certificate in `output` counts its own attempts all the same.
        return f"warning: an attempt in a third folder will not know of this one ({error})"
    return None


def attempts_path(answers: Path) -> Path:
    return answers.with_name(f"{answers.stem}.attempts.json")
