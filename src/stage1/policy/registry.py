"""POLICIES, one row for each kind of policy: from scores and targets to a policy with its certificate, and from files.

A policy of one's own is a file that ends in its PolicyKind, and one line: `POLICIES[KIND.name] = KIND`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1.calibration import CalibrationMap
from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.policy import gate, scrc_fit, softmax
from stage1.policy.attempts import Attempts, Plan
from stage1.policy.base import Policy
from stage1.policy.calibrated import fit_calibrated, with_map
from stage1.policy.certificate import Certificate
from stage1.policy.gate import DecidedBy
from stage1.policy.kind import FitInputs, PolicyKind
from stage1.policy.units import Counting, check_samples
from stage1.scores import Scores
from stage1.storage.documents import read_document

if TYPE_CHECKING:
    from stage1.policy.ledger import Ledger

POLICIES: dict[str, PolicyKind] = {kind.name: kind for kind in (softmax.KIND, gate.KIND, scrc_fit.KIND)}


class _Files(Mapping[str, str]):
    """Policy file of every kind, by the kind's name; a view of POLICIES."""

    def __getitem__(self, name: str) -> str:
        return POLICIES[name].file

    def __iter__(self) -> Iterator[str]:
        return iter(POLICIES)

    def __len__(self) -> int:
        return len(POLICIES)


POLICY_FILES: Mapping[str, str] = _Files()


