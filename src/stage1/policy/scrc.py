"""SCRC policy: select by confidence, then exit where the conformal set of classes holds a single one.

| variant | selected | class floors, from the selected calibration images of each class | promise |
|---|---|---|---|
| I | g > tau, tau by the coverage rank | order statistic, exact binomial | PAC: with the stated confidence over calibration sets |
| T | g >= tau, tau from the calibration images and this one | conformal risk control, floor((m + 1) alpha) - 1 losses | in expectation |

Class k is in the set iff the log odds of p_k are >= floor_k, which is p_k >= 1 - lambda_k with lambda_k = sigmoid(-floor_k):
log odds, since 1 - lambda loses the tail of saturated scores. The set of both classes, or of none, defers.
The risk of class k is P(k not in the set | selected, y = k): miss_rate for class 1 and false_exit_rate for class 0 where there are
two classes, miss_rate.<class> for more. It is counted among SELECTED images, so it bounds neither fnr nor fpr (among
exits); as P(selected | y) <= 1, it bounds the share of all images of the class as well.

The rule is fixed by the calibration images and each risk looks at one class, so it survives a change of class balance;
the share of selected images does not.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.documents import finite_or_none, write_document
from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.policy.certificate import VOID_IF, Certificate, Coverage, RiskBound, assumptions, images, percent
from stage1.policy.certify import calibration_digest
from stage1.policy.decision import Decision
from stage1.policy.request import Request
from stage1.policy.units import choose_unit, clustered, one_per_group
from stage1.risk.bounds import binomial_upper
from stage1.risk.scrc import allowed_losses, class_floor, inductive_selection, transductive_cuts
from stage1.risk.testing import minimum_samples, order_statistic_rank
from stage1.scores import Scores

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

METHODS = {
    "I": "SCRC-I, PAC: order statistics of the confidence and of each class among the selected images, exact binomial",
    "T": "SCRC-T, in expectation: conformal risk control of each class among the selected images, floor((m + 1) alpha) - 1 losses allowed",
}
# The coverage claim costs few images at a small delta; the risks need theirs.
_COVERAGE_SHARE = 0.2
# Ranks beyond the coverage rank, as a share of n: ties up to that many at tau do no harm, and nothing but coverage is added.
_SPARE_SHARE = 0.01
_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True)
class ScrcPolicy:
    """A fitted policy. certificate is None only for parameters that were loaded without one.

    tau: log odds of confidence, -inf: everything is selected. floors: log odds per class, -inf: always in the set.
    confidence: "softmax" (g is the largest probability) or "gate" (g is sigmoid(Scores.gate)). xi: coverage claimed.
    alpha: risk -> target.
    """

    variant: str
    confidence: str
    tau: float
    floors: tuple[float, ...]
    classes: tuple[str, ...]
    certified: bool
    xi: float
    alpha: dict[str, float]
    certificate: Certificate | None = None

    name = "scrc"

    @property
    def lambdas(self) -> tuple[float, ...]:
        """lambda of each class: class k is in the set iff p_k >= 1 - lambda_k."""
        return tuple(float(np.exp(-np.logaddexp(0.0, floor))) for floor in self.floors)

    @property
    def equivalent_thresholds(self) -> tuple[float | None, float | None] | None:
        """(lo, hi) on Scores.margin with the same exits (None: that side never exits); None for a gate or K > 2.

        Two classes with the softmax's own confidence cut one score twice, so SCRC says nothing there that two thresholds
        do not say (ALGORITHMS 0.6).
        """
        if len(self.classes) != 2 or self.confidence != "softmax":
            return None
        lo, hi = self.floors[1], -self.floors[0]
        if self.tau > -inf:
            # A threshold is open, as g > tau is; g >= tau is g > the number below. No floor lies above tau (fit_scrc).
            edge = self.tau if self.variant == "I" else float(np.nextafter(self.tau, -inf))
            lo, hi = min(lo, -edge), max(hi, edge)
        return finite_or_none(lo), finite_or_none(hi)

    @property
    def margin_thresholds(self) -> tuple[float | None, float | None]:
        """equivalent_thresholds, where there are any and images exit."""
        return (self.equivalent_thresholds or (None, None)) if self.certified else (None, None)

    def sets(self, scores: Scores) -> tuple[Bools, Bools]:
        """(selected bool [N], in_set bool [N, K]). Raises DataError for another number of classes or a missing gate."""
        if scores.n_classes != len(self.classes):
            raise DataError(
                f"logits: {scores.n_classes} columns; this policy was fitted on {len(self.classes)} classes"
            )
        odds = class_log_odds(scores.logits)
        g = _confidence(scores, odds, self.confidence)
        # Variant T puts the image at hand in the ranking: g = tau is then inside, whoever it ties with.
        return (g > self.tau if self.variant == "I" else g >= self.tau), odds >= np.asarray(self.floors)

    def decide(self, scores: Scores) -> Decision:
        """Exit, label and probability of every row, each by itself. Raises as sets() does."""
        selected, in_set = self.sets(scores)
        leaves = _leaves(selected, in_set) & self.certified
        label = np.where(leaves, in_set.argmax(axis=1), scores.logits.argmax(axis=1)).astype(np.int64)
        probability = scores.probabilities
        of_label = probability[:, 1] if len(self.classes) == 2 else probability[np.arange(len(label)), label]
        return Decision(exit=leaves, label=label, probability=of_label)

    def to_document(self) -> dict[str, Any]:
        """Plain values for scrcparams.json; -inf is null."""
        return {
            "policy": self.name,
            "variant": self.variant,
            "confidence": self.confidence,
            "tau": finite_or_none(self.tau),
            "floors": [finite_or_none(floor) for floor in self.floors],
            "classes": list(self.classes),
            "certified": self.certified,
            "xi": self.xi,
            "alpha": dict(self.alpha),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], certificate: Certificate | None = None) -> ScrcPolicy:
        """The inverse of to_document. Raises IntegrityError where classes and floors do not agree."""
        classes, floors = tuple(document["classes"]), document["floors"]
        if len(classes) != len(floors):
            raise IntegrityError(
                f"scrcparams: {len(floors)} floors for {len(classes)} classes; run `stage1 calibrate` again"
            )
        return cls(
            variant=document["variant"],
            confidence=document["confidence"],
            tau=_from_null(document["tau"]),
            floors=tuple(_from_null(floor) for floor in floors),
            classes=classes,
            certified=document["certified"],
            xi=document["xi"],
            alpha=dict(document["alpha"]),
            certificate=certificate,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write scrcparams.json, whole or not at all (the certificate is a document of its own)."""
        write_document(path, self.to_document(), "scrcparams")


