"""One policy by the config, for runs and for scores of any model: the gate is judged before it is used.

Which calibration map a run or a file of scores gets: chosen on val_select, before the calibration images are looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stage1.calibration import (
    CalibrationMap,
    FittedMap,
    automatic,
    candidates,
    choose_map,
    fitted_identity,
    fitted_map,
    non_monotone,
)
from stage1.config import RunConfig
from stage1.errors import ConfigError, DataError
from stage1.policy import CalibratedPolicy, Policy, ViewsClaim, dealt, fit_policy, on_views
from stage1.policy.calibrated import fit_calibrated
from stage1.policy.dealt import BY_SIZE, BY_SIZE_REASON
from stage1.policy.registry import check_classes
from stage1.scores import Scores


def fit_configured(
    config: RunConfig,
    *,
    select: Scores,
    calib: Scores,
    classes: Sequence[str],
    say: Callable[[str], None],
    attempt: int = 1,
    uncertified_because: str | None = None,
    views: ViewsClaim | None = None,
    dealing: str | None = None,
    frozen: FittedMap | None = None,
) -> CalibratedPolicy:
    """fit_policy with everything the config says. A gate that shows no gain on val_select is refused and softmax kept.

    The calibration map is chosen and frozen on val_select first; where it moves the order of the scores, the policy is
    fitted and certified on the mapped ones. views: what the scores were made of, where that is not the whole image
    alone.
    dealing: how groups came to val_calib (policy/dealt.py); what was dealt by size is not certified.
    frozen: a map that was fixed elsewhere, without a look at `calib`; None: the one that the config asks for.

    Raises as fit_policy does; DataError where a gate is asked for and val_select is empty.
    """
    check_classes(config.policy.name, classes)
    if dealing == BY_SIZE:
        uncertified_because = uncertified_because or BY_SIZE_REASON
    kept = "gate"
    if config.policy.name == "gate":
        from stage1.evaluation.score_selection import accept_gate
        from stage1.policy.gate_model import cross_fitted_gate, no_gate_because

        if len(select) == 0:
            raise DataError("val_select: no rows; the gate is fitted and judged on it")
        acceptance = accept_gate(
            select,
            cross_fitted_gate(select, select.extra, seed=config.seed),
            seed=config.seed,
            constant_because=no_gate_because(select, select.extra, seed=config.seed),
        )
        kept = "gate" if acceptance.accepted else "softmax"
        say(f"  gate: {acceptance.reason}")
    gate = config.policy.name == "gate" and kept == "gate"
    frozen = frozen_map(config, select, gate=gate, say=say) if frozen is None or gate else frozen

    def fit(select: Scores | None, calib: Scores, calibration: CalibrationMap) -> Policy:
        # On the scores that the thresholds will lie on, so inside: a map may have moved their order.
        score = _confidence_score(config, select, calib.n_classes, say)
        fitted = fit_policy(
            config.policy.name,
            select=select,
            calib=calib,
            risks=config.risks_for(calib.n_classes),
            confidence=config.confidence,
            coverage=config.coverage,
            class_coverage=config.class_coverage,
            target_prior=config.target_prior,
            assume_iid=config.assume_iid,
            unit=config.unit,
            slices=config.data.slices,
            allow_one_sided=config.allow_one_sided,
            classes=classes,
            seed=config.seed,
            attempt=attempt,
            uncertified_because=uncertified_because,
            variant=config.policy.variant,
            kept="gate" if kept == "gate" else "softmax",
            confidence_score=score,
            thresholds=config.policy.thresholds,
            against_argmax=config.policy.against_argmax,
            calibration=calibration,
        )
        return dealt(on_views(fitted, views), dealing)

    return fit_calibrated(frozen, fit, select=select, calib=calib)


def _confidence_score(config: RunConfig, select: Scores | None, n_classes: int, say: Callable[[str], None]) -> str:
    """The confidence by which more than two classes exit: the config's, or the one of least AUGRC on val_select.

    MSP stays unless the gain is beyond chance: close rivals are many, and the best of them on few images is often not
    the best.
    """
    if config.policy.confidence_score != "auto":
        return config.policy.confidence_score
    if n_classes == 2 or config.policy.name != "softmax" or select is None or select.labels is None or not len(select):
        return "msp"
    from stage1.evaluation.score_selection import accept_gate, choose_confidence
    from stage1.scores.confidence import confidence

    name, table = choose_confidence(select)
    augrc = {row["confidence"]: row["augrc"] for row in table}
    if name != "msp" and not accept_gate(select, confidence(name, select.logits), seed=config.seed).accepted:
        say(
            f"  confidence: msp is kept; {name} has less AUGRC on val_select ({1000 * augrc[name]:.3g}e-3 against "
            f"{1000 * augrc['msp']:.3g}e-3), but not beyond chance"
        )
        return "msp"
    say(f"  confidence: {name}, the least AUGRC on val_select ({1000 * augrc[name]:.3g}e-3)")
    return name


def frozen_map(config: RunConfig, select: Scores, *, gate: bool, say: Callable[[str], None]) -> FittedMap:
    """The map of least cross-validated NLL on val_select among those that the config allows; the identity, if none is
    better.

    gate: a gate is in use; it states a probability of its own, so no map of the scores is fitted. say: gets one line
    with the numbers. Raises ConfigError where the map asked for by name is not for so many classes.
    """
    wanted = config.calibration.map
    suited = candidates(select.n_classes)
    if wanted not in ("auto", "none", *suited):
        raise ConfigError(
            f"calibration.map: {wanted} is not for {select.n_classes} classes; use auto, none, {', '.join(suited)}"
        )
    if gate:
        found = fitted_identity(select, "the gate states a probability of its own, fitted on val_select too")
    elif wanted == "none":
        found = fitted_identity(select, "calibration.map=none")
    elif select.labels is None or len(select) == 0:
        found = fitted_identity(select, "val_select has no labelled rows to fit a map on")
    else:
        compared = automatic(select.n_classes) if wanted == "auto" else (wanted,)
        choice = choose_map(select, candidates=compared, keep_order=not non_monotone(wanted), seed=config.seed)
        found = fitted_map(choice, select)
    on = "" if found.score == "raw" else "; it moves the order, so thresholds and certificate are of the mapped score"
    say(f"  calibration map: {found.reason}{on}")
    return found
