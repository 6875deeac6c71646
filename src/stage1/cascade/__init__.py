"""Several stages as one classifier: who is asked when, what failures do, and what can be promised of the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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

if TYPE_CHECKING:
    from stage1.cascade.answers import Answer, Call, header, open_log, read_answers, recorded
    from stage1.cascade.certificate import CascadeCertificate, Labelled, StageClaim, certify_cascade
    from stage1.cascade.config import CascadeConfig, load_cascade
    from stage1.cascade.cost import DeferRate, arrival_rate, capacity_per_minute, defer_rate, load, rates, stage_costs
    from stage1.cascade.rules import Final, Recorded, Rule, final_answers
    from stage1.cascade.runner import Tally, run_cascade
    from stage1.cascade.stages import Cascade, fixed_rules, open_cascade

# No name here may be that of a module beside it: once that is imported, it would stand for the module.
_HOME = {
    **dict.fromkeys(("Answer", "Call", "header", "open_log", "read_answers", "recorded"), "answers"),
    **dict.fromkeys(("DeferRate", "arrival_rate", "capacity_per_minute", "defer_rate", "load"), "cost"),
    **dict.fromkeys(("CascadeConfig", "load_cascade"), "config"),
    **dict.fromkeys(("rates", "stage_costs"), "cost"),
    **dict.fromkeys(("Final", "Recorded", "Rule", "final_answers"), "rules"),
    **dict.fromkeys(("Tally", "run_cascade"), "runner"),
    **dict.fromkeys(("Cascade", "fixed_rules", "open_cascade"), "stages"),
    **dict.fromkeys(("CascadeCertificate", "Labelled", "StageClaim", "certify_cascade"), "certificate"),
}


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): the client's detector asks endpoints as `cascade run` does, and has neither scipy nor pydantic.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
