"""From a score and a request to thresholds and their certificate; every policy that has two thresholds uses this."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.policy.certificate import (
    VOID_IF,
    Certificate,
    Coverage,
    RiskBound,
    assumptions,
    certified_statement,
    percent,
    refused_statement,
)
from stage1.policy.closed_form import Thresholds
from stage1.policy.counts import certifies, class_coverage_lower, count_exits, coverage_lower, error_upper
from stage1.policy.group_means import (
    MEANS_METHOD,
    Claim,
    Frames,
    better_unit,
    choose_by_means,
    estimate,
    exit_claim,
    furthest,
    means_path,
    minimum_groups,
    risk_claims,
    upper_bound,
)
from stage1.policy.joint import JOINT, joint_coverage, joint_risks
from stage1.policy.shortfall import shortfall
from stage1.policy.slices import SliceClaim, SliceCounts, slice_claims, slice_rows, slices_sentence
from stage1.policy.target import Request
from stage1.policy.threshold_choice import PATH_METHOD, Choice, choose
from stage1.policy.units import Counting, choose_unit, clustered, one_per_group
from stage1.policy.unlimited import shut_by_target, unlimited
from stage1.risk import binomial_upper, minimum_samples
from stage1.risk.risks import RISKS
from stage1.scores import Scores
from stage1.storage.files import digest_bytes, digest_ids

SHUT_ON_SELECT = "no threshold on that side is expected, from val_select, to keep the risks."

Floats = NDArray[np.float64]
ScoreOf = Callable[[Scores], Floats]


def certify(
    policy: str,
    score_of: ScoreOf,
    request: Request,
    *,
    calib: Scores,
    select: Scores | None,
    counting: Counting,
) -> tuple[Thresholds, Certificate]:
    """Choose thresholds on score_of(scores) for `request` and certify them on the units of `calib`.

    policy: its name. The score may be any function of one image's outputs that is fixed before calib's labels are seen:
    exit as 0 iff it lies below lo, as 1 iff above hi. counting.unit: auto takes, where groups repeat, one image of each
    group or group means, whichever promises more on val_select.
    Where nothing can be certified, both thresholds are None and the certificate says why.
    Raises ConfigError (unit, select, slices), DataError (labels missing).
    """
    unit, assume_iid, seed = counting.unit, counting.assume_iid, counting.seed
    uncertified_because, slices = counting.uncertified_because, counting.slices
    resolved = choose_unit(calib, unit, assume_iid)
    select_score = score_of(select) if select is not None and select.labels is not None and len(select) else None
    select_labels = select.labels if select is not None and select_score is not None else None
    means = None
    if resolved != "image" and select is not None and select_score is not None:
        means = means_path(select, select_score, calib, request)
        if resolved == "group" and unit == "auto":
            resolved = better_unit(select, select_score, request, len(np.unique(calib.groups)), means, seed)  # type: ignore[arg-type]
    counted = calib.take(one_per_group(calib, seed)) if resolved == "group" else calib
    score, labels = score_of(counted), counted.known_labels
    sample: Frames | Units
    if resolved == "group_mean":
        sample = Frames.of(score, counted, seed)
        choice = choose_by_means(sample, request, means)
    else:
        sample = Units(score, labels)
        choice = choose(score, labels, request, select_score, select_labels, along_path=bool(slices))
    thresholds = choice.thresholds if uncertified_because is None else Thresholds(None, None)
    certified = bool(np.logical_or(*thresholds.exits(score)).any())
    if not certified:
        thresholds = Thresholds(None, None)
    bounds = measured_risks(thresholds, sample, request, choice.delta, certified)
    assert not certified or all(bound.holds for bound in bounds.values()), (
        "a chosen threshold whose exact bound exceeds its target"
    )
    if certified and choice.union_null:
        never_wrong = frozenset(name for name, bound in bounds.items() if bound.by_construction)
        bounds = joint_risks(bounds, at_end=choice.at_end, never=never_wrong)
    overall, per_class = _coverage(thresholds, sample, request, choice, certified)
    claims = _slice_claims(slices, counted, sample, request, choice) if slices and certified else ()
    reason: str | None = uncertified_because
    needed: str | None = None
    if uncertified_because is None:
        reason, needed = shortfall(bounds, sample, request, choice, certified, resolved, select, select_score, seed)
    iid_assumed = assume_iid and resolved == "image" and clustered(calib)
    closed = _closed_side(thresholds, request, choice)
    never = tuple(
        name for name, cut in zip(request.classes, (thresholds.lo, thresholds.hi), strict=True) if cut is None
    )
    without_limit = unlimited(request.targets, request.classes, never) if certified else ()
    statement = (
        certified_statement(
            request,
            overall.value,
            resolved,
            assume_iid=iid_assumed,
            attempt=counting.attempt,
            closed=closed,
            closed_because=reason or SHUT_ON_SELECT,
            open_ends=(*shut_by_target(never, closed), *without_limit),
        )
        + slices_sentence(claims, request.confidence, percent)
        if certified
        else refused_statement(request, reason or "")
    )
    certificate = Certificate(
        certified=certified,
        statement=statement,
        policy=policy,
        method=choice.method,
        confidence=request.confidence,
        delta=1.0 - request.confidence,
        unit=resolved,
        assume_iid=iid_assumed,
        risks=bounds,
        coverage=overall,
        per_class=per_class,
        classes=tuple(request.classes),
        n_images=len(calib),
        n_units=len(sample),
        calib_digest=calibration_digest(calib),
        seed=seed,
        attempt=counting.attempt,
        target_prior=request.target_prior,
        assumptions=assumptions(resolved, iid_assumed, request),
        void_if=VOID_IF,
        reason=reason,
        needed=needed,
        slices=claims,
        slices_asked=tuple(slices),
        never_answered=never,
        unlimited=without_limit,
        against_argmax=request.against_argmax,
        boundary=None if request.boundary is None else (request.boundary.lo, request.boundary.hi),
        bounds=JOINT,
    )
    return thresholds, certificate


@dataclass(frozen=True, slots=True)
class Units:
    """Independent counted units: images, or one image of each group. score: float [N]; labels: int [N]."""

    score: Floats
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.score)


def measured_risks(
    thresholds: Thresholds, sample: Frames | Units, request: Request, delta: float, certified: bool
) -> dict[str, RiskBound]:
    """Count errors and trials of each risk at these thresholds, with its own upper bound at 1 - delta.

    Counted anew from the decisions, not taken from the rule that chose the thresholds: the certificate rests on this.
    certified: images exit, so that a side without a threshold is a claim (never given), not a failure. Group means: the
    counts are of images, observed and bound of a random image of a random group.
    """
    labels = sample.labels
    exits = count_exits(sample.score[labels == 0], sample.score[labels == 1], *_columns(thresholds))
    closed = {"positive": thresholds.lo is None, "negative": thresholds.hi is None}
    claims = risk_claims(request)
    bounds = {}
    for name, target in request.targets.items():
        errors, n = (int(column[0]) for column in exits.counts(name))
        observed = errors / n if n else None
        needed = minimum_samples(target, delta)
        never = certified and closed.get(RISKS[name].side, False)
        if isinstance(sample, Frames):
            observed, needed = estimate(sample, claims[name], thresholds), minimum_groups(target, delta)
        if never:
            bound = 0.0
        elif isinstance(sample, Frames):
            bound = upper_bound(sample, claims[name], thresholds, delta)
        elif name == "error" and request.target_prior is not None:
            bound = float(error_upper(exits, request.target_prior, delta)[0])
        else:
            bound = float(binomial_upper(errors, n, delta))
        bounds[name] = RiskBound(
            name=name,
            target=target,
            observed=observed,
            bound=bound,
            n=n,
            errors=errors,
            delta=delta,
            needed=needed,
            by_construction=never,
            alone=bound,
        )
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
    thresholds: Thresholds, sample: Frames | Units, request: Request, choice: Choice, certified: bool
) -> tuple[Coverage, dict[str, Coverage]]:
    labels, delta = sample.labels, choice.floor_delta
    exits = np.logical_or(*thresholds.exits(sample.score))
    counts = count_exits(sample.score[labels == 0], sample.score[labels == 1], *_columns(thresholds))
    overall = lambda: float(coverage_lower(counts, request.target_prior, delta)[0])  # noqa: E731

    def share(rows: NDArray[np.bool_], floor: float | None, of_class: int | None) -> Coverage:
        inside = exits[rows]
        value = float(inside.mean()) if len(inside) else 0.0
        bound: float | None = None
        if isinstance(sample, Frames):
            claim = exit_claim(of_class, floor)
            deferred = estimate(sample, claim, thresholds)
            value = 0.0 if deferred is None else 1.0 - deferred
            if floor is not None and certified:
                bound = 1.0 - upper_bound(sample, claim, thresholds, delta)
        elif floor is not None and certified:
            bound = overall() if of_class is None else float(class_coverage_lower(counts, of_class, delta)[0])
        return Coverage(value=value, n=len(inside), exits=int(inside.sum()), floor=floor, bound=bound, alone=bound)

    everyone = np.ones(len(labels), dtype=np.bool_)
    per_class = {
        name: share(labels == index, request.class_coverage.get(name), index)
        for index, name in enumerate(request.classes)
    }
    return joint_coverage(share(everyone, request.coverage, None), per_class, at_end=choice.at_end)


def _slice_claims(
    slices: Sequence[str], counted: Scores, sample: Frames | Units, request: Request, choice: Choice
) -> tuple[SliceClaim, ...]:
    """The same risks in every slice, each walking the path up to the chosen place on its own units."""
    path, place = choice.path, choice.place
    assert path is not None, "slices are tested along a path"
    assert place is not None, "thresholds that were chosen have a place"
    targets, claims = request.targets, risk_claims(request)
    walked = range(path.start, place + 1)

    def inside(claim: Claim, rows: NDArray[np.bool_]) -> Claim:
        def within(labels: Any, negative: Any, positive: Any) -> Any:
            wrong, tried = claim.rows(labels, negative, positive)
            return wrong & rows[:, None], (
                np.broadcast_to(rows[:, None], wrong.shape) if tried is None else tried & rows[:, None]
            )

        return Claim(claim.target, within)

    def test(rows: NDArray[np.bool_], delta: float) -> bool:
        if isinstance(sample, Frames):
            within = [inside(claim, rows) for claim in claims.values()]
            return furthest(sample, within, path, delta, walked) == place
        score, labels = sample.score[rows], sample.labels[rows]
        exits = count_exits(
            score[labels == 0], score[labels == 1], path.lo[walked.start : place + 1], path.hi[walked.start : place + 1]
        )
        return bool(certifies(exits, targets, delta, request.target_prior).all())

    def measure(rows: NDArray[np.bool_], delta: float, held: bool) -> dict[str, SliceCounts]:
        score, labels = sample.score[rows], sample.labels[rows]
        exits = count_exits(score[labels == 0], score[labels == 1], *_columns(choice.thresholds))
        found = {}
        for name, target in targets.items():
            errors, n = (int(column[0]) for column in exits.counts(name))
            observed: float | None = errors / n if n else None
            if isinstance(sample, Frames):
                within = inside(claims[name], rows)
                observed, bound = (
                    estimate(sample, within, choice.thresholds),
                    upper_bound(sample, within, choice.thresholds, delta),
                )
            elif name == "error" and request.target_prior is not None:
                bound = float(error_upper(exits, request.target_prior, delta)[0])
            else:
                bound = float(binomial_upper(errors, n, delta))
            found[name] = SliceCounts(target, observed, bound if held else 1.0, n, errors, bound)
        return joint_risks(found, at_end=choice.at_end) if held else found

    return slice_claims(slice_rows(counted, slices), 1.0 - request.confidence, test, measure)


def _closed_side(thresholds: Thresholds, request: Request, choice: Choice) -> str | None:
    """The class as which nothing exits although the target constrains both sides, else None."""
    if (request.one_sided and choice.method not in (PATH_METHOD, MEANS_METHOD)) or (
        thresholds.lo is not None and thresholds.hi is not None
    ):
        return None
    return request.classes[0] if thresholds.lo is None else request.classes[1]
