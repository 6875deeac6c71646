"""What the model card shows of the evaluation on val_test: kept in bundle.json, so that it can be rewritten."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from stage1.evaluation import exit_rates
from stage1.policy import Certificate

_FIELDS = ("role", "n", "n_groups", "unit", "level", "resamples", "metrics", "risks", "coverage", "exit_confusion")


def shown_evaluation(evaluation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The part of evaluation.json for card and verdict: no ids, paths or curves. None where there is none."""
    if evaluation is None:
        return None
    shown = {name: evaluation[name] for name in _FIELDS}
    if "argmax" in evaluation:
        shown["argmax"] = evaluation["argmax"]
    if "views" in evaluation:
        shown["views"] = {name: evaluation["views"][name] for name in ("mean", "of")}
    if "label_shift" in evaluation:
        shift = evaluation["label_shift"]
        shown["label_shift"] = {
            "moves": shift["moves"],
            "estimates": [{"prior": row["prior"]} for row in shift["estimates"]],
        }
    return shown


def evaluation_problems(shown: Mapping[str, Any], certificate: Certificate) -> Iterator[str]:
    """Whether its numbers agree with each other: every rate, share and exact interval follows from the table of counts.

    That the counts are those of val_test is taken on trust: its scores do not travel in a bundle.
    """
    table, classes = shown["exit_confusion"], list(certificate.classes)
    place = 1 if len(classes) == 2 else len(classes)
    if table["rows"] != classes or len(table["columns"]) != len(classes) + 1:
        yield "evaluation.exit_confusion: is of other classes"
        return
    counts = np.array(table["counts"])
    answers = np.insert(np.arange(len(classes)), place, -1)
    given = np.repeat(np.tile(answers, len(classes)), counts.ravel())
    truth = np.repeat(np.arange(len(classes)), counts.sum(axis=1))
    if shown["n"] != len(truth):
        yield f"evaluation.n is {shown['n']}, its table counts {len(truth)}"
        return
    found = exit_rates(given >= 0, np.maximum(given, 0), truth, classes=classes, level=shown["level"])
    coverage = found.pop("coverage")
    if (shown["unit"] == "group") != (shown["n_groups"] < shown["n"]):
        yield f"evaluation.unit is {shown['unit']!r} for {shown['n']} images in {shown['n_groups']} groups"
    # Over groups an interval is bootstrapped, which takes the scores of val_test; where there are none there is no
    # interval.
    ungrouped = {} if shown["unit"] == "group" else {"group_low": None, "group_high": None}
    targets = {name: risk.target for name, risk in certificate.risks.items()}
    for name, rate in found.items():
        yield from _unequal(
            f"evaluation.risks.{name}", shown["risks"].get(name, {}), {**rate, **ungrouped, "target": targets.get(name)}
        )
    yield from _unequal("evaluation.coverage.overall", shown["coverage"]["overall"], coverage["overall"] | ungrouped)
    for name, share in coverage["per_class"].items():
        yield from _unequal(
            f"evaluation.coverage.per_class.{name}", shown["coverage"]["per_class"].get(name, {}), share | ungrouped
        )


def _unequal(where: str, reported: Mapping[str, Any], counted: Mapping[str, Any]) -> Iterator[str]:
    for name, value in counted.items():
        said = reported.get(name)
        same = (
            math.isclose(said, value, rel_tol=1e-9) if isinstance(said, float) and value is not None else said == value
        )
        if not same:
            yield f"{where}.{name} is {said!r}, its counts give {value!r}"
