"""Calls of a stage that may fail: retries with jitter, a budget of calls per minute, a circuit breaker.

Each call ends in an outcome, never in an exception. An endpoint's answer is validated here: `checked_probability` takes
a number in [0, 1], `strict_json` a document without repeated keys; anything else is the outcome "invalid".
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage1.cascade.config import CallsConfig

ANSWERED = "answered"
# What can come of asking one stage for one image. Those of OUTAGES say nothing of the image: they come in runs.
OUTCOMES = (
    ANSWERED,
    "timeout",
    "unreachable",
    "http_error",
    "redirect",
    "too_large",
    "invalid",
    "failed",
    "broken_image",
    "over_budget",
    "breaker_open",
)
OUTAGES = ("over_budget", "breaker_open")


class CallFailed(Exception):
    """One attempt without an answer. kind: of OUTCOMES; retry: another attempt may do better; of_image: the stage is
    well, it refuses this one image, which is nothing for the breaker."""

    def __init__(
        self, kind: str, detail: str, *, retry: bool = True, wait_s: float = 0.0, of_image: bool = False
    ) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.retry = retry
        self.wait_s = wait_s
        self.of_image = of_image


@dataclass(frozen=True, slots=True)
class Called:
    """How asking ended. probability: None unless outcome is "answered". attempts: requests made; milliseconds: all of
    them with the pauses between them; waited_ms: for the budget, which is no part of it."""

    outcome: str
    probability: float | None
    attempts: int
    milliseconds: float
    waited_ms: float
    detail: str | None = None


def checked_probability(value: Any) -> float:
    """`value` as a probability. Raises CallFailed("invalid") for NaN, 1.7, text, true."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise CallFailed("invalid", f"probability is {type(value).__name__}, a number is expected")
    try:
        number = float(value)
    except OverflowError:  # a whole number of hundreds of digits, which str() might refuse as well
        number = math.inf
    if not 0 <= number <= 1:
        raise CallFailed("invalid", f"probability {number:g}, between 0 and 1 is expected")
    return abs(number)  # not -0.0


def strict_json(text: str | bytes) -> Any:
    """The document in `text`. Raises ValueError or RecursionError where it is no JSON, CallFailed("invalid") where a
    key is in it twice: which of the two is meant is unknown."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise CallFailed("invalid", f"key {twice!r} twice in one object")
        return found

    return json.loads(text, object_pairs_hook=once)


class Budget:
    """At most `per_minute` attempts in any 60 seconds; None: no limit. Thread-safe."""

    def __init__(
        self, per_minute: int | None, wait: bool, clock: Callable[[], float], sleep: Callable[[float], None]
    ) -> None:
        self._limit, self._wait, self._clock, self._sleep = per_minute, wait, clock, sleep
        self._taken: deque[float] = deque()
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Take one attempt, waiting for it where that is asked for; False where the budget is spent."""
        while self._limit is not None:
            with self._lock:
                now = self._clock()
                while self._taken and now - self._taken[0] >= 60.0:
                    self._taken.popleft()
                if len(self._taken) < self._limit:
                    self._taken.append(now)
                    return True
                free_in = 60.0 - (now - self._taken[0])
            if not self._wait:
                return False
            self._sleep(free_in)
        return True


class Breaker:
    """Closed until `failures` attempts in a row fail; open for `pause_s`; then one attempt decides. Thread-safe."""

    def __init__(self, failures: int, pause_s: float, clock: Callable[[], float]) -> None:
        self._most, self._pause, self._clock = failures, pause_s, clock
        self._in_a_row = 0
        self._open_until: float | None = None
        self._trying = False
        self._lock = threading.Lock()

    def allows(self) -> bool:
        """Whether an attempt may be made now. After True, `ended` or `released` must follow."""
        with self._lock:
            if self._open_until is None:
                return True
            if self._trying or self._clock() < self._open_until:
                return False
            self._trying = True
            return True

    def ended(self, good: bool) -> None:
        with self._lock:
            self._trying = False
            if good:
                self._in_a_row, self._open_until = 0, None
                return
            self._in_a_row += 1
            if self._in_a_row >= self._most:
                self._open_until = self._clock() + self._pause

    def released(self) -> None:
        """The attempt was not made after all."""
        with self._lock:
            self._trying = False


class Guard:
    """Everything between a stage and its caller; one per stage and process.

    clock, sleep: time.monotonic and time.sleep, or a test's own.
    """

    def __init__(
        self,
        settings: CallsConfig,
        stage: str,
        seed: int,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._settings, self._stage, self._seed = settings, stage, seed
        self._clock, self._sleep = clock, sleep
        self._budget = Budget(settings.per_minute, settings.when_over == "wait", clock, sleep)
        self._breaker = Breaker(settings.breaker_failures, settings.breaker_pause_s, clock)

    def call(self, ask: Callable[[], float], key: str, stopped: threading.Event | None = None) -> Called:
        """Ask until there is an answer, or no further attempt is allowed. key: names the image, for the jitter.

        ask: one attempt; raises CallFailed. stopped: the caller no longer waits for the answer, so no further attempt
        is made.
        """
        began, attempts, waited = self._clock(), 0, 0.0
        failure = CallFailed("breaker_open", "the stage failed too often in a row and is left alone for a while")
        while attempts <= self._settings.retries:
            if not self._breaker.allows():
                break
            before = self._clock()
            taken = self._budget.take()
            # How long an image waits for its turn follows from how many are asked for, not from the stage.
            waited += self._clock() - before if self._settings.per_minute is not None else 0.0
            if not taken or (stopped is not None and stopped.is_set()):
                self._breaker.released()
                if not attempts:
                    failure = CallFailed("over_budget", f"{self._settings.per_minute} attempts a minute are spent")
                break
            attempts += 1
            try:
                probability = checked_probability(ask())
            except CallFailed as error:
                if error.of_image:
                    self._breaker.released()
                else:
                    self._breaker.ended(False)
                failure = error
                if not error.retry or attempts > self._settings.retries:
                    break
                self._sleep(max(self._delay(key, attempts), min(error.wait_s, self._settings.backoff_max_s)))
                continue
            except BaseException:
                self._breaker.released()
                raise
            self._breaker.ended(True)
            return Called(ANSWERED, probability, attempts, *self._spent(began, waited))
        milliseconds, waited_ms = self._spent(began, waited)
        return Called(failure.kind, None, attempts, milliseconds, waited_ms, failure.detail)

    def _spent(self, began: float, waited: float) -> tuple[float, float]:
        """Milliseconds since `began`: (on the stage, on waiting for the budget)."""
        return round(1000 * max(self._clock() - began - waited, 0.0), 3), round(1000 * waited, 3)

    def _delay(self, key: str, attempt: int) -> float:
        """Uniform up to the backoff: by hash, so that it does not depend on which thread asks when."""
        digest = hashlib.sha256(f"{self._seed}|{self._stage}|{key}|{attempt}".encode()).digest()
        most: float = min(self._settings.backoff_s * 2.0 ** (attempt - 1), self._settings.backoff_max_s)
        share: float = int.from_bytes(digest[:8]) / 2**64
        return most * share
