"""The calibrated path: a sequence of threshold pairs from safe to risky, made on val_select alone (ALGORITHMS 2.4).

A map p(s) = P(y = 1 | s) is fitted on val_select; with the density of its scores it gives both class distributions, so
that no tail is counted from a handful of errors. For each share u of the targets one pair of thresholds has just these
risks.
Several maps (policy/score_maps.py) each give a path, and every pair is judged under all of them: where to start, and
which path to walk. Where few errors are allowed, simulation says how many trials to wait for (policy/counted_start.py),
or which pairs to leave out (policy/stepping.py); and where each risk is of one class, the numbers of both classes in
val_calib sharpen the maps (policy/class_counts.py).
Validity depends on none of this: the path is fixed before a calibration label is seen, or given how many there are of
each class. Only power depends on the maps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stage1.late import library
from stage1.policy.class_counts import BY_CLASS, common_share, even_evidence, weighed
from stage1.policy.counted_start import COUNTED, best_counts
from stage1.policy.counts import Exits
from stage1.policy.score_maps import OWN, believed_maps, smoothed
from stage1.policy.stepping import errors_allowed, simulated_exits, simulated_passes, stepping_stones
from stage1.risk.definition import Bools, cells
from stage1.risk.risks import RISKS
from stage1.risk.stratified import Strata, stratified_chance

special = library("scipy.special")

Floats = NDArray[np.float64]
Cuts = NDArray[np.intp]
ExitShares = tuple[tuple[Floats, Floats], tuple[Floats, Floats]]
"""(as 0, as 1) of the positives, then of the negatives; float [T] each."""

# Far beyond the targets: where the maps see too much risk in the tails, testing itself says where to stop.
_LEAST, _MOST = 0.1, 40.0
_LEAST_COUNTED = 0.001  # a counted start may lie where few images exit
_PAIRS, _MOST_PAIRS = 160, 480
_STEP = 0.2  # of the standard error of a rate at the target: wider steps end up to one short of what would pass
_MOSTLY_TIED = 0.5
_HEAVY = 0.02  # share of the images with one score from which on they are a block that a step takes in whole
# Where one map is sure that the first test passes and their average is not, all depends on which map is right: worth
# insuring.
# Where all are in doubt there are too few labels, and a share of delta helps nowhere.
_SURE, _UNSURE = 0.95, 0.9
DELTA_SPLIT = 0.1
_MANY_ERRORS = 100.0  # then the jumps of an exact test are small against its standard error
_STEPPED, _SAMPLES, _LEAST_SAMPLES = 3, 128, 8
_MINIMUM = 10  # of each class in val_select, for a map with three parameters


@dataclass(frozen=True, slots=True)
class Goal:
    """What is to be certified on a calibration sample of n units at delta: risks, and the prior that `error` is for.

    limits: no lo above the first, no hi below the second (policy/boundary.py); None: none. counted: testing may start
    where val_calib has enough trials (policy/counted_start.py), else at a pair that is fixed. classes: how many of
    the n are (negatives, positives), where the path may know it (policy/class_counts.py); None: it does not.
    """

    targets: Mapping[str, float]
    n: int
    delta: float
    prior: float | None = None
    limits: tuple[float, float] | None = None
    counted: bool = False
    classes: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True)
class CandidateSequence:
    """lo, hi: float [T], from the safest pair to the riskiest; start: where testing begins. expected: coverage.

    forgiven: errors of each risk that the first test forgives, where testing begins by what is counted (lo never falls
    and hi never rises then, policy/counted_start.py); None: it begins at `start`.
    second: where the maps disagree about the first test, the next best path, tested at DELTA_SPLIT of delta where this
    one fails at once (and this one then at the rest of it); None: this path has the whole delta.
    """

    lo: Floats
    hi: Floats
    start: int
    expected: float
    map_name: str
    second: CandidateSequence | None = None
    forgiven: Mapping[str, int] | None = None


@dataclass(frozen=True, slots=True)
class ClassModel:
    """Modelled distribution of both classes over a grid of scores.

    below1, below0: float [G + 1], mass of each class strictly below cut g (cut g lies under grid[g]); prior: P(y = 1).
    """

    below1: Floats
    below0: Floats
    posterior: Floats
    prior: float


def calibrated_path(score: Floats, labels: NDArray[np.int64], goal: Goal) -> CandidateSequence | None:
    """The best path that val_select suggests for `goal`; None where val_select has fewer than 10 of a class.

    score: float [N] raw scores of val_select; labels: int [N] in {0, 1}. Source: ALGORITHMS 2.4, "several maps".
    """
    if min((labels == 0).sum(), (labels == 1).sum()) < _MINIMUM:
        return None
    grid, weight = np.unique(smoothed(score), return_counts=True)
    maps, trust = believed_maps(score, labels, grid)
    models = {name: _class_model(p, weight) for name, p in maps.items()}
    if goal.classes is not None:
        models = {name: _shared_out(model, weight, labels, goal.classes, name) for name, model in models.items()}
    cuts = np.concatenate([[-np.inf], (grid[1:] + grid[:-1]) / 2, [np.inf]])
    counted = _counts(score, labels, goal)
    shares = _shares(labels, goal, counted)
    ends = _ends(grid, goal.limits)
    pairs = {name: _sequence(model, goal, shares, ends) for name, model in models.items()}
    if goal.classes is not None and OWN in models and _even(goal) and _worth_stepping(labels, goal):
        pairs[f"{OWN}, even evidence"] = _evenly(models[OWN], ends)
    found = []
    for name, (low, high) in pairs.items():
        chances = np.stack([_chance(model, goal, low, high) for model in models.values()])
        chance = np.einsum("m,mt->t", trust, chances)
        cover = np.einsum("m,mt->t", trust, [_coverage(model, low, high) for model in models.values()])
        start = int(np.argmax(chance))
        reached = np.minimum.accumulate(chance[start:])
        gain = np.diff(np.concatenate([[0.0], np.maximum.accumulate(cover[start:])]))
        lo, hi = cuts[low], cuts[high]
        if goal.limits is not None:
            # In its gap a limit takes the place of the middle.
            lo, hi = np.where(low >= ends[0], goal.limits[0], lo), np.where(high <= ends[1], goal.limits[1], hi)
        path = CandidateSequence(lo, hi, start, float(np.einsum("t,t->", reached, gain)), name)
        disputed = bool(chances[:, start].max() >= _SURE and chance[start] < _UNSURE)
        found.append((path, disputed, low, high, cover))
    found = sorted(found, key=lambda each: each[0].expected, reverse=True)
    if _worth_stepping(labels, goal):
        # Only the paths that promise most: simulating takes longer than all that came before.
        stepped = [
            (*_stepped(path, low, high, cover, models, trust, goal, counted), low, high, cover)
            for path, _, low, high, cover in found[:_STEPPED]
        ]
        found = sorted(stepped, key=lambda each: each[0].expected, reverse=True)
    (best, disputed, *_), (second, *_) = found[:2]
    return replace(best, second=second) if disputed else best


def _worth_stepping(labels: NDArray[np.int64], goal: Goal) -> bool:
    """Whether so few errors are expected that the jumps of the exact test matter.

    Not for `error` at a stated prior, whose test weighs the classes and jumps less.
    """
    return _expected_errors(labels, goal) <= _MANY_ERRORS and not (goal.prior is not None and "error" in goal.targets)


def _counts(score: Floats, labels: NDArray[np.int64], goal: Goal) -> bool:
    """Whether testing starts by what is counted: not where most images lie in a few blocks, which stones step over."""
    _, often = np.unique(score, return_counts=True)
    tied = often[often >= np.maximum(_HEAVY * len(score), 2)].sum() / len(score)
    asked = goal.counted and frozenset(goal.targets) in COUNTED
    return bool(asked and _worth_stepping(labels, goal) and tied <= _MOSTLY_TIED)


def _stepped(
    path: CandidateSequence,
    low: Cuts,
    high: Cuts,
    cover: Floats,
    models: Mapping[str, ClassModel],
    trust: Floats,
    goal: Goal,
    counted: bool,
) -> tuple[CandidateSequence, bool]:
    """(path with a counted start, or with the places that simulation leaves in; whether its first test is disputed)."""
    rng = np.random.default_rng(0)
    # Only nested pairs can be drawn together.
    low, high = np.maximum.accumulate(low), np.minimum.accumulate(high)
    draws = np.maximum(_LEAST_SAMPLES, np.round(_SAMPLES * trust)).astype(int)
    samples = [
        simulated_exits(
            (model.below1[low], model.below1[high]),
            (model.below0[low], model.below0[high]),
            model.prior,
            goal.n,
            int(count),
            rng,
            goal.classes,
        )
        for model, count in zip(models.values(), draws, strict=True)
    ]
    weight = np.repeat(trust / draws, draws)
    if counted:
        found = best_counts(
            _errors_and_trials(samples, goal), _blocks(models, low, high), cover, weight, goal.targets, goal.delta
        )
        lo, hi, reached = np.maximum.accumulate(path.lo), np.minimum.accumulate(path.hi), found.reached
        stones = replace(path, lo=lo, hi=hi, start=found.start, expected=found.expected, forgiven=found.forgiven)
    else:
        passed = np.concatenate([simulated_passes(each, goal.targets, goal.delta) for each in samples])
        places, expected, reached = stepping_stones(passed, cover, weight)
        # What is safer than the start stays before it: a control that has no test begins there.
        kept = np.concatenate([np.arange(places[0]), places])
        stones = replace(path, lo=path.lo[kept], hi=path.hi[kept], start=int(places[0]), expected=expected)
    chances = np.array([part.mean() for part in np.split(reached > 0, np.cumsum(draws)[:-1])])
    return stones, bool(chances.max() >= _SURE and trust @ chances < _UNSURE)


def _errors_and_trials(samples: Sequence[Exits], goal: Goal) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """(errors, trials) of each risk in every sample, int [B, T] each."""
    return {
        name: (
            np.concatenate([each.counts(name)[0] for each in samples]),
            np.concatenate([each.counts(name)[1] for each in samples]),
        )
        for name in goal.targets
    }


def _blocks(models: Mapping[str, ClassModel], low: Cuts, high: Cuts) -> Bools:
    """Whether a block of tied scores begins to exit at each pair, bool [T]."""
    heavy = np.concatenate([[0], np.cumsum(_masses(next(iter(models.values()))) >= _HEAVY)])
    return np.append(False, (np.diff(heavy[low]) > 0) | (np.diff(heavy[high]) < 0))


# ---- models --------------------------------------------------------------------------------------------------------


def _class_model(p: Floats, weight: Floats | NDArray[np.int64]) -> ClassModel:
    """p: P(y = 1) at each distinct score; weight: how often it is there. No cut splits a block of tied scores."""

    def below(mass: Floats) -> Floats:
        inner = np.cumsum(mass)[:-1] / mass.sum()
        return np.asarray(np.minimum(np.concatenate([np.zeros(1), inner, np.ones(1)]), 1.0))

    return ClassModel(below(weight * p), below(weight * (1 - p)), p, float(weight @ p / weight.sum()))


def _shared_out(
    model: ClassModel,
    weight: NDArray[np.int64],
    labels: NDArray[np.int64],
    classes: tuple[int, int],
    map_name: str,
) -> ClassModel:
    """The model at the share of positives that val_select and val_calib have together (policy/class_counts.py)."""
    share = common_share((int((labels == 0).sum()), int((labels == 1).sum())), classes)
    if map_name == OWN and share is not None:
        return _class_model(model.posterior, weighed(weight.astype(np.float64), model.posterior, share))
    if share is None:
        share = classes[1] / sum(classes)
    return replace(model, prior=share)


def _shares(labels: NDArray[np.int64], goal: Goal, counted: bool = False) -> Floats:
    """Shares of the targets, float [T], rising: closer together where many errors make rates sharper."""
    least = _LEAST_COUNTED if counted else _LEAST
    wanted = np.log(_MOST / least) / np.log1p(_STEP / np.sqrt(_expected_errors(labels, goal)))
    return np.geomspace(least, _MOST, int(np.clip(np.ceil(wanted) + 1, _PAIRS, _MOST_PAIRS)))


def _expected_errors(labels: NDArray[np.int64], goal: Goal) -> float:
    """How many errors the target allows in the smaller class, about."""
    smaller = min((labels == 0).mean(), (labels == 1).mean()) * goal.n
    if goal.classes is not None:
        smaller = max(min(goal.classes), 1)
    return float(smaller * min(goal.targets.values()))


def _ends(grid: Floats, limits: tuple[float, float] | None) -> tuple[int, int]:
    """The largest cut allowed for low and the smallest allowed for high: of the gaps in which the limits lie."""
    if limits is None:
        return len(grid), 0
    return int(np.searchsorted(grid, limits[0], side="left")), int(np.searchsorted(grid, limits[1], side="right"))


def _sequence(model: ClassModel, goal: Goal, shares: Floats, ends: tuple[int, int]) -> tuple[Cuts, Cuts]:
    """Cuts (low, high) for these shares of the targets, int [T] each, up to the first pair that answers all it may."""
    return _until_closed(model, *_solve(model, goal, shares, ends), ends)


def _even(goal: Goal) -> bool:
    """Whether both classes are asked the same, so that thresholds of one likelihood ratio are a path worth judging."""
    return frozenset(goal.targets) == {"fnr", "fpr"} and len(frozenset(goal.targets.values())) == 1


def _evenly(model: ClassModel, ends: tuple[int, int]) -> tuple[Cuts, Cuts]:
    """Cuts of one likelihood ratio, int [T] each (policy/class_counts.py)."""
    return _until_closed(model, *even_evidence(model.posterior, _masses(model), ends), ends)


def _until_closed(model: ClassModel, low: Cuts, high: Cuts, ends: tuple[int, int]) -> tuple[Cuts, Cuts]:
    """The distinct pairs up to the first that answers all it may."""
    closed = np.flatnonzero((low >= high) | ((low >= ends[0]) & (high <= ends[1])))
    last = int(closed[0]) + 1 if len(closed) else len(low)
    new = np.append(True, (np.diff(low[:last]) != 0) | (np.diff(high[:last]) != 0))
    return _by_blocks(model, low[:last][new], high[:last][new])


def _masses(model: ClassModel) -> Floats:
    """Share of the images at each score of the grid, float [G]."""
    return np.asarray(model.prior * np.diff(model.below1) + (1 - model.prior) * np.diff(model.below0))


def _by_blocks(model: ClassModel, low: Cuts, high: Cuts) -> tuple[Cuts, Cuts]:
    """The same pairs and, where one of the next two takes in a block of tied scores, one pair for each block.

    Without blocks a step is a small share of the images. A block is taken in whole, on the side where its answer is
    less likely to be wrong first, so that a sequence over a handful of values has a safe pair to start with.
    """
    mass = _masses(model)
    heavy = np.flatnonzero(mass >= _HEAVY)
    if not len(heavy):
        return low, high
    edges = np.unique(np.concatenate([heavy, heavy + 1]))
    pairs: list[tuple[int, int]] = []
    at = (0, len(mass))
    for target in zip(low.tolist(), high.tolist(), strict=True):
        while True:
            ups, downs = edges[(edges > at[0]) & (edges < target[0])], edges[(edges < at[1]) & (edges > target[1])]
            steps = []
            if len(ups):
                steps.append((float(model.posterior[ups[0] - 1]), (int(ups[0]), at[1])))
            if len(downs):
                steps.append((1 - float(model.posterior[downs[-1]]), (at[0], int(downs[-1]))))
            if not steps:
                break
            at = min(steps)[1]
            pairs.append(at)
        at = target
        pairs.append(target)
    found = np.array(pairs, dtype=np.intp)
    return found[:, 0], found[:, 1]


# ---- pairs -------------------------------------------------------------------------------------------------------


def _solve(model: ClassModel, goal: Goal, shares: Floats, ends: tuple[int, int]) -> tuple[Cuts, Cuts]:
    """Cuts (low, high), int [T] each: every modelled risk at most share x target, and as many exits as that allows.

    ends: `_ends`; no low beyond the first, no high before the second.
    """
    limits = {name: np.minimum(shares * target, 0.999) for name, target in goal.targets.items()}
    last = np.full(len(shares), len(model.below1) - 1)
    # A risk of one class sets a limit to one cut, given the other; every other is kept by how sure an answer has to be.
    by_bar = [name for name in limits if name not in BY_CLASS]
    if not by_bar:
        return _class_cuts(model, limits, np.minimum(last, ends[0]), np.full_like(last, ends[1]))
    prior = model.prior if goal.prior is None else goal.prior
    # At another prior the odds move by a constant factor.
    odds = prior / (1 - prior) * (1 - model.prior) / model.prior
    posterior = model.posterior * odds / (model.posterior * odds + 1 - model.posterior)
    # First cut from the left (right) at which the likelier answer is less likely than the bar asks; any order of
    # posteriors.
    rising, falling = np.maximum.accumulate(posterior), np.maximum.accumulate(1 - posterior[::-1])
    # A side whose wrong answers none of these risks counts needs no bar.
    misses = any(_limits(name, "positive") for name in by_bar)
    false_exits = any(_limits(name, "negative") for name in by_bar)

    def cuts(bar: Floats) -> tuple[Cuts, Cuts]:
        # Of all pairs with one error rate, the one with most exits leaves out where the likelier answer is least
        # likely.
        low, high = np.searchsorted(rising, bar, side="right"), last - np.searchsorted(falling, bar, side="right")
        low, high = (low if misses else last), (high if false_exits else np.zeros_like(last))
        return _class_cuts(model, limits, np.minimum(low, ends[0]), np.maximum(high, ends[1]))

    low, high = np.zeros(len(shares)), np.full(len(shares), 0.5)
    for _ in range(12):
        bar = (low + high) / 2
        low_cut, high_cut = cuts(bar)
        kept = np.all([_rate(name, model, prior, low_cut, high_cut) <= limits[name] for name in by_bar], axis=0)
        low, high = np.where(kept, bar, low), np.where(kept, high, bar)
    return cuts(low)


def _class_cuts(model: ClassModel, limits: Mapping[str, Floats], low: Cuts, high: Cuts) -> tuple[Cuts, Cuts]:
    """Greatest fixed point: start from everything that the caps allow, and shrink until every class risk is kept."""
    bound_low = any(_limits(name, "positive") for name in limits)
    bound_high = any(_limits(name, "negative") for name in limits)
    odds = {name: limits[name] / (1 - limits[name]) for name in ("fnr", "fpr") if name in limits}
    most_low, least_high = low, high
    for _ in range(200):
        before = (low, high)
        right1, right0 = 1 - model.below1[high], model.below0[low]
        if "miss_rate" in limits:
            low = np.minimum(low, _largest(model.below1, limits["miss_rate"]))
        if "fnr" in limits:
            low = np.minimum(low, _largest(model.below1, odds["fnr"] * right1))
        if "false_exit_rate" in limits:
            high = np.maximum(high, _smallest(model.below0, limits["false_exit_rate"]))
        if "fpr" in limits:
            high = np.maximum(high, _smallest(model.below0, odds["fpr"] * right0))
        # A side without a limit of its own meets the other one, or stays at its limit.
        if not bound_low:
            low = np.minimum(most_low, high)
        if not bound_high:
            high = np.maximum(least_high, low)
        if np.array_equal(low, before[0]) and np.array_equal(high, before[1]):
            break
    # Between overlapping cuts both answers keep every risk: any point there will do.
    middle = (low + high) // 2
    return np.where(low <= high, low, middle), np.where(low <= high, high, middle)


def _largest(below: Floats, limit: Floats) -> Cuts:
    """Largest cut with at most `limit` of the class under it, for each limit."""
    return np.searchsorted(below, limit, side="right") - 1


def _smallest(below: Floats, limit: Floats) -> Cuts:
    """Smallest cut with at most `limit` of the class above it, for each limit."""
    return np.searchsorted(below, 1 - limit, side="left")


def _limits(name: str, side: str) -> bool:
    """Whether a risk counts wrong answers to images of this side."""
    return RISKS[name].side in (side, "both")


def _exit_shares(model: ClassModel, low: Cuts, high: Cuts) -> ExitShares:
    """Of the positives, then of the negatives: the share that exits as 0 and the one that exits as 1 at each pair."""
    return (model.below1[low], 1 - model.below1[high]), (model.below0[low], 1 - model.below0[high])


def _mass(chosen: Bools, exits: ExitShares) -> tuple[Floats, Floats]:
    """Share of the positives and of the negatives in the chosen cells (risk/risks.py), float [T] each."""
    shares = []
    for own, (as_zero, as_one) in zip(chosen.tolist()[::-1], exits, strict=True):
        if all(own):
            shares.append(np.ones_like(as_zero))
        else:
            assert not own[-1], "trials are exits, or all members of a class"
            parts = [share for taken, share in zip(own[:2], (as_zero, as_one), strict=True) if taken]
            shares.append(sum(parts[1:], start=parts[0]) if parts else np.zeros_like(as_zero))
    return shares[0], shares[1]


def _rate(name: str, model: ClassModel, prior: float, low: Cuts, high: Cuts) -> Floats:
    """The modelled risk where P(y = 1) is `prior`, float [T]."""
    errors, trials = cells(RISKS[name])
    exits = _exit_shares(model, low, high)
    wrong1, wrong0 = _mass(errors, exits)
    if RISKS[name].among == "members":
        all1, all0 = _mass(trials, exits)
        rest1, rest0 = all1 - wrong1, all0 - wrong0
    else:
        rest1, rest0 = _mass(trials & ~errors, exits)
    wrong, right = prior * wrong1 + (1 - prior) * wrong0, prior * rest1 + (1 - prior) * rest0
    return np.divide(wrong, wrong + right, out=np.zeros_like(wrong), where=wrong + right > 0)


# ---- prediction --------------------------------------------------------------------------------------------------


def _coverage(model: ClassModel, low: Cuts, high: Cuts) -> Floats:
    positive = model.below1[low] + 1 - model.below1[high]
    negative = model.below0[low] + 1 - model.below0[high]
    return np.asarray(model.prior * positive + (1 - model.prior) * negative)


def _chance(model: ClassModel, goal: Goal, low: Cuts, high: Cuts) -> Floats:
    """Predicted chance of each pair to pass every test on n units, float [T]: binomial at the expected counts."""
    n1, n0 = goal.n * model.prior, goal.n * (1 - model.prior)
    if goal.classes is not None:
        n0, n1 = map(float, goal.classes)
    chance, shares = np.ones(len(low)), _exit_shares(model, low, high)
    for name, target in goal.targets.items():
        masses = [_mass(chosen, shares) for chosen in cells(RISKS[name])]
        errors, expected = (n1 * positives + n0 * negatives for positives, negatives in masses)
        if name == "error" and goal.prior is not None:
            (wrong1, wrong0), (exits1, exits0) = masses
            counts = Strata(n1 * wrong1, n1 * exits1, n1, n0 * wrong0, n0 * exits0, n0)
            chance *= stratified_chance(counts, goal.prior, target, goal.delta)
            continue
        n = np.round(expected)
        rate = np.divide(errors, expected, out=np.ones_like(expected), where=expected > 0)
        allowed = errors_allowed(n, target, goal.delta)
        possible = (allowed >= 0) & (chance > 0)
        chance[~possible] = 0.0
        chance[possible] *= special.bdtr(
            allowed[possible], np.maximum(n[possible], 1), np.clip(rate[possible], 0.0, 1.0)
        )
    return chance
