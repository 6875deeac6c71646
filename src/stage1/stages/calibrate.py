"""calibrate: thresholds and certificate, from the scores of the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stage1.calibration import CALIBRATION_FILE, non_monotone
from stage1.data.splits import SPLITS_KIND
from stage1.errors import IntegrityError
from stage1.policy import POLICY_FILES, Policy
from stage1.policy.certify import calibration_digest
from stage1.runs.artifacts import present, role_files, views_file
from stage1.runs.directory import RunDir
from stage1.runs.schema import ATTEMPTS_KIND
from stage1.runs.stage import Context, Stage
from stage1.scores import Scores, read_role
from stage1.stages.checks import check_all
from stage1.stages.fitting import fit_configured
from stage1.stages.views import views_claim
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_file

if TYPE_CHECKING:
    from stage1.data.table import SampleTable


_LEAKAGE = (
    "The split allowed the same or near-identical images in two roles (split.allow_leakage), so no calibration image"
    " counts as unseen."
)


def calibrate(run: RunDir, context: Context) -> list[Path]:
    """Thresholds and certificate, from the scores of val_calib."""
    from stage1.data.splits import dealing_of
    from stage1.data.table import SampleTable

    config = run.config
    select, calib = read_role(run.path, "val_select"), read_role(run.path, "val_calib")
    _check_roles(SampleTable.read(run / "samples.parquet"), calib)
    splits = read_document(run / "splits.json", SPLITS_KIND)
    check_all(config, splits["classes"])  # before the attempt is counted: what is refused was not asked of the images
    attempt = _attempt(run, calib)
    policy = fit_configured(
        config,
        select=select,
        calib=calib,
        classes=splits["classes"],
        say=context.progress.say,
        attempt=attempt,
        uncertified_because=_LEAKAGE if splits["leakage"] else None,
        views=views_claim(run),
        dealing=dealing_of(splits),
    )
    return [*save_policy(run.path, policy), run / "attempts.json"]


def save_policy(folder: Path, policy: Policy) -> list[Path]:
    """The one policy file, its certificate and calibration map; files of other policies are removed."""
    assert policy.certificate is not None
    # First what no longer holds, then the certificate, the thresholds last: where there are thresholds, there is what
    # they follow from.
    for name in POLICY_FILES.values():
        (folder / name).unlink(missing_ok=True)
    # A map of an earlier policy must not speak for this one.
    (folder / CALIBRATION_FILE).unlink(missing_ok=True)
    written = [folder / POLICY_FILES[policy.name], folder / "certificate.json"]
    if policy.frozen is not None:
        policy.frozen.save(folder / CALIBRATION_FILE)
        written.append(folder / CALIBRATION_FILE)
    policy.certificate.save(folder / "certificate.json")
    policy.save(folder / POLICY_FILES[policy.name])
    return written


def _check_roles(table: SampleTable, calib: Scores) -> None:
    """Roles are enforced by the digests of the images, not by file names."""
    roles = dict(zip(table.ids.tolist(), table.roles.tolist(), strict=True))
    if calib.ids is None:
        raise IntegrityError("val_calib_ids.json: has no ids; run `stage1 score` again")
    for name in calib.ids.tolist():
        if roles.get(name) != "val_calib":
            raise IntegrityError(
                f"val_calib: image {name} has the role {roles.get(name)!r} in samples.parquet; run `stage1 score` again"
            )


def _attempt(run: RunDir, calib: Scores) -> int:
    """How many different certificates these calibration images were used for in this run directory, with this one."""
    path = run / "attempts.json"
    attempts = read_document(path, ATTEMPTS_KIND)["attempts"] if path.is_file() else []
    config = run.config
    asked: dict[str, Any] = {
        "calib_digest": calibration_digest(calib),
        "model": digest_file(run / "model.onnx"),
        "policy": config.policy.name,
        "risks": config.risks_for(calib.n_classes),
        "confidence": config.confidence,
        "assume_iid": config.assume_iid,
        "coverage": config.coverage,
        "class_coverage": dict(config.class_coverage),
        "target_prior": config.target_prior,
        "against_argmax": config.policy.against_argmax,
    }
    if non_monotone(config.calibration.map):
        asked["calibration"] = config.calibration.map  # thresholds on another score are another target
    if (views := views_claim(run)) is not None:
        asked["views"] = views.digest
    if asked not in attempts:
        attempts.append(asked)
        write_document(path, {"attempts": attempts}, ATTEMPTS_KIND)
    return sum(item["calib_digest"] == asked["calib_digest"] for item in attempts)


STAGE = Stage(
    name="calibrate",
    help="Choose the exit thresholds and certify them on val_calib; of a run, or of scores of any model.",
    example="stage1 calibrate --scores mine.parquet --output runs/mine risks.fnr=0.02",
    sections=(
        "calibration",
        "policy",
        "risks",
        "coverage",
        "class_coverage",
        "target_prior",
        "confidence",
        "allow_one_sided",
        "assume_iid",
        "unit",
        "seed",
    ),
    reads=lambda config: present(
        *role_files("val_select"),
        *role_files("val_calib"),
        "samples.parquet",
        "splits.json",
        "model.onnx",
        views_file(config),
    ),
    work=calibrate,
    modules=("torch",),
)
