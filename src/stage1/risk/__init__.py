"""What can be proved: the table of risks, exact bounds, tests, sample sizes. Pure functions of counts and arrays."""

from typing import TYPE_CHECKING

from stage1.late import names

if TYPE_CHECKING:
    from stage1.risk.bounds import binomial_lower, binomial_pvalue, binomial_upper, hoeffding_bentkus_pvalue
    from stage1.risk.conformal import crc_threshold
    from stage1.risk.definition import Risk
    from stage1.risk.risks import RISKS, register_risk
    from stage1.risk.sample_size import ClassNeed, plan
    from stage1.risk.testing import max_errors, minimum_samples, order_statistic_rank, walk_length
else:
    __getattr__ = names(
        __name__,
        bounds="binomial_lower binomial_pvalue binomial_upper hoeffding_bentkus_pvalue",
        conformal="crc_threshold",
        definition="Risk",
        risks="RISKS register_risk",
        sample_size="ClassNeed plan",
        testing="max_errors minimum_samples order_statistic_rank walk_length",
    )

__all__ = [
    "RISKS",
    "ClassNeed",
    "Risk",
    "binomial_lower",
    "binomial_pvalue",
    "binomial_upper",
    "crc_threshold",
    "hoeffding_bentkus_pvalue",
    "max_errors",
    "minimum_samples",
    "order_statistic_rank",
    "plan",
    "register_risk",
    "walk_length",
]
