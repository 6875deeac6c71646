"""Two models on the same samples: paired differences, their intervals, and whether chance alone would do as much.

- **Same samples**: enforced by ids where both have them (rows of b are put into a's order), else by equal length and
  equal labels row by row.
- **Intervals**: a paired bootstrap. A replicate draws units (groups, else rows) within labels and weighs both models'
  rows by the same draw; the interval is the difference +- t x the replicates' spread (stage1.evaluation.t_interval).
  That of ECE, which is biased upwards in each model by another amount, lies between the ends of both models' own
  intervals (stage1.evaluation.ece_interval).
- **p-values**: paired permutation for all but ECE (equal ECE is not equal answers). Under "which model gave which
  answer does not matter", the answers to each unit may be swapped between the two; p = (1 + swaps at least as far from
  0) / (1 + swaps), so it is never 0. Confidence is swapped as its mid-rank within its own model: AURC, AUGRC and the
  AUROC of failure depend on order only, and the models' scales must not decide.
- **A verdict** for one of them needs both: an interval without 0, and p <= 1 - level. So it is false for two
  exchangeable models no more often than the permutation test, whose level is exact however few the groups. With fewer
  than 6 groups (or images) no p reaches .05 and no interval covers: "too few groups".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NotRequired

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from typing_extensions import TypedDict

from stage1.errors import ConfigError, DataError
from stage1.evaluation import resampling
from stage1.evaluation.intervals import Interval, Statistic, check_options, read_interval, weigh, without_each_unit
from stage1.evaluation.probability import Calibration, brier_rows, mcc_of_counts, nll_rows
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking, Weights, checked_weights
from stage1.evaluation.score_selection import msp
from stage1.evaluation.t_interval import SAME_EVERYWHERE, too_few
from stage1.scores import Scores
from stage1.storage.documents import Document, DocumentKind, finite_or_none
from stage1.storage.fields import PositiveInt, PositiveShare, Rate, Text

METRICS = ("aurc", "augrc", "auroc_failure", "accuracy", "nll", "brier", "ece", "mcc")
HIGHER_IS_BETTER = ("auroc_failure", "accuracy", "mcc", "coverage")
_RANKED = ("aurc", "augrc", "auroc_failure")
_PERMUTED_MEANS = ("accuracy", "nll", "brier")
_PERMUTED = (*_RANKED, *_PERMUTED_MEANS, "mcc")
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
    """Whose metric is better: the interval of the difference excludes 0, and the p-value is at most 1 - level."""
    verdict: Text
    note: NotRequired[Text]
    """Why there is no interval."""


class ComparisonDocument(Document):
    """Two models on the same samples: paired differences with t intervals from a bootstrap and permutation p-values."""

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
    0 and a p-value of at most 1 - level; else "no difference shown", which is not "no difference". Undefined numbers
    are None; note says why there is no interval.
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
    sides = Side(a, metrics, base), Side(b, metrics, base)

    observed = [{name: values[0] for name, values in side.values(base[None, :]).items()} for side in sides]
    drawn, left_out = _bootstrap(sides, plan, base, n_resamples, seed)
    p_values = _permutation(a, b, plan, base, [name for name in metrics if name in _PERMUTED], n_resamples, seed)
    short = too_few(tuple(map(len, plan.strata)), "images" if len(plan) == n else "groups")
    rows = []
    for name in metrics:
        pair, replicates, without = _ece_pair(name, observed, drawn, left_out)
        interval = read_interval(_DIFFERENCE[name], pair, replicates, level, n_resamples, plan, without, short=short)
        first, second = (_number(side[name]) for side in observed)
        rows.append(
            {
                "metric": name,
                "a": finite_or_none(first),
                "b": finite_or_none(second),
                "difference": finite_or_none(first - second),
                "low": finite_or_none(interval.low),
                "high": finite_or_none(interval.high),
                "p_value": p_values.get(name),
                **_verdict(name, names, interval, p_values.get(name)),
                **({} if interval.note is None else {"note": interval.note}),
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
    """Everything of one model that does not change from replicate to replicate.

    base: float [N], the rows' weights, at which the bins of ECE are made; None: all 1.
    """

    def __init__(self, scores: Scores, metrics: Sequence[str], base: FloatArray | None = None) -> None:
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

        known: dict[str, Callable[[Weights], FloatArray]] = {
            "accuracy": _mean_of((guess == truth).astype(np.float64)),
            "nll": _mean_of(nll_rows(scores.logits, truth)),
            "brier": _mean_of(brier_rows(probabilities, truth)),
            "ece": calibration.gaps(np.ones(len(truth)) if base is None else base, _ECE_BINS),
            "mcc": mcc,
        }
        self._ranked = [name for name in metrics if name in _RANKED]
        self._known = {name: known[name] for name in metrics if name in known}

    def values(self, weights: Weights) -> dict[str, FloatArray]:
        """The metrics for each row of weights [B, N]: float [B], of ece the signed gaps of its bins, [B, bins]."""
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


# How the interval of a difference is read: of ece the two models' gaps lie side by side.
_DIFFERENCE = {
    name: Statistic(lambda c, r, w: float("nan"), "difference", "change" if name == "ece" else None) for name in METRICS
}
Replicates = dict[str, tuple[FloatArray, FloatArray]]


def _bootstrap(
    sides: tuple[Side, Side], plan: resampling.Units, base: FloatArray, n_resamples: int, seed: int
) -> tuple[Replicates, dict[int, Replicates]]:
    """Metric -> both models' values in each replicate; and the same without each unit of a small stratum."""

    def measure(weights: Weights) -> Replicates:
        first, second = (side.values(weights) for side in sides)
        return {name: (first[name], second[name]) for name in first}

    found: dict[str, list[tuple[FloatArray, FloatArray]]] = {}
    batches = resampling.draws(plan, len(base), n_resamples, seed) if len(plan) > 1 else ()
    for counts in batches:
        weights = weigh(plan.rows(counts), base)
        if len(weights):
            for name, both in measure(weights).items():
                found.setdefault(name, []).append(both)
    names = (*sides[0]._known, *sides[0]._ranked)
    drawn = {name: _joined(found.get(name, ())) for name in names}
    return drawn, without_each_unit(plan, base, measure) if len(plan) > 1 else {}


