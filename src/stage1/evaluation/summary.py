"""evaluation.json: everything that the report says about one role's scores under one exit policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import ConfigError, DataError
from stage1.evaluation.argmax import beside_argmax
from stage1.evaluation.calibration_report import Reported, calibration_error
from stage1.evaluation.intervals import Interval, Statistic, bootstrap, measured
from stage1.evaluation.measures import auroc_of, matthews, mean_of, ratio_of
from stage1.evaluation.probability import Calibration, brier_rows, nll_rows, reliability
from stage1.evaluation.ranking import FloatArray
from stage1.evaluation.rates import Share, clopper_pearson, clustered_interval, exit_rates, exit_shares
from stage1.evaluation.score_selection import msp
from stage1.evaluation.selective import risk_coverage
from stage1.scores import Scores
from stage1.storage.documents import finite_or_none

_ECE_BINS = 15
_CURVE_POINTS = 400
_HISTOGRAM_BINS = 50
_WORST = 24


def evaluate(
    scores: Scores,
    exit: ArrayLike,
    label: ArrayLike,
    *,
    lo: float | None,
    hi: float | None,
    classes: Sequence[str],
    targets: Mapping[str, float],
    policy: str,
    certified: bool,
    paths: Sequence[str] | None = None,
    role: str = "val_test",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
    calibration: Reported | None = None,
) -> dict[str, Any]:
    """The document of kind "evaluation" (schemas/evaluation.schema.json), without schema_version.

    scores: N images with labels; groups where images depend on each other. exit: bool [N] and label: int [N], the
    policy's decision. lo, hi: its thresholds on the raw score, None where that side never exits. classes: K names.
    targets: risk -> target, of those in `exit_rates`. paths: [N], for the worst errors.
    calibration: what the policy states of these rows, where that is not the softmax of `scores`: nll, brier, ece,
    `reliability` and the probability of the worst errors are then of `calibration.after`, with those of
    `calibration.before` beside.

    Selective metrics rank by the raw score's confidence (K = 2: |margin|; in general the logit of the largest
    probability, which does not saturate) with residual = the largest logit is not the label's.
    `metrics` have t intervals from a bootstrap (stage1.evaluation.t_interval): stratified by label; groups as the unit
    where they repeat (`unit`); `note` says why where there is none. `risks` and `coverage` have exact binomial
    intervals (low, high), and so have `accuracy` and `coverage` of `metrics`. Those hold for independent images only,
    so where groups repeat `intervals` says "image-level, groups ignored", and group_low and group_high are of
    `clustered_interval` (and so are accuracy and coverage of `metrics`), null where there are too few groups.
    Undefined numbers are null. Raises DataError (no labels, unequal lengths) or ConfigError (unknown target).

    >>> from stage1 import Scores
    >>> margin = np.array([-3.0, -2.0, -0.5, 0.5, 2.0, 3.0])
    >>> scores = Scores(np.stack([0 * margin, margin], axis=1), labels=[0, 0, 1, 0, 1, 1])
    >>> document = evaluate(
    ...     scores,
    ...     exit=abs(margin) > 1,
    ...     label=margin > 0,
    ...     lo=-1.0,
    ...     hi=1.0,
    ...     classes=["none", "roadwork"],
    ...     targets={"fnr": 0.05},
    ...     policy="softmax",
    ...     certified=False,
    ...     resamples=50,
    ... )
    >>> fnr, coverage = document["risks"]["fnr"], document["coverage"]["overall"]
    >>> fnr["errors"], fnr["n"], round(coverage["value"], 3)
    (0, 2, 0.667)
    """
    truth = scores.known_labels
    leaves, answer = np.asarray(exit), np.asarray(label)
    names = list(classes)
    n, k = scores.logits.shape
    if len(names) != k or len(set(names)) != k:
        raise DataError(f"classes: {names} for {k} columns of logits; give one distinct name per class, in their order")
    if paths is not None and len(paths) != n:
        raise DataError(f"paths: {len(paths)} for {n} images")
    rates = exit_rates(leaves, answer, truth, classes=names, level=level)
    coverage = rates.pop("coverage")
    if unknown := sorted(set(targets) - set(rates)):
        raise ConfigError(f"risks: {unknown[0]!r} is not evaluated here; use {', '.join(rates)}")

    n_groups = n if scores.groups is None else len(np.unique(scores.groups))
    repeated = n_groups < n
    wrong = scores.logits.argmax(axis=1) != truth
    confidence = confidence_of(scores)
    shares = exit_shares(leaves, answer, truth, names)
    reported = scores if calibration is None else calibration.after
    metrics = _metrics(scores, shares[1], reported) | (_share_metrics(*shares) if repeated else {})
    metrics |= {} if calibration is None else calibration.metrics()
    found = bootstrap(
        metrics,
        confidence=confidence,
        residuals=wrong,
        labels=truth,
        groups=scores.groups if repeated else None,
        n_resamples=resamples,
        level=level,
        seed=seed,
    )
    _add_group_intervals(rates, coverage, found, shares, scores.groups if repeated else None, level)
    measures = {name: measured(interval) for name, interval in found.items() if "/" not in name}
    counted = _counted(~wrong, found["accuracy"], scores.groups if repeated else None, level)
    measures["accuracy"] |= dict(zip(("low", "high"), counted, strict=True))
    ends = ("group_low", "group_high") if repeated else ("low", "high")
    measures["coverage"] |= {end: coverage["overall"][of] for end, of in zip(("low", "high"), ends, strict=True)}
    for name in ("accuracy", "coverage"):
        if measures[name]["low"] is not None:
            measures[name].pop("note", None)
    for name, rate in rates.items():
        rate["target"] = float(targets[name]) if name in targets else None
    error = rates["error"]
    return {
        "role": role,
        "n": n,
        "n_groups": n_groups,
        "unit": "group" if repeated else "image",
        "intervals": "image-level, groups ignored" if repeated else "groups = images",
        "classes": names,
        "policy": policy,
        "certified": bool(certified),
        "metrics": measures,
        "level": float(level),
        "resamples": int(resamples),
        "risks": rates,
        "coverage": coverage,
        "exit_confusion": _exit_confusion(leaves, answer, truth, names),
        **({"slices": _slices(scores, leaves, answer, names)} if scores.slices else {}),
        "curve": _curve(confidence, wrong),
        "argmax": beside_argmax(scores, leaves, answer, names),
        "operating_point": {"coverage": coverage["overall"]["value"], "selective_risk": error["observed"]},
        "reliability": _reliability(reported),
        **({} if calibration is None else calibration.document(found)),
        "histogram": _histogram(scores.margin if k == 2 else confidence, truth, names),
        "lo": None if lo is None else finite_or_none(lo),
        "hi": None if hi is None else finite_or_none(hi),
        "worst": _worst(scores, reported, leaves, answer, wrong, names, paths),
    }


def metrics_rows(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of eval_metrics.csv: metric, value, low, high, n, errors (None = undefined or not a count).

    Metrics first (where a map is applied also "nll.before" and its like), then risks, `coverage` (exact interval;
    `errors` holds nothing) and `coverage.<class>`. Where groups repeat, low and high of risks and coverage are those
    over groups.

    >>> document = {
    ...     "unit": "image",
    ...     "n": 6,
    ...     "metrics": {"accuracy": {"value": 0.5, "low": 0.2, "high": 0.8}},
    ...     "risks": {"error": {"observed": 0.0, "low": 0.0, "high": 0.6, "n": 4, "errors": 0}},
    ...     "coverage": {"overall": {"value": 0.67, "low": 0.2, "high": 0.9, "n": 6}, "per_class": {}},
    ... }
    >>> [row["metric"] for row in metrics_rows(document)]
    ['accuracy', 'error', 'coverage']
    """
    low, high = ("group_low", "group_high") if document["unit"] == "group" else ("low", "high")
    rows = [
        {"metric": name, **numbers, "n": document["n"], "errors": None}
        for name, numbers in document["metrics"].items()
        if name != "coverage"  # is below, with its interval as a count
    ]
    rows += [
        {"metric": f"{name}.before", **losses["before"], "n": document["n"], "errors": None}
        for name, losses in document.get("calibration", {}).items()
        if isinstance(losses, Mapping)
    ]
    for name, risk in document["risks"].items():
        rows.append(
            {
                "metric": name,
                "value": risk["observed"],
                "low": risk[low],
                "high": risk[high],
                "n": risk["n"],
                "errors": risk["errors"],
            }
        )
    covered = {"coverage": document["coverage"]["overall"]}
    covered |= {f"coverage.{name}": share for name, share in document["coverage"]["per_class"].items()}
    for name, share in covered.items():
        rows.append(
            {
                "metric": name,
                "value": share["value"],
                "low": share[low],
                "high": share[high],
                "n": share["n"],
                "errors": None,
            }
        )
    return rows


