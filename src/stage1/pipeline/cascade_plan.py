"""cascade plan: does what the first stage defers fit into what the second one takes?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from stage1.bundle.manifest import read_calibration
from stage1.errors import ConfigError
from stage1.inference.cascade.capacity import DeferRate, arrival_rate, capacity_per_minute, defer_rate, load
from stage1.inference.cascade.stages import Cascade, open_cascade, rule_of
from stage1.pipeline.cascading import certified_rules
from stage1.policy.units import one_per_group


def plan_cascade(
    path: Path, rate: str, *, evaluated: Path | None = None, prior: float | None = None, confidence: float = 0.95
) -> dict[str, Any]:
    """The deferral budget of a cascade: upper bound of the defer rate times arrivals, against the second stage's capacity.

    evaluated: a folder of `evaluate`; without it the calibration scores inside the first stage's bundle are used.
    prior: P(second class) among arriving images. Raises ConfigError where neither gives a defer rate.
    """
    cascade = open_cascade(path)
    arriving = arrival_rate(rate)
    if not 0 < confidence < 1 or (prior is not None and not 0 < prior < 1):
        raise ConfigError(f"--confidence {confidence:g}, --prior {prior}: both lie strictly between 0 and 1")
    second = cascade.config.stages[1]
    document: dict[str, Any] | None = None
    if evaluated is not None:
        _, document = certified_rules(evaluated, cascade)
        share, source = (
            _from_counts(document["defer"], prior, 1 - confidence),
            f"{document['defer']['role']} in {evaluated}",
        )
        cost = document["costs"][1]
        milliseconds, attempts = cost["milliseconds"], cost["attempts"]
    else:
        share, source = _from_bundle(cascade, prior, 1 - confidence)
        milliseconds, attempts = second.cost.milliseconds, 1.0
    capacity, limit = capacity_per_minute(second, milliseconds, attempts)
    checked = load(arriving, share, capacity)
    return {
        "stage": second.name, "rate_per_minute": arriving, "defer": asdict(share), "source": source, "limit": limit,
        "attempts_per_image": attempts, **checked, "options": _options(document, checked["defer_share_that_fits"]),
    }  # fmt: skip


def plan_lines(document: dict[str, Any]) -> list[str]:
    """The plan for people."""
    defer = document["defer"]
    lines = [
        f"{document['rate_per_minute']:.4g} images a minute arrive; {defer['observed']:.1%} go on to '{document['stage']}', at most "
        f"{defer['upper']:.1%} at {1 - defer['delta']:.4g} confidence ({defer['method']}, {defer['n']} units, {document['source']})",
        f"'{document['stage']}' gets {document['expected_per_minute']:.4g} a minute, at most {document['upper_per_minute']:.4g}",
    ]
    if document["fits"] is None:
        return [*lines, f"capacity unknown: {document['limit']}"]
    lines.append(
        f"it takes {document['capacity_per_minute']:.4g} a minute ({document['limit']}): {'FITS' if document['fits'] else 'DOES NOT FIT'}; "
        f"in {document['busy_minutes']:.1%} of the minutes more arrive than that"
    )
    lines.append(
        f"what fits: {document['rate_that_fits']:.4g} images a minute at this defer rate, or a defer rate of "
        f"{document['defer_share_that_fits']:.1%} at this rate of arrival"
    ) if document["rate_that_fits"] is not None else None
    for option in document["options"]:
        band = option["rules"][0]
        lines.append(
            f"  {option['deferred']:.1%} deferred (below {band['below']}, above {band['above']}): miss_rate {option['miss_rate']:.4g}, "
            f"false_exit_rate {option['false_exit_rate']:.4g}{', certified' if option['certified'] else ''}"
        )
    return lines


def _from_counts(counts: dict[str, Any], prior: float | None, delta: float) -> DeferRate:
    positives, negatives = counts["positives"], counts["units"] - counts["positives"]
    labels = np.repeat(np.array([1, 0], dtype=np.int64), [positives, negatives])
    deferred = np.zeros(counts["units"], dtype=np.bool_)
    deferred[: counts["deferred_positives"]] = True
    deferred[positives : positives + counts["deferred"] - counts["deferred_positives"]] = True
    return defer_rate(deferred, labels, delta=delta, prior=prior, fitted_here=counts["chosen_on_these"])


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
    scores = scores.take(one_per_group(scores, cascade.config.seed))
    decision = bundle.policy.decide(scores)
    own = np.where(decision.exit, decision.label, -1).astype(np.int64)
    first, second = rule_of(stage, last=False).exits(decision.probability, own)
    share = defer_rate(~(first | second), scores.labels, delta=delta, prior=prior, fitted_here=stage.exit == "own")
    return share, f"calibration.parquet of {bundle.name}"


def _options(document: dict[str, Any] | None, most: float | None) -> list[dict[str, Any]]:
    """Configurations of the frontier whose share of val_calib fits, the three that defer most."""
    if document is None or most is None:
        return []
    fitting = [row for row in document["frontier"] if row["deferred"] <= most]
    return [
        {"rules": row["rules"], "deferred": row["deferred"], "certified": row["certified"],
         "miss_rate": row["risks"]["miss_rate"]["observed"], "false_exit_rate": row["risks"]["false_exit_rate"]["observed"]}
        for row in sorted(fitting, key=lambda row: -row["deferred"])[:3]
    ]  # fmt: skip
