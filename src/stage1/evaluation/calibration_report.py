"""What a calibration map did: NLL, Brier and calibration error before and after, on rows that it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from stage1.calibration import CalibrationMap
from stage1.errors import DataError
from stage1.evaluation.intervals import Interval, Statistic, bootstrap, measured
from stage1.evaluation.linear import Binned
from stage1.evaluation.measures import difference_of, mean_of
from stage1.evaluation.probability import Calibration, brier_rows, nll_rows, reliability
from stage1.evaluation.ranking import FloatArray
from stage1.scores import Scores

BINS = 15
LOSSES = ("nll", "brier", "ece")


@dataclass(frozen=True, slots=True)
class Reported:
    """The probabilities that a policy states beside those of the model, for the same labelled rows.

    before: raw scores. after: scores whose softmax is what is stated; the same object where no map is applied.
    map: its name ("gate" where a gate states its own). score: "raw" or "mapped", on what the thresholds lie. reason:
    why this map, one sentence.
    """

    before: Scores
    after: Scores
    map: str
    score: str
    reason: str

    @property
    def changes(self) -> bool:
        """Whether the stated probabilities are others than the model's."""
        return self.after is not self.before

    def metrics(self) -> dict[str, Statistic]:
        """What `bootstrap` measures beside the losses of `after`: "calibration/<loss>/before" and "../change"."""
        if not self.changes:
            return {}
        first, second = _losses(self.before), _losses(self.after)
        changes = _changes(self.before, self.after, (first["ece"], second["ece"]))
        found: dict[str, Statistic] = {}
        for name in LOSSES:
            found[f"calibration/{name}/before"] = first[name]
            found[f"calibration/{name}/change"] = changes[name]
        return found

    def document(self, intervals: Mapping[str, Interval]) -> dict[str, Any]:
        """`calibration` and, where a map is applied, `reliability_before` of evaluation.json.

        intervals: of `metrics`, and of the losses of `after` by their own names, from the same replicates.
        """
        facts: dict[str, Any] = {"map": self.map, "score": self.score, "reason": self.reason}
        if not self.changes:
            return {"calibration": facts}
        for name in LOSSES:
            parts = {"before": f"calibration/{name}/before", "after": name, "change": f"calibration/{name}/change"}
            facts[name] = {part: measured(intervals[key]) for part, key in parts.items()}
        return {"calibration": facts, "reliability_before": _bins(self.before)}


def before_after(
    scores: Scores, calibration: CalibrationMap | None, *, n_resamples: int = 500, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """`nll`, `brier`, `ece`: {before, after, change}, each {value, low, high}; `reliability`: {before, after}, bins.

    scores: labelled, val_test. calibration: None: the identity, after = before. Intervals (as of `bootstrap`) are from
    the same replicates for all (groups whole, within labels), so `change` = after - before of nll and brier is a paired
    one; that of ece (15 bins of equal mass, biased upwards on both sides) lies between the ends of both. Also `map`,
    `monotone`, `constrained`, `n`, `level`.
    Raises DataError without labels or rows, or where K differs from the map's.
    """
    labels = scores.known_labels
    if not len(scores):
        raise DataError("scores: no rows; give the labelled rows of val_test")
    after = scores if calibration is None else calibration.calibrate(scores)
    found = {"before": _losses(scores), "after": _losses(after)}
    found["change"] = _changes(scores, after, (found["before"]["ece"], found["after"]["ece"]))
    metrics = {f"{name}/{part}": losses[name] for name in LOSSES for part, losses in found.items()}
    intervals = bootstrap(
        metrics,
        confidence=np.zeros(len(scores)),
        residuals=np.zeros(len(scores)),
        labels=labels,
        groups=scores.groups,
        n_resamples=n_resamples,
        level=level,
        seed=seed,
    )
    document: dict[str, Any] = {
        "map": "identity" if calibration is None else calibration.name,
        "monotone": calibration is None or calibration.monotone,
        "constrained": [] if calibration is None else list(calibration.constrained),
        "n": len(scores),
        "level": float(level),
    }
    for name in ("nll", "brier", "ece"):
        document[name] = {part: measured(intervals[f"{name}/{part}"]) for part in ("before", "after", "change")}
        if calibration is None:  # nothing was changed, whatever the rows
            document[name]["change"] = {"value": 0.0, "low": 0.0, "high": 0.0}
    document["reliability"] = {"before": _bins(scores), "after": _bins(after)}
    return document


def _losses(scores: Scores) -> dict[str, Statistic]:
    rows = _loss_rows(scores)
    return {name: mean_of(values, "loss") for name, values in rows.items()} | {
        "ece": calibration_error(Calibration(scores.probabilities, scores.known_labels), len(scores))
    }


def _loss_rows(scores: Scores) -> dict[str, FloatArray]:
    labels = scores.known_labels
    return {"nll": nll_rows(scores.logits, labels), "brier": brier_rows(scores.probabilities, labels)}


def _changes(before: Scores, after: Scores, errors: tuple[Statistic, Statistic]) -> dict[str, Statistic]:
    """What a map changes of each loss; errors: the calibration errors before and after."""
    first, second = _loss_rows(before), _loss_rows(after)
    return {name: difference_of(first[name], second[name]) for name in first} | {"ece": _change(*errors)}


def calibration_error(calibration: Calibration, n: int, n_bins: int = BINS) -> Statistic:
    """The calibration error of n rows as `bootstrap` takes it, in bins of equal mass that stay in every replicate."""
    gaps = calibration.gaps(np.ones(n), n_bins)
    return Statistic(
        lambda c, r, w: gaps(w[None, :])[0],
        calibration="error",
        influence=lambda: [Binned(*calibration.binned(n_bins), n_bins)],
    )


def _change(first: Statistic, second: Statistic) -> Statistic:
    before, after = first.measure, second.measure
    return Statistic(
        lambda c, r, w: np.append(before(c, r, w), after(c, r, w)),
        calibration="change",
        influence=lambda: [part for one in (first, second) if one.influence for part in _binned(one.influence())],
    )


def _binned(found: FloatArray | Sequence[Binned] | None) -> list[Binned]:
    return [part for part in found or () if isinstance(part, Binned)]


def _bins(scores: Scores) -> list[dict[str, float]]:
    return [
        {
            "low": row.low,
            "high": row.high,
            "count": int(row.count),
            "mean_probability": row.mean_probability,
            "observed_rate": row.observed_rate,
        }
        for row in reliability(scores.probabilities, scores.known_labels, BINS)
    ]
