"""Which map to use, if any: cross-validated NLL on val_select against the unchanged probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.calibration.folds import fold_of_rows
from stage1.calibration.maps import CalibrationMap, FloatArray, log_softmax
from stage1.calibration.registry import MAPS, fit_map
from stage1.calibration.registry import candidates as candidates_for
from stage1.errors import ConfigError, DataError
from stage1.scores import Scores

UNITS_PER_CLASS = 10
"""Fewer images (or groups) of a class than this, and no map is fitted: a fold would hold one or two."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line of the comparison; all losses are of rows that the map was not fitted on.

    nll: mean negative log-likelihood in nats; standard_error: its standard error; change: nll minus that of the
    identity, with the standard error of that paired difference. Errors are by group where there are groups.
    All None where the map could not be fitted or was left out; `note` says why.

    >>> Candidate("isotonic", None, None, None, None, note="left out: 90 rows, it needs about 1000").note
    'left out: 90 rows, it needs about 1000'
    """

    name: str
    nll: float | None
    standard_error: float | None
    change: float | None
    change_standard_error: float | None
    note: str | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """map: the chosen map, fitted on all rows, or None: the identity. table: identity first. reason: one sentence.

    >>> Choice(None, (), "identity: too few rows", n=12, folds=0).name
    'identity'
    """

    map: CalibrationMap | None
    table: tuple[Candidate, ...]
    reason: str
    n: int
    folds: int

    @property
    def name(self) -> str:
        return "identity" if self.map is None else self.map.name

    def to_document(self) -> dict[str, Any]:
        """Plain values: chosen, reason, n, folds, table."""
        return {
            "chosen": self.name,
            "reason": self.reason,
            "n": self.n,
            "folds": self.folds,
            "table": [asdict(row) for row in self.table],
        }


def choose_map(
    scores_select: Scores,
    *,
    candidates: Sequence[str] | None = None,
    keep_order: bool = False,
    folds: int = 5,
    seed: int = 0,
) -> Choice:
    """The map of least cross-validated NLL, if that is less than the identity's; else None.

    scores_select: labelled scores of val_select. candidates: names in MAPS; None: all that suit the number of classes
    and rows (see `stage1.calibration.registry`; isotonic from 1,000 rows, dirichlet up to 100 classes). folds: groups
    stay whole.
    keep_order: a map whose fit on all rows does not keep the order (`CalibrationMap.keeps_order`) is passed over.
    A candidate that cannot be fitted in some fold is out, and the table says why. Dirichlet chooses its penalties again
    in every fold. Raises DataError without labels, ConfigError for an unknown candidate or folds < 2.

    >>> rng = np.random.default_rng(0)
    >>> labels = rng.integers(0, 2, 400)
    >>> scores = Scores(np.stack([0 * labels, 3 * rng.normal(2 * labels - 1, 1)], axis=1), labels=labels)
    >>> found = choose_map(scores, candidates=["temperature", "platt"])
    >>> [row.name for row in found.table], found.name
    (['identity', 'temperature', 'platt'], 'platt')
    """
    labels = scores_select.known_labels
    names, left_out = _candidates(scores_select, candidates)
    loss = -log_softmax(scores_select.logits)[np.arange(len(labels)), labels] if len(labels) else np.empty(0)
    if (short := _shortage(scores_select)) is not None:
        row = _row("identity", loss, loss, scores_select) if len(labels) else _out("identity", "no rows")
        return Choice(None, (row, *(_out(name, short) for name in names)), f"identity: {short}", len(labels), 0)
    fold = fold_of_rows(scores_select, folds, seed)
    used = int(fold.max()) + 1
    table = [_row("identity", loss, loss, scores_select)]
    for name in names:
        try:
            held_out = _held_out_loss(name, scores_select, labels, fold)
        except DataError as error:
            table.append(_out(name, str(error)))
        else:
            table.append(_row(name, held_out, loss, scores_select))
    table += left_out
    chosen, passed_over = _best(table, scores_select, keep_order)
    after = "".join(f"; {text}" for text in passed_over)
    if chosen is None:
        reason = f"identity: no map lowers its cross-validated NLL of {table[0].nll:.5g} ({used} folds){after}"
        if not any(row.nll is not None for row in table[1:]):
            reason = f"identity: no map could be fitted ({'; '.join(row.note or row.name for row in table[1:])})"
        return Choice(None, tuple(table), reason, len(labels), used)
    best = next(row for row in table if row.name == chosen.name)
    reason = (
        f"{best.name}: cross-validated NLL {best.nll:.5g}, identity {table[0].nll:.5g} (change {best.change:.2g}, "
        f"standard error {best.change_standard_error:.2g}, {used} folds){after}"
    )
    if chosen.constrained:
        reason += f"; held at 0: {', '.join(chosen.constrained)}"
    return Choice(chosen, tuple(table), reason, len(labels), used)


def _best(table: list[Candidate], scores: Scores, keep_order: bool) -> tuple[CalibrationMap | None, list[str]]:
    """The map of least held-out NLL below the identity's, fitted on all rows; and why better ones were not chosen."""
    measured = sorted((row for row in table if row.nll is not None), key=lambda row: row.nll or 0.0)
    passed_over: list[str] = []
    for row in measured:
        if row.name == "identity":
            break
        try:
            fitted = fit_map(row.name, scores)
        except DataError as error:
            passed_over.append(f"on all rows, {error}")
            continue
        if not keep_order or fitted.keeps_order:
            return fitted, passed_over
        held = ", ".join(fitted.constrained) or "its form"
        passed_over.append(f"{row.name} would not keep the order of the scores ({held}), so it was passed over")
    return None, passed_over


