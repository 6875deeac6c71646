"""What is asked of a certificate: targets, floors, confidence, unit; checked once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stage1.errors import ConfigError
from stage1.risk.planning import SIDES

RISKS = (*SIDES, "error")


@dataclass(frozen=True, slots=True)
class Request:
    """A target set: every risk at most its value, coverage at least its floors, jointly at `confidence`.

    coverage: floor on P(exit); class_coverage: floors on P(exit | class), by class name. target_prior: P(y = 1) where the
    bundle will work; `error` and `coverage` are then those at this prior. classes: (negative, positive).
    Raises ConfigError naming the field.
    """

    risks: Mapping[str, float]
    confidence: float = 0.95
    coverage: float | None = None
    class_coverage: Mapping[str, float] = field(default_factory=dict)
    target_prior: float | None = None
    allow_one_sided: bool = False
    classes: Sequence[str] = ("0", "1")

    def __post_init__(self) -> None:
        if not self.risks:
            raise ConfigError("risks: an empty target; name at least one, e.g. fnr=0.02")
        for name, target in self.risks.items():
            if name not in RISKS:
                raise ConfigError(f"risk {name!r} is unknown; risks are {', '.join(RISKS)}")
            _check_rate(f"risks.{name}", target)
        _check_rate("confidence", self.confidence)
        for name, value in (("coverage", self.coverage), ("target_prior", self.target_prior)):
            if value is not None:
                _check_rate(name, value)
        for name, floor in self.class_coverage.items():
            if name not in self.classes:
                raise ConfigError(f"class_coverage.{name}: no such class; classes are {', '.join(self.classes)}")
            _check_rate(f"class_coverage.{name}", floor)
        if self.one_sided and not self.allow_one_sided:
            raise ConfigError(
                f"risks: {' + '.join(self.risks)} constrains one side only; add the other side (e.g. miss_rate + "
                "false_exit_rate), or set allow_one_sided=true"
            )

    @property
    def one_sided(self) -> bool:
        """True where answering everything with one class would satisfy the risks."""
        sides = {SIDES[name][0] for name in self.risks if name in SIDES}
        return "error" not in self.risks and len(sides) == 1

    @property
    def targets(self) -> dict[str, float]:
        """The risks in a fixed order."""
        return {name: float(self.risks[name]) for name in RISKS if name in self.risks}

    @property
    def has_floor(self) -> bool:
        return self.coverage is not None or bool(self.class_coverage)


def _check_rate(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
        raise ConfigError(f"{name}: must lie strictly between 0 and 1, got {value!r}")
