"""fit_policy: from scores and targets to a policy with its certificate; and back from files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stage1.documents import read_document
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError
from stage1.policy.certificate import Certificate
from stage1.policy.certify import certify
from stage1.policy.request import Request
from stage1.policy.softmax import SoftmaxPolicy
from stage1.scores import Scores

POLICY_FILES = {"softmax": "thresholds.json", "gate": "gateparams.json", "scrc": "scrcparams.json"}


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
) -> SoftmaxPolicy:
    """Choose the thresholds and certify them on `calib`, by the sharpest valid method for the set of risks.

    calib: labelled scores of val_calib, never seen by training or selection. select: labelled scores of val_select;
    needed where the target has no closed-form rule (both ratios, error, floors), else only its ids are looked at.
    risks: name -> target in (0, 1) of fnr, fpr, miss_rate, false_exit_rate, error. coverage, class_coverage: floors on the
    share of images (of a class) that exit. All held jointly at `confidence`. target_prior: P(y = 1) for error and coverage.
    unit, assume_iid: see policy/units.py. allow_one_sided: permit a target that one class answers trivially.
    classes: names for the sentence. attempt: how many targets these calibration images have been used for.
    uncertified_because: a reason known beforehand (leakage) for which nothing may be certified.

    Returns a policy in any case; where nothing can be certified, it defers every image and its certificate has
    certified = False, the reason and what is needed. Raises ConfigError (policy, target or flag), DataError (scores).
    """
    if name not in POLICY_FILES:
        raise ConfigError(f"policy {name!r} is unknown; policies are {', '.join(POLICY_FILES)}")
    if name != "softmax":
        raise ConfigError(f"policy {name!r} is not built yet; use softmax")
    names = tuple(classes) if classes is not None else ("0", "1")
    if len(names) != 2:
        raise DataError(f"classes: {len(names)} names for 2 classes")
    request = Request(
        risks, confidence, coverage, dict(class_coverage or {}), target_prior, allow_one_sided, names,
    )  # fmt: skip
    check_samples(calib, select)
    thresholds, certificate = certify(
        name, lambda scores: scores.margin, request, calib=calib, select=select, unit=unit, assume_iid=assume_iid, seed=seed,
        attempt=attempt, uncertified_because=uncertified_because,
    )  # fmt: skip
    return SoftmaxPolicy(thresholds.lo, thresholds.hi, names, certificate.certified, certificate)


def check_samples(calib: Scores, select: Scores | None) -> None:
    """Raises DataError where calib is empty, unlabelled, not binary, or shares an id with select."""
    _ = calib.known_labels
    if len(calib) == 0:
        raise DataError("calib: no rows; val_calib needs labelled images")
    if calib.n_classes != 2:
        raise DataError(f"calib: {calib.n_classes} classes; the softmax policy certifies two classes")
    if select is not None and select.ids is not None and calib.ids is not None:
        shared = np.intersect1d(select.ids, calib.ids)
        if len(shared):
            raise DataError(
                f"calib: id {shared[0]} ({len(shared)} in all) was in val_select too; a certificate needs unseen images"
            )


def load_policy(path: str | os.PathLike[str]) -> SoftmaxPolicy:
    """Read a policy file, or the one policy file of a folder, with `certificate.json` beside it where it is there.

    Raises MissingError (no file), IntegrityError (two policy files, damaged, or policy and certificate disagree).
    """
    path = Path(path)
    if path.is_dir():
        path = policy_file(path)
    document = read_document(path, "thresholds")
    certificate = (
        Certificate.load(path.parent / "certificate.json") if (path.parent / "certificate.json").exists() else None
    )
    if certificate is not None and (
        certificate.policy != document["policy"] or certificate.certified != document["certified"]
    ):
        raise IntegrityError(f"{path}: does not belong to the certificate.json beside it; run `stage1 calibrate` again")
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
    if found[0].name != "thresholds.json":
        raise ConfigError(f"{found[0]}: this policy is not built yet in this version")
    return found[0]
