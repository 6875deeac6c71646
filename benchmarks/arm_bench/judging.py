"""Policies of benchmarks/arms.py on the scores of its arms, and the comparison of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arm_bench.problems import Problem
from arm_bench.training import Arm, Trained, trained
from stage1.evaluation.arms import ArmRun, compare_arms
from stage1.evaluation.score_selection import accept_gate
from stage1.policy import Policy, fit_policy
from stage1.policy.gate import GatePolicy
from stage1.policy.gate_model import cross_fitted_gate
from stage1.scores import Scores

REFERENCE = "linear"


def fitted(data: Problem, select: Scores, calib: Scores, kept: str) -> Policy:
    """kept: "" = the softmax policy; else what the gate policy keeps, settled on val_select (`keeps`)."""
    return fit_policy(
        "gate" if kept else "softmax",
        select=select,
        calib=calib,
        risks=data.risks,
        assume_iid=data.assume_iid,
        kept="softmax" if kept == "softmax" else "gate",
    )


def keeps(select: Scores) -> str:
    """What the gate policy is to use: "gate" where it gains on val_select beyond chance, else "softmax"; "" without
    a gate.
    """
    if select.gate is None:
        return ""
    return "gate" if accept_gate(select, cross_fitted_gate(select, select.extra)).accepted else "softmax"


def decided(policy: Policy, scores: Scores) -> ArmRun:
    """The run as compare_arms takes it; AUGRC is of the confidence by which the policy exits."""
    decision = policy.decide(scores)
    ordered = scores
    if isinstance(policy, GatePolicy) and policy.decided_by == "gate":
        g = policy.model.apply(scores, scores.extra)
        # A margin of the same answers in the order of g. Its NLL means nothing, and is not shown.
        margin = np.where(scores.margin > 0, -np.log1p(-g), np.log1p(-g))
        ordered = Scores(
            logits=np.stack([np.zeros_like(margin), margin], axis=1),
            labels=scores.labels,
            groups=scores.groups,
            ids=scores.ids,
        )
    return ArmRun(ordered, decision.exit, decision.label)


@dataclass
class Table:
    """Everything measured on one data set."""

    data: Problem
    runs: dict[str, list[Trained]]
    kept: dict[str, list[str]]
    certified: dict[str, int]
    select: dict[str, Any]
    test: dict[str, Any]
    redrawn: dict[str, list[float]]
    held: dict[str, dict[str, float]]
    by_groups: str


def measure(
    data: Problem, arms: Mapping[str, Arm], names: Sequence[str], seeds: int, work: Path, redraws: int
) -> Table:
    runs: dict[str, list[Trained]] = {}
    kept: dict[str, list[str]] = {}
    certified: dict[str, int] = {}
    entered: dict[str, dict[str, list[ArmRun]]] = {role: {} for role in ("val_select", "val_test")}
    held: dict[str, dict[str, float]] = {}
    for name in names:
        runs[name] = [trained(data, arms, name, seed, work) for seed in range(seeds)]
        kept[name] = [keeps(run.scores["val_select"]) for run in runs[name]]
        policies = [
            fitted(data, run.scores["val_select"], run.scores["val_calib"], choice)
            for run, choice in zip(runs[name], kept[name], strict=True)
        ]
        certified[name] = sum(policy.certified for policy in policies)
        for role, found in entered.items():
            found[name] = [decided(policy, run.scores[role]) for policy, run in zip(policies, runs[name], strict=True)]
        seen = [observed(run) for run in entered["val_test"][name]]
        held[name] = {risk: float(np.mean([one[risk] for one in seen])) for risk in seen[0]}
        print(
            f"  {data.name} {name}: {sum(run.seconds for run in runs[name]) / seeds:.1f} s, certified {certified[name]}"
            f" of {seeds}, coverage on val_test"
            f" {np.mean([run.exit.mean() for run in entered['val_test'][name] if run.exit is not None]):.3f}",
            flush=True,
        )
    return Table(
        data,
        runs,
        kept,
        certified,
        compare_arms(entered["val_select"]),
        compare_arms(entered["val_test"]),
        redrawn(data, runs, kept, redraws),
        held,
        by_groups(data, runs[REFERENCE][0]),
    )


def observed(run: ArmRun) -> dict[str, float]:
    """fnr (wrong among positives that exit) and false_exit_rate (negatives that exit as positive) of one run; NaN
    without any.
    """
    assert run.exit is not None
    assert run.label is not None
    positive = run.scores.known_labels == 1
    out = run.exit & positive
    return {
        "fnr": float((run.label[out] == 0).mean()) if out.any() else float("nan"),
        "false_exit_rate": float((run.exit & (run.label == 1))[~positive].mean()),
    }


def by_groups(data: Problem, run: Trained) -> str:
    """Where images were counted as independent: what the same target gives when they are not."""
    if not data.assume_iid:
        return ""
    policy = fit_policy(
        "softmax", select=run.scores["val_select"], calib=run.scores["val_calib"], risks=data.risks, assume_iid=False
    )
    certificate = policy.certificate
    assert certificate is not None
    if certificate.certified:
        return "Without assume_iid linear certifies this target too."
    return f"Without assume_iid nothing is certified: {certificate.reason}"


def redrawn(
    data: Problem, runs: Mapping[str, Sequence[Trained]], kept: Mapping[str, Sequence[str]], redraws: int
) -> dict[str, list[float]]:
    """arm -> certified coverage, mean of its seeds, on each cut of val_calib + val_test."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    groups = np.concatenate([data.groups("val_calib"), data.groups("val_test")])
    names, place = np.unique(groups, return_inverse=True)
    share = len(np.unique(data.groups("val_calib"))) / len(names)
    for draw in range(redraws):
        chosen = np.random.default_rng(draw).permutation(len(names)) < round(share * len(names))
        calib = chosen[place]
        for name, seeds in runs.items():
            values = []
            for run, choice in zip(seeds, kept[name], strict=True):
                pool = pooled(run.scores["val_calib"], run.scores["val_test"])
                policy = fitted(data, run.scores["val_select"], pool.take(calib), choice)
                values.append(policy.decide(pool.take(~calib)).coverage)
            found[name].append(float(np.mean(values)))
    return found


def pooled(a: Scores, b: Scores) -> Scores:
    def both(name: str) -> Any:
        one, other = getattr(a, name), getattr(b, name)
        return None if one is None else np.concatenate([one, other])

    return Scores(**{name: both(name) for name in ("logits", "labels", "gate", "groups", "ids")})
