"""The gate model: g(x) = P(the answer is right | x), from a second score or from several weak signals together.

raw second score r  ->  monotone map  ->  g in (0, 1)

r is the gate logit where scores carry one and it is as good as the rest, else the logit of a meta-model: L2-regularised
logistic regression of "the answer is right" on standardised features of the scores:

| feature | what it is |
|---|---|
| margin | top logit - second logit (|logit_1 - logit_0| for two classes) |
| entropy | of the softmax, in nats |
| gate | the gate logit, where there is one |
| any name | a column that the caller gives (spread over views, kNN distance ..) |
| margin*name | product with the standardised margin: a second signal often says how much a margin is worth |

The map is the identity, Platt, beta or isotonic, of least cross-validated NLL. Everything is fitted on val_select; the
map on out-of-fold r, since in-sample r of a fitted model is too sure of itself. What is saved is what is applied: after
JSON, the same g bit for bit. Source: ALGORITHMS 5, 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stage1.calibration import CalibrationMap, Choice, choose_map, fit_map, map_from_document
from stage1.calibration.folds import fold_of_rows
from stage1.calibration.isotonic import ISOTONIC_ROWS
from stage1.errors import ConfigError, DataError
from stage1.late import library
from stage1.policy.gate_features import Extra, checked_extra, feature, gate_logit
from stage1.scores import Scores

special = library("scipy.special")

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Source = Literal["auto", "gate", "meta"]

_FOLDS = 5
_MINIMUM = 10  # wrong and right answers (or groups with one) in val_select: two of each in every fold
_TIED = 0.95  # share of rows at one value from which a second score counts as collapsed


@dataclass(frozen=True, slots=True)
class GateModel:
    """A fitted gate. Made by fit_gate_model, or from_document.

    source: "gate" (r = gate logit), "meta" (r = intercept + sum of weights x standardised features) or "constant" (r =
    intercept). features, means, scales, weights: of the meta-model, else empty. map: None is the identity, g =
    sigmoid(r).
    chosen: why this map. n: rows fitted on; accuracy: share of right answers among them. collapsed: why g is constant,
    or None.
    """

    source: str
    features: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    map: CalibrationMap | None
    chosen: str
    n: int
    accuracy: float
    collapsed: str | None = None

    def apply(self, scores: Scores, extra: Extra | None = None) -> Floats:
        """g = P(the answer is right), float [N] in (0, 1).

        extra: the columns, by name, that the model was fitted with; others are ignored. Raises DataError for a column
        that is missing or cannot be used, and where the model needs a gate logit that the scores do not carry.
        """
        r = self.raw(scores, extra)
        g = special.expit(r) if self.map is None else np.exp(self.map.log_probabilities(_as_margin(r))[:, 1])
        return np.clip(g, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))

    def raw(self, scores: Scores, extra: Extra | None = None) -> Floats:
        """The raw second score r, float [N]."""
        if self.source == "gate":
            return gate_logit(scores)
        r = np.full(len(scores), self.intercept)
        standard: dict[str, Floats] = {}
        # Column by column, not a matrix product: BLAS rounds differently by the number of rows, and an image alone must
        # get the score that it had among the calibration images.
        for name, mean, scale, weight in zip(self.features, self.means, self.scales, self.weights, strict=True):
            standard[name] = (_column(name, scores, extra, standard) - mean) / scale
            r = r + weight * standard[name]
        return r

    def to_document(self) -> dict[str, Any]:
        """Plain values for gateparams.json."""
        document: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name in ("features", "means", "scales", "weights"):
            document[name] = list(document[name])
        return document | {"map": None if self.map is None else self.map.to_document()}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> GateModel:
        """The inverse of to_document. Raises IntegrityError where the map's parameters are none that a fit gives."""
        values = {name: document[name] for name in cls.__slots__}
        for name in ("features", "means", "scales", "weights"):
            values[name] = tuple(values[name])
        if values["map"] is not None:
            values["map"] = map_from_document(values["map"], "gateparams: model.map")
        return cls(**values)


