"""What a cascade costs: the load of each later stage against its capacity, and cost against risk (the frontier).

The load is an upper bound of the share of images that reaches a stage. The frontier has one row for each configuration
of the first stage's thresholds, with the measured costs of each stage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import log, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.cascade.calls import ANSWERED
from stage1.cascade.candidates import Candidate
from stage1.cascade.certificate import Labelled
from stage1.cascade.certify import Sample, measure
from stage1.cascade.config import CascadeConfig, StageConfig
from stage1.cascade.rules import Recorded, final_answers
from stage1.errors import ConfigError, DataError
from stage1.late import library
from stage1.risk import binomial_upper
from stage1.risk.cluster_share import FEWEST_GROUPS, ClusterShare
from stage1.risk.stratified import Strata, weighted_share_upper

stats = library("scipy.stats")

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class DeferRate:
    """Share of images that go on. observed, upper: at 1 - delta; n: images; method: in words; prior: of class 1.

    bounded: False where there are too few groups for a bound: `upper` is then 1, which says nothing.
    """

    observed: float
    upper: float
    n: int
    delta: float
    method: str
    prior: float | None
    bounded: bool = True


def defer_rate(
    deferred: Bools, labels: Ints | None, *, delta: float, prior: float | None, fitted_here: bool, choices: int = 1
) -> DeferRate:
    """From independent images: deferred bool [N], labels int [N] (needed with prior).

    fitted_here: the thresholds were chosen on these very images. Then an exact binomial would be too small; the share
    of scores between two thresholds is bounded for all pairs at once instead (Dvoretzky-Kiefer-Wolfowitz with Massart's
    constant, twice as an interval has two ends). choices: of so many configurations, fixed beforehand, these images
    chose one; the bound holds for all of them. prior: P(class 1) where the cascade works. Thresholds that are fixed are
    then bounded as the certificate bounds an error at a prior, both classes in one test (risk/stratified.py); the bound
    for all pairs of thresholds is made class by class, delta / 2 each.
    Raises DataError for no units or a class without any.
    """
    if not len(deferred):
        raise DataError("defer rate: no scores; give a folder of `stage1 cascade evaluate`, or a bundle as first stage")
    if prior is None:
        seen, upper = _share(deferred, delta / choices, fitted_here)
    else:
        if labels is None or not ((labels == 1).any() and (labels == 0).any()):
            raise DataError("--prior: needs labelled scores of both classes")
        of_class = [deferred[labels == label] for label in (1, 0)]
        parts = [_share(rows, delta / choices / 2, fitted_here) for rows in of_class]
        seen, upper = (prior * one + (1 - prior) * zero for one, zero in zip(*parts, strict=True))
        if not fitted_here:
            counts = (count for rows in of_class for count in (int(rows.sum()), len(rows), len(rows)))
            upper = float(weighted_share_upper(Strata.of(*counts), prior, delta / choices)[0])
    method = "uniform over all pairs of thresholds (DKW)" if fitted_here else "exact binomial"
    method += f", for each of {choices} configurations" if choices > 1 else ""
    return DeferRate(seen, min(upper, 1.0), len(deferred), delta, method, prior)


def _share(deferred: Bools, delta: float, fitted_here: bool) -> tuple[float, float]:
    seen, n = float(deferred.mean()), len(deferred)
    if not fitted_here:
        return seen, float(binomial_upper(int(deferred.sum()), n, delta))
    return seen, _over_all_pairs(seen, n, delta)


def _over_all_pairs(seen: float, n: float, delta: float) -> float:
    return min(1.0, seen + 2 * sqrt(log(2 / delta) / (2 * n)))


def deferred_clusters(deferred: Bools, positive: Bools, groups: ArrayLike) -> dict[str, dict[str, Any] | None]:
    """What `clustered_rate` needs, as plain values: "all", and of each class "negative", "positive" (None: no image).

    deferred, positive: bool [N]; groups: names [N], some of which repeat.
    """
    names = np.asarray(groups)
    return {
        name: asdict(ClusterShare.of(deferred[rows], names[rows])) if rows.any() else None
        for name, rows in (("all", np.ones_like(positive)), ("negative", ~positive), ("positive", positive))
    }


def clustered_rate(
    clusters: Mapping[str, Mapping[str, Any] | None],
    *,
    delta: float,
    prior: float | None,
    fitted_here: bool = False,
    choices: int = 1,
) -> DeferRate:
    """`defer_rate` where images come in groups: of all images, with a bound over groups (`ClusterShare`).

    clusters: of `deferred_clusters`; the other arguments as in defer_rate. With fitted_here the effective groups stand
    for the images in the bound for all pairs. Too few groups: upper 1, `bounded` False.
    Raises DataError for a class without an image where a prior is given.
    """
    names = ("all",) if prior is None else ("positive", "negative")
    parts = []
    for name in names:
        found = clusters[name]
        if found is None:
            raise DataError("--prior: needs labelled scores of both classes")
        parts.append(ClusterShare(**found))
    part_delta = delta / choices / len(parts)
    weights = [1.0] if prior is None else [prior, 1.0 - prior]
    uppers = [
        (_over_all_pairs(part.share, part.effective, part_delta) if part.bounded else 1.0)
        if fitted_here
        else part.upper(part_delta)
        for part in parts
    ]
    whole = clusters["all"]
    assert whole is not None, "an evaluation without an image has no clusters"
    bounded = all(part.bounded for part in parts)
    least = min(part.groups for part in parts)
    if not bounded:
        method = f"no bound: {least} groups, {FEWEST_GROUPS} are needed"
    else:
        over = "uniform over all pairs of thresholds (DKW)" if fitted_here else "over groups, an approximation"
        method = f"{over}, {least} groups{f', for each of {choices} configurations' * (choices > 1)}"
    seen = sum(weight * part.share for weight, part in zip(weights, parts, strict=True))
    upper = sum(weight * end for weight, end in zip(weights, uppers, strict=True))
    return DeferRate(seen, min(upper, 1.0), whole["images"], delta, method, prior, bounded)


def arrival_rate(text: str) -> float:
    """ "120/min", "2/s", "5000/h" as images a minute. Raises ConfigError."""
    number, _, unit = text.partition("/")
    per_minute = {
        "s": 60.0,
        "sec": 60.0,
        "second": 60.0,
        "m": 1.0,
        "min": 1.0,
        "minute": 1.0,
        "h": 1 / 60,
        "hour": 1 / 60,
    }
    try:
        rate = float(number) * per_minute[unit.strip()]
    except (ValueError, KeyError) as error:
        raise ConfigError(f"--rate {text!r}: looks like 120/min, 2/s or 5000/h") from error
    if not 0 < rate < float("inf"):
        raise ConfigError(f"--rate {text!r}: must be positive, like 120/min")
    return rate


def capacity_per_minute(stage: StageConfig, milliseconds: float | None, attempts: float) -> tuple[float | None, str]:
    """Images a minute that a stage can take, and what limits it; None where its budget and its speed are both unknown.

    milliseconds: of one image (retries included), attempts: per image, both means as measured: no bound covers them.
    """
    limits = []
    if stage.calls.per_minute is not None:
        each = max(attempts, 1.0)
        budget = f"budget of {stage.calls.per_minute} attempts a minute, {each:.4g} an image on average"
        limits.append((stage.calls.per_minute / each, budget))
    if milliseconds:
        at_once = stage.calls.concurrency if stage.kind != "bundle" else 1
        limits.append(
            (60_000.0 / milliseconds * at_once, f"{milliseconds:.4g} ms an image on average, {at_once} at once")
        )
    return min(limits) if limits else (None, "neither calls.per_minute nor cost.milliseconds is given")


def load(rate: float, share: DeferRate, capacity: float | None) -> dict[str, Any]:
    """The check: images a minute that arrive at the stage, expected and at most, against what it takes. fits: by the
    upper end; None where the capacity is unknown, or too few groups leave the upper end open.

    busy_minutes: share of minutes in which more arrive than that (Poisson arrivals at the upper bound).
    """
    expected, most = rate * share.observed, rate * share.upper
    fits = None if capacity is None or (most > capacity and not share.bounded) else most <= capacity
    return {
        "expected_per_minute": expected,
        "upper_per_minute": most,
        "capacity_per_minute": capacity,
        "fits": fits,
        "busy_minutes": None if capacity is None else float(stats.poisson.sf(np.floor(capacity), most)),
        "rate_that_fits": None if capacity is None else capacity / share.upper if share.upper > 0 else None,
        "defer_share_that_fits": None if capacity is None else min(capacity / rate, 1.0),
    }


Floats = NDArray[np.float64]


def stage_costs(recorded: Recorded, config: CascadeConfig) -> list[dict[str, Any]]:
    """Of each stage: calls, share failed, attempts per image, milliseconds (median, 95th percentile), cost of an image.

    money: attempts times the price; milliseconds: the config's, else the mean as measured, retries and time-outs
    included; waited_milliseconds: mean wait for calls.per_minute, which is of the evaluation's hurry and no cost of the
    stage.
    """
    rows = []
    for place, stage in enumerate(config.stages):
        asked = recorded.outcome[:, place] != ""
        spent, tries = recorded.milliseconds[asked, place], recorded.attempts[asked, place]
        attempts = float(tries.mean()) if len(tries) else 0.0
        measured = float(spent.mean()) if len(spent) else 0.0
        rows.append(
            {
                "stage": stage.name,
                "kind": stage.kind,
                "calls": int(asked.sum()),
                "attempts": attempts,
                "failed": float((recorded.outcome[asked, place] != ANSWERED).mean()) if asked.any() else 0.0,
                "median_milliseconds": float(np.median(spent)) if len(spent) else None,
                "p95_milliseconds": float(np.quantile(spent, 0.95)) if len(spent) else None,
                "waited_milliseconds": float(recorded.waited_ms[asked, place].mean()) if asked.any() else 0.0,
                "money": stage.cost.money * attempts,
                "milliseconds": measured if stage.cost.milliseconds is None else stage.cost.milliseconds,
            }
        )
    return rows


def frontier(
    config: CascadeConfig,
    ordered: Sequence[Candidate],
    calib: Labelled,
    select: Labelled | None,
    *,
    unit: str,
    delta: float,
    passed: Sequence[int],
) -> list[dict[str, Any]]:
    """One row per configuration: rules, share that reaches each stage, cost per image, risks on val_calib and bounds.

    The upper bounds hold one by one at 1 - delta; only rows with `certified` hold together. delta, unit: of the
    certificate.
    passed: places of `ordered` that its test passed.
    """
    costs = stage_costs(calib.recorded, config)
    sample = Sample.of(calib.known, unit, config.seed)
    targets = {name: config.risks.get(name) for name in ("miss_rate", "false_exit_rate")}
    rows = []
    for place, candidate in enumerate(ordered):
        final = final_answers(calib.recorded, candidate.rules, config.default_probability)
        reach = final.asked.mean(axis=0)
        risks = measure(sample, final.positive[sample.rows], targets, delta, None)
        rows.append(
            {
                "rules": [rule.to_document() for rule in candidate.rules],
                "deferred": float(reach[1]),
                "reach": [float(share) for share in reach],
                "money": _per_image(reach, costs, "money"),
                "milliseconds": _per_image(reach, costs, "milliseconds"),
                "certified": place in passed,
                "risks": {
                    name: {"observed": risk.observed, "bound": risk.bound, "target": risk.target}
                    for name, risk in risks.items()
                },
                "select": _on(select, candidate, config),
            }
        )
    return rows


def _per_image(reach: Floats, costs: Sequence[dict[str, Any]], name: str) -> float:
    return float(sum(share * cost[name] for share, cost in zip(reach.tolist(), costs, strict=True)))


def _on(labelled: Labelled | None, candidate: Candidate, config: CascadeConfig) -> dict[str, float | None] | None:
    """Plain rates of a configuration on a role."""
    if labelled is None or not len(labelled):
        return None
    return rates(labelled, final_answers(labelled.recorded, candidate.rules, config.default_probability).positive)


def rates(labelled: Labelled, positive: NDArray[np.bool_]) -> dict[str, float | None]:
    """miss_rate, false_exit_rate and their counts of given answers; None for a class without images."""
    labels = labelled.known.known_labels
    ones, zeros = int((labels == 1).sum()), int((labels == 0).sum())
    misses, false = int(((labels == 1) & ~positive).sum()), int(((labels == 0) & positive).sum())
    return {
        "miss_rate": misses / ones if ones else None,
        "false_exit_rate": false / zeros if zeros else None,
        "positives": ones,
        "negatives": zeros,
        "misses": misses,
        "false_exits": false,
    }
