"""Which aggregator: AUGRC on val_select against the whole view alone, on scores by fits on the other folds.

An aggregator or a sequence that learned from val_select has seen the labels of the images that it scores there. A map
fitted on those scores is too sure of itself, and so is any other use of val_select afterwards. So each image is scored
by a fit on the other folds, groups whole, and the paired difference comes with its interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.calibration.binary import Platt
from stage1.calibration.folds import fold_of_rows
from stage1.calibration.selection import UNITS_PER_CLASS
from stage1.errors import ConfigError, DataError
from stage1.evaluation.comparison import compare
from stage1.evaluation.probability import Calibration
from stage1.evaluation.score_selection import msp
from stage1.evaluation.selective import augrc
from stage1.runtime.crops import ViewPolicy
from stage1.scores import Scores
from stage1.views.base import Floats, checked
from stage1.views.document import ViewsDocument
from stage1.views.registry import aggregator, check_classes, default_names, is_fitted, multiclass_names

Ints = NDArray[np.int64]

FOLDS = 10  # five leave a fifth out, and what is fitted on the rest is less like what ships (CHANGELOG, docs/VIEWS.md)


@dataclass(frozen=True, slots=True)
class Refit:
    """views: fitted on all images but these rows, int [n]."""

    rows: Ints
    views: ViewsDocument


def cross_fitted(
    labels: ArrayLike, groups: ArrayLike | None, fit: Callable[[Ints], ViewsDocument], *, folds: int = FOLDS, seed: int
) -> tuple[tuple[Refit, ...], str]:
    """(one refit for each fold, "") or ((), why there is none), one sentence.

    labels: int [N] of two classes. fit: the whole fit, on these rows alone. Fewer than 10 units of a class: no folds,
    and no map is fitted on so few either. Neither are there where a fit on the other folds cannot be had.
    """
    truth = np.asarray(labels, dtype=np.int64)
    keys = Scores(logits=np.zeros((len(truth), 2)), labels=truth, groups=groups)  # type: ignore[arg-type]
    for index in (0, 1):
        rows = np.flatnonzero(truth == index)
        units = len(rows) if keys.groups is None else len(np.unique(keys.groups[rows]))
        if units < UNITS_PER_CLASS:
            unit = "images" if keys.groups is None else "groups"
            return (), f"class {index} has {units} {unit} in val_select, folds need {UNITS_PER_CLASS}"
    fold = fold_of_rows(keys, folds, seed)
    parts = [fold == part for part in range(int(fold.max()) + 1)]
    try:
        return tuple(Refit(np.flatnonzero(part), fit(np.flatnonzero(~part))) for part in parts), ""
    except DataError as error:
        return (), f"views cannot be fitted on part of val_select ({error})"


SELECTION_FOLDS = 5
_BINS = 15


@dataclass(frozen=True, slots=True)
class Candidate:
    """One line of the comparison on val_select.

    augrc: of the aggregated score after a Platt map, both fitted on other folds (groups whole), so that a pool that is
    merely shifted is not penalised for it; raw_augrc: without the map. difference, low, high: augrc minus the
    reference's, and its paired interval; None in the reference's own line. ece_before, ece_after: of the probabilities
    without and with that map.
    """

    name: str
    augrc: float
    raw_augrc: float
    difference: float | None
    low: float | None
    high: float | None
    ece_before: float
    ece_after: float


@dataclass(frozen=True, slots=True)
class Choice:
    """name: the aggregator chosen. reference: compared with. table: reference first. reason: one sentence."""

    name: str
    reference: str
    table: tuple[Candidate, ...]
    reason: str
    n: int
    n_groups: int
    resamples: int
    seed: int

    def to_document(self) -> dict[str, Any]:
        """Plain values: chosen, reference, reason, n, n_groups, resamples, seed, table."""
        return {
            "chosen": self.name,
            "reference": self.reference,
            "reason": self.reason,
            "n": self.n,
            "n_groups": self.n_groups,
            "resamples": self.resamples,
            "seed": self.seed,
            "table": [asdict(row) for row in self.table],
        }


def choose_aggregator(
    view_logits: ArrayLike,
    labels: ArrayLike,
    groups: ArrayLike | None,
    policy: ViewPolicy,
    *,
    names: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Choice:
    """The aggregator of least AUGRC among those whose gain over the whole view is shown; else the whole view alone.

    view_logits: float [N, V, K] of val_select and nothing else; groups stay whole in folds and resamples. names: what
    is compared, None: all; with more than two classes only whole and mean are. A gain is shown where the 95 % interval
    of the paired difference excludes 0.
    Without a whole view the mean is what the others are compared with. One name alone is taken without comparison.
    Raises ConfigError for names that cannot be had, DataError for logits that do not fit.
    """
    logits = checked(view_logits)
    if logits.shape[1] != policy.count:
        raise DataError(f"view logits: {logits.shape[1]} views, the policy has {policy.count}; score with these views")
    k = logits.shape[2]
    wanted = list(dict.fromkeys(default_names() if names is None else names))
    if not wanted:
        raise ConfigError("views.aggregate: no names; give one, or auto")
    if k > 2 and tuple(wanted) == default_names():
        wanted = list(multiclass_names())
    for name in wanted:
        check_classes(name, k)
    reference = "whole" if policy.whole else "mean"
    wanted = [name for name in wanted if name != "whole" or policy.whole]
    order = [reference, *(name for name in wanted if name != reference)]
    base = Scores(logits=logits.mean(axis=1), labels=labels, groups=groups)  # type: ignore[arg-type]
    n_groups = len(base) if base.groups is None else len(np.unique(base.groups))
    if (short := _shortage(base)) is not None:
        chosen = wanted[0] if len(wanted) == 1 else reference
        return Choice(chosen, reference, (), f"{chosen}: {short}", len(base), n_groups, resamples, seed)
    fold = fold_of_rows(base, SELECTION_FOLDS, seed)
    raw = {name: _out_of_fold(name, logits, base, policy, fold) for name in order}
    mapped = {name: _mapped(scores, fold) for name, scores in raw.items()}
    table = [_candidate(name, raw[name], mapped[name], mapped[reference], reference, resamples, seed) for name in order]
    chosen, reason = _chosen(table, wanted, reference)
    return Choice(chosen, reference, tuple(table), reason, len(base), n_groups, resamples, seed)


def _shortage(scores: Scores) -> str | None:
    labels = scores.known_labels
    units = np.arange(len(scores)).astype(np.str_) if scores.groups is None else scores.groups
    counts = [len(np.unique(units[labels == index])) for index in range(scores.n_classes)]
    worst = int(np.argmin(counts))
    if counts[worst] >= UNITS_PER_CLASS:
        return None
    unit = "rows" if scores.groups is None else "groups"
    return (
        f"class {worst} has {counts[worst]} {unit} in val_select, {UNITS_PER_CLASS} are needed to compare aggregators"
    )


def _out_of_fold(name: str, logits: Floats, base: Scores, policy: ViewPolicy, fold: NDArray[np.int64]) -> Scores:
    """The aggregated scores; of one that is fitted, each row by a fit on the other folds."""
    if not is_fitted(name):
        return _with(base, aggregator(name, policy)(logits))
    made = np.empty((len(base), 2))
    for part in range(int(fold.max()) + 1):
        inside = fold != part
        fitted = aggregator(name, policy, logits[inside], base.known_labels[inside])
        made[~inside] = fitted(logits[~inside])
    return _with(base, made)


def _mapped(scores: Scores, fold: NDArray[np.int64]) -> Scores:
    """After a Platt map fitted on the other folds; more than two classes are not mapped."""
    if scores.n_classes > 2:
        return scores
    made = np.empty_like(scores.logits)
    for part in range(int(fold.max()) + 1):
        inside = fold != part
        made[~inside] = Platt.fit(scores.take(inside)).log_probabilities(scores.logits[~inside])
    return _with(scores, made)


def _with(scores: Scores, logits: Floats) -> Scores:
    return Scores(logits=logits, labels=scores.labels, groups=scores.groups)


def _candidate(
    name: str, raw: Scores, mapped: Scores, reference: Scores, reference_name: str, resamples: int, seed: int
) -> Candidate:
    difference = low = high = None
    if name != reference_name:
        row = compare(
            mapped, reference, names=(name, reference_name), metrics=("augrc",), n_resamples=resamples, seed=seed
        )["rows"][0]
        difference, low, high = row["difference"], row["low"], row["high"]
    return Candidate(name, _augrc(mapped), _augrc(raw), difference, low, high, _ece(raw), _ece(mapped))


def _augrc(scores: Scores) -> float:
    return augrc(msp(scores.logits), scores.logits.argmax(axis=1) != scores.known_labels)


def _ece(scores: Scores) -> float:
    return float(Calibration(scores.probabilities, scores.known_labels).error(np.ones(len(scores)), _BINS))


def _chosen(table: Sequence[Candidate], wanted: Sequence[str], reference: str) -> tuple[str, str]:
    if len(wanted) == 1:
        return wanted[0], f"{wanted[0]}: asked for, not chosen"
    base = next(row for row in table if row.name == reference)
    shown = [row for row in table if row.high is not None and row.high < 0]
    if not shown:
        return (
            reference,
            (
                f"{reference}: no other aggregator has an AUGRC below its {1000 * base.augrc:.2f}e-3 on val_select with"
                " an interval of the difference that excludes zero"
            ),
        )
    best = min(shown, key=lambda row: row.augrc)
    assert best.difference is not None
    assert best.low is not None
    assert best.high is not None
    return (
        best.name,
        (
            f"{best.name}: AUGRC on val_select {1000 * best.augrc:.2f}e-3, {reference} {1000 * base.augrc:.2f}e-3"
            f" (difference {1000 * best.difference:+.2f}e-3, 95 % interval {1000 * best.low:+.2f} to"
            f" {1000 * best.high:+.2f})"
        ),
    )
