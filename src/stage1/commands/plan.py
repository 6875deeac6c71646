"""The document of `stage1 plan`: counts by the exact tail, the probability of success, and what pilot scores say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stage1.commands.pilot import pilot_plan
from stage1.config import RunConfig
from stage1.errors import ConfigError, DataError
from stage1.policy.power import Trial
from stage1.risk.risks import closed_forms
from stage1.risk.sample_size import plan, plan_success, success_probability
from stage1.scores import Scores, Values, read_scores
from stage1.storage.files import write_bytes

_CURVE = np.geomspace(0.25, 1.6, 12)


@dataclass(frozen=True, slots=True)
class Ask:
    """The options of the command. success: wanted probability, or None; expected: true risk as a share of its target.

    prior: P(positive), None: the pilot's, or 0.5. exit_rates: expected share of (negatives, positives) that exit.
    """

    success: float | None = None
    expected: float = 0.5
    prior: float | None = None
    exit_rates: tuple[float, float] = (0.7, 0.7)
    draws: int = 200
    select_share: float = 0.15


def make_plan(
    config: RunConfig, ask: Ask, pilot: Scores | None = None, *, say: Callable[[Trial], None] = lambda trial: None
) -> dict[str, Any]:
    """Plain values: confidence, prior, exit_rates, needs; `success` where wanted; `pilot` where there are scores.

    The closed form is for fnr, fpr, miss_rate, false_exit_rate without floors; for other targets the pilot alone
    speaks.
    Raises ConfigError (options; a target without closed form and no pilot), DataError (the pilot).
    """
    prior = ask.prior
    if prior is None:
        prior = float((pilot.known_labels == 1).mean()) if pilot is not None and pilot.n_classes == 2 else 0.5
    classes = config.data.classes
    config = config.for_classes(pilot.n_classes if pilot is not None else len(classes) if classes else 2)
    risks = config.risks_for(2)
    closed = all(name in closed_forms() for name in risks)
    settings: dict[str, Any] = {"confidence": config.confidence, "prior": prior, "exit_rates": ask.exit_rates}
    needs = [] if pilot is not None and not closed else [asdict(need) for need in plan(risks, **settings)]
    document: dict[str, Any] = {
        "confidence": config.confidence,
        "prior": prior,
        "exit_rates": list(ask.exit_rates),
        "risks": dict(risks),
        "needs": needs,
        "success": None,
        "pilot": None,
    }
    if ask.success is not None and closed:
        if not 0 < ask.expected < 1:
            raise ConfigError(f"--expected-risk {ask.expected:g}: a share of the target, strictly between 0 and 1")
        expected = {name: ask.expected * target for name, target in risks.items()}
        found = plan_success(risks, expected, success=ask.success, **settings)
        sizes = dict.fromkeys(round(found.in_total * share) for share in _CURVE)
        curve = [[n, success_probability(n, risks, expected, **settings)] for n in sizes]
        document["success"] = asdict(found) | {"expected_share": ask.expected, "curve": curve}
    if pilot is not None:
        document["pilot"] = pilot_plan(
            pilot,
            config,
            success=0.9 if ask.success is None else ask.success,
            draws=ask.draws,
            select_share=ask.select_share,
            prior=ask.prior,
            seed=config.seed,
            say=say,
        ).to_document()
    return document


def read_pilot(
    path: Path,
    *,
    values: Values | None,
    columns: Mapping[str, str],
    classes: tuple[str, ...] | None,
    say: Callable[[str], None] = lambda text: None,
) -> Scores:
    """Labelled rows of a score file; those of the role train are left out, a model is too good on them.

    Raises DataError where none is left or labels are missing.
    """
    scores, roles = read_scores(path, values=values, columns=columns, classes=classes, say=say)
    if roles is not None:
        scores = scores.take(roles != "train")
    if not len(scores):
        raise DataError(f"{path}: no rows but those of train; a pilot needs labelled rows that the model has not seen")
    _ = scores.known_labels
    return scores


def write_figure(document: Mapping[str, Any], path: Path) -> None:
    """The plan as PNG or SVG, by the ending. Raises ConfigError for another one, MissingError without matplotlib."""
    from stage1.report.figures.plan import plan_drawing

    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"--figure {path}: give a name that ends in .png or .svg")
    drawing = plan_drawing(
        document["needs"], confidence=document["confidence"], success=document["success"], pilot=document["pilot"]
    )
    write_bytes(path, drawing.png if path.suffix == ".png" else drawing.svg)


def plan_lines(document: Mapping[str, Any]) -> list[str]:
    """The document as lines for people."""
    lines: list[str] = []
    if document["needs"]:
        rates = "{:g} of negatives, {:g} of positives".format(*document["exit_rates"])
        lines += [
            (
                f"confidence {document['confidence']:g} jointly, prior {document['prior']:g}, exits: {rates}; n of"
                " independent units of val_calib"
            ),
            f"{'risk':<17}{'target':>7}{'errors':>8}{'counted':>9}  {'class':<9}{'in class':>9}{'in total':>9}",
        ]
        lines += [
            f"{need['risk']:<17}{need['target']:>7g}{need['errors']:>8}{need['counted']:>9} "
            f" {need['side']:<9}{need['in_class']:>9}{need['in_total']:>9}"
            for need in document["needs"]
        ]
    if document["success"] is not None:
        found = document["success"]
        lines += [
            "",
            (
                f"to be certified with probability {found['wanted']:g}, if each true risk is"
                f" {found['expected_share']:g} of its target:"
            ),
            f"{'risk':<17}{'target':>7}{'true':>8}{'counted':>9}  {'class':<9}{'in class':>9}{'in total':>9}",
        ]
        lines += [
            f"{need['risk']:<17}{need['target']:>7g}{need['expected']:>8.4g}{need['counted']:>9} "
            f" {need['side']:<9}{need['in_class']:>9}{need['in_total']:>9}"
            for need in found["needs"]
        ]
        negatives, positives = found["per_class"]
        lines.append(
            f"all of it: {found['in_total']} in total, about {negatives} negatives and {positives} positives "
            f"(probability {found['success']:.4f}; thresholds taken as fixed)"
        )
    return [*lines, *_pilot_lines(document["pilot"])] if document["pilot"] is not None else lines


def _pilot_lines(pilot: Mapping[str, Any]) -> list[str]:
    unit = f"{pilot['unit']}s"
    lines = [
        "",
        (
            f"from the pilot, by the real method, {pilot['prior']:.3g} positive; labelled {unit} of val_select +"
            " val_calib:"
        ),
        f"{'n':>9}{'select':>9}{'calib':>9}{'draws':>7}{'certified':>11}  {'simulation error':<18}{'coverage':>9}",
    ]
    lines += [
        f"{trial['n']:>9}{trial['n_select']:>9}{trial['n_calib']:>9}{trial['draws']:>7}{trial['success']:>11.3f}  "
        f"{'[{:.3f}, {:.3f}]'.format(trial['low'], trial['high']):<18}{trial['coverage']:>9.4f}"
        for trial in pilot["trials"]
    ]
    lines.append(f"({pilot['interval']})")
    if pilot["n"] is None:
        most = pilot["trials"][-1]["n"]
        lines.append(
            f"not certified with probability {pilot['wanted']:g} by any number up to {most}; larger targets or better"
            " scores are needed"
        )
        return lines
    below = "" if pilot["below"] is None else f", too few at {pilot['below']}"
    above = "" if pilot["above"] is None else f", enough at {pilot['above']}"
    lines.append(
        f"label {pilot['n']} {unit} to be certified with probability {pilot['wanted']:g} (beyond simulation"
        f" error{below}{above})"
    )
    return lines