def policy_kind(name: str) -> PolicyKind:
    """The row of POLICIES. Raises ConfigError where there is none.

    >>> policy_kind("scrc").file
    'scrcparams.json'
    """
    if name not in POLICIES:
        raise ConfigError(f"policy {name!r} is unknown; policies are {', '.join(POLICIES)}")
    return POLICIES[name]


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
    attempts: Attempts | None = None,
    ledger: Ledger | str | os.PathLike[str] | None = None,
    plan: Plan = Plan(),
    uncertified_because: str | None = None,
    variant: str = "I",
    kept: DecidedBy = "gate",
    slices: Sequence[str] = (),
    slice_thresholds: str = "auto",
    confidence_score: str = "msp",
    thresholds: str = "auto",
    against_argmax: bool = False,
    calibration: CalibrationMap | None = None,
    **options: Any,
) -> Policy:
    """Choose the thresholds and certify them on `calib`, by the sharpest valid method for the set of risks.

    calib: labelled scores of val_calib, never seen by training or selection. select: labelled scores of val_select;
    needed where the target has no closed-form rule (both ratios, error, floors), else only its ids are read.
    risks: None: for two classes fnr 0.02 and false_exit_rate 0.05, for more error 0.05 (of scrc none). Else name ->
    target in (0, 1) of fnr, fpr, miss_rate, false_exit_rate, error; with more than two classes of error, fnr.<class>
    (wrong among images of the class that exit), wrong.<class> (wrong among images that exit as it) and
    miss_rate.<class> (wrong exits among all images of the class). coverage, class_coverage: floors on the share of
    images (of a class) that exit. All held jointly at `confidence`. target_prior: P(y = 1) for error and coverage.
    unit, assume_iid: see policy/units.py. allow_one_sided: permit a target that one class answers trivially.
    classes: names for the sentence. attempt: looks at these calibration images, counted by the caller: the headline is
    then 1 - attempt x (1 - confidence). ledger: a file (made where there is none) or a `Ledger`, which counts the looks
    at these images by itself; plan: how delta is spent on them, Plan(planned=5) or Plan(schedule="sequential").
    attempts: what a ledger said of this look before (policy/attempts.py).
    uncertified_because: a reason known beforehand (leakage) for which nothing may be certified.
    variant: of scrc, "I" or "T"; its `coverage` is the share to be selected (0.7 where none is given). kept: of gate,
    "softmax" where the gate was refused (stage1.evaluation.accept_gate). slices: attributes of Scores.slices; the risks
    are then claimed for each of their values too. slice_thresholds: "own" thresholds for each value of one attribute,
    which every image that is predicted must then have (policy/in_slices.py), "one" pair for all (policy/slices.py), or
    "auto": own where it can be. confidence_score, thresholds: of softmax with more
    than two classes, a name in stage1.scores.confidence (fixed before calib is seen, e.g. by
    stage1.evaluation.choose_confidence) and "one" threshold, one "per_class", or "auto": what promises more on
    val_select (policy/class_thresholds.py).
    against_argmax: let images exit as a class that their calibrated probability (at target_prior, else at the balance
    of val_select) does not favour, where the target allows it. calibration: the map that gives this probability for two
    classes, fitted on `select`; None: the best by cross-validated NLL on `select`, the softmax's own where there are
    too few labelled rows. More than two classes exit as their likeliest class in any case (of scrc: unless
    against_argmax). options: further ones of the policy (PolicyKind.options).

    Returns a policy in any case; where nothing can be certified, it defers every image and its certificate has
    certified = False, the reason and what is needed. Raises ConfigError (policy, target or flag), DataError (scores).

    >>> calib = Scores([[0.0, row - 199.5] for row in range(400)], labels=[0] * 200 + [1] * 200)
    >>> policy = fit_policy("softmax", calib=calib, classes=["none", "roadwork"])
    >>> policy.certified, policy.certificate.method
    (True, 'two-sided walk, exact binomial')
    >>> print(policy.certificate.statement.split(", and ")[0])
    With confidence 95 %, among roadwork images that exit, at most 2 % are called 'none'
    >>> few = fit_policy("softmax", calib=Scores([[0.0, -1.0], [0.0, 1.0]], labels=[0, 1]))
    >>> few.certified, few.decide(calib).coverage
    (False, 0.0)
    """
    # Late, here and in `refit`: who reads a policy to answer images needs nothing of how one is fitted.
    from stage1.policy.image_keys import image_set
    from stage1.policy.ledger import Ledger, look_of
    from stage1.policy.provenance import said_of
    from stage1.risk.targets import default_risks

    kind = policy_kind(name)
    kind.check_options(options)
    check_samples(calib, select)
    if slices and (not kind.slices or calib.n_classes != 2):
        sliced = [other.name for other in POLICIES.values() if other.slices]
        raise ConfigError(
            f"slices: claims for slices are for the {' and '.join(sliced)} policies on two classes; leave them out"
        )
    if classes is None or len(classes) == calib.n_classes:
        check_classes(name, calib.n_classes)
    if attempts is None and attempt > 1:
        attempts = Attempts.of(confidence, attempt)
    inputs = FitInputs(
        calib=calib,
        select=select,
        risks=default_risks(calib.n_classes) if risks is None else risks,
        confidence=confidence,
        coverage=coverage,
        class_coverage=dict(class_coverage or {}),
        target_prior=target_prior,
        allow_one_sided=allow_one_sided,
        classes=classes,
        against_argmax=against_argmax,
        calibration=calibration,
        counting=Counting(unit, assume_iid, seed, None, uncertified_because, slices, slice_thresholds),
    )
    own = {"variant": variant, "kept": kept, "confidence_score": confidence_score, "thresholds": thresholds}
    taken = kind.options_of({**own, **options})
    if ledger is None:
        return said_of(kind.fit(inputs if attempts is None else inputs.counted(attempts, confidence), taken), calib)
    looks = ledger if isinstance(ledger, Ledger) else Ledger(ledger)
    look = look_of(image_set(calib), inputs.asked(name, taken))
    with looks.asking(look, confidence, plan) as (counted, tested):
        return said_of(kind.fit(inputs.counted(counted, tested), taken), calib)


def check_classes(name: str, n_classes: int) -> None:
    """Raises ConfigError where the policy cannot be had with so many classes."""
    if policy_kind(name).classes == "2" and n_classes > 2:
        others = [kind.name for kind in POLICIES.values() if kind.classes == "any"]
        raise ConfigError(
            f"policy {name}: is for two classes, there are {n_classes}; use policy.name={' or '.join(others)}"
        )


