"""Why a target, or one side of it, cannot be certified, and what that would take: arithmetic, in words."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from stage1.policy.certificate import RiskBound, images, percent
from stage1.policy.counts import count_exits, error_upper
from stage1.policy.engine import PATH_METHOD, Choice, path_from, rule
from stage1.policy.group_means import MEANS_METHOD, Frames, choose_by_means, risk_claims, upper_bound
from stage1.policy.request import Request
from stage1.policy.softmax import Thresholds
from stage1.risk import binomial_upper
from stage1.risk.groups import GroupLayout
from stage1.risk.planning import SIDES
from stage1.scores import Scores

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

_DRAWS = 20
_DOUBLINGS = 6
_SUCCESS = 0.8
_MOST_ROWS = 20_000  # betting looks at every image of every draw


def shortfall(
    bounds: Mapping[str, RiskBound],
    sample: Sample,
    request: Request,
    choice: Choice,
    certified: bool,
    unit: str,
    select: Scores | None,
    select_score: Floats | None,
    seed: int,
) -> tuple[str | None, str | None]:
    """(reason, needed) where nothing, or one side, can exit; (None, None) where the whole target is certified.

    sample: score float [N] and labels int [N] of what was counted; len() is the number of units.
    """
    reason: str | None
    need: str | None
    if choice.method in (PATH_METHOD, MEANS_METHOD):
        if certified:
            return None, None
        reason, need = _path_failed(sample, request, choice, unit)
    else:
        reason, need = _too_few(bounds, sample.labels, request, certified, unit)
        if reason is None and not certified:
            reason = f"No calibration {unit} exits at the thresholds that the target allows: the scores are tied or do not separate the classes."
            need = "scores that separate the classes, or larger targets"
    if reason is None or need is None:
        return None, None
    enough = simulated_need(len(sample), request, select, select_score, seed, unit)
    if enough is not None:
        name = "group" if unit == "group_mean" else unit
        need += f"; by simulation from val_select, {enough} {name}s of the same kind certify it with probability {_SUCCESS:g}"
    return reason, f"{need}."


class Sample(Protocol):
    """What was counted (certify.Units, group_means.Frames)."""

    @property
    def score(self) -> Floats: ...

    @property
    def labels(self) -> Labels: ...

    def __len__(self) -> int: ...


def _too_few(
    bounds: Mapping[str, RiskBound], labels: Labels, request: Request, certified: bool, unit: str
) -> tuple[str | None, str | None]:
    reasons, needs = [], []
    # Where the class that sets the first threshold is too small, the exits of the other class say nothing.
    first_short = any(name in SIDES and not SIDES[name][1] and bound.n < bound.needed for name, bound in bounds.items())
    for name, bound in bounds.items():
        side, only_exits = SIDES[name]
        index = 1 if side == "positive" else 0
        class_name = request.classes[index]
        units = images(class_name, unit)
        members = int((labels == index).sum())
        goal = f"{name} <= {bound.target:g} at {percent(request.confidence)}"
        if bound.n >= bound.needed:
            continue
        if not only_exits or (request.one_sided and not certified):
            reasons.append(f"{members} {units} cannot certify {goal} ({bound.needed} needed with 0 errors).")
            nearest = float(binomial_upper(0, members, bound.delta)) if members else 1.0
            needs.append(
                f"{bound.needed - members} more labelled {units} in val_calib, or risks.{name} >= {_up(nearest)}, "
                f"the least that {members} can certify"
            )
        elif not first_short:
            share = bound.n / members if members else 0.0
            reasons.append(
                f"{bound.n} of {members} {units} exit as '{class_name}'; {goal} takes {bound.needed} with 0 errors."
            )
            needs.append(
                f"about {ceil(bound.needed / share)} {units} in val_calib at this exit share ({percent(round(share, 3))}), "
                f"better scores, or risks.{name} >= {_up(float(binomial_upper(0, bound.n, bound.delta)))}"
                if share
                else f"scores that put {units} beyond the threshold, or larger targets"
            )
    return (" ".join(reasons), "; ".join(needs)) if reasons else (None, None)


def _path_failed(sample: Sample, request: Request, choice: Choice, unit: str) -> tuple[str, str]:
    """Which risk failed where testing began, by how much; the nearest level is what was reached there."""
    tried = choice.tried or Thresholds(None, None)
    score, labels = sample.score, sample.labels
    lo = np.array([-np.inf if tried.lo is None else tried.lo])
    hi = np.array([np.inf if tried.hi is None else tried.hi])
    exits = count_exits(score[labels == 0], score[labels == 1], lo, hi)
    claims = risk_claims(request)
    counted = "image" if unit == "group_mean" else unit
    kind = "bound" if unit == "group_mean" else "exact bound"
    failed, nearest = [], []
    for name, target in request.targets.items():
        errors, n = (int(column[0]) for column in exits.counts(name))
        if isinstance(sample, Frames):
            bound = upper_bound(sample, claims[name], tried, choice.delta)
        elif name == "error" and request.target_prior is not None:
            bound = float(error_upper(exits, request.target_prior, choice.delta)[0])
        else:
            bound = float(binomial_upper(errors, n, choice.delta))
        if bound > target:
            failed.append(f"{name} <= {target:g}: {errors} of {n} {counted}s wrong there, {kind} {bound:.4f}")
            nearest.append(f"risks.{name} >= {_up(bound)}")
    if not failed:
        asked = [f"coverage >= {request.coverage:g}"] if request.coverage is not None else []
        asked += [f"class_coverage.{name} >= {floor:g}" for name, floor in request.class_coverage.items()]
        seen = int(exits.exits[0]) / max(len(score), 1)
        return (
            f"The risks hold up to a coverage of {percent(round(seen, 3))}; {' and '.join(asked)} is not reached with confidence {percent(request.confidence)}.",
            "better scores, larger risks, or a lower floor",
        )
    more = "groups" if unit == "group_mean" else f"{unit}s"
    return (
        f"Already the first thresholds to be tested fail at {percent(request.confidence)}: {'; '.join(failed)}.",
        f"better scores, more calibration {more}, or {' and '.join(nearest)}",
    )


def simulated_need(
    n: int, request: Request, select: Scores | None, select_score: Floats | None, seed: int, unit: str = "image"
) -> int | None:
    """Smallest n, doubling from the one at hand, at which val_select as the population certifies in 80 % of the draws.

    n counts units (unit: image, group or group_mean; groups are drawn whole). None where val_select is missing, lacks a
    class, or no n up to 64 times the present one is enough. A hint, not a promise: val_select is itself a sample.
    """
    if select is None or select.labels is None or select_score is None:
        return None
    labels = select.labels
    if min((labels == 0).sum(), (labels == 1).sum()) < 10:
        return None
    rng = np.random.default_rng(seed)
    size = max(n, 1)
    if unit == "image" or select.groups is None:
        fit = rule(request, 8 * size, select_score, labels)

        def draw(size: int) -> Thresholds:
            rows = rng.integers(0, len(labels), size)
            return fit(select_score[rows], labels[rows]).thresholds
    else:
        names, inverse = np.unique(select.groups, return_inverse=True)
        members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
        if unit == "group":
            fit = rule(request, 8 * size, select_score, labels)

            def draw(size: int) -> Thresholds:
                rows = np.array([rng.choice(members[pick]) for pick in rng.integers(0, len(names), size)])
                return fit(select_score[rows], labels[rows]).thresholds
        else:
            path = path_from(request, 8 * size, select_score, labels)

            def draw(size: int) -> Thresholds:
                picked = [members[pick] for pick in rng.integers(0, len(names), size)]
                rows = np.concatenate(picked)
                sizes = np.array([len(part) for part in picked])
                starts = np.cumsum(sizes) - sizes
                frames = Frames(select_score[rows], labels[rows], GroupLayout(np.arange(len(rows)), starts, sizes))
                return choose_by_means(frames, request, path).thresholds

    rows_each = 1.0 if unit != "group_mean" else len(labels) / max(len(np.unique(select.groups)), 1)  # type: ignore[arg-type]
    for _ in range(_DOUBLINGS):
        size *= 2
        if size * rows_each > _MOST_ROWS and unit == "group_mean":
            return None
        done = 0
        for _ in range(_DRAWS):
            chosen = draw(size)
            sides = (chosen.lo is not None) + (chosen.hi is not None)
            done += sides == 2 or (request.one_sided and sides == 1)
        if done >= _SUCCESS * _DRAWS:
            return size
    return None


def _up(level: float) -> str:
    """A level rounded up to three digits: rounding down would name one that fails."""
    return f"{ceil(level * 1000) / 1000:g}" if level < 1 else "1"
