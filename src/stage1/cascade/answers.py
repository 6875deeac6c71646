"""The record of a cascade on disk: one JSON line per image with every outcome, appended as answers come.

A run that stopped resumes from it. What makes an answer valid is decided before, in cascade/calls.py.
"""

from __future__ import annotations

import fcntl
import io
import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stage1.cascade.calls import ANSWERED, OUTCOMES
from stage1.cascade.rules import Recorded
from stage1.errors import ConfigError, IntegrityError, MissingError, Stage1Error
from stage1.inference.tables import valid
from stage1.storage.documents import SCHEMA_VERSION
from stage1.storage.files import write_error
from stage1.storage.texts import read_json


@dataclass(frozen=True, slots=True)
class Call:
    """What came of asking one stage for one image. own: the class as which its bundle's policy exits it, None: defers.

    milliseconds: attempts and the pauses between them; waited_ms: before that, for the budget of attempts a minute.
    Records from before this was measured have no waited_ms: their milliseconds hold both.
    """

    stage: str
    outcome: str
    probability: float | None
    own: str | None
    attempts: int
    milliseconds: float
    detail: str | None = None
    waited_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One image, answered once. answered_by: a stage, or "default"; fallback: stages after it failed.

    label, probability, answered_by are None where every stage was asked and nothing decided (`evaluate`).
    id: sha256 of the image's bytes, None where they could not be read; error: why not.
    """

    image: str
    id: str | None
    calls: tuple[Call, ...]
    label: str | None = None
    probability: float | None = None
    answered_by: str | None = None
    fallback: bool = False
    error: str | None = None

    def to_line(self) -> str:
        return json.dumps(_texts(asdict(self)), ensure_ascii=True, allow_nan=False)


def _texts(value: Any) -> Any:
    """The same with every text fit to be written: a file name need not be valid UTF-8."""
    if isinstance(value, dict):
        return {name: _texts(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_texts(item) for item in value]
    return valid(value) if isinstance(value, str) else value


def header(stages: str, rules: Sequence[Mapping[str, Any]] | None, names: Sequence[str]) -> dict[str, Any]:
    """The first line: which stages were asked, and by which rules answered (None: all stages asked, none decided)."""
    return {
        "schema_version": SCHEMA_VERSION,
        "document": "cascade_answers",
        "stages_digest": stages,
        "stages": list(names),
        "rules": None if rules is None else [dict(rule) for rule in rules],
    }


class Sink(Protocol):
    """Where answers go, one by one."""

    def write(self, answer: Answer) -> None: ...


class _Lines:
    """Lines at the end of an unbuffered file: one that found no room on the disk is not retried on close."""

    def __init__(self, stream: io.FileIO, path: Path) -> None:
        self._stream, self._path = stream, path

    def write(self, answer: Answer) -> None:
        self.add(answer.to_line())

    def add(self, line: str) -> None:
        left = memoryview(line.encode() + b"\n")
        try:
            while left:
                left = left[self._stream.write(left) :]
        except OSError as error:
            raise write_error(self._path, error) from error


@contextmanager
def open_log(path: str | os.PathLike[str], head: Mapping[str, Any]) -> Iterator[tuple[list[Answer], Sink]]:
    """The answers that the file holds already, and a sink that appends to it; the file is made where it is not there.

    A last line that was cut by a kill is taken away: its image is asked again. Each answer is in the file before the
    next one is waited for. Raises ConfigError (answers of other stages or rules), IntegrityError (damaged), Stage1Error
    (another process writes it, or it cannot be written).
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = io.FileIO(path, "a+")
    except OSError as error:
        raise write_error(path, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Stage1Error(
                f"{path}: another process writes these answers; wait for it or use another --output"
            ) from error
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise ConfigError(f"{path}: no regular file, so nothing in it can be gone on with; give a file")
        lines = _Lines(stream, path)
        stream.seek(0)
        text = stream.readall()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            stream.truncate(len(whole))
        if whole:
            found, answers = _parsed(whole, path)
            for name, problem in (("stages_digest", "other stages"), ("rules", "other exit rules")):
                if found.get(name) != head[name]:
                    raise ConfigError(f"{path}: holds answers of {problem}; use another --output, or remove it")
        else:
            answers = []
            lines.add(json.dumps(dict(head)))
        yield answers, lines
        try:
            os.fsync(stream.fileno())
        except OSError as error:
            raise write_error(path, error) from error


def read_answers(path: str | os.PathLike[str]) -> tuple[dict[str, Any], list[Answer]]:
    """(header, answers) of a file; a line cut at the end is left out. Raises MissingError, IntegrityError."""
    path = Path(path)
    if not path.is_file():
        raise MissingError(f"{path}: no such file of answers; make it with `stage1 cascade run` or `evaluate`")
    text = path.read_bytes()
    return _parsed(text[: text.rfind(b"\n") + 1], path)


def without(path: str | os.PathLike[str], dropped: Iterable[str]) -> None:
    """Rewrite a file of answers, whole or not at all, without these images, so that they are asked again."""
    from stage1.storage.files import write_text

    head, answers = read_answers(path)
    names = set(dropped)
    kept = [answer.to_line() for answer in answers if answer.image not in names]
    write_text(path, "\n".join([json.dumps(head), *kept]) + "\n")


def _parsed(text: bytes, path: Path) -> tuple[dict[str, Any], list[Answer]]:
    lines = text.splitlines()
    head = _json(lines[0] if lines else b"", path, 1)
    if head.get("document") != "cascade_answers" or not isinstance(head.get("stages"), list):
        raise IntegrityError(f"{path}: line 1: not a file of cascade answers; give another one")
    if head.get("schema_version") != SCHEMA_VERSION:
        raise IntegrityError(
            f"{path}: schema_version {head.get('schema_version')} is not {SCHEMA_VERSION}; upgrade stage1-pro"
        )
    answers, seen = [], set()
    for number, line in enumerate(lines[1:], 2):
        answer = _answer(_json(line, path, number), path, number)
        if answer.image in seen:
            raise IntegrityError(f"{path}: line {number}: {answer.image} is answered twice; remove one of the lines")
        seen.add(answer.image)
        answers.append(answer)
    return head, answers


def _json(line: bytes, path: Path, number: int) -> dict[str, Any]:
    try:
        document = read_json(line)
    except ValueError as error:
        raise IntegrityError(f"{path}: line {number}: not JSON; it is damaged") from error
    if not isinstance(document, dict):
        raise IntegrityError(f"{path}: line {number}: not an object; it is damaged")
    return document


def _answer(document: dict[str, Any], path: Path, number: int) -> Answer:
    try:
        calls = tuple(Call(**call) for call in document.pop("calls"))
        answer = Answer(calls=calls, **document)
        for call in calls:
            good = call.probability is None or (
                not isinstance(call.probability, bool)
                and math.isfinite(call.probability)
                and 0 <= call.probability <= 1
            )
            if call.outcome not in OUTCOMES or not good or (call.probability is None) == (call.outcome == ANSWERED):
                raise ValueError(f"stage {call.stage}: outcome {call.outcome!r}, probability {call.probability!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"{path}: line {number}: {' '.join(str(error).split())[:120]}; it is damaged") from error
    return answer


def recorded(answers: Sequence[Answer], stages: Sequence[str], classes: Sequence[str]) -> Recorded:
    """The answers as arrays, one row each. Raises IntegrityError for a stage or class that is not among these."""
    n, places = len(answers), {name: place for place, name in enumerate(stages)}
    shape = (n, len(stages))
    found = Recorded(
        np.array([answer.image for answer in answers], dtype=np.str_),
        np.full(shape, np.nan),
        np.full(shape, -1, dtype=np.int64),
        np.full(shape, "", dtype="<U16"),
        np.zeros(shape, dtype=np.int64),
        np.zeros(shape),
        np.zeros(shape),
    )
    for row, answer in enumerate(answers):
        for call in answer.calls:
            if call.stage not in places or (call.own is not None and call.own not in classes):
                raise IntegrityError(
                    f"{answer.image}: answered by stage {call.stage!r} as {call.own!r}, which this cascade has not"
                )
            place = places[call.stage]
            found.outcome[row, place], found.attempts[row, place] = call.outcome, call.attempts
            found.milliseconds[row, place], found.waited_ms[row, place] = call.milliseconds, call.waited_ms
            if call.probability is not None:
                found.probability[row, place] = call.probability
            if call.own is not None:
                found.own[row, place] = list(classes).index(call.own)
    return found
