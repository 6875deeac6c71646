"""model_card.json, which the client asks for beside a published model; fields are checked before it is written."""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field

from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.storage.documents import SCHEMA_VERSION, Document, DocumentKind, validate
from stage1.storage.files import write_text
from stage1.storage.texts import read_json

FILE = "model_card.json"
NETWORK = 42  # the ss58 prefix of the client's chain: addresses that start with 5
_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_VERSION = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")
_LONGEST_NAME, _LONGEST_DESCRIPTION = 200, 5000


class ModelCardDocument(Document):
    """What the client's five fields hold. The document is theirs: our schema_version is checked, not written."""

    model_name: Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]
    description: Annotated[str, Field(min_length=1, max_length=_LONGEST_DESCRIPTION)]
    version: Annotated[str, Field(pattern=r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$")]
    submitted_by: Annotated[str, Field(pattern="^[1-9A-HJ-NP-Za-km-z]{46,49}$")]
    submission_time: Annotated[str, Field(pattern="^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$")]


MODEL_CARD_KIND = DocumentKind("model_card", ModelCardDocument)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """Five fields. version: "X.Y.Z". submitted_by: ss58 address of the hotkey. submission_time: ISO 8601, UTC ("..Z").

    Raises ConfigError naming the field, its value and what to give.
    """

    model_name: str
    description: str
    version: str
    submitted_by: str
    submission_time: str

    def __post_init__(self) -> None:
        for field, text, longest in (
            ("model_name", self.model_name, _LONGEST_NAME),
            ("description", self.description, _LONGEST_DESCRIPTION),
        ):
            if not text.strip() or len(text) > longest:
                raise ConfigError(f"{field}: {len(text.strip())} characters; 1 to {longest} are needed")
        if not _VERSION.fullmatch(self.version):
            raise ConfigError(f"version: {self.version!r}; three numbers X.Y.Z are needed, e.g. 1.0.0")
        check_hotkey(self.submitted_by)
        if utc(self.submission_time) != self.submission_time:
            raise ConfigError(f"submission_time: {self.submission_time!r}; UTC as 2026-01-31T12:00:00Z is needed")

    @classmethod
    def of(cls, name: str, description: str, version: str, hotkey: str, time: str | None = None) -> ModelCard:
        """The card for a submission at `time` (ISO 8601 with its offset), or now."""
        when = utc(datetime.now(UTC).isoformat(timespec="seconds") if time is None else time)
        return cls(name.strip(), description.strip(), version, hotkey, when)

    def to_document(self) -> dict[str, str]:
        return asdict(self)


def write_card(card: ModelCard, path: str | os.PathLike[str]) -> None:
    """Write model_card.json with exactly the client's five fields (no schema_version: it is their document)."""
    document = card.to_document()
    validate({"schema_version": SCHEMA_VERSION, **document}, MODEL_CARD_KIND, str(path))
    write_text(path, json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def read_card(path: str | os.PathLike[str]) -> ModelCard:
    """Read and check a card. Raises MissingError, IntegrityError (schema), ConfigError (an impossible field)."""
    path = Path(path)
    try:
        document = read_json(path.read_bytes())
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file; `stage1 streetvision card` writes one") from error
    except (OSError, ValueError) as error:
        raise IntegrityError(f"{path}: not JSON ({error}); write it anew") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{path}: not a model card; write it anew")
    validate({"schema_version": SCHEMA_VERSION, **document}, MODEL_CARD_KIND, str(path))
    return ModelCard(**document)


def utc(text: str) -> str:
    """An ISO 8601 time with its offset, in UTC to the second: "2026-01-31T12:00:00Z". Raises ConfigError.

    >>> utc("2026-01-31T14:00:00+02:00")
    '2026-01-31T12:00:00Z'
    """
    try:
        when = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"submission_time: {text!r} is not ISO 8601; give e.g. 2026-01-31T12:00:00Z") from error
    if when.tzinfo is None:
        raise ConfigError(f"submission_time: {text!r} has no offset; add Z for UTC, or e.g. +02:00")
    return when.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


# ---- the address -------------------------------------------------------------------------------------------------


def check_hotkey(address: str) -> None:
    """Raises ConfigError unless `address` is an ss58 address of the client's network with a right checksum.

    ss58: base58 of prefix (1 byte), public key (32 bytes), and the first two bytes of blake2b-512("SS58PRE" + both).
    """
    if not address:
        raise ConfigError("submitted_by: empty; give the ss58 address of the hotkey (48 characters, it starts with 5)")
    if bad := [letter for letter in address if letter not in _ALPHABET]:
        raise ConfigError(
            f"submitted_by: {address!r} holds {bad[0]!r}, which no ss58 address does; copy the hotkey's address"
        )
    raw = _base58(address)
    if len(raw) != 35:
        raise ConfigError(
            f"submitted_by: {address!r} is {len(raw)} bytes long, an ss58 address 35; copy the whole address"
        )
    if hashlib.blake2b(b"SS58PRE" + raw[:-2]).digest()[:2] != raw[-2:]:
        raise ConfigError(
            f"submitted_by: {address!r} has a wrong checksum (a typing error?); copy the hotkey's address"
        )
    if raw[0] != NETWORK:
        raise ConfigError(f"submitted_by: {address!r} is an address of network {raw[0]}, the client's is {NETWORK}")


def _base58(text: str) -> bytes:
    number = 0
    for letter in text:
        number = number * 58 + _ALPHABET.index(letter)
    zeros = len(text) - len(text.lstrip(_ALPHABET[0]))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def ss58(public_key: bytes, network: int = NETWORK) -> str:
    """The address of a public key of 32 bytes. Raises ConfigError for another length or a network past 63."""
    if len(public_key) != 32 or not 0 <= network < 64:
        raise ConfigError(f"public key: {len(public_key)} bytes, network {network}; 32 bytes and 0..63 are needed")
    body = bytes([network]) + public_key
    raw = body + hashlib.blake2b(b"SS58PRE" + body).digest()[:2]
    number, letters = int.from_bytes(raw, "big"), []
    while number:
        number, rest = divmod(number, 58)
        letters.append(_ALPHABET[rest])
    return _ALPHABET[0] * (len(raw) - len(raw.lstrip(b"\0"))) + "".join(reversed(letters))
