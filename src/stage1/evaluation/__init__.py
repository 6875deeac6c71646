"""How good is it: selective metrics, probabilities, exit rates with exact intervals, bootstrap, and the document."""

from typing import TYPE_CHECKING

from stage1.late import names

if TYPE_CHECKING:
    from stage1.evaluation.calibration_error import (
        BrierParts,
        brier_decomposition,
        classwise_ece,
        ece_debiased,
        squared_ce_debiased,
    )
    from stage1.evaluation.comparison import compare
    from stage1.evaluation.intervals import Interval, bootstrap
    from stage1.evaluation.label_shift import prior_weights
    from stage1.evaluation.probability import accuracy, best_mcc_threshold, brier, ece, mcc, nll, reliability
    from stage1.evaluation.rates import clopper_pearson, exit_rates
    from stage1.evaluation.score_selection import choose_confidence, confidence
    from stage1.evaluation.selective import (
        RiskCoverage,
        augrc,
        aurc,
        aurc_achievable,
        auroc_failure,
        coverage_at_risk,
        e_augrc,
        e_aurc,
        naurc,
        risk_at_coverage,
        risk_coverage,
    )
    from stage1.evaluation.summary import evaluate, metrics_rows
else:
    __getattr__ = names(
        __name__,
        calibration_error="BrierParts brier_decomposition classwise_ece ece_debiased squared_ce_debiased",
        comparison="compare",
        intervals="Interval bootstrap",
        label_shift="prior_weights",
        probability="accuracy best_mcc_threshold brier ece mcc nll reliability",
        rates="clopper_pearson exit_rates",
        score_selection="choose_confidence confidence",
        selective="RiskCoverage augrc aurc aurc_achievable auroc_failure"
        " coverage_at_risk e_augrc e_aurc naurc risk_at_coverage risk_coverage",
        summary="evaluate metrics_rows",
    )

__all__ = [
    "BrierParts",
    "Interval",
    "RiskCoverage",
    "accuracy",
    "augrc",
    "aurc",
    "aurc_achievable",
    "auroc_failure",
    "best_mcc_threshold",
    "bootstrap",
    "brier",
    "brier_decomposition",
    "choose_confidence",
    "classwise_ece",
    "clopper_pearson",
    "compare",
    "confidence",
    "coverage_at_risk",
    "e_augrc",
    "e_aurc",
    "ece",
    "ece_debiased",
    "evaluate",
    "exit_rates",
    "mcc",
    "metrics_rows",
    "naurc",
    "nll",
    "prior_weights",
    "reliability",
    "risk_at_coverage",
    "risk_coverage",
    "squared_ce_debiased",
]
