"""What the bundle's policy says of one image, in numpy: the same exits, labels and probabilities as `load_bundle`.

| policy file | exits | probability |
|---|---|---|
| thresholds.json | s < lo as 0, s > hi as 1 | calibration.json of the logits, else their softmax |
| gateparams.json | the same on the signed gate score, or on s where softmax was kept | the gate's own, or as above |
| scrcparams.json | selected, and one class in the set | as above |

The classes of `stage1.policy` say the same with scipy and their documents' schemas, which the client does not have; a
test compares the two on random policies and scores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.calibration import CalibrationMap, map_from_document
from stage1.errors import ConfigError, IntegrityError
from stage1.scores import Scores
from stage1.streetvision.looks import SPREAD
from stage1.streetvision.sealed import SealedBundle

Floats = NDArray[np.float64]
# (exits as 0, exits as 1, P(class 1) of its own or None), each [N]
Rule = Callable[[Scores], tuple[NDArray[np.bool_], NDArray[np.bool_], Floats | None]]


@dataclass(frozen=True, slots=True)
class Verdicts:
    """exit: bool [N]. label: int [N], the answer where it exits, else the likelier class. probability: float [N],
    P(class 1).
    """

    exit: NDArray[np.bool_]
    label: NDArray[np.int64]
    probability: Floats


@dataclass(frozen=True, slots=True)
class Judge:
    """A policy with its map. needs_gate: the model must have an output `gate_logits`."""

    rule: Rule
    map: CalibrationMap | None
    mapped: bool
    needs_gate: bool

    def __call__(self, scores: Scores) -> Verdicts:
        """scores: raw, of two classes, with the gate where the policy needs it."""
        decided_on = self.map.calibrate(scores) if self.mapped and self.map is not None else scores
        as_negative, as_positive, own = self.rule(decided_on)
        likelier = decided_on.logits.argmax(axis=1)
        label = np.where(as_negative, 0, np.where(as_positive, 1, likelier)).astype(np.int64)
        if own is None:
            stated = decided_on if self.map is None or self.mapped else self.map.calibrate(scores)
            own = stated.probabilities[:, 1]
        return Verdicts(as_negative | as_positive, label, own)


def judge(bundle: SealedBundle) -> Judge:
    """The judge of a bundle of two classes.

    Raises ConfigError naming what a detector cannot serve (more classes, a gate on columns of the caller),
    IntegrityError for documents that no fit writes.
    """
    classes = list(bundle.manifest["classes"])
    if len(classes) != 2:
        raise ConfigError(
            f"{bundle.folder}: {len(classes)} classes; the client asks for one probability, give a bundle of two"
        )
    name = bundle.manifest["policy_file"]
    try:
        # The only column that is made from an image: how its views differ.
        rule, needs_gate = _rule(bundle.policy, {SPREAD} if bundle.views is not None else set())
        fitted = None if bundle.calibration is None else map_from_document(bundle.calibration, "calibration.json")
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(
            f"{bundle.folder}: {name} is not one that a fit writes ({error!r}); bundle it anew"
        ) from error
    return Judge(rule, fitted, bundle.policy.get("score", "raw") == "mapped", needs_gate)


def _rule(document: Mapping[str, Any], columns: set[str]) -> tuple[Rule, bool]:
    kind = document["policy"]
    if kind == "softmax" or (kind == "gate" and document["kept"] == "softmax"):
        lo, hi = document["lo"], document["hi"]
        return lambda scores: (*_cut(scores.margin, lo, hi), None), False
    if kind == "gate":
        return _gate_rule(document, columns)
    if kind == "scrc":
        return _scrc_rule(document), document["confidence"] == "gate"
    raise ConfigError(f"policy {kind!r}: a detector serves softmax, gate and scrc; calibrate with one of them")


def _cut(score: Floats, lo: float | None, hi: float | None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Both borders are open; None: that side never exits."""
    return score < (-inf if lo is None else lo), score > (inf if hi is None else hi)


