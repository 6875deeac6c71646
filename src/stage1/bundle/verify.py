"""The check that a bundle is byte for byte what was written, and that its documents agree with each other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stage1.bundle.manifest import (
    CALIBRATION,
    CERTIFICATE,
    MANIFEST,
    MODEL,
    read_calibration,
    read_manifest,
    read_selection,
    read_views,
)
from stage1.calibration import CALIBRATION_FILE
from stage1.errors import IntegrityError, MissingError, Stage1Error
from stage1.policy import POLICY_FILES, Certificate, Policy, load_policy
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import Scores
from stage1.storage.files import digest_file
from stage1.views import VIEWS_FILE


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify_bundle` found.

    digest: the identity of the bundle, None where bundle.json cannot be trusted. files: how many files were digested.
    problems: one line each, the file first; empty means that no byte was changed.
    notes: what was not changed, and should be known all the same.
    """

    folder: Path
    digest: str | None
    files: int
    problems: tuple[str, ...]
    recomputed: bool = False
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    def require(self) -> None:
        """Raises IntegrityError (one line: the first problem, and how many more there are) unless `ok`."""
        if self.problems:
            more = (
                f" (and {len(self.problems) - 1} more: `stage1 verify {self.folder}`)" if len(self.problems) > 1 else ""
            )
            raise IntegrityError(f"{self.folder}: {self.problems[0]}{more}")


def verify_bundle(
    folder: str | os.PathLike[str],
    *,
    recompute: bool = False,
    accept_other_version: bool = False,
    scores: bool = True,
) -> VerifyReport:
    """Check that a bundle is byte for byte what was written, and that its documents agree with each other.

    Finds changed, missing, extra and renamed files, empty folders, links, a second policy file, and any change of
    bundle.json itself. With `recompute` certificate, thresholds, calibration map and model card are made again from the
    data in the bundle and compared (bundle/recomputation.py). The texts of another version of stage1 cannot be made
    again, which is a problem unless `accept_other_version`: then it is a note. It writes nothing. Raises MissingError
    where there is no such folder; all else is in the report.
    scores: also that ids, counts and looks in the documents are those of the scores in the bundle. Without, it is every
    byte, and that model, policy, certificate, map and views belong together: all that an answer is made of. (Where
    nothing is certified the scores are read all the same: no image among them may exit.)

    A digest proves that nothing changed by accident or in ignorance. Who rewrites every file *and* bundle.json makes
    another bundle, with another `digest`: compare that one with the digest you were given.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise MissingError(f"{folder}: no such bundle folder; give the folder that `stage1 bundle` wrote")
    found = dict(_entries(folder))
    problems = [
        f"{name}: {kind}; a bundle holds plain files only, remove it" for name, kind in found.items() if kind != "file"
    ]
    files = [name for name, kind in found.items() if kind == "file"]
    try:
        manifest = read_manifest(folder)
    except MissingError:
        problems.append(f"{MANIFEST}: missing; restore the bundle")
        return VerifyReport(folder, None, 0, tuple(problems))
    except Stage1Error as error:
        problems.append(_inside(folder, error))
        return VerifyReport(folder, None, 0, tuple(problems))
    listed: dict[str, dict[str, Any]] = manifest["files"]
    problems += [f"{name}: missing; restore the bundle" for name in listed if name not in found]
    problems += [f"{name}: not in {MANIFEST}; remove it" for name in files if name not in listed and name != MANIFEST]
    problems += _policy_problems(manifest, files)
    for name in listed:
        if found.get(name) == "file" and (problem := _changed(folder / name, listed[name])):
            problems.append(f"{name}: {problem}")
    # Documents are compared with each other only when each is known to be what was written: one cause, one line.
    if not problems:
        problems += _disagreements(folder, manifest, scores=scores)
    noted: list[str] = []
    if recompute and not problems:
        from stage1.bundle.recomputation import recompute as recomputed

        found_again = recomputed(folder, accept_other_version=accept_other_version)
        problems += found_again.problems
        noted += found_again.notes
    notes = (
        () if problems or not scores else (*noted, *_earlier_notes(folder, manifest), *_looks_noted(folder, manifest))
    )
    return VerifyReport(folder, manifest["digest"], len(listed), tuple(problems), recompute, notes)


def _looks_noted(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    from stage1.bundle.looks import ledger_notes

    certificate = load_policy(folder / manifest["policy_file"]).certificate
    return iter(()) if certificate is None else ledger_notes(folder, certificate)


def _earlier_notes(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    """What certificates of earlier versions leave open: bounds that are not joint, groups dealt by size."""
    certificate = load_policy(folder / manifest["policy_file"]).certificate
    groups = read_calibration(folder).groups
    if certificate is None or not certificate.certified:
        return
    if certificate.bounds is None:
        yield (
            f"{CERTIFICATE}: the bounds in it are each of one risk alone, read off after the thresholds were chosen (an"
            " earlier version wrote it); what it promises are the targets"
        )
    if certificate.dealing is not None or groups is None:
        return
    sizes = np.unique(groups, return_counts=True)[1]
    if len(np.unique(sizes)) > 1:
        yield (
            f"{CERTIFICATE}: does not say how groups came to val_calib. Earlier versions dealt them by size under"
            " split.method=balanced: large groups are then in val_calib too often, and the guarantee can be false far"
            f" more often than {certificate.delta:.4g}. Where splits.json of the run says balanced, split anew (another"
            " split.seed) and certify again"
        )


def _entries(folder: Path, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(path below the bundle, kind) of everything in it: files, and what has no place in a bundle."""
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda item: item.name)
    except OSError as error:
        yield prefix.rstrip("/") or ".", f"cannot be read ({error.strerror})"
        return
    for entry in entries:
        name = prefix + os.fsencode(entry.name).decode("utf-8", "backslashreplace")
        if entry.is_symlink():
            yield name, "is a link"
        elif entry.is_dir():
            inside = list(_entries(Path(entry.path), f"{name}/"))
            yield from inside or [(name, "is an empty folder")]
        else:
            yield name, "file" if entry.is_file() else "is neither a file nor a folder"


