"""The stages of a cascade inside the detector: asked in turn by the rules of `stage1.cascade`, all before one
deadline.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stage1.cascade.calls import ANSWERED, CallFailed, Guard
from stage1.cascade.endpoint import Endpoint
from stage1.cascade.rules import DEFAULT, Final, Recorded, Rule, final_answers
from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.storage.files import digest_bytes
from stage1.streetvision.classifier import Classifier, Stage1Answer, on_side, pixels, png, remap
from stage1.streetvision.deadline import Lane, Late
from stage1.streetvision.frozen import Frozen, read_frozen
from stage1.streetvision.settings import load_function

if TYPE_CHECKING:
    from stage1.cascade.config import CallsConfig, HttpConfig

log = logging.getLogger("stage1.streetvision")
Pixels = NDArray[np.uint8]
Said = tuple[float, int]  # P(roadwork), and the class as which a bundle's own policy exits, -1: none
_INSIDE = 1e-9


@dataclass(frozen=True, slots=True)
class Settled:
    """The answer of the whole. value: for the client. place: of the stage that answered, -1: none, it is the default.

    fallback: no stage exited, so the last that answered at all did. trouble: what failed, in one line, or None.
    """

    value: float
    place: int
    fallback: bool
    trouble: str | None


class _Stage(Protocol):
    name: str

    def ask(self, rgb: Pixels, until: float) -> Said: ...


class DetectorCascade:
    """The frozen cascade at `path` around the detector's own bundle, which must be its first stage.

    deadline_s: of the detector; no call of a stage outlasts it by more than its own length. Raises ConfigError (another
    first stage, a callable that is not there), IntegrityError (another bundle in a later stage), MissingError (a key, a
    bundle).
    """

    def __init__(self, path: str, first: Classifier, *, device: object, threads: int, deadline_s: float) -> None:
        frozen = read_frozen(Path(path))
        try:
            self._rules = tuple(Rule(**stage["rule"]) for stage in frozen.stages)
            self._default = float(frozen.document["default_probability"])
            self.names = [str(stage["name"]) for stage in frozen.stages]
            _require_first(frozen, first)
            self._later = [
                _opened(frozen, place, device=device, threads=threads, most=deadline_s)
                for place in range(1, len(self.names))
            ]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # Its digest fits, so this is how it was written.
            raise IntegrityError(
                f"cascade: {path}: made by another version of stage1 ({error!r}); make it anew"
            ) from error
        self.statement = frozen.statement
        self.fallback = self._settled(self._final([nan] * len(self.names), [-1] * len(self.names)), []).value
        self._read: Lane[object, Pixels] = Lane(lambda image: pixels(image, first.spec.max_pixels))
        _warn_of_the_deadline(frozen, deadline_s)

    def answer(self, image: Image.Image, first: Stage1Answer | None, until: float, trouble: str | None) -> Settled:
        """Ask the later stages until one exits or time.monotonic() == until. Raises nothing for what a stage does.

        first: what the bundle said; None: it could not, for the reason in `trouble`.
        """
        count = len(self.names)
        said, own = [nan] * count, [-1] * count
        troubles = [] if trouble is None else [f"{self.names[0]}: {trouble}"]
        if first is not None:
            said[0], own[0] = first.probability, first.label if first.exit else -1
        final = self._final(said, own)
        # Past the deadline the bundle may still be reading the picture: nobody else touches it.
        if not final.fallback[0] or time.monotonic() >= until:
            return self._settled(final, troubles)
        try:
            rgb = self._read.call(image, until)
        except Exception as error:  # whatever a picture raises: no other stage can be shown it
            return self._settled(final, [*troubles, one_line(error)] if first is not None else troubles)
        for place, stage in enumerate(self._later, start=1):
            now = time.monotonic()
            if now >= until:
                troubles.append(f"{stage.name}: not asked, the deadline is reached")
                break
            try:
                # One that hangs must not use up the time of those after it.
                said[place], own[place] = stage.ask(rgb, now + (until - now) / (count - place))
            except Exception as error:  # someone else's code or machine: any failure of it is an outcome
                troubles.append(f"{stage.name}: {one_line(error)}")
            final = self._final(said, own)
            if not final.fallback[0]:
                break
        return self._settled(final, troubles)

    def _final(self, said: list[float], own: list[int]) -> Final:
        # The rules read nothing but these two; times and attempts are of a record that a detector does not keep.
        kept: dict[str, Any] = {"probability": np.array([said]), "own": np.array([own])}
        rest = {name: np.zeros(kept["own"].shape) for name in Recorded.__slots__ if name not in kept}
        return final_answers(Recorded(**rest | kept | {"images": np.array([""])}), self._rules, self._default)

    def _settled(self, final: Final, troubles: list[str]) -> Settled:
        place, positive = int(final.stage[0]), bool(final.positive[0])
        border = 0.5 if place == DEFAULT else self._rules[place].answer_above
        value = remap(float(final.probability[0]), min(max(border, _INSIDE), 1.0 - _INSIDE))
        return Settled(on_side(value, positive), place, bool(final.fallback[0]), "; ".join(troubles) or None)


# ---- the stages ------------------------------------------------------------------------------------------------------


class _BundleStage:
    def __init__(self, name: str, classifier: Classifier) -> None:
        self.name = name
        self._lane = Lane(classifier.answer)

    def ask(self, rgb: Pixels, until: float) -> Said:
        found = self._lane.call(rgb, until)
        return found.probability, found.label if found.exit else -1


class _GuardedStage:
    """An endpoint or a function that takes the bytes of an image file, behind retries, budget and breaker."""

    def __init__(self, name: str, ask: Callable[[bytes], float], guard: Guard) -> None:
        self.name = name
        self._ask, self._guard = ask, guard
        self._lane = Lane(self._call)

    def ask(self, rgb: Pixels, until: float) -> Said:
        stopped = threading.Event()
        try:
            return self._lane.call((rgb, stopped), until), -1
        finally:
            stopped.set()  # nobody waits any more: no further attempt

    def _call(self, given: tuple[Pixels, threading.Event]) -> float:
        data = png(given[0])
        called = self._guard.call(lambda: self._ask(data), digest_bytes(data), given[1])
        if called.outcome != ANSWERED or called.probability is None:
            raise CallFailed(called.outcome, f"{called.outcome}, {called.detail}")
        return called.probability


def _require_first(frozen: Frozen, first: Classifier) -> None:
    named = frozen.stages[0]["bundle"]["digest"]
    if named != first.digest:
        raise ConfigError(
            f"cascade: {frozen.path}: its first stage {frozen.stages[0]['name']!r} is bundle {named[:12]}, this"
            f" detector's is {first.digest[:12]}; give that bundle, or make the file anew from a cascade with this one"
        )


def _opened(frozen: Frozen, place: int, *, device: object, threads: int, most: float) -> _Stage:
    stage = frozen.stages[place]
    name = str(stage["name"])
    if stage["bundle"] is not None:
        folder = frozen.beside(stage["bundle"]["folder"])
        classifier = Classifier(folder, device=device, threads=threads)
        if classifier.digest != stage["bundle"]["digest"]:
            raise IntegrityError(
                f"cascade: stage {name!r}: {folder} is bundle {classifier.digest[:12]}, the cascade was made with "
                f"{stage['bundle']['digest'][:12]}; restore that one, or make the file anew"
            )
        return _BundleStage(name, classifier)
    # A budget that is spent is not waited for: who waits for it past the deadline takes it from the next image.
    calls = SimpleNamespace(**{**stage["calls"], "when_over": "fall_back"})
    calls.timeout_s = min(calls.timeout_s, most)
    guard = Guard(cast("CallsConfig", calls), name, int(frozen.document["seed"]))
    if stage["http"] is not None:
        return _GuardedStage(name, Endpoint(cast("HttpConfig", _http(stage["http"], most))).ask, guard)
    given = stage["callable"]
    function = load_function(given["name"], f"cascade: stage {name!r}", frozen.beside(given["folder"]))
    return _GuardedStage(name, _within(calls.timeout_s, function, calls.concurrency), guard)


def _http(given: Mapping[str, Any], most: float) -> SimpleNamespace:
    """An endpoint's settings; its timeouts no longer than `most`, so that calls which nobody waits for any more end."""
    settings = SimpleNamespace(**given)
    settings.chat = None if settings.chat is None else SimpleNamespace(**settings.chat)
    settings.connect_timeout_s = min(settings.connect_timeout_s, most)
    settings.read_timeout_s = min(settings.read_timeout_s, most)
    return settings