# ---- SCRC --------------------------------------------------------------------------------------------------------


def _scrc_rule(document: Mapping[str, Any]) -> Rule:
    tau = -inf if document["tau"] is None else float(document["tau"])
    floors = np.array([-inf if floor is None else floor for floor in document["floors"]], dtype=np.float64)
    largest = float(np.finfo(np.float64).max)

    def rule(scores: Scores) -> tuple[NDArray[np.bool_], NDArray[np.bool_], None]:
        # Log odds of each class; of two classes exactly -+ the margin, and a tie has 0.0, not -0.0.
        margin = scores.margin
        odds = np.clip(np.stack([0.0 - margin, margin + 0.0], axis=1), -largest, largest)
        confidence = odds.max(axis=1) if document["confidence"] == "softmax" else _gate_of(scores)
        selected = confidence > tau if document["variant"] == "I" else confidence >= tau
        inside = odds >= floors
        single = selected & (inside[:, 0] != inside[:, 1]) & document["certified"]
        return single & inside[:, 0], single & inside[:, 1], None

    return rule


# ---- the gate ----------------------------------------------------------------------------------------------------


def _gate_rule(document: Mapping[str, Any], columns: set[str]) -> tuple[Rule, bool]:
    model, lo, hi = document["model"], document["lo"], document["hi"]
    bases = {name.removeprefix("margin*") for name in model["features"]}
    if strange := sorted(bases - {"margin", "entropy", "gate"} - columns):
        raise ConfigError(
            f"gate: it was fitted with the column {strange[0]!r}, which an image does not carry; fit it without"
        )
    fitted = None if model["map"] is None else map_from_document(model["map"], "gateparams: model.map")

    def rule(scores: Scores) -> tuple[NDArray[np.bool_], NDArray[np.bool_], Floats]:
        raw = _gate_score(model, scores)
        if fitted is None:
            g = _sigmoid(raw)
        else:
            g = np.exp(fitted.log_probabilities(np.stack([np.zeros_like(raw), raw], axis=1))[:, 1])
        g = np.clip(g, np.finfo(np.float64).tiny, np.nextafter(1.0, 0.0))
        positive = scores.logits.argmax(axis=1) == 1
        return *_cut(np.where(positive, g, -g), lo, hi), np.where(positive, g, 1.0 - g)

    return rule, model["source"] == "gate" or "gate" in bases


def _gate_score(model: Mapping[str, Any], scores: Scores) -> Floats:
    """The raw second score, float [N]: the gate logit, or a weighted sum of standardised features, in their order."""
    if model["source"] == "gate":
        return _tamed(_gate_of(scores))
    total = np.full(len(scores), float(model["intercept"]))
    standard: dict[str, Floats] = {}
    columns = (model["features"], model["means"], model["scales"], model["weights"])
    for name, mean, scale, weight in zip(*columns, strict=True):
        base = name.removeprefix("margin*")
        column = _feature(name, scores) if name == base else standard["margin"] * standard[base]
        standard[name] = (column - mean) / scale
        total = total + weight * standard[name]
    return total


def _feature(name: str, scores: Scores) -> Floats:
    if name == "gate":
        return _tamed(_gate_of(scores))
    if name == "entropy":
        p = scores.probabilities
        return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(axis=1)
    if name == "margin":
        return _tamed(np.minimum(np.abs(scores.margin), np.finfo(np.float64).max))
    return scores.extra[name]


def _gate_of(scores: Scores) -> Floats:
    assert scores.gate is not None  # the model was asked for it where the detector was loaded
    return scores.gate


def _tamed(values: Floats) -> Floats:
    """The identity up to +-30 and logarithmic beyond, as where the gate was fitted (`policy/gate_features.py`)."""
    size = np.abs(values)
    return np.where(size <= 30.0, values, np.sign(values) * (30.0 + np.log1p(np.maximum(size - 30.0, 0.0))))


def _sigmoid(values: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -values)))
