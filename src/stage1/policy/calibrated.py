"""A policy with the calibration map of its run: what every folder with a calibration.json decides and states.

Thresholds are on the raw score where the map keeps the order of the scores; then the map changes the stated probability
and nothing else. Elsewhere (isotonic; K > 2: vector, Dirichlet) the map is frozen first and the policy, thresholds and
certificate are all about the mapped score (ALGORITHMS 2.6 iii).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stage1.calibration import CALIBRATION_FILE, CalibrationMap, FittedMap, Identity
from stage1.errors import IntegrityError
from stage1.policy.base import Decision, Policy, SelectedShare
from stage1.policy.certificate import Certificate
from stage1.scores import Scores
from stage1.storage.documents import DocumentKind, write_document


@dataclass(frozen=True, slots=True)
class CalibratedPolicy:
    """base: the policy fitted on the raw scores, or on the mapped ones where `frozen.score` is "mapped".

    Takes raw scores, like any policy.

    >>> from stage1.calibration import Platt
    >>> from stage1.policy import SoftmaxPolicy
    >>> labels = np.tile([0, 1], 100)
    >>> margin = np.random.default_rng(0).normal(2 * labels - 1, 1)
    >>> scores = Scores(np.stack([0 * margin, margin], axis=1), labels=labels)
    >>> base = SoftmaxPolicy(-1.0, 2.0, ("none", "roadwork"), certified=False)
    >>> policy = CalibratedPolicy(base, FittedMap(Platt.fit(scores)))
    >>> policy.name, policy.frozen.score
    ('softmax', 'raw')
    """

    base: Policy
    frozen: FittedMap

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def classes(self) -> tuple[str, ...]:
        return self.base.classes

    @property
    def certified(self) -> bool:
        return self.base.certified

    @property
    def certificate(self) -> Certificate | None:
        return self.base.certificate

    @property
    def own_probability(self) -> bool:
        return self.base.own_probability

    @property
    def decided_by(self) -> str | None:
        return self.base.decided_by

    @property
    def document_kind(self) -> DocumentKind:
        return self.base.document_kind

    @property
    def margin_thresholds(self) -> tuple[float | None, float | None]:
        """Those of `base`, on the margin of `decided_on(self, scores)`: mapped where score is "mapped"."""
        return self.base.margin_thresholds

    @property
    def sliced_by(self) -> str | None:
        return self.base.sliced_by

    def decide(self, scores: Scores) -> Decision:
        """Exit, label and calibrated probability of every row of raw scores.

        Where the score is raw, exit and label are those of `base`, bit by bit: a deferred row's label is the class of
        the larger logit, and a map with a shift may state less than one half for it. A gate keeps its own probability.
        """
        decision = self.base.decide(decided_on(self, scores))
        if self.frozen.score == "mapped" or self.own_probability:
            return decision
        probabilities = self.frozen.map.calibrate(scores).probabilities
        column = np.ones_like(decision.label) if scores.n_classes == 2 else decision.label
        return replace(decision, probability=np.take_along_axis(probabilities, column[:, None], axis=1)[:, 0])

    def to_document(self) -> dict[str, Any]:
        """The policy file of `base`, with `score` and, if "mapped", `calibration`: digest of calibration.json."""
        document = {**self.base.to_document(), "score": self.frozen.score}
        return document | ({"calibration": self.frozen.digest} if self.frozen.score == "mapped" else {})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the policy file, whole or not at all; calibration.json and the certificate are separate."""
        write_document(path, self.to_document(), self.document_kind)

    def selected_shares(self, scores: Scores) -> tuple[SelectedShare, ...]:
        return self.base.selected_shares(decided_on(self, scores))

    def refit_options(self) -> dict[str, Any]:
        return self.base.refit_options()

    def shown(self) -> dict[str, Any]:
        return self.base.shown()

    def with_certificate(self, certificate: Certificate) -> CalibratedPolicy:
        return replace(self, base=self.base.with_certificate(certificate))


def decided_on(policy: Policy, scores: Scores) -> Scores:
    """The scores on which the policy's thresholds are: raw, or mapped where its map was frozen first.

    >>> from stage1.policy import SoftmaxPolicy
    >>> scores = Scores(np.array([[0.0, -3.0], [0.0, 4.0]]))
    >>> decided_on(SoftmaxPolicy(-1.0, 2.0, ("none", "roadwork"), False), scores) is scores
    True
    """
    frozen = policy.frozen
    return frozen.map.calibrate(scores) if frozen is not None and frozen.score == "mapped" else scores


