"""SCRC policy: select by confidence, then exit where the conformal set of classes holds a single one.

| variant | selected | class floors, from the selected calibration images of each class | promise |
|---|---|---|---|
| I | g > tau, tau by the coverage rank | order statistic, exact binomial | PAC, over calibration sets |
| T | g >= tau, tau from these and this image | conformal risk control, floor((m + 1) alpha) - 1 losses | in the mean |

Class k is in the set iff the log odds of p_k are >= floor_k, which is p_k >= 1 - lambda_k with lambda_k =
sigmoid(-floor_k). Log odds are stored, since 1 - lambda loses the tail of saturated scores. An image exits where its
set holds one class; it is deferred where the set holds several or none.
The risk of class k is P(k not in the set | selected, y = k): miss_rate for class 1 and false_exit_rate for class 0
where there are two classes, miss_rate.<class> for more. It is counted among SELECTED images, so it bounds neither fnr
nor fpr (among exits).

An image that exits wrongly is a selected one, so at most the same share of ALL images of the class exits wrongly: that
is what the certificate says first, since it is about images that exit (`miss_rate` as every other policy has it).

The rule is fixed by the calibration images and each risk depends on one class, so it survives a change of class
balance; the share of selected images does not.
With more than two classes, one with too few labels for its risk is shut (policy/scrc_unclaimed.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import DataError, IntegrityError
from stage1.policy.base import Bools, Decision, PlainPolicy, SelectedShare
from stage1.policy.certificate import Certificate
from stage1.policy.schema import SCRCPARAMS_KIND
from stage1.risk.risks import risks_for
from stage1.scores import Scores
from stage1.storage.documents import finite_or_none

Floats = NDArray[np.float64]

_LARGEST = float(np.finfo(np.float64).max)


@dataclass(frozen=True, slots=True)
class ScrcPolicy(PlainPolicy):
    """A fitted policy. certificate is None only for parameters that were loaded without one.

    tau: log odds of confidence, -inf: everything is selected. floors: log odds per class, -inf: always in the set.
    confidence: "softmax" (g is the largest probability) or "gate" (g is sigmoid(Scores.gate)). xi: coverage claimed.
    alpha: risk -> target that was asked for. likeliest_in_set: the set holds the likeliest class whatever its floor
    (K > 2; a larger set loses no less), so that no image exits as another one. unclaimed: classes (K > 2) that are in a
    set only as its likeliest class, and as which no image exits; None: of a version in which none could be.

    >>> policy = ScrcPolicy(
    ...     variant="I",
    ...     confidence="softmax",
    ...     tau=1.0,
    ...     floors=(0.0, 0.0),
    ...     classes=("none", "roadwork"),
    ...     certified=True,
    ...     xi=0.7,
    ...     alpha={"miss_rate": 0.05, "false_exit_rate": 0.05},
    ... )
    >>> policy.decide(Scores(np.array([[0.0, -3.0], [0.0, 0.5], [0.0, 4.0]]))).exit.tolist()
    [True, False, True]
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
    likeliest_in_set: bool = False
    unclaimed: tuple[str, ...] | None = None

    name = "scrc"
    document_kind = SCRCPARAMS_KIND

    @property
    def lambdas(self) -> tuple[float, ...]:
        """lambda of each class: class k is in the set iff p_k >= 1 - lambda_k."""
        return tuple(float(np.exp(-np.logaddexp(0.0, floor))) for floor in self.floors)

    @property
    def equivalent_thresholds(self) -> tuple[float | None, float | None] | None:
        """(lo, hi) on Scores.margin with the same exits (None: that side never exits); None for a gate or K > 2.

        Two classes with the softmax's own confidence cut one score twice, so SCRC says nothing there that two
        thresholds do not say (ALGORITHMS 0.6).
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

    @property
    def never_answered(self) -> tuple[str, ...]:
        """Classes as which no image can exit: shut ones; a class that is always in the set leaves no single other."""
        if not self.certified:
            return self.classes
        closed = self.unclaimed or ()
        always = {k for k, value in enumerate(self.floors) if value == -inf and self.classes[k] not in closed}
        return tuple(name for k, name in enumerate(self.classes) if always - {k} or name in closed)

    @property
    def kept(self) -> dict[str, float]:
        """alpha of the risks that are claimed: of no class that is shut."""
        closed = {f"miss_rate.{name}" for name in self.unclaimed or ()}
        return {name: target for name, target in self.alpha.items() if name not in closed}

    def sets(self, scores: Scores) -> tuple[Bools, Bools]:
        """(selected bool [N], in_set bool [N, K]). Raises DataError for another number of classes or a missing gate."""
        if scores.n_classes != len(self.classes):
            raise DataError(
                f"logits: {scores.n_classes} columns; this policy was fitted on {len(self.classes)} classes"
            )
        odds = class_log_odds(scores.logits)
        g = confidence_of(scores, odds, self.confidence)
        # Variant T ranks the new image too: g = tau is then inside, whatever it ties with.
        in_set = odds >= np.asarray(self.floors)
        rows, likeliest = np.arange(len(in_set)), odds.argmax(axis=1)
        if self.likeliest_in_set:
            in_set[rows, likeliest] = True
        if self.unclaimed:
            closed = self.is_unclaimed
            in_set[:, closed] = False
            in_set[rows, likeliest] |= closed[likeliest]
        return (g > self.tau if self.variant == "I" else g >= self.tau), in_set

    @property
    def is_unclaimed(self) -> Bools:
        """Which classes are shut, bool [K]."""
        return np.array([name in (self.unclaimed or ()) for name in self.classes])

    def exits(self, scores: Scores) -> Bools:
        """Images whose set holds a single class which is not shut, bool [N]. Raises as sets() does."""
        return self.leaving(scores, *self.sets(scores))

    def leaving(self, scores: Scores, selected: Bools, in_set: Bools) -> Bools:
        """`exits`, from what `sets` gave for the same scores."""
        leaves = single_class(selected, in_set) & self.certified
        if self.unclaimed:
            leaves &= ~in_set[:, self.is_unclaimed].any(axis=1)
        if self.unclaimed is not None and self.variant == "T":
            # The mean over the sets in which a class is kept needs it (policy/scrc_unclaimed.py).
            leaves &= confidence_of(scores, class_log_odds(scores.logits), self.confidence) > self.tau
        return leaves

    def decide(self, scores: Scores) -> Decision:
        """Exit, label and probability of every row, each by itself. Raises as sets() does."""
        selected, in_set = self.sets(scores)
        leaves = self.leaving(scores, selected, in_set)
        label = np.where(leaves, in_set.argmax(axis=1), scores.logits.argmax(axis=1)).astype(np.int64)
        probability = scores.probabilities
        of_label = probability[:, 1] if len(self.classes) == 2 else probability[np.arange(len(label)), label]
        return Decision(exit=leaves, label=label, probability=of_label, why=self._why(selected, in_set))

    def _why(self, selected: Bools, in_set: Bools) -> NDArray[np.str_] | None:
        """Why a confident image of a shut class defers, str [N]; None where no class is shut."""
        if not self.unclaimed or not self.certified:
            return None
        texts = [f"no image exits as '{name}', of which val_calib has too few" for name in self.classes]
        members = in_set & self.is_unclaimed & selected[:, None]
        return np.where(members.any(axis=1), np.array(texts)[members.argmax(axis=1)], "")

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
            **({"likeliest_in_set": True} if self.likeliest_in_set else {}),
            **({"unclaimed": list(self.unclaimed)} if self.unclaimed is not None else {}),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], certificate: Certificate | None = None) -> ScrcPolicy:
        """The inverse of to_document. Raises IntegrityError where classes, floors and shut classes do not agree."""
        classes, floors = tuple(document["classes"]), document["floors"]
        if len(classes) != len(floors):
            raise IntegrityError(
                f"scrcparams: {len(floors)} floors for {len(classes)} classes; run `stage1 calibrate` again"
            )
        unclaimed = tuple(document["unclaimed"]) if "unclaimed" in document else None
        if unknown := [name for name in unclaimed or () if name not in classes]:
            raise IntegrityError(
                f"scrcparams: unclaimed {unknown[0]!r} is none of the classes {', '.join(classes)}; run `stage1"
                " calibrate` again"
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
            # Sets that were made before there was a choice held no class that their floors left out.
            likeliest_in_set=document.get("likeliest_in_set", False),
            unclaimed=unclaimed,
        )

    def refit_options(self) -> dict[str, Any]:
        """coverage, which is of selection, variant, and the whole target, also of classes that are shut."""
        return {"coverage": self.xi, "variant": self.variant, "risks": dict(self.alpha)}

    def selected_shares(self, scores: Scores) -> tuple[SelectedShare, ...]:
        """Risks and coverage of the selected images: among those of a class the wrong exits, among all the selected."""
        labels = scores.known_labels
        selected, in_set = self.sets(scores)
        counted = selected
        if self.variant == "T":
            # An image at tau is selected; beside a new one it is none of those that its floors are counted on.
            counted = confidence_of(scores, class_log_odds(scores.logits), self.confidence) > self.tau
        # The limited risks are monotone: those of all members of a class.
        of_class = {risk.name: int(risk.side == "positive") for risk in risks_for(2) if risk.monotone}
        of_class |= {f"miss_rate.{name}": index for index, name in enumerate(self.classes)}
        shares = []
        for name, target in self.kept.items():
            members = counted & (labels == of_class[name])
            shares.append(SelectedShare(name, ~in_set[:, of_class[name]] & members, members, most=target))
        return (*shares, SelectedShare("coverage", selected, np.ones_like(selected), least=self.xi))


def single_class(selected: Bools, in_set: Bools) -> Bools:
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


def confidence_of(scores: Scores, odds: Floats, kind: str) -> Floats:
    if kind == "softmax":
        return np.asarray(odds.max(axis=1))
    if scores.gate is None:
        raise DataError("gate: these scores have none; this SCRC policy selects by the gate")
    return scores.gate