def fit_gate_model(
    select: Scores, extra: Extra | None = None, *, source: Source = "auto", ridge: float = 1.0, seed: int = 0
) -> GateModel:
    """Fit the gate on labelled scores of val_select.

    extra: further features by name, [N] finite numbers each. source: "gate" takes the gate logit unchanged, "meta" the
    meta-model (with the gate logit among its features); "auto" takes the gate logit where there is one, unless the
    meta-model's cross-validated NLL is lower by more than one standard error. ridge: L2 weight of the meta-model
    (scikit-learn's 1 / C). Folds keep groups whole, and follow ids where there are any, not the order of rows.

    Where no gate can be learned (all answers right, all wrong, fewer than 10 of either, no spread, a score that does
    not rise where answers are right) g is a constant and `collapsed` says why. Raises DataError (labels, columns, no
    gate logit for source "gate"), ConfigError (source, ridge).
    """
    if source not in ("auto", "gate", "meta"):
        raise ConfigError(f"gate.source: {source!r} is unknown; use auto, gate or meta")
    if not (np.isfinite(ridge) and ridge > 0):
        raise ConfigError(f"gate.ridge: {ridge}; give a number above 0 (1.0 is usual)")
    right = answers_right(select)
    columns = checked_extra(extra, len(select))
    # By falling simplicity: the second of two must be clearly better.
    candidates = {"gate": ["gate"], "meta": ["meta"], "auto": ["gate", "meta"]}[source]
    if source == "auto" and select.gate is None:
        candidates = ["meta"]
    raws = {"gate": gate_logit(select)} if "gate" in candidates else {}
    reason = _too_few(select, right)
    if reason is not None:
        return _constant(right, reason)

    folds = fold_of_rows(_judged(select, np.zeros(len(right)), right), _FOLDS, seed)
    if "meta" in candidates:
        raws["meta"] = _out_of_fold(select, columns, right, folds, ridge)
    if len(candidates) == 2:
        losses = [_held_out_loss(_judged(select, raws[name], right), folds) for name in candidates]
        chosen = candidates[_clearly_lower(losses[1], losses[0])]
    else:
        chosen = candidates[0]
    model = (
        _fit_meta(select, columns, right, ridge) if chosen == "meta" else replace(_constant(right, ""), source="gate")
    )
    reason = _no_spread(model.raw(select, columns), chosen)
    if reason is not None:
        return _constant(right, reason)
    choice = _choose(_judged(select, raws[chosen], right), seed)
    if choice.map is not None and not _rises(choice.map):
        reason = f"the second score ({chosen}) does not rise where answers are right, so it orders nothing"
        return _constant(right, reason)
    return replace(model, map=choice.map, chosen=choice.reason, collapsed=None)


def cross_fitted_gate(
    select: Scores, extra: Extra | None = None, *, source: Source = "auto", ridge: float = 1.0, seed: int = 0
) -> Floats:
    """g of each row of val_select by a gate fitted without its fold (groups whole), float [N]: to judge the gate there.

    The whole fit (meta-model, choice of source and map) is repeated without each fold. Where there is nothing to
    learn, g is constant. Arguments and errors as fit_gate_model.
    """
    right = answers_right(select)
    columns = checked_extra(extra, len(select))
    folds = fold_of_rows(_judged(select, np.zeros(len(right)), right), _FOLDS, seed)
    options: dict[str, Any] = {"source": source, "ridge": ridge, "seed": seed}
    if _too_few(select, right) is not None or len(np.unique(folds)) < 2:
        return fit_gate_model(select, columns, **options).apply(select, columns)
    g = np.empty(len(right))
    for held, outside in _splits(folds):
        model = fit_gate_model(select.take(outside), _take(columns, outside), **options)
        g[held] = model.apply(select.take(held), _take(columns, held))
    return g