def confidence_of(scores: Scores) -> FloatArray:
    """Logit of the largest softmax probability, float [N]: its ranking, without saturating at 1. K = 2: |margin|."""
    return msp(scores.logits)


# ---- metrics with bootstrap intervals ----------------------------------------------------------------------------


def pooled_metrics(
    scores: Scores, exit: ArrayLike, label: ArrayLike, classes: Sequence[str], reported: Scores | None = None
) -> dict[str, Statistic | str]:
    """The metrics of evaluation.json, and `error` among exits, as `bootstrap` and `restated_metrics` take them.

    stated: scores whose softmax is the stated probability of these rows, where that is not the softmax of `scores`.
    """
    risks, overall, _ = exit_shares(exit, label, scores.known_labels, classes)
    return _metrics(scores, overall, reported) | {"error": ratio_of(risks["error"])}


def _metrics(scores: Scores, covered: Share, reported: Scores | None = None) -> dict[str, Statistic | str]:
    reported = scores if reported is None else reported
    truth, probabilities = scores.known_labels, reported.probabilities
    guess = scores.logits.argmax(axis=1)
    k = scores.n_classes
    return {
        **({"auroc": auroc_of(scores.margin, truth)} if k == 2 else {}),
        "aurc": "aurc",
        "e_aurc": "e_aurc",
        "augrc": "augrc",
        "e_augrc": "e_augrc",
        "auroc_f": "auroc_failure",
        "accuracy": "accuracy",
        "mcc": matthews(guess, truth, k),
        "nll": mean_of(nll_rows(reported.logits, truth), "loss"),
        "brier": mean_of(brier_rows(probabilities, truth), "loss"),
        "ece": calibration_error(Calibration(probabilities, truth), len(scores), _ECE_BINS),
        "coverage": ratio_of(covered),
    }


