"""What benchmarks/views.py measures of each way of using views: certified coverage, AUGRC, calibration error, with
intervals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.calibration import choose_map
from stage1.evaluation import resampling
from stage1.evaluation.arms import ArmRun, compare_arms
from stage1.evaluation.probability import Calibration
from stage1.evaluation.selective import augrc
from stage1.policy import Policy, fit_policy
from stage1.scores import Scores
from stage1.scores.confidence import msp
from stage1.views import ViewsDocument
from view_bench.heads import LinearHead
from view_bench.timing import Timing

ECE_RESAMPLES = 300
_BINS = 15


@dataclass(frozen=True)
class Row:
    """One way of using views. unseen: val_select with everything fitted on other folds; the others as they would
    ship.
    """

    how: str
    pool: str
    ridge: float
    unseen: Scores
    select: Scores
    calib: Scores
    test: Scores
    views: float
    loss: float
    head: LinearHead
    frozen: (
        ViewsDocument | None
    )  # None: a probe on pooled features, which is no way of using views but what they are held against

    @property
    def name(self) -> str:
        return f"{self.how} / {self.pool}"

    @property
    def is_adaptive(self) -> bool:
        return self.frozen is not None and self.frozen.sequence is not None

    @property
    def tolerance(self) -> float | None:
        if self.frozen is None or self.frozen.sequence is None:
            return None
        return float(self.frozen.sequence.expected["tolerance"])

    @property
    def augrc_select(self) -> float:
        return augrc(msp(self.unseen.logits), self.unseen.logits.argmax(axis=1) != self.unseen.known_labels)

    @property
    def key(self) -> str:
        return self.name if self.tolerance is None else f"{self.name} {self.tolerance:g}"


@dataclass(frozen=True)
class Measured:
    """Rows, the single view first, and what was found of each, in order."""

    rows: list[Row]
    chosen: int
    risks: Mapping[str, float]
    assume_iid: bool
    select: dict[str, Any]
    test: dict[str, Any]
    certified: list[bool]
    ece: list[tuple[tuple[float, float, float], tuple[float, float, float]]]
    rates: list[tuple[float, float]]
    redrawn: NDArray[np.float64]  # [redraws, rows]
    times: Timing | None

    @cached_property
    def against_chosen(self) -> dict[str, Any]:
        """The adaptive rows against the chosen one, paired."""
        picked = [self.rows[self.chosen], *(row for row in self.rows if row.is_adaptive)]
        return compare_arms({row.key: [_run(row, self.risks, self.assume_iid)] for row in picked})


def measure(
    rows: list[Row], chosen: int, risks: Mapping[str, float], assume_iid: bool, redraws: int, times: Timing | None
) -> Measured:
    runs = {row.key: _run(row, risks, assume_iid) for row in rows}
    certified = [policy_of(row.calib, risks, assume_iid).certified for row in rows]
    ece = [(_ece(row.test), _ece(_mapped(row))) for row in rows]
    rates = [_rates(runs[row.key]) for row in rows]
    select = compare_arms({row.key: [ArmRun(row.unseen)] for row in rows if not row.is_adaptive})
    test = compare_arms({name: [run] for name, run in runs.items()})
    return Measured(
        rows,
        chosen,
        risks,
        assume_iid,
        select,
        test,
        certified,
        ece,
        rates,
        _redrawn(rows, risks, assume_iid, redraws),
        times,
    )


def policy_of(calib: Scores, risks: Mapping[str, float], assume_iid: bool) -> Policy:
    return fit_policy("softmax", calib=calib, risks=risks, assume_iid=assume_iid)


def _run(row: Row, risks: Mapping[str, float], assume_iid: bool) -> ArmRun:
    decision = policy_of(row.calib, risks, assume_iid).decide(row.test)
    return ArmRun(_mapped(row), decision.exit, decision.label)


def _mapped(row: Row) -> Scores:
    """val_test after the map that val_select chooses, of those that keep the order."""
    chosen = choose_map(row.select, keep_order=True).map
    return row.test if chosen is None else chosen.calibrate(row.test)


def _ece(scores: Scores) -> tuple[float, float, float]:
    """ECE with a percentile interval, groups resampled whole. Replicates are biased upwards: low may lie above the
    value.
    """
    calibration = Calibration(scores.probabilities, scores.known_labels)
    plan = resampling.units(len(scores), scores.known_labels, scores.groups)
    drawn = [
        calibration.error(weights.astype(np.float64), _BINS)
        for counts in resampling.draws(plan, len(scores), ECE_RESAMPLES, 0)
        for weights in plan.rows(counts)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(calibration.error(np.ones(len(scores)), _BINS)), float(low), float(high)


def _rates(run: ArmRun) -> tuple[float, float]:
    """(fnr, false_exit_rate) seen on val_test."""
    assert run.exit is not None
    assert run.label is not None
    positive = run.scores.known_labels == 1
    out = run.exit & positive
    missed = float((run.label[out] == 0).mean()) if out.any() else float("nan")
    return missed, float((run.exit & (run.label == 1))[~positive].mean())


def _redrawn(rows: list[Row], risks: Mapping[str, float], assume_iid: bool, redraws: int) -> NDArray[np.float64]:
    """Coverage of each row on each new cut of val_calib + val_test, float [redraws, rows]."""
    pools = [_joined(row.calib, row.test) for row in rows]
    keys = pools[0].groups if pools[0].groups is not None else np.arange(len(pools[0])).astype(np.str_)
    names, place = np.unique(keys, return_inverse=True)
    ours = keys[: len(rows[0].calib)]
    share = len(np.unique(ours)) / len(names)
    found = np.empty((redraws, len(rows)))
    for draw in range(redraws):
        calib = (np.random.default_rng(draw).permutation(len(names)) < round(share * len(names)))[place]
        for index, pool in enumerate(pools):
            found[draw, index] = policy_of(pool.take(calib), risks, assume_iid).decide(pool.take(~calib)).coverage
    return found


def _joined(a: Scores, b: Scores) -> Scores:
    groups = None if a.groups is None or b.groups is None else np.concatenate([a.groups, b.groups])
    return Scores(
        logits=np.concatenate([a.logits, b.logits]),
        labels=np.concatenate([a.known_labels, b.known_labels]),
        groups=groups,
    )


# ---- several splits ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SplitRow:
    """Means over splits with their standard errors, and how often the row was the chosen one."""

    name: str
    coverage: tuple[float, float]
    gain: tuple[float, float]
    augrc: tuple[float, float]
    ece: tuple[float, float]
    views: float
    rates: tuple[float, float]
    chosen: int


def means_over_splits(splits: Sequence[Measured]) -> list[SplitRow]:
    """One line for each row that every split has, then one for whatever each split chose, and its adaptive form."""
    per_split = [_numbers(found) for found in splits]
    names = [name for name in per_split[0] if all(name in one for one in per_split)]
    lines = []
    for name in names:
        values = np.array([one[name] for one in per_split])
        gain = values[:, 0] - np.array([one[names[0]][0] for one in per_split])
        chosen = sum(found.rows[found.chosen].name == name for found in splits)
        lines.append(
            SplitRow(
                name,
                _mean(values[:, 0]),
                _mean(gain),
                _mean(values[:, 1]),
                (float(values[:, 2].mean()), float(values[:, 3].mean())),
                float(values[:, 4].mean()),
                (float(np.nanmean(values[:, 5])), float(np.nanmean(values[:, 6]))),
                chosen,
            )
        )
    return lines


def paired(splits: Sequence[Measured], name: str) -> dict[str, tuple[float, float]]:
    """Coverage of this row minus that of each other one on the same split: mean and standard error over splits."""
    per_split = [_numbers(found) for found in splits]
    others = [one for one in per_split[0] if one != name and all(one in numbers for numbers in per_split)]
    return {other: _mean(np.array([numbers[name][0] - numbers[other][0] for numbers in per_split])) for other in others}


def _numbers(found: Measured) -> dict[str, tuple[float, ...]]:
    metrics = {arm["name"]: arm["metrics"] for arm in found.test["arms"]}
    by_name = {}
    for place, row in enumerate(found.rows):
        values = (
            metrics[row.key]["coverage"]["value"],
            metrics[row.key]["augrc"]["value"],
            found.ece[place][0][0],
            found.ece[place][1][0],
            row.views,
            *found.rates[place],
        )
        if row.is_adaptive:
            by_name["chosen on val_select, adaptive"] = values
        else:
            by_name[row.name.replace("mil:mean", "mil").replace("mil:lse:1", "mil")] = values
        if place == found.chosen:
            by_name["chosen on val_select"] = values
    return by_name


def _mean(values: NDArray[np.float64]) -> tuple[float, float]:
    return float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))
