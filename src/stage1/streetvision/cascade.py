"""The stages of a cascade inside the detector: asked in turn by the rules of `stage1.cascade`, before one deadline."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import nan
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from stage1.cascade.calls import ANSWERED, CallFailed, Guard
from stage1.cascade.config import CallsConfig, HttpConfig
from stage1.cascade.endpoint import Endpoint
from stage1.cascade.rules import DEFAULT, Final, Recorded, Rule, final_answers
from stage1.cascade.stages import within
from stage1.errors import ConfigError, IntegrityError
from stage1.runtime.attributes import load_function
from stage1.runtime.deadline import DeadlineExecutor
from stage1.storage.files import digest_bytes
from stage1.streetvision.classifier import Classifier, Stage1Answer, on_side, pixels, png, remap, trouble_line
from stage1.streetvision.sealed_cascade import SealedCascade, read_sealed_cascade

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
    """The cascade of stages.json at `path` around the detector's own bundle, which must be its first stage.

    deadline_s: of the detector; no call of a stage outlasts it by more than its own length. Raises ConfigError (another
    first stage, a callable that is not there), IntegrityError (another bundle in a later stage), MissingError (a key, a
    bundle).
    """

    def __init__(self, path: str, first: Classifier, *, device: object, threads: int, deadline_s: float) -> None:
        sealed = read_sealed_cascade(Path(path))
        self._rules = tuple(Rule(**stage["rule"]) for stage in sealed.stages)
        self._default = float(sealed.document["default_probability"])
        self.names = [str(stage["name"]) for stage in sealed.stages]
        _require_first(sealed, first)
        self._later = [
            _opened(sealed, place, device=device, threads=threads, most=deadline_s)
            for place in range(1, len(self.names))
        ]
        self.statement = sealed.statement
        self.fallback = self._settled(self._final([nan] * len(self.names), [-1] * len(self.names)), []).value
        self._max_pixels = first.spec.max_pixels
        self._reading = DeadlineExecutor()
        _warn_of_the_deadline(sealed, deadline_s)

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
        # Past the deadline the bundle may still be reading the picture: nothing else touches it.
        if not final.fallback[0] or time.monotonic() >= until:
            return self._settled(final, troubles)
        try:
            rgb = self._reading.call(lambda: pixels(image, self._max_pixels), until)
        except Exception as error:  # whatever a picture raises: no other stage can be shown it
            return self._settled(final, [*troubles, _trouble(error)] if first is not None else troubles)
        for place, stage in enumerate(self._later, start=1):
            now = time.monotonic()
            if now >= until:
                troubles.append(f"{stage.name}: not asked, the deadline is reached")
                break
            try:
                # One that hangs must not use up the time of those after it.
                said[place], own[place] = stage.ask(rgb, now + (until - now) / (count - place))
            except Exception as error:  # someone else's code or machine: any failure of it is an outcome
                troubles.append(f"{stage.name}: {_trouble(error)}")
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
        self._classifier = classifier
        self._executor = DeadlineExecutor()

    def ask(self, rgb: Pixels, until: float) -> Said:
        found = self._executor.call(lambda: self._classifier.answer(rgb), until)
        return found.probability, found.label if found.exit else -1


class _GuardedStage:
    """An endpoint or a function that takes the bytes of an image file, behind retries, budget and breaker."""

    def __init__(self, name: str, ask: Callable[[bytes], float], guard: Guard) -> None:
        self.name = name
        self._ask, self._guard = ask, guard
        self._executor = DeadlineExecutor()

    def ask(self, rgb: Pixels, until: float) -> Said:
        stopped = threading.Event()
        try:
            return self._executor.call(lambda: self._call(rgb, stopped), until), -1
        finally:
            stopped.set()  # the caller no longer waits: no further attempt

    def _call(self, rgb: Pixels, stopped: threading.Event) -> float:
        data = png(rgb)
        called = self._guard.call(lambda: self._ask(data), digest_bytes(data), stopped)
        if called.outcome != ANSWERED or called.probability is None:
            raise CallFailed(called.outcome, f"{called.outcome}, {called.detail}")
        return called.probability


def _require_first(sealed: SealedCascade, first: Classifier) -> None:
    named = sealed.stages[0]["bundle"]["digest"]
    if named != first.digest:
        raise ConfigError(
            f"cascade: {sealed.path}: its first stage {sealed.stages[0]['name']!r} is bundle {named[:12]}, this"
            f" detector's is {first.digest[:12]}; give that bundle, or make the file anew from a cascade with this one"
        )


def _opened(sealed: SealedCascade, place: int, *, device: object, threads: int, most: float) -> _Stage:
    stage = sealed.stages[place]
    name = str(stage["name"])
    if stage["bundle"] is not None:
        folder = sealed.beside(stage["bundle"]["folder"])
        classifier = Classifier(folder, device=device, threads=threads)
        if classifier.digest != stage["bundle"]["digest"]:
            raise IntegrityError(
                f"cascade: stage {name!r}: {folder} is bundle {classifier.digest[:12]}, the cascade was made with "
                f"{stage['bundle']['digest'][:12]}; restore that one, or make the file anew"
            )
        return _BundleStage(name, classifier)
    try:
        calls = CallsConfig.model_validate(stage["calls"])
        http = None if stage["http"] is None else HttpConfig.model_validate(stage["http"])
    except ValidationError as error:
        raise IntegrityError(
            f"cascade: {sealed.path}: stage {name!r}: made by another version of stage1; make it anew"
        ) from error
    # A budget that is spent is not waited for: who waits for it past the deadline takes it from the next image.
    guard = Guard(calls.model_copy(update={"when_over": "fall_back"}), name, int(sealed.document["seed"]))
    if http is not None:
        # No longer than `most`, so that abandoned calls end.
        limits = {key: min(getattr(http, key), most) for key in ("connect_timeout_s", "read_timeout_s")}
        return _GuardedStage(name, Endpoint(http.model_copy(update=limits)).ask, guard)
    given = stage["callable"]
    function = load_function(given["name"], f"cascade: stage {name!r}", sealed.beside(given["folder"]))
    return _GuardedStage(name, within(min(calls.timeout_s, most), function, calls.concurrency), guard)


def _warn_of_the_deadline(sealed: SealedCascade, deadline_s: float) -> None:
    for stage in sealed.stages[1:]:
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


def _trouble(error: Exception) -> str:
    return " ".join(str(error).split())[:200] if isinstance(error, CallFailed) else trouble_line(error)