def _share_metrics(
    risks: Mapping[str, Share], overall: Share, per_class: Mapping[str, Share]
) -> dict[str, Statistic | str]:
    # The slash keeps these names apart from the metrics' own.
    return {name: ratio_of(share) for name, share in _named(risks, overall, per_class).items()}


def _named(risks: Mapping[str, Share], overall: Share, per_class: Mapping[str, Share]) -> dict[str, Share]:
    named = {f"risks/{name}": share for name, share in risks.items()}
    return (
        named
        | {"coverage/overall": overall}
        | {f"coverage/per_class/{name}": share for name, share in per_class.items()}
    )


def _add_group_intervals(
    rates: dict[str, Any],
    coverage: dict[str, Any],
    found: Mapping[str, Interval],
    shares: tuple[Mapping[str, Share], Share, Mapping[str, Share]],
    groups: NDArray[np.str_] | None,
    level: float,
) -> None:
    named = _named(*shares)
    entries = {f"risks/{name}": rate for name, rate in rates.items()}
    entries["coverage/overall"] = coverage["overall"]
    entries |= {f"coverage/per_class/{name}": share for name, share in coverage["per_class"].items()}
    for name, entry in entries.items():
        ends: tuple[float | None, float | None] = (None, None)
        if groups is not None and entry["n"]:
            hits, base = named[name]
            ends = _counted(hits[base], found[name], groups[base], level)
        entry["group_low"], entry["group_high"] = ends


