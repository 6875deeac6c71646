"""Writing a bundle: into a temporary folder beside the target, verified there, then renamed in one step."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from stage1.bundle.card import model_card
from stage1.bundle.manifest import (
    CALIBRATION,
    CARD,
    CERTIFICATE,
    LICENCES,
    MANIFEST,
    MODEL,
    SELECTION,
    read_views,
    sealed,
)
from stage1.bundle.schema import BUNDLE_KIND
from stage1.bundle.shown import shown_evaluation
from stage1.bundle.verify import verify_bundle
from stage1.calibration import CALIBRATION_FILE, FittedMap
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError
from stage1.policy import POLICY_FILES, Certificate
from stage1.policy import policy_file as the_one_policy_file
from stage1.policy.ledger import LEDGER_FILE
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import Scores, write_scores
from stage1.storage.documents import SCHEMA_VERSION, write_document
from stage1.storage.files import atomic_writer, digest_bytes, digest_file, write_error, write_text
from stage1.storage.publishing import publish, recover
from stage1.storage.temporaries import temporary_folder
from stage1.version import __version__
from stage1.views import VIEWS_FILE

_LICENCE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Facts(TypedDict):
    """What the manifest and the card say about where a bundle comes from. No times of day, no paths of the machine."""

    name: str
    backbone: str
    backbone_licence: str
    """As an SPDX identifier where there is one ("Apache-2.0"); the bundle is under it too."""
    base_model: str | None
    """Name on the Hugging Face hub, or None."""
    weights_sha256: NotRequired[str | None]
    """Of the file that the weights were read from, where they are not known by name."""
    config_digest: str
    data: dict[str, Any]
    """Summary: "source": str, "roles": {role: {class: count}}, and any other {name: value} lines for the card."""
    versions: dict[str, str]


def write_bundle(
    folder: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str],
    preprocessing: Preprocessing,
    classes: Sequence[str],
    policy_file: str | os.PathLike[str],
    certificate_file: str | os.PathLike[str],
    calibration: Scores,
    selection: Scores | None = None,
    map_file: str | os.PathLike[str] | None = None,
    views_file: str | os.PathLike[str] | None = None,
    ledger_file: str | os.PathLike[str] | None = None,
    facts: Facts,
    licences: Mapping[str, str],
    evaluation: Mapping[str, Any] | None = None,
) -> Path:
    """Write the bundle folder, whole or not at all; an existing bundle is replaced once the new one is complete.

    calibration: scores of val_calib with labels, ids and (where there are any) groups: what the certificate is made of.
    selection: the same of val_select, where the thresholds were ordered on it. map_file: calibration.json, the map
    under every probability that the bundle states; None: those of the model. views_file: views.json, the views that the
    scores are made of; None: whole images. ledger_file: the ledger that the certificate names; None: it names none.
    licences: {name: full text}, written to LICENSES/NAME.txt. evaluation: the evaluation document, for the card.
    The same inputs give the same bytes. Before it is renamed into place the new bundle is verified like any other, and
    its model answers one blank image with one logit per class.
    Raises MissingError (a file is not there), IntegrityError (a second policy file beside the given one; documents that
    disagree; a model that does not fit), DataError (calibration without labels or ids), ConfigError (the folder holds
    something that is no bundle), Stage1Error (cannot be written). In each case the content of `folder` is unchanged.
    """
    # A link to a bundle stays a link: what it points to is replaced.
    folder = Path(os.path.realpath(folder))
    if calibration.ids is None or calibration.labels is None:
        raise DataError("calibration: a bundle needs the ids and labels of val_calib, so that anyone can recompute it")
    needed = [(model, "export"), (policy_file, "calibrate"), (certificate_file, "calibrate")]
    optional = [(map_file, "calibrate"), (views_file, "score"), (ledger_file, "calibrate")]
    for path, stage in [*needed, *((path, stage) for path, stage in optional if path is not None)]:
        if not Path(path).is_file():
            raise MissingError(f"{path}: no such file; run `stage1 {stage}`")
    if Path(policy_file).name not in POLICY_FILES.values():
        raise ConfigError(f"{policy_file}: not a policy file; it is one of {', '.join(POLICY_FILES.values())}")
    the_one_policy_file(Path(policy_file).parent)
    try:
        if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / MANIFEST).is_file())):
            raise ConfigError(f"{folder}: is there and is not a bundle; it is not overwritten: choose another --output")
        folder.parent.mkdir(parents=True, exist_ok=True)
        recover(folder)
        with temporary_folder(folder) as fresh:
            try:
                _fill(
                    fresh,
                    Path(model),
                    preprocessing,
                    classes,
                    Path(policy_file),
                    Path(certificate_file),
                    calibration,
                    selection,
                    None if map_file is None else Path(map_file),
                    None if views_file is None else Path(views_file),
                    None if ledger_file is None else Path(ledger_file),
                    facts,
                    licences,
                    evaluation,
                )
                verify_bundle(fresh).require()
                _answers(fresh, preprocessing, classes)
                publish(fresh, folder)
            except IntegrityError as error:
                raise IntegrityError(str(error).replace(str(fresh), str(folder))) from error
    except OSError as error:
        raise write_error(folder, error) from error
    return folder


def _fill(
    fresh: Path,
    model: Path,
    preprocessing: Preprocessing,
    classes: Sequence[str],
    policy_file: Path,
    certificate_file: Path,
    calibration: Scores,
    selection: Scores | None,
    map_file: Path | None,
    views_file: Path | None,
    ledger_file: Path | None,
    facts: Facts,
    licences: Mapping[str, str],
    evaluation: Mapping[str, Any] | None,
) -> None:
    _copy(model, fresh / MODEL)
    # Weights of more than 2 GB are in a file of their own, which the graph names.
    if (weights := model.with_name(f"{model.name}.data")).is_file():
        _copy(weights, fresh / weights.name)
    _copy(policy_file, fresh / policy_file.name)
    _copy(certificate_file, fresh / CERTIFICATE)
    certificate = Certificate.load(fresh / CERTIFICATE)
    frozen = None
    if map_file is not None:
        _copy(map_file, fresh / CALIBRATION_FILE)
        frozen = FittedMap.load(fresh / CALIBRATION_FILE)
    if views_file is not None:
        _copy(views_file, fresh / VIEWS_FILE)
    if ledger_file is not None:
        _copy(ledger_file, fresh / LEDGER_FILE)
    views = read_views(fresh, certificate)
    write_scores(fresh / CALIBRATION, calibration)
    if selection is not None:
        write_scores(fresh / SELECTION, selection)
    if not licences:
        raise DataError("licences: none given; a bundle carries the licence text of its backbone")
    for name, text in licences.items():
        if not _LICENCE_NAME.fullmatch(name):
            raise DataError(f"licences: {name!r} cannot be a file name; use letters, digits, '.', '-', '+' and '_'")
        write_text(fresh / LICENCES / (name if name.endswith(".txt") else f"{name}.txt"), text)
    document: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "name": facts["name"],
        "stage1_version": __version__,
        "classes": list(classes),
        "positive_class": classes[1] if len(classes) == 2 else None,
        "preprocessing": preprocessing.to_json(),
        "policy": next(policy for policy, name in POLICY_FILES.items() if name == policy_file.name),
        "policy_file": policy_file.name,
        "certified": certificate.certified,
        **(
            {}
            if frozen is None
            else {"probability": {"map": frozen.map.name, "score": frozen.score, "reason": frozen.reason}}
        ),
        **({} if views is None else {"views": {"description": views.description, "count": views.policy.count}}),
        "backbone": {
            "name": facts["backbone"],
            "licence": facts["backbone_licence"],
            "base_model": facts["base_model"],
            **({} if facts.get("weights_sha256") is None else {"weights_sha256": facts["weights_sha256"]}),
        },
        "data": facts["data"],
        "evaluation": shown_evaluation(evaluation),
        "created_from": {
            "config": facts["config_digest"],
            "model": digest_file(fresh / MODEL),
            "policy": digest_file(fresh / policy_file.name),
            "certificate": digest_file(fresh / CERTIFICATE),
            **({} if frozen is None else {"map": digest_file(fresh / CALIBRATION_FILE)}),
            **({} if views is None else {"views": digest_file(fresh / VIEWS_FILE)}),
            "calibration_ids": certificate.calib_digest,
            "evaluation": None if evaluation is None else digest_bytes(json.dumps(evaluation, sort_keys=True).encode()),
            "versions": facts["versions"],
        },
    }
    write_text(fresh / CARD, model_card(document, certificate, document["evaluation"], views))
    document["files"] = {
        path.relative_to(fresh).as_posix(): {"sha256": digest_file(path), "size": path.stat().st_size}
        for path in sorted(fresh.rglob("*"))
        if path.is_file()
    }
    write_document(fresh / MANIFEST, sealed(document), BUNDLE_KIND)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as reading, atomic_writer(target) as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)


def _answers(folder: Path, preprocessing: Preprocessing, classes: Sequence[str]) -> None:
    from stage1.runtime.session import Engine

    model = folder / MODEL
    engine = Engine(model, threads=1)
    views = read_views(folder, Certificate.load(folder / CERTIFICATE))
    if engine.views != (views.policy.count if views is not None and views.pooled else None):
        raise IntegrityError(f"{model}: is not a model of the views in {VIEWS_FILE}; run `stage1 score` again")
    if "logits" not in engine.output_names:
        raise IntegrityError(f"{model}: no output `logits` (it has {', '.join(engine.output_names)}); export it anew")
    side = preprocessing.size
    try:
        shape = (1, 3, side, side) if engine.views is None else (1, engine.views, 3, side, side)
        outputs = engine.run(np.zeros(shape, dtype=np.float32))
    except DataError as error:
        raise IntegrityError(f"{model}: does not fit its preprocessing ({error}); export it anew") from error
    logits = outputs[engine.output_names.index("logits")]
    if logits.shape != (1, len(classes)):
        raise IntegrityError(
            f"{model}: gives logits {list(logits.shape)} for one image and {len(classes)} classes; export it anew"
        )
