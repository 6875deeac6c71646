"""What each method certifies from labelled scores: a rule, as a function from a population's scores to its answers.

A rule gives for every image the class that it answers, or -1. Every method gets the same labelled rows; who needs a
share for an order or a map gets `select`, who does not tests on all of them.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from stage1 import Scores, fit_policy
from stage1.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[1]))
from peer import certified_pair, grids, quantile_pairs

from contest.shapes import probabilities

Answers = np.ndarray
Rule = Callable[[Scores], Answers]
Method = Callable[[Scores, Scores, float, float], Rule | None]
CALIBRATORS = ("identity", "platt", "isotonic", "temperature")


def ours(asks: str, select: Scores, calib: Scores, target: float, confidence: float) -> Rule | None:
    """`fit_policy` with its defaults."""
    risks = {"error": target} if asks == "error" else {"fnr": target, "fpr": target}
    try:
        policy = fit_policy("softmax", select=select, calib=calib, risks=risks, confidence=confidence)
    except ConfigError as error:
        if "fewer than 10" not in str(error):
            raise
        return None  # its share of the labels is too small for an order, and it says so: nothing is certified
    if not policy.certified:
        return None

    def answer(scores: Scores) -> Answers:
        decision = policy.decide(scores)
        return np.where(decision.exit, decision.label, -1)

    return answer


# ---- both ratios: a pair of thresholds ---------------------------------------------------------------------------


def between(lo: float, hi: float, scores: Scores) -> Answers:
    return np.where(scores.margin < lo, 0, np.where(scores.margin > hi, 1, -1))


def mapie_pair(fwer: str, grid: str, select: Scores, calib: Scores, target: float, confidence: float) -> Rule | None:
    assert confidence == 0.95, "the controller of benchmarks/peer.py is at 95 %"
    parts = (select.margin, select.known_labels), (calib.margin, calib.known_labels)
    try:
        pairs = grids(*parts[0])[grid]
    except IndexError:  # no score of the share for selection lies on one side of even odds: there is no such grid
        return None
    if not len(pairs):  # saturated scores have no quantile strictly inside on one side
        return None
    pair = certified_pair(*parts, pairs, target, fwer)
    return None if pair is None else partial(between, *pair)


def pair_p_values(score: Answers, labels: Answers, pairs: Answers, target: float) -> tuple[Answers, Answers]:
    """(largest of the two exact binomial p-values, coverage) of each pair: both float [T]."""
    ranks = {label: np.sort(score[labels == label]) for label in (0, 1)}
    lo, hi = pairs[:, 0], pairs[:, 1]
    below = {label: np.searchsorted(own, lo, side="left") for label, own in ranks.items()}
    above = {label: len(own) - np.searchsorted(own, hi, side="right") for label, own in ranks.items()}
    exits = {label: below[label] + above[label] for label in (0, 1)}
    wrong = {1: below[1], 0: above[0]}
    p = np.max([stats.binom.cdf(wrong[label], exits[label], target) for label in (0, 1)], axis=0)
    return p, (exits[0] + exits[1]) / len(score)


def everything(select: Scores, calib: Scores) -> Scores:
    return Scores(
        logits=np.concatenate([select.logits, calib.logits]),
        labels=np.concatenate([select.known_labels, calib.known_labels]),
    )


def holm(p: Answers, delta: float) -> Answers:
    """Which hypotheses Holm's step-down procedure rejects, bool [T]."""
    order = np.argsort(p)
    kept = np.flatnonzero(p[order] > delta / (len(p) - np.arange(len(p))))
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order[: kept[0] if len(kept) else len(p)]] = True
    return rejected


def holm_pairs(select: Scores, calib: Scores, target: float, confidence: float) -> Rule | None:
    """Holm over all pairs of 22 quantiles of the scores, which needs no labels to be chosen."""
    rows = everything(select, calib)
    pairs = quantile_pairs(rows.margin, 22)
    p, coverage = pair_p_values(rows.margin, rows.known_labels, pairs, target)
    passed = holm(p, 1 - confidence)
    return partial(between, *pairs[np.argmax(np.where(passed, coverage, -1))]) if passed.any() else None


