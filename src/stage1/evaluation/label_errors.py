"""Which labels are likely wrong: probabilities of a linear probe that did not see the image.

- **Cross-fitting**: groups are dealt to K folds; the probe that judges a row was fitted on the other folds, so never on
  a frame of the same video. Its ridge is the one of least cross-fitted NLL among a few.
- **Two passes**: rows that the first pass doubts (below) are left out of what the second pass fits on, and judged like
  all others: a wrong label no longer pulls the probe towards itself.
- **Score** of a row: the second probe's probability of the label that it has; low = suspicious.
- **How many**: the count of confident learning (Northcutt et al. 2021, arXiv 1911.00068, section 3.1): rows whose
  probability of another class reaches the mean that the rows labelled so have of it, and is their largest such. An
  estimate, not a bound.
- **Neighbours**: the nearest rows of other groups in feature space (cosine of standardised features), as evidence
  beside the score: what their labels are. They do not enter it: on planted noise they find fewer wrong labels, alone
  and mixed in.

A suspect is a question to a person, not an answer: a hard image with a right label looks the same from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import ConfigError, DataError
from stage1.evaluation import resampling
from stage1.evaluation.ranking import FloatArray

RIDGES = (1.0, 0.3, 0.1, 0.01)  # falling: each starts where the one before ended
FOLDS = 5
NEIGHBOURS = 10
_BLOCK = 512


@dataclass(frozen=True, slots=True, eq=False)
class LabelErrors:
    """What N labels look like from their features.

    probabilities: float [N, K], cross-fitted, second pass. score: float [N], that of the given label: low = suspicious.
    suggested: int [N], the likeliest class. confident: bool [N], counted by confident learning.
    neighbours: int [N, M], rows of other groups, nearest first; -1 where there are fewer.
    ridge: the one chosen. nll, accuracy: of the first pass, on the labels as given.
    """

    probabilities: FloatArray
    score: FloatArray
    suggested: NDArray[np.int64]
    confident: NDArray[np.bool_]
    neighbours: NDArray[np.int64]
    ridge: float
    nll: float
    accuracy: float

    @property
    def ranked(self) -> NDArray[np.int64]:
        """All rows, most suspicious first; ties in their order."""
        return np.argsort(self.score, kind="stable").astype(np.int64)


def find_label_errors(
    features: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    *,
    n_classes: int | None = None,
    folds: int = FOLDS,
    neighbours: int = NEIGHBOURS,
    seed: int = 0,
) -> LabelErrors:
    """Judge each label by the features of all rows. features: float [N, D]; labels: int [N]; groups: [N], dependence.

    n_classes: K, where labels do not name all classes. The same input and seed give the same result.
    Raises DataError (wrong shapes, NaN, one class, fewer groups than folds), ConfigError (options).
    """
    x, y, k = _checked(features, labels, n_classes)
    if folds < 2 or neighbours < 1:
        raise ConfigError(f"folds {folds}, neighbours {neighbours}; at least 2 folds and 1 neighbour are needed")
    unit = (
        np.arange(len(y)) if groups is None else np.unique(np.asarray(groups).astype(np.str_), return_inverse=True)[1]
    )
    if len(unit) != len(y):
        raise DataError(f"groups: {len(unit)} values for {len(y)} rows")
    fold, rows = _dealt(unit, y, folds, seed), np.arange(len(y))
    first = _cross_fitted(x, y, k, fold, RIDGES)
    losses = {ridge: _nll(probabilities, y) for ridge, probabilities in first.items()}
    ridge = min(losses, key=lambda name: losses[name])
    doubted = _confident(first[ridge], y, k)
    # A class of which nothing would be left to learn from stays whole.
    doubted &= np.isin(y, np.unique(y[~doubted]))
    second = _cross_fitted(x, y, k, fold, (ridge,), left_out=doubted)[ridge]
    return LabelErrors(
        second,
        second[rows, y],
        second.argmax(axis=1).astype(np.int64),
        _confident(second, y, k),
        _nearest(x, unit, neighbours),
        ridge,
        losses[ridge],
        float((first[ridge].argmax(axis=1) == y).mean()),
    )


def precision_at(score: ArrayLike, wrong: ArrayLike, count: int | None = None) -> float:
    """Share of really wrong labels among the `count` lowest scores (default: as many as there are wrong ones).

    Raises DataError where nothing is wrong, or for a count outside 1..N.

    >>> precision_at([0.1, 0.9, 0.2, 0.8], [True, False, False, True])
    0.5
    """
    values, planted = np.asarray(score, dtype=np.float64), np.asarray(wrong, dtype=bool)
    count = int(planted.sum()) if count is None else count
    if not planted.any() or not 1 <= count <= len(values):
        raise DataError(
            f"count: {count} of {len(values)} rows with {int(planted.sum())} wrong labels; nothing to look for"
        )
    return float(planted[np.argsort(values, kind="stable")[:count]].mean())


def fit_softmax(
    x: FloatArray, labels: NDArray[np.int64], n_classes: int, ridge: float, start: FloatArray | None = None
) -> FloatArray:
    """Multinomial logistic regression by L-BFGS: the [D + 1, K] weights that minimise mean NLL + ridge / 2 |weights|^2.

    The last row holds the intercepts, which are not in the penalty. x: float [N, D], standardised by the caller (the
    ridge is the same for each column). start: weights to begin with.
    """
    from scipy import optimize

    n, d = x.shape
    onehot = np.eye(n_classes)[labels]

    def loss(flat: FloatArray) -> tuple[float, FloatArray]:
        weights = flat.reshape(d + 1, n_classes)
        logits = x @ weights[:-1] + weights[-1]
        logits -= logits.max(axis=1, keepdims=True)
        mass = np.exp(logits)
        total = mass.sum(axis=1, keepdims=True)
        value = float((np.log(total[:, 0]) - (logits * onehot).sum(axis=1)).mean())
        error = (mass / total - onehot) / n
        gradient = np.concatenate([x.T @ error + ridge * weights[:-1], error.sum(axis=0, keepdims=True)])
        return value + 0.5 * ridge * float((weights[:-1] ** 2).sum()), gradient.ravel()

    begin = np.zeros((d + 1) * n_classes) if start is None else start.ravel()
    found = optimize.minimize(
        loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 500, "ftol": 1e-9, "gtol": 1e-6}
    )
    return np.asarray(found.x, dtype=np.float64).reshape(d + 1, n_classes)


# ---- parts -------------------------------------------------------------------------------------------------------


def _checked(
    features: ArrayLike, labels: ArrayLike, n_classes: int | None
) -> tuple[FloatArray, NDArray[np.int64], int]:
    x, y = np.asarray(features, dtype=np.float64), np.asarray(labels)
    if x.ndim != 2 or y.shape != (len(x),) or y.dtype.kind not in "iu":
        raise DataError(f"features {x.shape}, labels {y.dtype} {y.shape}; [N, D] and whole numbers [N] are expected")
    if not np.isfinite(x).all():
        raise DataError(
            f"features: row {int((~np.isfinite(x)).any(axis=1).argmax())} is not finite; extract them again"
        )
    if len(np.unique(y)) < 2:
        raise DataError(f"labels: {len(np.unique(y))} class among {len(y)} rows; two are needed to doubt a label")
    k = int(y.max()) + 1 if n_classes is None else n_classes
    if y.min() < 0 or y.max() >= k:
        raise DataError(f"labels: {int(y.max())} is outside 0..{k - 1}")
    scale = x.std(axis=0)
    # Standardised over all rows: no label is in that.
    return (x - x.mean(axis=0)) / np.where(scale > 0, scale, 1.0), y.astype(np.int64), k


def _dealt(unit: NDArray[np.int64], labels: NDArray[np.int64], folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each row: units shuffled within their first row's label, dealt in turn, so folds look alike."""
    names, first = np.unique(unit, return_index=True)
    if len(names) < folds:
        raise DataError(f"groups: {len(names)}; at least {folds} are needed for {folds} folds")
    rng = resampling.generator(seed, "label folds")
    shuffled = rng.permutation(len(names))
    order = shuffled[np.argsort(labels[first[shuffled]], kind="stable")]
    fold_of_unit = np.empty(len(names), dtype=np.int64)
    fold_of_unit[order] = np.arange(len(names)) % folds
    return fold_of_unit[np.searchsorted(names, unit)]


