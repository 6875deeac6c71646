"""One policy by the config, for runs and for scores of any model: the gate is judged before it is used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from stage1.config import RunConfig
from stage1.errors import DataError
from stage1.policy import Policy, fit_policy
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
) -> Policy:
    """fit_policy with everything the config says. A gate that shows no gain on val_select is refused and softmax kept.

    Raises as fit_policy does; DataError where a gate is asked for and val_select is empty.
    """
    kept = "gate"
    if config.policy.name == "gate":
        from stage1.evaluation.gate_gain import accept_gate
        from stage1.policy.gate_model import cross_fitted_gate

        if len(select) == 0:
            raise DataError("val_select: no rows; the gate is fitted and judged on it")
        acceptance = accept_gate(select, cross_fitted_gate(select, seed=config.seed), seed=config.seed)
        kept = "gate" if acceptance.accepted else "softmax"
        say(f"  gate: {acceptance.reason}")
    return fit_policy(
        config.policy.name, select=select, calib=calib, risks=config.risks, confidence=config.confidence, coverage=config.coverage,
        class_coverage=config.class_coverage, target_prior=config.target_prior, assume_iid=config.assume_iid,
        allow_one_sided=config.allow_one_sided, classes=classes, seed=config.seed, attempt=attempt,
        uncertified_because=uncertified_because, variant=config.policy.variant, kept="gate" if kept == "gate" else "softmax",
    )  # fmt: skip
