"""Configurations of a cascade, ordered on val_select: thresholds of its stages from all to none deferred."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stage1.cascade.config import CascadeConfig
from stage1.cascade.rules import Recorded, Rule, final_answers
from stage1.cascade.stages import rule_of
from stage1.late import library
from stage1.risk.testing import max_errors_each

special = library("scipy.special")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SHARES = np.linspace(1.0, 0.0, 21)
_CUTS = 60
_SAME = 0.05
_FUTILE = 0.01
# Chances this close differ by single images of val_select.
_CLOSE = 0.2
_SPREAD = special.ndtri((np.arange(7) + 0.5) / 7)


@dataclass(frozen=True, slots=True)
class Candidate:
    """rules: of every stage. deferred: share of val_select that reaches the second stage. chance: predicted, to be
    certified; excess: the largest of its risks over their limits, which tells configurations apart that have no chance.
    """

    rules: tuple[Rule, ...]
    deferred: float
    chance: float
    excess: float


def base_rules(config: CascadeConfig) -> tuple[Rule, ...]:
    """The rules of the file, with 0.5 where it says auto."""
    return tuple(rule_of(stage, last=stage is config.stages[-1]) for stage in config.stages)


def candidates(
    select: Recorded, labels: Ints, config: CascadeConfig, *, n_calib: int, delta: float, varied: Sequence[int]
) -> list[Candidate]:
    """From everything deferred to nothing, by |logit| on val_select; one candidate where nothing is varied.

    varied: places of the stages whose thresholds move, all of them at once: each defers the same share of val_select,
    so that there is one order. labels: int [N] of val_select. The last stage's answer_above is chosen for each where it
    is auto. n_calib, delta: what the certificate will have to spend; they serve the prediction alone.
    """
    rules = base_rules(config)
    targets: Mapping[str, float] = {**config.risks} or {"miss_rate": 0.5, "false_exit_rate": 0.5}
    cuts = _cuts(select, config, rules)
    found: list[Candidate] = []
    for moved in _moved(select, rules, varied):
        final = final_answers(select, moved, config.default_probability)
        wrong = _errors(select, moved, labels, cuts, config.default_probability)
        chance, excess = _chance(wrong, labels, targets, n_calib, delta, config.target_prior)
        # Without targets there is nothing to pass: the threshold of fewest errors, both classes weighing the same.
        worth = _worth(chance, excess) if config.risks else -(wrong / np.maximum(_of_class(labels), 1)).sum(axis=1)
        place = _preferred(worth, cuts)
        chosen = (*moved[:-1], replace(rules[-1], answer_above=float(cuts[place])))
        deferred = float(final.asked[:, 1].mean()) if len(select) else 1.0
        found.append(Candidate(chosen, deferred, float(chance[place]), float(excess[place])))
    return found


def _preferred(worth: Floats, cuts: Floats) -> int:
    """The cut at one half where it is close to the best (probabilities are calibrated), else the middle of those."""
    close = np.flatnonzero(worth >= worth.max() - _CLOSE)
    half = int(np.abs(cuts - 0.5).argmin())
    return half if half in close else int(close[len(close) // 2])


def start_of(found: list[Candidate]) -> int:
    """Where testing begins: of those about as likely to pass as any, the one that defers most (last stage best)."""
    chance, excess = (np.array([getattr(candidate, name) for candidate in found]) for name in ("chance", "excess"))
    worth = _worth(chance, excess)
    return int(np.flatnonzero(worth >= worth.max() - _SAME)[0])


def _worth(chance: Floats, excess: Floats) -> Floats:
    """What to choose by: the chance to pass; where nothing has one, how near it comes."""
    return chance if chance.max(initial=0.0) >= _FUTILE else -excess


def _moved(select: Recorded, rules: tuple[Rule, ...], varied: Sequence[int]) -> list[tuple[Rule, ...]]:
    """The rules of all stages for each share, those in a row that are the same once."""
    bands = {place: _bands(select.probability[:, place], rules[place]) for place in varied}
    found: list[tuple[Rule, ...]] = []
    for step in range(len(_SHARES) if varied else 1):
        new = tuple(bands[place][step] if place in bands else rule for place, rule in enumerate(rules))
        if not found or new != found[-1]:
            found.append(new)
    return found


def _bands(probability: Floats, rule: Rule) -> list[Rule]:
    """Rules that defer each share of val_select: where the stage is less sure than a quantile of its sureness."""
    known = probability[np.isfinite(probability)]
    sureness = np.sort(np.abs(special.logit(np.clip(known, 1e-300, 1 - 1e-16))))
    rules = [replace(rule, kind="thresholds", below=None, above=None)]
    for share in _SHARES[1:]:
        # Between two values, so that no image of val_select is on a threshold.
        place = int(np.floor(share * len(sureness)))
        middle = (
            (sureness[place - 1] + sureness[min(place, len(sureness) - 1)]) / 2 if place > 0 and len(sureness) else 0.0
        )
        cut = float(special.expit(middle))
        rules.append(replace(rule, kind="thresholds", below=float(special.expit(-middle)), above=cut))
    return rules


def _cuts(select: Recorded, config: CascadeConfig, rules: tuple[Rule, ...]) -> Floats:
    """Values to try for the last stage's answer_above: quantiles of its probabilities on val_select."""
    known = np.unique(select.probability[:, -1][np.isfinite(select.probability[:, -1])])
    if config.stages[-1].answer_above != "auto" or len(known) < 2:
        return np.array([rules[-1].answer_above])
    between = (known[1:] + known[:-1]) / 2
    places = np.unique(np.linspace(0, len(between) - 1, min(_CUTS, len(between))).astype(np.int64))
    return np.unique(np.append(between[places], 0.5))