def _within(seconds: float, function: Callable[[bytes], Any], at_once: int) -> Callable[[bytes], float]:
    lane: Lane[bytes, Any] = Lane(function, at_once + 16)

    def ask(data: bytes) -> float:
        try:
            value = lane.call(data, time.monotonic() + seconds)
        except Late as error:
            raise CallFailed("timeout", str(error)) from error
        except Exception as error:
            raise CallFailed("failed", one_line(error)) from error
        # numpy's numbers are numbers.
        return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value

    return ask


def _warn_of_the_deadline(frozen: Frozen, deadline_s: float) -> None:
    for stage in frozen.stages[1:]:
        http, calls = stage["http"], stage["calls"]
        if stage["bundle"] is not None:
            continue
        attempt = calls["timeout_s"] if http is None else http["connect_timeout_s"] + http["read_timeout_s"]
        if attempt > deadline_s:
            log.warning(
                "cascade: stage %r may take %g s for one attempt, deadline_s is %g: an answer that comes later counts"
                " as failed, and the certificate is of no more failures than were measured",
                stage["name"],
                attempt,
                deadline_s,
            )


def one_line(error: Exception) -> str:
    """What went wrong: the message where it is ours and says it, else with its kind."""
    text = " ".join(str(error).split())[:200]
    return (
        text
        if isinstance(error, (DataError, IntegrityError, Late, CallFailed)) and text
        else f"{type(error).__name__}: {text}"
    )
