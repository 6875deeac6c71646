"""Label shift: the class balance of unlabelled data from their scores, and metrics at another balance.

Assumes that scores within a class stay as they were and only the shares of the classes differ. Then class-conditional
certificates (fnr, fpr, miss_rate, false_exit_rate) hold unchanged; coverage, error and every pooled metric move, and
are restated by `stage1.evaluation.restate` and `prior_weights`. Nothing here can tell whether the assumption is true.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.calibration import CalibrationMap
from stage1.calibration.maps import log_softmax
from stage1.errors import ConfigError, DataError
from stage1.evaluation.intervals import check_options
from stage1.evaluation.ranking import FloatArray
from stage1.evaluation.resampling import Units, draws, units
from stage1.scores import Scores


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


Method = Literal["mlls", "bbse"]
FEWEST_GROUPS = 20
"""Groups of source or target under which no interval of the balance is stated (benchmarks/intervals.md)."""
_SKEWED = 1.25
"""The difference of two shares near 0 or 1 is skewed, its spread alone too small: without this factor "disagree" is
said in .11 of draws at 90 % positives and 300 rows where only the balance differs, with it in .05 (400 draws)."""


@dataclass(frozen=True, slots=True)
class PriorEstimate:
    """Shares of the classes in the target, and an interval for each; [K], in [0, 1].

    low, high: None where there are too few groups (`units` < FEWEST_GROUPS) for an interval that covers. units: fewest
    independent units (groups, else rows) of the two sides. resamples: replicates that gave an estimate; the interval is
    theirs. replicates: float [resamples, K], what each of them found, for a restatement at this prior, spread as the
    interval is; drawn: their numbers. Neither is in the document.
    """

    prior: tuple[float, ...]
    low: tuple[float, ...] | None
    high: tuple[float, ...] | None
    method: Method
    level: float
    n_source: int
    n_target: int
    units: int
    resamples: int
    replicates: FloatArray = field(compare=False, repr=False)
    drawn: NDArray[np.int64] = field(compare=False, repr=False)

    def to_document(self) -> dict[str, Any]:
        """Plain JSON values."""
        left_out = ("replicates", "drawn")
        named = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in left_out}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}

    def agrees_with(self, other: PriorEstimate) -> bool | None:
        """Whether the difference is one that chance makes: a test at 1 - level; None: too few groups to tell.

        Two intervals overlap long before their difference is 0: both estimates are of the same rows and err together.
        So the difference itself is compared with its spread over the replicates that both have (those of one seed are
        the same rows), for each class, K > 2 sharing 1 - level. Where they do not agree, the map or the assumption is
        wrong.
        """
        from scipy import stats

        units = min(self.units, other.units)
        if self.low is None or other.low is None:
            return None
        _, mine, yours = np.intersect1d(self.drawn, other.drawn, return_indices=True)
        if len(mine) < 2:
            return None
        gap = np.abs(np.array(self.prior) - np.array(other.prior))
        spread = np.std(self.replicates[mine] - other.replicates[yours], axis=0, ddof=1)
        tests = 1 if len(gap) == 2 else len(gap)
        limit = _SKEWED * float(stats.t.isf((1.0 - self.level) / (2 * tests), units - 1))
        return bool((gap <= limit * spread).all())


def estimate_prior(
    source: Scores,
    target: Scores,
    *,
    method: Method = "mlls",
    calibration: CalibrationMap | None = None,
    refit: bool = True,
    n_resamples: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> PriorEstimate:
    """Class shares of `target` (unlabelled; its labels are not read) from labelled `source` of another balance.

    mlls: the most likely shares given calibrated probabilities (Saerens et al. 2002; with a map that has an intercept
    the sharpest, Alexandari et al. 2020). bbse: answers and the confusion on source (Lipton et al. 2018); needs no
    calibration. mlls is no better than the map: on COCO person scores at 90 % positives a Platt map says .943 (.917 to
    .965), beta .907, bbse .903. Take the map that `choose_map` chose, and compare both methods.
    calibration: the map fitted on `source`; None: the probabilities are taken as calibrated.
    The interval resamples both sides, groups whole, source within classes; refit: the map is fitted again in each
    replicate, since a map from a few hundred rows is itself uncertain (False: faster, and too short then). Replicates
    are spread about the estimate, on the log-odds, by the ratio of the t to the normal quantile at units - 1 degrees of
    freedom and by sqrt(units / (units - 1)): a bootstrap of few units is too narrow by just that.
    Raises DataError: no labels on source, a class without a row there, no target rows, unequal K, or, for bbse, answers
    that do not tell the classes apart; ConfigError for bad options.
    """
    labels, k = source.known_labels, source.n_classes
    check_options(n_resamples, level, seed)
    if method not in ("mlls", "bbse"):
        raise ConfigError(f"method: {method!r} is unknown; use mlls or bbse")
    if target.n_classes != k or not len(target):
        raise DataError(f"target: {len(target)} rows of {target.n_classes} classes; rows of {k} classes are needed")
    missing = np.flatnonzero(np.bincount(labels, minlength=k) == 0)
    if len(missing):
        raise DataError(f"source: no row of class {missing[0]}; its scores are needed to find its share elsewhere")
    sides = (units(len(source), labels, source.groups), units(len(target), None, target.groups))
    replicates = zip(
        _counts(sides[0], len(source), n_resamples, 2 * seed),
        _counts(sides[1], len(target), n_resamples, 2 * seed + 1),
        strict=True,
    )
    estimator = _Bbse(source, target, calibration) if method == "bbse" else _Mlls(source, target, calibration, refit)
    prior = estimator.at(np.ones(len(source)), np.ones(len(target)))
    if prior is None:
        raise DataError(
            "bbse: the confusion matrix on source is singular (answers do not tell the classes apart); use mlls"
        )
    each = [estimator.at(here, there) for here, there in replicates]
    found = [one for one in each if one is not None]
    drawn = np.array([number for number, one in enumerate(each) if one is not None], dtype=np.int64)
    if 2 * len(found) < n_resamples:
        raise DataError(
            f"{method}: {len(found)} of {n_resamples} replicates gave an estimate; label more of the source"
        )
    tail = (1.0 - level) / 2
    n_units = min(map(len, sides))
    grouped = any(side.groups is not None for side in (source, target))
    wide = _spread(np.array(found), prior, n_units, tail)
    low = np.minimum(np.quantile(wide, tail, axis=0, method="lower"), prior)
    high = np.maximum(np.quantile(wide, 1.0 - tail, axis=0, method="higher"), prior)
    known = not grouped or n_units >= FEWEST_GROUPS
    return PriorEstimate(
        tuple(prior.tolist()),
        tuple(low.tolist()) if known else None,
        tuple(high.tolist()) if known else None,
        method,
        level,
        len(source),
        len(target),
        n_units,
        len(found),
        wide,
        drawn,
    )


def _spread(found: FloatArray, prior: FloatArray, n_units: int, tail: float) -> FloatArray:
    """Replicates [R, K] moved away from the estimate [K] on the log-odds, as few units need; shares again."""
    from scipy import special, stats

    if n_units < 2:
        return found
    factor = float(stats.t.isf(tail, n_units - 1) / stats.norm.isf(tail)) * np.sqrt(n_units / (n_units - 1))
    centre = _log_odds(prior)
    moved = special.expit(centre + factor * (_log_odds(found) - centre))
    return np.asarray(moved / moved.sum(axis=1, keepdims=True))


def _log_odds(shares: FloatArray) -> FloatArray:
    inside = np.clip(shares, 1e-6, 1.0 - 1e-6)  # a share of exactly 0 is an estimate at the edge
    return np.asarray(np.log(inside) - np.log1p(-inside))


# ---- the two estimators ------------------------------------------------------------------------------------------


def bbse_weights(joint: ArrayLike, predicted: ArrayLike) -> FloatArray:
    """w = C^-1 mu, the ratio of target to source share of each class, float [K]; may be negative.

    joint: C_ij = P_source(answer i, class j), [K, K]. predicted: mu_i = P_target(answer i), [K].
    Raises DataError where C is singular. Source: Lipton, Wang and Smola 2018.

    >>> bbse_weights([[0.72, 0.03], [0.08, 0.17]], [0.55, 0.45]).round(6).tolist()
    [0.666667, 2.333333]
    """
    matrix, answers = np.asarray(joint, dtype=np.float64), np.asarray(predicted, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape != (len(answers), len(answers)) or not np.isfinite(matrix).all():
        raise DataError(f"joint: shape {matrix.shape} for {answers.shape} answers; finite numbers [K, K] and [K]")
    try:
        weights = np.linalg.solve(matrix, answers)
    except np.linalg.LinAlgError as error:
        raise DataError("joint: the matrix is singular; the answers do not tell the classes apart") from error
    if not np.isfinite(weights).all() or np.linalg.cond(matrix) > 1e10:
        raise DataError("joint: the matrix is singular; the answers do not tell the classes apart")
    return np.asarray(weights)


def em_step(prior: ArrayLike, probabilities: ArrayLike, source_prior: ArrayLike) -> FloatArray:
    """One step of expectation-maximisation from `prior`: the mean of probabilities restated at that prior, float [K].

    >>> em_step([0.5, 0.5], [0.9, 0.2], 0.5).round(3).tolist()
    [0.45, 0.55]
    """
    return np.asarray(shift_prior(_matrix(probabilities), source_prior, prior).mean(axis=0))


def mlls(probabilities: ArrayLike, source_prior: ArrayLike) -> FloatArray:
    """The most likely class shares of rows with these probabilities, float [K].

    probabilities: [N] (P(class 1)) or [N, K], calibrated where the shares are source_prior (P(class 1) or [K], each
    > 0). The likelihood is concave; EM to 1e-9. Raises DataError for values that are no probabilities or shares.
    Source: Saerens, Latinne and Decaestecker 2002.

    >>> mlls([0.9, 0.8, 0.3, 0.2, 0.1, 0.6, 0.05, 0.7], 0.2).round(7).tolist()
    [0.0566177, 0.9433823]
    """
    values = _matrix(probabilities)
    start = checked_shares(source_prior, "source_prior", values.shape[1], positive=True)
    return _most_likely(values / start, np.ones(len(values)), start)


def shift_prior(probabilities: ArrayLike, source_prior: ArrayLike, target_prior: ArrayLike) -> FloatArray:
    """Probabilities calibrated at source_prior, restated at target_prior: p_k w_k / sum_j p_j w_j, w = target / source.

    probabilities: [N] (P(class 1)) or [N, K]; the same shape comes back. Priors: P(class 1) or [K], source each > 0.
    Raises DataError for values that are no probabilities or shares, or a row sure of a class whose target share is 0.

    >>> shift_prior([0.5, 0.9], 0.5, 0.1).round(4).tolist()
    [0.1, 0.5]
    """
    values = _matrix(probabilities)
    k = values.shape[1]
    ratio = checked_shares(target_prior, "target_prior", k) / checked_shares(
        source_prior, "source_prior", k, positive=True
    )
    moved = values * ratio
    total = moved.sum(axis=1, keepdims=True)
    if (total <= 0).any():
        row = int((total <= 0).argmax())
        raise DataError(f"probabilities: row {row} is sure of a class whose target share is 0; give it a share")
    moved /= total
    return np.asarray(moved[:, 1] if np.ndim(probabilities) == 1 else moved)


class _Bbse:
    """Counts of (answer, class) on source and of answers on target; a replicate weighs the rows."""

    def __init__(self, source: Scores, target: Scores, calibration: CalibrationMap | None) -> None:
        self._k = source.n_classes
        answers = [_log_probabilities(side, calibration).argmax(axis=1) for side in (source, target)]
        self._cell = answers[0] * self._k + source.known_labels
        self._answer = answers[1]

    def at(self, source_weights: FloatArray, target_weights: FloatArray) -> FloatArray | None:
        joint = np.bincount(self._cell, source_weights, self._k**2).reshape(self._k, self._k) / source_weights.sum()
        predicted = np.bincount(self._answer, target_weights, self._k) / target_weights.sum()
        try:
            shares = np.maximum(bbse_weights(joint, predicted) * joint.sum(axis=0), 0.0)
        except DataError:
            return None
        return np.asarray(shares / shares.sum())


class _Mlls:
    def __init__(self, source: Scores, target: Scores, calibration: CalibrationMap | None, refit: bool) -> None:
        self._source, self._target, self._map = source, target, calibration
        self._plain = Scores(logits=source.logits, labels=source.labels)  # a resample repeats rows, ids may not repeat
        self._refit = refit and calibration is not None
        self._start: FloatArray | None = None
        self._here = np.exp(_log_probabilities(source, calibration))
        self._there = np.exp(_log_probabilities(target, calibration))

    def at(self, source_weights: FloatArray, target_weights: FloatArray) -> FloatArray | None:
        here, there = self._here, self._there
        if self._refit and self._map is not None and self._start is not None:
            rows = np.repeat(np.arange(len(self._plain)), source_weights.astype(np.int64))
            try:
                fitted = self._map.refit(self._plain.take(rows))
            except DataError:
                return None
            here, there = fitted.apply(self._source.logits), fitted.apply(self._target.logits)
        # What the probabilities themselves say of the source, not its label shares: without a shift, target = source
        # must be the answer also where the map is a little off.
        before = np.maximum(source_weights @ here / source_weights.sum(), 1e-12)
        found = _most_likely(there / before, target_weights, before if self._start is None else self._start)
        if self._start is None:  # the estimate itself: replicates start near it, a little inside
            self._start = 0.99 * found + 0.01 / len(found)
        return found


def _most_likely(ratio: FloatArray, weights: FloatArray, start: FloatArray) -> FloatArray:
    """argmax over shares q of sum_i weights_i log(ratio_i . q): EM, sped up by SQUAREM (Varadhan and Roland 2008)."""
    weights = weights / weights.sum()

    def step(shares: FloatArray) -> FloatArray:
        return np.asarray(shares * ((weights / (ratio @ shares)) @ ratio))

    def likelihood(shares: FloatArray) -> float:
        return float(weights @ np.log(ratio @ shares))

    shares = start / start.sum()
    for _ in range(2000):
        first = step(shares)
        second = step(first)
        move, bend = first - shares, second - 2.0 * first + shares
        if np.abs(second - first).max() <= 1e-10:
            return np.asarray(second / second.sum())
        length = max(float(np.sqrt((move @ move) / max(bend @ bend, 1e-300))), 1.0)
        leap = shares + 2.0 * length * move + length**2 * bend
        shares = second
        if (leap > 0).all() and likelihood(leap) > likelihood(second):
            shares = step(leap)
    return np.asarray(shares / shares.sum())


def _log_probabilities(scores: Scores, calibration: CalibrationMap | None) -> FloatArray:
    return log_softmax(scores.logits) if calibration is None else calibration.log_probabilities(scores.logits)


def _counts(plan: Units, n: int, n_resamples: int, seed: int) -> Iterator[FloatArray]:
    for batch in draws(plan, n, n_resamples, seed):
        for row in plan.rows(batch):
            yield row.astype(np.float64)


# ---- input -------------------------------------------------------------------------------------------------------


def _matrix(probabilities: ArrayLike) -> FloatArray:
    values: NDArray[np.float64] = np.asarray(probabilities, dtype=np.float64)
    if values.ndim == 1:
        values = np.stack([1.0 - values, values], axis=1)
    if values.ndim != 2 or values.shape[1] < 2 or not len(values) or not ((values >= 0) & (values <= 1)).all():
        raise DataError("probabilities: values must be in [0, 1], shape [N] or [N, K], at least one row")
    if (off := np.abs(values.sum(axis=1) - 1.0)).max() > 1e-3:
        raise DataError(f"probabilities: row {int(off.argmax())} sums to {values[off.argmax()].sum():.4g}, not 1")
    return values


def checked_shares(values: ArrayLike, name: str, k: int, *, positive: bool = False) -> FloatArray:
    """[K] shares from P(class 1) or [K]. Raises DataError naming `name` where they are none."""
    shares: NDArray[np.float64] = np.asarray(values, dtype=np.float64)
    if shares.ndim == 0:
        shares = np.array([1.0 - shares, shares])
    if shares.shape != (k,) or not (shares >= 0).all() or abs(shares.sum() - 1.0) > 1e-6:
        raise DataError(f"{name}: {np.asarray(values).tolist()}; give {k} shares >= 0 that sum to 1, or P(class 1)")
    if positive and not (shares > 0).all():
        raise DataError(f"{name}: class {int((shares <= 0).argmax())} has share 0; each class needs some of the source")
    return shares
