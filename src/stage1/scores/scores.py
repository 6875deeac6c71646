"""The scores of a classifier on images, from logits or from probabilities.

What every certificate is made from: the torch half writes it, the numpy half reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.scores.columns import is_blank

ROLES = ("train", "val_select", "val_calib", "val_test")
Values = Literal["logits", "probabilities"]
# log of the smallest normal double: finite, and below the log of every probability that a model can print
_LOG_FLOOR = float(np.finfo(np.float64).tiny)
# What rounding does to probabilities: bfloat16 moves each by up to 2^-9 of itself, so a sum by .002 (.004 where it
# truncates).
OUTSIDE, SUM_OFF = 1e-3, 5e-3
# The sum of float32 softmax outputs is off by less; nothing is said of it.
_SUM_EXACT = 1e-5


def silent(text: str) -> None:
    """Nobody to tell."""


@dataclass(frozen=True, slots=True)
class Scores:
    """Outputs of a classifier on N images with K classes.

    logits: float [N, K], raw scores (log-probabilities will do: they are logits up to a constant per row).
    labels: int [N] in 0..K-1, or None. Class 1 is the positive class when K = 2.
    gate:   float [N] raw second score (higher = more likely right), or None.
    groups: str [N] unit of dependence (video, camera, site), or None. A row whose group is blank (empty, white space,
    None,
            NaN) is a group of its own, named by its id.
    ids:    str [N] unique sample ids (sha256 of the image bytes), or None.
    slices: name -> str [N], attributes by which claims are broken down (city, night); empty where there are none.
    extra:  name -> float [N], further signals of whether the answer is right (view spread, kNN distance), for the gate.
    Raises DataError naming the field for a wrong shape, NaN, infinity, a label outside 0..K-1, or a duplicate id.
    """

    logits: NDArray[np.float64]
    labels: NDArray[np.int64] | None = None
    gate: NDArray[np.float64] | None = None
    groups: NDArray[np.str_] | None = None
    ids: NDArray[np.str_] | None = None
    slices: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)
    extra: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        logits = _floats(self.logits, "logits", 2)
        n, k = logits.shape
        if k < 2:
            raise DataError(f"logits: {k} column(s); give one column per class (2 for a binary problem)")
        put = object.__setattr__
        put(self, "logits", logits)
        if self.labels is not None:
            put(self, "labels", _labels(self.labels, n, k))
        if self.gate is not None:
            gate = _floats(self.gate, "gate", 1)
            same_length(gate, n, "gate")
            put(self, "gate", gate)
        if self.groups is not None:
            put(self, "groups", _texts(self.groups, n, "groups"))
        if self.ids is not None:
            ids = _texts(self.ids, n, "ids")
            if len(set(ids.tolist())) < n:  # sorting a million of them takes ten times as long
                values, counts = np.unique(ids, return_counts=True)
                raise DataError(f"ids: {str(values[counts > 1][0])!r} occurs {counts.max()} times; ids must be unique")
            put(self, "ids", ids)
        if self.groups is not None:
            put(self, "groups", _own_groups(self.groups, self.ids))
        put(self, "slices", {name: _texts(values, n, f"slices.{name}") for name, values in self.slices.items()})
        put(self, "extra", {name: _floats(values, f"extra.{name}", 1) for name, values in self.extra.items()})
        for name, signal in self.extra.items():
            same_length(signal, n, f"extra.{name}")

    def __len__(self) -> int:
        return int(self.logits.shape[0])

    @property
    def n_classes(self) -> int:
        return int(self.logits.shape[1])

    @property
    def margin(self) -> NDArray[np.float64]:
        """Raw binary score s = logit of class 1 - logit of class 0, float [N]. Raises DataError where K > 2."""
        if self.n_classes != 2:
            raise DataError(f"logits: {self.n_classes} classes have no single margin; this score is for two classes")
        return self.logits[:, 1] - self.logits[:, 0]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits, float [N, K]."""
        shifted = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        return np.asarray(shifted / shifted.sum(axis=1, keepdims=True))

    @property
    def known_labels(self) -> NDArray[np.int64]:
        """The labels. Raises DataError where there are none."""
        if self.labels is None:
            raise DataError("labels: these scores have none; labels are needed here")
        return self.labels

    def take(self, rows: ArrayLike) -> Scores:
        """The rows given by an index or boolean array, in that order."""
        index = np.asarray(rows)
        if index.size == 0 and index.dtype.kind == "f":  # an empty list has no type of its own
            index = index.astype(np.int64)

        def pick(column: NDArray[Any] | None) -> Any:
            return None if column is None else column[index]

        return replace(
            self,
            logits=self.logits[index],
            labels=pick(self.labels),
            gate=pick(self.gate),
            groups=pick(self.groups),
            ids=pick(self.ids),
            slices={name: values[index] for name, values in self.slices.items()},
            extra={name: values[index] for name, values in self.extra.items()},
        )