def symmetric_pairs(select: Scores, calib: Scores, target: float, confidence: float) -> Rule | None:
    """One fixed sequence around the even odds of the model: (-t, t) for t from the widest down, each tested at delta.

    It starts where a first test can pass: at the widest t beyond which as many images of the smaller class lie as an
    exact test without an error needs; their labels are not asked, only scores and the count of the class.
    """
    rows = everything(select, calib)
    score, labels = rows.margin, rows.known_labels
    needed = np.ceil(np.log(1 - confidence) / np.log1p(-target)) / max(labels.mean(), 1 - labels.mean())
    widths = np.quantile(np.abs(score), np.linspace(0, 1, 200))[::-1]
    start = int(np.argmax([(np.abs(score) > width).sum() >= 2 * needed for width in widths]))
    pairs = np.stack([-widths[start:], widths[start:]], axis=1)
    p, _ = pair_p_values(score, labels, pairs, target)
    failed = np.flatnonzero(p > 1 - confidence)
    last = failed[0] if len(failed) else len(pairs)
    return partial(between, *pairs[last - 1]) if last else None


def plug_in_pairs(select: Scores, calib: Scores, target: float, confidence: float) -> Rule | None:
    """The pair of 60 quantiles that answers most among those whose observed ratios meet the target: no guarantee."""
    rows = everything(select, calib)
    pairs = quantile_pairs(rows.margin, 60)
    score, labels = rows.margin, rows.known_labels
    below, above = score[None] < pairs[:, :1], score[None] > pairs[:, 1:]
    exits = below | above
    ratios = [
        (wrong & (labels == label)).sum(1) / np.maximum((exits & (labels == label)).sum(1), 1)
        for label, wrong in ((1, below), (0, above))
    ]
    fits = np.max(ratios, axis=0) <= target
    return partial(between, *pairs[np.argmax(np.where(fits, exits.mean(1), -1))]) if fits.any() else None


# ---- the error among answers: one threshold on a confidence ------------------------------------------------------


def above(threshold: float, transform: Callable[[Answers], Answers], scores: Scores) -> Answers:
    p = transform(probabilities(scores))
    return np.where(p.max(axis=1) >= threshold, p.argmax(axis=1), -1)


def plain(p: Answers) -> Answers:
    return p


def zugzwang(calibrator: str, select: Scores, calib: Scores, target: float, confidence: float) -> Rule | None:
    """`certify_threshold` on its default score after its calibrator, all fitted and tested on every label, as its
    SelectiveClassifier does."""
    from zugzwang.calibration import get_calibrator
    from zugzwang.core import certify_threshold
    from zugzwang.core.guarantees.base import UncertifiableRiskError

    rows = everything(select, calib)
    p, labels = probabilities(rows), rows.known_labels
    fitted = get_calibrator(calibrator).fit(p, labels)
    p = fitted.transform(p)
    try:
        found = certify_threshold(
            p.max(axis=1), (p.argmax(axis=1) != labels).astype(int), target, delta=1 - confidence, method="sgr"
        )
    except UncertifiableRiskError:
        return None
    return partial(above, float(found.threshold), fitted.transform)