def _leaves(selected: Bools, in_set: Bools) -> Bools:
    """Selected images whose set holds a single class, bool [N]."""
    if in_set.shape[1] == 2:
        return np.asarray(selected & (in_set[:, 0] != in_set[:, 1]))
    return np.asarray(selected & (in_set.sum(axis=1) == 1))


def _from_null(value: float | None) -> float:
    return -inf if value is None else float(value)


def class_log_odds(logits: Floats) -> Floats:
    """log(p_k / (1 - p_k)) of the softmax, float [N, K], without the rounding of p; for K = 2 exactly -+ margin."""
    if logits.shape[1] == 2:
        with np.errstate(over="ignore"):
            margin = logits[:, 1] - logits[:, 0]
        # Plus 0.0: a tie has odds of 0.0, not of -0.0.
        return np.asarray(np.clip(np.stack([0.0 - margin, margin + 0.0], axis=1), -_LARGEST, _LARGEST))
    rows, top = np.arange(len(logits)), logits.argmax(axis=1)
    others = logits.copy()
    others[rows, top] = -inf
    best, second = logits[rows, top], others.max(axis=1)
    with np.errstate(over="ignore"):
        rest = second + np.log(np.exp(others - second[:, None]).sum(axis=1))
        # -log(exp(gap) - 1); below the top p <= 1/2, so gap >= log 2 and nothing cancels
        gap = np.maximum(np.logaddexp(best, rest)[:, None] - logits, np.log(2.0))
        odds = -(gap + np.log1p(-np.exp(-gap)))
        odds[rows, top] = best - rest
    return np.asarray(np.clip(odds, -_LARGEST, _LARGEST))