def no_gate_because(
    select: Scores, extra: Extra | None = None, *, source: Source = "auto", ridge: float = 1.0, seed: int = 0
) -> str | None:
    """Why no gate can be fitted and g is one constant, or None. Arguments and errors as fit_gate_model."""
    return fit_gate_model(select, extra, source=source, ridge=ridge, seed=seed).collapsed


def predicted_class(scores: Scores) -> NDArray[np.int64]:
    """The likelier class, int [N]; the lower one where logits tie."""
    return np.asarray(scores.logits.argmax(axis=1), dtype=np.int64)


def answers_right(scores: Scores) -> Bools:
    """Whether the likelier class is the label, bool [N]. Raises DataError where there are no labels."""
    return np.asarray(predicted_class(scores) == scores.known_labels)


# ---- meta-model --------------------------------------------------------------------------------------------------


def _column(name: str, scores: Scores, extra: Extra | None, standard: Mapping[str, Floats]) -> Floats:
    base = name.removeprefix("margin*")
    return feature(name, scores, extra) if name == base else standard["margin"] * standard[base]


def _fit_meta(scores: Scores, extra: Mapping[str, Floats], right: Bools, ridge: float) -> GateModel:
    """The meta-model, with the identity as its map."""
    signals = (["gate"] if scores.gate is not None else []) + sorted(extra)
    names = ["margin", "entropy", *signals, *(f"margin*{name}" for name in signals)]
    standard: dict[str, Floats] = {}
    means, scales = [], []
    for name in names:
        column = _column(name, scores, extra, standard)
        mean, scale = float(column.mean()), float(column.std())
        # A column that is constant here (up to rounding) says nothing: as zeros it gets weight 0.
        constant = scale <= 1e-12 * max(1.0, abs(mean))
        means.append(mean)
        scales.append(1.0 if constant else scale)
        standard[name] = np.zeros(len(column)) if constant else (column - mean) / scale
    weights, intercept = _ridge_logistic(np.stack(list(standard.values()), axis=1), right, ridge)
    return GateModel(
        "meta",
        tuple(names),
        tuple(means),
        tuple(scales),
        tuple(weights.tolist()),
        intercept,
        None,
        "",
        len(right),
        float(right.mean()),
    )


def _ridge_logistic(columns: Floats, right: Bools, ridge: float) -> tuple[Floats, float]:
    """(slopes [D], intercept) of least summed cross-entropy + ridge / 2 x squared slopes; damped Newton."""
    design = np.column_stack([columns, np.ones(len(columns))])
    # The intercept's 1e-9 keeps it finite where a fold holds one kind of answer.
    penalty = np.append(np.full(columns.shape[1], ridge), 1e-9)
    weights = np.zeros(design.shape[1])

    def loss(w: Floats) -> float:
        z = design @ w
        return float(np.logaddexp(0.0, z).sum() - z[right].sum() + 0.5 * (penalty * w) @ w)

    value = loss(weights)
    for _ in range(100):
        p = special.expit(design @ weights)
        hessian = (design * (p * (1 - p))[:, None]).T @ design + np.diag(penalty)
        step = np.linalg.solve(hessian, design.T @ (p - right) + penalty * weights)
        size = 1.0
        while size > 1e-8 and loss(weights - size * step) > value:
            size /= 2
        weights = weights - size * step
        before, value = value, loss(weights)
        if before - value <= 1e-12 * max(abs(before), 1.0):
            break
    return weights[:-1], float(weights[-1])


def _out_of_fold(
    scores: Scores, extra: Mapping[str, Floats], right: Bools, folds: NDArray[np.int64], ridge: float
) -> Floats:
    r = np.empty(len(right))
    for held, outside in _splits(folds):
        model = _fit_meta(scores.take(outside), _take(extra, outside), right[outside], ridge)
        r[held] = model.raw(scores.take(held), _take(extra, held))
    return r


def _splits(folds: NDArray[np.int64]) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    return [(np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)) for fold in np.unique(folds)]


def _take(columns: Mapping[str, Floats], rows: NDArray[np.intp]) -> dict[str, Floats]:
    return {name: values[rows] for name, values in columns.items()}