def mapie_multi(fwer: str, select: Scores, calib: Scores, target: float, confidence: float) -> Rule | None:
    """Its controller for several classes, the error among answers as a risk over all, 100 quantiles of the confidence;
    of the thresholds that pass the one that answers most."""
    from mapie.risk_control import BinaryRisk, MultiClassificationLTTController

    risk = BinaryRisk(
        risk_occurrence=lambda truth, given: given != truth,
        risk_condition=lambda truth, given: ~np.isnan(given),
        higher_is_better=False,
    )
    rows = everything(select, calib)
    p = probabilities(rows)
    confidences = np.sort(p.max(axis=1))
    # A threshold above which nobody is answered has no p-value, and one NaN stops Holm's procedure.
    grid = np.unique(confidences[(np.linspace(0, 0.995, 100) * len(confidences)).astype(int)])
    grid = grid[grid < confidences[-1]]
    if fwer == "fixed_sequence":
        # It tests in the order given: from the safest that an exact test without an error can pass.
        needed = np.log(1 - confidence) / np.log1p(-target)
        grid = grid[[(confidences >= one).sum() >= 2 * needed for one in grid]][::-1]
        if not len(grid):
            return None
    control = MultiClassificationLTTController(
        plain, [risk], target_level=[target], confidence_level=confidence, list_predict_params=grid, fwer_method=fwer
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where no threshold passes; that is an answer here
        control.calibrate(p, rows.known_labels)
    passed = np.asarray(control.valid_predict_params)
    return partial(above, float(passed.min()), plain) if len(passed) else None


def threshold_p_values(select: Scores, calib: Scores, target: float, side: int) -> tuple[Answers, Answers]:
    """(thresholds from the safest down, exact p-value of the error above each) at `side` quantiles."""
    rows = everything(select, calib)
    p = probabilities(rows)
    confidences, wrong = p.max(axis=1), p.argmax(axis=1) != rows.known_labels
    thresholds = np.unique(np.quantile(confidences, np.linspace(0, 0.995, side), method="lower"))[::-1]
    answered = confidences[None] >= thresholds[:, None]
    return thresholds, stats.binom.cdf((answered & wrong).sum(1), answered.sum(1), target)


def holm_thresholds(select: Scores, calib: Scores, target: float, confidence: float) -> Rule | None:
    thresholds, p = threshold_p_values(select, calib, target, 60)
    passed = holm(p, 1 - confidence)
    return partial(above, float(thresholds[passed].min()), plain) if passed.any() else None


def symmetric_thresholds(select: Scores, calib: Scores, target: float, confidence: float) -> Rule | None:
    """One fixed sequence of confidences, from the first at which an exact test without an error can pass."""
    thresholds, p = threshold_p_values(select, calib, target, 200)
    n = len(select) + len(calib)
    needed = 2 * np.log(1 - confidence) / np.log1p(-target)
    shares = np.linspace(0, 0.995, 200)[::-1][: len(thresholds)]
    start = int(np.argmax((1 - shares) * n >= needed))
    failed = np.flatnonzero(p[start:] > 1 - confidence)
    last = start + (failed[0] if len(failed) else len(p) - start)
    return partial(above, float(thresholds[last - 1]), plain) if last > start else None


def plug_in_thresholds(select: Scores, calib: Scores, target: float, confidence: float) -> Rule | None:
    rows = everything(select, calib)
    p = probabilities(rows)
    order = np.argsort(-p.max(axis=1), kind="stable")
    error = np.cumsum((p.argmax(axis=1) != rows.known_labels)[order]) / np.arange(1, len(order) + 1)
    fits = np.flatnonzero(error <= target)
    return partial(above, float(p.max(axis=1)[order[fits[-1]]]), plain) if len(fits) else None


METHODS: dict[tuple[str, str], Method] = {
    ("ratios", "ours"): partial(ours, "ratios"),
    ("error", "ours"): partial(ours, "error"),
    **{
        ("ratios", f"mapie {fwer} {grid}"): partial(mapie_pair, fwer, grid)
        for fwer in ("bonferroni", "bonferroni_holm", "split_fixed_sequence")
        for grid in ("q22", "s19")
    },
    ("ratios", "symmetric fixed sequence"): symmetric_pairs,
    ("ratios", "holm over quantiles"): holm_pairs,
    ("ratios", "plug-in"): plug_in_pairs,
    **{("error", f"zugzwang {name}"): partial(zugzwang, name) for name in CALIBRATORS},
    **{
        ("error", f"mapie multi {fwer}"): partial(mapie_multi, fwer)
        for fwer in ("bonferroni", "bonferroni_holm", "fixed_sequence")
    },
    ("error", "symmetric fixed sequence"): symmetric_thresholds,
    ("error", "holm over quantiles"): holm_thresholds,
    ("error", "plug-in"): plug_in_thresholds,
}
"""(what is asked, method) -> how its rule is certified from (select, calib, target, confidence); None: nothing passed.
"""


def measured(rule: Rule | None, asks: str, population: Scores) -> tuple[float, float]:
    """(coverage, risk) on the whole population: the larger of fnr and fpr, or the error among answers."""
    if rule is None:
        return 0.0, 0.0
    answers, labels = rule(population), population.known_labels
    exits = answers >= 0
    wrong = exits & (answers != labels)

    def share(rows: Any) -> float:
        return float((wrong & rows).sum() / max((exits & rows).sum(), 1))

    risk = share(exits) if asks == "error" else max(share(labels == 1), share(labels == 0))
    return float(exits.mean()), risk