def _confidence(scores: Scores, odds: Floats, kind: str) -> Floats:
    if kind == "softmax":
        return np.asarray(odds.max(axis=1))
    if scores.gate is None:
        raise DataError("gate: these scores have none; this SCRC policy selects by the gate")
    return scores.gate


# ---- fit ---------------------------------------------------------------------------------------------------------


def fit_scrc(
    *,
    calib: Scores,
    risks: Mapping[str, float],
    coverage: float,
    select: Scores | None = None,
    confidence: float = 0.95,
    variant: str = "I",
    unit: str = "auto",
    assume_iid: bool = False,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    attempt: int = 1,
    uncertified_because: str | None = None,
) -> ScrcPolicy:
    """Choose tau and the class floors on `calib` and certify them; nothing but `calib` is needed to do it again.

    coverage: xi, the least share of images to be selected, in (0, 1). risks: a target in (0, 1) for every class: miss_rate
    (class 1) and false_exit_rate (class 0) for two; miss_rate (the same for each) or miss_rate.<class> of each for more.
    variant: "I" (coverage and risks jointly at `confidence`) or "T" (means; `confidence` is recorded, not used). g is
    sigmoid(calib.gate) where there is a gate, else the largest probability. select: only checked to share no id with
    calib. The rest as in fit_policy.

    Returns a policy in any case; where nothing can be certified, it defers every image and its certificate has
    certified = False, the reason and what is needed. Raises ConfigError (target, coverage, variant), DataError (scores).
    """
    _check_samples(calib, select)
    names = tuple(classes) if classes is not None else tuple(str(k) for k in range(calib.n_classes))
    if len(names) != calib.n_classes:
        raise DataError(f"classes: {len(names)} names for {calib.n_classes} classes")
    targets = _checked_targets(risks, names, coverage, confidence, variant)
    unit = choose_unit(calib, unit, assume_iid)
    counted = calib.take(one_per_group(calib, seed)) if unit == "group" else calib
    kind = "softmax" if calib.gate is None else "gate"
    chosen = _choose(counted, kind, targets, coverage, 1.0 - confidence, variant)
    alpha = {target.risk: target.value for target in targets}
    policy = ScrcPolicy(variant, kind, chosen.tau, chosen.floors, names, True, coverage, alpha)
    selected, in_set = policy.sets(counted)
    certified = uncertified_because is None and chosen.covers and bool(_leaves(selected, in_set).any())
    if not certified:
        policy = replace(policy, tau=-inf, floors=(-inf,) * len(names), certified=False)
        selected, in_set = policy.sets(counted)
    bounds = _measured(policy, chosen, in_set, counted.known_labels, targets)
    assert not certified or all(bound.holds for bound in bounds.values()), "a floor whose bound exceeds its target"
    reason, needed = (uncertified_because, None)
    if uncertified_because is None:
        reason, needed = _shortfall(bounds, chosen, policy, counted, targets, confidence, unit)
    exits, labels = _leaves(selected, in_set) & certified, counted.known_labels
    claims = _claims(policy, targets, confidence)
    per_class = Request(alpha, confidence, classes=names)
    iid_assumed = assume_iid and unit == "image" and clustered(calib)
    certificate = Certificate(
        certified=certified,
        statement=(
            _statement(claims, policy, selected, exits, unit, iid_assumed=iid_assumed, attempt=attempt)
            if certified
            else f"Not certifiable {claims}. {reason} Every image defers."
        ),
        policy=policy.name,
        method=METHODS[variant],
        confidence=confidence,
        delta=1.0 - confidence,
        unit=unit,
        assume_iid=iid_assumed,
        risks=bounds,
        coverage=_share(exits),
        per_class={name: _share(exits[labels == k]) for k, name in enumerate(names)},
        classes=names,
        n_images=len(calib),
        n_units=len(counted),
        calib_digest=calibration_digest(calib),
        seed=seed,
        attempt=attempt,
        target_prior=None,
        assumptions=(*assumptions(unit, iid_assumed, per_class), *_meaning(variant)),
        void_if=VOID_IF,
        reason=reason,
        needed=needed,
    )
    return replace(policy, certificate=certificate)


