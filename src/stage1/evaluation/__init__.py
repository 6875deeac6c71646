"""How good is it: selective metrics, probabilities, exit rates with exact intervals, bootstrap, and the document."""

from stage1.evaluation.bootstrap import Interval, bootstrap
from stage1.evaluation.probability import accuracy, brier, ece, mcc, nll, reliability, squared_ce_debiased
from stage1.evaluation.rates import clopper_pearson, exit_rates
from stage1.evaluation.selective import (
    RiskCoverage,
    augrc,
    aurc,
    aurc_achievable,
    auroc_failure,
    coverage_at_risk,
    e_augrc,
    e_aurc,
    risk_at_coverage,
    risk_coverage,
)
from stage1.evaluation.summary import evaluate, metrics_rows

__all__ = [
    "Interval",
    "RiskCoverage",
    "accuracy",
    "augrc",
    "aurc",
    "aurc_achievable",
    "auroc_failure",
    "bootstrap",
    "brier",
    "clopper_pearson",
    "coverage_at_risk",
    "e_augrc",
    "e_aurc",
    "ece",
    "evaluate",
    "exit_rates",
    "mcc",
    "metrics_rows",
    "nll",
    "reliability",
    "risk_at_coverage",
    "risk_coverage",
    "squared_ce_debiased",
]
