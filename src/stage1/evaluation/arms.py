"""Several ways of training (arms), each with runs of its seeds, on the same samples: paired differences to the first.

- **An arm's number** is the mean of its runs' numbers. `sd` is their spread from seed to seed (n - 1), beside it.
- **Intervals**: one bootstrap for everything. A replicate draws units (groups, else rows) within labels once, weighs
  the rows of every run of every arm by that draw, and averages each arm's runs; so arms are paired. The interval is
  value +- t x spread (stage1.evaluation.t_interval). Where an arm has several runs, the variance of a mean of k seeds,
  with its k - 1 degrees of freedom, is added: the interval is then about other samples and other seeds; of one run,
  about other samples only.
- Each interval is for its own difference. Among many arms one will differ by chance: choose on one
  role, confirm the one chosen on another.

Selective metrics, NLL and MCC are of the model's own softmax, as in stage1.evaluation.comparison. `coverage` (share of
images that exit) and `exit_error` (share wrong among exits) are those of each run's exit policy, where every run has
one. Their own intervals are for the thresholds as they are. Their differences have none, and no arm is called better by
them: what another calibration set would have given the two arms is luck that one calibration set cannot show.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError, DataError
from stage1.evaluation import resampling
from stage1.evaluation.comparison import HIGHER_IS_BETTER, NO_DIFFERENCE, Side, same_samples
from stage1.evaluation.intervals import check_options, without_each_unit
from stage1.evaluation.ranking import FloatArray, Weights
from stage1.evaluation.t_interval import SAME_EVERYWHERE, Scale, Spread, t_interval, too_few
from stage1.scores import Scores
from stage1.storage.documents import finite_or_none

MODEL_METRICS = ("augrc", "aurc", "nll", "mcc", "accuracy")
POLICY_METRICS = ("coverage", "exit_error")
ENOUGH_SEEDS = 3
SCALES: dict[str, Scale] = {
    "augrc": "loss",
    "aurc": "loss",
    "nll": "loss",
    "mcc": "correlation",
    "accuracy": "share",
    "coverage": "share",
    "exit_error": "share",
}
CALIBRATION_LUCK = "no interval: the luck of val_calib in each arm's thresholds is not known from one val_calib"


@dataclass(frozen=True, slots=True)
class ArmRun:
    """One trained model: labelled scores, and the decision of its policy on the same rows (None: there is none).

    exit: bool [N], the image is answered. label: int [N], the answer where it is.
    """

    scores: Scores
    exit: NDArray[np.bool_] | None = None
    label: NDArray[np.int64] | None = None


def compare_arms(
    arms: Mapping[str, Sequence[ArmRun]], *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """Values of every arm and paired differences of every other arm to the first, from one bootstrap (see above).

    arms: name -> its runs, one for each seed; all of the same samples (by ids where there are any). One arm alone has
    values and no differences. Returns "n", "n_groups", "unit", "level", "resamples", "seed", "reference" (the first
    arm's name); "arms": name, seeds, metrics: {metric: value, low, high, sd, per_seed};
    "differences": arm, metric, difference (arm - reference), low, high, better (the arm's name, the reference's, or
    None), verdict.
    A verdict needs an interval without 0, else it is "no difference shown". Undefined numbers are None; `note` says why
    there is no interval.
    Raises DataError naming the first run that has other samples, ConfigError for no arms, an arm without runs or bad
    options.
    """
    check_options(n_resamples, level, seed)
    if not arms or not all(arms.values()):
        empty = next((name for name, runs in arms.items() if not runs), "arms")
        raise ConfigError(f"{empty}: no runs; each arm needs at least one")
    first_name = next(iter(arms))
    first = arms[first_name][0]
    aligned = {
        name: [
            _aligned(first, run, (f"{first_name} (run 1)", f"{name} (run {place})"))
            for place, run in enumerate(runs, 1)
        ]
        for name, runs in arms.items()
    }
    n = len(first.scores)
    decided = all(run.exit is not None for runs in aligned.values() for run in runs)
    metrics = (*MODEL_METRICS, *(POLICY_METRICS if decided else ()))
    sides = {name: [_ArmSide(run, metrics) for run in runs] for name, runs in aligned.items()}
    groups = next(
        (run.scores.groups for runs in aligned.values() for run in runs if run.scores.groups is not None), None
    )
    plan = resampling.units(n, first.scores.known_labels, groups)

    whole = np.ones((1, n))
    observed = {name: _per_run(runs, whole) for name, runs in sides.items()}

    def means(weights: Weights) -> dict[str, dict[str, FloatArray]]:
        """Arm -> metric -> mean of its runs, float [B]."""
        return {
            name: {metric: values.mean(axis=0) for metric, values in _per_run(runs, weights).items()}
            for name, runs in sides.items()
        }

    batches = resampling.draws(plan, n, n_resamples, seed) if len(plan) > 1 else ()
    parts = [means(plan.rows(counts)) for counts in batches]
    drawn = {
        name: {metric: np.concatenate([np.empty(0), *(part[name][metric] for part in parts)]) for metric in metrics}
        for name in sides
    }
    left_out = without_each_unit(plan, whole[0], means) if len(plan) > 1 else {}
    short = too_few(tuple(map(len, plan.strata)), "images" if len(plan) == n else "groups")

    def interval(value: float, metric: str, scale: Scale, signs: Mapping[str, float]) -> dict[str, Any]:
        """low, high (and note) of the sum over arms of sign x mean."""

        def total(found: Mapping[str, Mapping[str, FloatArray]]) -> FloatArray:
            return np.asarray(sum(sign * found[name][metric] for name, sign in signs.items()))

        low = high = float("nan")
        note = None if np.isnan(value) else short
        if not np.isnan(value) and short is None:
            spread = Spread.of(plan, {index: total(found) for index, found in left_out.items()})
            extra = _seed_variance([observed[name][metric][:, 0] for name in signs])
            low, high, note = t_interval(value, total(drawn), level, spread, scale, n_resamples, extra)
        found = {"low": finite_or_none(low), "high": finite_or_none(high)}
        return found if note is None else {**found, "note": note}

    rows, differences = [], []
    for name in sides:
        values_of: dict[str, dict[str, Any]] = {}
        for metric in metrics:
            per_seed = observed[name][metric][:, 0]
            value = float(per_seed.mean())
            values_of[metric] = {
                "value": finite_or_none(value),
                **interval(value, metric, SCALES[metric], {name: 1.0}),
                "sd": finite_or_none(float(per_seed.std(ddof=1))) if len(per_seed) > 1 else None,
                "per_seed": [finite_or_none(float(one)) for one in per_seed],
            }
            if name == first_name:
                continue
            gap = value - float(observed[first_name][metric][:, 0].mean())
            if metric in POLICY_METRICS and not np.isnan(gap):
                ends: dict[str, Any] = {"low": None, "high": None, "note": CALIBRATION_LUCK}
            else:
                ends = interval(gap, metric, "difference", {name: 1.0, first_name: -1.0})
            differences.append(
                {
                    "arm": name,
                    "metric": metric,
                    "difference": finite_or_none(gap),
                    **ends,
                    **_verdict(metric, name, first_name, ends),
                }
            )
        rows.append({"name": name, "seeds": len(sides[name]), "metrics": values_of})
    return {
        "n": n,
        "n_groups": len(plan),
        "unit": "group" if len(plan) < n else "image",
        "level": float(level),
        "resamples": int(n_resamples),
        "seed": int(seed),
        "reference": first_name,
        "arms": rows,
        "differences": differences,
    }


def best_arm(comparison: Mapping[str, Any], by: str) -> str:
    """The arm with the best value of a metric; at a tie, or where it is undefined everywhere, the earlier one.

    Raises ConfigError for a metric that was not compared.

    >>> losses = {"small": 0.4, "large": 0.3}
    >>> arms = [{"name": name, "metrics": {"nll": {"value": loss}}} for name, loss in losses.items()]
    >>> best_arm({"arms": arms}, "nll")
    'large'
    """
    arms = comparison["arms"]
    if by not in arms[0]["metrics"]:
        raise ConfigError(f"by: {by!r} is not compared here; use {', '.join(arms[0]['metrics'])}")
    sign = -1.0 if by in HIGHER_IS_BETTER else 1.0

    def place(arm: Mapping[str, Any]) -> float:
        value = arm["metrics"][by]["value"]
        return float("inf") if value is None else sign * float(value)

    return str(min(arms, key=place)["name"])


# ---- one run -----------------------------------------------------------------------------------------------------


class _ArmSide:
    """The metrics of one run as functions of weights [B, N]."""

    def __init__(self, run: ArmRun, metrics: Sequence[str]) -> None:
        self._model = Side(run.scores, [name for name in metrics if name in MODEL_METRICS])
        self._exit: FloatArray | None = None
        if "coverage" in metrics:
            assert run.exit is not None
            assert run.label is not None
            self._exit = run.exit.astype(np.float64)
            self._wrong = self._exit * (run.label != run.scores.known_labels)

    def values(self, weights: Weights) -> dict[str, FloatArray]:
        found = self._model.values(weights)
        if self._exit is not None:
            rows = weights.astype(np.float64)
            exits = rows @ self._exit
            found["coverage"] = exits / rows.sum(axis=1)
            found["exit_error"] = np.divide(rows @ self._wrong, exits, out=np.full(len(rows), np.nan), where=exits > 0)
        return found


def _per_run(sides: Sequence[_ArmSide], weights: Weights) -> dict[str, FloatArray]:
    """metric -> float [runs, B]."""
    found = [side.values(weights) for side in sides]
    return {metric: np.stack([one[metric] for one in found]) for metric in found[0]}


def _seed_variance(per_arm: Sequence[FloatArray]) -> tuple[float, float] | None:
    """(variance of the sum of arms' means over seeds, degrees of freedom by Satterthwaite); None: one run each."""
    parts = [(float(runs.var(ddof=1)) / len(runs), len(runs) - 1) for runs in per_arm if len(runs) > 1]
    total = sum(part for part, _ in parts)
    if not total > 0:
        return None
    return total, total**2 / sum(part**2 / free for part, free in parts)


def _aligned(first: ArmRun, run: ArmRun, names: tuple[str, str]) -> ArmRun:
    """The run with its rows in the order of `first`. Raises DataError naming what differs."""
    n = len(run.scores)
    if (run.exit is None) != (run.label is None) or any(
        column is not None and len(column) != n for column in (run.exit, run.label)
    ):
        raise DataError(f"{names[1]}: exit and label go together, one of each for every one of its {n} rows")
    scores = same_samples(first.scores, run.scores, names)
    exits, label = run.exit, run.label
    if first.scores.ids is not None and run.scores.ids is not None and exits is not None and label is not None:
        place = {name: row for row, name in enumerate(run.scores.ids.tolist())}
        order = np.array([place[name] for name in first.scores.ids.tolist()], dtype=np.int64)
        exits, label = exits[order], label[order]
    return ArmRun(scores, exits, label)


def _verdict(metric: str, arm: str, reference: str, ends: Mapping[str, Any]) -> dict[str, str | None]:
    low, high, note = ends["low"], ends["high"], ends.get("note")
    if low is None:
        return {"better": None, "verdict": NO_DIFFERENCE if note == SAME_EVERYWHERE else note or "undefined"}
    if low <= 0 <= high:
        return {"better": None, "verdict": NO_DIFFERENCE}
    better = arm if (low > 0) == (metric in HIGHER_IS_BETTER) else reference
    return {"better": better, "verdict": f"{better} is better"}
