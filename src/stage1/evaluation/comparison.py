"""Two models on the same samples: paired differences, their intervals, and whether chance alone would do as much.

- **Same samples**: enforced by ids where both have them (rows of b are put into a's order), else by equal length and
  equal labels row by row.
- **Intervals**: a paired bootstrap. A replicate draws units (groups, else rows) within labels and weighs both models'
  rows by the same draw; the interval is that of the difference.
- **p-values**: paired permutation for AURC, AUGRC, accuracy and NLL. Under "which model gave which answer does not
  matter", the answers to each unit may be swapped between the two; p = (1 + swaps at least as far from 0) / (1 +
  swaps), so it is never 0. Confidence is swapped as its mid-rank within its own model: AURC and AUGRC depend on order
  only, and the models' scales must not decide.

ECE is biased upwards in a sample, and more so in a replicate, for both models alike; between models of similar spread
of probabilities that cancels in the difference. NLL and Brier have no such bias: prefer them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from typing_extensions import TypedDict

from stage1.errors import ConfigError, DataError
from stage1.evaluation import resampling
from stage1.evaluation.intervals import check_options, weigh
from stage1.evaluation.probability import Calibration, brier_rows, mcc_of_counts, nll_rows
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking, Weights, checked_weights
from stage1.evaluation.score_selection import msp
from stage1.scores import Scores
from stage1.storage.documents import Document, DocumentKind, finite_or_none
from stage1.storage.fields import PositiveInt, PositiveShare, Rate, Text

METRICS = ("aurc", "augrc", "auroc_failure", "accuracy", "nll", "brier", "ece", "mcc")
HIGHER_IS_BETTER = ("auroc_failure", "accuracy", "mcc", "coverage")
_RANKED = ("aurc", "augrc", "auroc_failure")
_PERMUTED = ("aurc", "augrc", "accuracy", "nll")
_ECE_BINS = 15
NO_DIFFERENCE = "no difference shown"


class MetricDifference(TypedDict):
    """One metric of both models, and what lies between them."""

    metric: Literal["aurc", "augrc", "auroc_failure", "accuracy", "nll", "brier", "ece", "mcc"]
    a: float | None
    b: float | None
    difference: float | None
    """a - b."""
    low: float | None
    high: float | None
    p_value: PositiveShare | None
    """Paired permutation, two-sided; null where none is made."""
    better: Literal["a", "b", None]
    """Whose metric is better where the interval of the difference excludes 0."""
    verdict: Text


class ComparisonDocument(Document):
    """Two models on the same samples: paired differences with bootstrap intervals and permutation p-values."""

    a: Text
    """Name of the first model."""
    b: Text
    """Name of the second model."""
    n: PositiveInt
    n_groups: PositiveInt
    unit: Literal["image", "group"]
    """What the bootstrap draws and the permutation swaps."""
    matched_by: Literal["ids", "labels"]
    """How the samples are known to be the same; labels: by equal length and labels only."""
    weighted: bool
    level: Rate
    resamples: PositiveInt
    seed: int
    rows: Annotated[list[MetricDifference], Field(min_length=1)]


COMPARISON_KIND = DocumentKind("comparison", ComparisonDocument)


def compare(
    a: Scores,
    b: Scores,
    *,
    names: tuple[str, str] = ("a", "b"),
    metrics: Sequence[str] = METRICS,
    weights: ArrayLike | None = None,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The document of kind "comparison" (schemas/comparison.schema.json), without schema_version.

    a, b: labelled scores of the same samples and classes; groups of either (equal where both have them). Confidence is
    each model's MSP, as a logit; answers are the largest logit. metrics: of METRICS. weights: [N] in a's order, for
    example `prior_weights(a.labels, 0.5)`. n_resamples: bootstrap replicates, and permutations.

    "rows", one for each metric: metric, a, b, difference (a - b), low, high, p_value (None where no permutation test is
    made), better ("a", "b" or None) and verdict. A verdict for one of them needs an interval of the difference without
    0; else "no difference shown", which is not "no difference". Undefined numbers are None.
    Raises DataError naming the first difference of the samples, ConfigError for an option that makes no sense.

    >>> from stage1 import Scores
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 200)
    >>> ids = [f"image {row}" for row in range(200)]
    >>> sharp, noisy = (np.stack([0 * labels, rng.normal(2 * labels - 1, s)], axis=1) for s in (1.0, 3.0))
    >>> a, b = Scores(sharp, labels=labels, ids=ids), Scores(noisy, labels=labels, ids=ids)
    >>> row = compare(a, b, metrics=["accuracy"], n_resamples=100)["rows"][0]
    >>> round(row["a"], 3), round(row["b"], 3), row["better"]
    (0.825, 0.615, 'a')
    """
    check_options(n_resamples, level, seed)
    if unknown := [name for name in metrics if name not in METRICS]:
        raise ConfigError(f"metrics: {unknown[0]!r} is not compared; use {', '.join(METRICS)}")
    if not metrics:
        raise ConfigError(f"metrics: none given; use {', '.join(METRICS)}")
    if len(set(names)) != 2 or not all(names):
        raise ConfigError(f"names: {list(names)}; give the two models two different names")
    b = same_samples(a, b, names)
    n = len(a)
    base = checked_weights(weights, n)
    groups = a.groups if a.groups is not None else b.groups
    plan = resampling.units(n, a.labels, groups)
    sides = Side(a, metrics), Side(b, metrics)

    observed = [side.values(base[None, :]) for side in sides]
    drawn = _bootstrap(sides, plan, base, n_resamples, seed)
    p_values = _permutation(a, b, plan, base, [name for name in metrics if name in _PERMUTED], n_resamples, seed)
    rows = []
    for name in metrics:
        first, second = (float(side[name][0]) for side in observed)
        low, high = percentile_interval(drawn[name], first - second, level, n_resamples)
        rows.append(
            {
                "metric": name,
                "a": finite_or_none(first),
                "b": finite_or_none(second),
                "difference": finite_or_none(first - second),
                "low": finite_or_none(low),
                "high": finite_or_none(high),
                "p_value": p_values.get(name),
                **_verdict(name, names, low, high),
            }
        )
    repeated = len(plan) < n
    return {
        "a": names[0],
        "b": names[1],
        "n": n,
        "n_groups": len(plan),
        "unit": "group" if repeated else "image",
        "matched_by": "ids" if a.ids is not None and b.ids is not None else "labels",
        "weighted": weights is not None,
        "level": float(level),
        "resamples": int(n_resamples),
        "seed": int(seed),
        "rows": rows,
    }