def _counted(
    hits: NDArray[np.bool_], interval: Interval, groups: NDArray[np.str_] | None, level: float
) -> tuple[float | None, float | None]:
    """The interval of a count: exact for independent images; over groups by their spread, none where too few."""
    count, n = int(hits.sum()), len(hits)
    if groups is None:
        return clopper_pearson(count, n, level)
    n_groups = len(np.unique(groups))
    # of the bootstrap: too few groups, or a share undefined in most replicates
    if 0 < count < n and np.isnan(interval.deviation):
        return None, None
    return clustered_interval(count, n, n_groups, interval.deviation, interval.freedom, level)


# ---- what the figures draw ---------------------------------------------------------------------------------------


def _exit_confusion(
    leaves: NDArray[np.bool_], answer: NDArray[np.int64], truth: NDArray[np.int64], names: list[str]
) -> dict[str, Any]:
    exits = [f"exit as {name}" for name in names]
    place = 1 if len(names) == 2 else len(names)  # two classes: defer lies between the two, as on the score's axis
    counts = [
        [int((leaves & (answer == given) & (truth == row)).sum()) for given in range(len(names))]
        for row in range(len(names))
    ]
    for row, cells in enumerate(counts):
        cells.insert(place, int((~leaves & (truth == row)).sum()))
    return {"rows": names, "columns": [*exits[:place], "defer", *exits[place:]], "counts": counts}


def _slices(
    scores: Scores, leaves: NDArray[np.bool_], answer: NDArray[np.int64], names: list[str]
) -> list[dict[str, Any]]:
    """The exit confusion of every value of every slice attribute; 50 at most are drawn and kept."""
    truth = scores.known_labels
    rows = [
        (name, str(value), column == value) for name, column in scores.slices.items() for value in np.unique(column)
    ]
    return [
        {"slice": name, "value": value, "counts": _exit_confusion(leaves[at], answer[at], truth[at], names)["counts"]}
        for name, value, at in rows[:50]
    ]


def _curve(confidence: FloatArray, wrong: NDArray[np.bool_]) -> dict[str, list[float]]:
    """The risk-coverage curve, coverage 1 first, thinned evenly to at most 400 points; both ends stay."""
    curve = risk_coverage(confidence, wrong)
    points = len(curve.coverage)
    keep = np.unique(np.linspace(0, points - 1, min(points, _CURVE_POINTS)).round().astype(int))
    return {
        "coverage": curve.coverage[keep].tolist(),
        "selective_risk": curve.selective_risk[keep].tolist(),
        "generalised_risk": curve.generalised_risk[keep].tolist(),
    }


def _reliability(scores: Scores) -> list[dict[str, float]]:
    return [
        {
            "low": row.low,
            "high": row.high,
            "count": int(row.count),
            "mean_probability": row.mean_probability,
            "observed_rate": row.observed_rate,
        }
        for row in reliability(scores.probabilities, scores.known_labels, _ECE_BINS)
    ]


def _histogram(raw: FloatArray, truth: NDArray[np.int64], names: list[str]) -> dict[str, Any]:
    edges = np.histogram_bin_edges(raw, bins=_HISTOGRAM_BINS)
    counts = {name: np.histogram(raw[truth == index], edges)[0].tolist() for index, name in enumerate(names)}
    return {"edges": edges.tolist(), "counts": counts}


def _worst(
    scores: Scores,
    reported: Scores,
    leaves: NDArray[np.bool_],
    answer: NDArray[np.int64],
    wrong: NDArray[np.bool_],
    names: list[str],
    paths: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """Up to 24 errors: wrong exits first, then wrong but deferred; in each, least probability for the truth first."""
    truth = scores.known_labels
    loss = nll_rows(scores.logits, truth)
    tie_break = scores.ids if scores.ids is not None else np.arange(len(scores))
    order = np.lexsort((tie_break, -loss))
    wrong_exit = leaves & (answer != truth)
    rows = [*order[wrong_exit[order]], *order[(wrong & ~leaves)[order]]][:_WORST]
    probabilities = reported.probabilities
    shown = probabilities[:, 1] if scores.n_classes == 2 else probabilities.max(axis=1)
    return [
        {
            "id": None if scores.ids is None else str(scores.ids[row]),
            "path": None if paths is None else str(paths[row]),
            "label": names[truth[row]],
            "probability": float(shown[row]),
            "decision": f"exit as {names[answer[row]]}" if leaves[row] else "defer",
        }
        for row in rows
    ]