def reported(policy: Policy, scores: Scores) -> Scores:
    """The same rows with logits whose softmax is the probability that the policy states, for every class.

    The calibrated probability; a gate's own (two classes); the softmax of the scores where there is neither.

    >>> from stage1.calibration import Platt
    >>> from stage1.policy import SoftmaxPolicy
    >>> labels = np.tile([0, 1], 100)
    >>> margin = np.random.default_rng(0).normal(2 * labels - 1, 1)
    >>> scores = Scores(np.stack([0 * margin, margin], axis=1), labels=labels)
    >>> base = SoftmaxPolicy(-1.0, 2.0, ("none", "roadwork"), certified=False)
    >>> policy = CalibratedPolicy(base, FittedMap(Platt.fit(scores)))
    >>> reported(policy, scores).probabilities.shape
    (200, 2)
    """
    if policy.own_probability:
        # Inside (0, 1): a gate may print 1.0, and its logarithm of the other class would be infinite.
        tiny = np.finfo(np.float64).tiny
        p = np.clip(policy.decide(scores).probability, tiny, 1.0 - np.finfo(np.float64).epsneg)
        return replace(scores, logits=np.stack([np.log1p(-p), np.log(p)], axis=1))
    return scores if policy.frozen is None else policy.frozen.map.calibrate(scores)


def fit_calibrated(
    frozen: FittedMap,
    fit: Callable[[Scores | None, Scores, CalibrationMap], Policy],
    *,
    select: Scores | None,
    calib: Scores,
) -> CalibratedPolicy:
    """fit(select, calib, map) under a map that is frozen already; on mapped scores where it moves the order.

    fit: the policy with its certificate from scores of val_select (None: there are none) and val_calib; map: from these
    scores to the stated probability, which is the identity once they are mapped. Only val_select may
    have been used for the map: then a mapped score is a fixed function of one image's logits, which is all that the
    certificate asks of a score. Raises as fit does.
    """
    from stage1.policy.certify import calibration_digest

    if frozen.score == "raw":
        return CalibratedPolicy(fit(select, calib, frozen.map), frozen)
    mapped = fit(
        None if select is None else frozen.map.calibrate(select),
        frozen.map.calibrate(calib),
        Identity(n=frozen.map.n, n_classes=frozen.map.n_classes, fitted_on=frozen.map.fitted_on),
    )
    certificate = mapped.certificate
    if certificate is not None:
        certificate = replace(
            certificate,
            # Of the images, which are the same whatever is done to their scores.
            calib_digest=calibration_digest(calib),
            assumptions=(
                *certificate.assumptions,
                (
                    f"The thresholds lie on the score after the {frozen.map.name} map of {CALIBRATION_FILE}. It was"
                    " fitted on val_select, which shares no image with the calibration images, and frozen before these"
                    " were looked at."
                ),
            ),
            void_if=(*certificate.void_if, f"{CALIBRATION_FILE} (sha256 {frozen.digest}) is changed"),
        )
        mapped = mapped.with_certificate(certificate)
    return CalibratedPolicy(mapped, frozen)


def with_map(policy: Policy, document: Mapping[str, Any], folder: Path) -> Policy:
    """The policy read from a policy file in `folder`, with the map in calibration.json beside it where there is one.

    document: the policy file; `score` and `calibration` say on which scores its thresholds lie (raw where it does not
    say).
    Raises IntegrityError where the map is missing, damaged or another one.
    """
    path, score = folder / CALIBRATION_FILE, document.get("score", "raw")
    if not path.exists():
        if score == "mapped":
            raise IntegrityError(f"{path}: missing; the thresholds beside it lie on its scores: restore it")
        return policy
    found = FittedMap.load(path)
    if found.score != score or (score == "mapped" and found.digest != document.get("calibration")):
        raise IntegrityError(
            f"{path}: is not the map that the thresholds beside it were certified with ({score} score); run "
            "`stage1 calibrate` again"
        )
    return CalibratedPolicy(policy, found)
