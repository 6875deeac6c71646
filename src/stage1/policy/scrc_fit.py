"""SCRC as a kind of policy: what it takes, how it is fitted, and what the stages ask of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stage1.errors import ConfigError, DataError
from stage1.policy.base import Policy
from stage1.policy.kind import Configured, FitInputs, PolicyKind, Say
from stage1.policy.scrc import ScrcPolicy
from stage1.policy.softmax import plug_in
from stage1.policy.units import ALL_IMAGES, Counting, check_samples
from stage1.scores import Scores

if TYPE_CHECKING:
    from stage1.policy.boundary import Boundary
    from stage1.policy.scrc_choice import Target

SCRC_COVERAGE = 0.7
"""Share of images to be selected, where none is asked for."""


def fit_scrc(
    *,
    calib: Scores,
    risks: Mapping[str, float],
    coverage: float,
    select: Scores | None = None,
    confidence: float = 0.95,
    variant: str = "I",
    classes: Sequence[str] | None = None,
    against_argmax: bool = True,
    boundary: Boundary | None = None,
    counting: Counting = Counting(),
) -> ScrcPolicy:
    """Choose tau and the class floors on `calib` and certify them; nothing but `calib` is needed to do it again.

    coverage: xi, the least share of images to be selected, in (0, 1). risks: a target in (0, 1) for every class:
    miss_rate (class 1) and false_exit_rate (class 0) for two; miss_rate (the same for each) or miss_rate.<class> of
    each for more.
    variant: "I" (coverage and risks jointly at `confidence`) or "T" (means; `confidence` is recorded, not used). g is
    sigmoid(calib.gate) where there is a gate, else the largest probability. select: only checked to share no id with
    calib. against_argmax: let images exit as a class that is not their likeliest; else the sets hold the likeliest
    class, of two classes the one that `boundary` favours. The rest as in fit_policy.

    Returns a policy in any case; where nothing can be certified, it defers every image and its certificate has
    certified = False, the reason and what is needed. Raises ConfigError (target, coverage, variant), DataError
    (scores).
    """
    # Late here and below: who reads a policy to answer images needs nothing of how one is fitted.
    from stage1.policy.certify import certify
    from stage1.policy.scrc_family import SelectedSets
    from stage1.policy.target import Request

    check_samples(calib, select)
    names = tuple(classes) if classes is not None else tuple(str(k) for k in range(calib.n_classes))
    if len(names) != calib.n_classes:
        raise DataError(f"classes: {len(names)} names for {calib.n_classes} classes")
    targets = checked_targets(risks, names, coverage, confidence, variant)
    alpha = {target.risk: target.value for target in targets}
    request = Request(alpha, confidence, classes=names, against_argmax=against_argmax, boundary=boundary)
    policy, certificate = certify(SelectedSets(variant, coverage, tuple(targets)), request, calib, select, counting)
    return replace(policy, certificate=certificate)


def checked_targets(
    risks: Mapping[str, float], names: Sequence[str], coverage: float, confidence: float, variant: str
) -> list[Target]:
    """One target for each class. Raises ConfigError where these are none for scrc with these classes."""
    from stage1.policy.scrc_choice import Target
    from stage1.policy.scrc_family import METHODS

    for what, value in (("coverage", coverage), ("confidence", confidence)):
        if not (isinstance(value, (int, float)) and 0 < value < 1):
            raise ConfigError(f"{what}: must lie strictly between 0 and 1, got {value!r}")
    if variant not in METHODS:
        raise ConfigError(f"variant: {variant!r} is unknown; use {' or '.join(METHODS)}")
    of_class = {"miss_rate": 1, "false_exit_rate": 0}
    if len(names) > 2:
        of_class = {f"miss_rate.{name}": k for k, name in enumerate(names)}
        if set(risks) == {"miss_rate"}:
            risks = dict.fromkeys(of_class, risks["miss_rate"])
    if set(risks) != set(of_class):
        raise ConfigError(
            f"risks: {' + '.join(sorted(risks)) or 'an empty target'} does not fit the scrc policy; give "
            f"{' and '.join(of_class) if len(names) == 2 else 'miss_rate, or miss_rate.<class> for each class'} "
            "(a class without a limit could always be left out)"
        )
    for risk, value in risks.items():
        if not (isinstance(value, (int, float)) and 0 < value < 1):
            raise ConfigError(f"risks.{risk}: must lie strictly between 0 and 1, got {value!r}")
    return [Target(risk, k, float(risks[risk])) for risk, k in of_class.items()]


# ---- the kind ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ScrcOptions:
    """variant: "I" (with the stated confidence) or "T" (in expectation)."""

    variant: str = "I"


def fit(inputs: FitInputs, options: ScrcOptions) -> Policy:
    """`fit_scrc`; raises ConfigError for what only the other policies take."""
    if inputs.counting.unit in ALL_IMAGES:
        raise ConfigError(
            f"unit: {inputs.counting.unit} is for softmax and gate; scrc counts images, or one image of each group"
        )
    if inputs.class_coverage or inputs.target_prior is not None:
        raise ConfigError(
            "policy scrc: takes coverage (of selection) only; class_coverage and target_prior are for softmax and gate"
        )
    return fit_scrc(
        select=inputs.select,
        calib=inputs.calib,
        risks=inputs.risks,
        coverage=SCRC_COVERAGE if inputs.coverage is None else inputs.coverage,
        confidence=inputs.confidence,
        variant=options.variant,
        classes=inputs.classes,
        against_argmax=inputs.against_argmax,
        boundary=inputs.boundary(),
        counting=inputs.counting,
    )


def takes(config: Configured) -> None:
    """Raises ValueError where a config asks scrc for what it does not certify with any classes."""
    risks = config.risks_for(2)
    of_each = all(name.startswith("miss_rate.") for name in risks)
    if not of_each and set(risks) not in ({"miss_rate"}, {"miss_rate", "false_exit_rate"}):
        raise ValueError(
            f"policy.name=scrc with risks {' + '.join(risks)}; give miss_rate and false_exit_rate (with more than"
            " two classes miss_rate, or miss_rate.<class> for each); risks={...} replaces the default target,"
            " risks.NAME= adds to it"
        )
    for key, given in (
        ("class_coverage", bool(config.class_coverage)),
        ("target_prior", config.target_prior is not None),
        (f"unit={config.unit}", config.unit in ALL_IMAGES),
        ("data.slices", bool(config.data.slices)),
    ):
        if given:
            raise ValueError(f"policy.name=scrc with {key}; that is for softmax and gate, leave it out")


def check(config: Configured, classes: Sequence[str]) -> None:
    """Raises ConfigError where the target of the config is none for scrc with these classes."""
    coverage = SCRC_COVERAGE if config.coverage is None else config.coverage
    checked_targets(config.risks_for(len(classes)), classes, coverage, config.confidence, config.policy.variant)


def configure(config: Configured, select: Scores | None, n_classes: int, say: Say) -> Mapping[str, Any]:
    return {"variant": config.policy.variant}


def smoke(n_classes: int) -> tuple[str, ...]:
    """Overrides of the recipe smoke: a share to be selected that few images allow, a target for each class."""
    return ("coverage=0.4",) if n_classes == 2 else ("coverage=0.4", "risks={miss_rate: 0.5}")


def unauditable(config: Configured) -> str | None:
    """A mean over draws is kept or broken by none of them."""
    if config.policy.variant != "T":
        return None
    return "policy.variant=T: SCRC-T promises a mean over draws, which no single draw can break; audit policy.variant=I"


def control(policy: Policy, select: Scores, calib: Scores, targets: Mapping[str, float]) -> Policy | None:
    """Two classes: softmax thresholds; more: none, as the risks are of selected images, not of thresholds."""
    return plug_in(policy, select, calib, targets) if calib.n_classes == 2 else None


KIND = PolicyKind(
    name=ScrcPolicy.name,
    file="scrcparams.json",
    document=ScrcPolicy.document_kind,
    options=ScrcOptions,
    fit=fit,
    load=ScrcPolicy.from_document,
    control=control,
    slices=False,
    takes=takes,
    check=check,
    configure=configure,
    smoke=smoke,
    unauditable=unauditable,
)
