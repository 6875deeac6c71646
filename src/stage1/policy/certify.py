"""From a score and a request to thresholds and their certificate; every policy that has two thresholds uses this."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from stage1.files import digest_bytes, digest_ids
from stage1.policy.certificate import (
    VOID_IF,
    Certificate,
    Coverage,
    RiskBound,
    assumptions,
    certified_statement,
    refused_statement,
)
from stage1.policy.counts import class_coverage_lower, count_exits, coverage_lower, error_upper
from stage1.policy.engine import PATH_METHOD, Choice, choose
from stage1.policy.request import Request
from stage1.policy.shortfall import shortfall
from stage1.policy.softmax import Thresholds
from stage1.policy.units import choose_unit, clustered, one_per_group
from stage1.risk import binomial_upper, minimum_samples
from stage1.risk.planning import SIDES
from stage1.scores import Scores

Floats = NDArray[np.float64]
ScoreOf = Callable[[Scores], Floats]


def certify(
    policy: str,
    score_of: ScoreOf,
    request: Request,
    *,
    calib: Scores,
    select: Scores | None,
    unit: str = "auto",
    assume_iid: bool = False,
    seed: int = 0,
    attempt: int = 1,
    uncertified_because: str | None = None,
) -> tuple[Thresholds, Certificate]:
    """Choose thresholds on score_of(scores) for `request` and certify them on the units of `calib`.

    policy: its name. The score may be any function of one image's outputs that is fixed before calib's labels are seen:
    exit as 0 iff it lies below lo, as 1 iff above hi. Where nothing can be certified, both thresholds are None and the
    certificate says why. Raises ConfigError (unit, select), DataError (labels missing).
    """
    unit = choose_unit(calib, unit, assume_iid)
    counted = calib.take(one_per_group(calib, seed)) if unit == "group" else calib
    score, labels = score_of(counted), counted.known_labels
    select_score = score_of(select) if select is not None and select.labels is not None and len(select) else None
    select_labels = select.labels if select is not None and select_score is not None else None
    choice = choose(score, labels, request, select_score, select_labels)
    thresholds = choice.thresholds if uncertified_because is None else Thresholds(None, None)
    exits = np.logical_or(*thresholds.exits(score))
    certified = bool(exits.any())
    if not certified:
        thresholds = Thresholds(None, None)
    bounds = measured_risks(thresholds, score, labels, request, choice.delta, certified)
    assert not certified or all(bound.holds for bound in bounds.values()), (
        "a chosen threshold whose exact bound exceeds its target"
    )
    overall, per_class = _coverage(thresholds, score, labels, request, choice, certified)
    reason: str | None = uncertified_because
    needed: str | None = None
    if uncertified_because is None:
        reason, needed = shortfall(
            bounds, score, labels, request, choice, certified, unit, select_score, select_labels, seed
        )
    iid_assumed = assume_iid and unit == "image" and clustered(calib)
    statement = (
        certified_statement(
            request,
            overall.value,
            unit,
            assume_iid=iid_assumed,
            attempt=attempt,
            closed=_closed_side(thresholds, request, choice),
        )
        if certified
        else refused_statement(request, reason or "")
    )
    certificate = Certificate(
        certified=certified, statement=statement, policy=policy, method=choice.method, confidence=request.confidence,
        delta=1.0 - request.confidence, unit=unit, assume_iid=iid_assumed, risks=bounds, coverage=overall, per_class=per_class,
        classes=tuple(request.classes), n_images=len(calib), n_units=len(counted), calib_digest=calibration_digest(calib), seed=seed,
        attempt=attempt, target_prior=request.target_prior, assumptions=assumptions(unit, iid_assumed, request), void_if=VOID_IF,
        reason=reason, needed=needed,
    )  # fmt: skip
    return thresholds, certificate


def measured_risks(
    thresholds: Thresholds, score: Floats, labels: NDArray[np.int64], request: Request, delta: float, certified: bool
) -> dict[str, RiskBound]:
    """Count errors and trials of each risk at these thresholds, with the exact upper bound at 1 - delta.

    Counted anew from the decisions, not taken from the rule that chose the thresholds: the certificate rests on this.
    certified: images exit, so that a side without a threshold is a claim (never given), not a failure.
    """
    exits = count_exits(score[labels == 0], score[labels == 1], *_columns(thresholds))
    bounds = {}
    for name, target in request.targets.items():
        errors, n = (int(column[0]) for column in exits.counts(name))
        closed = {"positive": thresholds.lo is None, "negative": thresholds.hi is None}
        never = certified and name in SIDES and closed[SIDES[name][0]]
        if never:
            bound = 0.0
        elif name == "error" and request.target_prior is not None:
            bound = float(error_upper(exits, request.target_prior, delta)[0])
        else:
            bound = float(binomial_upper(errors, n, delta))
        bounds[name] = RiskBound(
            name=name, target=target, observed=errors / n if n else None, bound=bound, n=n, errors=errors, delta=delta,
            needed=minimum_samples(target, delta), by_construction=never,
        )  # fmt: skip
    return bounds


def calibration_digest(calib: Scores) -> str:
    """Which images were used: sha256 over the sorted ids, or over labels and logits where there are no ids."""
    if calib.ids is not None:
        return digest_ids(calib.ids.tolist())
    return digest_bytes(calib.known_labels.tobytes() + calib.logits.tobytes())


def _columns(thresholds: Thresholds) -> tuple[Floats, Floats]:
    lo = -np.inf if thresholds.lo is None else thresholds.lo
    hi = np.inf if thresholds.hi is None else thresholds.hi
    return np.array([lo]), np.array([hi])


def _coverage(
    thresholds: Thresholds, score: Floats, labels: NDArray[np.int64], request: Request, choice: Choice, certified: bool
) -> tuple[Coverage, dict[str, Coverage]]:
    exits = np.logical_or(*thresholds.exits(score))
    counts = count_exits(score[labels == 0], score[labels == 1], *_columns(thresholds))

    def share(rows: NDArray[np.bool_], floor: float | None, bound: Floats) -> Coverage:
        inside = exits[rows]
        return Coverage(
            value=float(inside.mean()) if len(inside) else 0.0, n=len(inside), exits=int(inside.sum()), floor=floor,
            bound=float(bound[0]) if floor is not None and certified else None,
        )  # fmt: skip

    everyone = np.ones(len(labels), dtype=np.bool_)
    overall = share(everyone, request.coverage, coverage_lower(counts, request.target_prior, choice.floor_delta))
    per_class = {
        name: share(
            labels == index, request.class_coverage.get(name), class_coverage_lower(counts, index, choice.floor_delta)
        )
        for index, name in enumerate(request.classes)
    }
    return overall, per_class


def _closed_side(thresholds: Thresholds, request: Request, choice: Choice) -> str | None:
    """The class as which nothing exits although the target constrains both sides, else None."""
    if (request.one_sided and choice.method != PATH_METHOD) or (
        thresholds.lo is not None and thresholds.hi is not None
    ):
        return None
    return request.classes[0] if thresholds.lo is None else request.classes[1]
