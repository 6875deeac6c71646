"""audit: is the promise kept? Labelled scores become the population, so the true risk of each policy is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.config import RunConfig
from stage1.errors import ConfigError, DataError
from stage1.evaluation.rates import exit_shares
from stage1.policy import Policy, policy_kind
from stage1.policy.base import Decision
from stage1.risk import binomial_lower, binomial_upper
from stage1.scores import Scores
from stage1.stages.fitting import fit_configured

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


MOST_SCORES = 4_000_000  # of one draw: larger ones take seconds and gigabytes each, and are drawn hundreds of times


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

    population: labelled scores. Each draw fits config's policy for config's risks and floors; its certificate is false
    where one of them does not hold on the whole population: of all its images, or of a random image of a random group
    where the certificate's unit is the group; at config's target_prior where there is one. Beside it the plug-in sweep:
    the riskiest thresholds on the same path whose *observed* risks meet the targets. Intervals are exact (95 %).
    Raises ConfigError (draws, sizes, config), DataError (no labels).
    """
    if draws < 1 or sizes.select < 20 or sizes.calib < 20:
        raise ConfigError(f"draws={draws}, sizes {sizes.select} + {sizes.calib}: at least 1 draw of 20 + 20 images")
    if (sizes.select + sizes.calib) * population.n_classes > MOST_SCORES:
        raise ConfigError(
            f"sizes {sizes.select} + {sizes.calib}: a draw holds {MOST_SCORES // population.n_classes} images at most "
            f"({population.n_classes} classes); give smaller --select and --calib"
        )
    if reason := policy_kind(config.policy.name).unauditable(config):
        raise ConfigError(reason)
    _ = population.known_labels
    classes = class_names(population, config)
    by_group = _group_weights(population)
    rng = np.random.default_rng(seed)
    broken = plugged = certified = 0
    coverage, plug_coverage = [], []
    for _ in range(draws):
        select, calib = _draw(population, sizes.select, rng, "s"), _draw(population, sizes.calib, rng, "c")
        policy = fit_configured(config, select=select, calib=calib, classes=classes, say=lambda text: None)
        decision = policy.decide(population)
        assert policy.certificate is not None
        weights = None if policy.certificate.unit == "image" else by_group
        certified += policy.certified
        broken += policy.certified and bool(false_claims(policy, decision, population, config, classes, weights))
        coverage.append(decision.coverage)
        naive = plug_in(policy, select, calib, config)
        if naive is not None:
            decided = naive.decide(population)
            plugged += bool(_false_risks(decided, population, config, classes, weights))
            plug_coverage.append(decided.coverage)
        advance(1)
    return {
        "policy": config.policy.name,
        "risks": config.risks_for(population.n_classes),
        "confidence": config.confidence,
        "draws": draws,
        "n_select": sizes.select,
        "n_calib": sizes.calib,
        "certified": certified / draws,
        "violation": broken / draws,
        "violation_low": float(binomial_lower(broken, draws, 0.025)),
        "violation_high": float(binomial_upper(broken, draws, 0.025)),
        "delta": 1.0 - config.confidence,
        "kept": bool(binomial_lower(broken, draws, 0.025) <= 1.0 - config.confidence),
        "coverage": float(np.mean(coverage)),
        "plug_in_violation": plugged / draws,
        "plug_in_coverage": float(np.mean(plug_coverage)) if plug_coverage else 0.0,
    }


def class_names(population: Scores, config: RunConfig) -> tuple[str, ...]:
    """The config's class names, else "0", "1", .. Raises DataError where their number is not that of the scores."""
    names = tuple(config.data.classes or (str(index) for index in range(population.n_classes)))
    if len(names) != population.n_classes:
        raise DataError(f"data.classes: {len(names)} names for {population.n_classes} columns of scores")
    return names


# ---- the control -------------------------------------------------------------------------------------------------