def _cross_fitted(
    x: FloatArray,
    labels: NDArray[np.int64],
    k: int,
    fold: NDArray[np.int64],
    ridges: Sequence[float],
    left_out: NDArray[np.bool_] | None = None,
) -> dict[float, FloatArray]:
    """ridge -> probabilities [N, K], each row's from a fit without its fold. left_out: rows that no fit uses."""
    found = {ridge: np.empty((len(x), k)) for ridge in ridges}
    usable = np.ones(len(x), dtype=bool) if left_out is None else ~left_out
    for place in np.unique(fold):
        out = fold == place
        keep = ~out & usable
        seen, seen_labels, weights = x[keep], labels[keep], None
        for ridge in ridges:
            weights = fit_softmax(seen, seen_labels, k, ridge, weights)
            logits = x[out] @ weights[:-1] + weights[-1]
            mass = np.exp(logits - logits.max(axis=1, keepdims=True))
            found[ridge][out] = mass / mass.sum(axis=1, keepdims=True)
    return found


def _nll(probabilities: FloatArray, labels: NDArray[np.int64]) -> float:
    given = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.maximum(given, np.finfo(np.float64).tiny)).mean())


def _nearest(x: FloatArray, unit: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """int [N, count]: rows of other units by falling cosine; -1 where there are fewer."""
    length = np.linalg.norm(x, axis=1, keepdims=True)
    direction = (x / np.where(length > 0, length, 1.0)).astype(np.float32)
    found = np.full((len(x), count), -1, dtype=np.int64)
    take = min(count, len(x) - 1)
    for start in range(0, len(x), _BLOCK):
        block = slice(start, start + _BLOCK)
        likeness = direction[block] @ direction.T
        likeness[unit[block][:, None] == unit[None, :]] = -np.inf
        top = np.argpartition(-likeness, take - 1, axis=1)[:, :take]
        values = np.take_along_axis(likeness, top, axis=1)
        # Falling likeness, ties by row: the same answer whatever the partition did.
        order = np.lexsort((top, -values), axis=1)
        top, values = np.take_along_axis(top, order, axis=1), np.take_along_axis(values, order, axis=1)
        found[block, :take] = np.where(np.isfinite(values), top, -1)
    return found


def _confident(probabilities: FloatArray, labels: NDArray[np.int64], k: int) -> NDArray[np.bool_]:
    bars = np.array([probabilities[labels == c, c].mean() if (labels == c).any() else np.inf for c in range(k)])
    reached = np.where(probabilities >= bars, probabilities, -np.inf)
    return np.asarray(np.isfinite(reached).any(axis=1) & (reached.argmax(axis=1) != labels))
