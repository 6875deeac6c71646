"""MAPIE's BinaryClassificationController as an exit rule: a pair of thresholds is its parameter, an abstention its NaN.

Both ratios are its multi-risk control (p = max), with its exact binary p-values; among the pairs that pass it takes the
one that abstains least. What differs from ours is a grid fixed beforehand and a correction for its size, or an order
learnt on its points.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.policy.score_maps import fit_logistic

Floats = NDArray[np.float64]
FWER = ("bonferroni", "bonferroni_holm", "split_fixed_sequence")


def grids(score: Floats, labels: NDArray[np.int64]) -> dict[str, Floats]:
    """Grids to let it choose from, by name: quantiles of all scores (q), or of the scores on either side of even odds
    (s).

    Even odds are those of a logistic fit on these labels; "s" has lo below and hi above, a square of pairs that may
    make sense.
    """
    odds = fit_logistic(score[:, None], labels)(score[:, None])
    found = {f"q{side}": quantile_pairs(score, side) for side in (12, 22, 32)}
    for side in (10, 19):
        levels = (np.arange(side) + 0.5) / side
        low, high = (_levels(np.quantile(score[rows], levels), score) for rows in (odds <= 0, odds > 0))
        found[f"s{side}"] = np.array([(lo, hi) for lo in low for hi in high])
    return found


def quantile_pairs(score: Floats, side: int) -> Floats:
    """All pairs lo <= hi of `side` quantiles of these scores, float [T, 2]; labels are not looked at."""
    levels = _levels(np.quantile(score, (np.arange(side) + 0.5) / side), score)
    return np.array([(lo, hi) for place, lo in enumerate(levels) for hi in levels[place:]])


def _levels(levels: Floats, score: Floats) -> Floats:
    """Levels that tie are one, and those beyond which no score lies are left out.

    A class without exits has no p-value there (NaN), and one NaN stops the controller's Holm procedure before its first
    rejection.
    """
    levels = np.unique(levels)
    return levels[(levels > score.min()) & (levels < score.max())]


def answers(score: Floats, lo: float, hi: float) -> Floats:
    """0.0 below lo, 1.0 above hi, NaN between: the predict function of the controller."""
    score = np.asarray(score)
    return np.where(score < float(lo), 0.0, np.where(score > float(hi), 1.0, np.nan))


def controller(pairs: Floats, target: float, fwer: str, confidence: float = 0.95) -> Any:
    """The controller for fnr and fpr <= target over these pairs."""
    from mapie.risk_control import BinaryClassificationController, BinaryRisk, abstention_rate

    def ratio(label: int) -> Any:
        return BinaryRisk(
            risk_occurrence=lambda truth, given: given != truth,
            risk_condition=lambda truth, given: (truth == label) & ~np.isnan(given),
            higher_is_better=False,
        )

    return BinaryClassificationController(
        answers,
        [ratio(1), ratio(0)],
        target_level=[target, target],
        confidence_level=confidence,
        best_predict_param_choice=abstention_rate,
        list_predict_params=pairs,
        fwer_method=fwer,
    )


def certified_pair(
    select: tuple[Floats, NDArray[np.int64]],
    calib: tuple[Floats, NDArray[np.int64]],
    pairs: Floats,
    target: float,
    fwer: str,
) -> tuple[float, float] | None:
    """The pair of thresholds that it certifies from these labels, None where none passes.

    (score, labels) of each part. Only split fixed sequence needs the split; the corrections test on all labels.
    pairs: its grid, made on `select`.
    """
    control = controller(pairs, target, fwer)
    with warnings.catch_warnings():
        # It warns where no pair passes; that is an answer here.
        warnings.simplefilter("ignore")
        if fwer == "split_fixed_sequence":
            control.learn_fixed_sequence_order(*select, binary=True)
            control.calibrate(*calib)
        else:
            control.calibrate(*(np.concatenate(part) for part in zip(select, calib, strict=True)))
    best = control.best_predict_param
    return None if best is None else (float(best[0]), float(best[1]))
