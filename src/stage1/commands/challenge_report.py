"""`stage1 challenge report`: what a run answers on challenges of val_test, level by level and for the mixture.

The mixture has every level equally often, as the client draws them, whatever number of rows each has here. Accuracy and
MCC are of what the detector answers, without a stage 2: exits keep their side, the rest is decided by P > 0.5. Both are
those of `stage1 streetvision reward` at 0.5.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.commands.reward import kept_sides
from stage1.errors import ConfigError, DataError
from stage1.evaluation.intervals import Statistic
from stage1.evaluation.probability import confusion, mcc_of_counts
from stage1.evaluation.ranking import FloatArray, weighted_mean
from stage1.evaluation.restate import restated_metrics
from stage1.evaluation.summary import confidence_of, pooled_metrics
from stage1.policy import Certificate, Policy, decided_on, load_policy, reported
from stage1.scores import Scores, read_role
from stage1.stages.challenge import LEVEL
from stage1.storage.documents import finite_or_none
from stage1.streetvision.reward import DEFAULT, MIXTURE, OPEN

SHOWN = ("accuracy", "mcc", "augrc", "ece", "coverage", "error")


def report_levels(
    run: Path, *, prior: float = 0.5, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> dict[str, Any]:
    """The rows of val_test of a run, per value of its slice `level` and together.

    Raises MissingError where the run is not scored and calibrated, DataError where its images are no challenges.
    """
    scores, policy = read_role(run, "val_test"), load_policy(run)
    if LEVEL not in scores.slices:
        raise DataError(f"{run}: its images are no challenges; set data.challenge.roles, e.g. by --recipe streetview")
    certificate = policy.certificate
    return {
        "run": str(run),
        "role": "val_test",
        "prior": prior,
        "confidence": level,
        "resamples": resamples,
        "statement": None if certificate is None else certificate.statement,
        "levels": levels_of(scores, policy, prior=prior, resamples=resamples, level=level, seed=seed),
        "certified": _certified(certificate),
    }


def levels_of(
    scores: Scores, policy: Policy, *, prior: float = 0.5, resamples: int = 1000, level: float = 0.95, seed: int = 0
) -> list[dict[str, Any]]:
    """One row per level and, of several, a last one for their mixture in equal parts: metrics where the positives have
    the share `prior`, with bootstrap intervals. Metrics are None where a level has no row of one class.

    Resampled by group within each class and level. At one level groups are mostly of one image, so these intervals are
    honest but wide. Raises ConfigError for a prior outside (0, 1) or more than two classes.
    """
    if not 0.0 < prior < 1.0:
        raise ConfigError(f"--prior {prior:g}: a share between 0 and 1 is needed")
    if scores.n_classes != 2:
        raise ConfigError(f"challenge report: is for two classes, these are {scores.n_classes}")
    column = scores.slices[LEVEL]
    parts = [(str(name), column == name) for name in np.unique(column)]
    if len(parts) > 1:
        parts.append((MIXTURE, np.ones(len(scores), dtype=np.bool_)))
    rows = []
    for name, at in parts:
        part = scores.take(at)
        counts = np.bincount(part.known_labels, minlength=2).tolist()
        row: dict[str, Any] = {"level": name, "n": len(part), "labels": dict(zip(policy.classes, counts, strict=True))}
        row["metrics"] = _metrics(part, policy, prior, resamples, level, seed) if _both_in_each(part) else None
        rows.append(row)
    return rows


def _metrics(part: Scores, policy: Policy, prior: float, resamples: int, level: float, seed: int) -> dict[str, Any]:
    decision = policy.decide(part)
    ranked, truth = decided_on(policy, part), part.known_labels
    metrics = pooled_metrics(ranked, decision.exit, decision.label, policy.classes, reported(policy, part))
    metrics |= _answered(part, policy)
    cells, shares = _cells(part, prior)
    found = restated_metrics(
        {name: metrics[name] for name in SHOWN},
        confidence=confidence_of(ranked),
        residuals=ranked.logits.argmax(axis=1) != truth,
        labels=cells,
        groups=part.groups,
        prior=shares,
        n_resamples=resamples,
        level=level,
        seed=seed,
    )
    return {
        name: {key: finite_or_none(getattr(interval, key)) for key in ("value", "low", "high")}
        for name, interval in found.items()
    }


def _answered(part: Scores, policy: Policy) -> dict[str, Statistic]:
    """Accuracy and MCC of the detector's answers, where others are of the larger logit."""
    truth, sides = part.known_labels, kept_sides(policy, part)
    answers = np.where(sides == OPEN, reported(policy, part).probabilities[:, 1] > DEFAULT, sides == 1).astype(np.int64)
    right = (answers == truth).astype(np.float64)
    return {
        "accuracy": Statistic(lambda c, r, w: weighted_mean(right, w), "share"),
        "mcc": Statistic(lambda c, r, w: mcc_of_counts(confusion(answers, truth, w, 2)), "correlation"),
    }


def _cells(part: Scores, prior: float) -> tuple[NDArray[np.int64], FloatArray]:
    """The cell of each row, a class of a level, int [N], and each cell's share: levels alike, class 1 at `prior`."""
    levels, place = np.unique(part.slices[LEVEL], return_inverse=True)
    return 2 * place.reshape(-1) + part.known_labels, np.tile([1.0 - prior, prior], len(levels)) / len(levels)


def _both_in_each(part: Scores) -> bool:
    cells, shares = _cells(part, 0.5)
    return bool(np.bincount(cells, minlength=len(shares)).all())


def _certified(certificate: Certificate | None) -> dict[str, Any]:
    """What is claimed: of the mixture, and of each level that was asked for (data.slices)."""
    if certificate is None:
        return {"mixture": False, "levels": {}}
    claims = [claim for claim in certificate.slices if claim.attribute == LEVEL]
    return {"mixture": certificate.certified, "levels": {claim.value: claim.certified for claim in claims}}


def level_lines(document: Mapping[str, Any]) -> list[str]:
    """The table for people."""

    def cell(found: Mapping[str, float | None] | None) -> str:
        if found is None or found["value"] is None:
            return "-"
        ends = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
        return f"{found['value']:.3f}{ends}"

    lines = [
        (
            f"at {100 * document['prior']:g} % positives; accuracy and mcc of the answers (exits keep their side, the"
            f" rest by P > {DEFAULT})"
        ),
        f"{'level':<10}{'n':>6}  " + "".join(f"{name:<23}" for name in SHOWN),
    ]
    for row in document["levels"]:
        cells = [cell(None if row["metrics"] is None else row["metrics"][name]) for name in SHOWN]
        lines.append(f"{row['level']:<10}{row['n']:>6}  " + "".join(f"{text:<23}" for text in cells).rstrip())
    claimed = document["certified"]
    words = [
        f"mixture {'yes' if claimed['mixture'] else 'no'}",
        *(f"{name} {'yes' if yes else 'no'}" for name, yes in claimed["levels"].items()),
    ]
    return [*lines, f"certified: {', '.join(words)}", document["statement"] or ""]
