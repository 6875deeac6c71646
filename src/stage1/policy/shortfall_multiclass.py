"""Why a target on K classes cannot be certified, and what that would take: arithmetic, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.policy.certificate import percent
from stage1.policy.counts import ClassExits, count_class_exits
from stage1.policy.power import MOST_ROWS, SURE, Pool, needed_units
from stage1.policy.shortfall import realistic
from stage1.policy.target import Request, passing_targets, settable
from stage1.risk import binomial_pvalue, binomial_upper, minimum_samples
from stage1.scores import Scores
from stage1.scores.confidence import confidence

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """Labelled units as the tests see them: confidence float [N], answer and label int [N]."""

    confidence: Floats
    answer: NDArray[np.int64]
    labels: NDArray[np.int64]

    @classmethod
    def of(cls, scores: Scores, confidence_score: str) -> Sample:
        """Of scores with labels. Raises DataError where there are none."""
        answer = scores.logits.argmax(axis=1).astype(np.int64)
        return cls(confidence(confidence_score, scores.logits), answer, scores.known_labels)

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: NDArray[np.int64]) -> Sample:
        """The rows given by an index array."""
        return Sample(self.confidence[rows], self.answer[rows], self.labels[rows])

    def counts(self, thresholds: Floats) -> ClassExits:
        """Exits under thresholds float [T, K]; see `count_class_exits`."""
        return count_class_exits(self.confidence, self.answer, self.labels, thresholds)


def shortfall(
    sample: Sample,
    at: Floats | None,
    request: Request,
    delta: float,
    unit: str,
    select: Sample,
    seed: int,
    passes: Callable[[int], Callable[[Sample], bool]],
    again: Callable[[Request], Mapping[str, float] | None],
) -> tuple[str, str]:
    """(reason, needed) where nothing can be certified. again: as `passing_targets` takes it, on the same sample.

    at: float [K], the thresholds that failed; None: val_select suggests none. passes(n): whether a sample of n units
    certifies, as a function of the sample.
    """
    if at is None:
        least = max(minimum_samples(target, delta) for target in request.targets.values())
        reason = (
            f"On val_select no thresholds are found under which {' and '.join(request.targets)} could be certified with"
            f" {len(sample)} calibration {unit}s ({least} counted {unit}s are needed with 0 errors)."
        )
        need = f"more calibration {unit}s, better scores, or larger targets"
    else:
        reason, need = _failed(sample, at, request, delta, unit)
    targets = passing_targets(request, again)
    if targets is not None:
        need += f", or {settable(targets)}, which these {unit}s certify"
    enough = simulated_need(sample, seed, passes)
    return reason, f"{realistic(enough, len(sample), unit)}{need}."


def bounds_above(sample: Sample, at: Floats, request: Request, delta: float) -> dict[str, float]:
    """Of the risks that fail at thresholds float [K]: the exact bound that is reached there."""
    exits = sample.counts(at[None, :])
    found = {}
    for name, target in request.targets.items():
        errors, n = (int(column[0]) for column in exits.counts(name, request.classes))
        if float(binomial_pvalue(errors, n, target)) > delta:
            found[name] = float(binomial_upper(errors, n, delta))
    return found


def _failed(sample: Sample, at: Floats, request: Request, delta: float, unit: str) -> tuple[str, str]:
    exits = sample.counts(at[None, :])
    failed = []
    for name, bound in bounds_above(sample, at, request, delta).items():
        target = request.targets[name]
        errors, n = (int(column[0]) for column in exits.counts(name, request.classes))
        least = minimum_samples(target, delta, errors)
        failed.append(
            f"{name} <= {target:g}: {errors} of {n} {unit}s wrong there, exact bound {bound:.4f}"
            + (f" ({least} counted {unit}s are needed with {errors} errors)" if n < least else "")
        )
    if failed:
        return (
            f"Already the first thresholds to be tested fail at {percent(request.confidence)}: {'; '.join(failed)}.",
            f"better scores or more calibration {unit}s",
        )
    asked = [f"coverage >= {request.coverage:g}"] if request.coverage is not None else []
    asked += [f"class_coverage.{name} >= {floor:g}" for name, floor in request.class_coverage.items()]
    if not asked:
        return (
            f"No calibration {unit} exits at the thresholds that val_select suggests.",
            "scores that separate the classes, or larger targets",
        )
    seen = float(exits.exits[0]) / max(len(sample), 1)
    return (
        (
            f"The risks hold up to a coverage of {percent(round(seen, 3))}; {' and '.join(asked)} is not reached with"
            f" confidence {percent(request.confidence)}."
        ),
        "better scores, larger risks, or a lower floor",
    )


def simulated_need(sample: Sample, seed: int, passes: Callable[[int], Callable[[Sample], bool]]) -> int | None:
    """Units of val_calib, in all, with which SURE of the draws certify the whole target (policy/power.py).

    The path is the one that val_select fixed, so val_select flatters it: drawn is from the present units of val_calib.
    None where no number up to 64 times the present one does.
    """
    present, pool = len(sample), Pool(len(sample), guess=True)
    certifies = passes(8 * max(present, 1))

    def attempt(_: int, size: int, rng: np.random.Generator) -> float | None:
        return 0.0 if certifies(sample.take(pool.draw(size, rng)[0])) else None

    if not present:
        return None
    return needed_units(present, attempt, success=SURE, most=MOST_ROWS, seed=seed)
