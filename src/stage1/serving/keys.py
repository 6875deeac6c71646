"""API keys: a file of sha256 digests with their scopes, so that whoever reads the file cannot use it.

A line is `SHA256 SCOPES NAME`: the digest of the key in hexadecimal, scopes with commas between (predict, feedback,
admin), a name for the log and the store. Blank lines and lines that begin with # do not count. A key is sent as
`Authorization: Bearer KEY` or `X-Api-Key: KEY`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from stage1.errors import ConfigError, MissingError
from stage1.serving.refusal import Refusal
from stage1.serving.settings import is_loopback

SCOPES = ("predict", "feedback", "admin")
LOOPBACK = "loopback"
"""Who asks where no keys are set."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a key, and what it opens. admin opens everything."""

    name: str
    scopes: frozenset[str]

    def may(self, scope: str) -> bool:
        return scope in self.scopes or "admin" in self.scopes


EVERYBODY = Holder(LOOPBACK, frozenset(SCOPES))


def require_local(host: str, origin: str | None) -> None:
    """Raises Refusal (403) unless a request without a key came by this machine's own name, and from no other site.

    Who serves loopback trusts whoever sits at the machine, not every page that their browser shows: such a page can
    send requests to 127.0.0.1 (Origin says from where), or have its own name mean 127.0.0.1 (Host says that name).

    >>> require_local("127.0.0.1:8000", None), require_local("localhost:8000", "http://localhost:8000")
    (None, None)
    """
    try:
        name, site = urlsplit(f"//{host}").hostname or "", None if origin is None else urlsplit(origin).netloc
    except ValueError:
        name, site = "", None
    if not is_loopback(name):
        raise Refusal(403, "not_local", "without keys only this machine's own name is answered, e.g. 127.0.0.1")
    if site is not None and site != host:
        raise Refusal(403, "cross_site", "without keys no other site may ask; start the server with --keys")


@dataclass(frozen=True, slots=True)
class Keys:
    """Digest -> holder."""

    entries: tuple[tuple[bytes, Holder], ...]

    def holder(self, key: str) -> Holder | None:
        """Whose key this is. Every entry is compared whole, so that the time says nothing about any of them."""
        given = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        found: Holder | None = None
        for digest, holder in self.entries:
            if hmac.compare_digest(digest, given):
                found = holder
        return found


def read_keys(path: Path) -> Keys:
    """The keys of a file. Raises MissingError, ConfigError naming the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file of keys; see docs/SERVE.md for its form") from error
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ConfigError(f"{path}: cannot be read ({why})") from error
    entries: list[tuple[bytes, Holder]] = []
    names: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        entry = _entry(f"{path}: line {number}", line)
        if entry[1].name in names:
            raise ConfigError(f"{path}: line {number}: the name {entry[1].name!r} comes twice")
        names.add(entry[1].name)
        entries.append(entry)
    if not entries:
        raise ConfigError(f"{path}: no key in it, so nobody could ask anything; see docs/SERVE.md for its form")
    return Keys(tuple(entries))


def _entry(where: str, line: str) -> tuple[bytes, Holder]:
    parts = line.split(maxsplit=2)
    if len(parts) != 3:
        raise ConfigError(f"{where}: looks like `SHA256 SCOPES NAME`, e.g. `5e88.. predict,feedback camera-7`")
    digest, scopes, name = parts
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        # Not shown: somebody may have put the key itself there.
        raise ConfigError(f"{where}: the first word is no sha256 in hexadecimal; see docs/SERVE.md")
    given = scopes.split(",")
    if unknown := [scope for scope in given if scope not in SCOPES]:
        raise ConfigError(f"{where}: scope {unknown[0]!r} is unknown; there are {', '.join(SCOPES)}")
    return bytes.fromhex(digest), Holder(name.strip(), frozenset(given))
