"""Several stages as one classifier: who is asked when, what failures do, and what can be promised of the whole."""

from stage1.cascade.answers import Answer, Call, header, open_log, read_answers, recorded
from stage1.cascade.certificate import CascadeCertificate, Labelled, StageClaim, certify_cascade
from stage1.cascade.config import CascadeConfig, load_cascade
from stage1.cascade.cost import DeferRate, arrival_rate, capacity_per_minute, defer_rate, load, rates, stage_costs
from stage1.cascade.rules import Final, Recorded, Rule, final_answers
from stage1.cascade.runner import Tally, run_cascade
from stage1.cascade.stages import Cascade, fixed_rules, open_cascade

__all__ = [
    "Answer",
    "Call",
    "Cascade",
    "CascadeCertificate",
    "CascadeConfig",
    "DeferRate",
    "Final",
    "Labelled",
    "Recorded",
    "Rule",
    "StageClaim",
    "Tally",
    "arrival_rate",
    "capacity_per_minute",
    "certify_cascade",
    "defer_rate",
    "final_answers",
    "fixed_rules",
    "header",
    "load",
    "load_cascade",
    "open_cascade",
    "open_log",
    "rates",
    "read_answers",
    "recorded",
    "run_cascade",
    "stage_costs",
]
