"""What is asked of a certificate: targets, floors, confidence, unit; checked once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from stage1.errors import ConfigError
from stage1.policy.boundary import Boundary
from stage1.risk.risks import risk_names, risk_of


@dataclass(frozen=True, slots=True)
class Request:
    """A target set: every risk at most its value, coverage at least its floors, jointly at `confidence`.

    coverage: floor on P(exit); class_coverage: floors on P(exit | class), by class name. target_prior: P(y = 1) where
    the bundle will work; `error` and `coverage` are then those at this prior. classes: (negative, positive), or K > 2
    names; the risks are then error, fnr.<class>, wrong.<class> and miss_rate.<class>, and there is no target_prior.
    against_argmax: an image may exit as a class that its probability does not favour; boundary: else the limits of the
    thresholds of two classes, known from val_select (policy/boundary.py), None: none.
    Raises ConfigError naming the field.
    """

    risks: Mapping[str, float]
    confidence: float = 0.95
    coverage: float | None = None
    class_coverage: Mapping[str, float] = field(default_factory=dict)
    target_prior: float | None = None
    allow_one_sided: bool = False
    classes: Sequence[str] = ("0", "1")
    against_argmax: bool = False
    boundary: Boundary | None = None

    def __post_init__(self) -> None:
        if not self.risks:
            raise ConfigError(
                f"risks: an empty target; name at least one, e.g. {'fnr' if len(self.classes) == 2 else 'error'}=0.02"
            )
        for name, target in self.risks.items():
            risk_of(name, self.classes)
            _check_rate(f"risks.{name}", target)
        _check_rate("confidence", self.confidence)
        for name, value in (("coverage", self.coverage), ("target_prior", self.target_prior)):
            if value is not None:
                _check_rate(name, value)
        for name, floor in self.class_coverage.items():
            if name not in self.classes:
                raise ConfigError(f"class_coverage.{name}: no such class; classes are {', '.join(self.classes)}")
            _check_rate(f"class_coverage.{name}", floor)
        if self.target_prior is not None and len(self.classes) > 2:
            raise ConfigError(
                f"target_prior: {self.target_prior:g} is a share of positives, and there are {len(self.classes)}"
                " classes; leave it out (fnr.<class> and miss_rate.<class> hold at every class balance)"
            )
        moved = [name for name in self.risks if name != "error" and not risk_of(name, self.classes)[0].of_one_class]
        if self.target_prior is not None and moved:
            raise ConfigError(
                f"target_prior: {moved[0]} moves with the class balance and is not restated at another one; leave"
                " target_prior out, or take the risk out of the target"
            )
        if self.one_sided and not self.allow_one_sided:
            raise ConfigError(f"risks: {' + '.join(self.risks)} {self._way_out}, or set allow_one_sided=true")

    @property
    def _way_out(self) -> str:
        if len(self.classes) == 2:
            return "constrains one side only; add the other side (e.g. miss_rate + false_exit_rate)"
        return "leaves wrong answers of other classes without a limit; add error, or one of these risks for each class"

    @property
    def one_sided(self) -> bool:
        """True where some wrong answers are without a limit: "always answer this class" would satisfy the risks."""
        asked = [risk_of(name, self.classes) for name in self.risks]
        sides = {risk.side for risk, _ in asked}
        if "both" in sides:
            return False
        if len(self.classes) == 2:
            return len(sides) == 1
        by_truth = {index for risk, index in asked if not risk.by_answer}
        by_answer = {index for risk, index in asked if risk.by_answer}
        return max(len(by_truth), len(by_answer)) < len(self.classes)

    @property
    def targets(self) -> dict[str, float]:
        """The risks in a fixed order."""
        return {name: float(self.risks[name]) for name in risk_names(self.classes) if name in self.risks}

    @property
    def has_floor(self) -> bool:
        return self.coverage is not None or bool(self.class_coverage)


def settable(targets: Mapping[str, float]) -> str:
    """A target as an override of the command line, "risks={error: 0.05, fnr.cat: 0.1}": the whole target."""
    plain = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
    named = (name if plain.fullmatch(name) else json.dumps(name, ensure_ascii=False) for name in targets)
    return f"risks={{{', '.join(f'{name}: {target:g}' for name, target in zip(named, targets.values(), strict=True))}}}"


def rounded_up(level: float) -> float:
    """A level with three digits, rounded up: rounding down would name one that fails."""
    return ceil(level * 1000) / 1000 if level < 1 else 1.0


_STEP, _ROUNDS = 1.4, 20


def passing_targets(
    request: Request, failing: Callable[[Request], Mapping[str, float] | None]
) -> dict[str, float] | None:
    """The target nearest to `request` that these units certify when it is asked for instead; None where none is found.

    failing(request): the risks that fail where testing stops, with the bounds that they reach there; {} where the whole
    target passes, None where no thresholds are found for it. Larger targets make another path, so the first answer
    is tried, not believed.
    """
    targets = dict(request.targets)
    for _ in range(_ROUNDS):
        found = failing(replace(request, risks=targets))
        if found is None:
            # No path at all: the target is far off.
            targets = {name: rounded_up(_STEP * target) for name, target in targets.items()}
        elif not found:
            return targets if targets != dict(request.targets) else None
        else:
            # A bound from a handful of exits is far above what more exits show at a larger target: not further than a
            # step.
            targets |= {
                name: rounded_up(max(min(bound, _STEP * targets[name]), targets[name] + 0.001))
                for name, bound in found.items()
            }
        if max(targets.values()) >= 1:
            return None
    return None


def _check_rate(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ConfigError(f"{name}: must lie strictly between 0 and 1, got {value!r}")
