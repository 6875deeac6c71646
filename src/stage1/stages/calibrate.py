"""calibrate: thresholds and certificate, from the scores of the exported model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stage1.calibration import CALIBRATION_FILE
from stage1.data.splits import SPLITS_KIND
from stage1.errors import IntegrityError
from stage1.policy import POLICY_FILES, Policy
from stage1.policy.ledger import LEDGER_FILE, Ledger, folders_beside
from stage1.runs.artifacts import present, role_files, views_file
from stage1.runs.directory import RunDir
from stage1.runs.stage import Context, Stage
from stage1.scores import Scores, read_role
from stage1.stages.checks import check_all
from stage1.stages.fitting import fit_configured
from stage1.stages.views import views_claim
from stage1.storage.documents import read_document
from stage1.storage.files import digest_file, digest_ids

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
    check_all(config, splits["classes"])  # before the look is counted: what is refused was not asked of the images
    ledger = Ledger(run / LEDGER_FILE, others=folders_beside(run.path), say=context.progress.say)
    policy = fit_configured(
        config,
        select=select,
        calib=calib,
        classes=splits["classes"],
        say=context.progress.say,
        ledger=ledger,
        of={
            "model": digest_file(run / "model.onnx"),
            "select": None if select.ids is None else digest_ids(select.ids.tolist()),
        },
        uncertified_because=_LEAKAGE if splits["leakage"] else None,
        views=views_claim(run),
        dealing=dealing_of(splits),
    )
    return [*save_policy(run.path, policy), run / LEDGER_FILE]


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


STAGE = Stage(
    name="calibrate",
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
        "attempts",
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