def plug_in(policy: Policy, select: Scores, calib: Scores, config: RunConfig) -> Policy | None:
    """The usual mistake: the riskiest thresholds whose observed risks meet the targets, without any confidence.

    policy: what was fitted on the same draw; two classes: thresholds on the raw margin, more: on the confidence and
    with the kind of thresholds that it uses (one MSP threshold for another policy). None where val_select gives no
    path, or where the risks are of selected images, which thresholds do not have.
    """
    control = policy_kind(policy.name).control
    return control(policy, select, calib, config.risks_for(calib.n_classes))


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
    drawn = replace(population, ids=None).take(rows)  # an image that is drawn twice counts twice
    return Scores(
        logits=drawn.logits,
        labels=drawn.labels,
        gate=drawn.gate,
        groups=groups,
        ids=np.array([f"{prefix}{row}" for row in range(len(rows))]),
        slices=drawn.slices,
        extra=drawn.extra,
    )


# ---- the truth ---------------------------------------------------------------------------------------------------


def false_claims(
    policy: Policy,
    decision: Decision,
    population: Scores,
    config: RunConfig,
    classes: Sequence[str],
    weights: Floats | None,
) -> list[str]:
    """The risks and floors that a certified policy claims and that do not hold on the population, by name.

    SCRC's risks and its coverage are of the selected images; every other policy's of its exits. A slice with thresholds
    of its own is a claim too. weights: float [N] of the images, None: all alike.
    """
    if claimed := policy.selected_shares(population):
        shares = [(claim, _share(claim.hits, claim.among, weights)) for claim in claimed]
        return [claim.name for claim, share in shares if share > claim.most or share < claim.least]
    false = _false_risks(decision, population, config, classes, weights)
    balance = _at_prior(population, config.target_prior, weights)
    if config.coverage is not None and _share(decision.exit, np.ones_like(decision.exit), balance) < config.coverage:
        false.append("coverage")
    labels = population.known_labels
    for name, floor in config.class_coverage.items():
        members = labels == list(classes).index(name)
        if _share(decision.exit & members, members, weights) < floor:
            false.append(f"class_coverage.{name}")
    own = [claim for claim in policy.certificate.slices if claim.own] if policy.certificate is not None else []
    if own and config.target_prior is not None:
        # It is stated for that prior in each slice, which weights of the whole would not give.
        false = [name for name in false if name != "error"]
    for claim in own:
        if claim.certified:
            inside = population.slices[claim.attribute] == claim.value
            part = Decision(decision.exit[inside], decision.label[inside], decision.probability[inside])
            weighed = None if weights is None else weights[inside]
            found = _false_risks(part, population.take(inside), config, classes, weighed)
            false += [f"{claim.name}: {name}" for name in found]
    return false


def _false_risks(
    decision: Decision, population: Scores, config: RunConfig, classes: Sequence[str], weights: Floats | None
) -> list[str]:
    shares, _, _ = exit_shares(decision.exit, decision.label, population.known_labels, classes)
    balance = _at_prior(population, config.target_prior, weights)
    return [
        name
        for name, target in config.risks_for(population.n_classes).items()
        if _share(*shares[name], balance if name == "error" else weights) > target
    ]


def _share(hits: Bools, base: Bools, weights: Floats | None) -> float:
    """Weighted share of hits (a part of base) in base, 0.0 where base is empty."""
    one = np.ones(len(base)) if weights is None else weights
    total = float(one[base].sum())
    return float(one[hits].sum()) / total if total else 0.0


def _group_weights(population: Scores) -> Floats | None:
    """1 / size of the group of each image: a random image of a random group."""
    if population.groups is None:
        return None
    _, index, sizes = np.unique(population.groups, return_inverse=True, return_counts=True)
    return np.asarray(1.0 / sizes[index])


def _at_prior(population: Scores, prior: float | None, weights: Floats | None) -> Floats | None:
    """Weights under which the positives have the share `prior`."""
    if prior is None:
        return weights
    one = np.ones(len(population)) if weights is None else weights
    positive = population.known_labels == 1
    share = float(one[positive].sum() / one.sum())
    return np.where(positive, one * prior / share, one * (1 - prior) / (1 - share))
