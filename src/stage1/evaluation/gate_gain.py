"""Is a gate worth more than softmax? The paired gain in AUGRC on val_select, and the verdict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import DataError
from stage1.evaluation.bootstrap import bootstrap
from stage1.evaluation.confidence import msp
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking, checked_rows
from stage1.scores import Scores


@dataclass(frozen=True, slots=True)
class Acceptance:
    """gain: AUGRC of softmax confidence minus AUGRC of the gate (positive: the gate is better); low, high: its interval.

    accepted: low > 0. reason: one sentence for report and log; names softmax as what is kept where it is.
    low and high are None where there is nothing to resample (no wrong answers, or one unit).
    """

    gain: float
    low: float | None
    high: float | None
    accepted: bool
    reason: str


def accept_gate(
    select_scores: Scores, g: ArrayLike, *, n_resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> Acceptance:
    """Accept the gate only if the percentile interval of its paired gain in AUGRC on val_select lies above zero.

    select_scores: labelled scores. g: float [N], the gate's confidence in each answer, **from a gate that was fitted without the row**
    (policy.cross_fitted_gate): in-sample g looks better than it is. Both confidences order the same answers (the likelier class); rows
    are drawn within labels, whole groups where groups are given, the same draws for both. Softmax confidence is MSP, as a logit, so
    that saturated rows keep their order. Raises DataError for missing labels, wrong shapes or NaN.
    """
    wrong = (select_scores.logits.argmax(axis=1) != select_scores.known_labels).astype(np.float64)
    confidence, wrong = checked_rows(g, wrong)
    softmax = Ranking(softmax_confidence(select_scores), wrong)
    gate = Ranking(confidence, wrong)
    augrc = STATISTICS["augrc"]

    def gain(_confidence: FloatArray, _residuals: FloatArray, weights: FloatArray) -> float:
        return float(augrc(softmax.accept(weights))) - float(augrc(gate.accept(weights)))

    interval = bootstrap(
        {"gain": gain}, confidence=confidence, residuals=wrong, labels=select_scores.labels,
        groups=select_scores.groups, n_resamples=n_resamples, level=level, seed=seed,
    )["gain"]  # fmt: skip
    n, errors = len(wrong), int(wrong.sum())
    if errors in (0, n):
        which = "wrong" if errors else "right"
        return Acceptance(0.0, None, None, False, f"softmax is kept: all {n} answers in val_select are {which}.")
    if np.ptp(confidence) == 0:
        return Acceptance(
            interval.value, None, None, False, "softmax is kept: the gate is constant and orders nothing."
        )
    if not np.isfinite(interval.low):
        return Acceptance(
            interval.value, None, None, False, "softmax is kept: val_select is one group, too few to compare."
        )
    accepted = interval.low > 0
    span = f"{1000 * interval.value:+.3g}e-3 ({100 * level:g} % interval {1000 * interval.low:+.3g} to {1000 * interval.high:+.3g}e-3)"
    verdict = (
        f"the gate is kept: its gain in AUGRC over softmax on val_select is {span}, above zero."
        if accepted
        else f"softmax is kept: the gate's gain in AUGRC on val_select is {span}, which does not lie above zero."
    )
    return Acceptance(interval.value, interval.low, interval.high, accepted, verdict)


def softmax_confidence(scores: Scores) -> FloatArray:
    """Logit of the maximum softmax probability, float [N]: the order of MSP without ties at 1.0; |margin| for two classes."""
    confidence = msp(scores.logits)
    if not np.isfinite(confidence).all():
        raise DataError("logits: differences overflow; rescale them")
    return confidence
