"""What a kind of policy is: its name, its file, how it is fitted and read, and what the stages ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from stage1.errors import ConfigError, DataError
from stage1.policy.attempts import Attempts
from stage1.policy.base import Policy
from stage1.policy.certificate import Certificate
from stage1.policy.units import Counting
from stage1.scores import Scores
from stage1.storage.documents import DocumentKind

if TYPE_CHECKING:
    from stage1.calibration import CalibrationMap
    from stage1.policy.boundary import Boundary
    from stage1.policy.target import Request

Say = Callable[[str], None]


class Configured(Protocol):
    """What the policies read of a config (stage1.config.RunConfig); `policy` is the section of that name."""

    @property
    def policy(self) -> Any: ...

    @property
    def confidence(self) -> float: ...

    @property
    def coverage(self) -> float | None: ...

    @property
    def class_coverage(self) -> Mapping[str, float]: ...

    @property
    def target_prior(self) -> float | None: ...

    @property
    def allow_one_sided(self) -> bool: ...

    @property
    def unit(self) -> str: ...

    @property
    def data(self) -> Any: ...

    @property
    def seed(self) -> int: ...

    def risks_for(self, n_classes: int) -> dict[str, float]:
        """The target for so many classes."""
        ...


@dataclass(frozen=True, slots=True)
class FitInputs:
    """What every policy is fitted from: the arguments of fit_policy, checked by the policy that takes them.

    >>> calib = Scores([[0.0, -1.0], [0.0, 1.0]], labels=[0, 1])
    >>> given = FitInputs(calib, None, {"miss_rate": 0.02, "false_exit_rate": 0.05}, classes=["none", "roadwork"])
    >>> given.names(), given.request().one_sided
    (('none', 'roadwork'), False)
    """

    calib: Scores
    select: Scores | None
    risks: Mapping[str, float]
    confidence: float = 0.95
    coverage: float | None = None
    class_coverage: Mapping[str, float] = field(default_factory=dict)
    target_prior: float | None = None
    allow_one_sided: bool = False
    classes: Sequence[str] | None = None
    against_argmax: bool = False
    calibration: CalibrationMap | None = None
    counting: Counting = field(default_factory=Counting)

    def names(self) -> tuple[str, ...]:
        """The class names, else "0", "1", .. Raises DataError where their number is not that of the logits."""
        columns = self.calib.n_classes
        names = tuple(self.classes) if self.classes is not None else tuple(str(index) for index in range(columns))
        if len(names) != columns:
            raise DataError(f"classes: {len(names)} names, {columns} columns of logits; give one name for each")
        return names

    def request(self) -> Request:
        """The target, with no boundary yet. Raises DataError (classes) and ConfigError (target)."""
        from stage1.policy.target import Request

        return Request(
            self.risks,
            self.confidence,
            self.coverage,
            self.class_coverage,
            self.target_prior,
            self.allow_one_sided,
            self.names(),
            self.against_argmax,
        )

    def boundary(self) -> Boundary | None:
        """Even odds on the score (two classes) by `calibration`, else the best map of val_select. None: no limit."""
        if self.against_argmax or self.calib.n_classes != 2:
            return None
        from stage1.policy.boundary import boundary_of_map, boundary_of_scores

        if self.calibration is None:
            return boundary_of_scores(self.select, self.target_prior, self.counting.seed)
        return boundary_of_map(self.calibration, self.select, self.target_prior)

    def counted(self, attempts: Attempts, confidence: float) -> FitInputs:
        """The same as one of several looks at these images: tested at `confidence`; nothing, where nothing is left."""
        because = self.counting.uncertified_because or attempts.reason
        counting = replace(self.counting, attempts=attempts, uncertified_because=because)
        return replace(self, confidence=confidence, counting=counting)

    def asked(self, policy: str, options: Any) -> dict[str, Any]:
        """What makes it another look (policy/ledger.py): all that the certificate depends on, as plain values."""
        from stage1.policy.ledger import scores_digest

        counting = self.counting
        return {
            "policy": policy,
            **{item.name: repr(getattr(options, item.name)) for item in fields(options)},
            "risks": dict(self.risks),
            "confidence": self.confidence,
            "coverage": self.coverage,
            "class_coverage": dict(self.class_coverage),
            "target_prior": self.target_prior,
            "allow_one_sided": self.allow_one_sided,
            "against_argmax": self.against_argmax,
            "calibration": None if self.calibration is None else repr(self.calibration),
            "unit": counting.unit,
            "assume_iid": counting.assume_iid,
            "seed": counting.seed,
            "slices": list(counting.slices),
            **({"slice_thresholds": counting.slice_thresholds} if counting.slices else {}),
            "scores": scores_digest(self.calib, self.select),
        }


@dataclass(frozen=True, slots=True)
class Judged:
    """Options that val_select decides before a calibration map is chosen. own_probability: with them the policy states
    a probability of its own, so no map is fitted.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    own_probability: bool = False


