"""The cards and tables of the page, as values: risks with their gauges, split, decisions, facts of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stage1.evaluation.verdict import Check, interval
from stage1.policy.certificate import shown_bound
from stage1.policy.unlimited import unlimited_rates
from stage1.report.numbers import words
from stage1.risk.risks import is_risk, risk_of

Document = Mapping[str, Any]

METRIC_MEANINGS = {
    "auroc": "how well the score ranks positives above negatives; higher is better",
    "aurc": "area under the risk-coverage curve; lower is better",
    "e_aurc": "AURC above that of the best possible order; lower is better",
    "e_augrc": "AUGRC above that of the best possible order; lower is better",
    "augrc": "average chance of a silent error over all coverages; lower is better",
    "auroc_f": "how well confidence ranks right above wrong answers; higher is better",
    "accuracy": "share right if every image were answered",
    "mcc": "Matthews correlation if every image were answered; higher is better",
    "nll": "negative log-likelihood; lower is better",
    "brier": "squared error of the probability; lower is better",
    "ece": "calibration error; lower is better",
    "coverage": "share of images that exits",
}

# More entries of a loosely shaped field than this are counted, not listed.
_MOST_ENTRIES = 12


def risk_meaning(name: str, evaluation: Document) -> str:
    """A risk in words; with more than two classes the name says of which: fnr.cat."""
    classes = evaluation["classes"]
    if not is_risk(name, classes):
        # A document of a version, or with a registered risk, that this one does not have.
        return "share of answers that are wrong"
    risk, index = risk_of(name, classes)
    return risk.share(classes, index)


def not_limited(certificate: Document, evaluation: Document) -> list[tuple[str, Any]]:
    """[(name, row)] of observed rates of evaluation.json that this certificate leaves without a limit."""
    if not certificate.get("unlimited"):
        return []
    names = unlimited_rates(certificate["risks"], certificate["classes"], certificate["never_answered"])
    rows = [(name, evaluation["risks"].get(name)) for name in names]
    return [(name, row) for name, row in rows if row is not None and row["observed"] is not None]


def risk_card(check: Check, certificate: Document, evaluation: Document) -> dict[str, Any]:
    """One certified risk with its gauge: everything on a common scale, positions in per cent of the width."""
    promised, observed = certificate["risks"][check.name], evaluation["risks"].get(check.name)
    meaning = risk_meaning(check.name, evaluation)
    seen = observed is not None and observed["observed"] is not None
    low, high = interval(observed, evaluation["unit"]) if observed is not None and seen else (None, None)
    # A bound or an interval from a handful of images may reach 1: it runs off the gauge, and the target stays in sight.
    top = min(1.3 * max(promised["target"], promised["bound"] or 0.0, high or 0.0), 2.6 * promised["target"])

    def place(value: float | None) -> float | None:
        return None if value is None else round(min(100.0, 100.0 * value / top), 2)

    bound = shown_bound(certificate, check.name)
    gauge = {
        "target": place(promised["target"]),
        "bound": place(promised["target"] if certificate["certified"] and bound is None else promised["bound"]),
        "calibration": place(promised["observed"]),
        "low": place(low),
        "high": place(high),
        "test": place(observed["observed"]) if observed is not None else None,
    }
    return {
        "check": check,
        "meaning": meaning,
        "promised": promised,
        "bound": bound,
        "observed": observed,
        "range": (low, high),
        "gauge": gauge,
    }


def split_table(split: Document | None) -> dict[str, Any] | None:
    """The rows of the split table. split: {roles: {role: {counts: {class: n}, n_groups, ...}}, ...}."""
    if split is None:
        return None
    roles = split["roles"]
    classes = list(dict.fromkeys(name for row in roles.values() for name in row["counts"]))
    rows = []
    for role, row in roles.items():
        groups = row.get("group_counts") or {}
        # Groups are news only where an image is not its own group.
        cells = [(row["counts"].get(name, 0), groups.get(name)) for name in classes]
        cells = [(count, group if group != count else None) for count, group in cells]
        certify = row.get("can_certify")
        rows.append(
            {
                "role": role,
                "cells": cells,
                "total": sum(row["counts"].values()),
                "n_groups": row.get("n_groups"),
                "can_certify": words(certify) if certify else "",
            }
        )
    facts = {key: value for key, value in split.items() if key not in ("roles", "classes", "schema_version", "leakage")}
    return {
        "classes": classes,
        "rows": rows,
        "certify": any(row["can_certify"] for row in rows),
        # A mapping of thousands of entries is for the machine; here it is a count.
        "facts": {
            key.replace("_", " "): f"{len(value):,} entries" if _is_long(value) else words(value)
            for key, value in facts.items()
            if value not in (None, [], {}, "")
        },
        "leakage": split.get("leakage") or None,
        "schema_version": split.get("schema_version"),
    }


def _is_long(value: Any) -> bool:
    return isinstance(value, (Mapping, list, tuple)) and len(value) > _MOST_ENTRIES


def confusion_table(evaluation: Document) -> dict[str, Any]:
    table = evaluation["exit_confusion"]
    rows = []
    for name, counts in zip(table["rows"], table["counts"], strict=True):
        total = sum(counts)
        rows.append(
            {"name": name, "total": total, "cells": [(count, count / total if total else None) for count in counts]}
        )
    return {"columns": table["columns"], "rows": rows}


def run_facts(run: Document) -> list[tuple[str, str]]:
    named = {"name": "Run", "created": "Created", "model": "Model", "n_images": "Images", "config": "Config"}
    rows = [(text, words(run[key])) for key, text in named.items() if run.get(key) is not None]
    rows += [
        (key, words(value))
        for key, value in run.items()
        if key not in (*named, "seconds", "bundle", "recompute") and value is not None
    ]
    seconds = run.get("seconds")
    if seconds:
        rows.append(("Seconds per stage", ", ".join(f"{stage} {seconds[stage]:,.1f}" for stage in seconds)))
    return rows
