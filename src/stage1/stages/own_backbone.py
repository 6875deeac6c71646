"""The run's own backbone: the one of the config with the weights that `pretrain` or `tune` made, and what it needs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stage1.config import BackboneConfig, RunConfig
from stage1.runs.artifacts import PREPROCESS_FOLDER, PREPROCESSING_FILE
from stage1.runs.directory import RunDir
from stage1.runs.schema import PREPROCESSING_KIND
from stage1.storage.documents import read_document

if TYPE_CHECKING:
    from stage1.model.backbone import Backbone

MODULES = ("torch", "torchvision", "timm")
"""What building a backbone imports beyond the core."""


def embedded_weights(config: RunConfig) -> tuple[str, ...]:
    """The package that holds the weights of an embedded backbone, where the config uses these."""
    from stage1.model.embedded import EMBEDDED

    own = config.backbone.weights is not None or config.backbone.random_weights
    first, *others = config.backbone.names
    kept = [*([] if own else [first]), *([] if config.backbone.random_weights else others)]
    return tuple(EMBEDDED[name].package for name in kept if name in EMBEDDED)


def backbone_config(run: RunDir, file: str) -> BackboneConfig:
    """The backbone of the config as the run has settled it, with the weights in `file` of it ("": the config's own)."""
    given = run.config.backbone
    if run.config.chooses_preprocessing:
        chosen = read_document(run / PREPROCESSING_FILE, PREPROCESSING_KIND)["chosen"]
        given = fitted(given, chosen["fit"], chosen["size"], chosen["crop_pct"])
    if not file:
        return given
    from stage1.model.origin import origin

    # Weights that the run made from others stay under the licence of those.
    known = origin(given)
    return given.model_copy(
        update={
            "weights": str(run / file),
            "random_weights": False,
            "licence": known.licence,
            "base_model": known.base_model,
        }
    )


def fitted(given: BackboneConfig, fit: str, size: int | None, crop_pct: float | None) -> BackboneConfig:
    """The config with a fit, and with an input side where it leaves that open."""
    cropped = {"crop_pct": crop_pct} if fit == "center_crop" else {"crop_pct": None}
    side = {"input_size": size} if given.input_size == "auto" else {}
    return given.model_copy(update={"fit": fit, **side, **cropped})


def fit_in_words(run: RunDir) -> dict[str, str]:
    """{"preprocessing": how images are fitted and what it was chosen over}, for pages; {} where nothing was open."""
    path = run / PREPROCESSING_FILE
    if not (run.config.chooses_preprocessing and path.is_file()):  # which runs of before the stage have not
        return {}
    return {"preprocessing": read_document(path, PREPROCESSING_KIND)["reason"]}


def exported(run: RunDir, backbone: Backbone) -> Path:
    """The backbone as ONNX file below `preprocess/`, named by what it is made of and written where it is not there."""
    from stage1.model.export import export_backbone

    path = run / PREPROCESS_FOLDER / f"{backbone.fingerprint[:32]}.onnx"
    if not path.is_file():
        path.parent.mkdir(exist_ok=True)
        export_backbone(backbone, path)
    return path


def share_line(trained: int, parameters: int) -> str:
    return f"  {trained:,} of {parameters:,} parameters are trained ({trained / parameters:.2%})"
