"""The hash chain: what an entry says, and the faults that it shows. Pure functions of values.

Entry number seq (gapless from 1) names the kind of a content, the digest of that content and the digest of the entry
before it; its own digest is sha256 over those four. So a changed, missing, added or moved content shows in its entry,
and a changed entry in all that follow it.

Proof of what is found: let two stores verify and have equal head digests. Equal digests have equal input (sha256 has no
known collision), so their last entries agree in all four values, hence in the digest of the entry before, and so on
down to the first; then every content agrees too, its digest being one of the four. A store that verifies and has the
noted head is therefore the one that was noted. Without a noted head only this remains: the store agrees with itself.
Someone who may write to the database can cut entries off at the end, or make the whole chain anew, and no look at the
database alone can show it.

A content is digested with a random salt that is stored beside it. Erasing a content erases the salt: what remains, the
digest, then confirms no guess of what was there.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from stage1.store.events import canonical

GENESIS = "0" * 64
"""What the first entry names as the digest before it."""
KINDS = ("decision", "label", "deletion", "conflict")


@dataclass(frozen=True, slots=True)
class Entry:
    """One link. content: digest of the content of its kind with the same seq; previous: digest of entry seq - 1."""

    seq: int
    kind: str
    content: str
    previous: str
    digest: str


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, at which entry of the chain."""

    seq: int
    what: str

    def __str__(self) -> str:
        return f"entry {self.seq}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verification:
    """What `Store.verify` found. ok: no fault. entries: links read; head: digest of the last one.

    faults: the first ones, in the order of the chain; erased: contents that a deletion names; kinds: entries by kind.
    anchored: whether a head that was noted elsewhere was found in the chain (None: none was given).
    """

    entries: int
    head: str
    faults: tuple[Fault, ...]
    erased: int
    kinds: dict[str, int]
    anchored: bool | None = None

    @property
    def ok(self) -> bool:
        return not self.faults


def new_salts(n: int) -> list[str]:
    """n random salts, 32 hexadecimal digits each."""
    text = secrets.token_hex(16 * n)
    return [text[32 * i : 32 * i + 32] for i in range(n)]


def content_digest(salt: str, content: bytes) -> str:
    """sha256 of a content (its canonical bytes) with its salt."""
    return hashlib.sha256(salt.encode("ascii", "replace") + b"\n" + content).hexdigest()


def entry_digest(seq: int, kind: str, content: str, previous: str) -> str:
    """sha256 of the canonical bytes of an entry's four values."""
    return hashlib.sha256(f'[{seq},"{kind}","{content}","{previous}"]'.encode("utf-8", "replace")).hexdigest()


def next_entry(seq: int, kind: str, content: str, previous: str) -> Entry:
    """The entry with its digest.

    >>> next_entry(1, "label", content_digest("", b"{}"), GENESIS).digest[:16]
    '25fdd3a8ca8b6a88'
    """
    return Entry(seq, kind, content, previous, entry_digest(seq, kind, content, previous))


def decision_key(request_id: str, index: int) -> str:
    """What a decision is known by: sha256 of its request id and index. It outlives an erasure; the id does not."""
    return hashlib.sha256(canonical({"index": index, "request_id": request_id})).hexdigest()