def _joined(parts: Sequence[tuple[FloatArray, FloatArray]]) -> tuple[FloatArray, FloatArray]:
    if not parts:
        return np.empty(0), np.empty(0)
    return np.concatenate([first for first, _ in parts]), np.concatenate([second for _, second in parts])


def _ece_pair(
    name: str,
    observed: Sequence[Mapping[str, FloatArray]],
    drawn: Replicates,
    left_out: Mapping[int, Replicates],
) -> tuple[FloatArray, FloatArray, dict[int, FloatArray]]:
    """The difference a - b of one metric as `read_interval` takes it; of ece the gaps of b, then those of a."""

    def apart(first: FloatArray, second: FloatArray) -> FloatArray:
        if name == "ece" and first.size:
            return np.concatenate([second, first], axis=-1)
        return np.asarray(first - second)

    return (
        apart(observed[0][name], observed[1][name]),
        apart(*drawn[name]),
        {index: apart(*found[name]) for index, found in left_out.items()},
    )


def _number(measured: FloatArray) -> float:
    """A metric of one model: of ece the sum over bins."""
    return float(np.abs(measured).sum()) if np.ndim(measured) else float(measured)


def _permutation(
    a: Scores, b: Scores, plan: resampling.Units, base: FloatArray, metrics: Sequence[str], permutations: int, seed: int
) -> dict[str, float]:
    """Two-sided p-values. Both models' rows are in one ranking of 2 N rows; a swap is a choice of N of them."""
    if not metrics:
        return {}
    n, truth, k = len(a), a.known_labels, a.n_classes
    guesses = [side.logits.argmax(axis=1) for side in (a, b)]
    wrong = [(guess != truth).astype(np.float64) for guess in guesses]
    ranked = [name for name in metrics if name in _RANKED]
    ranking = Ranking(np.concatenate([_mid_ranks(msp(side.logits)) for side in (a, b)]), np.concatenate(wrong))
    gaps = {
        "accuracy": wrong[1] - wrong[0],
        "nll": nll_rows(a.logits, truth) - nll_rows(b.logits, truth),
        "brier": brier_rows(a.probabilities, truth) - brier_rows(b.probabilities, truth),
    }
    gaps = {name: gap for name, gap in gaps.items() if name in metrics}
    rng = resampling.generator(seed, "permutation")

    def differences(swapped: resampling.Counts) -> dict[str, FloatArray]:
        """swapped: 0/1 uint8 [B, N]."""
        kept = 1 - swapped
        found = {}
        if ranked:
            first = ranking.accept(weigh(np.concatenate([kept, swapped], axis=1), np.tile(base, 2)))
            second = ranking.accept(weigh(np.concatenate([swapped, kept], axis=1), np.tile(base, 2)))
            found = {name: np.asarray(STATISTICS[name](first) - STATISTICS[name](second)) for name in ranked}
        signs = kept.astype(np.float64) - swapped
        found |= {name: np.einsum("bi,i->b", signs, base * gap) / base.sum() for name, gap in gaps.items()}
        if "mcc" in metrics:
            found["mcc"] = _mcc_differences(truth, guesses, swapped, base, k)
        return {name: found[name] for name in metrics}

    observed = differences(np.zeros((1, n), dtype=np.uint8))
    reached = dict.fromkeys(metrics, 0)
    size = resampling.batch_rows(2 * n)
    for start in range(0, permutations, size):
        shape = (min(size, permutations - start), len(plan))
        drawn = differences(plan.rows(rng.integers(0, 2, size=shape, dtype=np.uint8)))
        for name in metrics:
            # Equal differences, summed in another order, differ by rounding. A swap that leaves the metric undefined
            # (no wrong answer in one of the two) counts as one that reaches it.
            short_of = np.abs(drawn[name]) < abs(observed[name][0]) - 1e-12
            reached[name] += int((~short_of).sum())
    return {
        name: (1 + count) / (1 + permutations) for name, count in reached.items() if not np.isnan(observed[name][0])
    }


