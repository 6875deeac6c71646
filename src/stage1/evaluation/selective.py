"""Selective classification: what a confidence is worth for deciding which answers to accept.

One convention throughout, that of fd-shifts (Traub et al. 2024, arXiv 2407.01032), at scale 1 instead of x1000:
accept from the highest confidence down; **rows of equal confidence enter as one block**, so nothing here depends on the
order of the input; one point of the curve per distinct confidence, plus the point of coverage 0, where the selective
risk stays flat and the generalised risk is 0; areas by the trapezoid rule over coverage.

    coverage c         = weight accepted / all weight
    selective risk     = residual weight accepted / weight accepted       (wrong among the accepted)
    generalised risk   = residual weight accepted / all weight            (accepted and wrong: a silent failure)

`confidence` float [N], higher = more likely right. `residuals` [N], the loss of each row: 0/1 (or bool) for right or
wrong, or any loss >= 0. `weights` [N] >= 0: a row of weight 2 counts as two rows, one of weight 0 as none;
re-weighting to another class prior goes through them. Every function raises DataError for NaN or infinity, unequal
lengths, no rows, a negative residual or weight.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import DataError
from stage1.evaluation.ranking import STATISTICS, FloatArray, Ranking, checked_rows, checked_weights

# A coverage or a risk made of fractional weights misses a round number by a few ulps; 4/5 must count as 0.8.
_SLACK = 1e-12


class RiskCoverage(NamedTuple):
    """The risk-coverage curve, from coverage 1 down to 0: four float arrays [M + 1], M = distinct confidences.

    threshold: this point accepts exactly the rows with confidence >= threshold; inf at coverage 0.

    >>> curve = risk_coverage([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0])
    >>> curve.coverage.tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    >>> curve.threshold.tolist()
    [0.6, 0.7, 0.8, 0.9, inf]
    """

    coverage: FloatArray
    selective_risk: FloatArray
    generalised_risk: FloatArray
    threshold: FloatArray


def risk_coverage(confidence: ArrayLike, residuals: ArrayLike, weights: ArrayLike | None = None) -> RiskCoverage:
    """The whole curve, coverage 1 first (see RiskCoverage).

    >>> risk_coverage([0.9, 0.8, 0.7, 0.6, 0.5], [0, 0, 1, 0, 1]).generalised_risk.round(3).tolist()
    [0.4, 0.2, 0.2, 0.0, 0.0, 0.0]
    """
    ranking, row_weights = _ranked(confidence, residuals, weights)
    accepted = ranking.accept(row_weights)
    selective = accepted.selective_risk
    return RiskCoverage(
        coverage=np.append(accepted.coverage[::-1], 0.0),
        selective_risk=np.append(selective[::-1], selective[0]),
        generalised_risk=np.append(accepted.errors[::-1] / accepted.total, 0.0),
        threshold=np.append(ranking.thresholds[::-1], np.inf),
    )


def aurc(confidence: ArrayLike, residuals: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under selective risk over coverage, in [0, max residual].

    Dominated by the few most confident rows: prefer `augrc` for comparing.

    >>> round(aurc([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0]), 4)
    0.1146
    """
    return _single("aurc", confidence, residuals, weights)


