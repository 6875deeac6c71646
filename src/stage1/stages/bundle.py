"""bundle: the folder that ships."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from stage1.bundle.licences import licence_text
from stage1.calibration import CALIBRATION_FILE
from stage1.errors import MissingError, NotCertifiable
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.model.embedded import EMBEDDED, LICENCES_JOIN
from stage1.policy import Certificate, policy_file
from stage1.policy.ledger import LEDGER_FILE, folders_beside, looks_since
from stage1.runs.artifacts import chosen_policy_file, preprocessing_file, present, role_files, views_file
from stage1.runs.directory import RunDir
from stage1.runs.schema import FEATURES_KIND
from stage1.runs.stage import Context, Stage
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import read_role
from stage1.stages.acceptance import acceptance_state, accepted_in_words, require_accepted
from stage1.stages.chosen_head import choice_file, head_in_words
from stage1.stages.own_backbone import fit_in_words
from stage1.stages.views import shipped_views
from stage1.storage.documents import read_document
from stage1.storage.files import digest_file
from stage1.views import VIEWS_FILE


def _ready(run: RunDir, context: Context) -> None:
    """A run that certified nothing ends before its bundle, and so does one that failed an acceptance gate."""
    certificate = Certificate.load(run / "certificate.json")
    if not certificate.certified and not context.alone:  # alone, `stage1 bundle` has looked before it took the lock
        run.keep_config()  # what changed may be of no stage
        leftover = " bundle/ is of an earlier state of this run." if (run / "bundle").exists() else ""
        raise NotCertifiable(
            f"{certificate.reason} Needed: {certificate.needed or 'see the reason.'} Report:"
            f" {run / 'report.html'}.{leftover}"
        )
    if since := looks_since(run / LEDGER_FILE, certificate.calib_digest, folders_beside(run.path)):
        context.progress.say(
            f"  {since} further look(s) at these calibration images were made in folders beside this one: if this run"
            f" is the pick of all, `stage1 calibrate {run.path} --force` states the confidence of that"
        )
    for line in require_accepted(run, ignore=context.ignore_acceptance):
        context.progress.say(line)


def bundle(run: RunDir, context: Context) -> list[Path]:
    """The folder that ships; written to a temporary folder, verified, then renamed in one step."""
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
        ledger_file=run / LEDGER_FILE,
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
                **fit_in_words(run),
                **({"head": head_in_words(run)} if config.head.fitted_once else {}),
                "roles": roles,
            },
            "versions": {
                name: metadata.version(name) for name in ("stage1-pro", "numpy", "onnxruntime", "torch", "timm")
            },
        },
        licences=_licences(features),
        evaluation=read_document(run / "evaluation.json", EVALUATION_KIND),
    )
    context.progress.say(f"  {folder}")
    return [path for path in folder.rglob("*") if path.is_file()]


def _source_name(data: Any) -> str:
    # The name alone: a bundle is published, the folders of the machine that made it are not.
    return (
        "roadscenes (generated)"
        if data.source == "roadscenes"
        else Path(data.table or next(iter(data.role_tables.values()))).name
    )


def _licences(features: dict[str, Any]) -> dict[str, str]:
    """A text for each backbone; "backbone" the first one's."""
    names = features["backbone"].split("+")
    licences = features["licence"].split(LICENCES_JOIN)
    licences = licences if len(licences) == len(names) else [features["licence"]] * len(names)
    texts = {}
    for index, (name, licence) in enumerate(zip(names, licences, strict=True)):
        key = "backbone" if index == 0 else f"backbone-{index + 1}"
        texts[key] = _licence(name, licence, features.get("weights_sha256") if index == 0 else None)
    return texts


def _licence(name: str, licence: str, weights_sha256: str | None) -> str:
    """Licence text that goes with the weights: the package's own, else the name of the licence and where to read it."""
    packed = EMBEDDED.get(name)
    if packed is not None and weights_sha256 is None:
        for file in metadata.files(packed.distribution) or []:
            if file.name.upper().startswith("LICENSE"):
                return Path(str(file.locate())).read_text(encoding="utf-8")
        raise MissingError(f"{packed.distribution}: its LICENSE file is not installed; install the package again")
    return licence_text(name, licence, weights_sha256)


STAGE = Stage(
    name="bundle",
    sections=("name",),
    reads=lambda config: present(
        "model.onnx",
        chosen_policy_file(config),
        "certificate.json",
        "calibration.json",
        LEDGER_FILE,
        "evaluation.json",
        "features.json",
        "samples.parquet",
        preprocessing_file(config),
        views_file(config),
        choice_file(config),
        *role_files("val_calib"),
    ),
    work=bundle,
    external=acceptance_state,
    modules=("torch",),
    ready=_ready,
)
