"""fit_policy: from scores and targets to a policy with its certificate; and back from files.

Which images a certificate is of, where the calibration images are challenges of the StreetVision client.

A certificate of scores that were made from several views of each image: it holds for exactly those views.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from stage1.calibration import CalibrationMap
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError
from stage1.policy.base import Policy
from stage1.policy.boundary import Boundary, boundary_of_map, boundary_of_scores
from stage1.policy.calibrated import CalibratedPolicy, fit_calibrated, with_map
from stage1.policy.certificate import Certificate, ViewsClaim
from stage1.policy.certify import certify
from stage1.policy.dealt import dealt
from stage1.policy.gate import GatePolicy, Kept, fit_gate
from stage1.policy.scrc import ScrcPolicy
from stage1.policy.scrc_fit import fit_scrc
from stage1.policy.softmax import SoftmaxPolicy
from stage1.policy.softmax_multiclass import MulticlassPolicy, fit_multiclass
from stage1.policy.target import Request
from stage1.risk.targets import default_risks
from stage1.scores import Scores
from stage1.storage.documents import read_document

POLICY_FILES = {"softmax": "thresholds.json", "gate": "gateparams.json", "scrc": "scrcparams.json"}
SCRC_COVERAGE = 0.7


def fit_policy(
    name: str,
    *,
    calib: Scores,
    risks: Mapping[str, float] | None = None,
    select: Scores | None = None,
    confidence: float = 0.95,
    coverage: float | None = None,
    class_coverage: Mapping[str, float] | None = None,
    target_prior: float | None = None,
    unit: str = "auto",
    assume_iid: bool = False,
    allow_one_sided: bool = False,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    attempt: int = 1,
    uncertified_because: str | None = None,
    variant: str = "I",
    kept: Kept = "gate",
    slices: Sequence[str] = (),
    confidence_score: str = "msp",
    thresholds: str = "auto",
    against_argmax: bool = False,
    calibration: CalibrationMap | None = None,
) -> Policy:
    """Choose the thresholds and certify them on `calib`, by the sharpest valid method for the set of risks.

    calib: labelled scores of val_calib, never seen by training or selection. select: labelled scores of val_select;
    needed where the target has no closed-form rule (both ratios, error, floors), else only its ids are looked at.
    risks: None: for two classes fnr 0.02 and false_exit_rate 0.05, for more error 0.05 (of scrc none). Else name ->
    target in (0, 1) of fnr, fpr, miss_rate, false_exit_rate, error; with more than two classes of error, fnr.<class>
    (wrong among images of the class that exit), wrong.<class> (wrong among images that exit as it) and
    miss_rate.<class> (wrong exits among all images of the class). coverage, class_coverage: floors on the share of
    images (of a class) that exit. All held jointly at `confidence`. target_prior: P(y = 1) for error and coverage.
    unit, assume_iid: see policy/units.py. allow_one_sided: permit a target that one class answers trivially.
    classes: names for the sentence. attempt: how many targets these calibration images have been used for.
    uncertified_because: a reason known beforehand (leakage) for which nothing may be certified.
    variant: of scrc, "I" or "T"; its `coverage` is the share to be selected (0.7 where none is given). kept: of gate,
    "softmax" where the gate was refused (stage1.evaluation.accept_gate). slices: attributes of Scores.slices; the risks
    are then claimed for each of their values too (policy/slices.py). confidence_score, thresholds: of softmax with more
    than two classes, a name in stage1.scores.confidence (fixed before calib is seen, e.g. by
    stage1.evaluation.choose_confidence) and "one" threshold, one "per_class", or "auto": what promises more on
    val_select (policy/softmax_multiclass.py).
    against_argmax: let images exit as a class that their calibrated probability (at target_prior, else at the balance
    of val_select) does not favour, where the target allows it. calibration: the map that gives this probability for two
    classes, fitted on `select`; None: the best by cross-validated NLL on `select`, the softmax's own where there are
    too few labelled rows. More than two classes exit as their likeliest class in any case (of scrc: unless
    against_argmax).

    Returns a policy in any case; where nothing can be certified, it defers every image and its certificate has
    certified = False, the reason and what is needed. Raises ConfigError (policy, target or flag), DataError (scores).
    """
    if name not in POLICY_FILES:
        raise ConfigError(f"policy {name!r} is unknown; policies are {', '.join(POLICY_FILES)}")
    check_samples(calib, select)
    risks = default_risks(calib.n_classes) if risks is None else risks
    counting: dict[str, Any] = {"unit": unit, "assume_iid": assume_iid, "seed": seed, "attempt": attempt}
    if slices and (name == "scrc" or calib.n_classes != 2):
        raise ConfigError(
            "slices: claims for slices are for the softmax and gate policies on two classes; leave them out"
        )

    def limits() -> Boundary | None:
        if against_argmax or calib.n_classes != 2:
            return None
        if calibration is None:
            return boundary_of_scores(select, target_prior, seed)
        return boundary_of_map(calibration, select, target_prior)

    if name == "scrc":
        if unit == "group_mean":
            raise ConfigError(
                "unit: group_mean is for softmax and gate; scrc counts images, or one image of each group"
            )
        if class_coverage or target_prior is not None:
            raise ConfigError(
                "policy scrc: takes coverage (of selection) only; class_coverage and target_prior are for softmax and"
                " gate"
            )
        policy: Policy = fit_scrc(
            select=select,
            calib=calib,
            risks=risks,
            coverage=SCRC_COVERAGE if coverage is None else coverage,
            confidence=confidence,
            variant=variant,
            classes=classes,
            uncertified_because=uncertified_because,
            against_argmax=against_argmax,
            boundary=limits(),
            **counting,
        )
        return said_of(policy, calib)
    names = tuple(classes) if classes is not None else tuple(str(index) for index in range(calib.n_classes))
    if len(names) != calib.n_classes:
        raise DataError(f"classes: {len(names)} names, {calib.n_classes} columns of logits; give one name for each")
    check_classes(name, names)
    request = Request(
        risks, confidence, coverage, dict(class_coverage or {}), target_prior, allow_one_sided, names, against_argmax
    )
    if name == "gate":
        if select is None:
            raise ConfigError("select: the gate is fitted on labelled scores of val_select; give them")
        policy = fit_gate(
            select=select,
            calib=calib,
            risks=risks,
            confidence=confidence,
            coverage=coverage,
            class_coverage=class_coverage,
            target_prior=target_prior,
            allow_one_sided=allow_one_sided,
            classes=names,
            kept=kept,
            slices=slices,
            uncertified_because=uncertified_because,
            against_argmax=against_argmax,
            calibration=calibration,
            **counting,
        )
        return said_of(policy, calib)
    if len(names) > 2:
        policy = fit_multiclass(
            request,
            calib=calib,
            select=select,
            confidence_score=confidence_score,
            thresholds=thresholds,
            uncertified_because=uncertified_because,
            **counting,
        )
        return said_of(policy, calib)
    counting["slices"] = slices
    cuts, certificate = certify(
        name,
        lambda scores: scores.margin,
        replace(request, boundary=limits()),
        calib=calib,
        select=select,
        uncertified_because=uncertified_because,
        **counting,
    )
    return said_of(SoftmaxPolicy(cuts.lo, cuts.hi, names, certificate.certified, certificate), calib)


def check_classes(policy: str, classes: Sequence[str]) -> None:
    """Raises ConfigError where a policy cannot be had with so many classes."""
    if policy == "gate" and len(classes) > 2:
        raise ConfigError(f"policy gate: is for two classes, there are {len(classes)}; use policy.name=softmax or scrc")


def refit(policy: Policy, *, calib: Scores, select: Scores | None, calibration: CalibrationMap | None = None) -> Policy:
    """The same policy fitted anew from its scores, under the target, flags and seed that its certificate states.

    calib, select: raw scores; a policy on mapped scores maps them first, by the map that it carries, and that map also
    says which exits are favoured. calibration: that of a policy which carries none.
    What comes out equals `policy` where it was made from these scores. Raises as fit_policy does, and IntegrityError
    where the policy carries no certificate.
    """
    if isinstance(policy, CalibratedPolicy):
        base = policy.base
        return fit_calibrated(
            policy.frozen,
            lambda rows, units, found: refit(base, calib=units, select=rows, calibration=found),
            select=select,
            calib=calib,
        )
    stated = policy.certificate
    if stated is None:
        raise IntegrityError("certificate.json: missing; it states what the policy was fitted for")
    again = fit_policy(
        policy.name,
        calib=calib,
        select=select,
        risks={name: risk.target for name, risk in stated.risks.items()},
        confidence=stated.confidence,
        coverage=policy.xi if isinstance(policy, ScrcPolicy) else stated.coverage.floor,
        class_coverage={name: share.floor for name, share in stated.per_class.items() if share.floor is not None},
        target_prior=stated.target_prior,
        unit=stated.unit,
        assume_iid=stated.assume_iid,
        # Whether one side may stay open was settled by the run; the sentence names the risks.
        allow_one_sided=True,
        classes=stated.classes,
        seed=stated.seed,
        attempt=stated.attempt,
        # A refusal by arithmetic says what is needed; one that does not was known beforehand (leakage).
        uncertified_because=stated.reason if not stated.certified and stated.needed is None else None,
        variant=policy.variant if isinstance(policy, ScrcPolicy) else "I",
        kept=policy.kept if isinstance(policy, GatePolicy) else "gate",
        slices=stated.slices_asked,
        confidence_score=policy.confidence_score if isinstance(policy, MulticlassPolicy) else "msp",
        thresholds=policy.mode if isinstance(policy, MulticlassPolicy) else "auto",
        against_argmax=stated.against_argmax,
        calibration=calibration,
    )
    return dealt(on_views(again, stated.views), stated.dealing)


def check_samples(calib: Scores, select: Scores | None) -> None:
    """Raises DataError where calib is empty, unlabelled, or shares an id with select."""
    _ = calib.known_labels
    if len(calib) == 0:
        raise DataError("calib: no rows; val_calib needs labelled images")
    if select is not None and select.ids is not None and calib.ids is not None:
        shared = np.intersect1d(select.ids, calib.ids)
        if len(shared):
            raise DataError(
                f"calib: id {shared[0]} ({len(shared)} in all) was in val_select too; a certificate needs unseen images"
            )


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Read a policy file, or the one policy file of a folder, with certificate.json and calibration.json where they are
    there.

    With a calibration.json the policy states calibrated probabilities, and decides on mapped scores where its file says
    so.
    Raises MissingError (no file), IntegrityError (two policy files, damaged, or policy, certificate and map disagree).
    """
    path = Path(path)
    if path.is_dir():
        path = policy_file(path)
    kinds = {file: Path(file).stem for file in POLICY_FILES.values()}
    document = read_document(path, kinds.get(path.name, "thresholds"))
    certificate = (
        Certificate.load(path.parent / "certificate.json") if (path.parent / "certificate.json").exists() else None
    )
    if certificate is not None and (
        certificate.policy != document["policy"] or certificate.certified != document["certified"]
    ):
        raise IntegrityError(f"{path}: does not belong to the certificate.json beside it; run `stage1 calibrate` again")
    return with_map(_from_document(document, certificate), document, path.parent)


