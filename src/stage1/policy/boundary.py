"""Where an exit would go against the stated probability: a limit for thresholds, fixed before calibration begins.

An image exits as a class only where the calibrated probability favours that class at the stated prior. For two classes
this is a limit b on the score: lo <= b <= hi. b comes from val_select alone, so given b a rule stays valid: a threshold
that is moved outwards to b is wrong less often, and the other one is walked given it (ALGORITHMS 13).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from stage1.late import library
from stage1.scores import Scores

if TYPE_CHECKING:
    from stage1.calibration import CalibrationMap

special = library("scipy.special")

_FARTHEST = 1e12  # a score beyond this is none that a model gives


@dataclass(frozen=True, slots=True)
class Boundary:
    """lo, hi: limits of the thresholds, lo_threshold <= lo and hi_threshold >= hi; lo <= hi, one number but for a gate.

    Infinite where no score favours a class. origin: whose probability it is, in words.
    """

    lo: float
    hi: float
    origin: str

    def mirrored(self) -> Boundary:
        """The same limits for the negated score with the classes exchanged."""
        return Boundary(-self.hi, -self.lo, self.origin)

    @property
    def sentence(self) -> str:
        """For the assumptions of a certificate: what was fixed, and on what."""
        return (
            f"No image exits against its probability: the limits of both thresholds are even odds by {self.origin},"
            " fixed before the calibration images were looked at."
        )


def boundary_of_map(calibration: CalibrationMap, select: Scores | None, target_prior: float | None) -> Boundary:
    """The score at which a map that keeps the order of two classes gives even odds at the stated prior.

    calibration: fitted on `select`, or the identity. target_prior: P(y = 1) where the policy will work; None: the
    balance that the map was fitted at. Where the balance of `select` is not known the map's odds are taken.
    """
    from stage1.calibration import Identity

    score = even_odds(calibration, prior_shift(select, target_prior))
    origin = (
        "the softmax of the logits"
        if isinstance(calibration, Identity)
        else f"the {calibration.name} map of val_select"
    )
    return Boundary(score, score, origin + _at(select, target_prior))


def boundary_of_scores(select: Scores | None, target_prior: float | None, seed: int = 0) -> Boundary:
    """`boundary_of_map` for the map of least cross-validated NLL on `select`, as `calibration.map=auto` chooses it.

    Without labelled rows of val_select, with fewer than 10 of a class, or where no map is better: the softmax's own
    even odds.
    """
    from stage1.calibration import Identity, automatic, choose_map

    found: CalibrationMap | None = None
    if select is not None and select.labels is not None and len(select):
        found = choose_map(select, candidates=automatic(2), keep_order=True, seed=seed).map
    if found is None:
        found = Identity(n=0, n_classes=2)
    return boundary_of_map(found, select, target_prior)


def boundary_of_gate(select: Scores, target_prior: float | None) -> Boundary:
    """Limits on the signed gate u = +-P(right): an exit is favoured where the predicted class is the likelier."""
    shift = prior_shift(select, target_prior)
    # P(class 1) = u where u > 0 and 1 + u where u < 0; at another prior its odds move by exp(shift).
    lo, hi = -float(special.expit(shift)), float(special.expit(-shift))
    return Boundary(lo, hi, "the gate" + _at(select, target_prior))


def prior_shift(select: Scores | None, target_prior: float | None) -> float:
    """What the log odds of class 1 gain from the balance of `select` to `target_prior`; 0.0: one is not known."""
    share = _share_of_positives(select)
    if target_prior is None or share is None:
        return 0.0
    return float(special.logit(target_prior) - special.logit(share))


def _share_of_positives(select: Scores | None) -> float | None:
    """None where a class has no labelled row: then no balance can be restated."""
    if select is None or select.labels is None or not len(select):
        return None
    share = float((select.known_labels == 1).mean())
    return share if 0 < share < 1 else None


def even_odds(calibration: CalibrationMap, shift: float) -> float:
    """The score s at which the map's log odds of class 1 are -shift; +-inf where they stay on one side.

    calibration: strictly rising in the score (`keeps_order`, two classes).
    """
    from stage1.calibration import Identity

    if isinstance(calibration, Identity):
        return 0.0 - shift

    def favours(score: float) -> float:
        p = calibration.log_probabilities(np.array([[0.0, score]]))[0]
        return float(p[1] - p[0] + shift)

    start = favours(0.0)
    if start == 0:
        return 0.0
    # Towards the other sign; the odds rise with the score.
    sign = -1.0 if start > 0 else 1.0
    inner, outer = 0.0, sign
    while favours(outer) * start > 0:
        inner, outer = outer, 2 * outer
        if abs(outer) > _FARTHEST:
            return sign * float("inf")
    while (middle := (inner + outer) / 2) not in (inner, outer):
        inner, outer = (middle, outer) if favours(middle) * start > 0 else (inner, middle)
    return outer


def _at(select: Scores | None, target_prior: float | None) -> str:
    if target_prior is None:
        return ""
    if _share_of_positives(select) is None:
        return f" (not restated at a share of positives of {target_prior:g}: val_select has no rows of both classes)"
    return f" at a share of positives of {target_prior:g}"