@dataclass(frozen=True, slots=True)
class _Target:
    risk: str
    k: int  # the class whose selected members are counted
    value: float


@dataclass(frozen=True, slots=True)
class _Choice:
    """tau and floors, the calibration rows that count, the delta of each risk; ties, above, rank: see risk.scrc."""

    tau: float
    floors: tuple[float, ...]
    selected: Bools
    delta: float
    covers: bool = True
    ties: int = 0
    above: int = 0
    rank: int = 0


def _choose(scores: Scores, kind: str, targets: Sequence[_Target], xi: float, delta: float, variant: str) -> _Choice:
    odds, labels = class_log_odds(scores.logits), scores.known_labels
    g, truth = _confidence(scores, odds, kind), odds[np.arange(len(labels)), labels]

    def floors(selected: Bools, allowed: Callable[[int, float], int]) -> tuple[float, ...]:
        found = [-inf] * scores.n_classes
        for target in targets:
            members = truth[selected & (labels == target.k)]
            found[target.k] = class_floor(members, allowed(len(members), target.value))
        return tuple(found)

    if variant == "T":
        lower, upper = transductive_cuts(g, xi)
        # An image at g = lower is ranked with the calibration images >= lower, others with those >= upper. One vector for
        # both, the lower of each floor: a larger set loses less, so both means stay bounded.
        both = zip(floors(g >= upper, allowed_losses), floors(g >= lower, allowed_losses), strict=True)
        return _Choice(lower, _tidied(tuple(min(pair) for pair in both), kind, lower), g >= upper, delta)
    # Coverage is a fact of tau, and given tau the classes are independent samples: the confidences multiply.
    of_coverage = delta * _COVERAGE_SHARE
    of_risk = 1.0 - ((1.0 - delta) / (1.0 - of_coverage)) ** (1.0 / len(targets))
    cut = inductive_selection(g, xi, of_coverage, spare=ceil(_SPARE_SHARE * len(g)))
    found = floors(g > cut.tau, lambda m, alpha: order_statistic_rank(m, alpha, of_risk) - 1)
    found = _tidied(found, kind, cut.tau)
    return _Choice(cut.tau, found, g > cut.tau, of_risk, cut.covers, cut.ties, cut.above, cut.rank)


def _tidied(floors: tuple[float, ...], kind: str, tau: float) -> tuple[float, ...]:
    """Lower floors where the sets would be odd; a larger set loses no less, so every bound stays.

    g = softmax: no floor above tau, so that the likeliest class of a selected image is always in its set and none is
    answered against it. Else, two classes that hardly overlap leave scores whose set is empty: any point between the
    two floors closes that gap; the one nearest to even odds is taken, and a score on it defers.
    """
    if kind == "softmax" and tau > -inf:
        return tuple(min(value, tau) for value in floors)
    if len(floors) != 2 or floors[1] <= -floors[0]:
        return floors
    point = min(max(0.0, -floors[0]), floors[1])
    return (0.0 - point, point)


def _measured(
    policy: ScrcPolicy, chosen: _Choice, in_set: Bools, labels: NDArray[np.int64], targets: Sequence[_Target]
) -> dict[str, RiskBound]:
    """Errors and trials of each risk counted anew from the policy's sets, with the bound of its variant."""
    bounds = {}
    for risk, k, value in ((target.risk, target.k, target.value) for target in targets):
        members = chosen.selected & (labels == k)
        n, errors = int(members.sum()), int((members & ~in_set[:, k]).sum())
        never = policy.certified and policy.floors[k] == -inf
        if policy.variant == "I":
            bound, least = float(binomial_upper(errors, n, chosen.delta)), minimum_samples(value, chosen.delta)
        else:
            bound, least = (errors + 1) / (n + 1), ceil(1 / value - 1e-9) - 1
        bounds[risk] = RiskBound(
            name=risk, target=value, observed=errors / n if n else None, bound=0.0 if never else bound, n=n, errors=errors,
            delta=chosen.delta, needed=least, by_construction=never,
        )  # fmt: skip
    return bounds


