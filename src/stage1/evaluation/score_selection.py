"""Which score ranks right above wrong best on val_select: a confidence score of the softmax, or the gate.

The gate is accepted on its paired gain in AUGRC over softmax. The scores are those of `stage1.scores.confidence`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import DataError
from stage1.evaluation import resampling
from stage1.evaluation.intervals import check_options, without_each_unit
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking, Weights, checked_rows
from stage1.evaluation.t_interval import Spread, t_interval, too_few
from stage1.scores import Scores
from stage1.scores.confidence import (
    CONFIDENCES,
    PNORM,
    PNORMS,
    confidence,
    energy,
    entropy,
    margin,
    maxlogit_pnorm,
    msp,
)
from stage1.storage.documents import finite_or_none

__all__ = [
    "CONFIDENCES",
    "PNORMS",
    "choose_confidence",
    "confidence",
    "energy",
    "entropy",
    "margin",
    "maxlogit_pnorm",
    "msp",
]


def choose_confidence(select: Scores, *, pnorms: Sequence[float] = PNORMS) -> tuple[str, list[dict[str, Any]]]:
    """The confidence with the smallest AUGRC on val_select, and the table that shows it.

    select: labelled scores, never those of the certificate. pnorms: the p that are tried where K > 2.
    Returns (name, rows of {confidence, augrc, auroc_f, note}), in the order tried; augrc is None and note says why
    where a score does not exist. MSP stays unless another is smaller by more than rounding; K = 2: always MSP.
    Raises DataError where there are no labels or no rows.

    >>> from stage1 import Scores
    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 3, 300)
    >>> select = Scores(rng.normal(size=(300, 3)) + 2 * np.eye(3)[labels], labels=labels)
    >>> name, table = choose_confidence(select)
    >>> name, len(table)
    ('margin', 13)
    """
    truth = select.known_labels
    if not len(select):
        raise DataError("val_select: no rows; a confidence score is chosen on labelled scores")
    wrong = (select.logits.argmax(axis=1) != truth).astype(np.float64)
    names = [*CONFIDENCES, *(f"{PNORM}({p:g})" for p in pnorms)]
    if select.n_classes == 2:
        names = [name for name in names if not name.startswith(PNORM)] + [PNORM]
    best, smallest = "msp", np.inf
    table: list[dict[str, Any]] = []
    for name in names:
        try:
            values = maxlogit_pnorm(select.logits, 1) if name == PNORM else confidence(name, select.logits)
        except DataError as error:
            table.append({"confidence": name, "augrc": None, "auroc_f": None, "note": str(error)})
            continue
        accepted = Ranking(values, wrong).accept(np.ones(len(select)))
        found = float(accepted.augrc)
        area = finite_or_none(float(STATISTICS["auroc_failure"](accepted)))
        table.append({"confidence": name, "augrc": found, "auroc_f": area, "note": None})
        # Two classes: the others repeat MSP's order, but for rounding, or (energy) hold the logits' common part.
        if found < smallest - 1e-12 and (name == "msp" or select.n_classes > 2):
            best, smallest = name, found
    return best, table


@dataclass(frozen=True, slots=True)
class Acceptance:
    """gain: AUGRC of softmax confidence minus that of the gate (positive: the gate is better); low, high: its interval.

    accepted: low > 0. reason: one sentence for report and log; names softmax as what is kept where it is.
    low and high are None where there is no interval (no wrong answers, or too few units).
    """

    gain: float
    low: float | None
    high: float | None
    accepted: bool
    reason: str


def accept_gate(
    select_scores: Scores,
    g: ArrayLike,
    *,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    constant_because: str | None = None,
) -> Acceptance:
    """Accept the gate only if the t interval of its paired gain in AUGRC on val_select lies above zero.

    select_scores: labelled scores. g: float [N], the gate's confidence in each answer, **from a gate that was fitted
    without the row** (policy.cross_fitted_gate): in-sample g looks better than it is. Both confidences order the same
    answers (the likelier class); rows are drawn within labels, whole groups where groups are given, the same draws for
    both. Softmax confidence is MSP, as a logit, so that saturated rows keep their order. constant_because: why no gate
    was fitted, where g is one value for that reason (policy.no_gate_because). Raises DataError for missing labels,
    wrong shapes or NaN.
    """
    check_options(n_resamples, level, seed)
    wrong = (select_scores.logits.argmax(axis=1) != select_scores.known_labels).astype(np.float64)
    confidence, wrong = checked_rows(g, wrong)
    softmax = Ranking(softmax_confidence(select_scores), wrong)
    gate = Ranking(confidence, wrong)
    plan = resampling.units(len(wrong), select_scores.labels, select_scores.groups)

    def gain(weights: Weights) -> FloatArray:
        # Both rankings of many replicates at once: a replicate by itself costs three times that in calls.
        return softmax.accept(weights).augrc - gate.accept(weights).augrc

    value = float(gain(np.ones((1, len(wrong))))[0])
    batches = resampling.draws(plan, len(wrong), n_resamples, seed) if len(plan) > 1 else ()
    drawn = np.concatenate([np.empty(0), *(gain(plan.rows(counts)) for counts in batches)])
    n, errors = len(wrong), int(wrong.sum())
    if errors in (0, n):
        which = "wrong" if errors else "right"
        return Acceptance(0.0, None, None, False, f"softmax is kept: all {n} answers in val_select are {which}.")
    if np.ptp(confidence) == 0:
        why = constant_because or "the gate is constant and orders nothing"
        return Acceptance(value, None, None, False, f"softmax is kept: {why}.")
    if short := too_few(tuple(map(len, plan.strata)), "images" if len(plan) == n else "groups"):
        return Acceptance(value, None, None, False, f"softmax is kept: {short}.")
    spread = Spread.of(plan, without_each_unit(plan, np.ones(n), gain))
    low, high, nothing = t_interval(value, drawn, level, spread, "difference")
    if nothing is not None:
        return Acceptance(value, None, None, False, f"softmax is kept: {nothing}.")
    accepted = low > 0
    span = f"{1000 * value:+.3g}e-3 ({100 * level:g} % interval {1000 * low:+.3g} to {1000 * high:+.3g}e-3)"
    verdict = (
        f"the gate is kept: its gain in AUGRC over softmax on val_select is {span}, above zero."
        if accepted
        else f"softmax is kept: the gate's gain in AUGRC on val_select is {span}, which does not lie above zero."
    )
    return Acceptance(value, low, high, accepted, verdict)


def softmax_confidence(scores: Scores) -> FloatArray:
    """Logit of the maximum softmax probability, float [N]: MSP's order, no ties at 1.0; |margin| for two classes."""
    confidence = msp(scores.logits)
    if not np.isfinite(confidence).all():
        raise DataError("logits: differences overflow; rescale them")
    return confidence
