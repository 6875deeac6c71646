"""audit: is the promise kept? Real labelled scores become the population, so the true risk of every fitted policy is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.config import RunConfig
from stage1.errors import ConfigError, DataError
from stage1.pipeline.fitting import fit_configured
from stage1.policy import Policy, ScrcPolicy
from stage1.policy.counts import count_exits
from stage1.policy.path import Goal, calibrated_path
from stage1.policy.softmax import Thresholds
from stage1.risk import binomial_lower, binomial_upper
from stage1.scores import Scores


@dataclass(frozen=True, slots=True)
class Sizes:
    """Images to draw for val_select and val_calib (groups are drawn whole, until the size is reached)."""

    select: int
    calib: int


def audit(
    population: Scores,
    config: RunConfig,
    *,
    draws: int,
    sizes: Sizes,
    seed: int = 0,
    advance: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Draw val_select and val_calib from `population` with replacement, fit, and count how often a claim is false.

    population: labelled binary scores. Each draw fits config's policy for config's risks; the claim is false where a risk
    of the policy on the whole population exceeds its target. Beside it the plug-in sweep: the riskiest thresholds on the
    same path whose *observed* risks meet the targets. Intervals are exact (95 %).
    Raises ConfigError (draws, sizes), DataError (no labels).
    """
    if draws < 1 or sizes.select < 20 or sizes.calib < 20:
        raise ConfigError(f"draws={draws}, sizes {sizes.select} + {sizes.calib}: at least 1 draw of 20 + 20 images")
    if population.n_classes != 2:
        raise DataError(f"scores: {population.n_classes} classes; the audit is for two classes so far")
    rng = np.random.default_rng(seed)
    broken = plugged = certified = 0
    coverage, plug_coverage = [], []
    for _ in range(draws):
        select, calib = _draw(population, sizes.select, rng, "s"), _draw(population, sizes.calib, rng, "c")
        policy = fit_configured(config, select=select, calib=calib, classes=("0", "1"), say=lambda text: None)
        certified += policy.certified
        broken += policy.certified and _false(policy, population, config)
        coverage.append(policy.decide(population).coverage)
        thresholds = plug_in(select, calib, config)
        if thresholds is not None:
            plugged += any(risk > config.risks[name] for name, risk in _risks(thresholds, population, config).items())
            plug_coverage.append(float(np.logical_or(*thresholds.exits(population.margin)).mean()))
        advance(1)
    return {
        "policy": config.policy.name, "risks": dict(config.risks), "confidence": config.confidence, "draws": draws,
        "n_select": sizes.select, "n_calib": sizes.calib, "certified": certified / draws,
        "violation": broken / draws, "violation_low": float(binomial_lower(broken, draws, 0.025)),
        "violation_high": float(binomial_upper(broken, draws, 0.025)), "delta": 1.0 - config.confidence,
        "kept": bool(binomial_lower(broken, draws, 0.025) <= 1.0 - config.confidence), "coverage": float(np.mean(coverage)),
        "plug_in_violation": plugged / draws, "plug_in_coverage": float(np.mean(plug_coverage)) if plug_coverage else 0.0,
    }  # fmt: skip


def plug_in(select: Scores, calib: Scores, config: RunConfig) -> Thresholds | None:
    """The usual mistake: the riskiest pair on the path whose observed risks meet the targets, without any confidence."""
    path = calibrated_path(select.margin, select.known_labels, Goal(config.risks, len(calib), 0.5))
    if path is None:
        return None
    labels, margin = calib.known_labels, calib.margin
    exits = count_exits(margin[labels == 0], margin[labels == 1], path.lo, path.hi)
    meets = np.ones(len(path.lo), dtype=np.bool_)
    for name, target in config.risks.items():
        errors, trials = exits.counts(name)
        meets &= errors <= target * trials
    place = int(np.flatnonzero(meets)[-1]) if meets.any() else 0
    lo, hi = float(path.lo[place]), float(path.hi[place])
    return Thresholds(lo if np.isfinite(lo) else None, hi if np.isfinite(hi) else None)


def _draw(population: Scores, size: int, rng: np.random.Generator, prefix: str) -> Scores:
    if population.groups is None:
        rows = rng.integers(0, len(population), size)
        groups = None
    else:
        names, index = np.unique(population.groups, return_inverse=True)
        members = np.split(np.argsort(index, kind="stable"), np.cumsum(np.bincount(index))[:-1])
        picked: list[NDArray[np.int64]] = []
        while sum(map(len, picked)) < size:
            picked.append(members[int(rng.integers(len(names)))])
        rows = np.concatenate(picked)
        # A group that is drawn twice is two groups.
        groups = np.repeat([f"{prefix}{number}" for number in range(len(picked))], [len(part) for part in picked])
    drawn = population.take(rows)
    return Scores(
        logits=drawn.logits,
        labels=drawn.labels,
        gate=drawn.gate,
        groups=groups,
        ids=np.array([f"{prefix}{row}" for row in range(len(rows))]),
    )


def _risks(thresholds: Thresholds, population: Scores, config: RunConfig) -> dict[str, float]:
    lo = -np.inf if thresholds.lo is None else thresholds.lo
    hi = np.inf if thresholds.hi is None else thresholds.hi
    labels, margin = population.known_labels, population.margin
    exits = count_exits(margin[labels == 0], margin[labels == 1], np.array([lo]), np.array([hi]))
    return {
        name: float(errors[0] / trials[0]) if trials[0] else 0.0
        for name in config.risks
        for errors, trials in [exits.counts(name)]
    }


def _false(policy: Policy, population: Scores, config: RunConfig) -> bool:
    """Whether a claim of this policy is false on the population; SCRC's is about the selected images of a class."""
    labels = population.known_labels
    if isinstance(policy, ScrcPolicy):
        selected, in_set = policy.sets(population)
        wrong = {
            name: ~in_set[selected & (labels == label), label]
            for name, label in (("miss_rate", 1), ("false_exit_rate", 0))
        }
        return any(len(wrong[name]) and wrong[name].mean() > target for name, target in config.risks.items())
    decision = policy.decide(population)
    # A score of -1, 0, 1 with thresholds between them has the decision's exits.
    sign = np.where(decision.exit, np.where(decision.label == 1, 1.0, -1.0), 0.0)
    shown = Scores(logits=np.stack([np.zeros(len(sign)), sign], axis=1), labels=labels)
    return any(risk > config.risks[name] for name, risk in _risks(Thresholds(-0.5, 0.5), shown, config).items())
