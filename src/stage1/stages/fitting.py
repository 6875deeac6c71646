"""The calibration map and the policy that a config asks for, fitted on scores: for runs and for scores of any model.

The map is chosen on val_select, before the calibration images are seen; a gate is judged before it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

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
from stage1.errors import ConfigError
from stage1.policy import CalibratedPolicy, Policy, ViewsClaim, dealt, fit_policy, on_views
from stage1.policy.attempts import Plan
from stage1.policy.calibrated import fit_calibrated
from stage1.policy.group_dealing import BY_SIZE, BY_SIZE_REASON
from stage1.policy.image_keys import image_set
from stage1.policy.ledger import Ledger, look_of
from stage1.policy.registry import check_classes, policy_kind
from stage1.scores import Scores


def fit_configured(
    config: RunConfig,
    *,
    select: Scores,
    calib: Scores,
    classes: Sequence[str],
    say: Callable[[str], None],
    ledger: Ledger | None = None,
    of: Mapping[str, Any] | None = None,
    uncertified_because: str | None = None,
    views: ViewsClaim | None = None,
    dealing: str | None = None,
    frozen: FittedMap | None = None,
) -> CalibratedPolicy:
    """fit_policy with everything the config says. A gate that shows no gain on val_select is refused and softmax kept.

    The calibration map is chosen and frozen on val_select first; where it moves the order of the scores, the policy is
    fitted and certified on the mapped ones. views: what the scores were made of, where that is not the whole image
    alone. ledger: counts this look at `calib`; of: which model or scores it is of, plain values.
    dealing: how groups came to val_calib (policy/group_dealing.py); what was dealt by size is not certified.
    frozen: a map that was fixed elsewhere, without use of `calib`; None: the one that the config asks for.

    Raises as fit_policy does; DataError where a gate is asked for and val_select is empty.
    """
    if ledger is not None:
        plan = Plan(config.attempts.planned, config.attempts.schedule)
        look = look_of(image_set(calib), _asked(config, calib.n_classes, of or {}, views))
        with ledger.asking(look, config.confidence, plan) as (attempts, tested):
            return _fitted(
                config.model_copy(update={"confidence": tested}),
                select,
                calib,
                classes,
                say,
                {"attempts": attempts, "uncertified_because": uncertified_because or attempts.reason},
                views,
                dealing,
                frozen,
            )
    counted = {"uncertified_because": uncertified_because}
    return _fitted(config, select, calib, classes, say, counted, views, dealing, frozen)


def _asked(config: RunConfig, n_classes: int, of: Mapping[str, Any], views: ViewsClaim | None) -> dict[str, Any]:
    """What makes it another look at the same images, as plain values."""
    return {
        **of,
        **config.policy.model_dump(mode="json", exclude={"name"}),
        "policy": config.policy.name,
        "risks": config.risks_for(n_classes),
        "confidence": config.confidence,
        "coverage": config.coverage,
        "class_coverage": dict(config.class_coverage),
        "target_prior": config.target_prior,
        "allow_one_sided": config.allow_one_sided,
        "assume_iid": config.assume_iid,
        "unit": config.unit,
        "seed": config.seed,
        "slices": list(config.data.slices),
        "calibration": config.calibration.map,
        "views": None if views is None else views.digest,
    }


def _fitted(
    config: RunConfig,
    select: Scores,
    calib: Scores,
    classes: Sequence[str],
    say: Callable[[str], None],
    counted: Mapping[str, Any],
    views: ViewsClaim | None,
    dealing: str | None,
    frozen: FittedMap | None,
) -> CalibratedPolicy:
    """counted: what fit_policy takes of the look. The rest as in fit_configured."""
    check_classes(config.policy.name, len(classes))
    if dealing == BY_SIZE:
        counted = {**counted, "uncertified_because": counted["uncertified_because"] or BY_SIZE_REASON}
    kind = policy_kind(config.policy.name)
    judged = kind.judge(select, config.seed, say)
    if frozen is None or judged.own_probability:
        frozen = frozen_map(config, select, gate=judged.own_probability, say=say)

    def fit(select: Scores | None, calib: Scores, calibration: CalibrationMap) -> Policy:
        # On the scores that the thresholds will be on, so inside: a map may have moved their order.
        configured = kind.configure(config, select, calib.n_classes, say)
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
            slice_thresholds=config.policy.slice_thresholds,
            allow_one_sided=config.allow_one_sided,
            classes=classes,
            seed=config.seed,
            **counted,
            against_argmax=config.policy.against_argmax,
            calibration=calibration,
            **judged.options,
            **configured,
        )
        return dealt(on_views(fitted, views), dealing)

    return fit_calibrated(frozen, fit, select=select, calib=calib)


def frozen_map(config: RunConfig, select: Scores, *, gate: bool, say: Callable[[str], None]) -> FittedMap:
    """The allowed map of least cross-validated NLL on val_select; the identity, if none is better.

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
