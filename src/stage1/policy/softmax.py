"""Softmax policy: the model's own score decides.

Two classes: two thresholds on the raw binary score s = logit_1 - logit_0; exit as 0 iff s < lo, as 1 iff s > hi.
More: policy/softmax_multiclass.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stage1.policy.base import Decision, PlainPolicy, Policy
from stage1.policy.certificate import Certificate
from stage1.policy.closed_form import Thresholds
from stage1.policy.kind import Configured, FitInputs, PolicyKind, Say
from stage1.policy.schema import THRESHOLDS_KIND
from stage1.policy.slice_thresholds import SliceThresholds, decided
from stage1.scores import Scores


@dataclass(frozen=True, slots=True)
class SoftmaxPolicy(PlainPolicy):
    """A fitted policy of two classes. certificate is None only for thresholds that were loaded without one.

    by_slice: thresholds of each value of an attribute; lo and hi are then None.

    >>> policy = SoftmaxPolicy(lo=-1.0, hi=2.0, classes=("none", "roadwork"), certified=False)
    >>> decision = policy.decide(Scores(np.array([[0.0, -3.0], [0.0, 1.0], [0.0, 4.0]])))
    >>> decision.exit.tolist(), decision.label.tolist()
    ([True, False, True], [0, 1, 1])
    """

    lo: float | None
    hi: float | None
    classes: tuple[str, ...]
    certified: bool
    certificate: Certificate | None = None
    by_slice: SliceThresholds | None = None

    name = "softmax"
    document_kind = THRESHOLDS_KIND

    @property
    def margin_thresholds(self) -> tuple[float | None, float | None]:
        """(lo, hi)."""
        return self.lo, self.hi

    @property
    def sliced_by(self) -> str | None:
        return None if self.by_slice is None else self.by_slice.attribute

    def decide(self, scores: Scores) -> Decision:
        """Exit, label and P(class 1) of every row. Raises DataError where scores have more than two classes."""
        margin = scores.margin
        as_negative, as_positive, why = decided(Thresholds(self.lo, self.hi), self.by_slice, margin, scores)
        label = np.where(as_negative, 0, np.where(as_positive, 1, margin > 0)).astype(np.int64)
        return Decision(as_negative | as_positive, label, scores.probabilities[:, 1], why)

    def to_document(self) -> dict[str, Any]:
        """Plain values for thresholds.json."""
        return {
            "policy": self.name,
            "lo": self.lo,
            "hi": self.hi,
            "classes": list(self.classes),
            "certified": self.certified,
            **({} if self.by_slice is None else {"by_slice": self.by_slice.to_document()}),
        }

    def shown(self) -> dict[str, Any]:
        """The thresholds of each slice, where they differ."""
        return {} if self.by_slice is None else {"by_slice": self.by_slice.to_document()}


@dataclass(frozen=True, slots=True)
class SoftmaxOptions:
    """Of more than two classes. confidence_score: a name in stage1.scores.confidence, fixed before val_calib is seen.
    thresholds: "one", "per_class", or "auto": what promises more on val_select.
    """

    confidence_score: str = "msp"
    thresholds: str = "auto"


def fit(inputs: FitInputs, options: SoftmaxOptions) -> Policy:
    """Thresholds on the margin (two classes) or a confidence (more), with certificate. Raises as fit_policy."""
    # Late here and below: who reads a policy to answer images needs nothing of how one is fitted.
    from stage1.policy.in_slices import certify_thresholds
    from stage1.policy.two_thresholds import TwoThresholds

    request = inputs.request()
    if len(request.classes) > 2:
        from stage1.policy.class_thresholds import fit_multiclass

        return fit_multiclass(
            request,
            calib=inputs.calib,
            select=inputs.select,
            confidence_score=options.confidence_score,
            thresholds=options.thresholds,
            counting=inputs.counting,
        )
    family = TwoThresholds(SoftmaxPolicy.name, lambda scores: scores.margin)
    target = replace(request, boundary=inputs.boundary())
    cuts, by_slice, certificate = certify_thresholds(family, target, inputs.calib, inputs.select, inputs.counting)
    return SoftmaxPolicy(cuts.lo, cuts.hi, tuple(request.classes), certificate.certified, certificate, by_slice)


def load(document: dict[str, Any], certificate: Certificate | None) -> Policy:
    """The policy of thresholds.json."""
    if len(document["classes"]) > 2:
        from stage1.policy.softmax_multiclass import MulticlassPolicy

        return MulticlassPolicy.from_document(document, certificate)
    return SoftmaxPolicy(
        document["lo"],
        document["hi"],
        tuple(document["classes"]),
        document["certified"],
        certificate,
        SliceThresholds.from_document(document.get("by_slice")),
    )


def configure(config: Configured, select: Scores | None, n_classes: int, say: Say) -> Mapping[str, Any]:
    """The options by the config; the confidence of more than two classes is chosen on val_select where it says auto."""
    from stage1.policy.class_thresholds import configured_confidence

    return {
        "confidence_score": configured_confidence(config, select, n_classes, say),
        "thresholds": config.policy.thresholds,
    }


def plug_in(policy: Policy, select: Scores, calib: Scores, targets: Mapping[str, float]) -> Policy | None:
    """The control of `policy`, fitted on the same draw: two classes: thresholds on the raw margin; more: on the
    confidence and with the kind of thresholds that it uses. None where val_select gives no path.
    """
    if calib.n_classes > 2:
        from stage1.policy.class_thresholds import plug_in_classes

        return plug_in_classes(policy, select, calib, targets)
    from stage1.policy.plug_in import plug_in_thresholds

    cuts = plug_in_thresholds(select, calib, targets)
    return None if cuts is None else SoftmaxPolicy(cuts.lo, cuts.hi, policy.classes, False)


KIND = PolicyKind(
    name=SoftmaxPolicy.name,
    file="thresholds.json",
    document=SoftmaxPolicy.document_kind,
    options=SoftmaxOptions,
    fit=fit,
    load=load,
    configure=configure,
    control=plug_in,
    on_margin=True,
)
