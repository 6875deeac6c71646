"""What is asked of a certificate: targets, floors, confidence, unit; checked once."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

from stage1.errors import ConfigError
from stage1.policy.boundary import Boundary
from stage1.risk.sample_size import SIDES

RISKS = (*SIDES, "error")
# More than two classes: each of these is said of one class, as KIND.CLASS.
CLASS_RISKS = ("fnr", "wrong", "miss_rate")


@dataclass(frozen=True, slots=True)
class Request:
    """A target set: every risk at most its value, coverage at least its floors, jointly at `confidence`.

    coverage: floor on P(exit); class_coverage: floors on P(exit | class), by class name. target_prior: P(y = 1) where
    the bundle will work; `error` and `coverage` are then those at this prior. classes: (negative, positive), or K > 2
    names; the risks are then error, fnr.<class>, wrong.<class> and miss_rate.<class>, and there is no target_prior.
    against_argmax: an image may exit as a class that its probability does not favour; boundary: else the limits of the
    thresholds of two classes, known once val_select has been looked at (policy/boundary.py), None: none.
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
            _check_name(name, self.classes)
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
        if "error" in self.risks:
            return False
        if len(self.classes) == 2:
            return len({SIDES[name][0] for name in self.risks if name in SIDES}) == 1
        parts = [risk_parts(name, self.classes) for name in self.risks]
        by_truth = {index for kind, index in parts if kind != "wrong"}
        by_answer = {index for kind, index in parts if kind == "wrong"}
        return max(len(by_truth), len(by_answer)) < len(self.classes)

    @property
    def targets(self) -> dict[str, float]:
        """The risks in a fixed order."""
        return {name: float(self.risks[name]) for name in risk_names(self.classes) if name in self.risks}

    @property
    def has_floor(self) -> bool:
        return self.coverage is not None or bool(self.class_coverage)


def settable(targets: Mapping[str, float]) -> str:
    """A target as an override that the command line takes, e.g. "risks={error: 0.05, fnr.cat: 0.1}"; it is the
    whole target.
    """
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
    target passes, None where no thresholds are found for it. Larger targets lay out another path, so the first answer
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


def risk_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Every risk that can be asked for with these classes, in a fixed order."""
    if len(classes) == 2:
        return RISKS
    return ("error", *(f"{kind}.{name}" for kind in CLASS_RISKS for name in classes))


def risk_parts(name: str, classes: Sequence[str]) -> tuple[str, int]:
    """(kind, class) of a risk of more than two classes: "fnr.cat" -> ("fnr", 3); ("error", -1) for error.

    Raises ConfigError for a name that `risk_names` does not hold.
    """
    _check_name(name, classes)
    kind, _, of = name.partition(".")
    return kind, list(classes).index(of) if of else -1


def _check_name(name: str, classes: Sequence[str]) -> None:
    if name in risk_names(classes):
        return
    kind, dot, of = name.partition(".")
    if len(classes) > 2 and name in SIDES:
        known = f"{kind}.<class>" if kind in CLASS_RISKS else "fnr.<class>"
        raise ConfigError(
            f"risk {name!r} is for two classes, there are {len(classes)}; use error, or {known}, e.g. "
            f"{known.split('.')[0]}.{classes[0]}; risks={{error: 0.05}} replaces the whole target"
        )
    if dot and kind in CLASS_RISKS:
        if len(classes) == 2:
            raise ConfigError(f"risk {name!r} is for more than two classes; with two, risks are {', '.join(RISKS)}")
        near = difflib.get_close_matches(of, classes, n=1, cutoff=0.5)
        raise ConfigError(
            f"risk {name!r}: no class {of!r}{f'; did you mean {kind}.{near[0]}?' if near else ''}; classes are"
            f" {', '.join(classes)}"
        )
    shown = RISKS if len(classes) == 2 else ("error", *(f"{kind}.<class>" for kind in CLASS_RISKS))
    raise ConfigError(f"risk {name!r} is unknown; risks are {', '.join(shown)}")


def _check_rate(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ConfigError(f"{name}: must lie strictly between 0 and 1, got {value!r}")