def augrc(confidence: ArrayLike, residuals: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under generalised risk over coverage: the mean probability of a silent failure; 0/1 residuals: in [0, 1/2].

    For 0/1 residuals exactly (1 - auroc_failure) acc (1 - acc) + (1 - acc)^2 / 2, ties and weights included.

    >>> augrc([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0])
    0.09375
    """
    return _single("augrc", confidence, residuals, weights)


def e_aurc(confidence: ArrayLike, residuals: ArrayLike, weights: ArrayLike | None = None) -> float:
    """`aurc` minus the best that the same residuals allow.

    0/1 residuals: the best is e + (1 - e) ln(1 - e), e = error rate; that is its limit for many rows, so a perfect
    order of few rows comes out slightly **negative**. Other residuals: the best order, evaluated.

    >>> round(e_aurc([0.9, 0.8, 0.7, 0.6], [1, 0, 0, 0]), 4)
    0.5803
    """
    return _single("e_aurc", confidence, residuals, weights)


def e_augrc(confidence: ArrayLike, residuals: ArrayLike, weights: ArrayLike | None = None) -> float:
    """`augrc` minus the best that the same residuals allow (0/1: e^2 / 2, exact); >= 0 up to rounding.

    >>> e_augrc([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 1])
    0.0
    >>> round(e_augrc([0.9, 0.8, 0.7, 0.6], [1, 0, 0, 0]), 4)
    0.1875
    """
    return _single("e_augrc", confidence, residuals, weights)


def naurc(confidence: ArrayLike, residuals: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Normalised AURC of Cattelan and Silva (2024): (aurc - best) / (e - best), e = mean residual.

    0 for the best order that these residuals allow, 1 in expectation for an order by chance, more for a worse one; so
    the error rate is taken out, and models of different accuracy can be compared as rankers. NaN where all orders are
    alike (nothing wrong, or everything).
    0/1 residuals: best = the right rows first, **each row a point of its own**, evaluated for this number of rows (not
    the limit that `e_aurc` uses), so a perfect order without ties is exactly 0. That number is the sum of the weights:
    their scale matters here (mean 1 = as many rows as there are). Other residuals: the best order, ties as blocks.
    The authors' own code lets the curve start at risk 0, where ours stays flat.

    >>> naurc([0.9, 0.8, 0.7, 0.6], [0, 0, 0, 1])
    0.0
    >>> round(naurc([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0]), 4)
    0.381
    """
    return _single("naurc", confidence, residuals, weights)


def auroc_failure(confidence: ArrayLike, residuals: ArrayLike, weights: ArrayLike | None = None) -> float:
    """P(a right answer has more confidence than a wrong one), ties half; in [0, 1].

    NaN where nothing is wrong or nothing is right. Raises DataError for residuals other than 0 and 1.

    >>> round(auroc_failure([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0]), 4)
    0.6667
    """
    return _single("auroc_failure", confidence, residuals, weights)


def aurc_achievable(confidence: ArrayLike, residuals: ArrayLike, weights: ArrayLike | None = None) -> float:
    """AURC of the lower convex hull of the generalised risk: what mixing thresholds at random achieves.

    Between two hull points the generalised risk is linear, so the selective risk is a hyperbola and is integrated as
    one (no trapezoid): the value can lie above `aurc`.

    >>> round(aurc_achievable([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0]), 4)
    0.0767
    """
    return _single("aurc_achievable", confidence, residuals, weights)


def risk_at_coverage(
    confidence: ArrayLike, residuals: ArrayLike, coverage: float, weights: ArrayLike | None = None
) -> float:
    """Selective risk of the smallest accepted set of whole blocks whose coverage is >= `coverage`.

    coverage in [0, 1]; 0 gives the first block's risk (the curve is flat there). Raises DataError outside.

    >>> risk_at_coverage([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0], coverage=1.0)
    0.25
    """
    if not 0.0 <= coverage <= 1.0:
        raise DataError(f"coverage: {coverage}; give a share of the rows in [0, 1]")
    ranking, row_weights = _ranked(confidence, residuals, weights)
    accepted = ranking.accept(row_weights)
    first = int(np.argmax(accepted.coverage >= coverage - _SLACK))
    return float(accepted.selective_risk[first])


def coverage_at_risk(
    confidence: ArrayLike, residuals: ArrayLike, risk: float, weights: ArrayLike | None = None
) -> float:
    """Largest coverage whose selective risk is <= `risk`; 0.0 where there is none.

    Chosen and measured on the same rows, so it flatters: a threshold for use comes from `stage1.policy`.
    Raises DataError for a negative or NaN risk.

    >>> coverage_at_risk([0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0], risk=0.1)
    0.5
    """
    if not risk >= 0.0:
        raise DataError(f"risk: {risk}; give a risk >= 0")
    ranking, row_weights = _ranked(confidence, residuals, weights)
    accepted = ranking.accept(row_weights)
    below = np.flatnonzero(accepted.selective_risk <= risk + _SLACK)
    return float(accepted.coverage[below[-1]]) if len(below) else 0.0


def _single(name: str, confidence: ArrayLike, residuals: ArrayLike, weights: ArrayLike | None) -> float:
    ranking, row_weights = _ranked(confidence, residuals, weights)
    return float(STATISTICS[name](ranking.accept(row_weights)))


def _ranked(confidence: ArrayLike, residuals: ArrayLike, weights: ArrayLike | None) -> tuple[Ranking, FloatArray]:
    conf, res = checked_rows(confidence, residuals)
    row_weights = checked_weights(weights, len(conf))
    there = row_weights > 0
    if not there.all():  # a row of no weight makes no point of the curve
        conf, res, row_weights = conf[there], res[there], row_weights[there]
    return Ranking(conf, res), row_weights
