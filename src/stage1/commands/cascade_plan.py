"""cascade plan: does what the stages before it defer fit into what each later stage takes?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stage1.bundle.manifest import read_calibration
from stage1.cascade.config import StageConfig
from stage1.cascade.cost import (
    DeferRate,
    arrival_rate,
    capacity_per_minute,
    clustered_rate,
    defer_rate,
    deferred_clusters,
    load,
)
from stage1.cascade.stages import Cascade, open_cascade, rule_of
from stage1.commands.cascade import certified_rules
from stage1.errors import ConfigError
from stage1.policy.units import clustered

_OPTIONS = 3


def plan_cascade(
    path: Path, rate: str, *, evaluated: Path | None = None, prior: float | None = None, confidence: float = 0.95
) -> dict[str, Any]:
    """The deferral budget of a cascade: for each later stage, an upper bound of the share of images that reaches it
    times arrivals, against its capacity. The bounds of all stages hold together at `confidence`, and so does the list
    of options.
    Attempts and milliseconds of an image, which make the capacity, are means as measured.

    evaluated: a folder of `evaluate`. Without it the calibration scores inside the first stage's bundle are used, and
    what the first stage defers is taken to reach every later one. prior: P(second class) among arriving images. fits:
    None where that is not known. Raises ConfigError where neither gives a defer rate.
    """
    cascade = open_cascade(path)
    arriving = arrival_rate(rate)
    if not 0 < confidence < 1 or (prior is not None and not 0 < prior < 1):
        raise ConfigError(f"--confidence {confidence:g}, --prior {prior}: both lie strictly between 0 and 1")
    later = cascade.config.stages[1:]
    # Each later stage has a bound of its own, and all of them are to hold.
    delta = (1 - confidence) / len(later)
    document: dict[str, Any] | None = None
    if evaluated is not None:
        _, document = certified_rules(evaluated, cascade)
        counted = document["defer"]
        if counted["units"] != document["roles"][counted["role"]]:
            raise ConfigError(
                f"{evaluated}: its {counted['units']} units are one image of each group, and all images of a group"
                " arrive; it is an older evaluation: run `stage1 cascade evaluate` again"
            )
        source = f"{counted['role']} in {evaluated}"
        shares = _from_counts(document["defer"], document["defer"]["stages"], prior, delta)
        measured = document["costs"][1:]
    else:
        share, source = _from_bundle(cascade, prior, 1 - confidence)
        shares = [share] * len(later)
        measured = [{"milliseconds": stage.cost.milliseconds, "attempts": 1.0} for stage in later]
    stages = [_checked(*each, arriving) for each in zip(later, shares, measured, strict=True)]
    if document is None:
        for row in stages[1:]:
            if row["fits"] is False:
                row["fits"], row["limit"] = None, f"{row['limit']}; how many reach it is known after `evaluate` alone"
    found = [row["fits"] for row in stages]
    options, note = ([], None) if document is None else _options(document, stages, arriving, prior, delta)
    return {
        "rate_per_minute": arriving,
        "source": source,
        "fits": False if False in found else None if None in found else True,
        "confidence": confidence,
        "stages": stages,
        "options": options,
        "options_note": note,
    }


def plan_lines(document: dict[str, Any]) -> list[str]:
    """The plan for people."""
    lines = [f"{document['rate_per_minute']:.4g} images a minute arrive ({document['source']})"]
    for row in document["stages"]:
        lines += _stage_lines(row)
    if any(row["capacity_per_minute"] is not None for row in document["stages"]):
        lines.append("the confidence is of the share; attempts and milliseconds of an image are means as measured")
    if document["options"]:
        lines.append(
            "configurations of the frontier that fit by the same bound, those that defer most (tested from few"
            " deferred to many, up to the first that does not fit: the whole list holds at"
            f" {document['confidence']:.4g} confidence):"
        )
    lines += [_option_line(option) for option in document["options"]]
    return lines if document["options_note"] is None else [*lines, document["options_note"]]


def _option_line(option: Mapping[str, Any]) -> str:
    most = ", ".join(f"'{name}' at most {value:.4g} a minute" for name, value in option["upper_per_minute"].items())
    return (
        f"  {option['deferred']:.1%} deferred ({_bands(option['rules'])}): {most}; miss_rate"
        f" {_rate(option['miss_rate'])}, false_exit_rate"
        f" {_rate(option['false_exit_rate'])}{', certified' if option['certified'] else ''}"
    )


def _rate(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _stage_lines(row: Mapping[str, Any]) -> list[str]:
    defer, name = row["defer"], f"'{row['stage']}'"
    gets = (
        f"{name} gets {defer['observed']:.1%} of them, at most {defer['upper']:.1%} at {1 - defer['delta']:.4g}"
        f" confidence ({defer['method']}, {defer['n']} images): {row['expected_per_minute']:.4g} a minute, at most"
        f" {row['upper_per_minute']:.4g}"
    )
    if row["capacity_per_minute"] is None:
        return [gets, f"  its capacity is unknown: {row['limit']}"]
    verdict = {True: "FITS", False: "DOES NOT FIT", None: "MAY NOT FIT"}[row["fits"]]
    lines = [
        gets,
        (
            f"  it takes {row['capacity_per_minute']:.4g} a minute ({row['limit']}): {verdict}; in"
            f" {row['busy_minutes']:.1%} of the minutes more arrive than that"
        ),
    ]
    if row["rate_that_fits"] is not None:
        lines.append(
            f"  what fits: {row['rate_that_fits']:.4g} images a minute at this defer rate, or a defer rate of "
            f"{row['defer_share_that_fits']:.1%} at this rate of arrival"
        )
    return lines


def _bands(rules: Sequence[Mapping[str, Any]]) -> str:
    moved = [rule for rule in rules if rule["kind"] == "thresholds"]
    return "; ".join(f"below {_cut(rule['below'])}, above {_cut(rule['above'])}" for rule in moved) or "own exits"


def _cut(value: float | None) -> str:
    return "no value" if value is None else f"{value:.6g}"


def _checked(stage: StageConfig, share: DeferRate, measured: Mapping[str, Any], arriving: float) -> dict[str, Any]:
    capacity, limit = capacity_per_minute(stage, measured["milliseconds"], measured["attempts"])
    return {
        "stage": stage.name,
        "defer": asdict(share),
        "limit": limit,
        "attempts_per_image": measured["attempts"],
        **load(arriving, share, capacity),
    }


def _from_counts(
    units: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], prior: float | None, delta: float
) -> list[DeferRate]:
    """Each later stage, from what `evaluate` counted. units: `defer` of its document; stages: of one configuration."""
    if all("clusters" in here for here in stages):
        choices = units["choices"]
        return [clustered_rate(here["clusters"], delta=delta, prior=prior, choices=choices) for here in stages]
    positives, negatives = units["positives"], units["units"] - units["positives"]
    labels = np.repeat(np.array([1, 0], dtype=np.int64), [positives, negatives])
    found = []
    for here in stages:
        deferred = np.zeros(units["units"], dtype=np.bool_)
        deferred[: here["deferred_positives"]] = True
        deferred[positives : positives + here["deferred"] - here["deferred_positives"]] = True
        found.append(
            defer_rate(deferred, labels, delta=delta, prior=prior, fitted_here=False, choices=units["choices"])
        )
    return found


def _from_bundle(cascade: Cascade, prior: float | None, delta: float) -> tuple[DeferRate, str]:
    """From calibration.parquet of the first stage's bundle: its own policy's exits, or the thresholds of the file."""
    stage = cascade.config.stages[0]
    if 0 not in cascade.bundles:
        raise ConfigError(f"stage {stage.name!r}: is no bundle, so its defer rate is unknown; give --evaluated FOLDER")
    if stage.exit == "auto":
        raise ConfigError(
            f"stage {stage.name!r}: exit: auto leaves thresholds open; evaluate first and give --evaluated FOLDER"
        )
    bundle = cascade.bundles[0]
    scores = read_calibration(bundle.folder)
    decision = bundle.policy.decide(scores)
    own = np.where(decision.exit, decision.label, -1).astype(np.int64)
    first, second = rule_of(stage, last=False).exits(decision.probability, own)
    deferred, fitted_here = ~(first | second), stage.exit == "own"
    if clustered(scores):
        assert scores.groups is not None
        parts = deferred_clusters(deferred, scores.known_labels == 1, scores.groups)
        share = clustered_rate(parts, delta=delta, prior=prior, fitted_here=fitted_here)
    else:
        share = defer_rate(deferred, scores.labels, delta=delta, prior=prior, fitted_here=fitted_here)
    return share, f"calibration.parquet of {bundle.name}"


def _options(
    document: Mapping[str, Any], stages: Sequence[Mapping[str, Any]], arriving: float, prior: float | None, delta: float
) -> tuple[list[dict[str, Any]], str | None]:
    """Configurations of the frontier that every later stage can take, as far as its capacity is known: the three that
    defer most, each judged by the bound of the verdict; and what is to be said where there are none.

    The frontier was ordered before the counted images were seen, each configuration deferring less than the one
    before. They are tested in that order from its end, up to the first that does not fit; so one false "fits" in the
    list is no likelier than one in the verdict (fixed sequence), and no share of delta is spent on testing many. As
    each configuration's images are among those of the one before, what is chosen is in the list exactly where the
    verdict says that it fits.
    """
    known = {
        place: row["capacity_per_minute"] for place, row in enumerate(stages) if row["capacity_per_minute"] is not None
    }
    if not known or not document["frontier"]:
        return [], None
    if any("counted" not in row for row in document["frontier"]):
        return [], "which configurations fit is not in this evaluation, which is an older one; evaluate again"
    fitting: list[dict[str, Any]] = []
    for row in reversed(document["frontier"]):
        shares = _from_counts(document["defer"], row["counted"], prior, delta)
        loads = {place: load(arriving, shares[place], capacity) for place, capacity in known.items()}
        if not all(one["fits"] for one in loads.values()):
            break
        fitting.append(
            {
                "rules": row["rules"],
                "deferred": row["deferred"],
                "certified": row["certified"],
                "upper_per_minute": {stages[place]["stage"]: one["upper_per_minute"] for place, one in loads.items()},
                "miss_rate": row["risks"]["miss_rate"]["observed"],
                "false_exit_rate": row["risks"]["false_exit_rate"]["observed"],
            }
        )
    if not fitting:
        return [], "no configuration of the frontier fits by the same bound"
    return fitting[::-1][:_OPTIONS], None
