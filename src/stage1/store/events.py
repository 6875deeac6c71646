"""What is recorded: a decision about an image, a label given to one. Checked when they are made, so that whatever
exists can be stored by every database and comes back as it was.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, SupportsFloat

from stage1.errors import DataError

STATES = ("VALID", "DEGRADED", "VOID")
LONGEST_NAME, LONGEST_TEXT = 200, 2000
"""Characters: of an id or a name (they are indexed), and of a reason or a note."""
_HIGHEST_INDEX = 2**31 - 1
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionEvent:
    """One image answered or deferred. (request_id, index) is its key.

    request_id: of the request, up to 200 characters; index: the image within it, from 0.
    image_digest: sha256 of the image's bytes, 64 hexadecimal digits; image_id: the client's own name for it, or "".
    model, version: as they were asked for; bundle_digest, policy_id: what answered.
    state: of the certificate, with its reason. label: the class called, exit: whether it may answer.
    score: of the policy, None where there is none (an image that cannot be decoded); probabilities: of the classes.
    latency_ms: from the request to the decision. received_at: seconds since the epoch (UTC).
    audit: whether a label is asked for; propensity: the probability with which the draw asks for one, in [0, 1].
    Raises DataError, naming field and value, for text that no database holds (NUL, half characters) or that is too
    long, for numbers that are not finite, and for anything of another type.
    """

    request_id: str
    index: int = 0
    image_digest: str
    image_id: str = ""
    model: str
    version: str = ""
    bundle_digest: str
    policy_id: str
    state: str
    reason: str = ""
    label: str
    exit: bool
    score: float | None
    probabilities: tuple[float, ...] = ()
    latency_ms: float = 0.0
    received_at: float
    audit: bool = False
    propensity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("request_id", "image_id", "model", "version", "bundle_digest", "policy_id", "label"):
            require_name(name, getattr(self, name), empty=name != "request_id")
        _require_text("reason", self.reason, LONGEST_TEXT)
        _require_index(self.index)
        _require_digest(self.image_digest)
        if self.state not in STATES:
            raise DataError(f"state: {self.state!r} is none of {', '.join(STATES)}")
        for name in ("exit", "audit"):
            if (value := getattr(self, name)) is not True and value is not False:
                raise DataError(f"{name}: {value!r} is neither true nor false")
        if self.score is not None:
            _set(self, "score", finite("score", self.score))
        for name in ("latency_ms", "received_at", "propensity"):
            _set(self, name, finite(name, getattr(self, name)))
        if not 0.0 <= self.propensity <= 1.0:
            raise DataError(f"propensity: {self.propensity!r} is no probability")
        _set(self, "probabilities", tuple(finite("probabilities", value) for value in self.probabilities))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelEvent:
    """A label for an image that was decided about.

    The image: request_id with index, or image_digest, or image_id; where several are given, all have to fit. Of several
    decisions about one image the newest is meant.
    label: the class; who gave it; at: when, seconds since the epoch (UTC); source: from where ("page", "feedback").
    Raises DataError as DecisionEvent does, and where no image is named.
    """

    label: str
    who: str
    at: float
    request_id: str = ""
    index: int = 0
    image_digest: str = ""
    image_id: str = ""
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("label", "who"):
            require_name(name, getattr(self, name), empty=False)
        for name in ("request_id", "image_id", "source"):
            require_name(name, getattr(self, name))
        _require_text("note", self.note, LONGEST_TEXT)
        _require_index(self.index)
        if self.image_digest:
            _require_digest(self.image_digest)
        if not (self.request_id or self.image_digest or self.image_id):
            raise DataError("label: names no image; give request_id (with index), image_digest or image_id")
        _set(self, "at", finite("at", self.at))


DECISION_FIELDS = tuple(field.name for field in fields(DecisionEvent))


def canonical(content: Mapping[str, Any]) -> bytes:
    """The bytes that stand for a content, the same for equal contents: JSON, keys sorted, ASCII, floats as `repr` has
    them (which is exact).

    >>> canonical({"b": 0.1, "a": "é"})
    b'{"a":"\\\\u00e9","b":0.1}'
    """
    return _ENCODER.encode(content).encode("ascii")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


def decision_content(event: DecisionEvent) -> dict[str, Any]:
    """The event as its fields, as they are stored and digested."""
    content = {name: getattr(event, name) for name in DECISION_FIELDS}
    content["probabilities"] = list(event.probabilities)
    return content


def decision_of(content: Mapping[str, Any]) -> DecisionEvent:
    """The event of a content. Raises DataError where it is none (a file that another program wrote)."""
    try:
        return DecisionEvent(**{**content, "probabilities": tuple(content["probabilities"])})
    except (KeyError, TypeError) as error:
        raise DataError(f"no decision: {error}") from error


def is_decision(content: bytes) -> bool:
    """Whether canonical bytes are those of a decision that this version stores."""
    try:
        return canonical(decision_content(decision_of(json.loads(content)))) == content
    except (DataError, ValueError, TypeError):
        return False


def require_name(name: str, value: object, *, empty: bool = True) -> None:
    """Raises DataError unless `value` is text that can be an id: up to 200 characters that every database holds."""
    _require_text(name, value, LONGEST_NAME)
    if not value and not empty:
        raise DataError(f"{name}: is empty")


def _require_text(name: str, value: object, longest: int) -> None:
    if not isinstance(value, str):
        raise DataError(f"{name}: {value!r:.80} is no text")
    if len(value) > longest:
        raise DataError(f"{name}: has {len(value)} characters, more than {longest}")
    if "\0" in value or not (value.isascii() or _is_unicode(value)):
        raise DataError(f"{name}: {value[:80]!a} holds NUL or half a character, which no database keeps")


def _is_unicode(value: str) -> bool:
    try:
        value.encode("utf-8")
        return True
    except UnicodeEncodeError:
        return False


def _require_index(index: object) -> None:
    if type(index) is not int or not 0 <= index <= _HIGHEST_INDEX:
        raise DataError(f"index: {index!r:.80} is no whole number from 0 to {_HIGHEST_INDEX}")


def _require_digest(digest: object) -> None:
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise DataError(f"image_digest: {digest!r:.80} is no sha256 (64 hexadecimal digits, small letters)")


def finite(name: str, value: SupportsFloat) -> float:
    """`value` as a Python float. Raises DataError where it is no number, or not finite."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(f"{name}: {value!r:.80} is no number") from error
    if isinstance(value, (bool, str, bytes)) or not math.isfinite(number):
        raise DataError(f"{name}: {value!r:.80} is no finite number")
    return number + 0.0  # SQLite keeps -0.0 as 0: one form of zero, so that what comes back is what went in


def _set(event: object, name: str, value: object) -> None:
    object.__setattr__(event, name, value)