def _changed(path: Path, listed: Mapping[str, Any]) -> str | None:
    try:
        size, digest = path.stat().st_size, digest_file(path)
    except OSError as error:
        return f"cannot be read ({error.strerror}); check its permissions, or restore the bundle"
    if size != listed["size"]:
        return f"{size} bytes, {listed['size']} were written; restore the bundle"
    if digest != listed["sha256"]:
        return f"changed (sha256 {digest[:12]}, {listed['sha256'][:12]} was written); restore the bundle"
    return None


def _policy_problems(manifest: Mapping[str, Any], files: list[str]) -> list[str]:
    expected = POLICY_FILES[manifest["policy"]]
    problems = []
    if manifest["policy_file"] != expected or expected not in manifest["files"]:
        problems.append(
            f"{MANIFEST}: policy {manifest['policy']!r} with policy file {manifest['policy_file']!r}; bundle it anew"
        )
    listed = [name for name in POLICY_FILES.values() if name in manifest["files"] or name in files]
    if len(listed) > 1:
        problems.append(f"{' and '.join(listed)}: a bundle has exactly one exit policy; bundle it anew with one")
    return problems


def _disagreements(folder: Path, manifest: Mapping[str, Any], *, scores: bool) -> list[str]:
    """Whether policy, certificate, calibration and manifest speak of the same thing."""
    try:
        Preprocessing.from_json(manifest["preprocessing"])
        policy = load_policy(folder / manifest["policy_file"])
        certificate = policy.certificate
        needs_scores = scores or (certificate is not None and not certificate.certified)
        calibration = read_calibration(folder) if needs_scores else None
    except Stage1Error as error:
        return [_inside(folder, error)]
    if certificate is None:
        return [f"{CERTIFICATE}: missing; bundle it anew"]
    problems = []
    for name, classes in ((manifest["policy_file"], policy.classes), (CERTIFICATE, certificate.classes)):
        if list(classes) != manifest["classes"]:
            problems.append(f"{name}: classes {', '.join(classes)}; {MANIFEST} says {', '.join(manifest['classes'])}")
    try:
        views = read_views(folder, certificate)
    except Stage1Error as error:
        return [_inside(folder, error)]
    described = None if views is None else {"description": views.description, "count": views.policy.count}
    if manifest.get("views") != described:
        problems.append(f"{MANIFEST}: says other views than {CERTIFICATE}")
    if certificate.policy != manifest["policy"]:
        problems.append(f"{CERTIFICATE}: made for policy {certificate.policy!r}, the bundle has {manifest['policy']!r}")
    if (CALIBRATION_FILE in manifest["files"]) != ("probability" in manifest):
        problems.append(f"{MANIFEST}: says another thing of the probability than whether {CALIBRATION_FILE} is listed")
    if certificate.certified != manifest["certified"]:
        problems.append(f"{MANIFEST}: certified is {manifest['certified']}, {CERTIFICATE} says {certificate.certified}")
    problems += _unfounded(manifest, policy, certificate)
    if calibration is not None:
        problems += _beside_scores(folder, manifest, policy, certificate, calibration)
    return [f"{problem}; bundle it anew" for problem in problems]


