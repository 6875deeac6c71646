"""What a calibration map did: NLL, Brier and calibration error before and after, on rows that it was not fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stage1.calibration import CalibrationMap
from stage1.errors import DataError
from stage1.evaluation.intervals import Interval, Metric, Statistic, bootstrap, measured
from stage1.evaluation.probability import Calibration, brier_rows, nll_rows, reliability
from stage1.evaluation.ranking import FloatArray, weighted_mean
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
        found: dict[str, Statistic] = {}
        for name in LOSSES:
            found[f"calibration/{name}/before"] = first[name]
            found[f"calibration/{name}/change"] = _change(first[name], second[name])
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
    metrics: dict[str, Statistic] = {}
    for name in ("nll", "brier", "ece"):
        first, second = found["before"][name], found["after"][name]
        metrics |= {f"{name}/before": first, f"{name}/after": second, f"{name}/change": _change(first, second)}
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
    labels, probabilities = scores.known_labels, scores.probabilities
    return {
        "nll": Statistic(_mean_of(nll_rows(scores.logits, labels)), "loss"),
        "brier": Statistic(_mean_of(brier_rows(probabilities, labels)), "loss"),
        "ece": calibration_error(Calibration(probabilities, labels), len(scores)),
    }


def calibration_error(calibration: Calibration, n: int, n_bins: int = BINS) -> Statistic:
    """The calibration error of n rows as `bootstrap` takes it, in bins of equal mass that stay in every replicate."""
    gaps = calibration.gaps(np.ones(n), n_bins)
    return Statistic(lambda c, r, w: gaps(w[None, :])[0], calibration="error")


def _mean_of(values: FloatArray) -> Metric:
    return lambda c, r, w: weighted_mean(values, w)


def _change(first: Statistic, second: Statistic) -> Statistic:
    before, after = first.measure, second.measure
    if first.calibration is not None:
        return Statistic(lambda c, r, w: np.append(before(c, r, w), after(c, r, w)), calibration="change")
    return Statistic(lambda c, r, w: after(c, r, w) - before(c, r, w), "difference")


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