def same_samples(a: Scores, b: Scores, names: tuple[str, str] = ("a", "b")) -> Scores:
    """b with its rows in the order of a. Raises DataError naming the first difference where they are other samples."""
    first, second = names
    if not len(a) or not len(b):
        raise DataError(f"{first if not len(a) else second}: no rows; there is nothing to compare")
    if a.n_classes != b.n_classes:
        raise DataError(f"{second}: {b.n_classes} classes, {first} has {a.n_classes}; compare models of one problem")
    if a.ids is not None and b.ids is not None:
        b = _in_order_of(a.ids, b, b.ids, names)
    elif len(a) != len(b):
        raise DataError(f"{second}: {len(b)} rows, {first} has {len(a)}; score both on the same samples")

    def place(row: int) -> str:
        return f"row {row}" if a.ids is None else str(a.ids[row])

    labels, others = a.known_labels, b.known_labels
    if (labels != others).any():
        row = int((labels != others).argmax())
        raise DataError(
            f"labels: {place(row)} is {labels[row]} in {first} and {others[row]} in {second}; "
            "score both on the same samples"
        )
    if a.groups is not None and b.groups is not None and (a.groups != b.groups).any():
        row = int((a.groups != b.groups).argmax())
        raise DataError(
            f"groups: {place(row)} is in {str(a.groups[row])!r} in {first} and in {str(b.groups[row])!r} in {second}; "
            "give both the same groups"
        )
    return b


def _in_order_of(ids: NDArray[np.str_], b: Scores, other: NDArray[np.str_], names: tuple[str, str]) -> Scores:
    order = np.argsort(other)
    ordered = other[order]
    place = np.minimum(np.searchsorted(ordered, ids), len(other) - 1)
    absent = ordered[place] != ids
    if absent.any():
        raise DataError(
            f"ids: {str(ids[absent.argmax()])!r} is in {names[0]} and not in {names[1]} ({int(absent.sum())} such); "
            "score both on the same samples"
        )
    if len(other) > len(ids):
        extra = ~np.isin(other, ids)
        raise DataError(
            f"ids: {str(other[extra.argmax()])!r} is in {names[1]} and not in {names[0]} ({int(extra.sum())} such); "
            "score both on the same samples"
        )
    return b.take(order[place])


# ---- one model ---------------------------------------------------------------------------------------------------


class Side:
    """Everything of one model that does not change from replicate to replicate."""

    def __init__(self, scores: Scores, metrics: Sequence[str]) -> None:
        truth, guess = scores.known_labels, scores.logits.argmax(axis=1)
        self._ranking = Ranking(msp(scores.logits), (guess != truth).astype(np.float64))
        k = scores.n_classes
        probabilities = scores.probabilities
        calibration = Calibration(probabilities, truth)
        cell = np.argsort(truth * k + guess, kind="stable")
        counts = np.bincount(truth * k + guess, minlength=k * k)
        starts = np.append(0, np.cumsum(counts)[:-1])[counts > 0]

        def mcc(weights: Weights) -> FloatArray:
            cells = np.zeros((len(weights), k * k))
            kind = np.int64 if weights.dtype == np.uint8 else np.float64
            cells[:, counts > 0] = np.add.reduceat(weights.take(cell, axis=-1), starts, axis=-1, dtype=kind)
            return np.array([mcc_of_counts(row.reshape(k, k)) for row in cells])

        def ece(weights: Weights) -> FloatArray:
            return np.array([calibration.error(row, _ECE_BINS) for row in weights.astype(np.float64)])

        known: dict[str, Callable[[Weights], FloatArray]] = {
            "accuracy": _mean_of((guess == truth).astype(np.float64)),
            "nll": _mean_of(nll_rows(scores.logits, truth)),
            "brier": _mean_of(brier_rows(probabilities, truth)),
            "ece": ece,
            "mcc": mcc,
        }
        self._ranked = [name for name in metrics if name in _RANKED]
        self._known = {name: known[name] for name in metrics if name in known}

    def values(self, weights: Weights) -> dict[str, FloatArray]:
        """The metrics for each row of weights [B, N]."""
        found = {name: metric(weights) for name, metric in self._known.items()}
        if self._ranked:
            accepted = self._ranking.accept(weights)
            found |= {name: np.asarray(STATISTICS[name](accepted)) for name in self._ranked}
        return found


