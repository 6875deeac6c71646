"""Metrics at another class balance: weights that restate a sample."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from stage1.errors import DataError
from stage1.evaluation.ranking import FloatArray


def prior_weights(labels: ArrayLike, prior: ArrayLike) -> FloatArray:
    """Weights [N] (mean 1) at which the classes have the shares `prior`: prior[y] / share of y among the rows.

    labels: int [N] in 0..K-1. prior: P(class 1) of a binary problem, or [K] shares >= 0 that sum to 1. Right for every
    metric here if only the balance differs, and scores within a class do not (label shift).
    Raises DataError: a prior that is none, a label outside it, or a class of positive share without a row.

    >>> prior_weights([1, 1, 1, 0], 0.5).round(3).tolist()
    [0.667, 0.667, 0.667, 2.0]
    """
    shares = np.asarray(prior, dtype=np.float64)
    if shares.ndim == 0:
        shares = np.array([1.0 - shares, shares])
    if shares.ndim != 1 or len(shares) < 2 or not (shares >= 0).all() or abs(shares.sum() - 1.0) > 1e-6:
        raise DataError(f"prior: {np.asarray(prior).tolist()}; give P(class 1), or K shares >= 0 that sum to 1")
    truth = np.asarray(labels)
    if truth.ndim != 1 or truth.dtype.kind not in "bi" or not len(truth):
        raise DataError(f"labels: dtype {truth.dtype}, shape {truth.shape}; whole numbers 0..K-1, at least one row")
    if truth.min() < 0 or truth.max() >= len(shares):
        raise DataError(f"labels: {truth.min()}..{truth.max()} for a prior of {len(shares)} classes")
    observed = np.bincount(truth, minlength=len(shares)) / len(truth)
    absent = (observed == 0) & (shares > 0)
    if absent.any():
        raise DataError(f"labels: no row of class {int(absent.argmax())}, whose prior is {shares[absent][0]:.4g}")
    ratio = np.divide(shares, observed, out=np.zeros_like(shares), where=observed > 0)
    return np.asarray(ratio[truth.astype(np.int64)])
