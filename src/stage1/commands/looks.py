"""attempts: the looks at calibration images that a run, a score file, a bundle or a ledger knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage1.errors import MissingError
from stage1.policy.attempts import Look, standing
from stage1.policy.ledger import LEDGER_FILE, file_beside, ledger_digest, ledger_of
from stage1.policy.schema import ATTEMPTS_KIND
from stage1.storage.documents import read_document

_SHOWN = ("cascade", "policy", "risks", "unit", "seed", "slices", "views", "model", "scores")
_PLAIN = {"unit": "auto", "seed": 0, "slices": [], "views": None}


def looks_known(source: Path) -> dict[str, Any]:
    """Plain values: ledger, digest, dealt, looks in the order in which they were made.

    source: a run directory, the folder of `calibrate --scores` or a bundle; a score file or recorded answers; or a
    ledger. Of each look its number and headline as they were then: it and the looks before it that share an image.
    Raises MissingError where there is no ledger, IntegrityError where it is damaged.
    """
    path = _ledger_of(source)
    document = read_document(path, ATTEMPTS_KIND)
    looks, dealt = ledger_of(document, path)
    return {
        "ledger": str(path),
        "digest": ledger_digest(document) if "looks" in document else None,
        "looks": [_row(looks[: place + 1], dealt) for place in range(len(looks))],
    }


def _ledger_of(source: Path) -> Path:
    if source.is_dir():
        path = source / LEDGER_FILE
    elif source.name.endswith(LEDGER_FILE):
        path = source
    else:
        path = file_beside(source)
    if not path.is_file():
        raise MissingError(
            f"{source}: no looks are known here (no {path}); give a run directory, a folder that `stage1 calibrate`"
            " wrote, a bundle, a score file that was calibrated, or a ledger"
        )
    return path


def _row(looks: list[Look], dealt: list[str]) -> dict[str, Any]:
    look = looks[-1]
    known = look.wish is not None and look.confidence is not None
    counted = standing(looks, look, look.wish, look.plan)[0] if known and look.wish is not None else None
    return {
        "look": look.look,
        "images": look.images.digest,
        "n_images": look.images.n,
        "shared": max((look.images.shared(other.images) for other in looks[:-1]), default=0),
        "since_dealt": look.images.digest in dealt,
        "confidence": look.confidence,
        "number": None if counted is None else counted.number,
        "headline_confidence": None if counted is None else counted.headline_confidence,
        "planned": look.plan.planned,
        "schedule": look.plan.schedule,
        "asked": dict(look.asked),
    }


def looks_lines(document: Mapping[str, Any]) -> list[str]:
    """The table for people; "shared" is with the earlier look that shares most."""
    rows = document["looks"]
    lines = [
        f"{document['ledger']}  {len(rows)} look(s)" + (f"  {document['digest'][:12]}" if document["digest"] else ""),
        f"{'look':>4}{'images':>9}{'shared':>8}{'tested at':>11}{'headline':>10}  asked",
    ]
    for row in rows:
        lines.append(
            f"{_or_dash(row['number']):>4}{row['n_images']:>9}{row['shared']:>8}{_percent(row['confidence']):>11}"
            f"{_percent(row['headline_confidence']):>10}  {_asked(row)}"
        )
    if begun := sorted({row["images"][:12] for row in rows if not row["since_dealt"]}):
        lines.append(
            f"begun by a look, not when the images were dealt ({', '.join(begun[:3])}): looks from before are not here"
        )
    return lines


def _asked(row: Mapping[str, Any]) -> str:
    asked = row["asked"]
    parts = [
        f"{name} {_value(asked[name])}" if name != "risks" else _value(asked[name])
        for name in _SHOWN
        if name in asked and asked[name] != _PLAIN.get(name, "")
    ]
    parts += [f"planned {row['planned']}"] if row["planned"] is not None else []
    parts += ["sequential"] if row["schedule"] == "sequential" else []
    return ", ".join(parts) or row["look"][:12]


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name}={_value(inside)}" for name, inside in value.items())
    if isinstance(value, list):
        return "+".join(map(str, value))
    return str(value)[:12] if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.4g} %"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)
