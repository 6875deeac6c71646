"""The state machine: the worst condition counts, VOID lets nothing exit and is never taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.errors import ConfigError
from stage1.monitoring import Condition, Standing, State

NAMES = st.sampled_from(["runtime", "verification", "drift", "audit"])
CONDITIONS = st.builds(
    Condition,
    NAMES,
    st.sampled_from([State.DEGRADED, State.VOID]),
    st.sampled_from(["one", "two", "three"]),
    since=st.floats(0, 100),
)
MOVES = st.lists(st.one_of(CONDITIONS, NAMES), max_size=12)
"""A condition is raised, a name is taken back."""


def moved(standing: Standing, move: Condition | str) -> Standing:
    if isinstance(move, Condition):
        return standing.with_condition(move)
    try:
        return standing.without(move)
    except ConfigError:
        return standing


@given(MOVES)
def test_the_state_is_the_worst_that_was_raised_and_not_taken_back(moves):
    standing = Standing()
    worst: dict[str, int] = {}  # an oracle of its own: name -> severity
    for move in moves:
        standing = moved(standing, move)
        if isinstance(move, Condition):
            worst[move.name] = max(worst.get(move.name, 0), move.state.severity)
        elif worst.get(move) == 1:
            del worst[move]
    assert standing.state.severity == max(worst.values(), default=0)
    assert {condition.name for condition in standing.conditions} == set(worst)
    assert (standing.reason is None) == (not worst)


@given(MOVES, MOVES)
def test_nothing_leads_back_from_void(first, then):
    standing = Standing()
    for move in first:
        standing = moved(standing, move)
    if standing.state is not State.VOID:
        return
    for move in then:
        standing = moved(standing, move)
        assert standing.state is State.VOID
        assert not standing.may_exit(True)


@given(MOVES, st.booleans())
def test_no_state_lets_an_image_exit_that_the_policy_defers(moves, exits):
    standing = Standing()
    for move in moves:
        standing = moved(standing, move)
    assert standing.may_exit(exits) <= exits
    assert standing.may_exit(exits) == (exits and standing.state is not State.VOID)


def test_what_voids_is_not_taken_back_and_says_what_to_do():
    standing = Standing().with_condition(Condition("runtime", State.VOID, "onnxruntime 2, certified with 1", 5.0))
    with pytest.raises(ConfigError, match="load a verified bundle"):
        standing.without("runtime")
    with pytest.raises(ConfigError, match="there are: runtime"):
        standing.without("drift")


def test_reasons_are_those_of_the_state_and_the_first_time_stays():
    standing = Standing()
    for name, state, reason, since in (
        ("drift", State.DEGRADED, "darker", 1.0),
        ("runtime", State.VOID, "other runtime", 2.0),
        ("runtime", State.VOID, "yet another runtime", 3.0),
    ):
        standing = standing.with_condition(Condition(name, state, reason, since))
    assert standing.reason == "yet another runtime"
    assert standing.to_json()["conditions"][1]["since"] == 2.0


@pytest.mark.parametrize(
    "name, state, reason",
    [("a", State.VALID, "fine"), ("", State.VOID, "b"), ("a", State.VOID, " "), ("a", State.VOID, "two\nlines")],
)
def test_a_condition_that_says_nothing_is_refused(name, state, reason):
    with pytest.raises(ConfigError):
        Condition(name, state, reason, 0.0)