def _of_class(labels: Ints) -> Floats:
    return np.array([(labels == 1).sum(), (labels == 0).sum()], dtype=np.float64)


def _errors(select: Recorded, rules: tuple[Rule, ...], labels: Ints, cuts: Floats, default: float) -> Floats:
    """Expected misses and false alarms on val_select where the last stage answers above each cut, float [T, 2].

    Which calls to the last stage failed is chance: every image that reaches it counts with both answers, its own and
    that of the stages before, weighed by the share that failed. A few failed calls would else decide between
    configurations.
    """
    last = select.probability[:, -1]
    silent = replace(select, probability=np.column_stack([select.probability[:, :-1], np.full(len(select), np.nan)]))
    before = final_answers(silent, rules, default)
    reaches, answered = before.asked[:, -1], np.isfinite(last)
    failing = 1.0 - float(answered.mean()) if len(select) else 0.0
    found = []
    for label, wrong in ((1, ~before.positive), (0, before.positive)):
        own = labels == label
        there = int((own & reaches).sum())
        said = np.sort(last[own & reaches & answered])
        at_most = np.searchsorted(said, cuts, side="right")
        errors = (at_most if label == 1 else len(said) - at_most) / max(len(said), 1)
        instead = float((own & reaches & wrong).sum())
        found.append((own & ~reaches & wrong).sum() + there * (1 - failing) * errors + failing * instead)
    return np.stack(found, axis=1).astype(np.float64)


def _chance(
    wrong: Floats, labels: Ints, targets: Mapping[str, float], n_calib: int, delta: float, prior: float | None
) -> tuple[Floats, Floats]:
    """Predicted chance to pass every target on n_calib images, and largest risk over its limit, float [T] each;
    wrong: misses and false alarms on val_select [T, 2].
    """
    size = _of_class(labels)
    share = size / max(size.sum(), 1.0)
    rates = (wrong + 0.5) / (size + 1.0)
    mixed = prior if prior is not None else float(share[0])
    each = {
        "miss_rate": (rates[:, 0], round(n_calib * share[0])),
        "false_exit_rate": (rates[:, 1], round(n_calib * share[1])),
        "error": (mixed * rates[:, 0] + (1 - mixed) * rates[:, 1], n_calib),
    }
    chance, excess = np.ones(len(wrong)), np.zeros(len(wrong))
    for name, target in targets.items():
        rate, n = each[name]
        allowed = float(max_errors_each(np.array([n]), target, delta)[0])
        # val_select is small: the chance is the mean over rates that it leaves possible, not that at its own rate.
        spread = np.sqrt(rate * (1 - rate) / (size.sum() if name == "error" else size[list(each).index(name)] + 1.0))
        possible = np.clip(rate[:, None] + spread[:, None] * _SPREAD, 0.0, 1.0)
        chance *= special.bdtr(allowed, max(n, 1), possible).mean(axis=1) if allowed >= 0 else 0.0
        excess = np.maximum(excess, rate / target)
    return chance, excess