def _share(exits: Bools) -> Coverage:
    return Coverage(value=float(exits.mean()) if len(exits) else 0.0, n=len(exits), exits=int(exits.sum()))


def _check_samples(calib: Scores, select: Scores | None) -> None:
    if len(calib) == 0 or calib.labels is None:
        raise DataError("calib: no labelled rows; val_calib needs labelled images")
    if select is not None and select.ids is not None and calib.ids is not None:
        shared = np.intersect1d(select.ids, calib.ids)
        if len(shared):
            raise DataError(
                f"calib: id {shared[0]} ({len(shared)} in all) was in val_select too; a certificate needs unseen images"
            )


def _checked_targets(
    risks: Mapping[str, float], names: Sequence[str], coverage: float, confidence: float, variant: str
) -> list[_Target]:
    for what, value in (("coverage", coverage), ("confidence", confidence)):
        if not (isinstance(value, (int, float)) and 0 < value < 1):
            raise ConfigError(f"{what}: must lie strictly between 0 and 1, got {value!r}")
    if variant not in METHODS:
        raise ConfigError(f"variant: {variant!r} is unknown; use {' or '.join(METHODS)}")
    of_class = {"miss_rate": 1, "false_exit_rate": 0}
    if len(names) > 2:
        of_class = {f"miss_rate.{name}": k for k, name in enumerate(names)}
        if set(risks) == {"miss_rate"}:
            risks = dict.fromkeys(of_class, risks["miss_rate"])
    if set(risks) != set(of_class):
        raise ConfigError(
            f"risks: {' + '.join(sorted(risks)) or 'an empty target'} does not fit the scrc policy; give "
            f"{' and '.join(of_class) if len(names) == 2 else 'miss_rate, or miss_rate.<class> for each class'} "
            "(a class without a limit could always be left out)"
        )
    for risk, value in risks.items():
        if not (isinstance(value, (int, float)) and 0 < value < 1):
            raise ConfigError(f"risks.{risk}: must lie strictly between 0 and 1, got {value!r}")
    return [_Target(risk, k, float(risks[risk])) for risk, k in of_class.items()]


# ---- words -------------------------------------------------------------------------------------------------------


def _meaning(variant: str) -> tuple[str, ...]:
    """What the numbers count, beside the assumptions that every certificate has."""
    return (
        "The risks are counted among selected images, those whose confidence passes, not among images that exit: they do not "
        "bound fnr or fpr. They do bound the share of all images of the class.",
        {
            "I": "The bound is PAC: over calibration sets, coverage and all risks hold jointly with the stated confidence.",
            "T": "The bound is in expectation, over calibration set and new image together. It is not PAC: this calibration "
            "set may be an unlucky one, and the stated confidence is not used.",
        }[variant],
        "The share of selected images, unlike the risks, changes with the share of each class.",
    )


def _claims(policy: ScrcPolicy, targets: Sequence[_Target], confidence: float) -> str:
    claims = [f"at least {percent(policy.xi)} of images are selected (their confidence passes)"]
    for target in targets:
        wrong = f"'{policy.classes[1 - target.k]}'" if len(policy.classes) == 2 else "another class"
        members = images(policy.classes[target.k])
        claims.append(f"among selected {members} at most {percent(target.value)} exit as {wrong}")
    promise = (
        f"with confidence {percent(confidence)} over calibration sets"
        if policy.variant == "I"
        else "on average over calibration sets and images (in expectation, not with a confidence for this calibration set)"
    )
    return f"{promise}: {', and '.join(claims)}"