def _mcc_differences(
    truth: NDArray[np.int64], guesses: Sequence[NDArray[np.int64]], swapped: resampling.Counts, base: FloatArray, k: int
) -> FloatArray:
    """MCC of the first minus that of the second model for each row of swaps [B, N], float [B]."""
    apart = np.flatnonzero(guesses[0] != guesses[1])
    alike = np.bincount(truth * k + guesses[0], np.where(guesses[0] == guesses[1], base, 0.0), k * k)
    cells = [truth[apart] * k + guess[apart] for guess in guesses]
    found: FloatArray = np.empty(len(swapped))
    for place, row in enumerate(swapped[:, apart].astype(np.bool_)):
        first, second = np.where(row, cells[1], cells[0]), np.where(row, cells[0], cells[1])
        tables = [np.asarray(alike + np.bincount(side, base[apart], k * k), np.float64) for side in (first, second)]
        found[place] = mcc_of_counts(tables[0].reshape(k, k)) - mcc_of_counts(tables[1].reshape(k, k))
    return found


def _mid_ranks(values: FloatArray) -> FloatArray:
    """Ranks in 0..N-1, ties at their middle."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts + 1) / 2)[inverse.reshape(-1)])


def _verdict(metric: str, names: tuple[str, str], interval: Interval, p_value: float | None) -> dict[str, str | None]:
    if interval.note == SAME_EVERYWHERE:
        return {"better": None, "verdict": NO_DIFFERENCE}
    if np.isnan(interval.low):
        return {"better": None, "verdict": interval.note or "undefined"}
    if interval.low <= 0 <= interval.high or (p_value is not None and p_value > 1.0 - interval.level):
        return {"better": None, "verdict": NO_DIFFERENCE}
    better = 0 if (interval.low > 0) == (metric in HIGHER_IS_BETTER) else 1
    return {"better": "ab"[better], "verdict": f"{names[better]} is better"}
