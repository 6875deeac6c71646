"""fit_policy: from scores and targets to a policy with its certificate; and back from files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from stage1.documents import read_document
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError
from stage1.files import digest_bytes, digest_ids
from stage1.policy.certificate import (
    VOID_IF,
    Certificate,
    Coverage,
    RiskBound,
    assumptions,
    certified_statement,
    images,
    percent,
    refused_statement,
)
from stage1.policy.softmax import METHODS, SoftmaxPolicy, Thresholds, choose_thresholds
from stage1.policy.units import choose_unit, clustered, one_per_group
from stage1.risk import binomial_upper, minimum_samples
from stage1.risk.planning import SIDES, shared_delta
from stage1.scores import Scores

POLICY_FILES = {"softmax": "thresholds.json", "gate": "gateparams.json", "scrc": "scrcparams.json"}


def fit_policy(
    name: str,
    *,
    calib: Scores,
    risks: Mapping[str, float],
    select: Scores | None = None,
    confidence: float = 0.95,
    unit: str = "auto",
    assume_iid: bool = False,
    allow_one_sided: bool = False,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    attempt: int = 1,
    uncertified_because: str | None = None,
) -> SoftmaxPolicy:
    """Choose the thresholds and certify them on `calib`, by the method that belongs to the set of risks.

    calib: labelled scores of val_calib, never seen by training or selection. select: scores of val_select; this policy
    needs no ordering from it and only checks that no id stands in both. risks: name -> target in (0, 1), held jointly at
    `confidence`. unit, assume_iid: see policy/units.py. allow_one_sided: permit miss_rate or false_exit_rate alone; the
    other side then always defers. classes: names for the sentence. attempt: how many targets these calibration images
    have been used for. uncertified_because: a reason known beforehand (leakage) for which nothing may be certified.

    Returns a policy in any case; where nothing can be certified, it defers every image and its certificate has
    certified = False, the reason and what is needed. Raises ConfigError (policy, target or flag), DataError (scores).
    """
    if name not in POLICY_FILES:
        raise ConfigError(f"policy {name!r} is unknown; policies are {', '.join(POLICY_FILES)}")
    if name != "softmax":
        raise ConfigError(f"policy {name!r} is not built yet; use softmax")
    targets = _checked_targets(risks, confidence, allow_one_sided)
    labels = calib.known_labels
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
    names = tuple(classes) if classes is not None else ("0", "1")
    if len(names) != 2:
        raise DataError(f"classes: {len(names)} names for 2 classes")

    unit = choose_unit(calib, unit, assume_iid)
    counted = calib.take(one_per_group(calib, seed)) if unit == "group" else calib
    delta = shared_delta(confidence, len(targets))
    score, labels = counted.margin, counted.known_labels
    thresholds = choose_thresholds(score, labels, targets, delta)
    if uncertified_because is not None:
        thresholds = Thresholds(None, None)
    exits = np.logical_or(*thresholds.exits(score))
    certified = bool(exits.any())
    if not certified:
        thresholds = Thresholds(None, None)
    bounds = measured_risks(thresholds, counted, targets, delta, certified)
    assert not certified or all(bound.holds for bound in bounds.values()), (
        "a chosen threshold whose exact bound exceeds its target"
    )
    reason, needed = (
        (uncertified_because, None)
        if uncertified_because
        else _shortfall(bounds, counted, certified, confidence, names, unit)
    )
    coverage = _coverage(exits)
    iid_assumed = assume_iid and unit == "image" and clustered(calib)
    certificate = Certificate(
        certified=certified,
        statement=(
            certified_statement(
                targets,
                names,
                confidence,
                coverage.value,
                unit,
                assume_iid=iid_assumed,
                attempt=attempt,
                closed=_closed_side(thresholds, targets, names),
            )
            if certified
            else refused_statement(targets, names, confidence, reason or "")
        ),
        policy=name,
        method=METHODS[frozenset(targets)],
        confidence=confidence,
        delta=1.0 - confidence,
        unit=unit,
        assume_iid=iid_assumed,
        risks=bounds,
        coverage=coverage,
        per_class={class_name: _coverage(exits[labels == index]) for index, class_name in enumerate(names)},
        classes=names,
        n_images=len(calib),
        n_units=len(counted),
        calib_digest=calibration_digest(calib),
        seed=seed,
        attempt=attempt,
        assumptions=assumptions(unit, iid_assumed),
        void_if=VOID_IF,
        reason=reason,
        needed=needed,
    )
    return SoftmaxPolicy(thresholds.lo, thresholds.hi, names, certified, certificate)


def measured_risks(
    thresholds: Thresholds, scores: Scores, targets: Mapping[str, float], delta: float, certified: bool
) -> dict[str, RiskBound]:
    """Count errors and trials of each risk at these thresholds, with the exact upper bound at 1 - delta.

    Counted anew from the decisions, not taken from the rule that chose the thresholds: the certificate rests on this.
    certified: images exit, so that a side without a threshold is a claim (never given), not a failure.
    """
    as_negative, as_positive = thresholds.exits(scores.margin)
    positive = scores.known_labels == 1
    bounds = {}
    for name, target in targets.items():
        side, only_exits = SIDES[name]
        members = positive if side == "positive" else ~positive
        wrong = as_negative if side == "positive" else as_positive
        counted = members & (as_negative | as_positive) if only_exits else members
        n, errors = int(counted.sum()), int((wrong & members).sum())
        never = certified and (thresholds.lo if side == "positive" else thresholds.hi) is None
        bounds[name] = RiskBound(
            name=name, target=target, observed=errors / n if n else None,
            bound=0.0 if never else float(binomial_upper(errors, n, delta)),
            n=n, errors=errors, delta=delta, needed=minimum_samples(target, delta), by_construction=never,
        )  # fmt: skip
    return bounds


def calibration_digest(calib: Scores) -> str:
    """Which images were used: sha256 over the sorted ids, or over labels and logits where there are no ids."""
    if calib.ids is not None:
        return digest_ids(calib.ids.tolist())
    return digest_bytes(calib.known_labels.tobytes() + calib.logits.tobytes())


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


def _checked_targets(risks: Mapping[str, float], confidence: float, allow_one_sided: bool) -> dict[str, float]:
    if not 0 < confidence < 1:
        raise ConfigError(f"confidence: must lie strictly between 0 and 1, got {confidence}")
    for name, target in risks.items():
        if name not in (*SIDES, "error"):
            raise ConfigError(f"risk {name!r} is unknown; risks are {', '.join(SIDES)}, error")
        if not (isinstance(target, (int, float)) and 0 < target < 1):
            raise ConfigError(f"risks.{name}: must lie strictly between 0 and 1, got {target!r}")
    chosen = frozenset(risks)
    if chosen not in METHODS:
        supported = "; ".join(" + ".join(sorted(names)) for names in METHODS if len(names) == 2)
        raise ConfigError(
            f"risks: no method yet for {' + '.join(sorted(risks)) or 'an empty target'}; supported: {supported}"
        )
    if len(chosen) == 1 and not allow_one_sided:
        only = next(iter(chosen))
        raise ConfigError(
            f"risks: {only} alone constrains one side only; add the other side (e.g. miss_rate + false_exit_rate), "
            "or set allow_one_sided=true: the other side then always defers"
        )
    order = [name for name in SIDES if name in chosen]
    return {name: float(risks[name]) for name in order}


def _coverage(exits: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Coverage:
    return Coverage(value=float(exits.mean()) if len(exits) else 0.0, n=len(exits), exits=int(exits.sum()))


def _closed_side(thresholds: Thresholds, targets: Mapping[str, float], classes: Sequence[str]) -> str | None:
    """The class as which nothing exits although the target constrains it, else None."""
    if len(targets) == 2 and (thresholds.lo is None or thresholds.hi is None):
        return classes[0] if thresholds.lo is None else classes[1]
    return None


def _shortfall(
    bounds: Mapping[str, RiskBound],
    scores: Scores,
    certified: bool,
    confidence: float,
    classes: Sequence[str],
    unit: str,
) -> tuple[str | None, str | None]:
    """(reason, needed): which count is too small for which side, with the arithmetic; (None, None) where both sides exit."""
    reasons, needs = [], []
    labels = scores.known_labels
    # Where the class that sets the first threshold is too small, the exits of the other class say nothing.
    first_short = any(not SIDES[name][1] and bound.n < bound.needed for name, bound in bounds.items())
    for name, bound in bounds.items():
        side, only_exits = SIDES[name]
        class_name = classes[1 if side == "positive" else 0]
        units = images(class_name, unit)
        goal = f"{name} <= {bound.target:g} at {percent(confidence)}"
        if not only_exits and bound.n < bound.needed:
            reasons.append(f"{bound.n} {units} cannot certify {goal} ({bound.needed} needed with 0 errors).")
            needs.append(f"{bound.needed - bound.n} more labelled {units} in val_calib, or a larger risks.{name}")
        elif only_exits and bound.n < bound.needed and not first_short:
            members = int((labels == (1 if side == "positive" else 0)).sum())
            share = bound.n / members if members else 0.0
            reasons.append(
                f"{bound.n} of {members} {units} exit as '{class_name}'; {goal} takes {bound.needed} with 0 errors."
            )
            needs.append(
                f"about {int(np.ceil(bound.needed / share))} {units} in val_calib at this exit share "
                f"({percent(round(share, 3))}), better scores, or a larger risks.{name}"
                if share
                else f"scores that put {units} beyond the threshold, or larger targets"
            )
    if not certified and not reasons:
        reasons.append(
            f"No calibration {unit} exits at the thresholds that the target allows: the scores are tied or do not separate the classes."
        )
        needs.append("scores that separate the classes, or larger targets")
    return (" ".join(reasons), "; ".join(needs) + ".") if reasons else (None, None)
