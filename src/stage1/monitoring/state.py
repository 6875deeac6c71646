"""The state of a certificate in use: VALID, DEGRADED or VOID, with the reasons, as a pure function of conditions.

A certificate is of one model, preprocessing, choice of views, policy and runtime, and of images like those it was
certified on. Where one of these is known to be gone the promise is gone too: VOID, and every image defers, which is
true of any images. Where something casts doubt on it: DEGRADED, which may only make more images defer, so that the
limits on wrong exits of all images (`miss_rate`, `false_exit_rate`) cannot be broken by it.

Transitions: any condition may be raised by anybody at any time. One that degrades may be taken back by its name. One
that voids stays: a bundle that was verified again begins with a new `Standing`, and there is no other way back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from stage1.errors import ConfigError


class State(Enum):
    """Of a certificate in use; the order is that of `severity`."""

    VALID = "VALID"
    DEGRADED = "DEGRADED"
    VOID = "VOID"

    @property
    def severity(self) -> int:
        """0, 1, 2."""
        return list(State).index(self)


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that holds and takes from the certificate. name: which, e.g. "runtime"; state: DEGRADED or VOID.

    reason: one line, shown to every client. since: epoch seconds. by: who raised it.
    """

    name: str
    state: State
    reason: str
    since: float
    by: str = "server"

    def __post_init__(self) -> None:
        if self.state is State.VALID:
            raise ConfigError(f"condition {self.name}: a condition degrades or voids; VALID is where there is none")
        if not self.name.strip() or not self.reason.strip():
            raise ConfigError("condition: a name and a reason are needed")
        if "\n" in self.reason or "\r" in self.reason:
            raise ConfigError(f"condition {self.name}: the reason is more than one line")


def state_of(conditions: Iterable[Condition]) -> State:
    """The worst of the conditions, VALID without one.

    >>> state_of([])
    <State.VALID: 'VALID'>
    """
    return max((condition.state for condition in conditions), key=lambda state: state.severity, default=State.VALID)


@dataclass(frozen=True, slots=True)
class Standing:
    """The conditions of one verified bundle; a new one has none.

    >>> doubt = Condition("drift", State.DEGRADED, "brightness moved", since=0.0)
    >>> standing = Standing().with_condition(doubt)
    >>> standing.state.value, standing.reason, standing.without("drift").state.value
    ('DEGRADED', 'brightness moved', 'VALID')
    """

    conditions: tuple[Condition, ...] = ()

    @property
    def state(self) -> State:
        return state_of(self.conditions)

    @property
    def reason(self) -> str | None:
        """Why it is not VALID: the reasons of that state, oldest first; None where it is."""
        state = self.state
        if state is State.VALID:
            return None
        return "; ".join(condition.reason for condition in self.conditions if condition.state is state)

    def may_exit(self, exits: bool) -> bool:
        """Whether an image that the policy lets exit does: never where the state is VOID."""
        return exits and self.state is not State.VOID

    def with_condition(self, condition: Condition) -> Standing:
        """With one more; one of the same name is replaced, unless that would mend what is VOID."""
        known = next((other for other in self.conditions if other.name == condition.name), None)
        if known is not None and known.state.severity >= condition.state.severity:
            if known.state is not condition.state:
                return self
            condition = Condition(condition.name, condition.state, condition.reason, known.since, condition.by)
        return Standing((*(other for other in self.conditions if other.name != condition.name), condition))

    def without(self, name: str) -> Standing:
        """Without the condition of this name. Raises ConfigError where there is none, or where it voids."""
        found = next((condition for condition in self.conditions if condition.name == name), None)
        if found is None:
            names = ", ".join(condition.name for condition in self.conditions) or "none"
            raise ConfigError(f"condition {name}: there is none of this name (there are: {names})")
        if found.state is State.VOID:
            raise ConfigError(f"condition {name}: it voids the certificate; load a verified bundle")
        return Standing(tuple(condition for condition in self.conditions if condition.name != name))

    def to_json(self) -> dict[str, Any]:
        return {
            "state": self.state.value,
            "reason": self.reason,
            "conditions": [
                {
                    "name": condition.name,
                    "state": condition.state.value,
                    "reason": condition.reason,
                    "since": condition.since,
                    "by": condition.by,
                }
                for condition in self.conditions
            ],
        }