def _statement(
    claims: str, policy: ScrcPolicy, selected: Bools, exits: Bools, unit: str, *, iid_assumed: bool, attempt: int
) -> str:
    """The sentence that opens certificate, model card and report, where images exit."""
    shares = [percent(floor(1000 * float(mask.mean())) / 1000) for mask in (selected, exits)]
    sentences = [
        f"{claims[0].upper()}{claims[1:]}.",
        f"The denominator is the selected images, not those that exit: {shares[0]} of the calibration {unit}s are selected, "
        f"{shares[1]} exit.",
    ]
    # A class that is always in the set leaves no single other one.
    always = {k for k, value in enumerate(policy.floors) if value == -inf}
    closed = [f"'{name}'" for k, name in enumerate(policy.classes) if always - {k}]
    if closed:
        sentences.append(f"No image exits as {', '.join(closed)}: there are too few selected calibration {unit}s.")
    if policy.equivalent_thresholds is not None:
        lo, hi = policy.equivalent_thresholds
        rule = [f"as '{policy.classes[0]}' below {lo:.4g}"] if lo is not None else []
        rule += [f"as '{policy.classes[1]}' above {hi:.4g}"] if hi is not None else []
        sentences.append(
            f"With two classes and the model's own confidence, selection and set are cuts of one score: images exit "
            f"{', '.join(rule)} (difference of the logits), as by the softmax policy."
        )
    if unit == "group":
        sentences.append("An image here is a random image of a random group (one image of each group was counted).")
    if iid_assumed:
        sentences.append(
            "This holds only if images are independent of each other although they come in groups (assume_iid)."
        )
    if attempt > 1:
        sentences.append(
            f"This is attempt {attempt} on the same calibration images: the promise is that of one target fixed in advance, "
            "not of the best of several."
        )
    return " ".join(sentences)


def _shortfall(
    bounds: Mapping[str, RiskBound], chosen: _Choice, policy: ScrcPolicy, scores: Scores, targets: Sequence[_Target],
    confidence: float, unit: str,
) -> tuple[str | None, str | None]:  # fmt: skip
    """(reason, needed) with the arithmetic: what cannot be certified and what it takes; (None, None) where nothing is short."""
    reasons, needs = [], []
    n = len(scores)
    if not chosen.covers:
        reasons.append(
            f"{chosen.ties} of {n} calibration {unit}s tie at the confidence that coverage {policy.xi:g} cuts, and {chosen.above} "
            f"lie above it ({chosen.rank} needed)."
        )
        outside = [f"below {chosen.above / n:.3g}"] if chosen.above else []
        outside += [f"above {(chosen.above + chosen.ties) / n:.3g}"] if chosen.above + chosen.ties < n else []
        needs.append(" or ".join([f"a coverage well {side}" for side in outside] + ["scores with fewer ties"]))
    at = f" at {percent(confidence)}" if policy.variant == "I" else " on average"
    for target in targets:
        bound, members = bounds[target.risk], int((scores.known_labels == target.k).sum())
        units = images(policy.classes[target.k], unit)
        if not chosen.covers or bound.n >= bound.needed:
            continue
        reasons.append(
            f"{bound.n} selected of {members} {units} cannot certify {target.risk} <= {target.value:g}{at} ({bound.needed} "
            "selected needed with 0 errors)."
        )
        if bound.n == 0:
            needs.append(f"{bound.needed} selected {units} in val_calib, or a larger coverage (none is selected now)")
            continue
        nearest = 1 - chosen.delta ** (1 / bound.n) if policy.variant == "I" else 1 / (bound.n + 1)
        needs.append(
            f"about {ceil(bound.needed * members / bound.n)} {units} in val_calib at this share of selected "
            f"({percent(round(bound.n / members, 3))}), a larger coverage, or risks.{target.risk} >= {ceil(1e4 * nearest) / 1e4:.4g}"
        )
    if not policy.certified and not reasons:
        reasons.append(
            f"No selected calibration {unit} has a set of one class at the floors that the target allows: the scores are tied or "
            "do not separate the classes."
        )
        needs.append("scores that separate the classes, or larger targets")
    return (" ".join(reasons), "; ".join(needs) + ".") if reasons else (None, None)
