"""fit_policy: from scores and targets to a policy with its certificate; and back from files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stage1.documents import read_document
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError
from stage1.policy.certificate import Certificate
from stage1.policy.certify import certify
from stage1.policy.decision import Policy
from stage1.policy.gate import GatePolicy, Kept, fit_gate
from stage1.policy.request import Request
from stage1.policy.scrc import ScrcPolicy, fit_scrc
from stage1.policy.softmax import SoftmaxPolicy
from stage1.scores import Scores

POLICY_FILES = {"softmax": "thresholds.json", "gate": "gateparams.json", "scrc": "scrcparams.json"}
SCRC_COVERAGE = 0.7


def fit_policy(
    name: str,
    *,
    calib: Scores,
    risks: Mapping[str, float],
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
) -> Policy:
    """Choose the thresholds and certify them on `calib`, by the sharpest valid method for the set of risks.

    calib: labelled scores of val_calib, never seen by training or selection. select: labelled scores of val_select;
    needed where the target has no closed-form rule (both ratios, error, floors), else only its ids are looked at.
    risks: name -> target in (0, 1) of fnr, fpr, miss_rate, false_exit_rate, error. coverage, class_coverage: floors on the
    share of images (of a class) that exit. All held jointly at `confidence`. target_prior: P(y = 1) for error and coverage.
    unit, assume_iid: see policy/units.py. allow_one_sided: permit a target that one class answers trivially.
    classes: names for the sentence. attempt: how many targets these calibration images have been used for.
    uncertified_because: a reason known beforehand (leakage) for which nothing may be certified.
    variant: of scrc, "I" or "T"; its `coverage` is the share to be selected (0.7 where none is given). kept: of gate,
    "softmax" where the gate was refused (stage1.evaluation.accept_gate).

    Returns a policy in any case; where nothing can be certified, it defers every image and its certificate has
    certified = False, the reason and what is needed. Raises ConfigError (policy, target or flag), DataError (scores).
    """
    if name not in POLICY_FILES:
        raise ConfigError(f"policy {name!r} is unknown; policies are {', '.join(POLICY_FILES)}")
    check_samples(calib, select)
    counting: dict[str, Any] = {"unit": unit, "assume_iid": assume_iid, "seed": seed, "attempt": attempt}
    if name == "scrc":
        if class_coverage or target_prior is not None:
            raise ConfigError(
                "policy scrc: takes coverage (of selection) only; class_coverage and target_prior are for softmax and gate"
            )
        return fit_scrc(
            select=select, calib=calib, risks=risks, coverage=SCRC_COVERAGE if coverage is None else coverage, confidence=confidence,
            variant=variant, classes=classes, uncertified_because=uncertified_because, **counting,
        )  # fmt: skip
    names = tuple(classes) if classes is not None else ("0", "1")
    if len(names) != 2 or calib.n_classes != 2:
        raise DataError(
            f"classes: {len(names)} names, {calib.n_classes} columns of logits; this policy certifies two classes"
        )
    request = Request(risks, confidence, coverage, dict(class_coverage or {}), target_prior, allow_one_sided, names)
    if name == "gate":
        if select is None:
            raise ConfigError("select: the gate is fitted on labelled scores of val_select; give them")
        return fit_gate(
            select=select, calib=calib, risks=risks, confidence=confidence, coverage=coverage, class_coverage=class_coverage,
            target_prior=target_prior, allow_one_sided=allow_one_sided, classes=names, kept=kept,
            uncertified_because=uncertified_because, **counting,
        )  # fmt: skip
    thresholds, certificate = certify(
        name,
        lambda scores: scores.margin,
        request,
        calib=calib,
        select=select,
        uncertified_because=uncertified_because,
        **counting,
    )
    return SoftmaxPolicy(thresholds.lo, thresholds.hi, names, certificate.certified, certificate)


def refit(policy: Policy, *, calib: Scores, select: Scores | None) -> Policy:
    """The same policy fitted anew from its scores, under the target, flags and seed that its certificate states.

    What comes out equals `policy` where it was made from these scores. Raises as fit_policy does, and IntegrityError
    where the policy carries no certificate.
    """
    stated = policy.certificate
    if stated is None:
        raise IntegrityError("certificate.json: missing; it states what the policy was fitted for")
    return fit_policy(
        policy.name, calib=calib, select=select, risks={name: risk.target for name, risk in stated.risks.items()},
        confidence=stated.confidence, coverage=policy.xi if isinstance(policy, ScrcPolicy) else stated.coverage.floor,
        class_coverage={name: share.floor for name, share in stated.per_class.items() if share.floor is not None},
        target_prior=stated.target_prior, unit=stated.unit, assume_iid=stated.assume_iid,
        # Whether one side may stay open was settled by the run; the sentence names the risks.
        allow_one_sided=True, classes=stated.classes, seed=stated.seed, attempt=stated.attempt,
        # A refusal by arithmetic says what is needed; one that does not was known beforehand (leakage).
        uncertified_because=stated.reason if not stated.certified and stated.needed is None else None,
        variant=policy.variant if isinstance(policy, ScrcPolicy) else "I",
        kept=policy.kept if isinstance(policy, GatePolicy) else "gate",
    )  # fmt: skip


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
    """Read a policy file, or the one policy file of a folder, with `certificate.json` beside it where it is there.

    Raises MissingError (no file), IntegrityError (two policy files, damaged, or policy and certificate disagree).
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
    if document["policy"] == "gate":
        return GatePolicy.from_document(document, certificate)
    if document["policy"] == "scrc":
        return ScrcPolicy.from_document(document, certificate)
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
