"""Why a target, or one side of it, cannot be certified, and what that would take: arithmetic, in words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil

import numpy as np
from numpy.typing import NDArray

from stage1.policy.certificate import RiskBound, images, percent
from stage1.policy.closed_form import METHODS, Thresholds
from stage1.policy.counts import count_exits, observed_risk, risk_upper
from stage1.policy.group_means import GROUP_METHODS, Frames, risk_claims, upper_bound
from stage1.policy.power import IN_WORDS
from stage1.policy.simulated_need import Sample, simulated_need
from stage1.policy.target import Request, passing_targets, rounded_up, settable
from stage1.policy.threshold_choice import PATH_METHOD, Choice, choose
from stage1.policy.units import ALL_IMAGES
from stage1.risk import binomial_upper
from stage1.risk.risks import RISKS
from stage1.scores import Scores

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]


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
    if choice.method in (PATH_METHOD, *GROUP_METHODS):
        if certified:
            return None, None
        again = _tested_again(sample, request, select, select_score)
        reason, need = _path_failed(sample, request, choice, unit, again)
    else:
        reason, need = _too_few(bounds, sample, request, certified, unit)
        if reason is None and not certified:
            reason = (
                f"No calibration {unit} exits at the thresholds that the target allows: the scores are tied or do not"
                " separate the classes."
            )
            need = "scores that separate the classes, or larger targets"
    if reason is None or need is None:
        return None, None
    enough = simulated_need(sample, request, select, select_score, seed, unit)
    lead = realistic(enough, len(sample), "group" if unit in ALL_IMAGES else unit)
    least = "at the least " if lead and choice.method not in (PATH_METHOD, *GROUP_METHODS) else ""
    return reason, f"{lead}{least}{need}."


def realistic(enough: int | None, present: int, unit: str) -> str:
    """What it really takes, before what arithmetic allows at best; "" where simulation found no number."""
    if enough is None:
        return ""
    return (
        f"about {enough} calibration {unit}s of the same kind instead of {present}: {IN_WORDS} such samples they"
        " certify it (simulated from the labelled ones, themselves a sample); else "
    )


def _too_few(
    bounds: Mapping[str, RiskBound], sample: Sample, request: Request, certified: bool, unit: str
) -> tuple[str | None, str | None]:
    reasons, needs = [], []
    labels = sample.labels
    # Where the class that sets the first threshold is too small, the exits of the other class say nothing.
    first_short = any(RISKS[name].among == "members" and bound.n < bound.needed for name, bound in bounds.items())
    for name, bound in bounds.items():
        only_exits = RISKS[name].among == "exits"
        index = 1 if RISKS[name].side == "positive" else 0
        class_name = request.classes[index]
        units = images(class_name, unit)
        members = int((labels == index).sum())
        goal = f"{name} <= {bound.target:g} at {percent(request.confidence)}"
        if bound.n >= bound.needed:
            continue
        exits, counted = bound.n, members
        walked = only_exits and request.one_sided and not certified and request.boundary is not None
        if walked and request.boundary is not None:
            # Only images that their probability favours can exit; with no threshold none counts as an exit.
            favoured = sample.score > request.boundary.hi if index else sample.score < request.boundary.lo
            counted = int((favoured & (labels == index)).sum())
        if walked and members >= bound.needed:
            exits = counted
        elif not only_exits or (request.one_sided and not certified):
            reasons.append(f"{members} {units} cannot certify {goal} ({bound.needed} needed with 0 errors).")
            nearest = float(binomial_upper(0, counted, bound.delta)) if counted else 1.0
            more = f"{bound.needed - members} more labelled {units} in val_calib"
            least = rounded_up(nearest)
            # A target of 1 is none: with no image of the class there is nothing to lower it to.
            needs.append(
                more if least >= 1 else f"{more}, or risks.{name}={least:g}, the least that {counted} can certify"
            )
            continue
        if not first_short:
            share = exits / members if members else 0.0
            reasons.append(
                f"{exits} of {members} {units} exit as '{class_name}'; {goal} takes {bound.needed} with 0 errors."
            )
            needs.append(
                f"about {ceil(bound.needed / share)} {units} in val_calib at this exit share"
                f" ({percent(round(share, 3))}), better scores, or"
                f" risks.{name}={rounded_up(float(binomial_upper(0, exits, bound.delta))):g}"
                if share
                else f"scores that put {units} beyond the threshold, or larger targets"
            )
    return (" ".join(reasons), "; ".join(needs)) if reasons else (None, None)


Failing = Callable[[Request], Mapping[str, float] | None]


def _tested_again(
    sample: Sample, request: Request, select: Scores | None, select_score: Floats | None
) -> Failing | None:
    """Risks that another request fails on the same units, with bounds; None where unknown (group means)."""
    if isinstance(sample, Frames) or select is None or select.labels is None or select_score is None:
        return None
    score, labels, select_labels = sample.score, sample.labels, select.labels
    chosen = frozenset(request.targets)

    def failing(other: Request) -> Mapping[str, float] | None:
        # Claims for slices alone take a target along the path that has a rule of its own.
        sliced = not request.has_floor and (chosen in METHODS or chosen in ({"fnr"}, {"fpr"}))
        found = choose(score, labels, other, select_score, select_labels, along_path=sliced)
        if found.place is not None:
            return {} if np.logical_or(*found.thresholds.exits(score)).any() else None
        return _bounds_above(sample, other, found, found.first_failure or Thresholds(None, None)) or None

    return failing


def _bounds_above(sample: Sample, request: Request, choice: Choice, first_failure: Thresholds) -> dict[str, float]:
    """Of the risks that fail at `first_failure`: the bound that is reached there."""
    score, labels = sample.score, sample.labels
    exits = count_exits(score[labels == 0], score[labels == 1], *first_failure.columns)
    claims = risk_claims(request)
    found = {}
    for name, target in request.targets.items():
        if isinstance(sample, Frames):
            bound = upper_bound(sample, claims[name], first_failure, choice.delta)
        else:
            bound = float(risk_upper(exits, name, choice.delta, request.target_prior, target)[0])
        if bound > target:
            found[name] = bound
    return found


def _path_failed(sample: Sample, request: Request, choice: Choice, unit: str, again: Failing | None) -> tuple[str, str]:
    """Which risk failed where testing began, by how much; and the nearest target that these units certify."""
    first_failure = choice.first_failure or Thresholds(None, None)
    score, labels = sample.score, sample.labels
    exits = count_exits(score[labels == 0], score[labels == 1], *first_failure.columns)
    above = _bounds_above(sample, request, choice, first_failure)
    counted = "image" if unit in ALL_IMAGES else unit
    kind = "bound" if unit in ALL_IMAGES else "exact bound"
    failed = []
    for name, bound in above.items():
        errors, n = (int(column[0]) for column in exits.counts(name))
        weighed = ""
        if name == "error" and request.target_prior is not None:
            seen_there = observed_risk(exits, name, request.target_prior)[0]
            weighed = f" ({percent(round(seen_there or 0.0, 4))} at the stated share of {request.classes[1]})"
        failed.append(
            f"{name} <= {request.targets[name]:g}: {errors} of {n} {counted}s wrong there{weighed}, {kind} {bound:.4f}"
        )
    if not failed:
        asked = [f"coverage >= {request.coverage:g}"] if request.coverage is not None else []
        asked += [f"class_coverage.{name} >= {floor:g}" for name, floor in request.class_coverage.items()]
        seen = int(exits.exits[0]) / max(len(score), 1)
        return (
            (
                f"The risks hold up to a coverage of {percent(round(seen, 3))}; {' and '.join(asked)} is not reached"
                f" with confidence {percent(request.confidence)}."
            ),
            "better scores, larger risks, or a lower floor",
        )
    more = "groups" if unit in ALL_IMAGES else f"{unit}s"
    return (
        f"Already the first thresholds to be tested fail at {percent(request.confidence)}: {'; '.join(failed)}.",
        f"better scores, more calibration {more}, or {_nearest(request, above, again)}",
    )


def _nearest(request: Request, above: Mapping[str, float], again: Failing | None) -> str:
    """A target that these units certify when it is asked for; else the levels that were reached, as the direction."""
    targets = None if again is None else passing_targets(request, again)
    if targets is not None:
        return f"{settable(targets)}, which the present ones certify"
    return (
        f"a target beyond {settable({**request.targets, **{name: rounded_up(bound) for name, bound in above.items()}})}"
    )
