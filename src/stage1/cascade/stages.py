"""The stages of a cascade, opened: each takes images and gives one Call for each of them, whatever happens."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from stage1.cascade.answers import Call
from stage1.cascade.calls import ANSWERED, CallFailed, Guard
from stage1.cascade.config import CascadeConfig, StageConfig, load_cascade, stages_digest
from stage1.cascade.endpoint import Endpoint
from stage1.cascade.rules import Rule
from stage1.errors import ConfigError
from stage1.inference.predictor import Bundle, load_bundle, one_line
from stage1.runtime.attributes import load_function
from stage1.runtime.deadline import DeadlineExceeded, DeadlineExecutor

# Calls of a callable that may hang beside those that are waited for; with more than this nothing is asked of it.
_LEFT_BEHIND = 16


class Stage(Protocol):
    """One stage, opened."""

    name: str

    def ask(self, images: Sequence[tuple[int, str, bytes]]) -> Iterator[tuple[int, Call]]:
        """(index, Call) of each (index, id, bytes), each once, in the order in which they are known."""
        ...


class BundleStage:
    """A bundle of ours, in this process, batch by batch."""

    def __init__(self, name: str, bundle: Bundle) -> None:
        self.name = name
        self.bundle = bundle

    def ask(self, images: Sequence[tuple[int, str, bytes]]) -> Iterator[tuple[int, Call]]:
        began = time.perf_counter()
        rows = self.bundle.predict([data for _, _, data in images])
        each = round(1000 * (time.perf_counter() - began) / max(len(rows), 1), 3)
        for (index, _, _), row in zip(images, rows, strict=True):
            if row.error is not None:
                yield index, Call(self.name, "broken_image", None, None, 1, each, row.error[:200])
            else:
                yield index, Call(self.name, ANSWERED, row.probability, row.label if row.exit else None, 1, each)


class GuardedStage:
    """A stage that is asked image by image through a Guard: an endpoint or a callable."""

    def __init__(self, name: str, ask: Callable[[bytes], float], guard: Guard, concurrency: int) -> None:
        self.name = name
        self._ask, self._guard, self._concurrency = ask, guard, concurrency

    def ask(self, images: Sequence[tuple[int, str, bytes]]) -> Iterator[tuple[int, Call]]:
        """Daemon threads: who stops in the middle (Ctrl-C) waits for no call, no retry and no budget."""
        left: queue.SimpleQueue[tuple[int, str, bytes]] = queue.SimpleQueue()
        found: queue.SimpleQueue[tuple[int, Call] | BaseException] = queue.SimpleQueue()
        stopped = threading.Event()
        for image in images:
            left.put(image)

        def work() -> None:
            while not stopped.is_set():
                try:
                    image = left.get_nowait()
                except queue.Empty:
                    return
                try:
                    found.put(self._one(*image, stopped))
                except BaseException as error:  # a bug in a stage ends the run, in the thread of who asked
                    found.put(error)

        try:
            for _ in range(min(self._concurrency, len(images))):
                threading.Thread(target=work, daemon=True, name="stage1-cascade").start()
            for _ in images:
                one = found.get()
                if isinstance(one, BaseException):
                    raise one
                yield one
        finally:
            stopped.set()

    def _one(self, index: int, key: str, data: bytes, stopped: threading.Event) -> tuple[int, Call]:
        called = self._guard.call(lambda: self._ask(data), key, stopped)
        return index, Call(
            self.name,
            called.outcome,
            called.probability,
            None,
            called.attempts,
            called.milliseconds,
            called.detail,
            called.waited_ms,
        )


def within(seconds: float, function: Callable[[bytes], Any], concurrency: int = 1) -> Callable[[bytes], float]:
    """`function` with a deadline: Python cannot stop it, so its thread is abandoned and does not keep the process."""
    executor = DeadlineExecutor(concurrency + _LEFT_BEHIND)

    def attempt(data: bytes) -> Any:
        try:
            return function(data)
        except BaseException as error:  # of another's code, SystemExit included: it is an outcome, named in the record
            raise _failed(error) from error

    def ask(data: bytes) -> float:
        try:
            value = executor.call_within(lambda: attempt(data), seconds)
        except DeadlineExceeded as error:
            raise CallFailed("timeout", str(error)) from error
        except RuntimeError as error:  # the machine has no thread left
            raise _failed(error) from error
        # numpy's numbers are numbers.
        plain: float = value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value
        return plain

    return ask


def _failed(error: BaseException) -> CallFailed:
    return CallFailed("failed", f"{type(error).__name__}: {one_line(error)}"[:200])


@dataclass(frozen=True, slots=True)
class Cascade:
    """A cascade file, opened: config, stages, and the digest of who is asked. Made by `open_cascade`."""

    config: CascadeConfig
    stages: tuple[Stage, ...]
    digest: str

    @property
    def names(self) -> list[str]:
        return [stage.name for stage in self.stages]

    @property
    def bundles(self) -> dict[int, Bundle]:
        """The bundles among the stages, by place."""
        return {place: stage.bundle for place, stage in enumerate(self.stages) if isinstance(stage, BundleStage)}


def open_cascade(path: str | Path) -> Cascade:
    """Open every stage of a cascade file: bundles verified, callables imported, keys looked up; nothing is asked yet.

    A cascade file names code that is run and addresses that images are sent to: treat one from others as a program.
    Raises ConfigError, MissingError, IntegrityError, each naming the stage.
    """
    config = load_cascade(path)
    base = Path(path).parent
    stages = tuple(_opened(stage, config, base) for stage in config.stages)
    digests = [stage.bundle.digest if isinstance(stage, BundleStage) else None for stage in stages]
    return Cascade(config, stages, stages_digest(config, digests))


def fixed_rules(config: CascadeConfig) -> tuple[Rule, ...]:
    """The rules of the file. Raises ConfigError where some are `auto`: those are in what `evaluate` writes."""
    if config.needs_select:
        raise ConfigError(
            "exit: auto leaves thresholds open; run `stage1 cascade evaluate` and give its folder with --certified"
        )
    return tuple(rule_of(stage, last=stage is config.stages[-1]) for stage in config.stages)


def rule_of(stage: StageConfig, *, last: bool) -> Rule:
    """The rule of one stage; `auto` values stand at 0.5 until they are chosen."""
    above = 0.5 if stage.answer_above == "auto" else float(stage.answer_above)
    if last:
        return Rule("always", answer_above=above)
    if stage.exit == "own":
        return Rule("own", answer_above=above)
    band = stage.exit
    return Rule("thresholds", getattr(band, "below", None), getattr(band, "above", None), above)


def _opened(stage: StageConfig, config: CascadeConfig, base: Path) -> Stage:
    if stage.bundle is not None:
        bundle = load_bundle(base / stage.bundle)
        if list(bundle.classes) != config.classes:
            raise ConfigError(
                f"stage {stage.name!r}: its bundle has classes {', '.join(bundle.classes)}, the cascade"
                f" {', '.join(config.classes)}"
            )
        by = bundle.policy.sliced_by
        if by is not None and stage.exit == "own":
            raise ConfigError(
                f"stage {stage.name!r}: thresholds of its bundle differ by {by}, which a cascade does not pass on, so"
                " every image would defer; use exit: auto, or certify the bundle with policy.slice_thresholds=one"
            )
        return BundleStage(stage.name, bundle)
    guard = Guard(stage.calls, stage.name, config.seed)
    at_once = stage.calls.concurrency
    if stage.http is not None:
        return GuardedStage(stage.name, Endpoint(stage.http).ask, guard, at_once)
    assert stage.callable is not None, "a stage is a bundle, an endpoint or a callable"
    function = load_function(stage.callable, f"stage {stage.name!r}: callable", str(base.resolve()))
    ask = within(stage.calls.timeout_s, function, at_once)
    return GuardedStage(stage.name, ask, guard, at_once)
