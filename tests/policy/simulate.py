"""Draws for the simulations: Beta scores of ALGORITHMS 2.4, the plug-in sweep as a control that must fail."""

from __future__ import annotations

import numpy as np
from scipy import special

from stage1.scores import Scores


def beta_scores(rng: np.random.Generator, n: int, positive_share: float = 0.3) -> Scores:
    """n binary scores, positives Beta(3.5, 1), negatives Beta(1, 3.5), as logits."""
    labels = (rng.random(n) < positive_share).astype(np.int64)
    p = np.where(labels == 1, rng.beta(3.5, 1.0, n), rng.beta(1.0, 3.5, n))
    return Scores(logits=np.stack([np.zeros(n), special.logit(p)], axis=1), labels=labels)


def true_risks(lo: float | None, hi: float | None) -> dict[str, float]:
    """Exact risks of thresholds (on the logit) in this population; fnr is 0 where no positive exits."""
    p_lo = 0.0 if lo is None else float(special.expit(lo))
    p_hi = 1.0 if hi is None else float(special.expit(hi))
    miss, right = p_lo**3.5, 1 - p_hi**3.5
    false_exit = (1 - p_hi) ** 3.5
    right_negative = 1 - (1 - p_lo) ** 3.5
    return {
        "fnr": miss / (miss + right) if miss > 0 else 0.0,
        "miss_rate": miss,
        "false_exit_rate": false_exit,
        "fpr": false_exit / (false_exit + right_negative) if false_exit > 0 else 0.0,
    }


def plug_in(scores: Scores, fnr: float, false_exit_rate: float) -> tuple[float, float]:
    """Thresholds whose observed risks just meet the targets on the same data: no confidence, the usual mistake."""
    margin, labels = scores.margin, scores.known_labels
    negatives, positives = np.sort(margin[labels == 0])[::-1], np.sort(margin[labels == 1])
    hi = float(negatives[int(np.floor(false_exit_rate * len(negatives)))])
    right = int((positives > hi).sum())
    allowed = max(k for k in range(len(positives) - right + 1) if k == 0 or k / (k + right) <= fnr)
    return min(float(positives[min(allowed, len(positives) - 1)]), hi), hi