# ---- map ---------------------------------------------------------------------------------------------------------


def _as_margin(r: Floats) -> Floats:
    return np.stack([np.zeros_like(r), r], axis=1)


def _judged(scores: Scores, r: Floats, right: Bools) -> Scores:
    """r as the binary score of "the answer is right": what the calibration maps are fitted on."""
    return Scores(logits=_as_margin(r), labels=right.astype(np.int64), groups=scores.groups, ids=scores.ids)


def _choose(judged: Scores, seed: int) -> Choice:
    """The map of least cross-validated NLL; isotonic only where it is clearly better than the best of the others.

    On its steps scores tie, and tied scores exit or defer as a block, which costs coverage.
    """
    strict = choose_map(judged, candidates=("platt", "beta"), folds=_FOLDS, seed=seed)
    if len(judged) < ISOTONIC_ROWS:
        return strict
    every = choose_map(judged, candidates=("platt", "beta", "isotonic"), folds=_FOLDS, seed=seed)
    rows = {row.name: row for row in every.table}
    steps, smooth = rows["isotonic"], rows[strict.name]
    if steps.nll is None or smooth.nll is None or smooth.nll - steps.nll <= (steps.change_standard_error or 0.0):
        return strict
    return every


def _rises(fitted: CalibrationMap) -> bool:
    if fitted.name == "isotonic":
        values = fitted.parameters["curves"][0]["values"]
        return bool(values[-1] > values[0])
    return fitted.monotone


def _held_out_loss(judged: Scores, folds: NDArray[np.int64]) -> Floats:
    """-log P(what happened) of each row, float [N], under a Platt map fitted on the other folds."""
    loss = np.empty(len(judged))
    for held, outside in _splits(folds):
        log_p = fit_map("platt", judged.take(outside)).log_probabilities(judged.logits[held])
        loss[held] = -log_p[np.arange(len(held)), judged.known_labels[held]]
    return loss


def _clearly_lower(loss: Floats, other: Floats) -> bool:
    """Whether the mean of `loss` is below `other` by more than a standard error of the paired difference."""
    gain = other - loss
    return bool(gain.mean() > gain.std() / np.sqrt(len(gain)))


# ---- where there is nothing to learn -----------------------------------------------------------------------------


def _constant(right: Bools, reason: str) -> GateModel:
    """g = share of right answers, kept inside (0, 1) by one right and one wrong answer more."""
    share = (float(right.sum()) + 1) / (len(right) + 2)
    return GateModel(
        "constant",
        (),
        (),
        (),
        (),
        float(special.logit(share)),
        None,
        "constant",
        len(right),
        float(right.mean()),
        reason,
    )


def _too_few(scores: Scores, right: Bools) -> str | None:
    n, wrong = len(right), int((~right).sum())
    if n == 0:
        raise DataError("select: no rows; the gate is fitted on labelled images of val_select")
    if wrong in (0, n):
        return f"all {n} answers in val_select are {'wrong' if wrong else 'right'}: there is nothing to tell apart"
    for kind, rows in (("wrong", ~right), ("right", right)):
        units = int(rows.sum()) if scores.groups is None else len(np.unique(scores.groups[rows]))
        if units < _MINIMUM:
            ending = "" if units == 1 else "s"
            found = f"{kind} answer{ending}" if scores.groups is None else f"group{ending} with a {kind} answer"
            return f"{units} {found} in val_select, a gate needs at least {_MINIMUM}"
    return None


def _no_spread(raw: Floats, source: str) -> str | None:
    values, counts = np.unique(raw, return_counts=True)
    share = float(counts.max()) / len(raw)
    if share < _TIED and np.ptp(raw) > 1e-9 * max(1.0, float(np.abs(raw).max())):
        return None
    return (
        f"the second score ({source}) has collapsed: {100 * share:.4g} % of val_select are at"
        f" {values[counts.argmax()]:.4g}"
    )
