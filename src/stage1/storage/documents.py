"""JSON documents: each kind is typed once, beside the concept that owns it, and checked on every write and every read.

A document is a `TypedDict` below `Document`: a key is required, or may be absent (`NotRequired`), or may be null
(`| None`), which are three things; the document stays the dict of the file. Its `DocumentKind` names it in
messages, and the file `schemas/<name>.schema.json`, which tools/schemas.py makes from the type.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from stage1.errors import IntegrityError, MissingError
from stage1.storage.files import write_text
from stage1.storage.texts import MOST_DOCUMENT, read_json, require_text
from stage1.storage.violations import violation

SCHEMA_VERSION = 1


def _whole(version: Any) -> Any:
    if isinstance(version, bool):  # which equals 1
        raise ValueError(f"{version!r} is not of type 'integer'")
    return version


class Document(TypedDict):
    """What every document is: closed (no other keys), strict (1 is no text, true is no number), with a version."""

    # The parts of a document, TypedDicts themselves, inherit this. Texts below a key are for the schema file alone
    # (tools/schemas.py): to look for them in the source takes two thirds of the time in which a checker is made.
    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]
    schema_version: Annotated[Literal[1], BeforeValidator(_whole)]


@dataclass(frozen=True)
class DocumentKind:
    """A kind of document. name: e.g. "certificate". type: a subclass of Document, or a union of some."""

    name: str
    type: Any

    @cached_property
    def adapter(self) -> TypeAdapter[Any]:
        """What checks documents of this kind; made at the first use (some five milliseconds)."""
        return TypeAdapter(self.type)


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


def validate(document: Any, kind: DocumentKind, where: str) -> None:
    """Check `document` against the type of `kind`; `where` names it in the error.

    Raises IntegrityError (one line: where, the field, what is wrong); a newer schema_version is named as such.
    """
    version = document.get("schema_version") if isinstance(document, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise IntegrityError(
            f"{where}: schema_version {version} is newer than this stage1 reads ({SCHEMA_VERSION}); upgrade stage1-pro"
        )
    try:
        kind.adapter.validate_python(document)
    except ValidationError as error:
        field, words = violation(error, document)
        raise IntegrityError(
            f"{where}: {field[:160] or 'document'}: {words[:200]} (schema {kind.name}); rewrite it with the stage that"
            " makes it"
        ) from None


def write_document(path: str | os.PathLike[str], document: dict[str, Any], kind: DocumentKind) -> None:
    """Add `schema_version`, validate, and write as JSON (UTF-8, sorted as given, 2 spaces), whole or not at all.

    Raises IntegrityError where the document does not fit its kind or holds a NaN or an infinity (JSON has neither).
    """
    document = {"schema_version": SCHEMA_VERSION, **document}
    try:  # first: a NaN lies within no bounds either, and is better called by its name
        text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise IntegrityError(f"{path}: {error}; NaN and infinity have no place in JSON") from error
    validate(document, kind, str(path))
    write_text(path, text + "\n")


def read_document(path: str | os.PathLike[str], kind: DocumentKind) -> dict[str, Any]:
    """Read and validate one JSON document. Raises MissingError (no file), IntegrityError (not of the kind)."""
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