def _beside_scores(
    folder: Path, manifest: Mapping[str, Any], policy: Policy, certificate: Certificate, calibration: Scores
) -> list[str]:
    """What the documents say of the scores in the bundle, and the scores do not."""
    from stage1.bundle.looks import ledger_problems
    from stage1.policy.certify import calibration_digest

    problems = list(_miscounted(folder, manifest, certificate))
    problems += ledger_problems(folder, certificate, calibration)
    if calibration.n_classes != len(manifest["classes"]):
        problems.append(f"{CALIBRATION}: {calibration.n_classes} logits a row for {len(manifest['classes'])} classes")
    elif not certificate.certified and bool(policy.decide(calibration).exit.any()):
        problems.append(f"{manifest['policy_file']}: images exit although nothing is certified")
    if calibration_digest(calibration) != certificate.calib_digest:
        problems.append(
            f"{CALIBRATION}: its {len(calibration)} ids are not the {certificate.n_images} of {CERTIFICATE}"
        )
    return problems


def _unfounded(manifest: Mapping[str, Any], policy: Policy, certificate: Certificate) -> Iterator[str]:
    """Fields of bundle.json that follow from other files, and do not."""
    classes = manifest["classes"]
    positive = classes[1] if len(classes) == 2 else None
    if manifest["positive_class"] != positive:
        yield f"{MANIFEST}: positive_class is {manifest['positive_class']!r}, the second of the classes is {positive!r}"
    made_of = manifest["created_from"]
    for field, name in {
        "model": MODEL,
        "policy": manifest["policy_file"],
        "certificate": CERTIFICATE,
        "map": CALIBRATION_FILE,
        "views": VIEWS_FILE,
    }.items():
        reported, there = made_of.get(field), manifest["files"].get(name, {}).get("sha256")
        if reported != there:
            yield f"{MANIFEST}: created_from.{field} is not the digest of {name}"
    if made_of["calibration_ids"] != certificate.calib_digest:
        yield f"{MANIFEST}: created_from.calibration_ids is not calib_digest of {CERTIFICATE}"
    frozen = policy.frozen
    said = None if frozen is None else {"map": frozen.map.name, "score": frozen.score, "reason": frozen.reason}
    if said is not None and manifest.get("probability") != said:
        yield f"{MANIFEST}: probability is not what {CALIBRATION_FILE} says"


def _miscounted(folder: Path, manifest: Mapping[str, Any], certificate: Certificate) -> Iterator[str]:
    """Counts in bundle.json that are not those of the scores, or of the evaluation that it shows."""
    from stage1.bundle.shown import evaluation_problems

    classes = manifest["classes"]
    evaluation = manifest.get("evaluation")
    if evaluation is not None:
        yield from (f"{MANIFEST}: {problem}" for problem in evaluation_problems(evaluation, certificate))
    for role, read in (("val_calib", read_calibration), ("val_select", read_selection)):
        reported, scores = manifest["data"].get("roles", {}).get(role), read(folder)
        if reported is not None and scores is not None and scores.labels is not None:
            counts = {name: int((scores.labels == index).sum()) for index, name in enumerate(classes)}
            if reported != counts:
                yield f"{MANIFEST}: data.roles.{role} is {reported!r}, the scores of it here are {counts!r}"


def _inside(folder: Path, error: Stage1Error) -> str:
    """The error's line, with paths relative to the bundle: the folder is named once, at the head of the report."""
    return str(error).replace(f"{folder}{os.sep}", "")
