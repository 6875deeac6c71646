"""Retries, budget, breaker: with a clock of the test's own, so that a minute takes no time."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.cascade.calls import Breaker, Budget, CallFailed, Guard, checked_probability
from stage1.cascade.config import CallsConfig


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Script:
    """Answers in turn: a number, or the kind of a failure; the last one for ever."""

    def __init__(self, *answers: float | str, retry: bool = True) -> None:
        self.answers, self.asked, self.retry = list(answers), 0, retry

    def __call__(self) -> float:
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, str):
            raise CallFailed(answer, answer, retry=self.retry)
        return answer


def guard(clock: Clock, seed: int = 0, **settings) -> Guard:
    return Guard(CallsConfig(**settings), "second", seed, clock=clock, sleep=clock.sleep)


def test_the_first_answer_counts():
    called = guard(Clock()).call(Script(0.3), "image")
    assert (called.outcome, called.probability, called.attempts) == ("answered", 0.3, 1)


def test_a_failure_is_tried_again_and_then_recorded():
    clock = Clock()
    called = guard(clock, retries=2).call(Script("timeout", "http_error", 0.3), "image")
    assert (called.outcome, called.attempts, len(clock.slept)) == ("answered", 3, 2)
    called = guard(Clock(), retries=2).call(Script("timeout"), "image")
    assert (called.outcome, called.probability, called.attempts) == ("timeout", None, 3)


def test_what_will_not_get_better_is_not_tried_again():
    script = Script("redirect", retry=False)
    assert guard(Clock(), retries=5).call(script, "image").attempts == 1
    assert script.asked == 1


def test_an_answer_that_is_none_is_a_failure():
    called = guard(Clock(), retries=1).call(Script(float("nan"), 1.7), "image")
    assert (called.outcome, called.attempts, called.detail) == (
        "invalid",
        2,
        "probability 1.7, between 0 and 1 is expected",
    )


def test_jitter_follows_seed_and_image_and_stays_in_bounds():
    def waits(seed: int, key: str) -> list[float]:
        clock = Clock()
        guard(clock, seed, retries=4, backoff_s=1.0, backoff_max_s=3.0, breaker_failures=99).call(
            Script("timeout"), key
        )
        return clock.slept

    first = waits(0, "a")
    assert first == waits(0, "a")
    assert first != waits(1, "a")
    assert first != waits(0, "b")
    assert all(0 <= wait <= most for wait, most in zip(first, (1.0, 2.0, 3.0, 3.0), strict=True))


def test_a_servers_wish_to_wait_is_kept_up_to_the_limit():
    def busy() -> float:
        raise CallFailed("http_error", "HTTP 429", wait_s=100.0)

    clock = Clock()
    guard(clock, retries=1, backoff_s=0.0, backoff_max_s=4.0).call(busy, "image")
    assert clock.slept == [4.0]


def test_the_budget_waits_or_refuses():
    clock = Clock()
    waiting = guard(clock, per_minute=3)
    for _ in range(7):
        assert waiting.call(Script(0.5), "image").outcome == "answered"
    assert clock.now == 1000.0 + 120.0
    refusing = guard(Clock(), per_minute=3, when_over="fall_back")
    assert [refusing.call(Script(0.5), "image").outcome for _ in range(5)] == ["answered"] * 3 + ["over_budget"] * 2


def test_waiting_for_the_budget_is_not_the_stages_time():
    clock = Clock()

    def slow() -> float:
        clock.now += 0.02
        return 0.5

    stage = guard(clock, per_minute=2)
    found = [stage.call(slow, "image") for _ in range(3)]
    assert [(one.milliseconds, one.waited_ms) for one in found] == [(20.0, 0.0), (20.0, 0.0), (20.0, 59960.0)]


def test_waiting_between_attempts_is_told_from_waiting_for_the_budget():
    clock = Clock()
    stage = guard(clock, per_minute=1, retries=1, backoff_s=2.0, backoff_max_s=2.0)
    called = stage.call(Script("timeout", 0.5), "image")
    pause, budget = clock.slept
    assert (called.outcome, called.attempts) == ("answered", 2)
    assert 0 < pause <= 2.0
    assert called.milliseconds == pytest.approx(1000 * pause, abs=1e-3)
    assert called.waited_ms == pytest.approx(1000 * budget, abs=1e-3)
    # Of a call that fails too.
    failed = guard(Clock(), per_minute=1, retries=1, backoff_s=0.0).call(Script("timeout"), "image")
    assert (failed.outcome, failed.milliseconds, failed.waited_ms) == ("timeout", 0.0, 60000.0)


@given(st.integers(1, 5), st.lists(st.floats(0.0, 40.0), min_size=1, max_size=40))
def test_never_more_than_the_budget_in_any_minute(limit, pauses):
    clock, taken = Clock(), []
    budget = Budget(limit, False, clock, clock.sleep)
    for pause in pauses:
        clock.now += pause
        if budget.take():
            taken.append(clock.now)
    assert all(sum(0 <= other - start < 60 for other in taken) <= limit for start in taken)


def test_the_breaker_opens_tries_once_and_closes():
    clock = Clock()
    stage = guard(clock, retries=0, breaker_failures=3, breaker_pause_s=10)
    down, up = Script("unreachable"), Script(0.5)
    assert [stage.call(down, "i").outcome for _ in range(5)] == ["unreachable"] * 3 + ["breaker_open"] * 2
    assert down.asked == 3
    clock.now += 10
    assert [stage.call(down, "i").outcome for _ in range(2)] == ["unreachable", "breaker_open"]
    clock.now += 10
    assert [stage.call(up, "i").outcome for _ in range(2)] == ["answered", "answered"]
    # One failure after a success does not open it again.
    assert [stage.call(down, "i").outcome for _ in range(3)] == ["unreachable"] * 3


def test_images_that_are_refused_do_not_open_the_breaker():
    def refused() -> float:
        raise CallFailed("http_error", "HTTP 422", retry=False, of_image=True)

    clock = Clock()
    stage = guard(clock, retries=2, breaker_failures=3, breaker_pause_s=10)
    found = [stage.call(refused, "i") for _ in range(10)]
    assert {(one.outcome, one.attempts) for one in found} == {("http_error", 1)}
    assert stage.call(Script(0.5), "i").outcome == "answered"
    # It neither closes what is open nor counts as the answer that would: the next one decides.
    down = Script("unreachable")
    for _ in range(1):
        stage.call(down, "i")
    assert stage.call(refused, "i").outcome == "breaker_open"
    clock.now += 10
    assert stage.call(refused, "i").outcome == "http_error"
    assert stage.call(Script(0.5), "i").outcome == "answered"


def test_who_is_no_longer_waited_for_makes_no_further_attempt():
    stopped, clock = threading.Event(), Clock()
    script = Script("timeout")

    def ask() -> float:
        stopped.set()
        return script()

    assert guard(clock, retries=5).call(ask, "i", stopped).attempts == 1
    assert script.asked == 1


def test_only_one_attempt_tries_a_stage_that_was_left_alone():
    clock = Clock()
    breaker = Breaker(1, 5.0, clock)
    assert breaker.allows()
    breaker.ended(False)
    clock.now += 5
    assert [breaker.allows(), breaker.allows()] == [True, False]
    breaker.released()
    assert breaker.allows()


def test_a_spent_budget_does_not_hold_the_breakers_one_attempt():
    clock = Clock()
    stage = guard(clock, retries=0, per_minute=1, when_over="fall_back", breaker_failures=1, breaker_pause_s=5)
    assert stage.call(Script("timeout"), "i").outcome == "timeout"
    clock.now += 5
    assert stage.call(Script(0.5), "i").outcome == "over_budget"
    clock.now += 60
    assert stage.call(Script(0.5), "i").outcome == "answered"


def test_a_bug_in_a_stage_goes_through_and_leaves_the_breaker_usable():
    stage = guard(Clock(), retries=0, breaker_failures=1)

    def bug() -> float:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        stage.call(bug, "i")
    assert stage.call(Script(0.5), "i").outcome == "answered"


def test_many_threads_share_one_budget():
    clock = Clock()
    stage = guard(clock, per_minute=20, when_over="fall_back")
    outcomes: list[str] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(stage.call(Script(0.5), "i").outcome)) for _ in range(50)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["answered"] * 20 + ["over_budget"] * 30


def test_no_probability():
    for value in (float("nan"), float("inf"), -0.1, 1.7, True, None, "0.5", [0.5], 10**5000):
        with pytest.raises(CallFailed):
            checked_probability(value)
