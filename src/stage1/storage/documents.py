"""JSON documents: each kind has a JSON Schema in `schemas/`, checked on every write and every read."""

from __future__ import annotations

import json
import math
import os
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from stage1.errors import IntegrityError, MissingError
from stage1.storage.files import MOST_DOCUMENT, read_json, require_text, write_text

SCHEMA_VERSION = 1


@cache
def schema(kind: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a document kind, e.g. "certificate"."""
    text = resources.files("stage1").joinpath(f"schemas/{kind}.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def schema_kinds() -> list[str]:
    """All document kinds that have a schema."""
    folder = resources.files("stage1").joinpath("schemas")
    return sorted(
        item.name.removesuffix(".schema.json") for item in folder.iterdir() if item.name.endswith(".schema.json")
    )


def validate(document: Any, kind: str, where: str) -> None:
    """Check `document` against the schema of `kind`; `where` names it in the error.

    Raises IntegrityError (one line: where, the field, what is wrong); a newer schema_version is named as such.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise IntegrityError(
            f"{where}: schema_version {version} is newer than this stage1 reads ({SCHEMA_VERSION}); upgrade stage1-pro"
        )
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import best_match

    try:
        problem = best_match(Draft202012Validator(schema(kind)).iter_errors(document))
    except (RecursionError, OverflowError) as error:  # nested, or a number, beyond what the validator can follow
        raise IntegrityError(f"{where}: nested or numbered beyond what can be checked; it is damaged") from error
    if problem is not None:
        field = ".".join(str(part) for part in problem.absolute_path)[:160] or "document"
        raise IntegrityError(
            f"{where}: {field}: {problem.message[:200]} (schema {kind}); rewrite it with the stage that makes it"
        )


def write_document(path: str | os.PathLike[str], document: dict[str, Any], kind: str) -> None:
    """Add `schema_version`, validate, and write as JSON (UTF-8, sorted as given, 2 spaces), whole or not at all.

    Raises IntegrityError where the document does not fit its schema or holds a NaN or an infinity (JSON has neither).
    """
    document = {"schema_version": SCHEMA_VERSION, **document}
    validate(document, kind, str(path))
    try:
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise IntegrityError(f"{path}: {error}; NaN and infinity have no place in JSON") from error
    write_text(path, text + "\n")


def read_document(path: str | os.PathLike[str], kind: str) -> dict[str, Any]:
    """Read and validate one JSON document. Raises MissingError (not there) or IntegrityError (not JSON, not the
    schema).
    """
    path = Path(path)
    try:
        require_text(path, MOST_DOCUMENT)
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file; run the stage that writes it") from error
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); it is damaged") from error
    try:
        document = read_json(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise IntegrityError(f"{path}: not UTF-8, byte {error.start}; it is damaged") from error
    except ValueError as error:
        raise IntegrityError(f"{path}: not valid JSON ({error}); it is damaged") from error
    validate(document, kind, str(path))
    return dict(document)


def finite_or_none(value: float | None) -> float | None:
    """JSON has no NaN: an undefined number is written as null."""
    return None if value is None or not math.isfinite(value) else float(value)