def nothing_to_judge(select: Scores, seed: int, say: Say) -> Judged:
    """val_select decides nothing before the map."""
    return Judged()


def as_configured(config: Configured, select: Scores | None, n_classes: int, say: Say) -> Mapping[str, Any]:
    """The config has no option of the policy."""
    return {}


def checked_request(config: Configured, classes: Sequence[str]) -> None:
    """Raises ConfigError where the target of the config cannot be asked for with these classes."""
    from stage1.policy.target import Request

    Request(
        config.risks_for(len(classes)),
        config.confidence,
        config.coverage,
        config.class_coverage,
        config.target_prior,
        config.allow_one_sided,
        tuple(classes),
    )


def takes_all(config: Configured) -> None:
    """Nothing is refused."""


def no_reason(config: Configured) -> str | None:
    """An audit says something."""
    return None


def smoke_error(n_classes: int) -> tuple[str, ...]:
    """Overrides of the recipe smoke: its own target for two classes, the error for more."""
    return () if n_classes == 2 else ("risks={error: 0.5}",)


@dataclass(frozen=True, slots=True)
class PolicyKind:
    """One row of POLICIES (policy/registry.py).

    name: of the policy, in configs and documents. file: its policy file; document: the kind of it. options: a dataclass
    of what fit_policy takes for it alone. fit, load: make and read one. control: the plug-in rule that audit compares
    it with, from val_select, val_calib and the targets; None: there is none. classes: "2", or "any" number. slices:
    whether it claims risks for slices (of two classes). takes: raises ValueError where a config asks for what it cannot
    have with any classes. check: raises ConfigError where it cannot be had with a config and these classes. judge:
    options that val_select decides before a map is chosen, on raw scores. configure: options by the config, chosen on
    val_select on the scores that the thresholds will be on (select, number of classes). smoke: overrides of the recipe
    smoke for so many classes. unauditable: why an audit of this config would say nothing, None: it says something.
    on_margin: for two classes, its thresholds are those of `threshold_choice.rule` on the margin.

    >>> from stage1.policy import policy_kind
    >>> kind = policy_kind("scrc")
    >>> kind.file, kind.classes, kind.slices
    ('scrcparams.json', 'any', False)
    """

    name: str
    file: str
    document: DocumentKind
    options: type[Any]
    fit: Callable[[FitInputs, Any], Policy]
    load: Callable[[dict[str, Any], Certificate | None], Policy]
    control: Callable[[Policy, Scores, Scores, Mapping[str, float]], Policy | None]
    classes: Literal["2", "any"] = "any"
    slices: bool = True
    takes: Callable[[Configured], None] = takes_all
    check: Callable[[Configured, Sequence[str]], None] = checked_request
    judge: Callable[[Scores, int, Say], Judged] = nothing_to_judge
    configure: Callable[[Configured, Scores | None, int, Say], Mapping[str, Any]] = as_configured
    smoke: Callable[[int], tuple[str, ...]] = smoke_error
    unauditable: Callable[[Configured], str | None] = no_reason
    on_margin: bool = False

    def options_of(self, given: Mapping[str, Any]) -> Any:
        """`options` from those of `given` that it has."""
        known = {item.name for item in fields(self.options)}
        return self.options(**{name: value for name, value in given.items() if name in known})

    def check_options(self, given: Mapping[str, Any]) -> None:
        """Raises ConfigError where an option is none of this policy."""
        known = [item.name for item in fields(self.options)]
        for name in given:
            if name not in known:
                raise ConfigError(f"policy {self.name}: no option {name!r}; options are {', '.join(known) or 'none'}")
