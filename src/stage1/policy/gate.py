"""Gate policy: exit where g(x) = P(the answer is right | x) is high enough, with a threshold for each predicted class.

The signed gate score u is +g where the model predicts class 1 and -g where it predicts class 0. Exit as 0 iff u < lo,
as 1 iff u > hi: for every set of risks this is the softmax policy on another score, with its methods, proofs and
certificate.
The gate is fitted on val_select alone and frozen before val_calib is seen.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import ConfigError, DataError
from stage1.policy.base import Decision, PlainPolicy, Policy
from stage1.policy.certificate import Certificate
from stage1.policy.closed_form import Thresholds
from stage1.policy.kind import FitInputs, Judged, PolicyKind, Say
from stage1.policy.schema import GATEPARAMS_KIND
from stage1.policy.slice_thresholds import SliceThresholds, decided
from stage1.policy.softmax import plug_in
from stage1.policy.units import Counting, check_samples
from stage1.scores import Scores
from stage1.storage.documents import read_document

if TYPE_CHECKING:
    from stage1.calibration import CalibrationMap
    from stage1.policy.boundary import Boundary
    from stage1.policy.gate_features import Extra
    from stage1.policy.gate_model import GateModel, Source

Floats = NDArray[np.float64]
DecidedBy = Literal["gate", "softmax"]
WITHOUT_GATE = (
    "policy.name=softmax, which takes the scores as they are, or a gate with columns that tell right from wrong."
)
ASSUMPTION = "The gate was fitted on val_select, which shares no image with the calibration images."


def signed_gate(scores: Scores, g: ArrayLike) -> Floats:
    """u = +g where the model predicts class 1, -g where it predicts class 0; float [N].

    g: float [N] in (0, 1). Raises DataError for another shape or value, or where scores have more than two classes.
    """
    from stage1.policy.gate_model import predicted_class

    values = np.asarray(g, dtype=np.float64)
    if scores.n_classes != 2:
        raise DataError(f"logits: {scores.n_classes} classes; the gate policy is for two classes")
    if values.shape != (len(scores),) or not ((values > 0) & (values < 1)).all():
        raise DataError(
            f"g: shape {values.shape}; one value strictly between 0 and 1 for each of the {len(scores)} rows"
        )
    return np.where(predicted_class(scores) == 1, values, -values)


@dataclass(frozen=True, slots=True)
class GatePolicy(PlainPolicy):
    """A fitted gate policy. certificate is None only for one that was loaded without it.

    lo, hi: thresholds on the signed gate score, or on the raw margin where softmax was kept; None: that side never
    exits.
    decided_by: "gate", or "softmax" where the gate was refused and the margin decides. by_slice: thresholds of each
    value of an attribute; lo and hi are then None.

    >>> rng = np.random.default_rng(0)
    >>> labels = np.tile([0, 1], 400)
    >>> margin = 3 * rng.normal(2 * labels - 1, 1)
    >>> scores = Scores(np.stack([0 * margin, margin], axis=1), labels=labels, gate=abs(margin))
    >>> select, calib = scores.take(np.arange(300)), scores.take(np.arange(300, 800))
    >>> policy = fit_gate(select=select, calib=calib, risks={"fnr": 0.1, "false_exit_rate": 0.1})
    >>> policy.name, policy.certified, policy.margin_thresholds
    ('gate', True, (None, None))
    """

    model: GateModel
    lo: float | None
    hi: float | None
    classes: tuple[str, ...]
    certified: bool
    certificate: Certificate | None = None
    decided_by: DecidedBy = "gate"
    by_slice: SliceThresholds | None = None

    name = "gate"
    document_kind = GATEPARAMS_KIND

    @property
    def own_probability(self) -> bool:
        """Where the gate decides."""
        return self.decided_by == "gate"

    def refit_options(self) -> dict[str, Any]:
        """kept."""
        return {"kept": self.decided_by}

    @property
    def margin_thresholds(self) -> tuple[float | None, float | None]:
        """(lo, hi) where softmax was kept; thresholds on a gate are none on the margin."""
        return (self.lo, self.hi) if self.decided_by == "softmax" else (None, None)

    def decide(self, scores: Scores, extra: Extra | None = None) -> Decision:
        """Exit, label and P(class 1) of every row; extra: columns the gate was fitted with (None: scores.extra).

        P(class 1) is g where class 1 is predicted and 1 - g where class 0 is (the softmax's where softmax was kept).
        Raises DataError where scores have more than two classes or a column is missing.
        """
        from stage1.policy.gate_model import predicted_class

        predicted = predicted_class(scores)
        if self.decided_by == "softmax":
            score, probability = scores.margin, scores.probabilities[:, 1]
        else:
            g = self.model.apply(scores, scores.extra if extra is None else extra)
            score, probability = signed_gate(scores, g), np.where(predicted == 1, g, 1.0 - g)
        as_negative, as_positive, why = decided(Thresholds(self.lo, self.hi), self.by_slice, score, scores)
        label = np.where(as_negative, 0, np.where(as_positive, 1, predicted)).astype(np.int64)
        return Decision(as_negative | as_positive, label, probability, why)

    @property
    def sliced_by(self) -> str | None:
        return None if self.by_slice is None else self.by_slice.attribute

    def shown(self) -> dict[str, Any]:
        """The thresholds of each slice, where they differ."""
        return {} if self.by_slice is None else {"by_slice": self.by_slice.to_document()}

    def to_document(self) -> dict[str, Any]:
        """Plain values for gateparams.json."""
        return {
            "policy": self.name,
            "kept": self.decided_by,
            "lo": self.lo,
            "hi": self.hi,
            "classes": list(self.classes),
            "certified": self.certified,
            "model": self.model.to_document(),
            **({} if self.by_slice is None else {"by_slice": self.by_slice.to_document()}),
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any], certificate: Certificate | None = None) -> GatePolicy:
        """The inverse of to_document."""
        from stage1.policy.gate_model import GateModel

        return cls(
            model=GateModel.from_document(document["model"]),
            lo=document["lo"],
            hi=document["hi"],
            classes=tuple(document["classes"]),
            certified=document["certified"],
            certificate=certificate,
            decided_by=document["kept"],
            by_slice=SliceThresholds.from_document(document.get("by_slice")),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], certificate: Certificate | None = None) -> GatePolicy:
        """Read gateparams.json. Raises MissingError or IntegrityError."""
        return cls.from_document(read_document(path, GATEPARAMS_KIND), certificate)


def fit_gate(
    *,
    select: Scores,
    calib: Scores,
    risks: Mapping[str, float],
    confidence: float = 0.95,
    coverage: float | None = None,
    class_coverage: Mapping[str, float] | None = None,
    target_prior: float | None = None,
    allow_one_sided: bool = False,
    classes: Sequence[str] | None = None,
    extra_select: Extra | None = None,
    extra_calib: Extra | None = None,
    source: Source = "auto",
    ridge: float = 1.0,
    kept: DecidedBy = "gate",
    against_argmax: bool = False,
    calibration: CalibrationMap | None = None,
    counting: Counting = Counting(),
) -> GatePolicy:
    """Fit the gate on `select`, then choose the thresholds and certify them on `calib`, by the methods of fit_policy.

    select, calib: labelled scores of val_select and val_calib, with no id in common. extra_select, extra_calib: further
    feature columns, the same names in both (None: Scores.extra). source, ridge: see fit_gate_model. kept: "softmax"
    where the gate was refused (evaluation.accept_gate): the thresholds are then those of the margin. against_argmax,
    calibration: as in fit_policy; the gate's own probability says which exits are favoured, where it is kept. All other
    arguments as fit_policy takes them.

    Where the gate has collapsed nothing is certified, every image defers, and the certificate says why. Raises as
    fit_policy and fit_gate_model do.
    """
    # Late here and below: who reads a policy to answer images needs nothing of how one is fitted.
    from stage1.policy.boundary import boundary_of_gate
    from stage1.policy.certify import calibration_digest
    from stage1.policy.gate_model import cross_fitted_gate, fit_gate_model
    from stage1.policy.in_slices import certify_thresholds
    from stage1.policy.target import Request
    from stage1.policy.two_thresholds import TwoThresholds

    if kept not in ("gate", "softmax"):
        raise ConfigError(f"kept: {kept!r} is unknown; use gate or softmax")
    names = tuple(classes) if classes is not None else ("0", "1")
    if len(names) != 2:
        raise DataError(f"classes: {len(names)} names for 2 classes")
    request = Request(
        risks, confidence, coverage, dict(class_coverage or {}), target_prior, allow_one_sided, names, against_argmax
    )
    check_samples(calib, select)
    extra_select = select.extra if extra_select is None else extra_select
    extra_calib = calib.extra if extra_calib is None else extra_calib
    seed, uncertified_because = counting.seed, counting.uncertified_because
    fit: dict[str, Any] = {"source": source, "ridge": ridge, "seed": seed}
    model = fit_gate_model(select, extra_select, **fit)
    collapsed = False
    if model.collapsed is not None and kept == "gate" and uncertified_because is None:
        uncertified_because, collapsed = f"The gate is of no use: {model.collapsed}.", True
    on_select, on_calib = select.margin, calib.margin
    if kept == "gate":
        u = signed_gate(calib, model.apply(calib, extra_calib))
        on_calib = _spread(u)
        # In-sample g on val_select is too sure of itself, and the order of the candidates is made there.
        on_select = _spread(signed_gate(select, cross_fitted_gate(select, extra_select, **fit)))
    if not against_argmax:
        request = replace(request, boundary=_boundary(kept, select, target_prior, calibration, seed))
    thresholds, by_slice, certificate = certify_thresholds(
        TwoThresholds(GatePolicy.name, lambda scores: scores.margin),
        request,
        _with_margin(calib, on_calib),
        _with_margin(select, on_select),
        replace(counting, uncertified_because=uncertified_because),
    )
    certificate = replace(certificate, calib_digest=calibration_digest(calib))
    if collapsed:
        certificate = replace(certificate, needed=WITHOUT_GATE)
    if kept == "gate":
        thresholds = _unspread(thresholds, on_calib, u)
        if by_slice is not None:
            pairs = {value: _unspread(pair, on_calib, u) for value, pair in by_slice.pairs.items()}
            by_slice = replace(by_slice, pairs=pairs)
            own = [replace(claim, lo=pairs[claim.value].lo, hi=pairs[claim.value].hi) for claim in certificate.slices]
            certificate = replace(certificate, slices=tuple(own))
        limits = None if against_argmax else boundary_of_gate(select, target_prior)
        certificate = replace(
            certificate,
            assumptions=(*certificate.assumptions, ASSUMPTION),
            boundary=None if limits is None else (limits.lo, limits.hi),
        )
    return GatePolicy(model, thresholds.lo, thresholds.hi, names, certificate.certified, certificate, kept, by_slice)


def _boundary(
    kept: DecidedBy, select: Scores, target_prior: float | None, calibration: CalibrationMap | None, seed: int
) -> Boundary:
    """Limits on the scale on which the thresholds are chosen."""
    from stage1.policy.boundary import boundary_of_gate, boundary_of_map, boundary_of_scores

    if kept == "gate":
        found = boundary_of_gate(select, target_prior)
        lo, hi = _spread(np.array([found.lo, found.hi])).tolist()
        return replace(found, lo=lo, hi=hi)
    if calibration is None:
        return boundary_of_scores(select, target_prior, seed)
    return boundary_of_map(calibration, select, target_prior)


# ---- the scale on which thresholds are chosen ----------------------------------------------------------------------


def _with_margin(scores: Scores, margin: Floats) -> Scores:
    return replace(scores, logits=np.stack([np.zeros_like(margin), margin], axis=1), gate=None)


def _spread(u: Floats) -> Floats:
    """sign(u) times -log(1 - |u|): the same order, with room for a smoothed density near 1, where thresholds lie."""
    return -np.sign(u) * np.log1p(-np.abs(u))


def _unspread(thresholds: Thresholds, spread: Floats, u: Floats) -> Thresholds:
    """The thresholds on u of those on the spread scale, with the same exits among the calibration images."""
    found = Thresholds(
        None if thresholds.lo is None else _original(thresholds.lo, spread, u, "lo"),
        None if thresholds.hi is None else _original(thresholds.hi, spread, u, "hi"),
    )
    # What is claimed was counted on the other scale.
    pairs = zip(found.exits(u), thresholds.exits(spread), strict=True)
    assert all(np.array_equal(ours, counted) for ours, counted in pairs), "a threshold moved between two scales"
    return found


def _original(threshold: float, spread: Floats, u: Floats, side: Literal["lo", "hi"]) -> float:
    """The same image's u where the threshold is one's score, else its inverse, kept between the scores around it."""
    exits = spread < threshold if side == "lo" else spread > threshold
    if side == "hi":
        inner, limit = u[~exits].max(initial=-1.0), np.nextafter(u[exits].min(initial=1.0), -1.0)
    else:
        inner, limit = u[~exits].min(initial=1.0), np.nextafter(u[exits].max(initial=-1.0), 1.0)
    if (spread == threshold).any():
        return float(inner)
    # Rounding must not move a calibration image to the other side.
    return float(np.clip(-np.sign(threshold) * np.expm1(-abs(threshold)), min(inner, limit), max(inner, limit)))


# ---- the kind ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GateOptions:
    """kept: which score decides, "gate" or "softmax" (the gate was refused); source, ridge: see fit_gate_model."""

    kept: DecidedBy = "gate"
    source: Source = "auto"
    ridge: float = 1.0


def fit(inputs: FitInputs, options: GateOptions) -> Policy:
    """`fit_gate`; raises ConfigError where there are no scores of val_select."""
    request = inputs.request()
    if inputs.select is None:
        raise ConfigError("select: the gate is fitted on labelled scores of val_select; give them")
    return fit_gate(
        select=inputs.select,
        calib=inputs.calib,
        risks=inputs.risks,
        confidence=inputs.confidence,
        coverage=inputs.coverage,
        class_coverage=inputs.class_coverage,
        target_prior=inputs.target_prior,
        allow_one_sided=inputs.allow_one_sided,
        classes=request.classes,
        source=options.source,
        ridge=options.ridge,
        kept=options.kept,
        against_argmax=inputs.against_argmax,
        calibration=inputs.calibration,
        counting=inputs.counting,
    )


def judge(select: Scores, seed: int, say: Say) -> Judged:
    """Whether the gate is used: it must show a gain on val_select, else softmax is kept. Raises DataError for none."""
    from stage1.evaluation.score_selection import accept_gate
    from stage1.policy.gate_model import cross_fitted_gate, no_gate_because

    if len(select) == 0:
        raise DataError("val_select: no rows; the gate is fitted and judged on it")
    acceptance = accept_gate(
        select,
        cross_fitted_gate(select, select.extra, seed=seed),
        seed=seed,
        constant_because=no_gate_because(select, select.extra, seed=seed),
    )
    say(f"  gate: {acceptance.reason}")
    return Judged({"kept": "gate" if acceptance.accepted else "softmax"}, own_probability=acceptance.accepted)


KIND = PolicyKind(
    name=GatePolicy.name,
    file="gateparams.json",
    document=GatePolicy.document_kind,
    options=GateOptions,
    fit=fit,
    load=GatePolicy.from_document,
    control=plug_in,
    classes="2",
    judge=judge,
)