def _from_document(document: dict[str, Any], certificate: Certificate | None) -> Policy:
    if document["policy"] == "gate":
        return GatePolicy.from_document(document, certificate)
    if document["policy"] == "scrc":
        return ScrcPolicy.from_document(document, certificate)
    if len(document["classes"]) > 2:
        return MulticlassPolicy.from_document(document, certificate)
    return SoftmaxPolicy(document["lo"], document["hi"], tuple(document["classes"]), document["certified"], certificate)


def policy_file(folder: str | os.PathLike[str]) -> Path:
    """The one policy file of a folder. Raises MissingError for none, IntegrityError for more than one."""
    folder = Path(folder)
    found = [folder / name for name in POLICY_FILES.values() if (folder / name).exists()]
    if not found:
        raise MissingError(
            f"{folder}: no policy file ({', '.join(POLICY_FILES.values())}); run `stage1 calibrate` first"
        )
    if len(found) > 1:
        raise IntegrityError(
            f"{folder}: {' and '.join(item.name for item in found)} exclude each other; remove all but one"
        )
    return found[0]


LEVEL = "level"
LEVELS = ("L0", "L1", "L2", "L3")


def said_of(policy: Policy, calib: Scores) -> Policy:
    """The policy, its certificate saying which challenges it was made of, with their shares in `calib`; else as it is.

    From the slice `level`, which travels with the scores: a certificate that is made again says the same.
    """
    certificate = policy.certificate
    words = population(calib)
    if certificate is None or not words:
        return policy
    base: Any = policy  # every policy is a frozen dataclass with this field; the protocol cannot say so
    again: Policy = replace(base, certificate=replace(certificate, statement=f"{certificate.statement} {words}"))
    return again


