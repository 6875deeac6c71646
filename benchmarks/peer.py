"""MAPIE's BinaryClassificationController as an exit rule: a pair of thresholds is its parameter, an abstention its NaN.

Both ratios are its multi-risk control (p = max), with its exact binary p-values; among the pairs that pass it takes the one that
abstains least. What differs from ours is a grid fixed beforehand and a correction for its size, or an order learnt on its points.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FWER = ("bonferroni", "bonferroni_holm", "split_fixed_sequence")


def quantile_pairs(score: Floats, side: int) -> Floats:
    """All pairs lo <= hi of `side` quantiles of these scores, float [T, 2]; labels are not looked at.

    Quantiles that tie are one, and pairs beyond which no score lies are left out: a class without exits has no p-value there
    (NaN), and one NaN stops the controller's Holm procedure before its first rejection.
    """
    levels = np.unique(np.quantile(score, (np.arange(side) + 0.5) / side))
    levels = levels[(levels > score.min()) & (levels < score.max())]
    return np.array([(lo, hi) for place, lo in enumerate(levels) for hi in levels[place:]])


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
        answers, [ratio(1), ratio(0)], target_level=[target, target], confidence_level=confidence,
        best_predict_param_choice=abstention_rate, list_predict_params=pairs, fwer_method=fwer,
    )  # fmt: skip


def certified_pair(
    select: tuple[Floats, NDArray[np.int64]],
    calib: tuple[Floats, NDArray[np.int64]],
    side: int,
    target: float,
    fwer: str,
) -> tuple[float, float] | None:
    """The pair of thresholds that it certifies from these labels, None where none passes.

    (score, labels) of each part. Only split fixed sequence needs the split; the corrections test on all labels.
    The grid is made of scores, without their labels.
    """
    control = controller(quantile_pairs(select[0], side), target, fwer)
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