def from_probabilities(probabilities: ArrayLike, *, say: Callable[[str], None] = silent, **fields: Any) -> Scores:
    """Scores from probabilities, [N, K] or [N] (binary: P(class 1)); logits are their logs.

    0 and 1 stay finite (log of the smallest normal double), so that saturated values tie with each other and with
    nothing else. Values up to .001 outside [0, 1] are clipped and rows whose sum is up to .005 off count as shares of
    it (rounding: float16, bfloat16, printed digits); `say` hears how many. Raises DataError naming the row beyond that.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim not in (1, 2):
        raise DataError(f"probabilities: shape {values.shape}; [N] or [N, K] expected")
    wrong = ~((values >= -OUTSIDE) & (values <= 1.0 + OUTSIDE))
    if wrong.any():
        at = tuple(np.argwhere(wrong)[0])
        raise DataError(f"probabilities: row {at[0]} is {values[at]:.6g}, not finite and in [0, 1]; for logits say so")
    outside = (values < 0) | (values > 1)
    values = np.clip(values, 0.0, 1.0)
    off = outside
    if values.ndim == 1:
        values = np.stack([1.0 - values, values], axis=1)
    elif values.size:
        gap = np.abs(values.sum(axis=1) - 1.0)
        if gap.max() > SUM_OFF:
            row = int(gap.argmax())
            raise DataError(f"probabilities: row {row} sums to {values[row].sum():.4g}, not 1; for logits say so")
        # Nothing is divided here: logits are equal up to a constant per row, and the softmax divides by the sum.
        off = outside.any(axis=1) | (gap > _SUM_EXACT)
    if count := int(off.sum()):
        say(
            f"{count} of {len(off)} rows of probabilities are off by rounding: clipped to [0, 1] and taken as shares of"
            " their sum"
        )
    return Scores(logits=np.log(np.maximum(values, _LOG_FLOOR)), **fields)


def look_like_probabilities(matrix: NDArray[np.float64]) -> bool:
    inside = bool(matrix.size) and bool(((matrix >= -OUTSIDE) & (matrix <= 1 + OUTSIDE)).all())
    return inside and (matrix.ndim != 2 or bool((np.abs(matrix.sum(axis=1) - 1.0) <= SUM_OFF).all()))


def appearance(matrix: NDArray[np.float64]) -> str:
    """Which of the two kinds the numbers look like, and what to say then."""
    if look_like_probabilities(matrix):
        rows = " and rows sum to 1" if matrix.ndim == 2 else ""
        return f"all values lie in [0, 1]{rows}: these look like probabilities; say probabilities if they are"
    if matrix.size and ((matrix >= 0) & (matrix <= 1)).all():
        return "all values lie in [0, 1], but rows do not sum to 1: these look like neither; say logits if they are"
    low, high = (float(matrix.min()), float(matrix.max())) if matrix.size else (0.0, 0.0)
    return f"values lie between {low:.4g} and {high:.4g}: these look like logits; say logits if they are"


def _floats(values: ArrayLike, name: str, ndim: int) -> NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: not numbers ({error})") from error
    if array.ndim != ndim:
        raise DataError(f"{name}: {array.ndim} dimension(s), shape {array.shape}; {ndim} expected")
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise DataError(f"{name}: row {row} is {array[row]}; NaN and infinity cannot be ranked: fix or drop these rows")
    return array


def _labels(values: ArrayLike, n: int, k: int) -> NDArray[np.int64]:
    raw = np.asarray(values)
    if raw.dtype.kind == "b":
        raw = raw.astype(np.int64)
    if raw.ndim != 1 or raw.dtype.kind not in "iuf" or (raw.dtype.kind == "f" and (raw != np.floor(raw)).any()):
        raise DataError(
            f"labels: must be whole numbers 0..{k - 1}, shape [N]; got dtype {raw.dtype}, shape {raw.shape}"
        )
    same_length(raw, n, "labels")
    array = raw.astype(np.int64)
    outside = (array < 0) | (array >= k)
    if outside.any():
        row = int(outside.argmax())
        raise DataError(f"labels: row {row} is {array[row]}, outside 0..{k - 1} (classes)")
    return array


def _texts(values: ArrayLike, n: int, name: str) -> NDArray[np.str_]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise DataError(f"{name}: shape {array.shape}; one per row expected")
    if array.dtype.kind == "O":  # text beside None or NaN, as pandas has it
        array = np.array(["" if cell is None or cell != cell else str(cell) for cell in array.tolist()], dtype=np.str_)
    same_length(array, n, name)
    return array.astype(np.str_, copy=False)


def _own_groups(groups: NDArray[np.str_], ids: NDArray[np.str_] | None) -> NDArray[np.str_]:
    """The groups, with each blank one replaced by a name that no other row has: the row's id, else its number."""
    names = groups.tolist()
    taken = set(names)
    if not (blanks := {name for name in taken if is_blank(name)}):
        return groups
    for row in [row for row, name in enumerate(names) if name in blanks]:
        own = f"row {row}" if ids is None else str(ids[row])
        while own in taken or is_blank(own):
            own = f"{own} (no group)"
        taken.add(own)
        names[row] = own
    return np.array(names, dtype=np.str_)


def same_length(array: NDArray[Any], n: int, name: str) -> None:
    """Raises DataError where `array` has not one value for each of `n` rows."""
    if len(array) != n:
        raise DataError(f"{name}: {len(array)} values for {n} rows of logits")