def _candidates(scores: Scores, wanted: Sequence[str] | None) -> tuple[list[str], list[Candidate]]:
    if wanted is not None:
        unknown = [name for name in wanted if name not in MAPS]
        if unknown:
            raise ConfigError(f"calibration: {unknown[0]!r} is unknown; use {', '.join(MAPS)}")
        return list(dict.fromkeys(wanted)), []
    why = {name: MAPS[name].left_out(len(scores), scores.n_classes) for name in candidates_for(scores.n_classes)}
    left_out = [_out(name, reason) for name, reason in why.items() if reason is not None]
    return [name for name, reason in why.items() if reason is None], left_out


def _shortage(scores: Scores) -> str | None:
    labels = scores.known_labels
    counts = np.bincount(labels, minlength=scores.n_classes)
    unit = "rows"
    if scores.groups is not None:
        unit = "groups"
        counts = np.array(
            [len(np.unique(scores.groups[labels == index])) for index in range(scores.n_classes)], dtype=np.int64
        )
    worst = int(counts.argmin())
    if counts[worst] >= UNITS_PER_CLASS:
        return None
    return f"class {worst} has {counts[worst]} {unit}, {UNITS_PER_CLASS} are needed to compare maps"


def _held_out_loss(name: str, scores: Scores, labels: NDArray[np.int64], fold: NDArray[np.int64]) -> FloatArray:
    loss = np.empty(len(labels))
    for index in range(int(fold.max()) + 1):
        outside = np.flatnonzero(fold == index)
        fitted = fit_map(name, scores.take(fold != index))
        log_p = fitted.log_probabilities(scores.logits[outside])
        loss[outside] = -log_p[np.arange(len(outside)), labels[outside]]
    return loss


def _row(name: str, loss: FloatArray, identity: FloatArray, scores: Scores) -> Candidate:
    change = loss - identity
    return Candidate(
        name, float(loss.mean()), _standard_error(loss, scores), float(change.mean()), _standard_error(change, scores)
    )


def _standard_error(values: FloatArray, scores: Scores) -> float | None:
    """Of the mean of rows; rows of a group move together. None for a single unit."""
    excess = values - values.mean()
    if scores.groups is not None:
        _, unit = np.unique(scores.groups, return_inverse=True)
        excess = np.bincount(unit, weights=excess)
    if len(excess) < 2:
        return None
    return float(np.sqrt((excess**2).sum() * len(excess) / (len(excess) - 1)) / len(values))


def _out(name: str, note: str) -> Candidate:
    return Candidate(name, None, None, None, None, note)