def refit(policy: Policy, *, calib: Scores, select: Scores | None, calibration: CalibrationMap | None = None) -> Policy:
    """The same policy fitted anew from its scores, under the target, flags and seed that its certificate states.

    calib, select: raw scores; a policy on mapped scores maps them first, by the map that it carries, and that map also
    says which exits are favoured. calibration: that of a policy which carries none.
    What comes out equals `policy` where it was made from these scores. Raises as fit_policy does, and IntegrityError
    where the policy carries no certificate.

    >>> calib = Scores([[0.0, row - 199.5] for row in range(400)], labels=[0] * 200 + [1] * 200)
    >>> policy = fit_policy("softmax", calib=calib)
    >>> refit(policy, calib=calib, select=None) == policy
    True
    """
    from stage1.policy.group_dealing import dealt
    from stage1.policy.provenance import on_views

    if policy.frozen is not None:
        base = policy.base
        return fit_calibrated(
            policy.frozen,
            lambda rows, units, found: refit(base, calib=units, select=rows, calibration=found),
            select=select,
            calib=calib,
        )
    reported = policy.certificate
    if reported is None:
        raise IntegrityError("certificate.json: missing; it states what the policy was fitted for")
    asked: dict[str, Any] = {
        "risks": {name: risk.target for name, risk in reported.risks.items()},
        "confidence": reported.confidence,
        "coverage": reported.coverage.floor,
        "class_coverage": {name: share.floor for name, share in reported.per_class.items() if share.floor is not None},
        "target_prior": reported.target_prior,
        "unit": reported.unit,
        "assume_iid": reported.assume_iid,
        # Whether one side may stay open was settled by the run; the sentence names the risks.
        "allow_one_sided": True,
        "classes": reported.classes,
        "seed": reported.seed,
        "attempt": reported.attempt,
        "attempts": reported.attempts,
        # A refusal by arithmetic says what is needed; one that does not was known beforehand (leakage).
        "uncertified_because": reported.reason if not reported.certified and reported.needed is None else None,
        "slices": reported.slices_asked,
        "slice_thresholds": reported.slice_thresholds or "one",
        "against_argmax": reported.against_argmax,
    }
    again = fit_policy(
        policy.name, calib=calib, select=select, calibration=calibration, **{**asked, **policy.refit_options()}
    )
    return dealt(on_views(again, reported.views), reported.dealing)


def load_policy(path: str | os.PathLike[str]) -> Policy:
    """Read a policy file, or the one of a folder, with certificate.json and calibration.json where they are there.

    With a calibration.json the policy states calibrated probabilities, and decides on mapped scores where its file says
    so.
    Raises MissingError (no file), IntegrityError (two policy files, damaged, or policy, certificate and map disagree).

    >>> import tempfile
    >>> calib = Scores([[0.0, row - 199.5] for row in range(400)], labels=[0] * 200 + [1] * 200)
    >>> policy = fit_policy("softmax", calib=calib)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     policy.save(f"{folder}/thresholds.json")
    ...     policy.certificate.save(f"{folder}/certificate.json")
    ...     load_policy(folder).certificate == policy.certificate
    True
    """
    path = Path(path)
    if path.is_dir():
        path = policy_file(path)
    # A file of another name is read as thresholds, which it then is or is not.
    kind = next((kind for kind in POLICIES.values() if kind.file == path.name), softmax.KIND)
    document = read_document(path, kind.document)
    certificate = (
        Certificate.load(path.parent / "certificate.json") if (path.parent / "certificate.json").exists() else None
    )
    if certificate is not None and (
        certificate.policy != document["policy"] or certificate.certified != document["certified"]
    ):
        raise IntegrityError(f"{path}: does not belong to the certificate.json beside it; run `stage1 calibrate` again")
    return with_map(policy_kind(document["policy"]).load(document, certificate), document, path.parent)


def has_policy_file(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds the policy file of any kind.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     has_policy_file(folder)
    False
    """
    return any((Path(folder) / name).is_file() for name in POLICY_FILES.values())


def policy_file(folder: str | os.PathLike[str]) -> Path:
    """The one policy file of a folder. Raises MissingError for none, IntegrityError for more than one.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     Path(folder, "thresholds.json").touch()
    ...     policy_file(folder).name
    'thresholds.json'
    """
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