def _mean_of(values: FloatArray) -> Callable[[Weights], FloatArray]:
    def mean(weights: Weights) -> FloatArray:
        return np.asarray(np.einsum("bi,i->b", weights, values) / weights.sum(axis=-1, dtype=np.float64))

    return mean


# ---- both --------------------------------------------------------------------------------------------------------


def _bootstrap(
    sides: tuple[Side, Side], plan: resampling.Units, base: FloatArray, n_resamples: int, seed: int
) -> dict[str, FloatArray]:
    found: dict[str, list[FloatArray]] = {}
    batches = resampling.draws(plan, len(base), n_resamples, seed) if len(plan) > 1 else ()
    for counts in batches:
        weights = weigh(plan.rows(counts), base)
        if not len(weights):
            continue
        first, second = (side.values(weights) for side in sides)
        for name in first:
            found.setdefault(name, []).append(first[name] - second[name])
    empty = dict.fromkeys((*sides[0]._known, *sides[0]._ranked), np.empty(0))
    return empty | {name: np.concatenate(values) for name, values in found.items()}


def _permutation(
    a: Scores, b: Scores, plan: resampling.Units, base: FloatArray, metrics: Sequence[str], permutations: int, seed: int
) -> dict[str, float]:
    """Two-sided p-values. Both models' rows are in one ranking of 2 N rows; a swap is a choice of N of them."""
    if not metrics:
        return {}
    n, truth = len(a), a.known_labels
    wrong = [(side.logits.argmax(axis=1) != truth).astype(np.float64) for side in (a, b)]
    ranking = Ranking(np.concatenate([_mid_ranks(msp(side.logits)) for side in (a, b)]), np.concatenate(wrong))
    gaps = {
        "accuracy": wrong[1] - wrong[0],
        "nll": nll_rows(a.logits, truth) - nll_rows(b.logits, truth),
    }
    rng = resampling.generator(seed, "permutation")

    def differences(swapped: resampling.Counts) -> dict[str, FloatArray]:
        """swapped: 0/1 uint8 [B, N]."""
        kept = 1 - swapped
        found = {}
        if "aurc" in metrics or "augrc" in metrics:
            first = ranking.accept(weigh(np.concatenate([kept, swapped], axis=1), np.tile(base, 2)))
            second = ranking.accept(weigh(np.concatenate([swapped, kept], axis=1), np.tile(base, 2)))
            found = {"aurc": first.aurc - second.aurc, "augrc": first.augrc - second.augrc}
        signs = kept.astype(np.float64) - swapped
        found |= {name: np.einsum("bi,i->b", signs, base * gap) / base.sum() for name, gap in gaps.items()}
        return {name: found[name] for name in metrics}

    observed = differences(np.zeros((1, n), dtype=np.uint8))
    reached = dict.fromkeys(metrics, 0)
    size = resampling.batch_rows(2 * n)
    for start in range(0, permutations, size):
        shape = (min(size, permutations - start), len(plan))
        drawn = differences(plan.rows(rng.integers(0, 2, size=shape, dtype=np.uint8)))
        for name in metrics:
            # Equal differences, summed in another order, differ by rounding
            reached[name] += int((np.abs(drawn[name]) >= abs(observed[name][0]) - 1e-12).sum())
    return {name: (1 + count) / (1 + permutations) for name, count in reached.items()}


def _mid_ranks(values: FloatArray) -> FloatArray:
    """Ranks in 0..N-1, ties at their middle."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse.reshape(-1)])


def percentile_interval(drawn: FloatArray, difference: float, level: float, n_resamples: int) -> tuple[float, float]:
    """Percentiles, outwards to actual replicates; NaN where fewer than half of the replicates are defined."""
    defined = drawn[~np.isnan(drawn)]
    if len(defined) * 2 < n_resamples or np.isnan(difference):
        return float("nan"), float("nan")
    low, high = (1.0 - level) / 2, (1.0 + level) / 2
    return float(np.quantile(defined, low, method="lower")), float(np.quantile(defined, high, method="higher"))


def _verdict(metric: str, names: tuple[str, str], low: float, high: float) -> dict[str, str | None]:
    if np.isnan(low):
        return {"better": None, "verdict": "undefined"}
    if low <= 0 <= high:
        return {"better": None, "verdict": NO_DIFFERENCE}
    better = 0 if (low > 0) == (metric in HIGHER_IS_BETTER) else 1
    return {"better": "ab"[better], "verdict": f"{names[better]} is better"}