def population(calib: Scores) -> str:
    """One sentence; "" where the images are no challenges."""
    levels = calib.slices.get(LEVEL)
    if levels is None or not len(levels) or not set(np.unique(levels).tolist()) <= set(LEVELS):
        return ""
    shares = {name: float((levels == name).mean()) for name in LEVELS}
    present = [name for name in LEVELS if shares[name] > 0]
    if len(present) == 1:
        return f"An image here is a frame as the StreetVision client distorts it at level {present[0]}, as 224 px JPEG."
    parts = ", ".join(f"{name} {100 * shares[name]:.3g} %" for name in present)
    claim = "the claim for all images is for this mixture" if len(present) == len(LEVELS) else "the claim is for these"
    return f"An image here is a frame as the StreetVision client distorts it, as 224 px JPEG ({parts}): {claim}."


def on_views(policy: Policy, views: ViewsClaim | None) -> Policy:
    """The policy with a certificate that names the views under its scores; None: scores of whole images, as it
    stands.
    """
    if views is None or policy.certificate is None:
        return policy
    base: Any = policy  # every policy is a frozen dataclass with this field; the protocol cannot say so
    viewed: Policy = replace(base, certificate=_named(policy.certificate, views))
    return viewed


def _named(certificate: Certificate, views: ViewsClaim) -> Certificate:
    return replace(
        certificate,
        views=views,
        statement=f"{certificate.statement} Every image is judged on {views.description}.",
        assumptions=(
            *certificate.assumptions,
            (
                "The views, how they are aggregated and when looking stops were fixed on val_select, which shares no"
                " image with the calibration images."
            ),
        ),
        void_if=(
            *certificate.void_if,
            f"other views are looked at, or are aggregated in another way (views.json, sha256 {views.digest})",
        ),
    )
